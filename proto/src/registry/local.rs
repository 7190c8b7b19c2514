//! The registry of one process: a map with revisions, leases and watchers.
//!
//! It keeps every change since it was made, which is a few per node that comes or goes. Leases end when
//! somebody looks: every call and every waiting watcher first drops what has run out, so no task is
//! needed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Change, Changes, Entry, KeyRange, LeaseId, Page, PageOptions, Registry, RegistryError};

/// A registry inside the process. Clones share it.
#[derive(Clone, Debug)]
pub struct LocalRegistry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Carries the newest revision to the watchers.
    revision: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, (Entry, Option<LeaseId>)>,
    history: Vec<Change>,
    leases: BTreeMap<LeaseId, Lease>,
    revision: i64,
    last_lease: i64,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl LocalRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        let state = State { revision: 1, ..State::default() };
        LocalRegistry {
            shared: Arc::new(Shared { state: Mutex::new(state), revision: watch::Sender::new(1) }),
        }
    }

    /// An empty registry in the place of this one, as if its data had been lost. It does not know this one's
    /// leases, nor gives another lease the number of one of them: etcd's are made of the time.
    #[must_use]
    pub fn emptied(&self) -> Self {
        let emptied = LocalRegistry::new();
        emptied.shared.state.lock().last_lease = self.shared.state.lock().last_lease;
        emptied
    }

    /// Runs `change` on what is current and wakes the watchers.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.shared.state.lock();
        state.end_leases(Instant::now());
        let result = change(&mut state);
        self.shared
            .revision
            .send_if_modified(|seen| std::mem::replace(seen, state.revision) != state.revision);
        result
    }
}

/// What a registry has from the beginning, for ever.
impl FromIterator<(String, Vec<u8>)> for LocalRegistry {
    fn from_iter<I: IntoIterator<Item = (String, Vec<u8>)>>(entries: I) -> Self {
        let registry = LocalRegistry::new();
        registry.change(|state| entries.into_iter().for_each(|(key, value)| state.put(&key, value, None)));
        registry
    }
}

impl Default for LocalRegistry {
    fn default() -> Self {
        LocalRegistry::new()
    }
}

impl State {
    fn put(&mut self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) {
        self.revision += 1;
        let entry = Entry { key: key.to_owned(), value: value.clone(), revision: self.revision };
        self.entries.insert(key.to_owned(), (entry, lease));
        self.history.push(Change { key: key.to_owned(), value: Some(value), revision: self.revision });
    }

    fn delete(&mut self, key: &str) {
        if self.entries.remove(key).is_some() {
            self.revision += 1;
            self.history.push(Change { key: key.to_owned(), value: None, revision: self.revision });
        }
    }

    fn end_lease(&mut self, id: LeaseId) {
        self.leases.remove(&id);
        let keys = self.entries.values().filter(|(_, lease)| *lease == Some(id));
        for key in keys.map(|(entry, _)| entry.key.clone()).collect::<Vec<_>>() {
            self.delete(&key);
        }
    }

    fn end_leases(&mut self, now: Instant) {
        let ended = self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id);
        for id in ended.collect::<Vec<_>>() {
            self.end_lease(id);
        }
    }
}

#[async_trait]
impl Registry for LocalRegistry {
    fn keeps_all(&self) -> bool {
        true
    }

    /// Reads what is current, whatever revision is asked for: nothing but the changes is kept of former ones,
    /// and these come with a watch.
    async fn page(&self, range: &KeyRange, options: PageOptions) -> Result<Page, RegistryError> {
        let most = if options.limit == 0 { usize::MAX } else { options.limit };
        Ok(self.change(|state| {
            let from = String::from_utf8_lossy(range.from()).into_owned();
            let mut found = state.entries.range(from..).take_while(|(key, _)| range.contains(key));
            let entries: Vec<_> = found.by_ref().take(most).map(|(_, (entry, _))| entry.clone()).collect();
            let last = entries.last().filter(|_| found.next().is_some());
            let next = last.map(|last| range.after(last.key.as_bytes()));
            Page { revision: state.revision, entries, next }
        }))
    }

    async fn watch(&self, ranges: &[KeyRange]) -> Result<Box<dyn Changes>, RegistryError> {
        let revision = self.shared.revision.subscribe();
        let from = self.change(|state| state.revision) + 1;
        Ok(Box::new(LocalChanges { registry: self.clone(), ranges: ranges.to_vec(), from, revision }))
    }

    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Result<(), RegistryError> {
        self.change(|state| {
            if lease.is_some_and(|id| !state.leases.contains_key(&id)) {
                return Err(RegistryError::new("the lease is gone"));
            }
            state.put(key, value, lease);
            Ok(())
        })
    }

    async fn swap(&self, key: &str, expected: i64, value: Vec<u8>) -> Result<bool, RegistryError> {
        Ok(self.change(|state| {
            let stands = state.entries.get(key).map_or(0, |(entry, _)| entry.revision) == expected;
            if stands {
                state.put(key, value, None);
            }
            stands
        }))
    }

    async fn delete_if(&self, key: &str, expected: i64) -> Result<bool, RegistryError> {
        Ok(self.change(|state| {
            let stands = state.entries.get(key).is_some_and(|(entry, _)| entry.revision == expected);
            if stands {
                state.delete(key);
            }
            stands
        }))
    }

