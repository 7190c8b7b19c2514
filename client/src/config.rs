//! What a client can be told, with its defaults.

use std::time::Duration;

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
        }
    }
}

impl Config {
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
