//! A group as its operator describes it: a name, a loader, and a policy.

use std::time::Duration;

use peanut_proto::bounds::Bounds;
use peanut_proto::intervals::LONGEST_FAILOVER_TTL;
use peanut_proto::membership::check_name;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Error;
use crate::loader::{AnyLoader, Loader, LoaderError};
use crate::store::Eviction;

/// A namespace of keys with its own capacity, policy and loader.
///
/// ```
/// use std::time::Duration;
/// use peanut_server::{Group, StaticLoader};
///
/// let scores: StaticLoader = [("Tom", "630"), ("Jack", "589")].into_iter().collect();
/// let group = Group::new("scores", scores).capacity_bytes(64 << 20).ttl(Duration::from_secs(600));
/// # let _ = group;
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    pub(crate) name: String,
    pub(crate) loader: AnyLoader,
    pub(crate) policy: Policy,
}

/// Longer than any time that is meant.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);
/// Of values: less is no time that a clock of milliseconds can tell.
const LIFETIME: Bounds = Bounds::new(Duration::from_millis(1), LONGEST);
const AT_MOST_LONGEST: Bounds = Bounds::new(Duration::ZERO, LONGEST);
/// Writers delete copies at the successor for so long after an outage, and no longer.
const FAILOVER_TTL: Bounds = Bounds::new(Duration::ZERO, LONGEST_FAILOVER_TTL);
const LOAD_TIMEOUT: Bounds = Bounds::new(Duration::from_millis(1), Duration::from_secs(3600));
const MOST_LOADS: usize = 1_000_000;
/// Room for a segment.
const LEAST_DISK_CAPACITY: u64 = 64 << 10;
const MOST_DISK_CAPACITY: u64 = 1 << 60;
/// What a small group may have on the disk by default, so that its segments are not too small to be worth
/// their files.
const LEAST_DISK_BYTES: u64 = 64 << 20;

/// How a group keeps and loads.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) capacity_bytes: usize,
    pub(crate) ttl: Duration,
    pub(crate) max_ttl: Duration,
    pub(crate) ttl_jitter: f64,
    pub(crate) negative_ttl: Duration,
    pub(crate) failover_ttl: Duration,
    pub(crate) load_timeout: Duration,
    pub(crate) max_loads: usize,
    pub(crate) eviction: Eviction,
    pub(crate) disk_capacity_bytes: Option<u64>,
    pub(crate) refresh_after: Option<Duration>,
    pub(crate) stale_if_error: Duration,
    pub(crate) breaker: bool,
}

impl Policy {
    /// The longest time that an entry may be kept.
    pub(crate) fn longest(&self) -> Duration {
        self.max_ttl + self.stale_if_error
    }

    pub(crate) fn disk_capacity_bytes(&self) -> u64 {
        self.disk_capacity_bytes
            .unwrap_or((self.capacity_bytes as u64).saturating_mul(2).max(LEAST_DISK_BYTES))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            capacity_bytes: Group::DEFAULT_CAPACITY_BYTES,
            ttl: Group::DEFAULT_TTL,
            max_ttl: Group::DEFAULT_MAX_TTL,
            ttl_jitter: Group::DEFAULT_TTL_JITTER,
            negative_ttl: Group::DEFAULT_NEGATIVE_TTL,
            failover_ttl: Group::DEFAULT_FAILOVER_TTL,
            load_timeout: Group::DEFAULT_LOAD_TIMEOUT,
            max_loads: Group::DEFAULT_MAX_LOADS,
            eviction: Eviction::default(),
            disk_capacity_bytes: None,
            refresh_after: None,
            stale_if_error: Duration::ZERO,
            breaker: true,
        }
    }
}

