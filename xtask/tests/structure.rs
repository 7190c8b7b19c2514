//! The structure of the crates: which module uses which, by their `use` lines and paths, which crates appear
//! where, and how long files and wide comments are.
//!
//! Modules of one crate form no circle, but for a builder and what it builds. A directory counts as one
//! module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Circles that may stay: a type and its builder name one another.
const PAIRS: [&[&str]; 1] = [&["builder", "client"]];
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

/// The modules that a file's code names, as `crate::module` or in `use crate::{…}`.
fn named(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => names
                .extend(list.split('}').next().unwrap_or_default().split(',').map(|name| word(name.trim()))),
            None => _ = names.insert(word(after)),
        }
    }
    names
}

/// Which module of a crate uses which others of it.
fn uses(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(source) {
        let inside = file.strip_prefix(source).expect("it is in there").to_string_lossy().into_owned();
        let parts: Vec<&str> = inside.split(std::path::MAIN_SEPARATOR).collect();
        let top = parts[0].trim_end_matches(".rs").to_owned();
        let is_test = parts.iter().any(|part| part.starts_with("tests"));
        if !["lib", "main", "generated", "bin"].contains(&&*top) && !is_test {
            uses.entry(top).or_default().extend(named(&code(&file)));
        }
    }
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    for (module, used) in &mut uses {
        used.retain(|name| name != module && modules.contains(name));
    }
    uses
}

fn reaches(uses: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut seen, mut rest) = (BTreeSet::new(), vec![from]);
    while let Some(module) = rest.pop() {
        for next in &uses[module] {
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

#[test]
fn modules_form_no_circle() {
    for directory in SHIPPED {
        let uses = uses(&repository().join(directory));
        assert!(uses.len() > 2, "{directory}: {} modules", uses.len());
        for (module, used) in &uses {
            for other in used.iter().filter(|other| reaches(&uses, other, module)) {
                let is_pair = PAIRS.iter().any(|pair| pair.contains(&&**module) && pair.contains(&&**other));
                assert!(is_pair, "{directory}: `{module}` uses `{other}`, which comes back to it");
            }
        }
    }
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
