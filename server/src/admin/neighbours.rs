//! Whether the other nodes of the ring can be reached: looked at once a second while somebody looks at the
//! page.
//!
//! A lease takes seconds to run out; a port that nobody listens on any more is seen at once. A connection is
//! opened and closed, no more, so that no credentials are needed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::node::Node;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const REACHED_WITHIN: Duration = Duration::from_millis(500);
/// A page that has asked so lately is looked at still.
const ATTENTION: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_millis(100);

/// Which addresses were reached.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    reached: HashMap<String, bool>,
}

impl Neighbours {
    /// Whether this address was reached, as far as was looked; asking has it looked at for a while.
    pub(super) fn reached(&self, addr: &str) -> Option<bool> {
        let mut state = self.state.lock();
        state.asked = Some(Instant::now());
        state.reached.get(addr).copied()
    }

    /// Looks for as long as it is polled.
    pub(super) async fn look(self: Arc<Self>, node: Node) {
        loop {
            let is_watched = self.state.lock().asked.is_some_and(|asked| asked.elapsed() < ATTENTION);
            if !is_watched {
                self.state.lock().reached.clear();
                sleep(IDLE).await;
                continue;
            }
            let discovered = node.membership().discovered.as_ref();
            let ring = discovered.map(|discovered| discovered.borrow().view.ring.clone());
            let addrs = ring.iter().flat_map(|ring| &ring.members).map(|member| member.addr.clone());
            let looks = addrs.map(async |addr| {
                let reached = timeout(REACHED_WITHIN, TcpStream::connect(&addr)).await;
                (addr, matches!(reached, Ok(Ok(_))))
            });
            let reached = join_all(looks).await.into_iter().collect();
            self.state.lock().reached = reached;
            sleep(LOOK_EVERY).await;
        }
    }
}
