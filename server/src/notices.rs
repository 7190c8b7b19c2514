//! Logs what an operator should know of the fleet: once when it begins, and once when it is over.

use std::collections::BTreeSet;
use std::time::Duration;

use peanut_proto::discovery::Discovered;
use peanut_proto::membership::Notice;
use tokio::sync::watch;
use tokio::time::sleep;

/// What changes within this time is looked at once: nodes that are started together join one by one.
const SETTLED: Duration = Duration::from_secs(1);

/// Logs for ever.
pub(crate) async fn tell(mut discovered: watch::Receiver<Discovered>) {
    let mut told = BTreeSet::new();
    loop {
        sleep(SETTLED).await;
        let view = discovered.borrow_and_update().view.clone();
        let now: BTreeSet<Notice> = view.notices().into_iter().collect();
        for (notice, is_new) in changes(&told, &now) {
            if is_new {
                tracing::warn!("{notice}");
            } else {
                tracing::info!("no longer: {notice}");
            }
        }
        told = now;
        if discovered.changed().await.is_err() {
            // Registration ends with discovery, and this with it.
            return std::future::pending().await;
        }
    }
}

/// What is new, and what is over.
fn changes<'a>(
    before: &'a BTreeSet<Notice>,
    now: &'a BTreeSet<Notice>,
) -> impl Iterator<Item = (&'a Notice, bool)> {
    before
        .difference(now)
        .map(|notice| (notice, false))
        .chain(now.difference(before).map(|notice| (notice, true)))
}

#[cfg(test)]
mod tests {
    use peanut_proto::membership::SharedAddress;

    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let notice = |addr: &str| Notice::SharedAddress(SharedAddress { addr: addr.into(), nodes: vec![] });
        let set = |addrs: &[&str]| addrs.iter().map(|addr| notice(addr)).collect::<BTreeSet<_>>();
        let told = |before: &[&str], now: &[&str]| {
            changes(&set(before), &set(now))
                .map(|(notice, is_new)| (notice.clone(), is_new))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&[], &["a", "b"]), [(notice("a"), true), (notice("b"), true)]);
        assert_eq!(told(&["a", "b"], &["a", "b"]), []);
        assert_eq!(told(&["a", "b"], &["b", "c"]), [(notice("a"), false), (notice("c"), true)]);
    }
}
