//! The documents: their links, their lengths, and what they quote of the code.

use std::path::{Path, PathBuf};

use crate::walk::repository;

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files of the repository with this ending, but for what is built.
pub(crate) fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") && name != "corpus" {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// The heading's name in a link, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut links = 0;
    for file in files(&repository(), ".md") {
        let text = std::fs::read_to_string(&file).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("http") || link.contains(' ') {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let to = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(to.exists(), "{}: {link}", file.display());
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&to).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|line| anchor(line) == heading), "{}: {link}", file.display());
            }
            links += 1;
        }
    }
    assert!(links > 80, "{links} links");
}

#[test]
fn the_first_pages_are_short() {
    for (page, most) in [("README.md", 200), ("ARCHITECTURE.md", 150)] {
        let lines = read(page).lines().count();
        assert!(lines <= most, "{page} has {lines} lines");
    }
}

/// The walk through the web service quotes it line by line.
#[test]
fn getting_started_shows_the_example_as_it_is() {
    let page = read("docs/getting-started.md");
    let code: String =
        ["service", "main", "tests"].map(|name| read(&format!("examples/web/{name}.rs"))).concat();
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    let blocks: Vec<&str> =
        page.split("```rust,ignore\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3, "{} blocks", blocks.len());
    for line in blocks.into_iter().flat_map(str::lines).map(str::trim) {
        assert!(lines.contains(&line), "the example does not have `{line}`");
    }
}

/// Each message in the first column is one of the code's: its parts between the dots stand there.
#[test]
fn troubleshooting_knows_messages_that_there_are() {
    let mut code = String::new();
    for directory in
        ["client/src", "client/proxy/src", "server/src", "server/edge/src", "server/page/src", "proto/src"]
    {
        for file in files(&repository().join(directory), ".rs") {
            // Long messages are written over several lines.
            let text = std::fs::read_to_string(file).unwrap();
            code.extend(text.lines().map(|line| format!("{} ", line.trim().trim_end_matches('\\'))));
        }
    }
    code.push_str(&read("proto/build.rs"));
    let page = read("docs/troubleshooting.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 15);
    for row in rows {
        let message = row.split('`').nth(1).unwrap();
        for part in message
            .split('…')
            .flat_map(|part| part.split("5s"))
            .map(|part| part.trim_matches([' ', ';', ':', ',']))
        {
            assert!(part == "protoc" || code.contains(part), "no message has `{part}` in it");
        }
    }
}
