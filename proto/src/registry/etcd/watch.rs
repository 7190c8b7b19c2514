//! Changes as etcd tells them.

use async_trait::async_trait;
use etcd_client::{EventType, WatchStream};
use tokio::time::Instant;

use super::reason;
use crate::intervals::{WATCH_PROGRESS, WATCH_SILENCE};
use crate::registry::{Change, Changes, RegistryError};

pub(super) struct EtcdChanges {
    pub(super) stream: WatchStream,
    pub(super) heard: Instant,
    pub(super) asked: Instant,
}

#[async_trait]
impl Changes for EtcdChanges {
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError> {
        loop {
            let ask_at = self.heard.max(self.asked) + WATCH_PROGRESS;
            let message = tokio::select! {
                message = self.stream.message() => message,
                () = tokio::time::sleep_until(self.heard + WATCH_SILENCE) => {
                    return Err(RegistryError::new(format!("the etcd watch was silent for {WATCH_SILENCE:?}")));
                }
                () = tokio::time::sleep_until(ask_at) => {
                    self.asked = Instant::now();
                    self.stream.request_progress().await.map_err(watch_error)?;
                    continue;
                }
            };
            self.heard = Instant::now();
            let Some(response) = message.map_err(watch_error)? else {
                return Err(RegistryError::new("etcd closed the watch"));
            };
            if response.compact_revision() > 0 {
                let at = response.compact_revision();
                return Err(RegistryError::new(format!(
                    "etcd has compacted what was to be watched, up to {at}"
                )));
            }
            if response.canceled() {
                let why = response.cancel_reason();
                return Err(RegistryError::new(format!("etcd cancelled the watch: {why}")));
            }
            let changes = response.events().iter().filter_map(|event| {
                let kv = event.kv()?;
                Some(Change {
                    key: std::str::from_utf8(kv.key()).ok()?.to_owned(),
                    value: (event.event_type() == EventType::Put).then(|| kv.value().to_vec()),
                    revision: kv.mod_revision(),
                })
            });
            let changes: Vec<Change> = changes.collect();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

pub(super) fn watch_error(error: etcd_client::Error) -> RegistryError {
    RegistryError::new(format!("the etcd watch broke: {}", reason(&error))).with_source(error)
}
