//! What a client can be told, with its defaults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peanut_proto::bounds::Bounds;
use peanut_proto::intervals::Windows;
use peanut_proto::limits::is_traceparent;

use crate::near::NearCopies;
use crate::tls::ReadTls;
use crate::token::Token;

/// How long a call may take.
pub(crate) const DEADLINE: Bounds = Bounds::new(Duration::from_millis(1), Duration::from_secs(24 * 3600));

/// Settings that every part of the client may look at.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How long an operation may take.
    pub(crate) deadline: Duration,
    /// How long connecting to a node may take.
    pub(crate) connect_timeout: Duration,
    /// Lanes to each node, each on a connection of its own; `None`: as the size of the fleet has it.
    pub(crate) lanes_per_node: Option<usize>,
    /// Operations in flight to each node.
    pub(crate) operations_per_node: usize,
    /// Bytes that may wait to be sent to each node.
    pub(crate) queued_bytes_per_node: usize,
    /// Unary calls only.
    pub(crate) unary: bool,
    /// Keys that `get_many` asks of one node at once.
    pub(crate) keys_in_flight: usize,
    /// Whom nodes ask in the place of one that is down.
    pub(crate) failover: Failover,
    /// For how long after a change of the ring previous owners are asked for what they had.
    pub(crate) hand_over: Duration,
    /// What it does for those who have not heard of a change of the ring.
    pub(crate) windows: Windows,
    /// The fleet's name, where nodes have names of their own: they are told for whom a call is meant.
    pub(crate) fleet: Option<Arc<str>>,
    /// Loads of the application's that may run at a time where no node can be asked.
    pub(crate) uncached_loads: usize,
    /// Who this client is, to the nodes.
    pub(crate) identity: Arc<Identity>,
    /// Says which trace the caller is in.
    pub(crate) trace: Option<TraceHook>,
    /// What it shows to be let in.
    pub(crate) token: Option<Token>,
    /// Its near copies, where it keeps some.
    pub(crate) near: Option<Arc<NearCopies>>,
    pub(crate) tls: Option<ReadTls>,
}

/// Gives the trace context of the caller.
#[derive(Clone)]
pub(crate) struct TraceHook(pub(crate) Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl std::fmt::Debug for TraceHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TraceHook")
    }
}

/// What becomes of operations on keys whose owner cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failover {
    /// The successor is asked, and keeps what it loads for a short time (`failover_ttl`). Clients that
    /// disagree about a node's health may see such a copy outlive a write by at most that time.
    #[default]
    Bounded,
    /// As [`Bounded`](Self::Bounded), and every write is done at the successor as well, so that there is no
    /// such time. A write costs twice as much.
    Strict,
    /// Nobody is asked: the operation fails.
    Off,
}

/// Names a client and each opening of its lanes.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) client_id: u64,
    epochs: AtomicU64,
    hints: AtomicU64,
}

impl Identity {
    pub(crate) fn random() -> Self {
        Identity { client_id: fastrand::u64(1..), epochs: AtomicU64::new(0), hints: AtomicU64::new(0) }
    }

    /// The number of the next hint that it stores.
    pub(crate) fn next_hint(&self) -> u64 {
        self.hints.fetch_add(1, Ordering::Relaxed)
    }

    /// Greater than all before it.
    pub(crate) fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            deadline: Duration::from_secs(1),
            connect_timeout: Duration::from_millis(500),
            lanes_per_node: None,
            operations_per_node: 64 << 10,
            queued_bytes_per_node: 64 << 20,
            unary: false,
            keys_in_flight: 1024,
            failover: Failover::default(),
            hand_over: Duration::from_secs(60),
            windows: Windows::FLEET,
            fleet: None,
            uncached_loads: 64,
            identity: Arc::new(Identity::random()),
            trace: None,
            token: None,
            near: None,
            tls: None,
        }
    }
}

impl Config {
    /// Whether nobody else can read what is said to nodes.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The trace context of the caller; empty: none.
    pub(crate) fn traceparent(&self) -> String {
        self.trace
            .as_ref()
            .and_then(|hook| hook.0())
            .filter(|it| is_traceparent(it.as_bytes()))
            .unwrap_or_default()
    }

    /// How long a node may be silent on a call before it is asked whether it is there at all. A slow load
    /// must not look like a dead node, nor a dead node eat the whole deadline.
    pub(crate) fn suspect_after(&self) -> Duration {
        self.deadline / 4
    }

    /// How long a probe may take.
    pub(crate) fn probe_timeout(&self) -> Duration {
        (self.deadline / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))
    }
}
