//! Bounds of settings: what is shorter or longer than these is a mistake, and does harm later.

use std::fmt;
use std::time::Duration;

/// The shortest and the longest value of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    shortest: Duration,
    longest: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Bounds {
    /// One second to one day.
    pub const SECOND_TO_DAY: Bounds = Bounds::new(SECOND, DAY);

    /// From the shortest to the longest, both included.
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Bounds { shortest, longest }
    }

    /// Checks a value.
    ///
    /// # Errors
    /// Where it is out of bounds, with them.
    pub fn check(&self, value: Duration) -> Result<(), String> {
        if (self.shortest..=self.longest).contains(&value) {
            return Ok(());
        }
        let (shortest, longest) = (Words(self.shortest), Words(self.longest));
        Err(format!("must be from {shortest} to {longest}, and is {}", Words(value)))
    }
}

/// A length of time as it is written in a configuration.
struct Words(Duration);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
        let whole = units.into_iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
        match whole {
            Some((unit, name)) if self.0.subsec_nanos() == 0 => write!(f, "{}{name}", seconds / unit),
            _ => write!(f, "{:?}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_within_and_what_is_not_is_told_with_them() {
        let bounds = Bounds::new(Duration::from_millis(100), DAY);
        for good in [Duration::from_millis(100), SECOND, DAY] {
            assert_eq!(bounds.check(good), Ok(()));
        }
        for (bad, shown) in [
            (Duration::ZERO, "0ns"),
            (Duration::from_nanos(1), "1ns"),
            (Duration::from_millis(99), "99ms"),
            (DAY + Duration::from_nanos(1), "86400.000000001s"),
            (DAY * 2, "2d"),
            (Duration::MAX, "18446744073709551615.999999999s"),
        ] {
            assert_eq!(bounds.check(bad).unwrap_err(), format!("must be from 100ms to 1d, and is {shown}"));
        }
    }
}
