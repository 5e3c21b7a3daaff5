//! Where a file ends: cuts, growth, and what lies between its end and that of its last page.

use super::super::chunk::{PAGES, Slot, bits, mask};
use super::{CachedFile, PAGE, State, zero_from};
use crate::fs::{Backing, Extent, FsError, Reservation};
use crate::mm::addr::Frame;
use crate::mm::frame::Owner;
use crate::mm::object::{Pattern, Which};
use crate::mm::trace::{self, Kind};
use crate::sync::MutexGuard;
use alloc::sync::Arc;
use arrayvec::ArrayVec;

impl CachedFile {
    /// Keeps the file from being cut before byte `end`.
    pub fn hold(self: &Arc<Self>, end: u64) -> Hold {
        let _resizing = self.resizing.lock();
        let mut state = self.state.lock();
        // What lies behind the end of the file is nothing to keep.
        let end = end.min(state.size);
        state.holds.push(end);
        Hold(self.clone(), end)
    }

    /// The file ends at `size` from now on, no nearer than before. What programs stored behind its end is gone.
    pub(super) fn grow(&self, state: &mut State, size: u64) {
        let (block, from) = (state.size / PAGE, state.size % PAGE);
        if from > 0
            && let Slot::Resident(frame) = state.slot(block)
        {
            zero_from(self.pointer(frame), from);
        }
        state.size = size;
    }

    /// Lets the file system know of the bytes before `end`, as far as the file has them: of a hole that was never written,
    /// with what lies behind it not written yet, nobody has told it.
    pub(in crate::mm::cache) fn note_size(&self, end: u64) -> Result<(), FsError> {
        let known = self.fs.attributes(self.id)?.size;
        if end.min(self.size()) <= known {
            return Ok(());
        }
        // Or a cut meanwhile were undone.
        let _resizing = self.resizing.lock();
        let size = end.min(self.size());
        // At a block's start, no block is taken for written.
        let offset = size.next_multiple_of(self.block_size);
        self.fs.written(self.id, offset, 0, size)
    }

