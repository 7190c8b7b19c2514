//! The fleet grows and shrinks: what the previous owners had goes along.

use std::time::Duration;

use nix::sys::signal::Signal;
use peanut_client::{Client, ErrorKind};
use peanut_tests::{Etcd, Origin, ServerProcess, eventually, group_from};

use crate::{SERVER, client_of};

const KEYS: usize = 3_000;

async fn server(etcd: &Etcd, settings: &str, groups: &str) -> ServerProcess {
    let port = peanut_tests::free_port();
    let endpoint = etcd.endpoint();
    let config =
        format!("listen = \"127.0.0.1:{port}\"\n{settings}\n[etcd]\nendpoints = [\"{endpoint}\"]\n{groups}");
    let mut server = ServerProcess::start_with(SERVER, &config).await;
    server.registered().await;
    server
}

async fn with_nodes(client: &Client, nodes: usize) {
    eventually("the ring to change", async || (client.nodes().len() == nodes).then_some(())).await;
}

/// Gets all keys, from each client some.
async fn get_all(clients: &[Client]) {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key-{n}")).collect();
    for (keys, client) in keys.chunks(100).zip(clients.iter().cycle()) {
        for (key, value) in keys.iter().zip(client.group("g").get_many(keys).await) {
            assert_eq!(value.unwrap().unwrap(), format!("value of {key}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_grows_and_shrinks_loads_next_to_nothing_anew() {
    for hands_over in [true, false] {
        let origin = Origin::start(Duration::ZERO).await;
        let groups = group_from("g", origin.url(), "ttl = \"1h\"");
        let etcd = Etcd::start().await;
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(server(&etcd, "", &groups).await);
        }
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut builder = client_of(&etcd).deadline(Duration::from_secs(5));
            if !hands_over {
                builder = builder.hand_over(Duration::ZERO);
            }
            let client = builder.build().await.unwrap();
            with_nodes(&client, 3).await;
            clients.push(client);
        }
        get_all(&clients).await;
        let asked = || usize::try_from(origin.asked().values().sum::<u64>()).unwrap();
        assert_eq!(asked(), KEYS);

        servers.push(server(&etcd, "", &groups).await);
        let id = servers[3].addr().to_owned();
        for client in &clients {
            with_nodes(client, 4).await;
        }
        let ring = clients[0].ring();
        let owner = |key: &String| &ring.members()[ring.place("g", key.as_bytes()).unwrap().owner].id;
        let moved = (0..KEYS).map(|n| format!("key-{n}")).filter(|key| *owner(key) == id).count();
        assert!(moved > KEYS / 8);
        get_all(&clients).await;
        let loaded = asked() - KEYS;
        println!("{moved} keys moved to a fourth node, {loaded} were loaded anew (hand-over: {hands_over})");
        if hands_over {
            assert!(loaded * 50 <= moved, "{loaded} of {moved}");
        } else {
            assert_eq!(loaded, moved, "the proof that the other figure means something");
        }

        let before = asked();
        clients[0].drain(&id).await.unwrap();
        for client in &clients {
            with_nodes(client, 3).await;
        }
        get_all(&clients).await;
        let loaded = asked() - before;
        println!("{moved} keys moved back, {loaded} were loaded anew");
        if hands_over {
            assert!(loaded * 50 <= moved, "{loaded} of {moved}");
        } else {
            // The previous owners' entries are from before: they are not shown, though they are there.
            assert_eq!(loaded, moved);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clients[0].nodes().len(), 3, "it does not join again by itself");
        servers[3].process().kill();
        servers[3].start_again().await;
        with_nodes(&clients[0], 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_after_a_change_of_the_ring_is_not_handed_over_from_before() {
    let origin = Origin::start(Duration::ZERO).await;
    let groups = group_from("g", origin.url(), "ttl = \"1h\"");
    let etcd = Etcd::start().await;
    let _servers = [server(&etcd, "", &groups).await, server(&etcd, "", &groups).await];
    let [reader, writer] = [(); 2].map(|()| client_of(&etcd).deadline(Duration::from_secs(5)));
    let (reader, writer) = (reader.build().await.unwrap(), writer.build().await.unwrap());
    with_nodes(&reader, 2).await;
    with_nodes(&writer, 2).await;
    let keys: Vec<String> = (0..500).map(|n| format!("k{n}")).collect();
    for key in &keys {
        writer.group("g").set(key, "old").await.unwrap();
    }
    let _third = server(&etcd, "", &groups).await;
    with_nodes(&reader, 3).await;
    with_nodes(&writer, 3).await;
    // One that was not there before the change writes as well.
    let late = client_of(&etcd).deadline(Duration::from_secs(5)).build().await.unwrap();
    for (n, key) in keys.iter().enumerate() {
        let client = if n % 2 == 0 { &writer } else { &late };
        client.group("g").delete(key).await.unwrap();
    }
    for (key, value) in keys.iter().zip(reader.group("g").get_many(&keys).await) {
        assert_eq!(value.unwrap().unwrap(), format!("value of {key}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_leave_when_told_so_and_are_forgotten_or_removed_when_they_are_gone() {
    let origin = Origin::start(Duration::ZERO).await;
    let groups = group_from("g", origin.url(), "");
    let etcd = Etcd::start().await;
    let settings = "forget_after = \"3s\"\nlease_ttl = \"1s\"";
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(server(&etcd, settings, &groups).await);
    }
    let leave = format!("{settings}\non_shutdown = \"leave\"");
    servers.push(server(&etcd, &leave, &groups).await);
    let client = client_of(&etcd).build().await.unwrap();
    with_nodes(&client, 4).await;
    servers[3].process().signal(Signal::SIGTERM);
    assert_eq!(servers[3].process().ended().await.code(), Some(0));
    with_nodes(&client, 3).await;

    servers[2].process().kill();
    with_nodes(&client, 2).await;

    let [first, second] = [0, 1].map(|at: usize| servers[at].addr().to_owned());
    assert_eq!(client.remove(&first).await.unwrap_err().kind(), ErrorKind::InvalidArgument, "it is alive");
    assert_eq!(client.drain("nobody").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    servers[1].process().kill();
    eventually("its lease to end", async || {
        client.nodes().iter().any(|node| node.id == second && !node.alive).then_some(())
    })
    .await;
    client.remove(&second).await.unwrap();
    with_nodes(&client, 1).await;
}
