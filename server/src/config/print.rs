//! `--print-config`: what each setting comes to and where that is from, as TOML that can be used again.
//! Secrets are hidden.

use std::any::TypeId;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::num::NonZeroUsize;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};
use toml::{Table, Value};

use super::{Flags, Source};

/// What stands for a secret.
const HIDDEN: &str = "<hidden>";

/// Everything that can be set, each with its source.
pub(super) fn print(matches: &ArgMatches, file: Option<&Source>) -> String {
    let from_file =
        file.map(|source| (source.name.as_str(), source.text.parse::<Table>().unwrap_or_default()));
    let command = <Flags as clap::CommandFactory>::command();
    // Plain values come before tables in TOML.
    let (mut plain, mut tables) = (String::new(), String::new());
    let mut section = "";
    for argument in command.get_arguments() {
        let Some((of_section, key, flag)) = key_of(argument) else { continue };
        let into = if of_section.is_some() { &mut tables } else { &mut plain };
        if let Some(name) = of_section.filter(|name| *name != section) {
            section = name;
            let _ = writeln!(into, "\n[{name}]");
        }
        let id = argument.get_id().as_str();
        let said =
            || matches.get_raw(id).into_iter().flatten().map(|raw| raw.to_string_lossy()).collect::<Vec<_>>();
        let in_file = from_file.as_ref().and_then(|(name, table)| {
            let table = of_section.map_or(Some(table), |section| table.get(section)?.as_table())?;
            Some((*name, table.get(&key)?))
        });
        let _ = match (matches.value_source(id), in_file) {
            (Some(ValueSource::CommandLine), _) => {
                writeln!(into, "{key} = {} # --{flag}", typed(argument, &said()))
            }
            (Some(ValueSource::EnvVariable), _) => {
                let variable = argument.get_env().unwrap_or_default().to_string_lossy();
                writeln!(into, "{key} = {} # {variable}", typed(argument, &said()))
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
    print_lists(&mut text, matches, from_file.as_ref());
    text
}

/// The groups and tokens, which are lists of tables.
fn print_lists(text: &mut String, matches: &ArgMatches, from_file: Option<&(&str, Table)>) {
    let groups = matches.get_raw("group").into_iter().flatten().map(|raw| raw.to_string_lossy());
    let flags: Vec<_> = groups.collect();
    for group in &flags {
        let _ = writeln!(text, "\n# --group");
        // It was read before, so it is good.
        let list = group.trim();
        let whole = if list.starts_with('[') { list.to_owned() } else { format!("[{list}]") };
        let table = format!("group={whole}").parse::<Table>().unwrap_or_default();
        for entry in table.get("group").and_then(Value::as_array).into_iter().flatten() {
            let _ = writeln!(text, "# {}", hide(entry.clone()));
        }
    }
    if let Some((name, table)) = from_file {
        let keys = if flags.is_empty() { &["token", "group"][..] } else { &["token"] };
        for key in keys {
            for entry in table.get(*key).and_then(Value::as_array).into_iter().flatten() {
                let _ = writeln!(text, "\n[[{key}]] # {name}");
                for (key, value) in entry.as_table().into_iter().flatten() {
                    let _ = writeln!(text, "{key} = {}", hide(value.clone()));
                }
            }
        }
    }
}

/// The section and the key in the file of an argument that is a setting with one value, and its flag.
pub(super) fn key_of(argument: &Arg) -> Option<(Option<&'static str>, String, &str)> {
    let flag = argument.get_long()?;
    // What has no variable is something to do, no setting.
    if ["config", "group"].contains(&flag) || argument.get_env().is_none() {
        return None;
    }
    let section =
        ["etcd", "tls", "otlp"].into_iter().find(|section| flag.starts_with(&format!("{section}-")));
    let key = section.map_or(flag, |section| &flag[section.len() + 1..]);
    Some((section, key.replace('-', "_"), flag))
}

/// What was said on the command line or in a variable, as TOML of the setting's type.
fn typed(argument: &Arg, texts: &[Cow<'_, str>]) -> String {
    let kind = argument.get_value_parser().type_id();
    let is_bare = [
        TypeId::of::<bool>(),
        TypeId::of::<u32>(),
        TypeId::of::<usize>(),
        TypeId::of::<NonZeroUsize>(),
        TypeId::of::<f64>(),
    ]
    .iter()
    .any(|bare| kind == *bare);
    let quoted = |text: &str| Value::String(hide_urls(text)).to_string();
    match argument.get_value_delimiter() {
        Some(delimiter) => {
            let items = texts.iter().flat_map(|text| text.split(delimiter)).map(quoted);
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        None if texts.is_empty() => "true".to_owned(),
        None if is_bare => texts.join(""),
        None => quoted(&texts.join("")),
    }
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

/// Puts something else in the place of `password` in every `scheme://user:password@host` and `…?password=…`.
fn hide_urls(text: &str) -> String {
    let mut hidden = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(['/', '?', '#']).unwrap_or(after.len());
        // In the midst of other text the last `@` before its quote ends what is secret.
        let (authority, later) = after.split_at(end);
        hidden.push_str(&hide_parameters(before));
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
    hidden + &hide_parameters(rest)
}

/// Hides the values of parameters whose names say that they are secret.
fn hide_parameters(text: &str) -> String {
    let mut parts = text.split_inclusive(['?', '&']);
    let hide = |part: &str| {
        let secret = part.split_once('=').filter(|(name, _)| {
            let name = name.to_lowercase();
            ["password", "passwd", "secret", "token", "key"].iter().any(|word| name.contains(word))
        });
        match secret {
            Some((name, value)) if !value.starts_with('{') => {
                let end = value.find(['&', '"', ' ', '#']).unwrap_or(value.len());
                format!("{name}={HIDDEN}{}", &value[end..])
            }
            _ => part.to_owned(),
        }
    };
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |done, part| done + &hide(part))
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
                "postgres://host/db?user=me&password=secret&x=y",
                "postgres://host/db?user=me&password=<hidden>&x=y",
            ),
            ("http://h/{key}?token=secret", "http://h/{key}?token=<hidden>"),
            ("http://h/?id={key}&key={key}", "http://h/?id={key}&key={key}"),
            ("postgres://me:it's \"secret\"@host/db", "postgres://me:<hidden>@host/db"),
            ("no url", "no url"),
        ] {
            assert_eq!(hide_urls(url), shown);
        }
    }
}
