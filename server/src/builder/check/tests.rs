//! What a builder refuses, in the words that it does so.

use super::*;
use crate::{Server, StaticLoader, Token};

fn builder() -> ServerBuilder {
    Server::builder().group(group())
}

fn group() -> Group {
    Group::new("g", [("k", "v")].into_iter().collect::<StaticLoader>())
}

fn refused(builder: ServerBuilder) -> String {
    builder.build().expect_err("it is refused").to_string()
}

#[tokio::test]
async fn times_have_a_shortest_and_a_longest_value() {
    type Set = fn(ServerBuilder, Duration) -> ServerBuilder;
    let settings: [(&str, Set, Bounds); 8] = [
        ("lease_ttl", ServerBuilder::lease_ttl, LEASE_TTL),
        ("forget_after", ServerBuilder::forget_after, FORGET_AFTER),
        ("shutdown_deadline", ServerBuilder::shutdown_deadline, SHUTDOWN_DEADLINE),
        ("seal_interval", ServerBuilder::seal_interval, SEAL_INTERVAL),
        ("handshake_timeout", ServerBuilder::handshake_timeout, HANDSHAKE_TIMEOUT),
        ("first_call_timeout", ServerBuilder::first_call_timeout, FIRST_CALL_TIMEOUT),
        ("idle_timeout", ServerBuilder::idle_timeout, IDLE_TIMEOUT),
        ("keepalive", ServerBuilder::keepalive, KEEPALIVE),
    ];
    for (name, set, bounds) in settings {
        let no_time = [Duration::ZERO, Duration::from_nanos(1)];
        let for_ever = [Duration::from_secs(u64::MAX), Duration::MAX, Duration::from_secs(40 * 24 * 3600)];
        for time in no_time.into_iter().chain(for_ever).filter(|time| bounds.check(*time).is_err()) {
            let error = refused(set(builder(), time));
            assert!(error.starts_with(&format!("{name}: must be from ")), "{time:?}: {error}");
        }
    }
    assert!(builder().shutdown_deadline(Duration::ZERO).build().is_ok(), "to end at once is a choice");
    assert!(
        refused(builder().lease_ttl(Duration::from_secs(9)).forget_after(Duration::from_secs(8)))
            .contains("lease_ttl")
    );
}

#[tokio::test]
async fn counts_and_sizes_have_bounds() {
    for (builder, setting) in [
        (builder().weight(0), "weight: "),
        (builder().weight(u32::MAX), "weight: "),
        (builder().threads(usize::MAX), "threads: "),
        (builder().max_connections(0), "max_connections: "),
        (builder().max_connections(usize::MAX), "max_connections: "),
        (builder().max_connections_per_peer(0), "max_connections_per_peer: "),
        (builder().max_connections_per_peer(usize::MAX), "max_connections_per_peer: "),
        (builder().restore_rate(0), "restore_rate: "),
        (builder().restore_rate(u64::MAX), "restore_rate: "),
        (Server::builder().group(group().capacity_bytes(usize::MAX)), "capacity: "),
        (
            Server::builder()
                .group(group().capacity_bytes(usize::MAX / 2))
                .group(Group::without_loader("h").capacity_bytes(usize::MAX)),
            "capacity: ",
        ),
    ] {
        let error = refused(builder);
        assert!(error.starts_with(setting), "{error}");
    }
}

#[tokio::test]
async fn groups_have_bounds_too() {
    let (zero, nanosecond, ever) = (Duration::ZERO, Duration::from_nanos(1), Duration::MAX);
    for (group, why) in [
        (group().capacity_bytes(0), "capacity is zero"),
        (group().disk_capacity_bytes(0), "disk_capacity is zero"),
        (group().disk_capacity_bytes(1), "disk_capacity must"),
        (group().disk_capacity_bytes(u64::MAX), "disk_capacity must"),
        (group().ttl(zero), "ttl and max_ttl"),
        (group().ttl(nanosecond), "ttl must"),
        (group().ttl(ever), "ttl must"),
        (group().max_ttl(nanosecond), "max_ttl must"),
        (group().max_ttl(ever), "max_ttl must"),
        (group().negative_ttl(ever), "negative_ttl must"),
        (group().failover_ttl(ever), "failover_ttl must"),
        (group().load_timeout(zero), "load_timeout must"),
        (group().load_timeout(ever), "load_timeout must"),
        (group().stale_if_error(ever), "stale_if_error must"),
        (group().refresh_after(Some(nanosecond)), "refresh_after must"),
        (group().refresh_after(Some(ever)), "refresh_after must"),
        (group().ttl_jitter(f64::NAN), "ttl_jitter must"),
        (group().ttl_jitter(f64::INFINITY), "ttl_jitter must"),
        (group().ttl_jitter(-0.1), "ttl_jitter must"),
        (group().max_loads(0), "max_loads must"),
        (group().max_loads(usize::MAX), "max_loads must"),
    ] {
        let error = refused(Server::builder().group(group));
        assert!(error.starts_with("group `g`: ") && error.contains(why), "{why}: {error}");
    }
}

