//! Frames back from the cache: a hand goes round all chunks, as in the CLOCK algorithm, a chunk at a time.
//!
//! | The hand finds a page | and |
//! | --- | --- |
//! | mapped | removes its translations: if somebody needs it, a fault will say so |
//! | warm: it was asked for again after that, or entered beside one that was | lets it cool down; it is spared for three rounds |
//! | cold, clean, not mapped | evicts it |
//! | dirty | leaves it to write-back |
//!
//! A page that was asked for once is cold: one pass over a huge file evicts what that pass has read, and nothing else. A
//! page that is asked for soon after it was evicted comes back warm.

use super::chunk::{Chunk, PAGES, bits};
use super::chunks::chunks_of;
use super::file::{CachedFile, State};
use super::ring::PlaceId;
use super::{PageCache, add};
use crate::fs::FsError;
use crate::fs::Reservation;
use crate::mm::addr::Frame;
use crate::mm::frame::Owner;
use crate::mm::object::Which;
use crate::mm::trace::{self, Kind};
use crate::sync::SpinLockGuard;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::ops::Range;

/// Frames that are reclaimed at a time by whoever needs one.
const BATCH: u64 = 64;

/// How often the hand comes to each chunk before it gives up: until what is warm is cold, its translations are gone,
/// and it can be had.
const ROUNDS: usize = 6;

impl PageCache {
    /// A new chunk: the hand will come to it after all others. Returns its place in the ring.
    pub(super) fn enrol(&self, file: &Arc<CachedFile>, number: u64) -> Result<PlaceId, FsError> {
        let placed = self.ring.lock().insert((file.clone(), number));
        placed.map_err(|_| FsError::OutOfMemory)
    }

    /// Frees up to about `wanted` frames; returns how many. It neither waits, nor asks the file system, nor takes memory:
    /// the heap calls it when there is none.
    pub fn reclaim(&self, wanted: u64) -> u64 {
        let mut freed = 0;
        let mut visits = self.ring.lock().len() * ROUNDS;
        while freed < wanted && visits > 0 {
            visits -= 1;
            let Some((file, number)) = self.ring.lock().advance() else {
                break;
            };
            freed += file.visit(number);
        }
        freed
    }

    /// Frees some frames, writing pages back if need be; whether there are more now than there were. Whoever calls holds
    /// nothing that a transfer may wait for.
    pub fn reclaim_or_write(&self) -> bool {
        let before = self.frames.counts().free;
        // Others may have freed some, while this one waited for the device.
        let has_some = || self.reclaim(BATCH) > 0 || self.frames.counts().free > before;
        loop {
            if has_some() {
                return true;
            }
            // An error is the file's, and told with its next flush; whatever was written can be evicted.
            let _ = self.write_back(None);
            if has_some() {
                return true;
            }
            // What others read and write can be evicted when it has arrived.
            if !self.files(None).any(|file| file.wait_for_transfer()) {
                return false;
            }
        }
    }

    /// Frames that should be free: what the kernel itself may need while it writes back.
    fn low_mark(&self) -> u64 {
        let counts = self.frames.counts();
        (counts.total / 64 + 2 * counts.reserve).min(counts.total / 4)
    }

    /// Reclaims ahead of a read of `count` pages, so that it leaves some for others.
    pub(super) fn make_frames(&self, count: u64) {
        let wanted = self.low_mark() + count;
        let free = self.frames.counts().free;
        if free < wanted && self.reclaim(wanted - free) == 0 {
            self.press();
        }
    }

    /// Drops every page that can be read again.
    pub fn drop_clean(&self) {
        for file in self.files(None) {
            file.evict(0..u64::MAX);
        }
    }
}

impl CachedFile {
    /// Waits until a page that is on its way to or from the device has arrived; `false` if none is.
    pub(super) fn wait_for_transfer(&self) -> bool {
        let state = self.lock();
        let moving = |chunk: &Chunk| chunk.busy | chunk.writing;
        let find = |(number, chunk)| Some((number, moving(chunk))).filter(|(_, pages)| *pages != 0);
        let Some((number, pages)) = state.chunks.all().find_map(find) else {
            return false;
        };
        drop(self.wait_while(state, |state| {
            let chunk = state.chunks.find(number);
            chunk.is_some_and(|chunk| moving(chunk) & pages == pages)
        }));
        true
    }

