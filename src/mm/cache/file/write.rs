//! Bytes that are written to pages, and whether any may be.

use super::super::chunk::{PAGES, Slot};
use super::{CachedFile, PAGE, Room};
use crate::arch::page;
use crate::fs::FsError;
use crate::fs::error::ReadOnlyReason;
use crate::mm::addr::PAGE_SIZE;
use crate::mm::frame::Owner;
use crate::mm::object::{Pattern, Which};
use crate::mm::trace::{self, Kind};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

impl CachedFile {
    /// Writes `bytes`, which cannot fault, at `offset`, or at the end, which is nobody else's then; returns the byte behind
    /// them. The file grows where needed. An error leaves what was written before it.
    pub fn write(self: &Arc<Self>, offset: Option<u64>, bytes: &[u8]) -> Result<u64, FsError> {
        if bytes.is_empty() {
            return Ok(offset.unwrap_or_else(|| self.size()));
        }
        if let Some(reason) = self.fs.read_only() {
            return Err(FsError::ReadOnly(reason));
        }
        self.cache.limit_dirty()?;
        let resizing = self.resize();
        let offset = offset.unwrap_or_else(|| self.size());
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(FsError::FileTooLarge)?;
        let blocks = offset / PAGE..end.div_ceil(PAGE);
        if end > self.size() {
            resizing.grow_to(end)?;
        }
        self.settle_end(offset)?;
        let mut room = match self.lacks_room(blocks.clone()) {
            true => Some(self.room(blocks.clone(), end)?),
            false => None,
        };
        let mut done = 0;
        let result = loop {
            let at = offset + done as u64;
            if at == end {
                break Ok(end);
            }
            let from = (at % PAGE) as usize;
            let len = (PAGE_SIZE - from).min(bytes.len() - done);
            match self.write_block(at / PAGE, from, &bytes[done..done + len], room.as_mut()) {
                Ok(()) => done += len,
                Err(error) => break Err(error),
            }
        };
        drop(resizing);
        if let Some(room) = room {
            self.end_sharing(room);
        }
        result
    }

    /// Writes `bytes` into one block, of which they cover a part. Without `room` to take from, it had some a moment ago.
    pub(super) fn write_block(
        self: &Arc<Self>,
        block: u64,
        from: usize,
        bytes: &[u8],
        mut room: Option<&mut Room>,
    ) -> Result<(), FsError> {
        let (page, bit) = ((block % PAGES) as u32, 1u64 << (block % PAGES));
        let end = block * PAGE + (from + bytes.len()) as u64;
        let mut fresh = None;
        let result = loop {
            let mut state = self.state.lock();
            if self.is_read_only() {
                drop(state);
                break Err(self.refusal());
            }
            let frame = match state.slot(block) {
                Slot::Resident(frame) => frame,
                Slot::Busy => {
                    drop(self.wait_while(state, |state| state.slot(block) == Slot::Busy));
                    continue;
                }
                Slot::Hole => {
                    drop(state);
                    match self.fill_hole(block) {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                }
                Slot::Absent => {
                    let is_new = block * PAGE >= state.size;
                    // Without room to take it was evicted just now, and perhaps its room is gone with it.
                    let is_needed = bytes.len() < PAGE_SIZE || room.is_none();
                    if !is_new && is_needed {
                        drop(state);
                        match self.prime(block, Pattern::Normal) {
                            Ok(()) => continue,
                            Err(error) => break Err(error),
                        }
                    }
                    // No bytes of it are needed: it is not read.
                    let Some(frame) = fresh.take() else {
                        drop(state);
                        match self.alloc(false) {
                            Ok((frame, _)) => {
                                // SAFETY: the frame is ours.
                                unsafe { page::zero(self.pointer(frame), 1) };
                                fresh = Some(frame);
                            }
                            Err(_) if self.cache.reclaim_or_write() => {}
                            Err(error) => break Err(error),
                        }
                        continue;
                    };
                    match self.chunk_for(&mut state, block) {
                        Ok(chunk) => {
                            chunk.begin(page, frame);
                            chunk.publish(1 << page);
                            chunk.evicted &= !bit;
                            trace::record(Kind::Filled, self.number, block..block + 1);
                        }
                        Err(error) => {
                            fresh = Some(frame);
                            drop(state);
                            if self.cache.reclaim_or_write() {
                                continue;
                            }
                            break Err(error);
                        }
                    }
                    frame
                }
            };
            if let Some(chunk) = state.chunk(block)
                && chunk.backed & bit == 0
            {
                let Some(room) = &mut room else {
                    drop(state);
                    match self.make_room(block) {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                };
                chunk.give_room(bit, room.take(block));
            }
            if end > state.size {
                self.grow(&mut state, end);
            }
            // SAFETY: the frame is the cache's, and stays with the lock held. Programs may read or store it at the same
            // time: that is what sharing a file means.
            unsafe {
                let start = self.pointer(frame).add(from);
                start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
            state.touch(block / PAGES, 1 << (block % PAGES));
            if let Some(chunk) = state.chunk(block) {
                self.cache
                    .note_dirty(u64::from((chunk.dirty | chunk.writing) & bit == 0));
                chunk.dirty |= bit;
            }
            trace::record(Kind::Write, self.number, block..block + 1);
            break Ok(());
        };
        if let Some(frame) = fresh {
            self.cache.frames.free(frame, Owner::Cache);
        }
        result
    }

    /// Makes a page of zeros of a hole. No map shows the hole any more when the page is published.
    pub(super) fn fill_hole(self: &Arc<Self>, block: u64) -> Result<(), FsError> {
        let page = (block % PAGES) as u32;
        let frame = loop {
            match self.alloc(false) {
                Ok((frame, _)) => break frame,
                Err(_) if self.cache.reclaim_or_write() => {}
                Err(error) => return Err(error),
            }
        };
        // SAFETY: the frame is ours.
        unsafe { page::zero(self.pointer(frame), 1) };
        let mut state = self.state.lock();
        if state.slot(block) != Slot::Hole {
            drop(state);
            self.cache.frames.free(frame, Owner::Cache);
            return Ok(());
        }
        if let Some(chunk) = state.chunk(block) {
            chunk.hole &= !(1 << page);
            chunk.begin(page, frame);
        }
        drop(state);
        self.unmap(block..block + 1, Which::All);
        self.end_read(block..block + 1, Ok(()));
        Ok(())
    }

    /// Nothing of it becomes dirty from now on.
    pub fn refuse_stores(&self) {
        self.is_read_only.store(true, Ordering::Relaxed);
        // Whoever makes a page dirty at this moment has done so when this returns.
        drop(self.state.lock());
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::Relaxed)
    }

    /// Why nothing of it may become dirty. Asks the file system.
    pub(super) fn refusal(&self) -> FsError {
        let reason = self.fs.read_only();
        FsError::ReadOnly(reason.unwrap_or(ReadOnlyReason::Unmounted))
    }
}
