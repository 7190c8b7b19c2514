//! Changes as etcd tells them.

use std::collections::VecDeque;

use async_trait::async_trait;
use etcd_client::{EventType, WatchResponse, WatchStream};
use tokio::time::Instant;

use super::reason;
use crate::intervals::{WATCH_PROGRESS, WATCH_SILENCE};
use crate::registry::{Change, Changes, RegistryError};

pub(super) struct EtcdChanges {
    stream: WatchStream,
    /// What has come while the watches were begun.
    early: VecDeque<WatchResponse>,
    /// From when on silence counts: who watches may read for long before it looks for changes.
    heard: Option<Instant>,
    asked: Instant,
}

impl EtcdChanges {
    /// Waits until etcd has begun so many watches on a stream.
    pub(super) async fn begun(mut stream: WatchStream, watches: usize) -> Result<Self, etcd_client::Error> {
        let (mut early, mut begun) = (VecDeque::new(), 0);
        while begun < watches {
            let Some(response) = stream.message().await? else { break };
            // One that is refused ends the stream, with its reason.
            begun += if response.canceled() { watches } else { usize::from(response.created()) };
            early.push_back(response);
        }
        Ok(EtcdChanges { stream, early, heard: None, asked: Instant::now() })
    }

    async fn message(&mut self) -> Result<WatchResponse, RegistryError> {
        if let Some(response) = self.early.pop_front() {
            return Ok(response);
        }
        let heard = *self.heard.get_or_insert_with(Instant::now);
        loop {
            let ask_at = heard.max(self.asked) + WATCH_PROGRESS;
            tokio::select! {
                biased;
                message = self.stream.message() => {
                    self.heard = Some(Instant::now());
                    return message.map_err(|error| watch_error(&error))?.ok_or_else(|| RegistryError::new("etcd closed the watch"));
                }
                () = tokio::time::sleep_until(heard + WATCH_SILENCE) => {
                    return Err(RegistryError::new(format!("the etcd watch was silent for {WATCH_SILENCE:?}")));
                }
                () = tokio::time::sleep_until(ask_at) => {
                    self.asked = Instant::now();
                    self.stream.request_progress().await.map_err(|error| watch_error(&error))?;
                }
            }
        }
    }
}

#[async_trait]
impl Changes for EtcdChanges {
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError> {
        loop {
            let response = self.message().await?;
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

/// With what etcd's client says of it: its errors are no part of ours.
pub(super) fn watch_error(error: &etcd_client::Error) -> RegistryError {
    RegistryError::new(format!("the etcd watch broke: {}", reason(error)))
}
