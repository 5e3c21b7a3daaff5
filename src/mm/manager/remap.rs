//! Maps that move, and private pages that are shared with a copy of their map.

use super::{BATCH_PAGES, MapError, MemoryMapManager, Placement, State, pages_of, place};
use crate::mm::addr::{Frame, Page, VirtAddr};
use crate::mm::frame::{Frames, OutOfFrames};
use crate::mm::object::Condition;
use crate::mm::table::{Kind, PageTable, Protection, Removed, Stores};
use alloc::boxed::Box;
use core::ops::Range;

/// What a [`remap`](MemoryMapManager::remap) may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remap {
    /// Grow or shrink where it is.
    InPlace,
    /// Move, if it cannot grow where it is.
    MayMove,
    /// Move there, where nothing may be.
    To(VirtAddr),
}

impl<T: PageTable> MemoryMapManager<'_, T> {
    /// Registers the same maps again elsewhere: what is shared stays shared, what is private is copied when either side
    /// stores to it. Returns where.
    pub fn clone_range(
        &self,
        base: VirtAddr,
        length: u64,
        placement: Placement,
    ) -> Result<VirtAddr, MapError> {
        let range = self.range(base, length)?;
        let len = range.end - range.start;
        let mut state = self.lock_settled(&range);
        self.check_heap_room()?;
        if state.maps.is_free(&range) {
            return Err(MapError::NotMapped);
        }
        let Some(to) = place(&mut state.maps, placement, len)? else {
            return Err(MapError::Occupied);
        };
        // Sequence matters: each new map is found by its address alone, so one that is not there yet changes nothing.
        let mut at = range.start;
        while let Some(object) = state.maps.first_in(&(at..range.end)) {
            let mut copy = object.clone();
            if copy.start < range.start {
                copy = copy.split(range.start);
            }
            if copy.end > range.end {
                copy.split(range.end);
            }
            at = copy.end;
            let moved = to + (copy.start - range.start);
            copy.end = moved + (copy.end - copy.start);
            copy.start = moved;
            copy.is_locked = false;
            copy.holder = (self.holder)();
            state.maps.insert(Box::new(copy));
            if self.check_heap_room().is_err() {
                drop(state);
                self.remove_pages(to..to + len)?;
                return Err(MapError::OutOfFrames);
            }
        }
        drop(state);
        let mut page = range.start;
        while page < range.end {
            let end = range.end.min(page + BATCH_PAGES);
            let mut state = self.state.lock();
            let shared = state.share_pages(self.frames, page..end, to + (page - range.start));
            drop(state);
            if let Err(error) = shared {
                self.remove_pages(to..to + len)?;
                return Err(error);
            }
            page = end;
        }
        Ok(Page(to).start())
    }

    /// Makes the map of `length` bytes at `base` one of `new_length`, with the same contents; returns where it is.
    pub fn remap(
        &self,
        base: VirtAddr,
        length: u64,
        new_length: u64,
        how: Remap,
    ) -> Result<VirtAddr, MapError> {
        let range = self.range(base, length)?;
        let (len, new_len) = (range.end - range.start, pages_of(new_length)?);
        self.check_mapped(&range)?;
        if !matches!(how, Remap::To(_)) {
            if new_len <= len {
                if new_len < len {
                    self.remove_pages(range.start + new_len..range.end)?;
                }
                return Ok(base);
            }
            if self.grow(&range, new_len)? {
                return Ok(base);
            }
            if how == Remap::InPlace {
                return Err(MapError::Occupied);
            }
        }
        let placement = match how {
            Remap::To(address) => Placement::FixedNoReplace(address),
            _ => Placement::Anywhere,
        };
        let kept = range.start..range.start + len.min(new_len);
        let rest = kept.end..range.end;
        let moved = self.relocate(&range, kept, new_len, placement)?;
        if !rest.is_empty() {
            // Nothing is split for it any more, so it takes no memory.
            self.remove_pages(rest)?;
        }
        Ok(moved)
    }

    /// Lets the map that ends where `range` ends have `new_len` pages from the range's start, if nothing is in the way.
    fn grow(&self, range: &Range<u64>, new_len: u64) -> Result<bool, MapError> {
        let new_end = range
            .start
            .checked_add(new_len)
            .ok_or(MapError::OutOfRange)?;
        let mut state = self.lock_settled(&(range.start..new_end));
        let new = range.end..new_end;
        if !state.maps.may_hold(&new) || !state.maps.is_free(&new) {
            return Ok(false);
        }
        let last = state.maps.find(range.end - 1).ok_or(MapError::NotMapped)?;
        if last.end != range.end {
            return Ok(false);
        }
        let start = last.start;
        state.maps.grow(start, new_end);
        Ok(true)
    }

    /// Moves maps and what is present in them, a part of `whole`, which is cut out.
    fn relocate(
        &self,
        whole: &Range<u64>,
        range: Range<u64>,
        new_len: u64,
        placement: Placement,
    ) -> Result<VirtAddr, MapError> {
        let mut state = self.lock_settled(&range);
        self.cut(&mut state, whole)?;
        self.cut(&mut state, &range)?;
        let Some(to) = place(&mut state.maps, placement, new_len)? else {
            return Err(MapError::Occupied);
        };
        state.moves += 1;
        if let Err(error) = state.prepare(&range, to) {
            // The tables that were made are empty, and go again.
            state.take_out(self.frames, to..to + new_len, &mut Removed::new())?;
            return Err(error.into());
        }
        let mut at = range.start;
        while let Some(object) = state.maps.first_in(&(at..range.end)) {
            let (start, end, protection) = (object.start, object.end, object.protection);
            state.move_pages(
                self.frames,
                start..end,
                to + (start - range.start),
                protection,
            )?;
            if let Some(mut object) = state.maps.remove(start) {
                object.start = to + (start - range.start);
                object.end = to + (end - range.start);
                if end == range.end {
                    object.end = to + new_len;
                }
                state.maps.insert(object);
            }
            at = end;
        }
        Ok(Page(to).start())
    }
}

