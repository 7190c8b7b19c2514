//! Developer commands. `cargo xtask help` lists them.
//!
//! This crate depends on nothing, so that it is there at once; what it runs are cargo's own commands.

mod install;
mod run;

use std::process::ExitCode;

use run::{Cargo, Failed};

const HELP: &str = "\
cargo xtask <command>

  demo       the main job, seen: a fleet, an application, a node that joins, a node that dies
  test       everything: format, lints, docs, and all tests, with a real etcd
  generate   write the code for the .proto files anew
  deny       check licences, sources and advisories of all dependencies (installs cargo-deny)
  bench      measure the ring (more to come)
";

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    let done = match command.as_deref() {
        Some("demo") => demo(),
        Some("test") => test(),
        Some("generate") => generate(),
        Some("deny") => deny(),
        Some("bench") => Cargo::new(&["bench", "-p", "peanut-client", "--bench", "ring"]).run("benchmarks"),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("xtask: {failed}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<(), Failed> {
    let build = ["build", "--release", "-p", "peanut-server", "-p", "peanut-examples"];
    Cargo::new(&[&build[..], &["--bin", "peanut-server", "--example", "demo"]].concat()).run("building")?;
    run::run("demo", &mut run::built("release/examples/demo")?)
}

fn test() -> Result<(), Failed> {
    Cargo::new(&["fmt", "--all", "--check"]).run("format")?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    Cargo::new(&clippy).run("lints")?;
    for package in ["peanut-proto", "peanut-client", "peanut-server"] {
        let check = ["clippy", "-p", package, "--no-default-features", "--", "-D", "warnings"];
        Cargo::new(&check).run("lints without features")?;
    }
    let doc = ["doc", "--workspace", "--no-deps", "--all-features", "--lib"];
    Cargo::new(&doc).env("RUSTDOCFLAGS", "-D warnings").run("docs")?;
    install::etcd()?;
    Cargo::new(&["test", "--workspace", "--all-features"]).run("tests")?;
    let build = ["build", "--workspace", "--all-features", "--bins", "--examples"];
    Cargo::new(&build).run("building examples")?;
    for example in ["scores", "custom_loader", "local_fleet"] {
        run::run(&format!("example {example}"), &mut run::built(&format!("debug/examples/{example}"))?)?;
    }
    for way in ["--processes", "--in-process"] {
        run::run("demo", run::built("debug/examples/demo")?.arg(way))?;
    }
    println!("\nall is well");
    Ok(())
}

fn generate() -> Result<(), Failed> {
    let test = ["test", "--quiet", "-p", "xtask", "--test", "generated"];
    Cargo::new(&test).env("PEANUT_REGENERATE", "1").run("generating")
}

fn deny() -> Result<(), Failed> {
    if !run::is_installed("cargo-deny") {
        Cargo::new(&["install", "--locked", "cargo-deny"]).run("installing cargo-deny")?;
    }
    Cargo::new(&["deny", "--all-features", "check"]).run("licences, sources, advisories")
}
