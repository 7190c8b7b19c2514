//! Counts of what was asked of a proxy, by the protocol.

use std::sync::atomic::{AtomicU64, Ordering};

/// What programs reach a proxy by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Redis,
    Http,
    Grpc,
    Page,
}

impl Protocol {
    pub(crate) const ALL: [Protocol; 4] = [Protocol::Redis, Protocol::Http, Protocol::Grpc, Protocol::Page];

    /// As metrics have it.
    pub(crate) fn label(self) -> [(&'static str, &'static str); 1] {
        let name = match self {
            Protocol::Redis => "redis",
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Page => "page",
        };
        [("protocol", name)]
    }
}

/// Counts of one protocol.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// Counts of all.
#[derive(Debug, Default)]
pub(crate) struct Counters([Counts; 4]);

impl Counters {
    pub(crate) fn of(&self, protocol: Protocol) -> &Counts {
        &self.0[protocol as usize]
    }

    /// So many requests were answered, and so many of those with an error.
    pub(crate) fn answered(&self, protocol: Protocol, requests: usize, errors: usize) {
        let counts = self.of(protocol);
        counts.requests.fetch_add(requests as u64, Ordering::Relaxed);
        counts.errors.fetch_add(errors as u64, Ordering::Relaxed);
    }
}
