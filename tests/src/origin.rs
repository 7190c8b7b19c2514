//! An origin over HTTP that counts what it is asked, by key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// An origin. A key that begins with `missing` is not found, one with `broken` is an error, any other has the
/// value `value of <key>`, which lives two seconds where the key begins with `for-2s` and is followed by
/// zeros up to 8 MiB where the key begins with `8-mib`.
#[derive(Debug)]
pub struct Origin {
    url: String,
    shared: Arc<Shared>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    asked: Mutex<HashMap<String, u64>>,
    delay: Duration,
}

impl Origin {
    /// Starts an origin that takes `delay` for every answer.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub async fn start(delay: Duration) -> Self {
        let shared = Arc::new(Shared { asked: Mutex::default(), delay });
        let router =
            Router::new().route("/{group}/{key}", axum::routing::get(answer)).with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of any number");
        let url = format!("http://{}/{{group}}/{{key}}", listener.local_addr().expect("it listens"));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Origin { url, shared, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The URL for an `http` loader.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How often it was asked for a key.
    pub fn asked_for(&self, key: &str) -> u64 {
        self.asked().get(key).copied().unwrap_or_default()
    }

    /// How often it was asked, by key.
    pub fn asked(&self) -> HashMap<String, u64> {
        self.shared.asked.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path((_group, key)): Path<(String, String)>,
) -> Result<([(&'static str, &'static str); 1], Vec<u8>), StatusCode> {
    *shared.asked.lock().unwrap_or_else(|e| e.into_inner()).entry(key.clone()).or_default() += 1;
    tokio::time::sleep(shared.delay).await;
    match &key {
        key if key.starts_with("missing") => Err(StatusCode::NOT_FOUND),
        key if key.starts_with("broken") => Err(StatusCode::INTERNAL_SERVER_ERROR),
        key => {
            let max_age = if key.starts_with("for-2s") { "max-age=2" } else { "" };
            let mut value = format!("value of {key}").into_bytes();
            if key.starts_with("8-mib") {
                value.resize(8 << 20, 0);
            }
            Ok(([("cache-control", max_age)], value))
        }
    }
}
