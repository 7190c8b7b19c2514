//! Developer commands. `cargo xtask help` lists them.
//!
//! This crate depends on nothing, so that it is there at once; what it runs are cargo's own commands.

mod bench_proxy;
mod crates;
mod dependencies;
mod image;
mod install;
mod package;
mod release;
mod run;

use std::process::ExitCode;

use run::{Cargo, Failed};

const HELP: &str = "\
cargo xtask <command>

  demo       the main job, seen: a fleet, an application, a node that joins, a node that dies
  test       everything: format, lints, each feature alone, licences, docs, and all tests, with a real etcd
  generate   write the code for the .proto files anew
  deny       check licences, sources and advisories of all dependencies (installs cargo-deny); where the
             advisories cannot be fetched it says so
  bench      measure the parts on the way of a get: ring, frames
  simulate [--seeds N] [--from S] [--seed S --trace] [--without MECHANISM]
             fleets of the real client and server through overlapping faults, in one thread and virtual time, and what
             their clients saw checked; the same seed gives the same history
  history [--seed N] [--scenarios N] [--at-once N] [--near]
             fleets of real processes through random faults that overlap, and what their clients saw checked
  soak [--minutes N]
             mixed work and faults on real processes for an hour, and whether anything has grown
  image [--rootfs DIRECTORY]
             build an image with docker, or without it the root directory of one
  package    build Debian packages (installs cargo-deb), and install, upgrade and remove them in a copy of this machine's root
  crates     pack the crates that are published, and run their own tests from what was packed
  release    the packages, an archive of the programs with the licences of all that is in them, bills of materials,
             and checksums (installs cargo-cyclonedx and cargo-about)
  bench instructions [--record]
             count the instructions of the parts on the way of a get under valgrind (installs it), and fail where one
             has grown by over 5 %; with `--record` write the counts to benchmarks/instructions.json
  bench fleet [PART]
             measure small values beside large ones, fleets of one to eight nodes, idle clients, and what a directory
             for warm restarts costs; only one of these with `large`, `fleets`, `idle` or `warm`
  bench faults
             measure gets at a fixed rate while a node is killed, sleeps, and all are restarted in turn
  bench overload [PART]
             measure a node that is asked five times what it can do, and gets beside connections that misbehave; only
             one of these with `loads`, `hits` or `hostile`
  bench store
             measure gets and inserts of the store beside moka, quick_cache and a mutexed lru
  bench hits --trace FILE --capacity N...
             measure hit ratios of the store's policies over a trace, beside moka and quick_cache
  bench near PART
             measure near copies: one of speed, stale, hot, memory; `bench stale` is short for one of them
  bench proxy
             measure a proxy beside Redis, by redis-benchmark
  bench peers [--install]
             measure Peanut beside Redis, memcached and groupcache; `bench peers --help` tells the rest
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (command, rest) =
        words.split_first().map_or((None, &[][..]), |(command, rest)| (Some(*command), rest));
    let done = match command {
        Some("demo") => demo(),
        Some("test") => test(),
        Some("generate") => generate(),
        Some("deny") => dependencies::deny(),
        Some("simulate") => simulate(rest),
        Some("history") => history(rest),
        Some("soak") => soak(rest),
        Some("image") => image::image(rest),
        Some("package") if rest.is_empty() => package::package().map(drop),
        Some("crates") if rest.is_empty() => crates::crates(),
        Some("release") if rest.is_empty() => release::release(),
        Some("bench") => match rest.split_first() {
            None => bench(),
            Some((&"instructions", [])) => bench_instructions(&[]),
            Some((&"instructions", ["--record"])) => bench_instructions(&["--record"]),
            Some((&"fleet", rest)) => bench_fleet(rest),
            Some((&"faults", [])) => bench_faults(),
            Some((&"overload", rest)) => bench_overload(rest),
            Some((&"peers", rest)) => bench_peers(rest),
            Some((&"hits", rest)) => bench_hits(rest),
            Some((&"near", rest)) => bench_near(rest),
            Some((&"stale", rest)) => bench_near(&[&["stale"], rest].concat()),
            Some((&"store", [])) => bench_store(),
            Some((&"proxy", [])) => bench_proxy::run(),
            Some(_) => {
                eprint!("{HELP}");
                return ExitCode::from(2);
            }
        },
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
    let build = [
        "build",
        "--profile",
        "quick",
        "-p",
        "peanut-server",
        "--features",
        "peanut-server/full",
        "-p",
        "peanut-examples",
    ];
    Cargo::new(&[&build[..], &["--bin", "peanut-server", "--example", "demo"]].concat()).run("building")?;
    run::run("demo", &mut run::built("quick/examples/demo")?)
}