#[tokio::test]
async fn names_and_addresses_are_such_that_others_can_use_them() {
    for (builder, setting) in [
        (builder().advertise("fd00::1:9999"), "advertise: "),
        (builder().advertise("0.0.0.0:9999"), "advertise: "),
        (builder().advertise("[::]:9999"), "advertise: "),
        (builder().advertise("[::]"), "advertise: "),
        (builder().advertise("node"), "advertise: "),
        (builder().advertise("no de:1"), "advertise: "),
        (builder().nodes(["a:1", "b:0"]), "nodes: "),
        (builder().nodes(["a:1", "fd00::1:9999"]), "nodes: "),
        (builder().nodes(["a:1", "a:1"]), "nodes: "),
        (builder().nodes([""]), "nodes: "),
        (builder().fleet("a/b"), "fleet: "),
        (builder().node_id(""), "node_id: "),
        (builder().zone("a\nb"), "zone: "),
        (builder().zone("z".repeat(129)), "zone: "),
        (builder().naming_service("a/b"), "naming_service: "),
        (builder().token(Token::new("t").certificate("app.example")), "token: "),
    ] {
        let error = refused(builder);
        assert!(error.starts_with(setting), "{setting}{error}");
    }
    for host in ["", "a b", "host:1", "*", "http://host", "::1"] {
        let error = refused(builder().admin_hosts([host]));
        assert!(error.starts_with("admin_hosts: "), "{host}: {error}");
    }
    assert!(builder().advertise("[fd00::1]:0").zone("").build().is_ok());
}

#[tokio::test]
async fn a_directory_that_cannot_be_one_is_told_and_nothing_is_left_of_the_trial() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/peanut/data".into()] {
        let error = refused(builder().data_dir(&path));
        assert!(
            error.starts_with("data_dir: ") && error.contains("file: it is not") || error.contains("/proc"),
            "{error}"
        );
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("link")).unwrap();
        assert!(refused(builder().data_dir(dir.path().join("link"))).starts_with("data_dir: "));
        std::fs::remove_file(dir.path().join("link")).unwrap();
    }
    for path in [dir.path().to_owned(), dir.path().join("a/b/c")] {
        assert!(builder().data_dir(path).build().is_ok());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "but the file");
}

#[cfg(all(feature = "http", feature = "sqlite", feature = "redis", feature = "grpc"))]
#[tokio::test]
async fn loaders_are_bounded_whoever_makes_them() {
    use crate::{GrpcLoader, HttpLoader, LoaderError, RedisLoader, SqlLoader, SqlOptions};
    let why = |made: Result<(), LoaderError>| made.expect_err("it is refused").to_string();
    let sql = |options| SqlLoader::with_options("sqlite:x", "SELECT ?", options).map(drop);
    for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(u64::MAX), Duration::MAX] {
        for made in [
            HttpLoader::new("http://h/{key}", timeout).map(drop),
            RedisLoader::new("redis://h", "{key}", timeout).map(drop),
            GrpcLoader::new("http://h", timeout).map(drop),
            sql(SqlOptions { timeout, ..SqlOptions::default() }),
        ] {
            assert!(why(made).starts_with("`timeout` must be from 1ms to 1h"), "{timeout:?}");
        }
    }
    for max_connections in [0, u32::MAX] {
        assert!(
            why(sql(SqlOptions { max_connections, ..SqlOptions::default() }))
                .contains("`max_connections` must")
        );
    }
}