impl Group {
    /// 64 MiB.
    pub const DEFAULT_CAPACITY_BYTES: usize = 64 << 20;
    /// 10 minutes.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(600);
    /// 7 days.
    pub const DEFAULT_MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
    /// A tenth.
    pub const DEFAULT_TTL_JITTER: f64 = 0.1;
    /// 5 seconds.
    pub const DEFAULT_NEGATIVE_TTL: Duration = Duration::from_secs(5);
    /// 10 seconds.
    pub const DEFAULT_FAILOVER_TTL: Duration = Duration::from_secs(10);
    /// 5 seconds.
    pub const DEFAULT_LOAD_TIMEOUT: Duration = Duration::from_secs(5);
    /// 128.
    pub const DEFAULT_MAX_LOADS: usize = 128;

    /// A group with the default policy.
    pub fn new(name: impl Into<String>, loader: impl Loader) -> Self {
        Group::with_policy(name.into(), AnyLoader::new(loader), Policy::default())
    }

    /// A group whose values come from clients only, by `set` and `get_or_load`: a get of a key that is
    /// missing finds nothing.
    pub fn without_loader(name: impl Into<String>) -> Self {
        Group::with_policy(name.into(), AnyLoader::none(), Policy::default())
    }

    pub(crate) fn with_policy(name: String, loader: AnyLoader, policy: Policy) -> Self {
        Group { name, loader, policy }
    }

    /// Most bytes that the group keeps: keys, values and 96 bytes of overhead per entry. An entry
    /// larger than a shard (at least 32 MiB, or all of a smaller capacity) is answered but not kept.
    #[must_use]
    pub fn capacity_bytes(mut self, bytes: usize) -> Self {
        self.policy.capacity_bytes = bytes;
        self
    }

