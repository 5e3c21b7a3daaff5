//! Pages that go, and the tables that they leave empty.

use super::super::descriptor::{ENTRIES, Entry, GROUP, PAGE_LEVEL};
use super::walk::Place;
use super::{Forget, LEVELS, Mmu, PageTables, TABLE_PAGES, index, span};
use crate::mm::addr::{Frame, Page};
use crate::mm::frame::{OutOfFrames, Owner};
use crate::mm::table::{Kind, Removed, Run};
use arrayvec::ArrayVec;
use core::ops::Range;

/// Tables that one call of `remove` takes out.
const TABLES_AT_A_TIME: usize = 16;

/// Level-3 tables or blocks that one call of `remove` looks through: it is called with a lock held.
const VISITS_AT_A_TIME: usize = 8;

/// Tables that nothing points to any more, but the TLB may.
type FreedTables = ArrayVec<Frame, TABLES_AT_A_TIME>;

impl<M: Mmu> PageTables<'_, M> {
    /// Whether a single entry says that nothing is present in `range`, and no table is to go.
    #[inline(always)]
    pub(super) fn is_absent(&self, range: &Range<Page>) -> bool {
        let place = self.walk(range.start.0);
        place.value.is_empty()
            && (range.start.0 | (span(place.level) - 1)) + 1 >= range.end.0
            && self.frames.count(place.table) > 0
    }

    #[inline(never)]
    pub(super) fn remove_present(
        &mut self,
        range: Range<Page>,
        removed: &mut Removed,
    ) -> Result<Page, OutOfFrames> {
        let mut rest = range.start.0..range.end.0;
        let mut forget = Forget::default();
        let mut freed = FreedTables::new();
        let mut visits = 0;
        while !rest.is_empty() && visits < VISITS_AT_A_TIME && freed.remaining_capacity() >= LEVELS
        {
            let place = self.walk_to_own(rest.start);
            let span = span(place.level);
            let first = rest.start & !(span - 1);
            if place.level == PAGE_LEVEL {
                let part = Self::in_table(&rest);
                self.break_groups_at_ends(place.table, &part);
                let end = self.remove_pages(place.table, part.clone(), removed, &mut forget);
                if self.frames.count(place.table) == 0 {
                    self.remove_empty_tables(part.start, &mut freed);
                    forget.add(part.start, 1);
                }
                rest.start = end;
                visits += 1;
                if end < part.end {
                    break;
                }
                continue;
            }
            if place.value.is_table() {
                self.remove_zero_table(&place, rest.start);
                forget.add(first, span);
            } else if !place.value.is_empty() {
                if first < rest.start || first + span > rest.end {
                    if self.create(rest.start, PAGE_LEVEL).is_err() {
                        // What was removed so far must still leave the TLB.
                        self.finish_removal(forget, &freed);
                        return Err(OutOfFrames);
                    }
                    continue;
                }
                if removed.is_full() {
                    break;
                }
                self.store(place.entry, Entry::INVALID, first, place.level);
                self.frames.subtract_from_count(place.table, 1);
                removed.push(Run {
                    page: Page(first),
                    frame: place.value.address().frame(),
                    count: span,
                    kind: Kind::Own,
                });
                forget.add(first, span);
            }
            // A table without entries is one that somebody ran out of frames below.
            let is_empty_table = place.level > 0 && self.frames.count(place.table) == 0;
            if is_empty_table || !place.value.is_empty() {
                visits += 1;
                self.remove_empty_tables(rest.start, &mut freed);
                forget.add(rest.start, 1);
            }
            rest.start = first + span;
        }
        self.finish_removal(forget, &freed);
        Ok(Page(rest.start.min(range.end.0)))
    }

    /// Removes the pages of `part`, within one level-3 table, until `removed` is full; returns where it stopped.
    #[inline(always)]
    pub(super) fn remove_pages(
        &mut self,
        table: Frame,
        part: Range<u64>,
        removed: &mut Removed,
        forget: &mut Forget,
    ) -> u64 {
        let mut count = 0;
        let mut page = part.start;
        let mut bounds = (u64::MAX, 0);
        while page < part.end {
            let entry = self.entry(table, page as usize % ENTRIES);
            let value = self.read(entry);
            if value.is_empty() {
                page += 1;
                continue;
            }
            if removed.is_full() {
                // A group is removed as a whole or not at all.
                if !page.is_multiple_of(GROUP as u64) && value.is_contiguous() {
                    self.break_group(table, page);
                }
                break;
            }
            // A group goes at once: its frames follow each other, and nothing else needs to be asked of its entries.
            let is_group = value.is_contiguous()
                && page.is_multiple_of(GROUP as u64)
                && page + GROUP as u64 <= part.end;
            let pages = if is_group { GROUP as u64 } else { 1 };
            if value.is_owned() || value.is_file() {
                removed.push(Run {
                    page: Page(page),
                    frame: value.address().frame(),
                    count: pages,
                    kind: if value.is_owned() {
                        Kind::Own
                    } else {
                        Kind::File
                    },
                });
            }
            for i in 0..pages {
                let entry = self.entry(table, (page + i) as usize % ENTRIES);
                self.store(entry, Entry::INVALID, page + i, PAGE_LEVEL);
            }
            count += pages as u32;
            bounds = (bounds.0.min(page), page + pages);
            page += pages;
        }
        if count > 0 {
            forget.add(bounds.0, bounds.1 - bounds.0);
            self.frames.subtract_from_count(table, count);
        }
        page
    }

    /// Takes a level-2 entry out that is a shared table of zeros: what is not meant will fault again.
    pub(super) fn remove_zero_table(&mut self, place: &Place, page: u64) {
        let first = page & !(TABLE_PAGES - 1);
        let entry = place.entry;
        self.store(entry, Entry::INVALID, first, PAGE_LEVEL - 1);
        self.frames.subtract_from_count(place.table, 1);
    }

    /// Takes tables without entries out, from the one for `page` at `level` upwards.
    pub(super) fn remove_empty_tables(&mut self, page: u64, freed: &mut FreedTables) {
        let mut path = [self.root; LEVELS];
        let mut depth = 0;
        while depth < PAGE_LEVEL as usize {
            let value = self.read(self.entry(path[depth], index(page, depth as u32)));
            if !value.is_table() || self.is_zero_table(value.address().frame()) {
                break;
            }
            depth += 1;
            path[depth] = value.address().frame();
        }
        while depth > 0 && self.frames.count(path[depth]) == 0 {
            let parent = path[depth - 1];
            let entry = self.entry(parent, index(page, depth as u32 - 1));
            self.store(entry, Entry::INVALID, page, depth as u32 - 1);
            self.frames.subtract_from_count(parent, 1);
            freed.push(path[depth]);
            depth -= 1;
        }
    }

    /// The TLB forgets, and then the tables are free.
    pub(super) fn finish_removal(&mut self, mut forget: Forget, freed: &FreedTables) {
        if !freed.is_empty() {
            self.last = None;
            forget.is_walk = true;
        }
        self.forget(forget);
        for table in freed {
            self.frames.free(*table, Owner::PageTable);
        }
    }
}
