//! Marks of starts.

use std::iter::once;

use super::*;
use crate::lineage::Lineage;
use crate::persistence::{Directories, Persistence, PersistenceOptions};

/// A node's group on the directory, once the process before has let go of it.
fn begin(data_dir: &TempDir) -> (Arc<Cache>, Persistence) {
    let group = || Group::new("g", StaticLoader::default()).max_ttl(HOUR);
    loop {
        let options = PersistenceOptions {
            data_dir: data_dir.path().to_owned(),
            seal_interval: Duration::from_secs(10),
            restore_rate: u64::MAX,
        };
        let directories = Directories::take(options, "n", &[group()]);
        if let Some(journal) = directories.journal("g") {
            let cache = Arc::new(Cache::alone_with(group(), Some(journal)));
            let persistence = directories.start(once(&cache)).unwrap();
            return (cache, persistence);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn segments(data_dir: &TempDir) -> usize {
    let names = fs::read_dir(data_dir.path().join("g")).unwrap().map(|file| file.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().contains('.')).count()
}

/// A process that is killed between the two would leave them to the next one under its own mark.
#[tokio::test]
async fn what_is_of_another_start_is_gone_before_the_mark_of_this_one_is_made() {
    let data_dir = tempfile::tempdir().unwrap();
    let (cache, mut persistence) = begin(&data_dir);
    persistence.take_lineage(Lineage { found: None, mine: 1 }).await;
    let now = Instant::now();
    let entry =
        Entry { value: None, loaded: now, expires: now + HOUR, stamp: RingVersion(3), origin: Origin::Owner };
    cache.store_loaded(&"k".into(), &entry);
    persistence.finish(now + HOUR).await;
    assert_eq!(segments(&data_dir), 1);
    // There was a start elsewhere since.
    let (_cache, mut persistence) = begin(&data_dir);
    persistence.take_lineage(Lineage { found: Some(2), mine: 3 }).await;
    assert_eq!(segments(&data_dir), 0);
}
