//! `--print-config`: what each setting comes to and where that is from, as TOML that can be used again. Secrets are hidden.

use std::fmt::Write as _;

use clap::ArgMatches;
use clap::parser::ValueSource;
use toml::{Table, Value};

use super::{Flags, Settings, Source};

/// What stands for a secret.
const HIDDEN: &str = "<hidden>";

/// Everything that can be set, each with its source.
pub(super) fn print(matches: &ArgMatches, file: Option<&(Settings, Source)>) -> String {
    let from_file =
        file.map(|(_, source)| (source.name.as_str(), source.text.parse::<Table>().unwrap_or_default()));
    let command = <Flags as clap::CommandFactory>::command();
    // Plain values come before tables in TOML.
    let (mut plain, mut tables) = (String::new(), String::new());
    let mut section = "";
    for argument in command.get_arguments() {
        let Some(flag) = argument.get_long() else { continue };
        if ["config", "check-config", "print-config", "group", "help", "version"].contains(&flag) {
            continue;
        }
        let of_section = ["etcd", "tls"].into_iter().find(|section| flag.starts_with(&format!("{section}-")));
        let key = match of_section {
            Some(section) => flag[section.len() + 1..].replace('-', "_"),
            None => flag.replace('-', "_"),
        };
        let into = if of_section.is_some() { &mut tables } else { &mut plain };
        if let Some(name) = of_section.filter(|name| *name != section) {
            section = name;
            let _ = writeln!(into, "\n[{name}]");
        }
        let id = argument.get_id().as_str();
        let said =
            || matches.get_raw(id).into_iter().flatten().map(|raw| raw.to_string_lossy()).collect::<Vec<_>>();
        let value =
            |texts: Vec<_>| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
        let in_file = from_file.as_ref().and_then(|(name, table)| {
            let table = of_section.map_or(Some(table), |section| table.get(section)?.as_table())?;
            Some((*name, table.get(&key)?))
        });
        let _ = match (matches.value_source(id), in_file) {
            (Some(ValueSource::CommandLine), _) => writeln!(into, "{key} = {} # --{flag}", value(said())),
            (Some(ValueSource::EnvVariable), _) => {
                let variable = argument.get_env().unwrap_or_default().to_string_lossy();
                writeln!(into, "{key} = {} # {variable}", value(said()))
            }
            (_, Some((name, value))) => writeln!(into, "{key} = {} # {name}", hide(value.clone())),
            (_, None) if key == "log" && std::env::var("RUST_LOG").is_ok_and(|filter| !filter.is_empty()) => {
                let filter = std::env::var("RUST_LOG").unwrap_or_default();
                writeln!(into, "{key} = {filter:?} # RUST_LOG")
            }
            (_, None) => {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let default = help.split_once("[default: ").and_then(|(_, rest)| rest.strip_suffix(']'));
                match default {
                    Some(default) => writeln!(into, "# {key} = {default:?} # default"),
                    None => writeln!(into, "# {key} is not set"),
                }
            }
        };
    }
    let mut text = plain + &tables;
    let groups = matches.get_raw("group").into_iter().flatten().map(|raw| raw.to_string_lossy());
    let flags: Vec<_> = groups.collect();
    match (&flags[..], &from_file) {
        ([_, ..], _) => {
            for group in flags {
                let _ = writeln!(text, "\n# --group\n# {}", hide_urls(&group));
            }
        }
        ([], Some((name, table))) => {
            for key in ["token", "group"] {
                for entry in table.get(key).and_then(Value::as_array).into_iter().flatten() {
                    let _ = writeln!(text, "\n[[{key}]] # {name}");
                    for (key, value) in entry.as_table().into_iter().flatten() {
                        let _ = writeln!(text, "{key} = {}", hide(value.clone()));
                    }
                }
            }
        }
        ([], None) => {}
    }
    text
}

/// A value in which passwords of URLs are hidden.
fn hide(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(hide_urls(&text)),
        Value::Array(list) => Value::Array(list.into_iter().map(hide).collect()),
        Value::Table(table) => {
            Value::Table(table.into_iter().map(|(key, value)| (key, hide(value))).collect())
        }
        other => other,
    }
}

/// Puts something else in the place of `password` in every `scheme://user:password@host`.
fn hide_urls(text: &str) -> String {
    let mut hidden = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(['/', '?', '"', '\'', ' ']).unwrap_or(after.len());
        let (authority, later) = after.split_at(end);
        hidden.push_str(before);
        hidden.push_str("://");
        match authority.rsplit_once('@') {
            Some((who, host)) => {
                let user = who.split_once(':').map_or(who, |(user, _)| user);
                let secret = if who.contains(':') { format!(":{HIDDEN}") } else { String::new() };
                hidden.push_str(&format!("{user}{secret}@{host}"));
            }
            None => hidden.push_str(authority),
        }
        rest = later;
    }
    hidden + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_hidden_and_nothing_else() {
        for (url, shown) in [
            ("postgres://me:secret@host:5432/db?x=y", "postgres://me:<hidden>@host:5432/db?x=y"),
            ("redis://:secret@host/0", "redis://:<hidden>@host/0"),
            ("mysql://me:se@cret@host/db", "mysql://me:<hidden>@host/db"),
            ("postgres://me@host/db", "postgres://me@host/db"),
            ("http://host:80/{group}/{key}", "http://host:80/{group}/{key}"),
            (
                "{ url = \"redis://a:b@c\", x = \"d://e:f@g\" }",
                "{ url = \"redis://a:<hidden>@c\", x = \"d://e:<hidden>@g\" }",
            ),
            ("no url", "no url"),
        ] {
            assert_eq!(hide_urls(url), shown);
        }
    }
}