    /// The hand has come to a chunk; how many frames that freed.
    fn visit(self: &Arc<Self>, number: u64) -> u64 {
        let mut state = self.lock();
        let Some(chunk) = state.chunks.find(number) else {
            // Gone meanwhile.
            return 0;
        };
        if chunk.is_empty() {
            if chunk.evicted == 0 {
                self.remove_chunk(state, number);
            } else {
                // A round without a page: what was evicted is forgotten.
                chunk.evicted = 0;
            }
            return 0;
        }
        let holes = chunk.hole;
        if chunk.resident | chunk.busy == 0 {
            drop(state);
            self.drop_holes(number, holes);
            return 0;
        }
        let cold = chunk.cool();
        let is_mapped = chunk.unpinned(chunk.resident) != chunk.resident;
        drop(state);
        // Room that was made for a store that never came is given back by who may ask the file system: whoever has it locked
        // may be waiting for memory.
        let freed = self.take_clean(number, |chunk| cold & !chunk.promised);
        if is_mapped {
            self.unmap(number * PAGES..(number + 1) * PAGES, Which::Unlocked);
        }
        freed
    }

    /// Removes a chunk that is empty, and its place in the ring.
    pub(super) fn remove_chunk(&self, mut state: SpinLockGuard<'_, State>, number: u64) {
        let place = state.chunks.find(number).map(|chunk| chunk.place);
        state.chunks.remove(number);
        drop(state);
        let in_ring = place.and_then(|place| self.cache().ring.lock().remove(place));
        // With the ring open: what is in it keeps a file.
        drop(in_ring);
    }

    /// Evicts those of the pages that `pages` names, with the file locked, that are clean and not mapped; returns how many.
    fn take_clean(&self, number: u64, pages: impl FnOnce(&Chunk) -> u64) -> u64 {
        let mut frames: ArrayVec<Frame, { PAGES as usize }> = ArrayVec::new();
        let mut promise = Reservation::NONE;
        let mut evicted = 0;
        let mut state = self.lock();
        if let Some(chunk) = state.chunks.find(number) {
            let clean = pages(chunk) & chunk.resident & !chunk.dirty & !chunk.writing;
            let victims = chunk.unpinned(clean);
            add(
                &self.cache().counts.wasted,
                (chunk.ahead & victims).count_ones().into(),
            );
            // Room for a store that never came.
            promise = chunk.redeem(victims);
            frames.extend(bits(victims).map(|i| chunk.take(i)));
            chunk.evicted |= victims;
            evicted = victims;
        }
        drop(state);
        trace::record_mask(Kind::Evicted, self.number(), number * PAGES, evicted);
        let count = frames.len() as u64;
        let mut runs = frames.into_iter().peekable();
        while let Some(first) = runs.next() {
            let mut len = 1;
            while runs.next_if(|next| next.0 == first.0 + len).is_some() {
                len += 1;
            }
            self.cache().frames.free_run(first, len, Owner::Cache);
        }
        if !promise.is_none() {
            self.fs().release(promise);
        }
        add(&self.cache().counts.evicted, count);
        count
    }

    /// Forgets holes, and where they are mapped: a store by another way will not know of that.
    fn drop_holes(&self, number: u64, holes: u64) {
        let mut state = self.lock();
        let Some(chunk) = state.chunks.find(number) else {
            return;
        };
        let holes = chunk.hole & holes;
        chunk.hole &= !holes;
        chunk.busy |= holes;
        drop(state);
        self.unmap(number * PAGES..(number + 1) * PAGES, Which::All);
        if let Some(chunk) = self.lock().chunks.find(number) {
            chunk.busy &= !holes;
        }
        self.wake();
    }

    /// Drops what can be read again.
    pub fn evict(&self, blocks: Range<u64>) {
        self.unmap(blocks.clone(), Which::Unlocked);
        let mut from = blocks.start;
        loop {
            let state = self.lock();
            let next = state.chunks.range(from / PAGES..).next();
            let Some(number) = next.map(|(number, _)| number) else {
                return;
            };
            drop(state);
            let first = number * PAGES;
            if first >= blocks.end {
                return;
            }
            let range = blocks.start.max(first)..blocks.end.min(first + PAGES);
            let pages = chunks_of(range).fold(0, |all, (_, pages)| all | pages);
            self.take_clean(number, |_| pages);
            from = first + PAGES;
        }
    }
}
