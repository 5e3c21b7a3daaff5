//! A few ranges of physical addresses, without a heap.

use super::BoardError;
use crate::mm::addr::PhysAddr;
use arrayvec::ArrayVec;
use core::fmt;
use core::ops::Range;

/// Ranges that are kept: a Pi with 8 GiB has three of RAM, and a handful are reserved.
pub const MAX_RANGES: usize = 16;

/// Ranges in the order of their addresses; none is empty, touches the next, or overlaps it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Ranges(ArrayVec<Range<PhysAddr>, MAX_RANGES>);

impl Ranges {
    /// Adds one, joined with what it touches or overlaps; an empty one, or one that wraps around, is none.
    pub fn insert(&mut self, start: PhysAddr, size: u64) -> Result<(), BoardError> {
        let Some(end) = start.checked_add(size).filter(|_| size > 0) else {
            return Ok(());
        };
        let mut new = start..end;
        self.0.retain(|old| {
            let is_apart = old.end < new.start || new.end < old.start;
            if !is_apart {
                new = old.start.min(new.start)..old.end.max(new.end);
            }
            is_apart
        });
        let at = self.0.partition_point(|old| old.start < new.start);
        self.0
            .try_insert(at, new)
            .map_err(|_| BoardError::TooManyRanges)
    }

    /// Takes everything from `end` on away.
    pub fn cut(&mut self, end: PhysAddr) {
        self.0.retain(|range| {
            range.end = range.end.min(end);
            range.start < range.end
        });
    }

    /// In the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = Range<PhysAddr>> + '_ {
        self.0.iter().cloned()
    }

    /// Bytes in all of them together.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|range| range.end.0 - range.start.0).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_RANGES, Ranges};
    use crate::arch::aarch64::board::BoardError;
    use crate::mm::addr::PhysAddr;
    use alloc::vec::Vec;

    fn ranges(parts: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut ranges = Ranges::default();
        for &(start, size) in parts {
            ranges.insert(PhysAddr(start), size).unwrap();
        }
        ranges.iter().map(|r| (r.start.0, r.end.0)).collect()
    }

    #[test]
    fn ranges_are_sorted_whatever_the_order_they_come_in() {
        let sorted = [(0x1000, 0x2000), (0x5000, 0x6000), (0x9000, 0xa000)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let parts = order.map(|i: usize| (sorted[i].0, 0x1000));
            assert_eq!(ranges(&parts), sorted);
        }
    }

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        assert_eq!(ranges(&[(0, 16), (16, 16)]), [(0, 32)]);
        assert_eq!(ranges(&[(16, 16), (0, 16)]), [(0, 32)]);
        assert_eq!(ranges(&[(0, 16), (32, 16), (8, 30)]), [(0, 48)]);
        assert_eq!(ranges(&[(0, 100), (10, 5)]), [(0, 100)]);
        assert_eq!(ranges(&[(10, 5), (0, 100)]), [(0, 100)]);
        assert_eq!(ranges(&[(0, 16), (17, 16)]), [(0, 16), (17, 33)]);
    }

    #[test]
    fn a_range_that_is_empty_or_wraps_around_is_none() {
        assert_eq!(ranges(&[(5, 0), (u64::MAX, 2)]), []);
    }

    #[test]
    fn one_range_too_many_is_an_error() {
        let mut ranges = Ranges::default();
        for i in 0..MAX_RANGES as u64 {
            ranges.insert(PhysAddr(2 * i), 1).unwrap();
        }
        let last = ranges.insert(PhysAddr(1000), 1);
        assert_eq!(last, Err(BoardError::TooManyRanges));
        assert_eq!(ranges.insert(PhysAddr(1), 1), Ok(()), "joins two");
    }

    #[test]
    fn a_cut_leaves_what_is_below() {
        let mut ranges = Ranges::default();
        ranges.insert(PhysAddr(0), 10).unwrap();
        ranges.insert(PhysAddr(20), 10).unwrap();
        ranges.insert(PhysAddr(40), 10).unwrap();
        ranges.cut(PhysAddr(25));
        assert_eq!(ranges.bytes(), 15);
    }
}
