//! Joining, losing and repairing, on the registry of one process and a paused clock.

use peanut_proto::membership::FleetView;
use peanut_proto::registry::LocalRegistry;
use tokio::task::JoinHandle;

use super::*;

fn info(id: &str) -> NodeInfo {
    NodeInfo { id: id.into(), addr: format!("{id}:1"), zone: String::new(), weight: 1 }
}

struct Running {
    node: Node,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(registry: &LocalRegistry, id: &str) -> Running {
    start_as(registry, info(id))
}

fn start_as(registry: &LocalRegistry, info: NodeInfo) -> Running {
    let node = Node::alone([]);
    let stop = CancellationToken::new();
    let registration = registration(registry, info);
    let discovery = Discovery::start(registration.registry.clone(), registration.keys.clone());
    let ends = (stop.clone(), CancellationToken::new());
    let run = registration.run(discovery, node.clone(), watch::Sender::new(false), ends);
    let task = tokio::spawn(run);
    Running { node, stop, task }
}

fn registration(registry: &LocalRegistry, info: NodeInfo) -> Registration {
    Registration {
        registry: Arc::new(registry.clone()),
        keys: Keys::new("f"),
        node: info,
        groups: None,
        lease_ttl: Duration::from_secs(5),
        naming_service: "peanutcache".into(),
        on_shutdown: OnShutdown::Keep,
        forget_after: Duration::from_secs(120),
        max_ttl: Duration::from_secs(60),
        seen: SeenRing::default(),
    }
}

async fn view(registry: &LocalRegistry) -> FleetView {
    let mut view = FleetView::new(Keys::new("f"));
    view.replace(registry.load("/peanut/f/").await.unwrap());
    view
}

async fn naming(registry: &LocalRegistry) -> Vec<String> {
    let entries = registry.load("peanutcache/").await.unwrap().entries;
    entries.into_iter().map(|entry| entry.key).collect()
}

/// Long enough for everything that was begun to come to rest, and shorter than a lease.
async fn settle() {
    sleep(Duration::from_millis(500)).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_join_stay_alive_and_say_goodbye_without_leaving() {
    let registry = LocalRegistry::new();
    let (a, b) = (start(&registry, "a"), start(&registry, "b"));
    settle().await;
    sleep(Duration::from_secs(60)).await;
    let seen = view(&registry).await;
    assert_eq!((seen.ring.version.0, seen.ring.members.len(), seen.live.len()), (2, 2, 2));
    assert_eq!(naming(&registry).await, ["peanutcache/a:1", "peanutcache/b:1"]);
    assert_eq!(a.node.ring().version(), RingVersion(2), "a node hears of new rings");

    a.stop.cancel();
    a.task.await.unwrap();
    let seen = view(&registry).await;
    assert_eq!((seen.ring.version.0, seen.live.len(), seen.live.contains_key("b")), (2, 1, true));
    assert_eq!(naming(&registry).await, ["peanutcache/b:1"]);
    b.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_granted_again_with_all_its_keys() {
    let registry = LocalRegistry::new();
    let a = start(&registry, "a");
    settle().await;
    let begun = Instant::now();
    registry.revoke(LeaseId(1)).await.unwrap();
    assert!(view(&registry).await.live.is_empty());
    settle().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(view(&registry).await.live.len(), 1);
    assert_eq!(naming(&registry).await, ["peanutcache/a:1"]);
    assert_eq!(view(&registry).await.ring.version, RingVersion(1), "membership was not touched");
    a.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_lost_ring_is_written_again_from_the_last_good_one() {
    let registry = LocalRegistry::new();
    let (a, b) = (start(&registry, "a"), start(&registry, "b"));
    settle().await;
    b.stop.cancel();
    b.task.await.unwrap();
    registry.delete("/peanut/f/ring").await.unwrap();
    settle().await;
    let seen = view(&registry).await;
    assert_eq!((seen.ring.version.0, seen.ring.members.len()), (2 + UNHEARD, 2), "b is down, but a member");
    assert_eq!(seen.ring.member("b").unwrap().since, RingVersion(2));
    a.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_ring_of_an_unknown_format_is_left_alone() {
    let registry = LocalRegistry::new();
    let future = br#"{"format":9}"#.to_vec();
    registry.put("/peanut/f/ring", future.clone(), None).await.unwrap();
    let a = start(&registry, "a");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(registry.load("/peanut/f/ring").await.unwrap().entries[0].value, future);
    assert_eq!(view(&registry).await.live.len(), 1, "a node that cannot join is alive all the same");
    assert_eq!(naming(&registry).await, ["peanutcache/a:1"]);
    a.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_ring_that_nobody_could_read_is_not_written() {
    let registry = LocalRegistry::new();
    let nodes: Vec<_> =
        (0..5).map(|n| start_as(&registry, NodeInfo { weight: 500, ..info(&format!("n{n}")) })).collect();
    sleep(Duration::from_secs(30)).await;
    let seen = view(&registry).await;
    assert_eq!((seen.ring.members.len(), seen.live.len()), (4, 5), "the fifth would be one too many");
    assert!(!seen.ring_was_lost());
    drop(nodes);
}

#[tokio::test(start_paused = true)]
async fn a_second_node_of_the_same_id_does_not_join() {
    let registry = LocalRegistry::new();
    let first = start(&registry, "a");
    settle().await;
    let second = start_as(&registry, NodeInfo { addr: "elsewhere:2".into(), ..info("a") });
    sleep(Duration::from_secs(60)).await;
    let seen = view(&registry).await;
    assert_eq!((seen.ring.version.0, seen.ring.members[0].addr.as_str()), (1, "a:1"));
    // And takes over when the first one is gone.
    first.stop.cancel();
    first.task.await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(view(&registry).await.ring.members[0].addr, "elsewhere:2");
    second.stop.cancel();
}

#[test]
fn an_older_stored_ring_is_merged_under_a_version_above_both() {
    let known = ["a", "b"].iter().fold(RingDocument::empty(8), |ring, id| ring.with(&info(id), 0).unwrap());
    let stored = RingDocument::empty(8).with(&info("new"), 0).unwrap();
    let next = next_ring(Some(&stored), &known, &info("a"), 0).unwrap();
    let ids: Vec<_> = next.members.iter().map(|m| m.id.as_str()).collect();
    assert_eq!((next.version, ids), (known.version.plus(UNHEARD + 1), vec!["a", "b", "new"]));
    assert_eq!(next_ring(Some(&known), &known, &info("a"), 0), None);
    assert_eq!(next_ring(None, &known, &info("a"), 0).unwrap().version, known.version.plus(UNHEARD));
    assert_eq!(next_ring(None, &RingDocument::empty(8), &info("a"), 0).unwrap().version, RingVersion(1));
}

/// Writers that find no lease wait for near leases that were given before then, and for no later ones.
#[tokio::test(start_paused = true)]
async fn a_node_that_stops_gives_no_near_lease_from_before_its_own_ends() {
    use peanut_proto::clock::uptime;
    let registry = LocalRegistry::new();
    let a = start(&registry, "a");
    while !view(&registry).await.live.contains_key("a") {
        tokio::task::yield_now().await;
    }
    a.node.near().marked(a.node.near().last_granted());
    sleep(Duration::from_millis(10)).await;
    assert!(a.node.near().may_give(uptime()));
    a.stop.cancel();
    a.task.await.unwrap();
    assert!(!a.node.near().may_give(uptime()));
}

#[tokio::test]
async fn a_ring_that_this_node_has_stored_is_known_before_its_watch_tells_of_it() {
    let (registry, heard) = (LocalRegistry::new(), RingDocument::empty(8).with(&info("a"), 0).unwrap());
    let node = registration(&registry, info("b"));
    let first = node.join(&heard, false).await.unwrap();
    registry.delete("/peanut/f/ring").await.unwrap();
    let second = node.join(&heard, false).await.unwrap();
    assert_eq!((first, second), (heard.version.plus(UNHEARD + 1), first.plus(UNHEARD)));
    assert_eq!(view(&registry).await.ring.members.len(), 2);
}

#[tokio::test]
async fn a_ring_that_this_node_has_found_is_known_before_its_watch_tells_of_it() {
    let (registry, heard) = (LocalRegistry::new(), RingDocument::empty(8).with(&info("a"), 0).unwrap());
    let heard = heard.with(&info("b"), 0).unwrap();
    let (other, node) = (registration(&registry, info("a")), registration(&registry, info("b")));
    let first = other.join(&heard, false).await.unwrap();
    assert_eq!(node.join(&heard, false).await.unwrap(), first, "it is a member of it as it is");
    registry.delete("/peanut/f/ring").await.unwrap();
    assert_eq!(node.join(&heard, false).await.unwrap(), first.plus(UNHEARD));
}

async fn put(registry: &LocalRegistry, key: &str, value: &[u8]) {
    registry.put(key, value.to_vec(), None).await.unwrap();
}

/// What bad hands, tools or disks may make of the ring's key, whatever it says.
#[tokio::test(start_paused = true)]
async fn a_ring_that_cannot_be_used_is_written_again_from_the_last_good_one() {
    let registry = LocalRegistry::new();
    let (a, b) = (start(&registry, "a"), start(&registry, "b"));
    settle().await;
    let good = view(&registry).await.ring;
    let member = good.members[0].clone();
    let with =
        |members: Vec<_>| RingDocument { version: RingVersion(9), members, ..(*good).clone() }.encode();
    let bogus =
        (0..10_000).map(|n| peanut_proto::membership::Member { id: format!("bogus{n}"), ..member.clone() });
    let garbage = [
        Vec::new(),
        b"garbage".to_vec(),
        vec![0xff; 1 << 20],
        with(vec![member.clone(), member.clone()]),
        with(bogus.collect()),
        with(vec![peanut_proto::membership::Member { weight: 0, ..member.clone() }]),
        RingDocument { version: RingVersion(u64::MAX), ..(*good).clone() }.encode(),
        RingDocument { version: RingVersion(1 << 50), ..(*good).clone() }.encode(),
    ];
    for (at, garbage) in garbage.iter().enumerate() {
        put(&registry, "/peanut/f/ring", garbage).await;
        sleep(Duration::from_secs(5)).await;
        let seen = view(&registry).await.ring;
        let ids: Vec<_> = seen.members.iter().map(|member| member.id.as_str()).collect();
        assert_eq!((ids, seen.version.0), (vec!["a", "b"], 2 + UNHEARD * (at as u64 + 1)), "garbage {at}");
        assert_eq!(seen.members[0].since, RingVersion(1), "nobody's entries are outdated by it");
    }
    drop((a, b));
}

#[tokio::test(start_paused = true)]
async fn a_ring_of_a_newer_build_is_left_to_it_by_running_nodes_too() {
    let registry = LocalRegistry::new();
    let (a, b) = (start(&registry, "a"), start(&registry, "b"));
    settle().await;
    let newer = br#"{"format":2,"version":3,"shards":[]}"#.to_vec();
    put(&registry, "/peanut/f/ring", &newer).await;
    let before = registry.load("/").await.unwrap().revision;
    sleep(Duration::from_secs(60)).await;
    registry.revoke(LeaseId(1)).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(registry.get("/peanut/f/ring").await.unwrap().unwrap().value, newer);
    let seen = view(&registry).await;
    assert_eq!(seen.live.len(), 2, "they stay alive");
    assert!(seen.revision < before + 10, "and write nothing in a loop");
    drop((a, b));
}

#[tokio::test(start_paused = true)]
async fn a_liveness_record_that_cannot_be_read_is_written_again() {
    let registry = LocalRegistry::new();
    let a = start(&registry, "a");
    settle().await;
    put(&registry, "/peanut/f/live/a", b"garbage").await;
    sleep(Duration::from_secs(5)).await;
    let seen = view(&registry).await;
    assert!(seen.live.contains_key("a") && seen.unreadable.is_empty());
    a.stop.cancel();
    a.task.await.unwrap();
    assert!(view(&registry).await.live.is_empty(), "and hangs on the lease again");
}

#[tokio::test(start_paused = true)]
async fn a_node_is_forgotten_although_the_name_of_another_begins_like_its_own() {
    let registry = LocalRegistry::new();
    let nodes = ["n1", "n10", "n2"].map(|id| start(&registry, id));
    settle().await;
    let [n1, _n10, _n2] = nodes;
    n1.stop.cancel();
    n1.task.await.unwrap();
    put(&registry, "/peanut/f/undelivered/n1/g/x-1", b"{}").await;
    put(&registry, "/peanut/f/undelivered/n10/g/x-1", b"{}").await;
    put(&registry, "/peanut/f/undelivered/stranger/g/x-1", b"{}").await;
    put(&registry, "/peanut/f/undelivered/old-layout", b"{}").await;
    sleep(Duration::from_secs(200)).await;
    let seen = view(&registry).await.ring;
    assert_eq!(seen.members.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["n10", "n2"]);
    // What was left for nodes that nobody remembers goes; n1's stays until it has been forgotten for good.
    let left = registry.load("/peanut/f/undelivered/").await.unwrap().entries;
    let left: Vec<_> = left.iter().map(|entry| entry.key.as_str()).collect();
    assert!(!left.iter().any(|key| key.contains("stranger")), "{left:?}");
    assert!(left.iter().any(|key| key.contains("/n10/")) && left.len() >= 2, "{left:?}");
}

/// Who was cut off, or whose place in an orchestrator was given to another at the same address.
#[tokio::test(start_paused = true)]
async fn a_process_ends_when_a_later_one_has_its_id_and_address() {
    let registry = LocalRegistry::new();
    let first = start(&registry, "a");
    settle().await;
    // Of two starts in one millisecond none is later.
    let next_millisecond = || std::thread::sleep(Duration::from_millis(2));
    next_millisecond();
    let second = start(&registry, "a");
    settle().await;
    assert!(first.task.is_finished() && !second.task.is_finished());
    let seen = view(&registry).await;
    assert_eq!((seen.ring.members.len(), seen.live.len()), (1, 1), "the other is there");
    // One whose lease ended meanwhile does not take its place back.
    next_millisecond();
    let third = start(&registry, "a");
    let lease = LeaseId(2);
    registry.revoke(lease).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    assert!(second.task.is_finished() && !third.task.is_finished());
}

/// The record of an earlier process, from a registry that was restored, ends nobody.
#[tokio::test(start_paused = true)]
async fn an_earlier_process_record_is_written_over() {
    let registry = LocalRegistry::new();
    let a = start(&registry, "a");
    settle().await;
    let key = Keys::new("f").live("a");
    let mut record = Liveness::decode(&registry.get(&key).await.unwrap().unwrap().value).unwrap();
    (record.incarnation, record.started_ms) = ("earlier".to_owned(), record.started_ms - 1);
    registry.put(&key, record.encode(), None).await.unwrap();
    settle().await;
    let now = Liveness::decode(&registry.get(&key).await.unwrap().unwrap().value).unwrap();
    assert!(!a.task.is_finished() && now.incarnation != "earlier");
}
