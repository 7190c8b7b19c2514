//! Says that there is no protoc, and how to go on. etcd's client compiles protobuf files in a build script of
//! its own, which says less, and which cargo may run before this one: nothing puts them in order.

use std::ffi::OsString;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=PROTOC");
    if std::env::var_os("CARGO_FEATURE_ETCD").is_none() {
        return;
    }
    // As prost-build looks for it.
    let protoc = std::env::var_os("PROTOC").unwrap_or_else(|| OsString::from("protoc"));
    match Command::new(&protoc).arg("--version").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "{} --version failed: {}",
            protoc.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => fail(&format!("{}: {error}", protoc.display())),
    }
}

fn fail(why: &str) {
    println!("cargo::error=etcd's client needs protoc to be built ({why})");
    if let Some(vendored) = vendored() {
        println!("cargo::error=there is one among the dependencies: export PROTOC={vendored}");
    }
    println!(
        "cargo::error=or install one, like `apt-get install protobuf-compiler` or `brew install protobuf`"
    );
    println!("cargo::error=or do without etcd: default-features = false");
}

/// The protoc that cargo has fetched.
#[cfg(not(windows))]
fn vendored() -> Option<String> {
    Some(protoc_bin_vendored::protoc_bin_path().ok()?.display().to_string())
}

#[cfg(windows)]
fn vendored() -> Option<String> {
    None
}
