//! What stands in etcd is doubted: bad, long and countless records cost themselves, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peanut_client::Client;
use peanut_proto::membership::{FORMAT, Hint, Keys, RingDocument};
use peanut_proto::numbers::RingVersion;
use peanut_proto::registry::Registry as _;
use peanut_tests::{Etcd, Origin, group_from};
use tokio::task::JoinHandle;

mod groups;
mod invalidations;
mod rings;

const LONG: Duration = Duration::from_secs(10);

/// Two groups of that origin.
fn two_groups(origin: &Origin) -> String {
    group_from("g", origin.url(), "") + &group_from("other", origin.url(), "")
}

fn keys() -> Keys {
    Keys::new("default")
}

async fn put(etcd: &Etcd, key: &str, value: impl Into<Vec<u8>>) {
    etcd.registry().put(key, value.into(), None).await.unwrap();
}

async fn stored_ring(etcd: &Etcd) -> Option<RingDocument> {
    RingDocument::decode(&etcd.registry().get(&keys().ring()).await.unwrap()?.value).ok()
}

/// An invalidation of these keys, or of the whole group.
fn hint(of: Option<Vec<Vec<u8>>>) -> Vec<u8> {
    Hint { format: FORMAT, keys: of, ring_version: RingVersion(1), at_ms: 0 }.encode()
}

/// Writes many keys at once.
async fn put_many(etcd: &Etcd, entries: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let entries: Vec<_> = entries.into_iter().collect();
    // A transaction has at most 128 operations, and a request 1.5 MiB.
    let per_request = (1 << 20) / entries.iter().map(|(_, value)| value.len() + 200).max().unwrap_or(1);
    for some in entries.chunks(per_request.clamp(1, 128)) {
        let puts = some.iter().map(|(key, value)| etcd_client::TxnOp::put(key.as_str(), value.clone(), None));
        client.txn(etcd_client::Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
}

async fn text(client: &Client, group: &str, key: &str) -> String {
    let value = client.group(group).get(key).await.unwrap_or_else(|error| panic!("{group}/{key}: {error}"));
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

/// Gets, one after the other by each of four callers, until it is stopped: how many there were, and the
/// errors.
struct Gets(Arc<AtomicBool>, Vec<JoinHandle<(u64, Vec<String>)>>);

impl Gets {
    fn start(client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (stop, group) = (stop.clone(), client.group("scores"));
            tokio::spawn(async move {
                let (mut gets, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let key = ["Tom", "Jack", "Sam", "nobody"][fastrand::usize(..4)];
                    errors.extend(group.get(key).await.err().map(|error| error.to_string()));
                    gets += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (gets, errors)
            })
        };
        Gets(stop.clone(), (0..4).map(caller).collect())
    }

    async fn none_failed(self) {
        self.0.store(true, Ordering::Relaxed);
        for caller in self.1 {
            let (gets, errors) = caller.await.unwrap();
            assert!(
                gets > 0 && errors.is_empty(),
                "{gets} gets, {} errors: {:?}",
                errors.len(),
                errors.first()
            );
        }
    }
}
