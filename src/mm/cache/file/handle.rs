//! A file as maps see it.

use super::super::chunk::PAGES;
use super::super::chunks::chunks_of;
use super::super::read_ahead::Window;
use super::CachedFile;
use crate::mm::addr::Frame;
use crate::mm::object::{BATCH, Dirtied, IoError, Lookup, MappableFile, Pattern, Pinned, SyncMode};
use alloc::sync::Arc;
use core::ops::Range;

/// A file as maps hold it.
pub struct FileHandle(pub(super) Arc<CachedFile>);

impl FileHandle {
    /// The file.
    pub fn file(&self) -> &Arc<CachedFile> {
        &self.0
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        // Whoever drops it may hold the maps' lock, and closing a file is work.
        if self.0.state.lock().is_unlinked {
            self.0.cache.press();
        }
    }
}

impl MappableFile for FileHandle {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn number(&self) -> u32 {
        self.0.number()
    }

    fn pin_block(&self, block: u64) -> Lookup {
        self.0.state.lock_masked().pin(block, |_, _| true)
    }

    fn pin_to_store(&self, block: u64) -> Result<Lookup, IoError> {
        let is_limited = self.0.cache.has_too_much_dirty();
        let mut is_new = false;
        let mut state = self.0.state.lock_masked();
        if self.0.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        let lookup = state.pin(block, |chunk, bit| {
            if is_limited || chunk.backed & bit == 0 {
                return false;
            }
            is_new = (chunk.dirty | chunk.writing) & bit == 0;
            chunk.dirty |= bit;
            true
        });
        drop(state);
        if is_new {
            self.0.cache.note_dirty(1);
        }
        Ok(lookup)
    }

    fn pin_resident(
        &self,
        first: u64,
        wanted: u64,
        frames: &mut [Frame; BATCH as usize],
    ) -> Pinned {
        let mut state = self.0.state.lock();
        let mut pinned = Pinned::default();
        let mut used = 0;
        let last = state.last_touched;
        // They lie in one chunk, or in two.
        let shift = first % PAGES;
        for (number, at) in [(first / PAGES, 0), (first / PAGES + 1, PAGES - shift)] {
            let wanted = if at == 0 {
                wanted << shift
            } else if at < PAGES {
                wanted >> at
            } else {
                0
            };
            if wanted == 0 {
                continue;
            }
            let Some(chunk) = state.chunks.find(number) else {
                continue;
            };
            let found = wanted & chunk.resident & !chunk.edge;
            let to = if at == 0 { -(shift as i64) } else { at as i64 };
            let groups = chunk.pin_all(found, to, frames);
            let placed = |pages: u64| if at == 0 { pages >> shift } else { pages << at };
            pinned.blocks |= placed(found);
            pinned.groups |= placed(groups);
            // Whether they are used nobody will know. But what is entered again, after its translations had been taken
            // away, lies where somebody is at work, and a scan comes by once. The page of the fault was asked for just now.
            let is_here = last / PAGES == number;
            used += chunk.touch(found & !(u64::from(is_here) << (last % PAGES)));
        }
        state.used += u64::from(used);
        pinned
    }

    fn unpin(&self, first: u64, count: u64) {
        let mut state = self.0.state.lock_masked();
        if count == 1 {
            if let Some(chunk) = state.chunk(first) {
                chunk.unpin_one((first % PAGES) as u32);
            }
            return;
        }
        for (number, pages) in chunks_of(first..first + count) {
            if let Some(chunk) = state.chunks.find(number) {
                let first = pages.trailing_zeros() as usize;
                chunk.unpin(first..first + pages.count_ones() as usize);
            }
        }
    }

    fn dirty_block(&self, block: u64) -> Result<Dirtied, IoError> {
        let bit = 1 << (block % PAGES);
        if self.0.cache.has_too_much_dirty() {
            return Ok(Dirtied::NeedsRoom);
        }
        let mut state = self.0.state.lock();
        if self.0.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        let Some(chunk) = state.chunk(block) else {
            return Ok(Dirtied::NeedsRoom);
        };
        if chunk.resident & chunk.backed & bit == 0 {
            return Ok(Dirtied::NeedsRoom);
        }
        let is_new = (chunk.dirty | chunk.writing) & bit == 0;
        chunk.dirty |= bit;
        drop(state);
        self.0.cache.note_dirty(u64::from(is_new));
        Ok(Dirtied::Done)
    }

    fn prime(&self, block: u64, pattern: Pattern) -> Result<(), IoError> {
        Ok(self.0.prime(block, pattern)?)
    }

    fn make_room(&self, block: u64) -> Result<(), IoError> {
        Ok(self.0.make_room(block)?)
    }

    fn read_ahead(&self, block: u64) {
        self.0.read_ahead(block);
    }

    fn will_need(&self, blocks: Range<u64>) {
        let end = blocks.end.min(self.0.state.lock().blocks());
        let most = self.0.max_window();
        let mut at = blocks.start;
        while at < end {
            let window = Window {
                blocks: at..end.min(at + most),
                edge: None,
            };
            // Advice: where there is no memory for it, it is not taken.
            if self.0.read_window(&window, None).is_err() {
                return;
            }
            at = window.blocks.end;
        }
    }

    fn dont_need(&self, blocks: Range<u64>) {
        self.0.evict(blocks);
    }

    fn sync(&self, blocks: Range<u64>, mode: SyncMode) -> Result<(), IoError> {
        match mode {
            SyncMode::Wait => Ok(self.0.sync(blocks)?),
            SyncMode::Start => {
                self.0.cache.press();
                Ok(())
            }
        }
    }
}
