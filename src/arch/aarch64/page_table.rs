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

use super::descriptor::{Attributes, ENTRIES, Entry, GROUP, PAGE_LEVEL};
use crate::arch::page;
use crate::mm::addr::{Frame, PAGE_SIZE, Page};
use crate::mm::frame::{Frames, OutOfFrames, Owner, Urgency};
use crate::mm::object::Pinned;
use crate::mm::table::{Access, Kind, PageTable, Present, Protection, Removed, Run, Stores};
use arrayvec::ArrayVec;
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

/// Tables that one call of `remove` takes out.
const TABLES_AT_A_TIME: usize = 16;

/// Level-3 tables or blocks that one call of `remove` looks through: it is called with a lock held.
const VISITS_AT_A_TIME: usize = 8;

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

/// Where a walk ended.
#[derive(Clone, Copy)]
struct Place {
    entry: NonNull<Entry>,
    value: Entry,
    level: u32,
    table: Frame,
}

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

    /// The entry that ends the walk for `page`.
    #[inline(always)]
    fn walk(&self, page: u64) -> Place {
        match self.place_in_last(page) {
            Some(place) => place,
            None => self.walk_to(page, PAGE_LEVEL),
        }
    }

    /// The entry for `page`, if it is in the table found last.
    #[inline(always)]
    fn place_in_last(&self, page: u64) -> Option<Place> {
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

    /// The entry for `page` at `target`, tables being made on the way: new ones, own ones for shared zeros, pages for a
    /// block.
    #[inline(always)]
    fn create(&mut self, page: u64, target: u32) -> Result<Place, OutOfFrames> {
        if target == PAGE_LEVEL
            && let Some(place) = self.place_in_last(page)
        {
            return Ok(place);
        }
        self.create_slowly(page, target)
    }

    /// What `page` translates to; its table will be the last, since what is found is changed next, most likely.
    #[inline(never)]
    fn find_slowly(&mut self, page: u64) -> Option<Present> {
        let place = self.walk_to(page, PAGE_LEVEL);
        if place.level == PAGE_LEVEL && !self.is_zero_table(place.table) {
            self.remember(page, place.table);
        }
        (!place.value.is_empty()).then(|| self.present_at(page, &place))
    }

    fn remember(&mut self, page: u64, table: Frame) {
        self.last = Some(Last {
            first: page & !(TABLE_PAGES - 1),
            table,
            entries: self.table(table),
            counter: self.frames.counter(table),
        });
    }

    #[inline(always)]
    fn present_at(&self, page: u64, place: &Place) -> Present {
        let offset = page % span(place.level);
        let frame = Frame(place.value.address().frame().0 + offset);
        self.present(place.value, frame, place.level)
    }

    #[inline(never)]
    fn create_slowly(&mut self, page: u64, target: u32) -> Result<Place, OutOfFrames> {
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

    fn new_table(&self) -> Result<Frame, OutOfFrames> {
        let table = self.frames.alloc(Owner::PageTable, Urgency::Critical)?;
        // SAFETY: the frame is ours.
        unsafe { page::zero(self.frames.pointer(table), 1) };
        Ok(table)
    }

    /// Replaces a shared table of zeros by an own copy. The pages in it go on translating to what they did.
    fn own_zeros(
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
    fn split_block(
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
    fn replace_table(&mut self, entry: NonNull<Entry>, table: Frame, page: u64) {
        self.store(entry, Entry::INVALID, page, PAGE_LEVEL - 1);
        self.mmu.complete_stores();
        self.mmu.forget(Page(page), Scope::Walk);
        self.mmu.complete_maintenance();
        // The barriers above order the new table's entries too.
        self.store(entry, Entry::table(table.start()), page, PAGE_LEVEL - 1);
        self.mmu.publish();
    }

    /// Takes the contiguous bit from the group that `page` is in.
    fn break_group(&mut self, table: Frame, page: u64) {
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
    fn break_groups_at_ends(&mut self, table: Frame, range: &Range<u64>) {
        for page in [range.start, range.end] {
            if page % GROUP as u64 != 0 {
                let entry = self.entry(table, page as usize % ENTRIES);
                if self.read(entry).is_contiguous() {
                    self.break_group(table, page);
                }
            }
        }
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

    /// Takes tables without entries out, from the one for `page` at `level` upwards.
    fn remove_empty_tables(&mut self, page: u64, freed: &mut FreedTables) {
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

    fn present(&self, value: Entry, frame: Frame, level: u32) -> Present {
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

    fn zero_table(&mut self, protection: Protection) -> Result<Frame, OutOfFrames> {
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

    fn enter_block(
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

    /// Break, then make, of one page: the path of most faults.
    #[inline(always)]
    fn enter_one(
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
    fn enter_several(
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

    /// What `protection` makes of a leaf, or of one that is held.
    fn protected(
        &self,
        value: Entry,
        level: u32,
        protection: Protection,
        is_shared: bool,
    ) -> Entry {
        let (kind, stores) = if value.is_owned() {
            let stores = if is_shared {
                Stores::Trap
            } else {
                Stores::Reach
            };
            (Kind::Own, stores)
        } else if value.is_file() {
            // A page that is dirty already stays writable; a clean one has its first store noted.
            let stores = if value.is_writable() {
                Stores::Reach
            } else {
                Stores::Trap
            };
            (Kind::File, stores)
        } else {
            (Kind::Zero, Stores::Trap)
        };
        if protection == Protection::NONE {
            return match kind {
                Kind::Zero => Entry::INVALID,
                _ => value.hold(),
            };
        }
        let mut new = attributes(kind, protection, stores);
        if value.is_contiguous() {
            new = new.contiguous();
        }
        Entry::leaf(value.address(), new, level)
    }

    /// `protect` for what is in one level-3 table.
    fn protect_pages(
        &mut self,
        table: Frame,
        part: Range<u64>,
        protection: Protection,
        forget: &mut Forget,
    ) {
        self.break_groups_at_ends(table, &part);
        let mut cleared = 0;
        let mut is_group_shared = false;
        for page in part {
            let entry = self.entry(table, page as usize % ENTRIES);
            let value = self.read(entry);
            if value.is_empty() {
                continue;
            }
            let frame = value.address().frame();
            let is_shared = if !value.is_owned() {
                false
            } else if !value.is_contiguous() {
                self.is_shared(frame, 1)
            } else {
                if page % GROUP as u64 == 0 {
                    is_group_shared = self.is_shared(frame, GROUP as u64);
                }
                is_group_shared
            };
            let new = self.protected(value, PAGE_LEVEL, protection, is_shared);
            if new == value {
                continue;
            }
            if !value.is_executable() && (value.is_owned() || value.is_file()) {
                self.synchronize(frame, 1, protection);
            }
            self.store(entry, new, page, PAGE_LEVEL);
            if value.is_valid() {
                forget.add(page, 1);
            }
            cleared += u32::from(new.is_empty());
        }
        if cleared > 0 {
            self.frames.subtract_from_count(table, cleared);
        }
    }

    /// Whether one of `count` frames is shared. What is one entry to the TLB has one permission: that of the least.
    fn is_shared(&self, first: Frame, count: u64) -> bool {
        (first.0..first.0 + count).any(|frame| self.frames.count(Frame(frame)) > 0)
    }

    /// The pages of `range` that are in the level-3 table of its first.
    fn in_table(range: &Range<u64>) -> Range<u64> {
        let end = (range.start & !(TABLE_PAGES - 1)) + TABLE_PAGES;
        range.start..end.min(range.end)
    }

    /// Takes a level-2 entry out that is a shared table of zeros: what is not meant will fault again.
    fn remove_zero_table(&mut self, place: &Place, page: u64) {
        let first = page & !(TABLE_PAGES - 1);
        let entry = place.entry;
        self.store(entry, Entry::INVALID, first, PAGE_LEVEL - 1);
        self.frames.subtract_from_count(place.table, 1);
    }

    /// As [`walk`](Self::walk), but ends above a shared table of zeros.
    #[inline(always)]
    fn walk_to_own(&self, page: u64) -> Place {
        let place = self.walk(page);
        if place.level == PAGE_LEVEL && self.is_zero_table(place.table) {
            return self.walk_to(page, PAGE_LEVEL - 1);
        }
        place
    }

    fn walk_to(&self, page: u64, target: u32) -> Place {
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
}

/// Tables that nothing points to any more, but the TLB may.
type FreedTables = ArrayVec<Frame, TABLES_AT_A_TIME>;

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

impl<M: Mmu> PageTables<'_, M> {
    /// Whether a single entry says that nothing is present in `range`, and no table is to go.
    #[inline(always)]
    fn is_absent(&self, range: &Range<Page>) -> bool {
        let place = self.walk(range.start.0);
        place.value.is_empty()
            && (range.start.0 | (span(place.level) - 1)) + 1 >= range.end.0
            && self.frames.count(place.table) > 0
    }

    #[inline(never)]
    fn remove_present(
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
    fn remove_pages(
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

    /// The TLB forgets, and then the tables are free.
    fn finish_removal(&mut self, mut forget: Forget, freed: &FreedTables) {
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
mod tests {
    extern crate std;

    use super::{Entry, FORGET_ALL_FROM, GROUP, PageTables, Scope, TABLE_PAGES};
    use crate::mm::addr::{Frame, Page, VirtAddr};
    use crate::mm::frame::{BLOCK_ORDER, Owner, Urgency};
    use crate::mm::table::{Access, Kind, PageTable, Protection, Removed, Stores};
    use crate::sim::Operation::{
        CompleteMaintenance, CompleteStores, Forget, ForgetAll, Order, Publish, Store,
    };
    use crate::sim::{Operation, SimMemory, SimMmu};
    use std::vec::Vec;

    const RW: Protection = Protection::READ_WRITE;
    /// In the middle of a block and of a group.
    const PAGE: Page = Page(0x4_0123);

    type Tables<'m> = PageTables<'m, SimMmu<'m>>;

    fn tables(memory: &SimMemory) -> (Tables<'_>, SimMmu<'_>) {
        let mmu = SimMmu::new(memory);
        let tables = PageTables::new(memory.frames(), mmu.clone()).unwrap();
        mmu.install(tables.root());
        (tables, mmu)
    }

    fn enter(tables: &mut Tables<'_>, page: Page, count: u64) -> Frame {
        let order = count.trailing_zeros();
        let frames = tables.frames;
        let first = frames
            .alloc_run(Owner::Anonymous, Urgency::Data, order)
            .unwrap();
        tables
            .enter(page, count, first, Kind::Own, RW, Stores::Reach)
            .unwrap();
        first
    }

    fn remove(tables: &mut Tables<'_>, pages: core::ops::Range<Page>) -> u64 {
        let mut removed = Removed::new();
        let mut count = 0;
        let mut at = pages.start;
        while at < pages.end {
            at = tables.remove(at..pages.end, &mut removed).unwrap();
            for run in removed.drain() {
                tables
                    .frames
                    .free_run(run.frame, run.count, Owner::Anonymous);
                count += run.count;
            }
        }
        count
    }

    /// Operations without the stores of tables on the way.
    fn leaves(operations: Vec<Operation>) -> Vec<Operation> {
        let is_leaf = |o: &Operation| !matches!(o, Store(_, level, _) if *level < 3);
        operations.into_iter().filter(is_leaf).collect()
    }

    #[test]
    fn a_new_page_is_ordered_after_its_bytes_and_then_published() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        enter(&mut tables, PAGE, 1);
        let operations = leaves(mmu.take_operations());
        let [.., Order, Store(page, 3, entry), Publish] = operations[..] else {
            panic!("{operations:?}");
        };
        assert_eq!((page, entry.is_writable()), (PAGE, true));
        remove(&mut tables, PAGE..Page(PAGE.0 + 1));
    }

    #[test]
    fn a_page_in_the_place_of_another_is_broken_before_it_is_made() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let old = enter(&mut tables, PAGE, 1);
        mmu.take_operations();
        let new = enter(&mut tables, PAGE, 1);
        let made =
            Entry::from_bits(new.start().0 | tables.walk(PAGE.0).value.bits() & !0xffff_ffff_f000);
        assert_eq!(
            mmu.take_operations(),
            [
                Store(PAGE, 3, Entry::INVALID),
                CompleteStores,
                Forget(PAGE, Scope::Leaf),
                CompleteMaintenance,
                Order,
                Store(PAGE, 3, made),
                Publish,
            ]
        );
        memory.frames().free(old, Owner::Anonymous);
        remove(&mut tables, PAGE..Page(PAGE.0 + 1));
    }

    #[test]
    fn the_last_page_takes_its_tables_along_and_the_walkers_forget_them() {
        let memory = SimMemory::new(4 << 20);
        let before = memory.frames().counts();
        let (mut tables, mmu) = tables(&memory);
        enter(&mut tables, PAGE, 1);
        mmu.take_operations();
        assert_eq!(remove(&mut tables, PAGE..Page(PAGE.0 + 1)), 1);
        let operations = leaves(mmu.take_operations());
        assert_eq!(
            operations,
            [
                Store(PAGE, 3, Entry::INVALID),
                CompleteStores,
                Forget(PAGE, Scope::Walk),
                CompleteMaintenance,
            ]
        );
        mmu.check();
        assert_eq!(memory.frames().counts().page_table, before.page_table + 1);
        drop(tables);
        assert_eq!(memory.frames().counts(), before);
    }

    #[test]
    fn many_pages_are_forgotten_at_once() {
        let memory = SimMemory::new(8 << 20);
        let (mut tables, mmu) = tables(&memory);
        let start = Page(0x4_0000);
        for i in 0..FORGET_ALL_FROM + 1 {
            enter(&mut tables, Page(start.0 + i), 1);
        }
        mmu.take_operations();
        remove(&mut tables, start..Page(start.0 + FORGET_ALL_FROM + 1));
        let operations = mmu.take_operations();
        assert!(operations.contains(&ForgetAll));
        assert!(!operations.iter().any(|o| matches!(o, Forget(..))));
    }

    #[test]
    fn a_whole_table_of_memory_that_is_only_read_is_one_entry() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let range = Page(0x4_0000)..Page(0x4_0000 + 4 * TABLE_PAGES);
        tables.enter_zero(PAGE, range.clone(), RW).unwrap();
        let before = memory.frames().counts();
        mmu.take_operations();
        let next = Page(PAGE.0 + TABLE_PAGES);
        assert_eq!(tables.enter_zero(next, range.clone(), RW), Ok(TABLE_PAGES));
        assert_eq!(memory.frames().counts(), before);
        assert_eq!(mmu.take_operations().len(), 2);
        assert_eq!(mmu.load(next.start()), Ok(0));
        assert!(mmu.translate(next.start(), Access::Write).is_err());
        remove(&mut tables, range);
        mmu.check();
    }

    #[test]
    fn a_store_in_shared_zeros_leaves_the_others_zeros() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let range = Page(0x4_0000)..Page(0x4_0000 + TABLE_PAGES);
        tables.enter_zero(PAGE, range.clone(), RW).unwrap();
        enter(&mut tables, PAGE, 1);
        assert!(mmu.store_byte(PAGE.start(), 1).is_ok());
        assert_eq!(mmu.load(Page(PAGE.0 + 1).start()), Ok(0));
        assert_eq!(remove(&mut tables, range), 1);
        mmu.check();
    }

    #[test]
    fn a_group_is_contiguous_until_one_of_it_changes() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let start = Page(0x4_0010);
        enter(&mut tables, start, GROUP as u64);
        assert!(tables.find(start).unwrap().is_huge);
        mmu.check_group(start);
        let third = Page(start.0 + 3);
        tables
            .protect(third..Page(third.0 + 1), Protection::READ)
            .unwrap();
        mmu.check_group(start);
        assert!(!tables.find(start).unwrap().is_huge);
        assert!(tables.find(start).unwrap().is_writable);
        assert!(!tables.find(third).unwrap().is_writable);
        assert_eq!(remove(&mut tables, start..Page(start.0 + 16)), 16);
        mmu.check();
    }

    #[test]
    fn a_block_is_protected_as_a_whole_and_split_for_a_part() {
        let memory = SimMemory::new(8 << 20);
        let (mut tables, mmu) = tables(&memory);
        let start = Page(0x4_0000);
        let end = Page(start.0 + TABLE_PAGES);
        enter(&mut tables, start, 1 << BLOCK_ORDER);
        let tables_before = memory.frames().counts().page_table;
        tables.protect(start..end, Protection::NONE).unwrap();
        assert!(tables.find(PAGE).unwrap().is_held);
        tables.protect(start..end, RW).unwrap();
        assert_eq!(memory.frames().counts().page_table, tables_before);
        assert!(mmu.store_byte(PAGE.start(), 1).is_ok());
        assert_eq!(remove(&mut tables, PAGE..Page(PAGE.0 + 1)), 1);
        assert_eq!(memory.frames().counts().page_table, tables_before + 1);
        assert!(mmu.load(PAGE.start()).is_err());
        assert!(mmu.store_byte(Page(PAGE.0 + 1).start(), 1).is_ok());
        assert_eq!(remove(&mut tables, start..end), TABLE_PAGES - 1);
        mmu.check();
    }

    #[test]
    fn a_held_page_is_out_of_reach_and_comes_back_with_its_bytes() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let range = PAGE..Page(PAGE.0 + 1);
        enter(&mut tables, PAGE, 1);
        mmu.store_byte(PAGE.start(), 42).unwrap();
        tables.protect(range.clone(), Protection::NONE).unwrap();
        assert!(mmu.load(PAGE.start()).is_err());
        tables.protect(range.clone(), RW).unwrap();
        assert_eq!(mmu.load(PAGE.start()), Ok(42));
        remove(&mut tables, range);
    }

    #[test]
    fn a_shared_page_stays_read_only() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let range = PAGE..Page(PAGE.0 + 1);
        let frame = enter(&mut tables, PAGE, 1);
        memory.frames().add_to_count(frame, 1);
        tables.protect(range.clone(), RW).unwrap();
        assert!(mmu.store_byte(PAGE.start(), 1).is_err());
        assert!(tables.find(PAGE).unwrap().may_store);
        memory.frames().subtract_from_count(frame, 1);
        tables.allow_stores(PAGE).unwrap();
        assert!(mmu.store_byte(PAGE.start(), 1).is_ok());
        remove(&mut tables, range);
    }

    #[test]
    fn no_frame_for_a_table_is_an_error_that_leaves_nothing() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let frame = memory
            .frames()
            .alloc(Owner::Anonymous, Urgency::Data)
            .unwrap();
        let mut all = Vec::new();
        while let Ok(frame) = memory.frames().alloc(Owner::Kernel, Urgency::Critical) {
            all.push(frame);
        }
        // Room for one of the three tables.
        memory.frames().free(all.pop().unwrap(), Owner::Kernel);
        let result = tables.enter(PAGE, 1, frame, Kind::Own, RW, Stores::Reach);
        assert!(result.is_err());
        assert!(tables.find(PAGE).is_none());
        remove(&mut tables, PAGE..Page(PAGE.0 + 1));
        mmu.check();
        assert_eq!(memory.frames().counts().page_table, 1);
    }

    #[test]
    fn a_protect_without_memory_leaves_no_stale_translation() {
        let memory = SimMemory::new(8 << 20);
        let (mut tables, mmu) = tables(&memory);
        let last = Page(0x4_01ff);
        enter(&mut tables, last, 1);
        enter(&mut tables, Page(0x4_0200), 1 << BLOCK_ORDER);
        mmu.store_byte(last.start(), 1).unwrap();
        while memory
            .frames()
            .alloc(Owner::Kernel, Urgency::Critical)
            .is_ok()
        {}
        let range = last..Page(0x4_0210);
        assert!(tables.protect(range, Protection::READ).is_err());
        let is_writable = tables.find(last).unwrap().is_writable;
        assert_eq!(mmu.store_byte(last.start(), 2).is_ok(), is_writable);
    }

    #[test]
    fn a_table_of_zeros_is_ordered_before_what_leads_to_it() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        // The tables above.
        enter(&mut tables, Page(PAGE.0 + 2 * TABLE_PAGES), 1);
        mmu.take_operations();
        let range = Page(0x4_0000)..Page(0x4_0000 + TABLE_PAGES);
        tables.enter_zero(PAGE, range, RW).unwrap();
        let operations = mmu.take_operations();
        assert!(matches!(operations[..], [Order, ..]), "{operations:?}");
    }

    #[test]
    fn the_highest_page_of_the_half_can_be_entered() {
        let memory = SimMemory::new(4 << 20);
        let (mut tables, mmu) = tables(&memory);
        let top = VirtAddr(0xffff_ffff_f000).page();
        enter(&mut tables, top, 1);
        assert!(mmu.store_byte(top.start(), 1).is_ok());
        let all = Page(0x10)..Page(1 << 36);
        assert_eq!(
            tables.next_present(all.clone()).map(|(page, _)| page),
            Some(top)
        );
        assert_eq!(remove(&mut tables, all), 1);
    }
}
