//! Room on the device for what becomes dirty, promised before it does: writing back cannot run out of it.

use super::super::chunk::{Chunk, PAGES, Slot};
use super::super::chunks::chunks_of;
use super::{CachedFile, PAGE, State};
use crate::fs::{Backing, FsError, Reservation};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

impl CachedFile {
    /// Makes sure that the block may become dirty.
    pub(super) fn make_room(self: &Arc<Self>, block: u64) -> Result<(), FsError> {
        if self.is_read_only() {
            return Err(self.refusal());
        }
        self.cache.limit_dirty()?;
        let bit = 1u64 << (block % PAGES);
        let state = self.state.lock();
        if block * PAGE >= state.size {
            return Ok(());
        }
        let end = state.size.max(state.growing_to);
        if state.slot(block) == Slot::Hole {
            drop(state);
            self.fill_hole(block)?;
        } else {
            drop(state);
        }
        let lacks = |chunk: &Chunk| chunk.resident & !chunk.backed & bit != 0;
        // Whoever finds it gone by now looks again.
        let does_lack = self
            .state
            .lock()
            .chunk(block)
            .is_some_and(|chunk| lacks(chunk));
        if does_lack {
            let promise = self.reserve(block..block + 1, end)?;
            self.give(block, promise, end, lacks);
        }
        Ok(())
    }

    /// Gives a block what was promised for it in a file that ends at `end`, if it still lacks that.
    fn give(&self, block: u64, promise: Reservation, end: u64, lacks: impl Fn(&Chunk) -> bool) {
        let mut state = self.state.lock();
        // What was promised to nobody, for all had places, says nothing of what the file is to have of the page since.
        let within = |end: u64| end.min((block + 1) * PAGE);
        let needed = within(state.size.max(state.growing_to));
        let asked_for = within(end).next_multiple_of(self.block_size);
        let is_enough = !promise.is_none() || needed <= asked_for;
        match state.chunk(block) {
            Some(chunk) if is_enough && lacks(chunk) => {
                chunk.give_room(1 << (block % PAGES), promise)
            }
            _ => {
                drop(state);
                self.fs.release(promise);
            }
        }
    }

    /// Has room promised for the blocks: nothing, if all that they hold of a file that ends at `end` has places.
    ///
    /// Promises are for the worst, and for whole blocks: where they seem to take all there is, what has places needs none;
    /// then what is dirty is given its places first, and what was freed becomes usable.
    pub(super) fn reserve(&self, blocks: Range<u64>, end: u64) -> Result<Reservation, FsError> {
        match self.reserve_now(blocks.clone(), end) {
            Err(FsError::NoSpace) => {
                // What fails is another file's, perhaps, and told with its next flush.
                let _ = self.cache.write_back(Some(self.volume));
                for file in self.cache.files(Some(self.volume)) {
                    file.give_back_unused();
                }
                self.fs.sync()?;
                self.reserve_now(blocks, end)
            }
            reserved => reserved,
        }
    }

    fn reserve_now(&self, blocks: Range<u64>, end: u64) -> Result<Reservation, FsError> {
        let (offset, len) = (blocks.start * PAGE, (blocks.end - blocks.start) * PAGE);
        let all = self.fs.reserve(self.id, offset, len);
        let needed = end
            .saturating_sub(offset)
            .min(len)
            .next_multiple_of(self.block_size);
        if all != Err(FsError::NoSpace) || needed == len {
            return all;
        }
        match self.fs.reserve(self.id, offset, needed) {
            Ok(promise) if !promise.is_none() => {
                self.fs.release(promise);
                Err(FsError::NoSpace)
            }
            needs_none => needs_none,
        }
    }

    /// Room for a write to the blocks, after which the file has at least `end` bytes.
    pub(super) fn room(&self, blocks: Range<u64>, end: u64) -> Result<Room, FsError> {
        let promise = self.reserve(blocks.clone(), end.max(self.size()))?;
        self.share(promise, blocks).map_err(|(promise, error)| {
            self.fs.release(promise);
            error
        })
    }

