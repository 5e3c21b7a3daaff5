//! What a person sees of a file in the cache, and tests check.

use super::super::chunk::{PAGES, Slot, bits};
use super::{CachedFile, PAGE};
use crate::fs::{Backing, Extent};
use crate::mm::trace;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

/// What is in memory of a file, block by block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residence {
    /// Not in memory.
    Absent,
    /// On its way.
    Busy,
    /// A hole: zeros.
    Hole,
    /// As on the device.
    Clean,
    /// Newer than on the device.
    Dirty,
    /// Being written.
    Writing,
}

/// What is in memory of 64 pages, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    /// The first one's number.
    pub first: u64,
    /// In memory.
    pub resident: u64,
    /// Newer than on the device.
    pub dirty: u64,
    /// Zeros, in no frame.
    pub hole: u64,
}

impl CachedFile {
    /// What is in memory of each of `blocks`.
    pub fn residence(&self, blocks: Range<u64>) -> Vec<Residence> {
        let state = self.state.lock();
        let one = |block: u64| {
            let bit = 1 << (block % PAGES);
            let Some(chunk) = state.chunks.get(block / PAGES) else {
                return Residence::Absent;
            };
            match chunk.slot((block % PAGES) as u32) {
                Slot::Absent => Residence::Absent,
                Slot::Busy => Residence::Busy,
                Slot::Hole => Residence::Hole,
                Slot::Resident(_) if chunk.writing & bit != 0 => Residence::Writing,
                Slot::Resident(_) if chunk.dirty & bit != 0 => Residence::Dirty,
                Slot::Resident(_) => Residence::Clean,
            }
        };
        blocks.map(one).collect()
    }

    /// What is in memory, 64 pages at a time.
    pub fn present(&self) -> impl Iterator<Item = Present> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let state = self.state.lock();
            let (number, chunk) = state.chunks.range(from..).next()?;
            from = number + 1;
            Some(Present {
                first: number * PAGES,
                resident: chunk.resident,
                dirty: chunk.dirty | chunk.writing,
                hole: chunk.hole,
            })
        })
    }

    /// Pages in memory, and those of them that are dirty.
    pub fn pages(&self) -> (u64, u64) {
        let state = self.state.lock();
        state.chunks.all().fold((0, 0), |(all, dirty), (_, chunk)| {
            (
                all + u64::from(chunk.resident.count_ones()),
                dirty + u64::from((chunk.dirty | chunk.writing).count_ones()),
            )
        })
    }

    /// Pages found in memory, and those of them that had been read ahead.
    pub(in crate::mm::cache) fn finds(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hits, state.used)
    }

    /// What a dump of events calls it.
    pub(in crate::mm) fn trace_name(&self) -> trace::Name {
        trace::Name {
            number: self.number,
            size: self.size(),
            name: match self.name() {
                "" => format!("inode {}", self.id.0),
                name => String::from(name),
            },
        }
    }

    /// Panics where the state contradicts itself, or what is dirty may find no room. For tests: nobody stores or writes
    /// meanwhile.
    pub fn check(&self) {
        let state = self.state.lock();
        let mut unpromised = Vec::new();
        for (number, chunk) in state.chunks.all() {
            chunk.check();
            let pages = bits(chunk.dirty & !chunk.promised);
            unpromised.extend(pages.map(|i| number * PAGES + u64::from(i)));
            for i in bits(chunk.resident) {
                assert!(
                    number * PAGES + u64::from(i) < state.blocks(),
                    "behind the end"
                );
            }
        }
        let size = state.size;
        drop(state);
        for block in unpromised {
            let len = PAGE.min(size - block * PAGE);
            let extents = self.fs.map(self.id, block * PAGE, len).expect("a map");
            let is_hole = |extent: &Extent| extent.backing == Backing::Hole;
            assert!(!extents.iter().any(is_hole), "no room for page {block}");
        }
    }
}