    async fn delete(&self, key: &str) -> Result<(), RegistryError> {
        self.change(|state| state.delete(key));
        Ok(())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, RegistryError> {
        Ok(self.change(|state| {
            state.last_lease += 1;
            let id = LeaseId(state.last_lease);
            state.leases.insert(id, Lease { ttl, ends: Instant::now() + ttl });
            id
        }))
    }

    async fn renew(&self, lease: LeaseId) -> Result<bool, RegistryError> {
        Ok(self.change(|state| match state.leases.get_mut(&lease) {
            Some(lease) => {
                lease.ends = Instant::now() + lease.ttl;
                true
            }
            None => false,
        }))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RegistryError> {
        self.change(|state| state.end_lease(lease));
        Ok(())
    }
}

struct LocalChanges {
    registry: LocalRegistry,
    ranges: Vec<KeyRange>,
    from: i64,
    revision: watch::Receiver<i64>,
}

#[async_trait]
impl Changes for LocalChanges {
    async fn next(&mut self) -> Result<Vec<Change>, RegistryError> {
        loop {
            self.revision.borrow_and_update();
            let (changes, revision, lease_ends) = self.registry.change(|state| {
                let first = state.history.partition_point(|change| change.revision < self.from);
                let is_watched =
                    |change: &&Change| self.ranges.iter().any(|range| range.contains(&change.key));
                let changes = state.history[first..].iter().filter(is_watched);
                let lease_ends = state.leases.values().map(|lease| lease.ends).min();
                (changes.cloned().collect::<Vec<_>>(), state.revision, lease_ends)
            });
            self.from = revision + 1;
            if !changes.is_empty() {
                return Ok(changes);
            }
            let lease_end = async {
                match lease_ends {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.revision.changed() => {}
                () = lease_end => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, value: Option<&str>, revision: i64) -> Change {
        Change { key: key.into(), value: value.map(|v| v.as_bytes().to_vec()), revision }
    }

    #[tokio::test]
    async fn a_swap_names_the_revision_it_replaces() {
        let registry = LocalRegistry::new();
        assert!(registry.swap("/a", 0, b"1".to_vec()).await.unwrap());
        assert!(!registry.swap("/a", 0, b"2".to_vec()).await.unwrap());
        let at = registry.load("/a").await.unwrap().entries[0].revision;
        assert!(registry.swap("/a", at, b"3".to_vec()).await.unwrap());
        assert_eq!(registry.load("/").await.unwrap().entries[0].value, b"3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_sees_changes_from_when_it_began_and_the_end_of_leases() {
        let registry = LocalRegistry::new();
        registry.put("/p/before", b"x".to_vec(), None).await.unwrap();
        let mut changes = registry.watch(&[KeyRange::prefix("/p/")]).await.unwrap();
        let lease = registry.grant(Duration::from_secs(5)).await.unwrap();
        registry.put("/p/leased", b"y".to_vec(), Some(lease)).await.unwrap();
        registry.put("/elsewhere", b"z".to_vec(), None).await.unwrap();

        assert_eq!(changes.next().await.unwrap(), [change("/p/leased", Some("y"), 3)]);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(registry.renew(lease).await.unwrap());
        let begun = Instant::now();
        assert_eq!(changes.next().await.unwrap(), [change("/p/leased", None, 5)]);
        assert_eq!(begun.elapsed().as_secs(), 5);
        assert!(!registry.renew(lease).await.unwrap());
        assert!(registry.put("/p/leased", b"late".to_vec(), Some(lease)).await.is_err());
    }

    #[tokio::test]
    async fn an_emptied_registry_takes_no_lease_for_another() {
        let registry = LocalRegistry::new();
        let before = registry.grant(Duration::from_secs(5)).await.unwrap();
        let emptied = registry.emptied();
        let after = emptied.grant(Duration::from_secs(5)).await.unwrap();
        assert!(before != after && !emptied.renew(before).await.unwrap());
    }

    #[tokio::test]
    async fn a_range_is_read_in_pages_and_a_key_alone() {
        let registry = LocalRegistry::new();
        for key in ["/p/a", "/p/ab", "/p/b", "/p/c", "/q"] {
            registry.put(key, b"x".to_vec(), None).await.unwrap();
        }
        let (mut rest, mut read) = (Some(KeyRange::prefix("/p/")), Vec::new());
        while let Some(range) = rest {
            let page =
                registry.page(&range, PageOptions { limit: 3, ..PageOptions::default() }).await.unwrap();
            read.push(page.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>());
            rest = page.next;
        }
        assert_eq!(read, [vec!["/p/a", "/p/ab", "/p/b"], vec!["/p/c"]]);
        assert_eq!(registry.get("/p/a").await.unwrap().unwrap().key, "/p/a");
        assert_eq!(registry.get("/p").await.unwrap(), None);
        assert_eq!(registry.count(&KeyRange::prefix("/p/a")).await.unwrap(), 2);
        let stale: Vec<_> =
            registry.load("/p/a").await.unwrap().entries.into_iter().map(|e| (e.key, e.revision)).collect();
        registry.put("/p/ab", b"y".to_vec(), None).await.unwrap();
        registry.delete_all_if(&stale).await.unwrap();
        assert_eq!(
            registry.count(&KeyRange::prefix("/p/a")).await.unwrap(),
            1,
            "what has changed since stays"
        );
    }
}