impl<T: PageTable> State<T> {
    /// Shares private pages in `range` with the pages from `to` on, where the same maps are; stores to both fault.
    fn share_pages(&mut self, frames: &Frames, range: Range<u64>, to: u64) -> Result<(), MapError> {
        let mut at = range.start;
        while let Some((page, present)) = self.table.next_present(Page(at)..Page(range.end)) {
            at = page.0 + 1;
            let target = to + (page.0 - range.start);
            let (Some(source), Some(copy)) = (self.maps.find(page.0), self.maps.find(target))
            else {
                continue;
            };
            let is_settled =
                source.condition == Condition::Live && copy.condition == Condition::Live;
            let (protection, copy_protection) = (source.protection, copy.protection);
            if present.kind != Kind::Own || !is_settled || self.table.find(Page(target)).is_some() {
                continue;
            }
            // Counted first: a page that is shared is never writable.
            frames.add_to_count(present.frame, 1);
            let entered = self
                .table
                .enter(
                    Page(target),
                    1,
                    present.frame,
                    Kind::Own,
                    copy_protection,
                    Stores::Trap,
                )
                .and_then(|()| match present.is_writable {
                    true => self.table.protect(page..Page(page.0 + 1), protection),
                    false => Ok(()),
                });
            if let Err(error) = entered {
                let is_entered = self.table.find(Page(target)).is_some();
                if !is_entered {
                    frames.subtract_from_count(present.frame, 1);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Makes the tables that moving what is present in `range` to `to` takes.
    fn prepare(&mut self, range: &Range<u64>, to: u64) -> Result<(), OutOfFrames> {
        let mut at = range.start;
        while let Some((page, _)) = self.table.next_present(Page(at)..Page(range.end)) {
            let target = to + (page.0 - range.start);
            self.table.prepare(Page(target))?;
            // On to the next table, here or there.
            let here = BATCH_PAGES - page.0 % BATCH_PAGES;
            let there = BATCH_PAGES - target % BATCH_PAGES;
            at = page.0 + here.min(there);
        }
        Ok(())
    }

    /// Moves what is present in `range` to the pages from `to` on, whose tables are there.
    fn move_pages(
        &mut self,
        frames: &Frames,
        range: Range<u64>,
        to: u64,
        protection: Protection,
    ) -> Result<(), OutOfFrames> {
        let mut removed = Removed::new();
        let mut at = range.start;
        while at < range.end {
            at = self
                .table
                .remove(Page(at)..Page(range.end), &mut removed)?
                .0;
            for run in removed.drain() {
                let mut done = 0;
                while done < run.count {
                    let page = to + (run.page.0 + done - range.start);
                    let frame = Frame(run.frame.0 + done);
                    let is_group = page.is_multiple_of(16)
                        && frame.0.is_multiple_of(16)
                        && run.count - done >= 16;
                    let count = if is_group { 16 } else { 1 };
                    let is_shared = (frame.0..frame.0 + count)
                        .any(|f| run.kind == Kind::File || frames.count(Frame(f)) > 0);
                    let stores = if is_shared {
                        Stores::Trap
                    } else {
                        Stores::Reach
                    };
                    self.table
                        .enter(Page(page), count, frame, run.kind, protection, stores)?;
                    done += count;
                }
            }
        }
        Ok(())
    }
}
