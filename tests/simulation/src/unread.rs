//! Whether nodes read what is stored for them: a hint for a node that has held one lease for long must be
//! gone.
//!
//! Writers wait for it, so that a node whose watch stands still costs failing writes and no wrong answer,
//! which no history shows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::membership::{Key, Keys};
use peanut_proto::registry::{KeyRange, LocalRegistry, PageOptions, Registry as _};
use tokio::time::sleep;

use super::world::time;

/// A watch that lags, a disk that stands still, and a member that is found to be alone are over by then.
const LONGEST: Duration = Duration::from_secs(6);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Hints that were not read, as sentences.
pub(super) type Unread = Arc<Mutex<Vec<String>>>;

/// Looks into the registry for ever.
pub(super) async fn watch_hints(registry: LocalRegistry, unread: Unread) {
    let keys = Keys::new("default");
    let all = KeyRange::prefix("/peanut/default/undelivered/");
    // By hint and lease, since when they have been seen together.
    let mut seen = HashMap::<(String, i64), Duration>::new();
    loop {
        sleep(LOOK_AGAIN).await;
        let Ok(page) = registry.page(&all, PageOptions { limit: 0, ..PageOptions::at(0) }).await else {
            continue;
        };
        let (now, mut still) = (time(), HashMap::new());
        for entry in page.entries {
            let Some(Key::Hint { node, .. }) = keys.parse(&entry.key) else { continue };
            let Ok(Some(live)) = registry.get(&keys.live(node)).await else { continue };
            let hint = (entry.key, live.revision);
            let since = seen.get(&hint).copied().unwrap_or(now);
            if now > since + LONGEST {
                unread.lock().push(format!("{} was not read in {:.1?}", hint.0, now - since));
            } else {
                still.insert(hint, since);
            }
        }
        seen = still;
    }
}
