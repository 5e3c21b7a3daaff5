//! Ways to an entry, and the tables that are made on them.

use super::super::descriptor::{ENTRIES, Entry, GROUP, PAGE_LEVEL};
use super::{Last, Mmu, PageTables, Scope, TABLE_PAGES, index, span};
use crate::arch::page;
use crate::mm::addr::{Frame, Page};
use crate::mm::frame::{OutOfFrames, Owner, Urgency};
use crate::mm::table::{Kind, Present};
use core::ops::Range;
use core::ptr::NonNull;

/// Where a walk ended.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub entry: NonNull<Entry>,
    pub value: Entry,
    pub level: u32,
    pub table: Frame,
}

impl<M: Mmu> PageTables<'_, M> {
    /// The entry that ends the walk for `page`.
    #[inline(always)]
    pub(super) fn walk(&self, page: u64) -> Place {
        match self.place_in_last(page) {
            Some(place) => place,
            None => self.walk_to(page, PAGE_LEVEL),
        }
    }

    /// The entry for `page`, if it is in the table found last.
    #[inline(always)]
    pub(super) fn place_in_last(&self, page: u64) -> Option<Place> {
        let last = self.last.as_ref()?;
        if page & !(TABLE_PAGES - 1) != last.first {
            return None;
        }
        // SAFETY: a table has `ENTRIES` entries.
        let entry = unsafe { last.entries.add(page as usize % ENTRIES) };
        Some(Place {
            entry,
            value: self.read(entry),
            level: PAGE_LEVEL,
            table: last.table,
        })
    }

    pub(super) fn walk_to(&self, page: u64, target: u32) -> Place {
        let mut table = self.root;
        for level in 0.. {
            let entry = self.entry(table, index(page, level));
            let value = self.read(entry);
            if level == target || !value.is_table() {
                return Place {
                    entry,
                    value,
                    level,
                    table,
                };
            }
            table = value.address().frame();
        }
        unreachable!("the loop ends at `target`")
    }

    /// As [`walk`](Self::walk), but ends above a shared table of zeros.
    #[inline(always)]
    pub(super) fn walk_to_own(&self, page: u64) -> Place {
        let place = self.walk(page);
        if place.level == PAGE_LEVEL && self.is_zero_table(place.table) {
            return self.walk_to(page, PAGE_LEVEL - 1);
        }
        place
    }

    /// What `page` translates to; its table will be the last, since what is found is changed next, most likely.
    #[inline(never)]
    pub(super) fn find_slowly(&mut self, page: u64) -> Option<Present> {
        let place = self.walk_to(page, PAGE_LEVEL);
        if place.level == PAGE_LEVEL && !self.is_zero_table(place.table) {
            self.remember(page, place.table);
        }
        (!place.value.is_empty()).then(|| self.present_at(page, &place))
    }

    pub(super) fn remember(&mut self, page: u64, table: Frame) {
        self.last = Some(Last {
            first: page & !(TABLE_PAGES - 1),
            table,
            entries: self.table(table),
            counter: self.frames.counter(table),
        });
    }

    #[inline(always)]
    pub(super) fn present_at(&self, page: u64, place: &Place) -> Present {
        let offset = page % span(place.level);
        let frame = Frame(place.value.address().frame().0 + offset);
        self.present(place.value, frame, place.level)
    }

    pub(super) fn present(&self, value: Entry, frame: Frame, level: u32) -> Present {
        let kind = if value.is_owned() {
            Kind::Own
        } else if value.is_file() {
            Kind::File
        } else {
            Kind::Zero
        };
        Present {
            kind,
            frame,
            is_huge: level < PAGE_LEVEL || value.is_contiguous(),
            is_writable: value.is_writable(),
            is_executable: value.is_executable(),
            may_store: value.may_store(),
            is_held: value.is_held(),
        }
    }

    /// The entry for `page` at `target`, tables being made on the way: new ones, own ones for shared zeros, pages for a
    /// block.
    #[inline(always)]
    pub(super) fn create(&mut self, page: u64, target: u32) -> Result<Place, OutOfFrames> {
        if target == PAGE_LEVEL
            && let Some(place) = self.place_in_last(page)
        {
            return Ok(place);
        }
        self.create_slowly(page, target)
    }

    #[inline(never)]
    pub(super) fn create_slowly(&mut self, page: u64, target: u32) -> Result<Place, OutOfFrames> {
        let mut table = self.root;
        let mut level = 0;
        loop {
            let entry = self.entry(table, index(page, level));
            let value = self.read(entry);
            if level == target {
                if level == PAGE_LEVEL {
                    self.remember(page, table);
                }
                return Ok(Place {
                    entry,
                    value,
                    level,
                    table,
                });
            }
            let next = value.address().frame();
            table = if value.is_empty() {
                let new = self.new_table()?;
                self.mmu.order();
                self.store(entry, Entry::table(new.start()), page, level);
                self.frames.add_to_count(table, 1);
                new
            } else if value.is_block() || value.is_held() {
                self.split_block(entry, value, page)?
            } else if self.is_zero_table(next) {
                self.own_zeros(entry, next, page)?
            } else {
                next
            };
            level += 1;
        }
    }

    pub(super) fn new_table(&self) -> Result<Frame, OutOfFrames> {
        let table = self.frames.alloc(Owner::PageTable, Urgency::Critical)?;
        // SAFETY: the frame is ours.
        unsafe { page::zero(self.frames.pointer(table), 1) };
        Ok(table)
    }

    /// Replaces a shared table of zeros by an own copy. The pages in it go on translating to what they did.
    pub(super) fn own_zeros(
        &mut self,
        entry: NonNull<Entry>,
        shared: Frame,
        page: u64,
    ) -> Result<Frame, OutOfFrames> {
        let own = self.frames.alloc(Owner::PageTable, Urgency::Critical)?;
        // SAFETY: the new frame is ours, the other one of our tables.
        unsafe { page::copy(self.frames.pointer(own), self.frames.pointer(shared)) };
        self.frames.add_to_count(own, ENTRIES as u32);
        self.replace_table(entry, own, page);
        Ok(own)
    }

    /// Replaces a block by its pages, in contiguous groups.
    pub(super) fn split_block(
        &mut self,
        entry: NonNull<Entry>,
        block: Entry,
        page: u64,
    ) -> Result<Frame, OutOfFrames> {
        let table = self.frames.alloc(Owner::PageTable, Urgency::Critical)?;
        let attributes = block.attributes();
        let first = block.address().frame();
        for i in 0..ENTRIES {
            let frame = Frame(first.0 + i as u64);
            let leaf = if block.is_held() {
                Entry::leaf(frame.start(), attributes, PAGE_LEVEL).hold()
            } else {
                Entry::leaf(frame.start(), attributes.contiguous(), PAGE_LEVEL)
            };
            // SAFETY: the frame is ours, and nobody walks it yet.
            unsafe { self.entry(table, i).write(leaf) };
        }
        self.frames.add_to_count(table, ENTRIES as u32);
        self.replace_table(entry, table, page);
        Ok(table)
    }

    /// Break, then make, of a level-2 entry.
    pub(super) fn replace_table(&mut self, entry: NonNull<Entry>, table: Frame, page: u64) {
        self.store(entry, Entry::INVALID, page, PAGE_LEVEL - 1);
        self.mmu.complete_stores();
        self.mmu.forget(Page(page), Scope::Walk);
        self.mmu.complete_maintenance();
        // The barriers above order the new table's entries too.
        self.store(entry, Entry::table(table.start()), page, PAGE_LEVEL - 1);
        self.mmu.publish();
    }

    /// Takes the contiguous bit from the group that `page` is in.
    pub(super) fn break_group(&mut self, table: Frame, page: u64) {
        let page = page & !(GROUP as u64 - 1);
        let base = page as usize % ENTRIES;
        let values: [Entry; GROUP] =
            core::array::from_fn(|i| self.read(self.entry(table, base + i)));
        for i in 0..GROUP {
            let entry = self.entry(table, base + i);
            self.store(entry, Entry::INVALID, page + i as u64, PAGE_LEVEL);
        }
        self.mmu.complete_stores();
        for i in 0..GROUP {
            self.mmu.forget(Page(page + i as u64), Scope::Leaf);
        }
        self.mmu.complete_maintenance();
        for (i, value) in values.into_iter().enumerate() {
            let entry = self.entry(table, base + i);
            self.store(entry, value.single(), page + i as u64, PAGE_LEVEL);
        }
        self.mmu.publish();
    }

    /// Breaks the groups that a change of `range`, within one level-3 table, would cut.
    pub(super) fn break_groups_at_ends(&mut self, table: Frame, range: &Range<u64>) {
        for page in [range.start, range.end] {
            if page % GROUP as u64 != 0 {
                let entry = self.entry(table, page as usize % ENTRIES);
                if self.read(entry).is_contiguous() {
                    self.break_group(table, page);
                }
            }
        }
    }
}
