//! The low half's translation tables: four levels of 512 entries, 48 bits.
//!
//! ```text
//!  root (level 0, 512 GiB an entry) -> level 1 (1 GiB) -> level 2 (2 MiB) -> level 3 (4 KiB)
//!                                                         |   block           page
//!                                                         |                   16 pages, contiguous bit
//!                                                         '-> one of two zero tables, shared by all
//! ```
//!
//! A table's frame counts its entries in use, so that a table is freed with its last entry. Memory that is only read
//! needs no table of its own: a whole 2 MiB of it are one level-2 entry that points to a table full of the zero page.
//!
//! # Break-before-make
//!
//! Nothing valid ever becomes something else valid, but for permissions: it is made invalid, the store completes (`dsb
//! ishst`), the TLB forgets it (`tlbi`), that completes (`dsb ish`), and then the new entry is stored. That holds for the
//! output address, block and table, and the contiguous bit of all 16 entries of a group. Source: Arm Architecture
//! Reference Manual, "Using break-before-make when updating translation table entries", "TLB maintenance".
//!
//! What touches hardware goes through [`Mmu`], which a PC replaces by one that checks all this.

mod enter;
mod protect;
mod remove;
mod walk;

use super::descriptor::{Attributes, ENTRIES, Entry, GROUP, PAGE_LEVEL};
use crate::arch::page;
use crate::mm::addr::{Frame, PAGE_SIZE, Page};
use crate::mm::frame::{Frames, OutOfFrames, Owner, Urgency};
use crate::mm::object::Pinned;
use crate::mm::table::{Access, Kind, PageTable, Present, Protection, Removed, Stores};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// What a translation that the TLB should forget may be cached as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A page or a block.
    Leaf,
    /// That, and the tables on the way to it.
    Walk,
}

/// Stores to tables, barriers and TLB maintenance.
pub trait Mmu {
    /// Stores `value` in the entry for `page` at `level`.
    ///
    /// # Safety
    /// `entry` is in a table that only the caller changes.
    unsafe fn store(&mut self, entry: NonNull<Entry>, value: Entry, page: Page, level: u32);
    /// What was written to memory is seen before entries that are stored from now on: `dmb ishst`.
    fn order(&mut self);
    /// The walker sees the entries that were stored, and so do the instructions that follow: `dsb ishst`, `isb`.
    fn publish(&mut self);
    /// The walker sees the entries that were stored, before maintenance that follows: `dsb ishst`.
    fn complete_stores(&mut self);
    /// The TLBs of all cores begin to forget `page`: `tlbi vaale1is` or `vaae1is`.
    fn forget(&mut self, page: Page, scope: Scope);
    /// The TLBs of all cores begin to forget everything: `tlbi vmalle1is`.
    fn forget_all(&mut self);
    /// They have forgotten: `dsb ish`, `isb`.
    fn complete_maintenance(&mut self);
    /// Instructions fetched from the page are those last written to it.
    ///
    /// # Safety
    /// `start` is the start of a page that is mapped for the kernel.
    unsafe fn synchronize_instructions(&mut self, start: *const u8);
}

/// More pages than this, and the TLB forgets everything instead.
const FORGET_ALL_FROM: u64 = 256;

const LEVELS: usize = 4;
const SHIFT: u32 = ENTRIES.trailing_zeros();
const TABLE_PAGES: u64 = ENTRIES as u64;

/// The tables of one address space.
pub struct PageTables<'f, M> {
    frames: &'f Frames,
    mmu: M,
    root: Frame,
    zero: Frame,
    /// Tables full of the zero page: for maps that may not be written, and for those that may.
    zero_tables: [Option<Frame>; 2],
    /// The level-3 table found last: what is next to it is found without a walk.
    last: Option<Last<'f>>,
}

/// A level-3 table.
struct Last<'f> {
    /// The number of its first page.
    first: u64,
    table: Frame,
    entries: NonNull<Entry>,
    /// How many of them are in use.
    counter: &'f AtomicU32,
}

// SAFETY: the table is of those that it is kept with, which are used by one thread at a time.
unsafe impl Send for Last<'_> {}

/// What the TLB must forget.
#[derive(Default)]
struct Forget {
    pages: Option<(u64, u64)>,
    is_walk: bool,
}

