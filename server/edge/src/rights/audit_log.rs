//! What the audit log has of calls: refusals, and writes of operators. A line for the first of each kind,
//! then one in ten seconds at most that says how many there were.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use peanut_proto::audit::TARGET;
use tokio::time::Instant;

/// Between two lines of the same kind.
const EVERY: Duration = Duration::from_secs(10);
/// Kinds that are kept apart: by token, or by address where none is known. All others share one entry.
const MOST: usize = 1000;

/// Calls since the last line, by kind. Strangers, of whom there may be many, do not hide what operators
/// write.
#[derive(Debug, Default)]
pub(super) struct AuditLog {
    refused: Windows,
    written: Windows,
}

/// So much is logged of a name that no group may have.
const MAX_GROUP_BYTES: usize = 256;

#[derive(Debug, Default)]
struct Windows(Mutex<HashMap<String, Window>>);

#[derive(Clone, Copy, Debug)]
struct Window {
    told: Instant,
    untold: u64,
}

impl AuditLog {
    /// Logs that a caller was refused, unless that was logged of late. `token` is a name, never a secret;
    /// empty where none is known.
    pub(super) fn refused(&self, token: &str, action: &str, group: &str, peer: Option<IpAddr>) {
        let who = if token.is_empty() {
            peer.map(|ip| ip.to_string()).unwrap_or_default()
        } else {
            token.to_owned()
        };
        let Some(untold) = self.refused.count(who, Instant::now()) else { return };
        let peer = peer.map(tracing::field::display);
        // It is the caller's text still, of any length.
        let group = &group[..group.floor_char_boundary(MAX_GROUP_BYTES)];
        if token.is_empty() {
            tracing::warn!(target: TARGET, peer, untold, "refused: {action}");
        } else {
            tracing::warn!(target: TARGET, token, action, group, untold, "refused: the token has no right to it");
        }
    }

    /// Logs that an operator has written a key, or all of a group, unless one of its writes of that kind was
    /// logged of late.
    pub(super) fn wrote(
        &self,
        token: &str,
        action: &str,
        group: &str,
        key: Option<&[u8]>,
        peer: Option<IpAddr>,
    ) {
        let kind = format!("{token}\0{action}\0{group}");
        let Some(untold) = self.written.count(kind, Instant::now()) else { return };
        let (key, peer) = (key.map(|key| key.escape_ascii().to_string()), peer.map(tracing::field::display));
        tracing::info!(target: TARGET, token, peer, action, group, key, untold, "an operator has written");
    }
}

impl Windows {
    /// How many were not told of since the last line, where it is time for one.
    fn count(&self, who: String, now: Instant) -> Option<u64> {
        let mut of = self.0.lock();
        if of.len() >= MOST && !of.contains_key(&who) {
            of.retain(|_, window| now.saturating_duration_since(window.told) < EVERY);
        }
        let who = if of.len() >= MOST && !of.contains_key(&who) { String::new() } else { who };
        match of.get_mut(&who) {
            Some(window) if now.saturating_duration_since(window.told) < EVERY => {
                window.untold += 1;
                None
            }
            Some(window) => {
                let untold = std::mem::take(&mut window.untold);
                window.told = now;
                Some(untold)
            }
            None => {
                of.insert(who, Window { told: now, untold: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_at_once_and_then_one_in_ten_seconds_with_the_number_of_others() {
        let (log, now) = (Windows::default(), Instant::now());
        let count = |who: &str, after: u64| log.count(who.to_owned(), now + Duration::from_secs(after));
        assert_eq!(count("app", 0), Some(0));
        assert_eq!((count("app", 1), count("app", 9)), (None, None));
        assert_eq!(count("other", 9), Some(0), "tokens do not hide each other");
        assert_eq!((count("app", 10), count("app", 11)), (Some(2), None));
        assert_eq!(count("app", 60), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_without_number_take_no_memory_without_bound() {
        let (log, now) = (Windows::default(), Instant::now());
        let lines = (0..5 * MOST).filter(|n| log.count(n.to_string(), now).is_some()).count();
        assert!(lines <= MOST + 1 && log.0.lock().len() <= MOST + 1, "{lines}");
    }
}
