//! Disks that fail.

use super::*;

/// Every call to the disk fails once as the first that does, and all after it.
#[test]
fn a_disk_that_fails_at_any_step_costs_a_warning_and_works_again_when_it_does() {
    let mut failures = 0;
    for calls in 0..40 {
        let directory = tempfile::tempdir().unwrap();
        let mut life = Life::with(&directory, CHECK, 1 << 20, 20_000);
        life.writer.directory.faults.fail_after(calls);
        for n in 0..200 {
            life.store(&format!("k{n}"), &"x".repeat(100));
            life.tick();
        }
        life.writer.finish();
        let stats = life.writer.journal.stats();
        assert_eq!(stats.is_failing, stats.disk_errors > 0);
        failures += stats.disk_errors;
        assert_eq!(life.cache.entries().len(), 200, "in memory nothing is amiss");

        life.writer.directory.faults.end();
        let later = Instant::now() + HOUR;
        life.writer.tick(later);
        let stats = life.writer.journal.stats();
        assert!(!stats.is_failing, "after {calls} calls");
        life.store("k0", "new");
        life.writer.tick(later);
        drop(life);
        // Nothing from before the failure is there, where it could be outdated.
        let life = Life::with(&directory, CHECK, 1 << 20, 1 << 20);
        assert_eq!(life.value("k0").as_deref(), Some("new"));
    }
    assert!((30..=40).contains(&failures), "{failures} times it failed, told once each");
}

/// Segments that the writer was at when the disk failed are removed as well: what is written later does not
/// get there.
#[test]
fn after_a_disk_failed_at_any_step_nothing_from_before_comes_back() {
    let mut failures = 0;
    for calls in 0..40 {
        let directory = tempfile::tempdir().unwrap();
        let mut life = Life::with(&directory, CHECK, 1 << 20, 20_000);
        life.writer.directory.faults.fail_once_after(calls);
        for n in 0..200 {
            life.store(&format!("k{n}"), &"x".repeat(100));
            life.tick();
            if life.writer.journal.stats().is_failing {
                break;
            }
        }
        life.writer.finish();
        let has_failed = life.writer.journal.stats().is_failing;
        failures += u32::from(has_failed);
        drop(life);
        let life = Life::with(&directory, CHECK, 1 << 20, 1 << 20);
        assert_eq!(life.cache.entries().is_empty(), has_failed, "after {calls} calls");
    }
    assert!((30..=40).contains(&failures), "{failures} times it failed");
}
