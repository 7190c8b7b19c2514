//! The structure of the crates: which module uses which, which crates appear where, and how long files and
//! wide comments are.
//!
//! Modules that stand beside one another, in a crate or within a module of it, form no circle, but for a
//! builder and what it builds. There each counts with all that is in it. A module within another may use what
//! that one defines.

mod modules;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use modules::Module;

/// Circles that may stay, by crate: a type and its builder name one another.
const PAIRS: [(&str, [&str; 2]); 2] =
    [("client/src", ["builder", "client"]), ("server/src", ["builder", "server"])];
const MAX_LINES: usize = 500;
/// Where the crates that users get have their sources.
const SHIPPED: [&str; 7] = [
    "proto/src",
    "client/src",
    "client/cli/src",
    "client/proxy/src",
    "server/src",
    "server/edge/src",
    "server/page/src",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code without comments and unit tests.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("a source");
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Whether a module leads to another one by what it uses.
fn reaches(uses: &BTreeSet<(Module, Module)>, from: &Module, to: &Module) -> bool {
    let (mut seen, mut rest) = (BTreeSet::from([from]), vec![from]);
    while let Some(module) = rest.pop() {
        for (_, next) in uses.iter().filter(|(user, _)| user == module) {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                rest.push(next);
            }
        }
    }
    false
}

/// The modules that stand beside one another in which a use begins and ends, each with all that is in it.
fn beside((user, used): &(Module, Module)) -> Option<(Module, Module)> {
    let shared = user.iter().zip(used).take_while(|(one, other)| one == other).count();
    let of = |module: &Module| module.get(..=shared).map(<[String]>::to_vec);
    of(user).zip(of(used))
}

#[test]
fn modules_form_no_circle() {
    let mut pairs_seen: BTreeSet<&(&str, [&str; 2])> = BTreeSet::new();
    for directory in SHIPPED {
        let uses = modules::uses(&repository().join(directory));
        let uses: BTreeSet<_> = uses.iter().filter_map(beside).collect();
        assert!(!uses.is_empty(), "{directory}: no use was seen");
        for (module, used) in uses.iter().filter(|(module, used)| reaches(&uses, used, module)) {
            let pair = PAIRS.iter().find(|pair| {
                pair.0 == directory && [module, used].iter().all(|it| pair.1.contains(&&*it.join("/")))
            });
            let (from, to) = (module.join("/"), used.join("/"));
            assert!(pair.is_some(), "{directory}: `{from}` uses `{to}`, which comes back to it");
            pairs_seen.extend(pair);
        }
    }
    assert_eq!(pairs_seen.len(), PAIRS.len(), "a pair that may stay and is none");
}

/// The rows of the table of crates: names, and where they may appear.
fn places_of_crates() -> Vec<(String, Vec<String>)> {
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("the map");
    let rows = page.lines().skip_while(|line| *line != "| crate | appears only in |").skip(2);
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let rows = rows.take_while(|line| line.starts_with('|')).flat_map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        // What is divided by semicolons on the left is so on the right.
        let pairs: Vec<_> =
            cells[1].split(';').zip(cells[2].split(';')).map(|(a, b)| (quoted(a), quoted(b))).collect();
        pairs.into_iter().flat_map(|(crates, places)| crates.into_iter().map(move |it| (it, places.clone())))
    });
    rows.collect()
}

#[test]
fn crates_appear_where_the_map_says() {
    let places = places_of_crates();
    assert!(places.len() > 12, "{places:?}");
    for directory in SHIPPED {
        for file in sources(&repository().join(directory)) {
            let inside =
                file.strip_prefix(repository()).expect("it is in there").to_string_lossy().into_owned();
            if inside.contains("/tests") || inside.contains("/generated/") {
                continue;
            }
            let code = code(&file);
            for (name, places) in &places {
                let module = name.replace('-', "_");
                // A module of ours may have the name.
                if file.parent().is_some_and(|directory| directory.join(format!("{module}.rs")).exists()) {
                    continue;
                }
                let path = format!("{module}::");
                let before = |at: usize| code[..at].chars().next_back();
                let is_used = code
                    .match_indices(&path)
                    .any(|(at, _)| !before(at).is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':'));
                let may = places.iter().any(|place| inside.starts_with(place.as_str()));
                assert!(!is_used || may, "{inside} uses {name}, which ARCHITECTURE.md has elsewhere alone");
            }
        }
    }
}

/// All sources that are written by hand, with their text.
fn written() -> Vec<(PathBuf, String)> {
    let files = ["proto/src", "client", "server", "tests", "xtask", "examples"]
        .iter()
        .flat_map(|directory| sources(&repository().join(directory)))
        .filter(|file| !file.iter().any(|part| part == "generated" || part == "target"));
    files.map(|file| (file.clone(), std::fs::read_to_string(&file).expect("a source"))).collect()
}

/// As wide as code is, which rustfmt sees to for code alone.
#[test]
fn no_comment_is_wider_than_the_code() {
    let format = std::fs::read_to_string(repository().join("rustfmt.toml")).expect("the format of code");
    let width = format.lines().find_map(|line| line.strip_prefix("max_width = ")).expect("its width");
    let width: usize = width.parse().expect("a number");
    for (file, text) in written() {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("//")) {
            assert!(line.chars().count() <= width, "{}:{} is too wide", file.display(), at + 1);
        }
    }
}

#[test]
fn no_file_is_long() {
    for (file, text) in written() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", file.display());
    }
}
