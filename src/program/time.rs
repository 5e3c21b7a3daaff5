//! Clocks: what `std::time` has, by the same names.

pub use core::time::Duration;

use crate::arch::aarch64::timer;
use crate::files;
use core::fmt;
use core::ops::{Add, Sub};

/// A moment, to measure with: it never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instant(Duration);

impl Instant {
    /// Now.
    pub fn now() -> Self {
        Self(Duration::from_nanos(timer::ns_from_ticks(timer::now())))
    }

    /// How long ago it was.
    pub fn elapsed(&self) -> Duration {
        Self::now().duration_since(*self)
    }

    /// How much later it is than `earlier`; nothing if it is not.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

/// The time of day, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemTime(Duration);

/// 1970-01-01 00:00:00 UTC.
pub const UNIX_EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

/// The machine has no clock that tells the time of day: a Raspberry Pi has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoClock;

impl fmt::Display for NoClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine has no clock that tells the time of day")
    }
}

impl core::error::Error for NoClock {}

impl SystemTime {
    /// 1970-01-01 00:00:00 UTC.
    pub const UNIX_EPOCH: Self = Self(Duration::ZERO);

    /// Now.
    ///
    /// # Errors
    /// There is no clock: `std`, which cannot say so, would make something up.
    pub fn now() -> Result<Self, NoClock> {
        if !files::knows_time_of_day() {
            return Err(NoClock);
        }
        let now = files::now();
        let seconds = now.seconds.try_into().unwrap_or(0);
        Ok(Self(Duration::new(seconds, now.nanoseconds)))
    }

    /// How much later it is than `earlier`; nothing if it is not.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
