//! Faults: what they are, why they may not be resolved, and how many there were.

use super::addr::VirtAddr;
use super::object::IoError;
pub use super::table::Access;
use core::fmt;

/// What the tables said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// Nothing is there, from this level on.
    Translation(u8),
    /// What is there forbids the access.
    Permission(u8),
    /// What is there was not accessed before.
    AccessFlag(u8),
}

/// An access that did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Where.
    pub address: VirtAddr,
    /// What was tried.
    pub access: Access,
    /// Why it failed.
    pub kind: FaultKind,
}

/// Why a fault was not resolved. None of these is a bug of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// No map is there.
    NoMapping,
    /// The map does not allow such an access.
    Denied,
    /// The address is in a guard: a stack ran over, most likely.
    Guard,
    /// The file ends before that page.
    PastEnd,
    /// No frame is left for the page, or for a table to enter it in.
    OutOfFrames,
    /// The file's page could not be read, or could not be noted as dirty.
    Io(IoError),
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMapping => f.write_str("nothing is mapped there"),
            Self::Denied => f.write_str("the map does not allow it"),
            Self::Guard => f.write_str("a guard: a stack ran over"),
            Self::PastEnd => f.write_str("past the end of the mapped file"),
            Self::OutOfFrames => f.write_str("out of memory: no frame is left for the page"),
            Self::Io(error) => write!(f, "the mapped file: {error}"),
        }
    }
}

/// How a fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Pages of zeros were entered.
    Zero,
    /// A fresh page was entered.
    Fresh,
    /// Several fresh pages at once.
    FreshGroup,
    /// A fresh 2 MiB block.
    FreshBlock,
    /// A shared page was copied.
    Copied,
    /// A page that was shared has one owner left, who may store to it again.
    Reused,
    /// A page of a file was entered.
    File,
    /// A page of a file was written to for the first time.
    FileDirty,
    /// Somebody else had resolved it.
    Spurious,
    /// It was not resolved.
    Failed,
}

const OUTCOMES: [(Outcome, &str); 10] = [
    (Outcome::Zero, "zeros entered"),
    (Outcome::Fresh, "fresh page"),
    (Outcome::FreshGroup, "fresh group of 16"),
    (Outcome::FreshBlock, "fresh 2 MiB block"),
    (Outcome::Copied, "copied on write"),
    (Outcome::Reused, "made writable again"),
    (Outcome::File, "file page entered"),
    (Outcome::FileDirty, "file page made dirty"),
    (Outcome::Spurious, "resolved by another"),
    (Outcome::Failed, "not resolved"),
];

/// Faults by how they ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts([u64; OUTCOMES.len()]);

impl FaultCounts {
    /// None.
    pub const NONE: Self = Self([0; OUTCOMES.len()]);

    /// Counts one.
    #[inline(always)]
    pub fn count(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }

    /// How many ended so.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }

    /// How the only fault ended that was counted since `before`, if there was one only.
    pub fn the_one_since(&self, before: &Self) -> Option<Outcome> {
        let mut new = OUTCOMES
            .iter()
            .filter(|(outcome, _)| self.of(*outcome) != before.of(*outcome));
        let (outcome, _) = new.next()?;
        (self.total() == before.total() + 1).then_some(*outcome)
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (outcome, name) in OUTCOMES {
            writeln!(f, "{name:22} {:>12}", self.of(outcome))?;
        }
        writeln!(f, "{:22} {:>12}", "all", self.total())
    }
}

/// How long something took, by powers of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram([u64; 32]);

impl Histogram {
    /// Nothing yet.
    pub const EMPTY: Self = Self([0; 32]);

    /// Adds one that took `duration`.
    #[inline(always)]
    pub fn add(&mut self, duration: u64) {
        self.0[(u64::BITS - duration.leading_zeros()).min(31) as usize] += 1;
    }

    /// How many took from `1 << (i - 1)` to less than `1 << i`.
    pub fn bucket(&self, i: usize) -> u64 {
        self.0.get(i).copied().unwrap_or(0)
    }

    /// Writes a line for each power of two that occurred, with a bar.
    pub fn write(&self, f: &mut dyn fmt::Write, unit: &str) -> fmt::Result {
        let largest = self.0.iter().copied().max().unwrap_or(0).max(1);
        for (i, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let below = 1u64 << i;
            write!(f, "{:>12} .. {below:<12} {unit} {count:>12} ", below / 2)?;
            for _ in 0..(count * 40).div_ceil(largest) {
                f.write_char('#')?;
            }
            f.write_char('\n')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{FaultCounts, Histogram, OUTCOMES, Outcome};
    use std::string::{String, ToString};

    #[test]
    fn every_outcome_is_counted_in_its_own_row() {
        for (i, (outcome, name)) in OUTCOMES.iter().enumerate() {
            assert_eq!(*outcome as usize, i);
            let mut counts = FaultCounts::NONE;
            counts.count(*outcome);
            let row = counts.to_string();
            let row = row.lines().find(|row| row.starts_with(name)).unwrap();
            assert!(row.ends_with(" 1"), "{row}");
        }
        assert_eq!(FaultCounts::NONE.of(Outcome::Zero), 0);
    }

    #[test]
    fn one_fault_is_told_from_several() {
        let mut counts = FaultCounts::NONE;
        counts.count(Outcome::Zero);
        let before = counts;
        assert_eq!(counts.the_one_since(&before), None);
        counts.count(Outcome::Copied);
        assert_eq!(counts.the_one_since(&before), Some(Outcome::Copied));
        counts.count(Outcome::Copied);
        assert_eq!(counts.the_one_since(&before), None);
    }

    #[test]
    fn durations_fall_into_powers_of_two() {
        let mut histogram = Histogram::EMPTY;
        for duration in [0, 1, 2, 3, 4, 255, 256, u64::MAX] {
            histogram.add(duration);
        }
        let buckets: [u64; 10] = core::array::from_fn(|i| histogram.bucket(i));
        assert_eq!(buckets, [1, 1, 2, 1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(histogram.bucket(31), 1);
        let mut text = String::new();
        histogram.write(&mut text, "insn").unwrap();
        assert!(text.contains(" 2 .. 4 "), "{text}");
    }
}
