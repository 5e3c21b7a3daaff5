//! Pages that come.

use super::super::descriptor::{Attributes, ENTRIES, Entry, GROUP, PAGE_LEVEL};
use super::{Forget, Mmu, PageTables, Scope, TABLE_PAGES, attributes};
use crate::mm::addr::{Frame, Page};
use crate::mm::frame::{OutOfFrames, Owner, Urgency};
use crate::mm::table::{Access, Kind, Protection, Stores};

impl<M: Mmu> PageTables<'_, M> {
    /// Break, then make, of one page: the path of most faults.
    #[inline(always)]
    pub(super) fn enter_one(
        &mut self,
        page: u64,
        frame: Frame,
        attributes: Attributes,
    ) -> Result<(), OutOfFrames> {
        let place = self.create(page, PAGE_LEVEL)?;
        if place.value.is_empty() {
            self.frames.add_to_count(place.table, 1);
        } else {
            if place.value.is_contiguous() {
                self.break_group(place.table, page);
            }
            self.store(place.entry, Entry::INVALID, page, PAGE_LEVEL);
            if place.value.is_valid() {
                self.mmu.complete_stores();
                self.mmu.forget(Page(page), Scope::Leaf);
                self.mmu.complete_maintenance();
            }
        }
        self.mmu.order();
        let leaf = Entry::leaf(frame.start(), attributes, PAGE_LEVEL);
        self.store(place.entry, leaf, page, PAGE_LEVEL);
        self.mmu.publish();
        Ok(())
    }

    #[inline(never)]
    pub(super) fn enter_several(
        &mut self,
        page: u64,
        count: u64,
        first: Frame,
        mut attributes: Attributes,
        protection: Protection,
    ) -> Result<(), OutOfFrames> {
        if count == TABLE_PAGES && protection != Protection::NONE {
            return self.enter_block(page, first, attributes);
        }
        let place = self.create(page, PAGE_LEVEL)?;
        let table = place.table;
        let base = page as usize % ENTRIES;
        let is_group = count == GROUP as u64
            && page.is_multiple_of(count)
            && first.0.is_multiple_of(count)
            && protection != Protection::NONE;
        if is_group {
            attributes = attributes.contiguous();
        }
        let mut were_empty = 0;
        let mut forget = Forget::default();
        for i in 0..count {
            let entry = self.entry(table, base + i as usize);
            let value = self.read(entry);
            if value.is_empty() {
                were_empty += 1;
                continue;
            }
            if value.is_contiguous() {
                self.break_group(table, page + i);
            }
            if value.is_valid() {
                forget.add(page + i, 1);
            }
            self.store(entry, Entry::INVALID, page + i, PAGE_LEVEL);
        }
        self.forget(forget);
        self.mmu.order();
        for i in 0..count {
            let entry = self.entry(table, base + i as usize);
            let mut leaf = Entry::leaf(Frame(first.0 + i).start(), attributes, PAGE_LEVEL);
            if protection == Protection::NONE {
                leaf = leaf.hold();
            }
            self.store(entry, leaf, page + i, PAGE_LEVEL);
        }
        if were_empty > 0 {
            self.frames.add_to_count(table, were_empty);
        }
        self.mmu.publish();
        Ok(())
    }

    pub(super) fn enter_block(
        &mut self,
        page: u64,
        first: Frame,
        attributes: Attributes,
    ) -> Result<(), OutOfFrames> {
        let place = self.create(page, PAGE_LEVEL - 1)?;
        if place.value.is_empty() {
            self.frames.add_to_count(place.table, 1);
        } else {
            // A shared table of zeros: its pages must be gone first.
            assert!(self.is_zero_table(place.value.address().frame()));
            self.store(place.entry, Entry::INVALID, page, PAGE_LEVEL - 1);
            self.mmu.complete_stores();
            self.mmu.forget_all();
            self.mmu.complete_maintenance();
        }
        self.mmu.order();
        let block = Entry::leaf(first.start(), attributes, PAGE_LEVEL - 1);
        self.store(place.entry, block, page, PAGE_LEVEL - 1);
        self.mmu.publish();
        Ok(())
    }

    pub(super) fn zero_table(&mut self, protection: Protection) -> Result<Frame, OutOfFrames> {
        let slot = usize::from(protection.allows(Access::Write));
        if let Some(table) = self.zero_tables[slot] {
            return Ok(table);
        }
        let table = self.frames.alloc(Owner::PageTable, Urgency::Critical)?;
        let attributes = attributes(Kind::Zero, protection, Stores::Trap);
        let leaf = Entry::leaf(self.zero.start(), attributes, PAGE_LEVEL);
        for i in 0..ENTRIES {
            // SAFETY: the frame is ours, and nobody walks it yet.
            unsafe { self.entry(table, i).write(leaf) };
        }
        // The walker sees what is in it before it sees the entry that leads to it.
        self.mmu.order();
        self.zero_tables[slot] = Some(table);
        Ok(table)
    }
}
