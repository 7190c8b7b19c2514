//! The page `docs/commands.md`, from the arguments.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use crate::args::Args;

/// The whole page.
fn page() -> String {
    let mut page = String::from(
        "# Commands\n\nEvery command and option of `peanut`, with the variable that an option may come from. A test \
         writes and compares this page. A duration is like `5s` or `250ms`, a size like `64MiB`; plain numbers are of \
         seconds and bytes. `peanut` and `peanut-server` read the same `PEANUT_TLS_*` and `PEANUT_ETCD_*` variables.\n",
    );
    let mut command = Args::command();
    command.build();
    page.push_str("\n## Options of every command\n");
    options(&mut page, &command, |argument| !is_of_clap(argument));
    for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
        let about = one.get_about().map(ToString::to_string).unwrap_or_default();
        let places: String = one.get_positionals().map(|place| format!(" {}", in_usage(place))).collect();
        let _ = writeln!(page, "\n## `peanut {}{places}`\n\n{about}.", one.get_name());
        if one.get_positionals().next().is_some() {
            page.push('\n');
        }
        for place in one.get_positionals() {
            let or = place.get_env().and_then(|name| name.to_str());
            let or = or.map(|name| format!(" (or from `{name}`)")).unwrap_or_default();
            let _ = writeln!(page, "- `{}`: {}{or}", shown(place), help(place));
        }
        options(&mut page, one, |argument| !argument.is_global_set() && !is_of_clap(argument));
    }
    page
}

fn is_of_clap(argument: &Arg) -> bool {
    matches!(argument.get_id().as_str(), "help" | "version")
}

/// A table of options, where there are some.
fn options(page: &mut String, command: &Command, is_shown: impl Fn(&Arg) -> bool) {
    let mut options = command.get_arguments().filter(|it| !it.is_positional() && is_shown(it)).peekable();
    if options.peek().is_none() {
        return;
    }
    page.push_str("\n| option | variable | meaning | default |\n|---|---|---|---|\n");
    for option in options {
        let variable = option.get_env().and_then(|name| name.to_str());
        let variable = variable.map(|name| format!("`{name}`")).unwrap_or_default();
        let defaults: Vec<_> = option.get_default_values().iter().filter_map(|it| it.to_str()).collect();
        let takes_value = matches!(option.get_action(), ArgAction::Set | ArgAction::Append);
        let default = match defaults.is_empty() || !takes_value {
            true => String::new(),
            false => format!("`{}`", defaults.join(",")),
        };
        let also = option.get_visible_aliases().unwrap_or_default();
        let also: String = also.iter().map(|name| format!("; `--{name}` is the same")).collect();
        let _ = writeln!(page, "| `{}` | {variable} | {}{also} | {default} |", shown(option), help(option));
    }
}

/// A positional argument as usage lines have it: in brackets where it may be left out, with dots where there
/// may be several.
fn in_usage(place: &Arg) -> String {
    let dots = if matches!(place.get_action(), ArgAction::Append) { "…" } else { "" };
    let (open, close) = if place.is_required_set() { ("", "") } else { ("[", "]") };
    format!("{open}{}{dots}{close}", shown(place))
}

/// An argument as it is given.
fn shown(argument: &Arg) -> String {
    let names: Vec<_> =
        argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let value = if matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) {
        names.join(" ")
    } else {
        String::new()
    };
    match argument.get_long() {
        Some(long) => format!("--{long} {value}").trim_end().to_owned(),
        None => value,
    }
}

fn help(argument: &Arg) -> String {
    argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|")
}

#[test]
fn the_page_of_the_commands_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/commands.md");
    if std::env::var_os("PEANUT_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).expect("the page is written");
    }
    // A package has no such directory beside it.
    if path.parent().is_some_and(Path::is_dir) {
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(written, page(), "run the test with PEANUT_WRITE_DOCS=1");
    }
}
