use peanut_proto::clock::uptime;
use peanut_proto::frame::{RequestField, RequestWriter};
use peanut_proto::frame::{ResponseField, ResponseWriter};

use super::*;

struct Fixture {
    copies: Arc<NearCopies>,
    lane: LaneCopies,
    writer: RequestWriter,
}

const RING: RingVersion = RingVersion(3);

impl Fixture {
    fn new(options: NearCache) -> Self {
        let copies = Arc::new(NearCopies::new(options));
        copies.go_by(RING);
        let lane = LaneCopies::new(copies.clone(), "n1");
        Fixture { copies, lane, writer: RequestWriter::default() }
    }

    fn keep(&mut self, key: &str, value: Option<&str>) {
        self.keep_asked(key, value, Instant::now());
    }

    fn keep_asked(&mut self, key: &str, value: Option<&str>, asked: Instant) {
        let (hash, kept_for) = (hash(key), Duration::from_secs(10));
        let (key, value) = (key.as_bytes(), value.map(str::as_bytes));
        let (group, age, ring_version) = (0, Duration::ZERO, RING);
        let answer =
            ToKeep { group, key, hash, value, age, ttl: 60 * kept_for, kept_for, asked, ring_version };
        self.lane.keep(&answer, RING, uptime());
    }

    /// The number of the renewal that is sent, if one is.
    fn renewal(&mut self, now: Duration) -> Option<u64> {
        self.lane.write(&mut self.writer, now);
        let frame = self.writer.take();
        frame.fields().find_map(|field| match field {
            Ok(RequestField::NearRenewal(number)) => Some(number),
            _ => None,
        })
    }

    fn renew(&mut self, is_new: bool) {
        let number = self.renewal(uptime()).unwrap();
        self.lane.renewed(number, is_new, RING, uptime());
    }

    /// What is read: a value, that there is none, or `"-"` where there is no copy that may be read.
    fn read(&self, key: &str) -> Option<String> {
        match self.find(0, key) {
            Found::Copy { read, .. } => read.map(|value| String::from_utf8_lossy(&value).into_owned()),
            Found::Lapsed | Found::Nothing => Some("-".to_owned()),
        }
    }

    fn find(&self, group: u32, key: &str) -> Found<Option<Bytes>> {
        self.copies.find(group, hash(key), key.as_bytes(), |copy, _| copy.value())
    }

    fn outdated(&mut self, number: u64, keys: &[&str]) {
        let mut writer = ResponseWriter::default();
        let hashes: Vec<_> = keys.iter().map(|key| hash(key)).collect();
        writer.invalidation(number, &hashes);
        let frame = writer.take();
        for field in frame.fields() {
            let Ok(ResponseField::Invalidation { number, keys }) = field else { panic!("{field:?}") };
            self.lane.outdated(number, keys);
        }
    }
}

fn hash(key: &str) -> u64 {
    peanut_proto::key::key_hash("g", key.as_bytes())
}

fn some(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[tokio::test]
async fn a_copy_is_read_while_the_lease_stands() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    f.keep("a", Some("1"));
    f.keep("b", None);
    assert_eq!(f.read("a"), some("-"), "there is no lease");
    f.renew(false);
    assert_eq!((f.read("a"), f.read("b"), f.read("c")), (some("1"), None, some("-")));
    assert!(matches!(f.find(1, "a"), Found::Nothing), "of another group");
    tokio::time::sleep(near_lease()).await;
    assert!(matches!(f.find(0, "a"), Found::Lapsed));
    f.renew(false);
    assert_eq!(f.read("a"), some("1"), "the node has not forgotten it");
    tokio::time::sleep(near_lease() / 2).await;
    f.renew(true);
    assert_eq!(f.read("a"), some("-"), "it has");
    f.keep("a", Some("2"));
    assert_eq!(f.read("a"), some("2"));
    f.lane.renewed(77, true, RING, uptime());
    assert_eq!(f.read("a"), some("-"), "it has once more, whichever renewal that answers");
    f.keep("a", Some("2"));
    assert_eq!(f.read("a"), some("2"));
    f.lane.lost();
    assert_eq!(f.read("a"), some("-"));
}

