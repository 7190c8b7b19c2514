//! Who is who: addresses are used again, and a call is for the node that it names and no other. A client that
//! starts before its fleet, and a node that is frozen from the beginning.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::{Client, ErrorKind};
use peanut_tests::{Etcd, Proxy, ServerProcess, eventually, free_port, now};

use crate::{SERVER, client, client_of, fleet};

fn config(etcd: &Etcd, fleet: &str, port: u16, score: &str) -> String {
    format!(
        "listen = \"127.0.0.1:{port}\"\nfleet = \"{fleet}\"\n[etcd]\nendpoints = [\"{}\"]\n[[group]]\nname = \"g\"\n\
         [group.loader]\nkind = \"static\"\nentries = {{ k = \"{score}\" }}\n",
        etcd.endpoint()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_fleet_at_a_dead_ones_address_is_not_believed() {
    let etcd = Etcd::start().await;
    let port = free_port();
    let mut ours = ServerProcess::start_with(SERVER, &config(&etcd, "ours", port, "ours")).await;
    ours.registered().await;
    for unary in [false, true] {
        let builder = || {
            let builder = Client::builder().etcd([etcd.endpoint()]).deadline(Duration::from_secs(3));
            if unary { builder.unary() } else { builder }
        };
        let client = builder().fleet("ours").build().await.unwrap();
        assert_eq!(client.group("g").get("k").await.unwrap().unwrap(), "ours");
        ours.process().kill();
        let mut theirs = ServerProcess::start_with(SERVER, &config(&etcd, "theirs", port, "theirs")).await;
        theirs.registered().await;
        for _ in 0..5 {
            let error = client.group("g").get("k").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            let many = client.group("g").get_many(["k", "j"]).await;
            assert!(many.iter().all(Result::is_err), "{many:?}");
        }
        // A write leaves a hint for the node that is meant, and fails as long as that node still holds its
        // lease.
        eventually("the dead node's lease to end", async || client.group("g").set("k", "written").await.ok())
            .await;
        client.group("g").delete("j").await.unwrap();
        client.probe().await;
        assert!(!client.nodes()[0].up, "a stranger does not pass for the node");
        let other = builder().fleet("theirs").build().await.unwrap();
        assert_eq!(
            other.group("g").get("k").await.unwrap().unwrap(),
            "theirs",
            "it was written nowhere else"
        );
        theirs.process().kill();
        ours.start_again().await;
        ours.registered().await;
        eventually("the node to be believed again", async || {
            client.group("g").get("k").await.ok().filter(|value| value.as_deref() == Some(b"ours"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_starts_before_its_fleet_waits_for_it() {
    let port = free_port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let lazy = Client::builder().etcd([endpoint]).deadline(Duration::from_millis(500)).build_lazy().unwrap();
    let error = lazy.group("scores").get("Tom").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("has not been found yet"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("etcd at"), "{source}");
    assert_eq!(lazy.group("scores").set("Tom", "1").await.unwrap_err().kind(), ErrorKind::Unavailable);

    let etcd = Etcd::start().await;
    let lazy = client_of(&etcd).deadline(Duration::from_secs(20)).build_lazy().unwrap();
    let waiting = tokio::spawn(async move { lazy.group("scores").get("Tom").await });
    let _server = ServerProcess::start(SERVER, &etcd.endpoint(), crate::SCORES).await;
    assert_eq!(waiting.await.unwrap().unwrap().unwrap(), "630");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_frozen_node_a_new_client_has_its_answers_from_the_successor() {
    let (etcd, mut servers) = fleet(2, crate::SCORES).await;
    let owner_of = client(&etcd, 2).await;
    servers[0].process().signal(Signal::SIGSTOP);
    let deadline = Duration::from_secs(4);
    let fresh = client_of(&etcd).deadline(deadline).build().await.unwrap();
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).chain(["Tom".to_owned()]).collect();
    let begun = now();
    let answers = fresh.group("scores").get_many(&keys).await;
    assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
    assert!(begun.elapsed() < deadline * 3 / 2, "{:?}", begun.elapsed());
    servers[0].process().signal(Signal::SIGCONT);
    drop(owner_of);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_swallows_what_is_sent_is_left_and_its_node_asked_on_another() {
    let etcd = Etcd::start().await;
    let port = free_port();
    let proxy = Proxy::start(port).await;
    let config = format!("{}\n", config(&etcd, "ours", port, "v")).replacen(
        "fleet =",
        &format!("advertise = \"{}\"\nfleet =", proxy.addr()),
        1,
    );
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    server.registered().await;
    for unary in [false, true] {
        let builder =
            Client::builder().etcd([etcd.endpoint()]).fleet("ours").deadline(Duration::from_secs(4));
        let builder = if unary { builder.unary() } else { builder };
        let client = builder.build().await.unwrap();
        for round in 0..3 {
            assert_eq!(client.group("g").get("k").await.unwrap().unwrap(), "v");
            client.probe().await;
            proxy.stall_present();
            let begun = now();
            let stalled = client.group("g").get("k").await;
            if !unary {
                assert_eq!(stalled.unwrap().unwrap(), "v", "in round {round}");
            }
            eventually("the next get to be answered", async || client.group("g").get("k").await.ok()).await;
            assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        }
    }
}
