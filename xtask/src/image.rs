//! The root directory of an image: the two programs, the libraries that they load, the certificates of public
//! authorities, and a user without rights. Where there is no container runtime it is made and tried all the
//! same.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::run::{Cargo, Failed, is_installed, run, target_directory};

const PROGRAMS: [&str; 2] = ["peanut-server", "peanut"];
/// As in images of distroless.
const PASSWD: &str =
    "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/var/lib/peanut:/sbin/nologin\n";
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// `image`: builds an image with docker. `image --rootfs DIRECTORY`: its root directory, without, which is
/// tried.
pub(crate) fn image(args: &[&str]) -> Result<(), Failed> {
    match args {
        [] if is_installed("docker") => {
            let build = ["build", "--file", "deploy/docker/Dockerfile", "--tag", "peanut", "."];
            run("building the image", Command::new("docker").args(build))
        }
        [] => Err(Failed(
            "docker is not here; `image --rootfs DIRECTORY` makes the root directory without it".to_owned(),
        )),
        ["--rootfs", directory] => {
            let build =
                ["build", "--release", "--locked", "-p", "peanut-server", "--features", "peanut-server/full"];
            Cargo::new(&[&build[..], &["-p", "peanut-cli"]].concat()).run("building")?;
            root_directory(Path::new(directory), &target_directory()?.join("release"))?;
            serve_from(Path::new(directory))
        }
        _ => Err(Failed("image takes nothing, or --rootfs DIRECTORY".to_owned())),
    }
}

/// Makes the root directory with programs from `programs`.
fn root_directory(root: &Path, programs: &Path) -> Result<(), Failed> {
    for directory in ["usr/bin", "etc/peanut", "var/lib/peanut", "tmp", "dev", "proc"] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).map_err(|error| failed(&directory, error))?;
    }
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let built = programs.join(program);
        copy(&built, &root.join("usr/bin").join(program))?;
        libraries.extend(loaded_by(&built)?);
    }
    for library in libraries {
        copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    let certificates = Path::new("/").join(CERTIFICATES);
    if certificates.is_file() {
        copy(&certificates, &root.join(CERTIFICATES))?;
    }
    let passwd = root.join("etc/passwd");
    fs::write(&passwd, PASSWD).map_err(|error| failed(&passwd, error))
}

/// The libraries that a program loads, by their paths.
fn loaded_by(program: &Path) -> Result<Vec<PathBuf>, Failed> {
    let listed = Command::new("ldd").arg(program).output().map_err(|error| failed(program, error))?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    // `name => /path (address)`, or `/path (address)`.
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<(), Failed> {
    let copied = fs::create_dir_all(to.parent().unwrap_or(to)).and_then(|()| fs::copy(from, to));
    copied.map(drop).map_err(|error| failed(from, error))
}

fn failed(what: &Path, error: impl std::fmt::Display) -> Failed {
    Failed(format!("{}: {error}", what.display()))
}

/// Makes the root directory of programs that are built, and has them serve a key from within: with that
/// directory as their root, and nothing else of this machine but its network. Says so where that cannot be
/// tried here.
pub(crate) fn check(programs: &Path) -> Result<(), Failed> {
    let root = std::env::temp_dir().join(format!("peanut-image-{}", std::process::id()));
    let checked = root_directory(&root, programs).and_then(|()| serve_from(&root));
    let _ = fs::remove_dir_all(&root);
    checked
}

fn serve_from(root: &Path) -> Result<(), Failed> {
    if !inside(root, "peanut", ["--version"]).output().is_ok_and(|run| run.status.success()) {
        eprintln!("\n== the root directory was NOT tried: `unshare --root` cannot be used here");
        return Ok(());
    }
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let addr = port.map_err(|error| failed(root, error))?.to_string();
    let group = "--group={ name = 'scores', loader = { kind = 'static', entries = { Tom = '630' } } }";
    let mut serve = inside(root, "peanut-server", ["--listen", &addr, "--nodes", &addr, group]);
    let mut node = Node(serve.stderr(Stdio::piped()).spawn().map_err(|error| failed(root, error))?);
    // The other end of its log stays for as long as it runs.
    let mut log = BufReader::new(node.0.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
    let lines: Vec<_> = log.by_ref().take_while(|line| !line.contains("registered")).collect();
    if node.0.try_wait().is_ok_and(|ended| ended.is_some()) {
        return Err(Failed(format!("the node in the root directory has ended: {}", lines.join("\n"))));
    }
    for (words, expected) in [(&["health"][..], ""), (&["get", "scores", "Tom"], "630")] {
        let asked = inside(root, "peanut", [&["--nodes", &addr], words].concat()).output();
        let asked = asked.map_err(|error| failed(root, error))?;
        let said = String::from_utf8_lossy(&asked.stdout);
        if !asked.status.success() || said.trim() != expected {
            return Err(Failed(format!(
                "{words:?} in the root directory: {said}{}",
                String::from_utf8_lossy(&asked.stderr)
            )));
        }
    }
    drop((node, log));
    println!("\n== the root directory of the image serves");
    Ok(())
}

/// A program of the root directory, with that as its root.
fn inside<S: AsRef<OsStr>>(root: &Path, program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
    command.arg(format!("--root={}", root.display())).arg(format!("/usr/bin/{program}")).args(args);
    command.env_clear().env("NO_COLOR", "1");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// Ends with this handle.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
