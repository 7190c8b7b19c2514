//! `docs/configuration.md`, made of the settings themselves.

use std::fmt::Write as _;
use std::path::Path;

use clap::CommandFactory as _;

use super::group::{GroupSettings, Groups, LoaderSettings};
use super::{Flags, print};
use peanut_edge::rights::file::TokenSettings;

const HEAD: &str = "\
# Configuration

Generated from the code by a test of `peanut-server` (`PEANUT_WRITE_DOCS=1 cargo test -p peanut-server --features full configuration`): edit the settings there, not
this page. The settings of a client are at [the end](#client).

Every setting of the node is a key of the file (`--config FILE`, TOML), a flag and a variable. A flag overrides the variable, which overrides the
file, which overrides the default. Durations are written like `500ms`, `10s`, `2m`, `7d`, sizes like `64MiB` or `1GB`. What is out of its bounds is refused at the
start, in one line that begins with the place, with exit code 78. `--print-config` prints what each setting comes to and where that is from.

## Node

| key | flag, variable | meaning | default |
|---|---|---|---|
";

/// The page as it should be.
fn page() -> String {
    let mut page = HEAD.to_owned();
    for argument in Flags::command().get_arguments() {
        let Some((section, key, flag)) = print::key_of(argument) else { continue };
        let name = key;
        let key = section.map_or(name.clone(), |section| format!("[{section}] {name}"));
        let variable = argument.get_env().unwrap_or_default().to_string_lossy();
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let (meaning, default) = with_default(&help);
        let before = match section {
            Some("etcd") => "[etcd]\nendpoints = ['http://127.0.0.1:1']".to_owned(),
            Some("otlp") => "[otlp]\nendpoint = 'http://127.0.0.1:1'".to_owned(),
            Some(section) => format!("[{section}]"),
            None => String::new(),
        };
        let bounds = bounds(&before, &name, "");
        let _ = writeln!(page, "| `{key}` | `--{flag}`, `{variable}` | {meaning}{bounds} | {default} |");
    }
    for (title, about, fields, around) in [
        (
            "Groups: `[[group]]`",
            "Or inline TOML: `--group '{ name = … }'`, `PEANUT_GROUP`.",
            GroupSettings::FIELDS,
            Some(GROUP),
        ),
        (
            "Loaders: `[group.loader]`",
            "What each kind does with its origin is on the page [loaders.md](loaders.md).",
            LoaderSettings::FIELDS,
            Some(LOADER),
        ),
        (
            "Tokens: `[[token]]`",
            "In the file only; what they mean is on the page [security.md](security.md).",
            TokenSettings::FIELDS,
            None,
        ),
    ] {
        let _ = writeln!(page, "\n## {title}\n\n{about}\n\n| key | meaning | default |\n|---|---|---|");
        for (key, description) in fields {
            let (meaning, default) = with_default(description.trim());
            let bounds = around.map(|(before, after)| bounds(before, key, after)).unwrap_or_default();
            let _ = writeln!(page, "| `{key}` | {meaning}{bounds} | {default} |");
        }
    }
    client_settings(&mut page);
    page
}

/// What stands before and after a key of a group in a file.
const GROUP: (&str, &str) =
    ("[[group]]\nname = 'g'\nloader = { kind = 'static', entries = {} }\nmax_ttl = '3660d'\n", "");
/// And of a loader.
const LOADER: (&str, &str) =
    ("[[group]]\nname = 'g'\nloader = { kind = 'http', url = 'http://127.0.0.1:1', ", " }");

/// The bounds of a setting, as one that is out of them is refused with; empty where it has none.
fn bounds(before: &str, key: &str, after: &str) -> String {
    let before: String =
        before.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect();
    let before = before.trim_end_matches('\n');
    for out_of_them in ["'3650000d'", "'9999999999GiB'", "'0s'", "1000000000000000", "0", "-1.0"] {
        let separator = if after.is_empty() { "\n" } else { "" };
        let file = format!("{before}{separator}{key} = {out_of_them}{after}\n");
        let Err(refused) = super::tests::read(&file, &[]) else { continue };
        let Some((_, bounds)) = refused.split_once("must be ") else { continue };
        let bounds = bounds.lines().next().unwrap_or_default();
        let bounds = bounds.split(", and is").next().unwrap_or_default();
        if let Some(longest) = bounds.strip_prefix("from 0ns to ") {
            return format!("; at most {longest}");
        }
        if bounds.starts_with("from ") || bounds.starts_with("at most ") {
            return format!("; {bounds}");
        }
    }
    String::new()
}

/// The methods of `ClientBuilder` that set something, from their documentation.
fn client_settings(page: &mut String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/src/builder.rs");
    let Ok(code) = std::fs::read_to_string(path) else { return };
    page.push_str(
        "\n## Client\n\nMethods of `Client::builder()`; a value out of its bounds is an error of `build`.\n\n\
         | method | meaning |\n|---|---|\n",
    );
    let mut description = String::new();
    for line in code.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            let _ = write!(description, "{words}");
        } else if let Some(method) = line.strip_prefix("pub fn ").filter(|rest| rest.contains("(mut self")) {
            let name = method.split('(').next().unwrap_or_default();
            // Up to an example; a link in the code's documents is none on this page.
            let meaning = description.split("```").next().unwrap_or_default();
            let meaning = meaning.split("](").map(|part| match part.split_once(')') {
                Some((target, rest)) if target.contains("::") => rest,
                _ => part,
            });
            let meaning = meaning.collect::<String>().replace(['[', ']'], "");
            // What leads to the example is no sentence.
            let whole = meaning.trim().rsplit_once(". ").filter(|_| !meaning.trim().ends_with('.'));
            let meaning = whole.map_or(meaning.trim().to_owned(), |(whole, _)| format!("{whole}."));
            if !meaning.is_empty() {
                let _ = writeln!(page, "| `{name}` | {} |", meaning.trim_end_matches(':'));
            }
            description.clear();
        } else if !line.starts_with("#[") || line.contains("simulation") || line.contains("doc(hidden)") {
            description.clear();
        }
    }
}

fn with_default(description: &str) -> (&str, String) {
    let split = description.split_once(" [default: ");
    let (meaning, default) = split.unwrap_or((description, ""));
    (meaning, default.strip_suffix(']').map(|default| format!("`{default}`")).unwrap_or_default())
}

#[test]
fn the_page_of_the_configuration_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("PEANUT_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    // A package has no such directory beside it.
    let Ok(written) = std::fs::read_to_string(&path) else { return };
    assert_eq!(written, page(), "run the test with PEANUT_WRITE_DOCS=1");
}

#[test]
fn the_defaults_of_groups_are_those_that_are_described() {
    let mut described = String::new();
    for (key, description) in GroupSettings::FIELDS {
        let default = description.split_once("[default: ").and_then(|(_, rest)| rest.strip_suffix(']'));
        let Some(default) = default.filter(|default| *default != "none" && !default.contains(' ')) else {
            continue;
        };
        let is_bare = default.parse::<f64>().is_ok() || default.parse::<bool>().is_ok();
        let value = if is_bare { default.to_owned() } else { format!("{default:?}") };
        let _ = write!(described, "{key} = {value}, ");
    }
    let of = |settings: &str| {
        let group = format!("{{ name = 'g', {settings} loader = {{ kind = 'none' }} }}");
        format!("{:?}", group.parse::<Groups>().unwrap().build().unwrap())
    };
    assert!(described.contains("max_loads = 128"), "{described}");
    assert_eq!(of(&described), of(""));
}
