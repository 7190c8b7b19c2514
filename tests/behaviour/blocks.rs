//! The blocks of TOML and the commands in the documents: the programs that they are for take them.

use std::path::Path;
use std::process::Command;

use peanut_tests::{Authority, Etcd, Process, free_port};

use crate::documents::{files, read};
use crate::secure::tls_of;
use crate::walk::repository;
use crate::{PEANUT, SCORES, SERVER};

/// The first pages, and all of `docs/` but the decisions, which are of their day.
fn pages() -> Vec<(String, String)> {
    let mut pages = vec![("README.md".to_owned(), read("README.md"))];
    for file in files(&repository().join("docs"), ".md") {
        let name = file.strip_prefix(repository()).unwrap().display().to_string();
        if !name.starts_with("docs/decisions") {
            pages.push((name, std::fs::read_to_string(file).unwrap()));
        }
    }
    pages
}

/// The page and the text of each block of this language.
fn blocks(language: &str) -> Vec<(String, String)> {
    let begin = format!("```{language}\n");
    let of_page = |(name, page): (String, String)| {
        let blocks = page.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
        blocks.map(|block| (name.clone(), block)).collect::<Vec<_>>()
    };
    pages().into_iter().flat_map(of_page).collect()
}

/// Each dependency is a crate of this repository with features that it has, or one of the version that
/// this repository is built with.
fn check_dependencies(page: &str, block: &toml::Table) {
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let locked = lock["package"].as_array().unwrap();
    for (name, dependency) in block.values().flat_map(|table| table.as_table().unwrap()) {
        let features = dependency.get("features").and_then(toml::Value::as_array);
        if let Some(path) = dependency.get("path") {
            let path = path.as_str().unwrap().trim_start_matches("peanut/");
            let manifest: toml::Table = read(&format!("{path}/Cargo.toml")).parse().unwrap();
            assert_eq!(manifest["package"]["name"].as_str(), Some(name.as_str()), "{page}");
            for feature in features.into_iter().flatten() {
                let there = manifest["features"].get(feature.as_str().unwrap()).is_some();
                assert!(there, "{page}: {name} has no feature {feature}");
            }
        } else {
            let version = dependency.as_str().or_else(|| dependency.get("version")?.as_str()).unwrap();
            let built = locked.iter().filter(|it| it["name"].as_str() == Some(name));
            let mut versions = built.map(|it| it["version"].as_str().unwrap());
            let same = versions.any(|it| it.starts_with(&format!("{version}.")));
            assert!(same, "{page}: {name} {version} is not what this is built with");
        }
    }
}

/// Writes the secrets and certificates that the documents name, and says where they are in place of there.
fn with_files(block: &str, authority: &Authority, directory: &Path) -> String {
    let of_node = authority.issue("node-1", &["cache-1.example"]);
    for name in block.split("\"/etc/peanut/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let from = match name {
            "node-1.pem" => Some(of_node.cert.clone()),
            "node-1.key" => Some(of_node.key.clone()),
            _ if name.ends_with("ca.pem") => Some(authority.ca()),
            _ => None,
        };
        let text = from.map_or_else(
            || format!("the-secret-of-{name}\n").into_bytes(),
            |from| std::fs::read(from).unwrap(),
        );
        std::fs::write(directory.join(name), text).unwrap();
    }
    block.replace("/etc/peanut/", &format!("{}/", directory.display()))
}