    /// Waits until nobody else changes the size.
    pub(super) fn resize(self: &Arc<Self>) -> Resizing<'_> {
        Resizing {
            file: self,
            _lock: self.resizing.lock(),
        }
    }

    /// Cuts the file, or lets it grow with zeros.
    pub fn set_len(self: &Arc<Self>, len: u64) -> Result<(), FsError> {
        let resizing = self.resize();
        if let Some(reason) = self.fs.read_only() {
            return Err(FsError::ReadOnly(reason));
        }
        let before = self.size();
        if len < before {
            return self.cut(len);
        }
        if len > before {
            resizing.grow_to(len)?;
            // The file system first: from then on the device has zeros behind the old end.
            self.fs.set_len(self.id, len)?;
            // A read that began before may bring what was there.
            let is_busy = |state: &mut State| state.slot(before / PAGE) == Slot::Busy;
            self.grow(&mut self.wait_while(self.state.lock(), is_busy), len);
        }
        Ok(())
    }

    /// An error may come when it is cut, but not freed, which the file system then does before it grows.
    fn cut(self: &Arc<Self>, len: u64) -> Result<(), FsError> {
        let last = len / PAGE;
        if !len.is_multiple_of(PAGE) {
            // Needed below; where it cannot be read, or not become dirty, nothing has been cut yet.
            self.cache.limit_dirty()?;
            self.prime(last, Pattern::Normal)?;
        }
        if self.state.lock().holds.iter().any(|end| *end > len) {
            return Err(FsError::Busy);
        }
        // Where the file system refuses it nothing is lost, either.
        self.fs.truncate_prepare(self.id, len)?;
        // Size, maps, pages, blocks: nobody enters a page behind the end once the size says so.
        self.state.lock().size = len;
        self.drop_from(len.div_ceil(PAGE));
        // What is on its way to the last page is as long as the file was.
        self.wait_for_writes(last..last + 1);
        let freed = self.fs.set_len(self.id, len);
        self.grow(&mut self.state.lock(), len);
        let is_settled = self.is_on_device(len) == Ok(false);
        self.state.lock().is_unsettled = !is_settled;
        // It is cut, whatever becomes of this: before it grows it is tried again.
        let _ = self.settle_cut();
        freed
    }

    /// What was cut off goes from the device, too, and before the file grows: it must not come back when the power fails
    /// before its last page is written.
    fn settle_cut(self: &Arc<Self>) -> Result<(), FsError> {
        if self.state.lock().is_unsettled {
            let last = self.size() / PAGE;
            self.settle_end(u64::MAX)?;
            self.write_out(last..last + 1)?;
            self.state.lock().is_unsettled = false;
        }
        Ok(())
    }

    /// Whether byte `at`, in the midst of a page, is in a block that holds data on the device.
    fn is_on_device(&self, at: u64) -> Result<bool, FsError> {
        if at.is_multiple_of(self.block_size) {
            return Ok(false);
        }
        let extents = self.fs.map(self.id, at, 1)?;
        let is_written = |extent: &Extent| matches!(extent.backing, Backing::Written(_));
        Ok(extents.iter().any(is_written))
    }

    /// Drops all blocks from `first` on, which is where the file ends by now: maps, then pages. Waits for transfers.
    pub(super) fn drop_from(&self, first: u64) {
        self.unmap(first..u64::MAX, Which::All);
        let mut from = first;
        loop {
            let mut frames: ArrayVec<Frame, { PAGES as usize }> = ArrayVec::new();
            let state = self.state.lock();
            let Some((number, _)) = state.chunks.range(from / PAGES..).next() else {
                return;
            };
            let pages = mask((from.max(number * PAGES)) - number * PAGES, PAGES);
            let is_moving = |state: &mut State| {
                state
                    .chunks
                    .get(number)
                    .is_some_and(|chunk| (chunk.busy | chunk.writing) & pages != 0)
            };
            let mut state = self.wait_while(state, is_moving);
            let mut promise = Reservation::NONE;
            let mut dropped = 0;
            let mut is_pinned = false;
            let mut is_empty = false;
            if let Some(chunk) = state.chunks.find(number) {
                promise = chunk.redeem(pages);
                let free = chunk.unpinned(chunk.resident & pages);
                is_pinned = free != chunk.resident & pages;
                dropped = free;
                self.cache
                    .note_clean((chunk.dirty & free).count_ones().into());
                frames.extend(bits(free).map(|i| chunk.take(i)));
                chunk.hole &= !pages;
                chunk.backed &= !pages;
                chunk.evicted &= !pages;
                is_empty = chunk.is_empty();
            }
            match is_empty {
                true => self.remove_chunk(state, number),
                false => drop(state),
            }
            trace::record_mask(Kind::Dropped, self.number, number * PAGES, dropped);
            for frame in frames {
                self.cache.frames.free(frame, Owner::Cache);
            }
            if !promise.is_none() {
                self.fs.release(promise);
            }
            if is_pinned {
                // A fault entered it that had looked before the size changed.
                self.unmap(first..u64::MAX, Which::All);
                continue;
            }
            from = (number + 1) * PAGES;
        }
    }

    /// Before a write at `offset`: where the last page ends with the file, and the write begins behind it, what lies
    /// between reads as zeros from now on, whatever the device holds there.
    pub(super) fn settle_end(self: &Arc<Self>, offset: u64) -> Result<(), FsError> {
        let size = self.size();
        let block = size / PAGE;
        if size.is_multiple_of(PAGE) || offset / PAGE <= block {
            return Ok(());
        }
        loop {
            self.prime(block, Pattern::Normal)?;
            let mut state = self.state.lock();
            if self.is_read_only() {
                drop(state);
                return Err(self.refusal());
            }
            let bit = 1 << (block % PAGES);
            match state.chunk(block) {
                Some(chunk) if chunk.hole & bit != 0 => return Ok(()), // the device holds nothing there
                Some(chunk) if chunk.resident & chunk.backed & bit != 0 => {
                    let is_new = (chunk.dirty | chunk.writing) & bit == 0;
                    chunk.dirty |= bit;
                    drop(state);
                    self.cache.note_dirty(u64::from(is_new));
                    return Ok(());
                }
                _ => {}
            }
            drop(state);
            self.make_room(block)?;
        }
    }
}

/// Nobody else changes the size of the file meanwhile.
pub(super) struct Resizing<'a> {
    file: &'a Arc<CachedFile>,
    _lock: MutexGuard<'a, ()>,
}

impl Resizing<'_> {
    /// Before the file grows. Who makes its last page dirty meanwhile has room for all that it then holds.
    pub(super) fn grow_to(&self, end: u64) -> Result<(), FsError> {
        self.file.state.lock().growing_to = end;
        self.file.settle_cut()?;
        self.file.back_last_page(end)
    }
}

impl Drop for Resizing<'_> {
    fn drop(&mut self) {
        self.file.state.lock().growing_to = 0;
    }
}

/// Keeps a file at least as long as it was told.
pub struct Hold(Arc<CachedFile>, u64);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if let Some(at) = state.holds.iter().position(|end| *end == self.1) {
            state.holds.swap_remove(at);
        }
    }
}