    /// Has the blocks that lack a place share a promise. Gives it back where they cannot be told from the others.
    pub(in crate::mm::cache) fn share(
        &self,
        promise: Reservation,
        blocks: Range<u64>,
    ) -> Result<Room, (Reservation, FsError)> {
        let (offset, len) = (blocks.start * PAGE, (blocks.end - blocks.start) * PAGE);
        if promise.is_none() {
            return Ok(Room::shared_by(Vec::new(), promise));
        }
        let extents = match self.fs.map(self.id, offset, len) {
            Ok(extents) => extents,
            Err(error) => return Err((promise, error)),
        };
        let mut lacking: Vec<Range<u64>> = Vec::new();
        for hole in extents
            .iter()
            .filter(|extent| extent.backing == Backing::Hole)
        {
            let end = (hole.offset + hole.len).div_ceil(PAGE);
            match lacking.last_mut() {
                Some(last) if hole.offset / PAGE < last.end => last.end = end,
                _ => lacking.push(hole.offset / PAGE..end),
            }
        }
        Ok(Room::shared_by(lacking, promise))
    }

    /// Gives back what nobody had a share of.
    pub(in crate::mm::cache) fn end_sharing(&self, room: Room) {
        if !room.promise.is_none() {
            self.fs.release(room.promise);
        }
    }

    /// Whether one of the blocks may not become dirty yet.
    pub(super) fn lacks_room(&self, blocks: Range<u64>) -> bool {
        let state = self.state.lock();
        chunks_of(blocks).any(|(number, pages)| {
            state
                .chunks
                .get(number)
                .is_none_or(|chunk| pages & !chunk.backed != 0)
        })
    }

    /// Before the file ends at `end`, further than now: with blocks smaller than a page, its last page may have places for a
    /// part only. Room is promised to all of it.
    pub(super) fn back_last_page(self: &Arc<Self>, end: u64) -> Result<(), FsError> {
        let size = self.size();
        if end.min(size.next_multiple_of(PAGE)) <= size.next_multiple_of(self.block_size) {
            return Ok(());
        }
        let block = size / PAGE;
        let bit = 1 << (block % PAGES);
        let lacks = |chunk: &Chunk| chunk.dirty & !chunk.writing & !chunk.promised & bit != 0;
        loop {
            // One that is on its way has room for a part, and must not find that the file ends further behind.
            self.wait_for_writes(block..block + 1);
            let mut state = self.state.lock();
            match state.chunk(block) {
                Some(chunk) if chunk.writing & bit != 0 => {}
                // Whoever reads it asked for its places before a cut, perhaps.
                Some(chunk) if chunk.busy & bit != 0 => {
                    let is_busy = |state: &mut State| state.slot(block) == Slot::Busy;
                    drop(self.wait_while(state, is_busy));
                }
                // What is promised to a page is for all of it.
                Some(chunk) if lacks(chunk) => {
                    drop(state);
                    let promise = self.reserve(block..block + 1, end)?;
                    if promise.is_none() {
                        // It has places for all of it, which only a cut takes away.
                        return Ok(());
                    }
                    self.give(block, promise, end, lacks);
                }
                // Its next store asks anew.
                Some(chunk) => {
                    chunk.backed &= !bit | chunk.promised;
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }

    /// Gives back what was promised for stores that have not come: the next one asks anew.
    fn give_back_unused(&self) {
        let mut unused = Reservation::NONE;
        let mut state = self.state.lock();
        for (_, chunk) in state.chunks.range_mut(0..u64::MAX) {
            let pages = chunk.promised & !(chunk.dirty | chunk.writing);
            unused.merge(chunk.redeem(pages));
            chunk.backed &= !pages;
        }
        drop(state);
        if !unused.is_none() {
            self.fs.release(unused);
        }
    }
}

/// What was promised to several blocks.
#[must_use = "the room stays promised until it is taken, or its sharing ended"]
pub(in crate::mm::cache) struct Room {
    promise: Reservation,
    /// The blocks it was promised to.
    lacking: Vec<Range<u64>>,
    /// How many of them have had no share.
    left: u64,
}

impl Room {
    /// The promise is for these blocks.
    pub(in crate::mm::cache) fn shared_by(lacking: Vec<Range<u64>>, promise: Reservation) -> Self {
        let left = lacking.iter().map(|blocks| blocks.end - blocks.start).sum();
        Self {
            promise,
            lacking,
            left,
        }
    }

    /// The share of a block that has had none: nothing, if it has a place.
    pub(in crate::mm::cache) fn take(&mut self, block: u64) -> Reservation {
        let part = self.lacking.iter().any(|blocks| blocks.contains(&block));
        let share = self.promise.split(part.into(), self.left);
        self.left -= u64::from(part);
        share
    }
}