#[test]
fn every_block_of_toml_is_taken_by_what_it_is_for() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, path) = (Authority::new(), directory.path().join("peanut.toml"));
    let certificate = authority.issue("node", &["127.0.0.1"]);
    let tls = tls_of("tls", &authority.ca(), &certificate);
    let blocks = blocks("toml");
    assert!(blocks.len() >= 6, "{} blocks", blocks.len());
    for (page, block) in blocks {
        let parsed: toml::Table = block.parse().unwrap_or_else(|error| panic!("{page}: {error}"));
        if parsed.contains_key("dependencies") {
            check_dependencies(&page, &parsed);
            continue;
        }
        // A part of a configuration stands in a whole one.
        let others = if parsed.contains_key("group") { String::new() } else { format!("{SCORES}{tls}") };
        let config = with_files(&block, &authority, directory.path()) + &others;
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(SERVER);
        command
            .arg("--config")
            .arg(&path)
            .arg("--check-config")
            .env("DATABASE_URL", "postgres://me@127.0.0.1/db");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{page}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The configuration of README's "Install and run", and the two commands beneath it that need no screen.
#[tokio::test(flavor = "multi_thread")]
async fn the_node_of_the_readme_answers_the_commands_of_the_readme() {
    let (etcd, directory) = (Etcd::start().await, tempfile::tempdir().unwrap());
    let block =
        blocks("toml").into_iter().find(|(page, block)| page == "README.md" && block.contains("listen"));
    std::fs::write(directory.path().join("peanut.toml"), block.unwrap().1).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(SERVER);
    // The ports of the page may be in use on this machine.
    command.args(["--config", "peanut.toml", "--listen", &address, "--admin", "127.0.0.1:0"]);
    command.env("PEANUT_ETCD_ENDPOINTS", etcd.endpoint()).current_dir(directory.path());
    let mut node = Process::start("peanut-server", &mut command);
    node.wait_for_line("listening on ").await;
    let (blocks, mut run) = (blocks("sh"), 0);
    let commands = blocks
        .iter()
        .flat_map(|(_, block)| block.lines())
        .filter_map(|line| Some((line, line.split_once("-p peanut-cli -- ")?.1)));
    for (line, command) in commands {
        let (command, says) = command.split_once('#').unwrap_or((command, ""));
        let args: Vec<&str> = command.split_whitespace().collect();
        if args == ["top"] {
            continue;
        }
        let output = Command::new(PEANUT).args(["--etcd", &etcd.endpoint()]).args(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.trim(), says.trim(), "{line}");
        run += 1;
    }
    assert_eq!(run, 2);
}

/// Commands in blocks of shell lines, and those that stand in the text between backticks.
fn commands() -> Vec<(String, String)> {
    let mut commands = Vec::new();
    for (page, block) in blocks("sh") {
        let whole = block.replace("\\\n", " ");
        for line in whole.lines().map(|line| line.split(" #").next().unwrap()) {
            let parts = line.split(['|', '&', ';', '>']).map(str::trim);
            commands.extend(parts.map(|part| (page.clone(), part.to_owned())));
        }
    }
    for (page, text) in pages() {
        let spans = text
            .lines()
            .filter(|line| !line.starts_with("```"))
            .flat_map(|line| line.split('`').skip(1).step_by(2));
        let parts = spans.flat_map(|span| span.split("&&")).map(str::trim);
        commands.extend(parts.map(|part| (page.clone(), part.to_owned())));
    }
    commands
}

/// The arguments of one of our programs: by its name, or by cargo.
fn arguments(command: &str) -> Option<(&'static str, Vec<&str>)> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let after = |word: &str| words.iter().position(|it| *it == word).map(|at| at + 1);
    let begin = words.iter().position(|it| matches!(*it, "peanut" | "peanut-server")).filter(|at| {
        // `until peanut …`, `sleep 6; peanut …`: a program stands first, or after a word of the shell.
        words[..*at].iter().all(|word| matches!(*word, "until" | "while" | "do" | "if"))
    });
    if let Some(begin) = begin {
        let program = if words[begin] == "peanut" { PEANUT } else { SERVER };
        return Some((program, words[begin + 1..].to_vec()));
    }
    let package = if words.starts_with(&["cargo", "run"]) { words[after("-p")?] } else { return None };
    let program = match package {
        "peanut-cli" => PEANUT,
        "peanut-server" => SERVER,
        _ => return None,
    };
    Some((program, words[after("--")?..].to_vec()))
}

#[test]
fn programs_have_the_subcommands_and_flags_that_documents_name() {
    let help = |program: &str, more: &[&str]| {
        let output = Command::new(program).args(more).arg("--help").output().unwrap();
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let of_peanut = help(PEANUT, &[]);
    let begins =
        |help: &str, word: &str| help.lines().any(|line| line.split_whitespace().next() == Some(word));
    let xtask = read("xtask/src/main.rs");
    let (mut ours, mut cargos) = (0, 0);
    for (page, command) in commands() {
        if let Some(rest) = command.strip_prefix("cargo xtask ") {
            let words: Vec<&str> =
                rest.split_whitespace().take_while(|word| !word.starts_with('-')).collect();
            let name =
                if words[0] == "bench" { words[..words.len().min(2)].join(" ") } else { words[0].to_owned() };
            assert!(xtask.lines().any(|line| line.starts_with(&format!("  {name}"))), "{page}: `{command}`");
            cargos += 1;
        }
        let Some((program, args)) = arguments(&command).filter(|(_, args)| !args.is_empty()) else {
            continue;
        };
        let flags = args.iter().filter(|arg| arg.starts_with("--") && arg.len() > 2);
        let subcommand =
            args.iter().find(|arg| program == PEANUT && !arg.starts_with('-') && begins(&of_peanut, arg));
        assert!(program == SERVER || subcommand.is_some(), "{page}: `{command}`");
        let help = help(program, subcommand.map_or(&[][..], std::slice::from_ref));
        for flag in flags.map(|flag| flag.split('=').next().unwrap()) {
            let there = help.split([' ', '\n', '=', ',', '[']).any(|word| word == flag);
            assert!(there, "{page}: `{command}` has {flag}, which is none");
        }
        ours += 1;
    }
    assert!(ours > 30 && cargos > 15, "{ours} and {cargos} commands");
}