impl Forget {
    fn add(&mut self, first: u64, count: u64) {
        let end = first + count;
        self.pages = Some(match self.pages {
            None => (first, end),
            Some((from, to)) => (from.min(first), to.max(end)),
        });
    }
}

impl<'f, M: Mmu> PageTables<'f, M> {
    /// Empty tables.
    pub fn new(frames: &'f Frames, mmu: M) -> Result<Self, OutOfFrames> {
        let zero = frames.alloc(Owner::Kernel, Urgency::Kernel)?;
        let root = match frames.alloc(Owner::PageTable, Urgency::Kernel) {
            Ok(root) => root,
            Err(error) => {
                frames.free(zero, Owner::Kernel);
                return Err(error);
            }
        };
        // SAFETY: both frames are ours.
        unsafe {
            page::zero(frames.pointer(zero), 1);
            page::zero(frames.pointer(root), 1);
        }
        Ok(Self {
            frames,
            mmu,
            root,
            zero,
            zero_tables: [None; 2],
            last: None,
        })
    }

    /// The table the walk begins with: for TTBR0.
    pub fn root(&self) -> Frame {
        self.root
    }

    /// What changes tables and TLB.
    pub fn mmu(&self) -> &M {
        &self.mmu
    }

    #[inline(always)]
    fn table(&self, table: Frame) -> NonNull<Entry> {
        match NonNull::new(self.frames.pointer(table).cast()) {
            Some(table) => table,
            None => unreachable!("RAM is mapped at no null pointer"),
        }
    }

    #[inline(always)]
    fn entry(&self, table: Frame, index: usize) -> NonNull<Entry> {
        debug_assert!(index < ENTRIES);
        // SAFETY: a table has `ENTRIES` entries.
        unsafe { self.table(table).add(index) }
    }

    /// All of a table, for as long as it is not changed.
    #[inline(always)]
    fn entries(&self, table: Frame) -> &[Entry; ENTRIES] {
        // SAFETY: one of our tables; hardware only reads it, and whoever changes it borrows `self` exclusively.
        unsafe { self.table(table).cast().as_ref() }
    }

    #[inline(always)]
    fn read(&self, entry: NonNull<Entry>) -> Entry {
        // SAFETY: in one of our tables; hardware only reads them.
        unsafe { entry.read() }
    }

    #[inline(always)]
    fn store(&mut self, entry: NonNull<Entry>, value: Entry, page: u64, level: u32) {
        // SAFETY: in one of our tables, and `self` is borrowed exclusively.
        unsafe { self.mmu.store(entry, value, Page(page), level) };
    }

    fn is_zero_table(&self, table: Frame) -> bool {
        self.zero_tables.contains(&Some(table))
    }

    fn forget(&mut self, forget: Forget) {
        let Some((from, to)) = forget.pages else {
            return;
        };
        self.mmu.complete_stores();
        if to - from > FORGET_ALL_FROM {
            self.mmu.forget_all();
        } else {
            let scope = if forget.is_walk {
                Scope::Walk
            } else {
                Scope::Leaf
            };
            for page in from..to {
                self.mmu.forget(Page(page), scope);
            }
        }
        self.mmu.complete_maintenance();
    }

    /// Makes a frame's instructions fetchable, if `protection` lets them be fetched.
    #[inline(always)]
    fn synchronize(&mut self, first: Frame, count: u64, protection: Protection) {
        if protection.allows(Access::Execute) {
            self.synchronize_frames(first, count);
        }
    }

    #[cold]
    fn synchronize_frames(&mut self, first: Frame, count: u64) {
        for frame in first.0..first.0 + count {
            // SAFETY: a frame of RAM, which is in the linear map.
            unsafe {
                self.mmu
                    .synchronize_instructions(self.frames.pointer(Frame(frame)));
            }
        }
    }

    /// The pages of `range` that are in the level-3 table of its first.
    fn in_table(range: &Range<u64>) -> Range<u64> {
        let end = (range.start & !(TABLE_PAGES - 1)) + TABLE_PAGES;
        range.start..end.min(range.end)
    }
}

