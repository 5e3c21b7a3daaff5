//! How much to read: a pure function of which blocks were asked for.
//!
//! A *stream* is a run of blocks asked for in ascending order. Its window doubles with each read, so a program that goes
//! through a file soon has megabytes on their way before it asks; a block that belongs to no stream is read alone. The
//! first block of a window is its *edge*: when it is asked for, everything before it is used up, and the next window is
//! due. One file has several streams, for programs that read it in several places.
//!
//! ```text
//!   blocks   . . . . . . . . . . . . . . . . . . . . . .
//!            |read first   |read when its edge,  |and so on
//!            |  (a miss)   |E  the first, is met |E
//! ```

use crate::mm::object::Pattern;
use core::ops::Range;

/// Blocks of the first window of a stream, and of a read at the start of a file.
const FIRST: u64 = 16;

/// Streams of one file.
const STREAMS: usize = 4;

/// What is to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Window {
    /// These blocks; the caller cuts them at the end of the file.
    pub(super) blocks: Range<u64>,
    /// Where whoever gets there has the next window read.
    pub(super) edge: Option<u64>,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    /// The block behind the last window.
    next: u64,
    /// Blocks of that window; zero for a stream that is none.
    len: u64,
    /// When it was used last.
    age: u64,
}

/// The streams of a file.
#[derive(Default)]
pub(super) struct ReadAhead {
    streams: [Stream; STREAMS],
    clock: u64,
}

impl ReadAhead {
    /// No stream.
    pub(super) const fn new() -> Self {
        Self {
            streams: [Stream {
                next: 0,
                len: 0,
                age: 0,
            }; STREAMS],
            clock: 0,
        }
    }

    /// Somebody waits for `block`; windows have `most` blocks.
    pub(super) fn on_miss(&mut self, block: u64, pattern: Pattern, most: u64) -> Window {
        if pattern == Pattern::Random {
            return Window {
                blocks: block..block + 1,
                edge: None,
            };
        }
        // In or right behind what a stream has read: it was evicted, or its edge was not met yet.
        let found = self.streams.iter().position(|stream| {
            stream.len > 0
                && (stream.next.saturating_sub(stream.len)..=stream.next).contains(&block)
        });
        let len = match found {
            Some(i) => (self.streams[i].len * 2).max(FIRST),
            None if pattern == Pattern::Sequential => most,
            None if block == 0 => FIRST,
            None => 1,
        };
        let i = found.unwrap_or_else(|| self.oldest());
        self.advance(i, block, len.min(most))
    }

    /// Somebody got to the edge `block`.
    pub(super) fn on_edge(&mut self, block: u64, most: u64) -> Option<Window> {
        let i = self.streams.iter().position(|stream| {
            stream.len > 0 && (stream.next.saturating_sub(stream.len)..stream.next).contains(&block)
        })?;
        let Stream { next, len, .. } = self.streams[i];
        Some(self.advance(i, next, (len * 2).min(most)))
    }

    fn advance(&mut self, i: usize, from: u64, len: u64) -> Window {
        self.clock += 1;
        let len = len.max(1);
        let next = from.saturating_add(len);
        self.streams[i] = Stream {
            next,
            len,
            age: self.clock,
        };
        Window {
            blocks: from..next,
            // Behind a single block nothing was read: the next one is a miss, and then it is a stream.
            edge: (len > 1).then_some(from),
        }
    }

    fn oldest(&self) -> usize {
        let oldest = (0..STREAMS).min_by_key(|i| self.streams[*i].age);
        oldest.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{ReadAhead, Window};
    use crate::mm::object::Pattern::{Normal, Random, Sequential};
    use std::vec::Vec;

    const MOST: u64 = 512;

    /// Reads blocks one after the other; how many times it had to wait, and the largest window.
    fn go_through(blocks: core::ops::Range<u64>) -> (u32, u64) {
        let mut ahead = ReadAhead::new();
        let mut resident = std::collections::BTreeSet::new();
        let mut edges = Vec::new();
        let (mut misses, mut largest) = (0, 0);
        let mut take = |window: Window, resident: &mut std::collections::BTreeSet<u64>| {
            largest = largest.max(window.blocks.end - window.blocks.start);
            edges.extend(window.edge);
            resident.extend(window.blocks);
            edges.clone()
        };
        let mut edges_now = Vec::new();
        for block in blocks {
            if !resident.contains(&block) {
                misses += 1;
                edges_now = take(ahead.on_miss(block, Normal, MOST), &mut resident);
            }
            if edges_now.contains(&block)
                && let Some(window) = ahead.on_edge(block, MOST)
            {
                edges_now = take(window, &mut resident);
            }
        }
        (misses, largest)
    }

    #[test]
    fn whoever_goes_through_a_file_waits_once() {
        assert_eq!(go_through(0..10_000), (1, MOST));
    }

    #[test]
    fn a_run_in_the_middle_is_found_with_its_second_block() {
        let (misses, largest) = go_through(5_000..10_000);
        assert_eq!((misses, largest), (2, MOST));
    }

    #[test]
    fn what_is_in_no_order_is_read_alone() {
        let mut ahead = ReadAhead::new();
        let mut random = 12_345u64;
        for _ in 0..100 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let block = 1 + (random >> 33);
            let window = ahead.on_miss(block, Normal, MOST);
            assert_eq!(window.blocks, block..block + 1);
            assert_eq!(window.edge, None);
        }
    }

    #[test]
    fn two_readers_of_one_file_do_not_disturb_each_other() {
        let mut ahead = ReadAhead::new();
        for i in 0..8 {
            ahead.on_miss(1_000 + i, Normal, MOST);
            ahead.on_miss(90_000 + i, Normal, MOST);
        }
        for first in [1_000, 90_000] {
            let window = ahead.on_miss(first + 8, Normal, MOST);
            assert_eq!(window.blocks, first + 8..first + 8 + MOST);
        }
    }

    #[test]
    fn advice_is_taken() {
        let mut ahead = ReadAhead::new();
        assert_eq!(ahead.on_miss(0, Random, MOST).blocks, 0..1);
        assert_eq!(ahead.on_miss(70, Sequential, MOST).blocks, 70..70 + MOST);
    }
}