    /// Which entries leave when there is no room: S3-FIFO by default.
    #[must_use]
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.policy.eviction = eviction;
        self
    }

    /// Most bytes on the disk, from 64 KiB, where the server has a
    /// [`data_dir`](crate::ServerBuilder::data_dir): twice [`capacity_bytes`](Self::capacity_bytes) and at
    /// least 64 MiB by default. With less than four thirds of what is in memory, the oldest is not kept.
    #[must_use]
    pub fn disk_capacity_bytes(mut self, bytes: u64) -> Self {
        self.policy.disk_capacity_bytes = Some(bytes);
        self
    }

    /// How long a value stays fresh where its loader does not say; from 1 ms to ten years, and at most
    /// [`max_ttl`](Self::max_ttl).
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = ttl;
        self
    }

    /// The longest time that any value stays fresh, whatever its loader says. The fleet remembers former
    /// owners for as long. From 1 ms to ten years.
    #[must_use]
    pub fn max_ttl(mut self, max_ttl: Duration) -> Self {
        self.policy.max_ttl = max_ttl;
        self
    }

    /// The part of each time to live, 0 to 1, by which it may be shortened at random, so that values
    /// which were loaded together do not all expire together.
    #[must_use]
    pub fn ttl_jitter(mut self, part: f64) -> Self {
        self.policy.ttl_jitter = part;
        self
    }

    /// How long it is remembered that the origin has no such key; zero: not at all. At most ten years.
    #[must_use]
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.policy.negative_ttl = ttl;
        self
    }

    /// The longest time that this node keeps what it loads in the place of another that is down; 10 s by
    /// default, at most a minute: writers delete such copies for a minute after an outage, should there be
    /// another.
    #[must_use]
    pub fn failover_ttl(mut self, ttl: Duration) -> Self {
        self.policy.failover_ttl = ttl;
        self
    }

    /// How long a load may take, waiting for its turn included. Past it, all who wait have an error and
    /// the next get loads again. From 1 ms to an hour.
    #[must_use]
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.policy.load_timeout = timeout;
        self
    }

    /// Most loads at once, from 1 to a million. Others wait for their turn; a get whose load would not be
    /// done in time, by what is ahead of it and how long loads have been taking, is refused at once.
    #[must_use]
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.policy.max_loads = loads;
        self
    }

    /// From which age on a value that is asked for is loaded again in the background, while it still answers;
    /// `None`, the default: not before it has expired. A value that is asked for often is then never waited
    /// for.
    #[must_use]
    pub fn refresh_after(mut self, age: Option<Duration>) -> Self {
        self.policy.refresh_after = age;
        self
    }

    /// How long beyond its time to live a value may still answer where loading it fails, takes too long, or
    /// is not tried; zero, the default: not at all. Such an answer is marked as stale. "Not found" is never
    /// stale, nor is what was loaded in another node's place. At most ten years.
    #[must_use]
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.policy.stale_if_error = time;
        self
    }

    /// Whether an origin is left alone for a while after half of at least 20 loads within ten seconds have
    /// failed: for a second at first and at most half a minute; then one load is let through, and with each
    /// success one more at a time. Gets that would load fail at once meanwhile. True by default.
    #[must_use]
    pub fn breaker(mut self, on: bool) -> Self {
        self.policy.breaker = on;
        self
    }

    /// Tries whether the group's origin is there, as its loader knows how to ([`Loader::check`]).
    ///
    /// # Errors
    /// Why it could not load.
    pub async fn check_loader(&self) -> Result<(), LoaderError> {
        self.loader.check(&self.name).await
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let policy = &self.policy;
        let refuse = |why: &str| Err(Error::configuration(format!("group `{}`: {why}", self.name)));
        if let Err(why) = check_name(&self.name) {
            return Err(Error::configuration(format!("group name {:?} {why}", self.name)));
        }
        if policy.capacity_bytes == 0 {
            return refuse("capacity is zero; give it some bytes, like 64MiB");
        }
        let disk = policy.disk_capacity_bytes.unwrap_or(LEAST_DISK_CAPACITY);
        if disk == 0 {
            return refuse("disk_capacity is zero; give it some bytes, or the server no data_dir");
        }
        if !(LEAST_DISK_CAPACITY..=MOST_DISK_CAPACITY).contains(&disk) {
            return refuse("disk_capacity must be from 64KiB to 1EiB");
        }
        if policy.ttl.is_zero() || policy.max_ttl.is_zero() {
            return refuse("ttl and max_ttl must be longer than zero");
        }
        for (setting, value, bounds) in [
            ("ttl", policy.ttl, LIFETIME),
            ("max_ttl", policy.max_ttl, LIFETIME),
            ("negative_ttl", policy.negative_ttl, AT_MOST_LONGEST),
            ("failover_ttl", policy.failover_ttl, FAILOVER_TTL),
            ("load_timeout", policy.load_timeout, LOAD_TIMEOUT),
            ("stale_if_error", policy.stale_if_error, AT_MOST_LONGEST),
        ] {
            if let Err(why) = bounds.check(value) {
                return refuse(&format!("{setting} {why}"));
            }
        }
        if !(0.0..=1.0).contains(&policy.ttl_jitter) {
            return refuse("ttl_jitter must be from 0 to 1");
        }
        if policy.refresh_after.is_some_and(|after| LIFETIME.check(after).is_err() || after >= policy.max_ttl)
        {
            return refuse("refresh_after must be at least 1ms and shorter than max_ttl");
        }
        if policy.refresh_after.is_some() && self.loader.is_none() {
            return refuse("refresh_after needs a loader; remove it");
        }
        if !(1..=MOST_LOADS).contains(&policy.max_loads) {
            return refuse("max_loads must be from 1 to 1000000");
        }
        Ok(())
    }

    /// Names what the entries follow from: under another fingerprint they would be others.
    pub(crate) fn fingerprint(&self) -> u64 {
        let Policy { ttl, negative_ttl, max_ttl, stale_if_error, .. } = self.policy;
        let loader = self.loader.fingerprint();
        let times = format!("{ttl:?}\0{negative_ttl:?}\0{max_ttl:?}\0{stale_if_error:?}");
        xxh3_64(format!("{}\0{times}\0{loader}", self.name).as_bytes())
    }
}