#[tokio::test]
async fn the_lease_is_reckoned_from_when_the_renewal_was_sent() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    f.keep("a", Some("1"));
    let number = f.renewal(uptime()).unwrap();
    tokio::time::sleep(near_lease()).await;
    f.lane.renewed(number, false, RING, uptime());
    assert_eq!(f.read("a"), some("-"), "the answer came too late");
    f.lane.renewed(77, false, RING, uptime());
    assert_eq!(f.read("a"), some("-"), "nobody has asked for that");
}

#[tokio::test]
async fn what_is_outdated_is_dropped_and_confirmed() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    ["a", "b", "c"].into_iter().for_each(|key| f.keep(key, Some("1")));
    f.renew(false);
    f.outdated(4, &["a", "x"]);
    assert_eq!((f.read("a"), f.read("b")), (some("-"), some("1")));
    f.outdated(5, &[]);
    assert_eq!(f.read("b"), some("-"));
    f.lane.write(&mut f.writer, uptime());
    let frame = f.writer.take();
    let confirmed = frame.fields().any(|field| field == Ok(RequestField::NearConfirmed(5)));
    assert!(confirmed);
    f.lane.write(&mut f.writer, uptime());
    assert!(f.writer.is_empty(), "once");
}

#[tokio::test]
async fn what_was_asked_for_before_this_client_wrote_is_not_kept() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    f.keep("a", Some("1"));
    f.renew(false);
    let before = Instant::now();
    f.copies.wrote(hash("a"));
    assert_eq!(f.read("a"), some("-"));
    f.keep_asked("a", Some("1"), before);
    assert_eq!(f.read("a"), some("-"));
    tokio::time::sleep(Duration::from_millis(1)).await;
    f.keep("a", Some("2"));
    assert_eq!(f.read("a"), some("2"));
    f.copies.wrote_all();
    assert_eq!(f.read("a"), some("-"));
}

#[tokio::test]
async fn copies_from_another_ring_are_not_read() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    f.keep("a", Some("1"));
    f.renew(false);
    f.copies.go_by(RingVersion(4));
    assert_eq!(f.read("a"), some("-"));
    f.keep("a", Some("1"));
    assert_eq!(f.read("a"), some("-"), "it was asked for by the ring before");
}

#[tokio::test]
async fn the_lease_is_asked_for_while_copies_are_read_and_let_go_then() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    assert_eq!(f.renewal(uptime()), None, "there is nothing to read");
    f.keep("a", Some("1"));
    f.renew(false);
    let begun = uptime();
    assert_eq!(f.renewal(begun), None, "not yet");
    assert!(f.renewal(begun + near_lease() / 3).is_some());
    assert_eq!(f.read("a"), some("1"));
    let read = begun + near_lease() / 2;
    assert_eq!(f.renewal(read), None);
    assert!(f.renewal(read + near_lease() * 3).is_some());
    assert_eq!(f.renewal(read + near_lease() * 5), None, "nobody has read for long");
}

#[tokio::test]
async fn bytes_are_bounded_and_the_least_recently_read_goes_first() {
    let mut f = Fixture::new(NearCache::bytes(64 << 10).max_value_bytes(1_000));
    let value = "v".repeat(900);
    f.keep("long", Some(&"v".repeat(1_001)));
    (0..1_000).for_each(|n| f.keep(&format!("k{n}"), Some(&value)));
    f.renew(false);
    assert_eq!((f.read("long"), f.read("k0"), f.read("k999")), (some("-"), some("-"), some(&value)));
    let mut stats = Stats::default();
    f.copies.count(&mut stats);
    assert!(stats.near_bytes <= 64 << 10 && stats.near_copies > 30, "{stats:?}");
}

#[tokio::test]
async fn a_copy_that_is_read_is_asked_for_anew_once_before_it_ends() {
    let mut f = Fixture::new(NearCache::bytes(1 << 20));
    f.keep_asked("a", Some("1"), Instant::now() - Duration::from_secs(9));
    f.renew(false);
    let is_to_renew = |f: &Fixture| match f.find(0, "a") {
        Found::Copy { is_to_renew, .. } => is_to_renew,
        _ => panic!("there is a copy"),
    };
    assert_eq!([is_to_renew(&f), is_to_renew(&f)], [true, false]);
    f.copies.not_renewed(hash("a"));
    assert!(is_to_renew(&f));
}
