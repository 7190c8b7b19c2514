//! The origin of a scenario: a version for each key, which a load reads and a writer raises.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use peanut_proto::clock::uptime;
use peanut_simulation::history::{History, Kind, Op};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::KEYS;

/// Serves `GET` and `POST` of `/{key}`.
#[derive(Debug)]
pub(super) struct Origin {
    /// Where a key is, with `{key}` in its place.
    pub(super) url: String,
    pub(super) versions: Arc<Versions>,
    _serving: AbortOnDropHandle<()>,
}

/// What the origin has, and was asked.
#[derive(Debug)]
pub(super) struct Versions {
    versions: Vec<AtomicU64>,
    loads: Vec<AtomicU64>,
    /// When each version was made.
    pub(super) made: History,
}

impl Origin {
    /// Every key has version zero.
    pub(super) async fn start() -> Self {
        let zeros = || (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let versions = Arc::new(Versions { versions: zeros(), loads: zeros(), made: History::default() });
        let load = async |State(versions): State<Arc<Versions>>, Path(key): Path<u32>| {
            versions.loads[key as usize].fetch_add(1, Ordering::Relaxed);
            let version = versions.version(key);
            // The origin takes its time now and then, so that a write comes in between.
            sleep(Duration::from_millis(if fastrand::u8(..10) == 0 { fastrand::u64(1..100) } else { 0 }))
                .await;
            version.to_string()
        };
        let raise = async |State(versions): State<Arc<Versions>>, Path(key): Path<u32>| {
            let begun = uptime();
            let version = versions.versions[key as usize].fetch_add(1, Ordering::SeqCst) + 1;
            // Whoever writes may not live to say so.
            versions.made.add(Op { key, kind: Kind::WriteFailed(version), begun, ended: uptime() });
            version.to_string()
        };
        let router = Router::new().route("/{key}", get(load).post(raise)).with_state(versions.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of any number");
        let url = format!("http://{}/{{key}}", listener.local_addr().expect("it listens"));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Origin { url, versions, _serving: AbortOnDropHandle::new(serving) }
    }
}

impl Versions {
    /// The present version of a key; each write raises it by one.
    pub(super) fn version(&self, key: u32) -> u64 {
        self.versions[key as usize].load(Ordering::SeqCst)
    }

    /// How often a key was loaded.
    pub(super) fn loads(&self, key: u32) -> u64 {
        self.loads[key as usize].load(Ordering::Relaxed)
    }
}
