//! For tests of tests: with the feature `sabotage`, `PEANUT_SABOTAGE` turns off one of the things that keep answers right, so that
//! a history checker can be seen to notice. Without the feature it is not there.

/// What can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// Entries from before the node owned a key are misses.
    Stamps,
    /// What clients have left in the registry is read.
    Undelivered,
    /// Writes poison the loads in progress.
    Poison,
}

/// Whether a mechanism is turned off.
#[cfg(feature = "sabotage")]
pub(crate) fn without(mechanism: Mechanism) -> bool {
    use std::sync::OnceLock;
    static TURNED_OFF: OnceLock<String> = OnceLock::new();
    let turned_off = TURNED_OFF.get_or_init(|| std::env::var("PEANUT_SABOTAGE").unwrap_or_default());
    *turned_off == format!("{mechanism:?}").to_lowercase()
}

/// Whether a mechanism is turned off: never.
#[cfg(not(feature = "sabotage"))]
pub(crate) const fn without(_: Mechanism) -> bool {
    false
}
