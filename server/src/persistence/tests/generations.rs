//! Groups that were cleared: what was written since comes back, and nothing else.

use super::*;

const CLEARED: Generation = Generation(5_000);

/// A life that is told of a generation before its entries come back, as a node is by the registry; the
/// writer has its turn before that, or after.
fn told(directory: &TempDir, generation: Generation, writer_is_first: bool) -> Life {
    let before = |writer: &mut Writer| {
        drop(writer.cache.clear_to(generation, RingVersion(3)));
        if writer_is_first {
            writer.tick(Instant::now());
        }
    };
    let mut life = Life::after(directory, CHECK, (64 << 20, 64 << 20), before);
    life.tick();
    life
}

/// A directory of a life that was cleared, with what it has loaded before and since.
fn cleared(is_stopped: bool) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut life = Life::on(&directory);
    life.store("before", "1");
    life.tick();
    life.writer.finish();
    drop(life);
    let mut life = Life::on(&directory);
    assert_eq!(life.value("before").as_deref(), Some("1"));
    drop(life.cache.clear_to(CLEARED, RingVersion(3)));
    life.store("since", "2");
    life.tick();
    if is_stopped {
        life.stop();
    }
    directory
}

#[tokio::test]
async fn what_was_stored_since_a_group_was_cleared_comes_back() {
    for (is_stopped, writer_is_first) in [(true, true), (true, false), (false, true), (false, false)] {
        let directory = cleared(is_stopped);
        let mut life = told(&directory, CLEARED, writer_is_first);
        assert_eq!((life.value("before"), life.value("since").as_deref()), (None, Some("2")));
        // And so once more, with what came since.
        life.store("later", "3");
        life.tick();
        drop(life);
        let life = told(&directory, CLEARED, writer_is_first);
        assert_eq!((life.value("since").as_deref(), life.value("later").as_deref()), (Some("2"), Some("3")));
    }
}

#[tokio::test]
async fn what_was_stored_before_a_group_was_cleared_does_not_come_back() {
    for writer_is_first in [true, false] {
        // Later, and earlier: the registry may have lost the generation, and others have counted anew.
        for generation in [Generation(CLEARED.0 + 1), Generation(CLEARED.0 - 1)] {
            let directory = cleared(true);
            let life = told(&directory, generation, writer_is_first);
            assert_eq!((life.value("before"), life.value("since")), (None, None));
            drop(life);
            let life = told(&directory, CLEARED, writer_is_first);
            assert_eq!((life.value("before"), life.value("since")), (None, None), "it is gone for good");
        }
        let directory = cleared(true);
        assert_eq!(Life::on(&directory).value("since"), None, "nobody tells of that generation");
    }
}

/// What a node was told to forget before it was told of the generation stays forgotten.
#[tokio::test]
async fn a_write_from_before_the_generation_was_told_is_not_undone_by_it() {
    for (is_cleared_too, ticks) in [(false, true), (false, false), (true, true), (true, false)] {
        let directory = cleared(true);
        let before = |writer: &mut Writer| {
            let account = crate::budget::Budgets::new().account(&"".into());
            let delete = crate::cache::Delete {
                key: &"since".into(),
                under: RingVersion(3),
                stamp: RingVersion(3),
                then_set: Some(&account),
                sequence: 0,
                by: None,
            };
            drop(writer.cache.delete(delete, Instant::now()).unwrap());
            if is_cleared_too {
                drop(writer.cache.clear(Generation::NONE, RingVersion(3), None));
            }
            if ticks {
                writer.tick(Instant::now());
            }
            drop(writer.cache.clear_to(CLEARED, RingVersion(3)));
        };
        let mut life = Life::after(&directory, CHECK, (64 << 20, 64 << 20), before);
        life.tick();
        assert_eq!(life.value("since"), None);
        life.store("later", "3");
        life.tick();
        drop(life);
        let life = told(&directory, CLEARED, true);
        assert_eq!((life.value("since"), life.value("later").as_deref()), (None, Some("3")));
    }
}

/// A run that was never told of any generation has outdated what the one before left.
#[tokio::test]
async fn a_run_without_a_registry_outdates_what_was_there() {
    let directory = cleared(true);
    // As if it had been killed before what is of no use was removed.
    let (held, found) = take(directory.path(), BOOT).unwrap();
    let number = found.last().unwrap().number + 1;
    drop(held);
    let removed = record("since", Content::Removed);
    write(&directory, &format!("{number:020}.writes"), header(), &[removed]);
    let mut life = told(&directory, CLEARED, true);
    assert_eq!(life.value("since"), None);
    life.tick();
    drop(life);
    assert_eq!(told(&directory, CLEARED, false).value("since"), None);
}
