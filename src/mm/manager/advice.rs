//! What a program says of its pages, and asks of them: advice, locks, what is to be present or durable.

use super::{BATCH_PAGES, MapError, MemoryMapManager};
use crate::mm::addr::{Page, VirtAddr};
use crate::mm::object::{MappableFile, Pattern, Sharing, SyncMode};
use crate::mm::table::{Access, PageTable, Present};
use alloc::vec::Vec;
use core::ops::Range;

/// What a program says about pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// How it will touch them.
    Pattern(Pattern),
    /// It will need them.
    WillNeed,
    /// It will not: anonymous memory is zeros again, a file's is read again.
    DontNeed,
    /// It has no use for what anonymous memory holds.
    Free,
}

impl<T: PageTable> MemoryMapManager<'_, T> {
    /// Takes a program's advice.
    pub fn advise(&self, base: VirtAddr, length: u64, advice: Advice) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        self.check_mapped(&range)?;
        match advice {
            Advice::Pattern(pattern) => {
                self.change(&range, |object| object.pattern = pattern)?;
                Ok(())
            }
            Advice::WillNeed => {
                self.for_files(&range, |file, blocks| file.will_need(blocks));
                Ok(())
            }
            Advice::DontNeed | Advice::Free => {
                let state = self.state.lock();
                if state.maps.all_in(&range).any(|object| object.is_locked) {
                    return Err(MapError::Locked);
                }
                drop(state);
                let is_free = advice == Advice::Free;
                self.drop_pages(&range, |object| !is_free || object.file().is_none())?;
                if !is_free {
                    self.for_files(&range, |file, blocks| file.dont_need(blocks));
                }
                Ok(())
            }
        }
    }

    /// Drops private copies of a file's pages, so that the range shows the file again.
    pub fn invalidate(&self, base: VirtAddr, length: u64) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        self.drop_pages(&range, |object| object.file().is_some())
    }

    /// Keeps a range in memory: all of it is brought in now, and nothing lets go of it until [`unlock`](Self::unlock).
    pub fn lock(&self, base: VirtAddr, length: u64) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        self.check_mapped(&range)?;
        let parts = self.not_locked(&range)?;
        self.change(&range, |object| object.is_locked = true)?;
        let populated = self.populate_pages(range, Access::Read);
        if populated.is_err() {
            for part in parts {
                // Fails only where a map cannot be split for want of memory: that part stays locked.
                let _ = self.change(&part, |object| object.is_locked = false);
            }
        }
        populated
    }

    /// Takes [`lock`](Self::lock) back.
    pub fn unlock(&self, base: VirtAddr, length: u64) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        self.change(&range, |object| object.is_locked = false)
            .map(|_| ())
    }

    /// The parts of `range` that are not locked. The list takes its memory before it is made, with the lock open: as many
    /// maps as there are, it may be too much.
    fn not_locked(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>, MapError> {
        let mut parts = Vec::new();
        loop {
            let state = self.state.lock();
            let not_locked = || state.maps.all_in(range).filter(|map| !map.is_locked);
            let count = not_locked().count();
            if count <= parts.capacity() {
                parts.extend(
                    not_locked().map(|map| map.start.max(range.start)..map.end.min(range.end)),
                );
                return Ok(parts);
            }
            drop(state);
            parts
                .try_reserve_exact(count)
                .map_err(|_| MapError::OutOfFrames)?;
        }
    }

    /// Brings a range in as if every page had been accessed.
    pub fn populate(&self, base: VirtAddr, length: u64, access: Access) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        self.check_mapped(&range)?;
        self.populate_pages(range, access)
    }

    fn populate_pages(&self, range: Range<u64>, access: Access) -> Result<(), MapError> {
        for page in range {
            let mut state = self.state.lock();
            let is_present = state
                .table
                .find(Page(page))
                .is_some_and(|p| p.allows(access));
            drop(state);
            if !is_present {
                self.trap(Page(page).start(), access)?;
            }
        }
        Ok(())
    }

    /// Writes what was stored to shared maps of files in a range to the files.
    pub fn sync(&self, base: VirtAddr, length: u64, mode: SyncMode) -> Result<(), MapError> {
        let mut rest = self.range(base, length)?;
        loop {
            let state = self.state.lock();
            let Some(object) = state.maps.first_in(&rest) else {
                return Ok(());
            };
            let part = object.start.max(rest.start)..object.end.min(rest.end);
            let blocks =
                object.block(part.start)..object.block(part.start) + (part.end - part.start);
            let file = object
                .file()
                .filter(|file| file.sharing == Sharing::Shared)
                .cloned();
            drop(state);
            if let Some(file) = file {
                file.file.sync(blocks, mode).map_err(MapError::Io)?;
            }
            rest.start = part.end;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Under memory pressure: lets go of the pages of files, but for private copies, so that the cache can evict them.
    /// Returns how many.
    pub fn compact(&self) -> u64 {
        let mut let_go = 0;
        let mut at = 0;
        loop {
            let mut state = self.state.lock();
            let Some(object) = state.maps.first_in(&(at..u64::MAX)) else {
                return let_go;
            };
            let (start, end) = (object.start.max(at), object.end);
            let is_candidate = object.file().is_some() && !object.is_locked;
            let batch = start..end.min(start + BATCH_PAGES);
            at = batch.end;
            if is_candidate {
                let_go += state.let_go_of_file_pages(self.frames, batch);
            } else {
                at = end;
            }
        }
    }

    /// Calls `f` for each page of the range that is present.
    pub fn residency(
        &self,
        base: VirtAddr,
        length: u64,
        mut f: impl FnMut(Page, Present),
    ) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        let mut at = range.start;
        while at < range.end {
            let mut batch = [None; 64];
            let mut count = 0;
            let state = self.state.lock();
            while count < batch.len() {
                let next = state.table.next_present(Page(at)..Page(range.end));
                at = next.map_or(range.end, |(page, _)| page.0 + 1);
                let Some(next) = next else { break };
                batch[count] = Some(next);
                count += 1;
            }
            drop(state);
            for (page, present) in batch.into_iter().flatten() {
                f(page, present);
            }
        }
        Ok(())
    }

    /// Calls `f` with each file that has blocks in `range`, and those blocks.
    fn for_files(&self, range: &Range<u64>, f: impl Fn(&dyn MappableFile, Range<u64>)) {
        let mut at = range.start;
        loop {
            let state = self.state.lock();
            let Some(object) = state.maps.first_in(&(at..range.end)) else {
                return;
            };
            let part = object.start.max(at)..object.end.min(range.end);
            at = part.end;
            let first = object.block(part.start);
            let file = object.file().map(|file| file.file.clone());
            drop(state);
            if let Some(file) = file {
                f(&*file, first..first + (part.end - part.start));
            }
            if at >= range.end {
                return;
            }
        }
    }
}
