//! The binary is told something that cannot be, or etcd is not there.

use std::process::{Command, Output};

use peanut_tests::{Etcd, ServerProcess, eventually, free_port};

use crate::{SCORES, SERVER};

fn run(config: &str, args: &[&str], env: &[(&str, &str)]) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("peanut.toml");
    std::fs::write(&path, config).unwrap();
    let command = &mut Command::new(SERVER);
    command.arg("--config").arg(&path).args(args).envs(env.iter().copied());
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    (output, stderr.replace(&format!("{}/", dir.path().display()), ""))
}

#[test]
fn bad_configuration_is_one_line_and_exit_code_78() {
    let duplicate = format!("{SCORES}{SCORES}");
    let zero = SCORES.replace("name =", "capacity = \"0\"\nname =");
    for (config, args, env, begins) in [
        (
            "lisen = \"x\"",
            &[][..],
            &[][..],
            "peanut-server: peanut.toml:1: unknown field `lisen`, expected one of",
        ),
        (
            &duplicate,
            &[],
            &[],
            "peanut-server: peanut.toml:9: group `scores` is there already, at peanut.toml:3",
        ),
        (&zero, &[], &[], "peanut-server: peanut.toml:3: the capacity is zero; give it some bytes"),
        (
            "listen = \"localhost\"",
            &[],
            &[],
            "peanut-server: peanut.toml:1: `localhost` is not an IP address",
        ),
        ("", &[], &[], "peanut-server: configuration: there is no group to serve; add a [[group]]"),
        (SCORES, &["--listen", "here"], &[], "peanut-server: --listen: "),
        (SCORES, &[], &[("PEANUT_LISTEN", "here")], "peanut-server: PEANUT_LISTEN: "),
        (SCORES, &["--etcd-endpoints", "nowhere"], &[], "peanut-server: etcd.endpoints: etcd endpoint"),
        (SCORES, &["--log", "a=b=c"], &[], "peanut-server: log: "),
    ] {
        let (output, stderr) = run(config, args, env);
        assert_eq!(output.status.code(), Some(78), "{begins}: {stderr}");
        assert!(stderr.starts_with(begins), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}

#[test]
fn a_file_or_address_that_cannot_be_had_is_one_line() {
    let output = Command::new(SERVER).args(["--config", "no/such/file.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("peanut-server: no/such/file.toml: No such file")
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    let (output, stderr) = run(SCORES, &[&listen], &[("RUST_LOG", "error")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("peanut-server: cannot listen on 127.0.0.1:"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_win_over_variables_and_variables_over_the_file() {
    let ports = [free_port(), free_port(), free_port()];
    let [file, variable, flag] = ports.map(|port| format!("127.0.0.1:{port}"));
    for (args, env, expected) in [
        (&[][..], &[][..], &file),
        (&[], &[("PEANUT_LISTEN", variable.as_str())], &variable),
        (&["--listen", flag.as_str()], &[("PEANUT_LISTEN", variable.as_str())], &flag),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peanut.toml");
        std::fs::write(&path, format!("listen = \"{file}\"\n{SCORES}")).unwrap();
        let command = &mut Command::new(SERVER);
        command.arg("--config").arg(&path).args(args).envs(env.iter().copied()).env("NO_COLOR", "1");
        let mut process = peanut_tests::Process::start("peanut-server", command);
        let line = process.wait_for_line("listening on ").await;
        assert!(line.ends_with(expected.as_str()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_at_start_it_says_so_serves_and_joins_when_etcd_is_there() {
    let mut etcd = Etcd::start().await;
    etcd.stop();
    let mut server = ServerProcess::start(SERVER, &etcd.endpoint(), SCORES).await;
    let line = server.process().wait_for_line("not registered").await;
    assert!(line.contains(&etcd.endpoint()) && line.contains("refused"), "{line}");
    let client = peanut_client::Client::builder().nodes([server.addr()]).build().await.unwrap();
    // It waits a little for what was left for it to do, and serves on without.
    let get = async || client.group("scores").get("Tom").await.ok();
    assert_eq!(eventually("an answer", get).await.unwrap(), "630");

    etcd.start_again().await;
    server.registered().await;
    let client = crate::client(&etcd, 1).await;
    eventually("the node to be alive", async || client.nodes()[0].alive.then_some(())).await;
}
