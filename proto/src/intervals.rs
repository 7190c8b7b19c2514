//! Times that processes rely on one another for: what one of them does within one of these, another waits for
//! or allows for.
//!
//! None is a setting, since all processes of a fleet have to agree on them. What has to be longer than what
//! is checked when this is compiled.

use std::time::Duration;

use crate::sabotage::{Mechanism, without};

/// A node that has not run for longer notices it before it answers: it was stopped, or its machine stood
/// still.
pub const SLEEP: Duration = Duration::from_millis(300);
/// How exactly it notices.
pub const SLEEP_TICK: Duration = Duration::from_millis(50);
/// A writer stores no hint for a node before that has been silent for so long: one that sleeps for less does
/// not look for hints.
pub const SILENCE_BEFORE_HINT: Duration = Duration::from_millis(500);
const _: () = assert!(millis(SILENCE_BEFORE_HINT) >= millis(SLEEP) + 2 * millis(SLEEP_TICK));

/// How long one call to the registry may take, where no other time is set.
pub const REGISTRY_CALL: Duration = Duration::from_secs(2);
/// How long a node that has slept or has no lease answers nothing, where the registry does not answer it.
pub const REGISTRY_PATIENCE: Duration = Duration::from_secs(3);
const _: () = assert!(millis(REGISTRY_PATIENCE) > millis(REGISTRY_CALL));

/// A quiet watch asks for progress this often.
pub const WATCH_PROGRESS: Duration = Duration::from_secs(10);
/// A watch that has heard nothing for so long, progress included, is given up: the watcher knows by then that
/// it may have missed a change of the ring.
pub const WATCH_SILENCE: Duration = Duration::from_secs(15);
const _: () = assert!(millis(WATCH_SILENCE) > millis(WATCH_PROGRESS) + millis(REGISTRY_CALL));

/// A ring that is older than the one that is known is believed after so long: nodes that know the newer one
/// write it again within
/// [`LEASE_TTL`].
pub const OLDER_RING_BELIEVED: Duration = Duration::from_secs(15);
/// How long a node is believed to be there after it was last heard of, where no other time is set.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
const _: () = assert!(millis(OLDER_RING_BELIEVED) > 2 * millis(LEASE_TTL));
/// A node renews its lease at least so often, and so notices where the registry has lost it.
pub const LONGEST_RENEWAL: Duration = Duration::from_millis(1_700);
/// A writer that finds no record of a node in a registry that has lost its data takes the node for one
/// without a lease after so long.
pub const LOSS_NOTICED: Duration = LEASE_TTL;
const _: () = assert!(millis(LOSS_NOTICED) > millis(LONGEST_RENEWAL) + millis(REGISTRY_CALL));

/// How long a client may read near copies of a lane after it has sent the last renewal that was answered.
const NEAR_LEASE: Duration = Duration::from_millis(500);
/// How long a write waits for a lane that does not confirm, from the last renewal on: so much longer as
/// clocks may differ in their rates.
const NEAR_LEASE_AT_NODE: Duration = Duration::from_millis(550);
const _: () = assert!(millis(NEAR_LEASE_AT_NODE) * 10 >= millis(NEAR_LEASE) * 11);
/// A near copy is asked for anew after so long, so that nodes can forget who holds what, and see what is
/// read.
const NEAR_COPY: Duration = Duration::from_secs(10);
/// As long by a clock that goes as much faster as clocks may.
const NEAR_COPY_AT_NODE: Duration = Duration::from_secs(11);
const _: () = assert!(millis(NEAR_COPY_AT_NODE) * 10 >= millis(NEAR_COPY) * 11);

/// How long a client may read near copies of a lane after it has sent the last renewal that was answered: 500
/// ms.
pub fn near_lease() -> Duration {
    of_run(NEAR_LEASE)
}

/// How long a write waits for a lane that does not confirm, from its last renewal on: 550 ms.
pub fn near_lease_at_node() -> Duration {
    of_run(if without(Mechanism::NearDrift) { NEAR_LEASE } else { NEAR_LEASE_AT_NODE })
}

/// For how long a node remembers who holds a near copy, beside the lane's lease: 11 s.
pub fn near_copy_at_node() -> Duration {
    of_run(if without(Mechanism::NearDrift) { NEAR_COPY } else { NEAR_COPY_AT_NODE })
}

/// After how long a near copy is asked for anew: 10 s.
pub fn near_copy() -> Duration {
    of_run(NEAR_COPY)
}

/// A simulated run is short, and so are the times that are to end in it.
fn of_run(time: Duration) -> Duration {
    if crate::machine::is_simulated() { time / 2 } else { time }
}

/// The longest time for which a node may keep what it answers in the place of another (`failover_ttl`).
pub const LONGEST_FAILOVER_TTL: Duration = Duration::from_secs(60);
/// For so long after an outage writes are done at the successor too, should there be another.
pub const RECOVERED: Duration = Duration::from_secs(60);
const _: () = assert!(millis(RECOVERED) >= millis(LONGEST_FAILOVER_TTL));

/// What writers do for the sake of those who have not heard of a change of the ring. A simulator has shorter
/// ones, which end within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// For so long after a change of the ring writes are done at previous owners too, whom readers may ask
    /// that have not heard of it.
    pub previous_owners: Duration,
    /// Writes of so long before a writer hears of a change of the ring are done again at the new owners.
    pub recent_writes: Duration,
}

impl Windows {
    /// Those of every fleet.
    pub const FLEET: Windows =
        Windows { previous_owners: Duration::from_secs(120), recent_writes: Duration::from_secs(20) };
}

// A client that is not cut off from the registry has heard of the change by then.
const _: () = assert!(millis(Windows::FLEET.recent_writes) > millis(WATCH_SILENCE) + millis(REGISTRY_CALL));
const _: () = assert!(millis(Windows::FLEET.previous_owners) > 2 * millis(Windows::FLEET.recent_writes));

const fn millis(duration: Duration) -> u128 {
    duration.as_millis()
}
