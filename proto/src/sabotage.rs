//! For tests of tests: with the feature `sabotage` one of the things that keep answers right can be turned
//! off, so that a checker of histories can be seen to notice. Without the feature nothing can be.

/// What can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Entries from before the node owned a key are misses.
    Stamps,
    /// What clients have left in the registry is read.
    Hints,
    /// Writes poison the loads in progress.
    Poison,
    /// Writes are done at a key's previous owners too.
    PreviousOwners,
    /// Nodes notice that they have slept.
    Sleep,
    /// What is on a disk is held against the mark of the last start.
    Lineage,
    /// New owners are not filled from previous ones once the key may have been written.
    HandOverBound,
    /// Values are set under a token that later writes make void.
    Tokens,
    /// The value of a write that was begun before the database was written is kept only where no other write
    /// came between.
    Sequences,
    /// A watch ends when the member of the store that it is on has lost its peers.
    Leader,
    /// A node without a record of its lease is not taken for one without a lease where the registry has lost
    /// its data.
    Marks,
    /// Answers tell of the ring that the node knows.
    RingTold,
    /// Writes wait for those who hold near copies.
    NearWait,
    /// A node that starts acknowledges no write while near leases of its former process may stand.
    NearStart,
    /// Clients reckon near leases from when they sent the renewal.
    NearSent,
    /// Writers that cannot reach a node wait for the near leases that it may have given.
    NearGone,
    /// Nodes wait for near leases as much longer as clocks may differ in their rates.
    NearDrift,
    /// Clocks that tell of sleep, and until when leases hold, count the time in which a machine is suspended.
    Suspension,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Mechanism; 18] = [
        Mechanism::Stamps,
        Mechanism::Hints,
        Mechanism::Poison,
        Mechanism::PreviousOwners,
        Mechanism::Sleep,
        Mechanism::Lineage,
        Mechanism::HandOverBound,
        Mechanism::Tokens,
        Mechanism::Sequences,
        Mechanism::Leader,
        Mechanism::Marks,
        Mechanism::RingTold,
        Mechanism::NearWait,
        Mechanism::NearStart,
        Mechanism::NearSent,
        Mechanism::NearGone,
        Mechanism::NearDrift,
        Mechanism::Suspension,
    ];

    /// Its name, in lower case.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

#[cfg(feature = "sabotage")]
mod switch {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Mechanism;

    thread_local! {
        static TURNED_OFF: Cell<Option<Mechanism>> = const { Cell::new(None) };
    }

    /// Turns a mechanism off for what runs on this thread, or all on again.
    pub fn turn_off(mechanism: Option<Mechanism>) {
        TURNED_OFF.set(mechanism);
    }

    /// Whether a mechanism is turned off: for this thread, or by `PEANUT_SABOTAGE` for the process.
    pub fn without(mechanism: Mechanism) -> bool {
        static OF_PROCESS: OnceLock<String> = OnceLock::new();
        let of_process = || OF_PROCESS.get_or_init(|| std::env::var("PEANUT_SABOTAGE").unwrap_or_default());
        TURNED_OFF.get() == Some(mechanism) || *of_process() == mechanism.name()
    }
}

#[cfg(feature = "sabotage")]
pub use switch::{turn_off, without};

/// Whether a mechanism is turned off: never.
#[cfg(not(feature = "sabotage"))]
pub const fn without(_: Mechanism) -> bool {
    false
}