fn test() -> Result<(), Failed> {
    Cargo::new(&["fmt", "--all", "--check"]).run("format")?;
    let clippy =
        ["clippy", "--locked", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    Cargo::new(&clippy).run("lints")?;
    Cargo::new(&["fmt", "--manifest-path", PEERS, "--check"]).run("format of the comparisons")?;
    let clippy = ["clippy", "--locked", "--manifest-path", PEERS, "--all-targets", "--target-dir"];
    Cargo::new(&clippy)
        .arg(run::target_directory()?)
        .arg("--")
        .arg("-D")
        .arg("warnings")
        .run("their lints")?;
    for package in ["peanut-proto", "peanut-client", "peanut-proxy", "peanut-edge", "peanut-server"] {
        let check = ["clippy", "-p", package, "--no-default-features", "--", "-D", "warnings"];
        Cargo::new(&check).run("lints without features")?;
    }
    dependencies::features()?;
    dependencies::deny_if_possible()?;
    let doc = ["doc", "--workspace", "--no-deps", "--all-features", "--lib"];
    Cargo::new(&doc).env("RUSTDOCFLAGS", "-D warnings").run("docs")?;
    install::etcd()?;
    install::redis()?;
    install::postgres()?;
    install::pgbouncer()?;
    install::mariadb()?;
    install::chromium()?;
    install::prometheus()?;
    install::python_redis()?;
    Cargo::new(&["test", "--workspace", "--all-features"]).run("tests")?;
    bench_instructions(&[])?;
    simulate(&["--seeds", "1000"])?;
    simulate(&["--seeds", "20", "--twice"])?;
    // The checker sees what is wrong: at the first seed that shows it, mostly among the first few hundred.
    for mechanism in ["hints", "poison", "tokens", "marks", "nearwait"] {
        simulate(&["--seeds", "5000", "--without", mechanism])?;
    }
    let build = ["build", "--workspace", "--all-features", "--examples"];
    Cargo::new(&build).run("building examples")?;
    // With the features that users build, and none of the tests'.
    let build = ["build", "-p", "peanut-server", "-p", "peanut-cli", "--features", "peanut-server/full"];
    Cargo::new(&build).run("building the programs")?;
    let built = run::target_directory()?.join("debug");
    image::check(&built)?;
    package::check(&built)?;
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

fn bench() -> Result<(), Failed> {
    Cargo::new(&["bench", "-p", "peanut-client", "--bench", "ring", "--bench", "frames"]).run("benchmarks")
}

const INSTRUCTIONS: &str = "benchmarks/instructions.json";

fn bench_instructions(args: &[&str]) -> Result<(), Failed> {
    install::valgrind()?;
    run::run("instructions", simulation("instructions")?.arg(INSTRUCTIONS).args(args))
}

fn bench_faults() -> Result<(), Failed> {
    install::etcd()?;
    Cargo::new(&["build", "--profile", "quick", "-p", "peanut-tests", "--bins"]).run("building")?;
    run::run("faults", &mut run::built("quick/faults")?)
}

fn bench_overload(args: &[&str]) -> Result<(), Failed> {
    Cargo::new(&["build", "--profile", "quick", "-p", "peanut-tests", "--bins"]).run("building")?;
    run::run("overload", run::built("quick/overload")?.args(args))
}

/// tokio takes the seed of its random numbers in builds with this flag only, which have a directory of their
/// own.
fn simulate(args: &[&str]) -> Result<(), Failed> {
    run::run("simulate", simulation("simulate")?.args(args))
}

/// A program of the simulator's crate, which wants tokio's unstable parts and so a target directory of its
/// own.
fn simulation(program: &str) -> Result<std::process::Command, Failed> {
    let target = run::target_directory()?.join("simulation");
    let build =
        ["build", "--quiet", "--locked", "--profile", "quick", "-p", "peanut-simulation", "--target-dir"];
    Cargo::new(&build).arg(&target).env("RUSTFLAGS", "--cfg tokio_unstable").run("building the simulator")?;
    Ok(std::process::Command::new(target.join("quick").join(program)))
}

fn history(args: &[&str]) -> Result<(), Failed> {
    install::etcd()?;
    Cargo::new(&["build", "--profile", "quick", "-p", "peanut-tests", "--bins"]).run("building")?;
    run::run("history", run::built("quick/history")?.args(args))
}

fn soak(args: &[&str]) -> Result<(), Failed> {
    install::etcd()?;
    Cargo::new(&["build", "--profile", "quick", "-p", "peanut-tests", "--bins"]).run("building")?;
    run::run("soak", run::built("quick/soak")?.args(args))
}

fn bench_fleet(args: &[&str]) -> Result<(), Failed> {
    Cargo::new(&["build", "--profile", "quick", "-p", "peanut-tests", "--bins"]).run("building")?;
    run::run("fleets", run::built("quick/measure")?.args(args))
}

const PEERS: &str = "xtask/peers/Cargo.toml";

/// A program that measures a server as it is released, which is built before.
fn peers_of_server(name: &str) -> Result<Cargo, Failed> {
    Cargo::new(&["build", "--release", "-p", "peanut-server", "--features", "full"])
        .run("building the server")?;
    let server = run::built("release/peanut-server")?;
    Ok(peers(name)?.arg("--peanut-server").arg(server.get_program()))
}

fn bench_peers(args: &[&str]) -> Result<(), Failed> {
    let args: Vec<&str> = if args.contains(&"--install") {
        install::redis()?;
        install::memcached()?;
        args.iter().copied().filter(|arg| *arg != "--install").collect()
    } else {
        args.to_vec()
    };
    let cargo = peers_of_server("peanut-peers")?;
    args.iter().fold(cargo, Cargo::arg).run("side by side")
}

fn bench_hits(args: &[&str]) -> Result<(), Failed> {
    args.iter().fold(peers("hits")?, Cargo::arg).run("hit ratios")
}

fn bench_near(args: &[&str]) -> Result<(), Failed> {
    install::redis()?;
    let cargo = peers_of_server("near")?;
    args.iter().fold(cargo, Cargo::arg).run("near copies")
}

fn bench_store() -> Result<(), Failed> {
    let bench = ["bench", "--manifest-path", PEERS, "--bench", "store", "--target-dir"];
    Cargo::new(&bench).arg(run::target_directory()?).run("the store beside others")
}

/// A program of the crate that is not a member of the workspace; what is added are its arguments.
fn peers(program: &str) -> Result<Cargo, Failed> {
    let run = ["run", "--release", "--manifest-path", PEERS, "--bin", program, "--target-dir"];
    Ok(Cargo::new(&run).arg(run::target_directory()?).arg("--"))
}