#[inline(always)]
const fn index(page: u64, level: u32) -> usize {
    (page >> (SHIFT * (PAGE_LEVEL - level))) as usize % ENTRIES
}

/// Pages that an entry at `level` covers.
const fn span(level: u32) -> u64 {
    1 << (SHIFT * (PAGE_LEVEL - level))
}

#[inline(always)]
fn attributes(kind: Kind, protection: Protection, stores: Stores) -> Attributes {
    let mut attributes = match kind {
        Kind::Zero => Attributes::MAP,
        Kind::Own => Attributes::MAP.owned(),
        Kind::File => Attributes::MAP.file(),
    };
    if protection.allows(Access::Execute) {
        attributes = attributes.executable();
    }
    if protection.allows(Access::Write) {
        attributes = attributes.may_store();
        if stores == Stores::Reach {
            attributes = attributes.writable();
        }
    }
    attributes
}

impl<M: Mmu> PageTable for PageTables<'_, M> {
    #[inline(always)]
    fn find(&mut self, page: Page) -> Option<Present> {
        match self.place_in_last(page.0) {
            Some(place) if place.value.is_empty() => None,
            Some(place) => Some(self.present_at(page.0, &place)),
            None => self.find_slowly(page.0),
        }
    }

    #[inline(always)]
    fn is_known_absent(&self, page: Page) -> bool {
        self.place_in_last(page.0)
            .is_some_and(|place| place.value.is_empty())
    }

    fn next_present(&self, range: Range<Page>) -> Option<(Page, Present)> {
        let mut page = range.start.0;
        while page < range.end.0 {
            let place = self.walk(page);
            if !place.value.is_empty() {
                return Some((Page(page), self.present_at(page, &place)));
            }
            page = (page & !(span(place.level) - 1)) + span(place.level);
        }
        None
    }

    fn enter_zero(
        &mut self,
        page: Page,
        range: Range<Page>,
        protection: Protection,
    ) -> Result<u64, OutOfFrames> {
        let first = page.0 & !(TABLE_PAGES - 1);
        let covers = range.start.0 <= first && first + TABLE_PAGES <= range.end.0;
        if covers && !protection.allows(Access::Execute) {
            let zeros = self.zero_table(protection)?;
            let place = self.create(page.0, PAGE_LEVEL - 1)?;
            if place.value.is_empty() {
                self.frames.add_to_count(place.table, 1);
                self.store(
                    place.entry,
                    Entry::table(zeros.start()),
                    page.0,
                    PAGE_LEVEL - 1,
                );
                self.mmu.publish();
                return Ok(TABLE_PAGES);
            }
        }
        let table = self.create(page.0, PAGE_LEVEL)?.table;
        let leaf = Entry::leaf(
            self.zero.start(),
            attributes(Kind::Zero, protection, Stores::Trap),
            PAGE_LEVEL,
        );
        let mut entered = 0;
        for page in range.start.0.max(first)..range.end.0.min(first + TABLE_PAGES) {
            let entry = self.entry(table, page as usize % ENTRIES);
            if self.read(entry).is_empty() {
                self.store(entry, leaf, page, PAGE_LEVEL);
                entered += 1;
            }
        }
        self.frames.add_to_count(table, entered as u32);
        self.mmu.publish();
        Ok(entered)
    }

    #[inline]
    fn enter(
        &mut self,
        page: Page,
        count: u64,
        first: Frame,
        kind: Kind,
        protection: Protection,
        stores: Stores,
    ) -> Result<(), OutOfFrames> {
        let attributes = attributes(kind, protection, stores);
        self.synchronize(first, count, protection);
        if count == 1 && protection != Protection::NONE {
            return self.enter_one(page.0, first, attributes);
        }
        self.enter_several(page.0, count, first, attributes, protection)
    }

    #[inline(always)]
    fn enter_new(
        &mut self,
        page: Page,
        frame: Frame,
        kind: Kind,
        protection: Protection,
        stores: Stores,
    ) -> Result<(), OutOfFrames> {
        self.synchronize(frame, 1, protection);
        let place = self.create(page.0, PAGE_LEVEL)?;
        debug_assert!(place.value.is_empty() && protection != Protection::NONE);
        // It was just found.
        if let Some(last) = &self.last {
            // Not as one: a table's count changes only with the tables borrowed, as they are here.
            let count = last.counter.load(Ordering::Relaxed);
            last.counter.store(count + 1, Ordering::Relaxed);
        }
        let leaf = Entry::leaf(
            frame.start(),
            attributes(kind, protection, stores),
            PAGE_LEVEL,
        );
        self.mmu.order();
        self.store(place.entry, leaf, page.0, PAGE_LEVEL);
        self.mmu.publish();
        Ok(())
    }

    fn zero_frame(&self) -> Frame {
        self.zero
    }

    fn absent(&self, page: Page, count: u64) -> [u64; 8] {
        const WORD: usize = u64::BITS as usize;
        let count = count as usize;
        let all = core::array::from_fn(|i| match count.saturating_sub(i * WORD) {
            0 => 0,
            rest => u64::MAX >> (WORD - rest.min(WORD)),
        });
        let place = self.walk(page.0);
        if place.level < PAGE_LEVEL {
            return if place.value.is_empty() { all } else { [0; 8] };
        }
        let base = page.0 as usize % ENTRIES;
        let entries = &self.entries(place.table)[base..base + count];
        let mut absent = all;
        for (entries, at) in entries.chunks(GROUP).zip((0..).step_by(GROUP)) {
            // Most are alike.
            if entries.iter().fold(0, |all, entry| all | entry.bits()) != 0 {
                for (entry, at) in entries.iter().zip(at..) {
                    absent[at / WORD] &= !(u64::from(!entry.is_empty()) << (at % WORD));
                }
            }
        }
        absent
    }

    fn enter_file_pages(
        &mut self,
        page: Page,
        pinned: Pinned,
        frames: &[Frame; 64],
        protection: Protection,
    ) -> Result<(), OutOfFrames> {
        if pinned.blocks == 0 {
            return Ok(());
        }
        let table = self.create(page.0, PAGE_LEVEL)?.table;
        let single = attributes(Kind::File, protection, Stores::Trap);
        let base = page.0 as usize % ENTRIES;
        self.mmu.order();
        let mut rest = pinned.blocks;
        while rest != 0 {
            let i = rest.trailing_zeros() as usize;
            let (entry, at) = (self.entry(table, base + i), page.0 + i as u64);
            if pinned.groups >> i & 1 == 0 {
                self.synchronize(frames[i], 1, protection);
                let leaf = Entry::leaf(frames[i].start(), single, PAGE_LEVEL);
                self.store(entry, leaf, at, PAGE_LEVEL);
                rest &= rest - 1;
                continue;
            }
            // A group of the file is a group here, if it is aligned here, too.
            let attributes = match (base + i).is_multiple_of(GROUP) {
                true => single.contiguous(),
                false => single,
            };
            self.synchronize(frames[i], GROUP as u64, protection);
            let mut leaf = Entry::leaf(frames[i].start(), attributes, PAGE_LEVEL);
            for k in 0..GROUP {
                // SAFETY: all of them are in this table.
                self.store(unsafe { entry.add(k) }, leaf, at + k as u64, PAGE_LEVEL);
                leaf = leaf.next();
            }
            rest &= !(((1 << GROUP) - 1) << i);
        }
        self.frames.add_to_count(table, pinned.blocks.count_ones());
        self.mmu.publish();
        Ok(())
    }

    fn write_protect(&mut self, range: Range<Page>) {
        let mut forget = Forget::default();
        let mut rest = range.start.0..range.end.0;
        while !rest.is_empty() {
            let place = self.walk_to_own(rest.start);
            if place.level < PAGE_LEVEL {
                // Nothing, zeros, or a block of anonymous memory: pages of files are entered one by one.
                rest.start = (rest.start & !(span(place.level) - 1)) + span(place.level);
                continue;
            }
            let part = Self::in_table(&rest);
            for page in part.clone() {
                let entry = self.entry(place.table, page as usize % ENTRIES);
                let value = self.read(entry);
                // What is held is no different: it shows what stores it let through.
                if value.is_file() && !value.is_read_only() {
                    self.store(entry, value.write_protected(), page, PAGE_LEVEL);
                    forget.add(page, 1);
                }
            }
            rest.start = part.end;
        }
        self.forget(forget);
    }

    #[inline]
    fn is_replaceable(&self, page: Page, count: u64) -> bool {
        let place = self.walk(page.0);
        if place.level < PAGE_LEVEL {
            return place.value.is_empty();
        }
        let base = page.0 as usize % ENTRIES;
        (base..base + count as usize).all(|i| {
            let value = self.read(self.entry(place.table, i));
            !value.is_owned() && !value.is_file()
        })
    }

    fn is_block_free(&self, page: Page) -> bool {
        let place = self.walk_to(page.0, PAGE_LEVEL - 1);
        place.value.is_empty()
            || place.value.is_table() && self.is_zero_table(place.value.address().frame())
    }

    fn prepare(&mut self, page: Page) -> Result<(), OutOfFrames> {
        self.create(page.0, PAGE_LEVEL).map(|_| ())
    }

    fn allow_stores(&mut self, page: Page) -> Result<(), OutOfFrames> {
        let place = self.create(page.0, PAGE_LEVEL)?;
        if place.value.is_contiguous() {
            self.break_group(place.table, page.0);
        }
        let value = self.read(place.entry);
        let new = Entry::leaf(value.address(), value.attributes().writable(), PAGE_LEVEL);
        self.store(place.entry, new, page.0, PAGE_LEVEL);
        self.refresh(page);
        Ok(())
    }

    fn refresh(&mut self, page: Page) {
        let place = self.walk(page.0);
        if place.value.is_valid() && !place.value.is_accessed() {
            self.store(place.entry, place.value.accessed(), page.0, place.level);
        }
        self.mmu.complete_stores();
        self.mmu.forget(page, Scope::Leaf);
        self.mmu.complete_maintenance();
    }

    fn protect(&mut self, range: Range<Page>, protection: Protection) -> Result<(), OutOfFrames> {
        let mut rest = range.start.0..range.end.0;
        let mut forget = Forget::default();
        let mut outcome = Ok(());
        while !rest.is_empty() {
            let place = self.walk_to_own(rest.start);
            let span = span(place.level);
            let first = rest.start & !(span - 1);
            if place.level == PAGE_LEVEL {
                let part = Self::in_table(&rest);
                self.protect_pages(place.table, part.clone(), protection, &mut forget);
                rest.start = part.end;
                continue;
            }
            if place.value.is_table() {
                // What was meant to stay readable will fault again.
                self.remove_zero_table(&place, first);
                forget.add(first, TABLE_PAGES);
            } else if !place.value.is_empty() {
                if first < rest.start || first + span > rest.end {
                    match self.create(rest.start, PAGE_LEVEL) {
                        Ok(_) => continue,
                        // What was changed so far is told to the TLB.
                        Err(error) => outcome = Err(error),
                    }
                    break;
                }
                let frame = place.value.address().frame();
                let is_shared = self.is_shared(frame, span);
                let new = self.protected(place.value, place.level, protection, is_shared);
                if new != place.value {
                    if !place.value.is_executable() {
                        self.synchronize(frame, span, protection);
                    }
                    self.store(place.entry, new, first, place.level);
                    if place.value.is_valid() {
                        forget.add(first, span);
                    }
                }
            }
            rest.start = first + span;
        }
        match forget.pages {
            Some(_) => self.forget(forget),
            // From invalid to valid: the TLB has nothing to forget.
            None => self.mmu.publish(),
        }
        outcome
    }

    #[inline]
    fn remove(&mut self, range: Range<Page>, removed: &mut Removed) -> Result<Page, OutOfFrames> {
        match self.is_absent(&range) {
            true => Ok(range.end),
            false => self.remove_present(range, removed),
        }
    }
}

impl<M> Drop for PageTables<'_, M> {
    fn drop(&mut self) {
        // The maps are gone, so all that is left is the root, the page of zeros and its tables.
        for table in self.zero_tables.into_iter().flatten().chain([self.root]) {
            self.frames.free(table, Owner::PageTable);
        }
        self.frames.free(self.zero, Owner::Kernel);
    }
}

const _: () = assert!(ENTRIES * size_of::<Entry>() == PAGE_SIZE);

#[cfg(test)]
mod tests;
