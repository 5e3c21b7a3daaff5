//! The simulated machine, for tests on a PC: memory, and an MMU with a TLB that panics on what hardware would corrupt.

extern crate std;

use crate::arch::aarch64::descriptor::{ENTRIES, Entry, GROUP, PAGE_LEVEL};
use crate::arch::aarch64::page_table::{Mmu, Scope};
use crate::mm::addr::{Frame, Page, PhysAddr, VirtAddr};
use crate::mm::frame::{Frames, Owner};
use crate::mm::table::Access;
use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Vec;

/// RAM of a simulated machine, and its frames.
pub struct SimMemory {
    frames: Frames,
    start: *mut u8,
    layout: Layout,
}

// SAFETY: what the pointer leads to is the frame allocator's, which is `Sync`.
unsafe impl Send for SimMemory {}
// SAFETY: as above.
unsafe impl Sync for SimMemory {}

/// Where the RAM of a simulated machine begins.
const BASE: PhysAddr = PhysAddr(0x4000_0000);

impl SimMemory {
    /// A machine with `bytes` of RAM, all of it the frame allocator's.
    pub fn new(bytes: u64) -> Self {
        let memory = Self::unused(bytes);
        let end = PhysAddr(BASE.0 + bytes);
        // SAFETY: the arena lives as long as the allocator, and nobody else uses it.
        if let Err(error) = unsafe { memory.frames.add_ram(BASE..end, &[]) } {
            panic!("{bytes} bytes: {error}");
        }
        memory
    }

    /// The same, with nothing of it given to the frame allocator.
    pub fn unused(bytes: u64) -> Self {
        // As aligned as the machine's physical memory, so that blocks lie at multiples of their size.
        let layout = match Layout::from_size_align(bytes as usize, 1 << 25) {
            Ok(layout) => layout,
            Err(error) => panic!("{bytes} bytes: {error}"),
        };
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        let address = start.expose_provenance();
        assert!(!start.is_null(), "the PC is out of memory");
        Self {
            frames: Frames::new(address.wrapping_sub(BASE.0 as usize)),
            start,
            layout,
        }
    }

    /// Where it begins.
    pub fn base(&self) -> PhysAddr {
        BASE
    }

    /// Its frames.
    pub fn frames(&self) -> &Frames {
        &self.frames
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; whoever borrowed the frames is gone.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// An MMU that translates through tables in [`SimMemory`], and has the worst TLB there can be: it holds every translation
/// that was ever valid until it is told to forget it, so whatever could go wrong on hardware panics here, always.
///
/// | Panics on | Because hardware |
/// | --- | --- |
/// | a valid entry that becomes another without break-before-make | may mix both, or raise a TLB conflict |
/// | maintenance before the stores are complete | may walk the old entry again |
/// | an access while a translation that differs is in the TLB | may use either |
/// | an access before the entry is published | may not see it |
/// | a frame or a table that is freed while the TLB has it | reads and writes what is another's by now |
/// | a contiguous group that is not one | may use any of its entries for all |
///
/// Clones share the MMU.
#[derive(Clone)]
pub struct SimMmu<'m>(Arc<Mutex<State<'m>>>);

/// What became of translations that were valid.
#[derive(Clone, Copy)]
struct Stale {
    entry: Entry,
    level: u32,
    /// A `tlbi` was given, and is not complete.
    is_forgetting: bool,
}

struct State<'m> {
    memory: &'m SimMemory,
    root: Option<Frame>,
    /// By page, what the TLB may still have.
    leaves: BTreeMap<u64, Vec<Stale>>,
    /// Tables that were taken out, with the pages they covered.
    tables: Vec<(u64, u64, Frame, bool)>,
    unpublished: bool,
    incomplete_stores: bool,
    incomplete_maintenance: bool,
    operations: Vec<Operation>,
}

/// What the MMU was told, for tests that look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// An entry for this page at this level.
    Store(Page, u32, Entry),
    /// `dmb ishst`
    Order,
    /// `dsb ishst`, `isb`
    Publish,
    /// `dsb ishst`
    CompleteStores,
    /// `tlbi`
    Forget(Page, Scope),
    /// `tlbi vmalle1is`
    ForgetAll,
    /// `dsb ish`, `isb`
    CompleteMaintenance,
    /// `dc cvau` to `ic ivau`
    SynchronizeInstructions,
}

impl<'m> SimMmu<'m> {
    /// An MMU without tables.
    pub fn new(memory: &'m SimMemory) -> Self {
        Self(Arc::new(Mutex::new(State {
            memory,
            root: None,
            leaves: BTreeMap::new(),
            tables: Vec::new(),
            unpublished: false,
            incomplete_stores: false,
            incomplete_maintenance: false,
            operations: Vec::new(),
        })))
    }

    /// Sets the table that walks begin with.
    pub fn install(&self, root: Frame) {
        self.state(|state| state.root = Some(root));
    }

    fn state<R>(&self, f: impl FnOnce(&mut State<'m>) -> R) -> R {
        // A test that panicked in here is to be seen by its own message, not by another's.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What it was told since this was asked last.
    pub fn take_operations(&self) -> Vec<Operation> {
        self.state(|state| core::mem::take(&mut state.operations))
    }

    /// Where an access goes, or that it faults, at this level.
    pub fn translate(&self, address: VirtAddr, access: Access) -> Result<*mut u8, u32> {
        self.state(|state| state.translate(address, access))
    }

    /// A load of one byte.
    pub fn load(&self, address: VirtAddr) -> Result<u8, u32> {
        let pointer = self.translate(address, Access::Read)?;
        // SAFETY: in a frame that is mapped, and tests run one access at a time.
        Ok(unsafe { pointer.read_volatile() })
    }

    /// A store of one byte.
    pub fn store_byte(&self, address: VirtAddr, value: u8) -> Result<(), u32> {
        let pointer = self.translate(address, Access::Write)?;
        // SAFETY: as above.
        unsafe { pointer.write_volatile(value) };
        Ok(())
    }
}

impl State<'_> {
    fn table(&self, table: Frame) -> &[Entry; ENTRIES] {
        // SAFETY: a table's frame, aligned; nobody changes it while the state is locked.
        unsafe { &*self.memory.frames().pointer(table).cast() }
    }

    /// The entry that ends the walk, and its level.
    fn walk(&self, page: u64) -> (Entry, u32) {
        let Some(mut table) = self.root else {
            return (Entry::INVALID, 0);
        };
        for level in 0.. {
            let entry = self.table(table)[index(page, level)];
            if level == PAGE_LEVEL || !entry.is_table() {
                return (entry, level);
            }
            table = entry.address().frame();
        }
        unreachable!("the loop ends at the last level")
    }

    fn translate(&self, address: VirtAddr, access: Access) -> Result<*mut u8, u32> {
        let page = address.page().0;
        assert!(
            !self.unpublished,
            "{address} is used before its entry is published"
        );
        let (entry, level) = self.walk(page);
        let frame = frame_at(entry, level, page);
        for stale in self.leaves.get(&page).into_iter().flatten() {
            let is_same = (stale.level, frame_at(stale.entry, stale.level, page)) == (level, frame);
            let is_same = is_same && stale.entry == entry;
            assert!(
                is_same,
                "{address} is used while the TLB may have a stale translation"
            );
        }
        let is_allowed = entry.is_valid()
            && entry.is_accessed()
            && match access {
                Access::Read => true,
                Access::Write => entry.is_writable(),
                Access::Execute => entry.is_executable(),
            };
        if !is_allowed {
            return Err(level);
        }
        assert_ne!(
            self.memory.frames().owner(frame),
            Owner::Free,
            "{address} translates to a frame that is free"
        );
        let pointer = self.memory.frames().pointer(frame);
        Ok(pointer.wrapping_add(address.page_offset()))
    }

    /// The TLB may have all valid leaves below `entry`.
    fn retire(&mut self, entry: Entry, page: u64, level: u32) {
        if !entry.is_valid() {
            return;
        }
        let span = span(level);
        let first = page & !(span - 1);
        if level < PAGE_LEVEL && entry.is_table() {
            let frame = entry.address().frame();
            let table = *self.table(frame);
            for (i, entry) in table.into_iter().enumerate() {
                self.retire(entry, first + i as u64 * span / ENTRIES as u64, level + 1);
            }
            self.tables.push((first, first + span, frame, false));
        } else {
            let stale = Stale {
                entry,
                level,
                is_forgetting: false,
            };
            for page in first..first + span {
                self.leaves.entry(page).or_default().push(stale);
            }
        }
    }

    /// Panics where making `entry` valid breaks break-before-make.
    fn check_new(&self, entry: Entry, page: u64, level: u32) {
        if !entry.is_valid() {
            return;
        }
        let span = span(level);
        let first = page & !(span - 1);
        if level < PAGE_LEVEL && entry.is_table() {
            let table = *self.table(entry.address().frame());
            for (i, entry) in table.into_iter().enumerate() {
                self.check_new(entry, first + i as u64 * span / ENTRIES as u64, level + 1);
            }
            return;
        }
        for page in first..first + span {
            for stale in self.leaves.get(&page).into_iter().flatten() {
                let may_follow =
                    stale.level == level && only_permissions_differ(stale.entry, entry);
                assert!(
                    may_follow,
                    "{:?} gets {entry:?} at level {level} while the TLB may have {:?}: break-before-make",
                    Page(page),
                    stale.entry
                );
            }
        }
    }

    /// The group that `page` is in is all contiguous and alike, or not contiguous at all.
    fn check_group(&self, page: u64) {
        let first = page & !(GROUP as u64 - 1);
        let (head, level) = self.walk(first);
        if level < PAGE_LEVEL {
            return;
        }
        for i in 0..GROUP as u64 {
            let (entry, _) = self.walk(first + i);
            assert_eq!(
                entry.is_valid() && entry.is_contiguous(),
                head.is_valid() && head.is_contiguous(),
                "the contiguous group at {:?} is torn",
                Page(first)
            );
            if entry.is_contiguous() {
                assert_eq!(entry.address().frame().0, head.address().frame().0 + i);
                assert_eq!(entry.attributes(), head.attributes());
            }
        }
    }

    fn begin_to_forget(&mut self, pages: Option<Page>, scope: Scope) {
        assert!(
            !self.incomplete_stores,
            "the TLB is told to forget before the stores are complete"
        );
        self.incomplete_maintenance = true;
        match pages {
            Some(page) => {
                for stale in self.leaves.get_mut(&page.0).into_iter().flatten() {
                    // A block is one translation: it goes as a whole.
                    stale.is_forgetting = true;
                }
                let blocks: Vec<u64> = self
                    .leaves
                    .get(&page.0)
                    .into_iter()
                    .flatten()
                    .filter(|stale| stale.level < PAGE_LEVEL)
                    .map(|stale| page.0 & !(span(stale.level) - 1))
                    .collect();
                for first in blocks {
                    for (_, stale) in self.leaves.range_mut(first..first + span(PAGE_LEVEL - 1)) {
                        stale
                            .iter_mut()
                            .filter(|stale| stale.level < PAGE_LEVEL)
                            .for_each(|stale| stale.is_forgetting = true);
                    }
                }
                if scope == Scope::Walk {
                    for table in &mut self.tables {
                        table.3 |= (table.0..table.1).contains(&page.0);
                    }
                }
            }
            None => {
                self.leaves
                    .values_mut()
                    .flatten()
                    .for_each(|stale| stale.is_forgetting = true);
                self.tables.iter_mut().for_each(|table| table.3 = true);
            }
        }
    }

    /// Panics where what the TLB may have was freed already.
    fn check_owners(&self) {
        let frames = self.memory.frames();
        for (page, stale) in &self.leaves {
            for stale in stale {
                let frame = frame_at(stale.entry, stale.level, *page);
                assert_ne!(
                    frames.owner(frame),
                    Owner::Free,
                    "{frame:?} was freed while the TLB has it"
                );
            }
        }
        for (_, _, table, _) in &self.tables {
            // The shared tables of zeros stay; all others must not be freed yet.
            assert_eq!(
                frames.owner(*table),
                Owner::PageTable,
                "{table:?} was freed while the TLB has it"
            );
        }
    }
}

fn only_permissions_differ(old: Entry, new: Entry) -> bool {
    const PERMISSIONS: u64 = 1 << 7 | 1 << 10 | 1 << 53 | 0b1111 << 55; // AP[2], AF, PXN, software
    (old.bits() ^ new.bits()) & !PERMISSIONS == 0
}

fn frame_at(entry: Entry, level: u32, page: u64) -> Frame {
    Frame(entry.address().frame().0 + page % span(level))
}

const fn span(level: u32) -> u64 {
    1 << (9 * (PAGE_LEVEL - level))
}

const fn index(page: u64, level: u32) -> usize {
    (page >> (9 * (PAGE_LEVEL - level))) as usize % ENTRIES
}

impl Mmu for SimMmu<'_> {
    unsafe fn store(&mut self, entry: NonNull<Entry>, value: Entry, page: Page, level: u32) {
        self.state(|state| {
            // SAFETY: the caller's promise.
            let old = unsafe { entry.read() };
            if old == value {
                return;
            }
            if old.is_valid() && value.is_valid() {
                let is_table = |entry: Entry| level < PAGE_LEVEL && entry.is_table();
                assert!(
                    !is_table(old) && !is_table(value) && only_permissions_differ(old, value),
                    "{page:?} at level {level}: {old:?} becomes {value:?} without break-before-make"
                );
            }
            state.retire(old, page.0, level);
            state.check_new(value, page.0, level);
            // SAFETY: as above.
            unsafe { entry.write(value) };
            state.unpublished |= value.is_valid();
            state.incomplete_stores = true;
            state.operations.push(Operation::Store(page, level, value));
        });
    }

    fn order(&mut self) {
        self.state(|state| state.operations.push(Operation::Order));
    }

    fn publish(&mut self) {
        self.state(|state| {
            state.unpublished = false;
            state.incomplete_stores = false;
            state.operations.push(Operation::Publish);
        });
    }

    fn complete_stores(&mut self) {
        self.state(|state| {
            state.incomplete_stores = false;
            state.operations.push(Operation::CompleteStores);
        });
    }

    fn forget(&mut self, page: Page, scope: Scope) {
        self.state(|state| {
            state.begin_to_forget(Some(page), scope);
            state.operations.push(Operation::Forget(page, scope));
        });
    }

    fn forget_all(&mut self) {
        self.state(|state| {
            state.begin_to_forget(None, Scope::Walk);
            state.operations.push(Operation::ForgetAll);
        });
    }

    fn complete_maintenance(&mut self) {
        self.state(|state| {
            state.check_owners();
            state
                .leaves
                .values_mut()
                .for_each(|stale| stale.retain(|stale| !stale.is_forgetting));
            state.leaves.retain(|_, stale| !stale.is_empty());
            state.tables.retain(|table| !table.3);
            state.incomplete_maintenance = false;
            // `isb`: what was stored before is seen too.
            state.unpublished = false;
            state.operations.push(Operation::CompleteMaintenance);
        });
    }

    unsafe fn synchronize_instructions(&mut self, _: *const u8) {
        self.state(|state| state.operations.push(Operation::SynchronizeInstructions));
    }
}

impl SimMmu<'_> {
    /// Panics where the MMU was left in the middle of something: what is checked between operations.
    pub fn check(&self) {
        self.state(|state| {
            assert!(!state.unpublished && !state.incomplete_maintenance);
            state.check_owners();
            for (page, stale) in &state.leaves {
                let (entry, level) = state.walk(*page);
                for stale in stale {
                    assert!(
                        stale.level == level && stale.entry == entry,
                        "{:?} was {:?}, is {entry:?}, and the TLB was never told",
                        Page(*page),
                        stale.entry
                    );
                }
            }
            assert!(
                state.tables.is_empty(),
                "a table was taken out, and the TLB was never told"
            );
        });
    }

    /// Panics where a contiguous group near `page` is not one.
    pub fn check_group(&self, page: Page) {
        self.state(|state| state.check_group(page.0));
    }
}

#[cfg(test)]
mod tests {
    use super::{SimMemory, SimMmu};
    use crate::arch::aarch64::descriptor::{Attributes, Entry, PAGE_LEVEL};
    use crate::arch::aarch64::page_table::{Mmu, Scope};
    use crate::mm::addr::{Frame, Page, VirtAddr};
    use crate::mm::frame::{Owner, Urgency};
    use crate::mm::table::Access;
    use core::ptr::NonNull;

    /// One path of tables to page 1, which nothing checks but the MMU.
    struct Bench<'m> {
        memory: &'m SimMemory,
        mmu: SimMmu<'m>,
        last: Frame,
    }

    const PAGE: Page = Page(1);
    const ADDRESS: VirtAddr = VirtAddr(0x1000);

    impl<'m> Bench<'m> {
        fn new(memory: &'m SimMemory) -> Self {
            let mmu = SimMmu::new(memory);
            let frames = memory.frames();
            let tables = [(); 4].map(|()| {
                let table = frames.alloc(Owner::PageTable, Urgency::Data).unwrap();
                // SAFETY: the frame is ours.
                unsafe { frames.pointer(table).write_bytes(0, 4096) };
                table
            });
            mmu.install(tables[0]);
            let mut bench = Self {
                memory,
                mmu,
                last: tables[3],
            };
            for level in 0..3 {
                let next = Entry::table(tables[level + 1].start());
                bench.write(tables[level], 0, next, PAGE, level as u32);
            }
            bench.mmu.publish();
            bench
        }

        fn write(&mut self, table: Frame, index: usize, value: Entry, page: Page, level: u32) {
            let table = self.memory.frames().pointer(table).cast::<Entry>();
            // SAFETY: a table of ours.
            unsafe {
                let entry = NonNull::new(table.add(index)).unwrap();
                self.mmu.store(entry, value, page, level);
            }
        }

        fn set(&mut self, value: Entry) {
            self.write(self.last, 1, value, PAGE, PAGE_LEVEL);
        }

        fn page(&self, attributes: Attributes) -> Entry {
            let frames = self.memory.frames();
            let frame = frames.alloc(Owner::Anonymous, Urgency::Data).unwrap();
            Entry::leaf(frame.start(), attributes, PAGE_LEVEL)
        }

        fn forget(&mut self) {
            self.mmu.complete_stores();
            self.mmu.forget(PAGE, Scope::Leaf);
            self.mmu.complete_maintenance();
        }
    }

    #[test]
    fn break_before_make_is_accepted() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let (old, new) = (bench.page(Attributes::MAP), bench.page(Attributes::MAP));
        bench.set(old);
        bench.mmu.publish();
        assert!(bench.mmu.load(ADDRESS).is_ok());
        bench.set(Entry::INVALID);
        bench.forget();
        assert_eq!(bench.mmu.load(ADDRESS), Err(PAGE_LEVEL));
        bench.set(new);
        bench.mmu.publish();
        assert!(bench.mmu.load(ADDRESS).is_ok());
        assert!(bench.mmu.store_byte(ADDRESS, 1).is_err());
        bench.mmu.check();
    }

    #[test]
    #[should_panic(expected = "without break-before-make")]
    fn a_live_entry_is_not_replaced() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let (old, new) = (bench.page(Attributes::MAP), bench.page(Attributes::MAP));
        bench.set(old);
        bench.set(new);
    }

    #[test]
    #[should_panic(expected = "break-before-make")]
    fn a_broken_entry_is_not_made_before_the_tlb_forgets() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let (old, new) = (bench.page(Attributes::MAP), bench.page(Attributes::MAP));
        bench.set(old);
        bench.set(Entry::INVALID);
        bench.mmu.complete_stores();
        bench.set(new);
    }

    #[test]
    #[should_panic(expected = "break-before-make")]
    fn the_tlb_has_not_forgotten_before_the_barrier() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let (old, new) = (bench.page(Attributes::MAP), bench.page(Attributes::MAP));
        bench.set(old);
        bench.set(Entry::INVALID);
        bench.mmu.complete_stores();
        bench.mmu.forget(PAGE, Scope::Leaf);
        bench.set(new);
    }

    #[test]
    #[should_panic(expected = "before the stores are complete")]
    fn maintenance_waits_for_the_stores() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let old = bench.page(Attributes::MAP);
        bench.set(old);
        bench.set(Entry::INVALID);
        bench.mmu.forget(PAGE, Scope::Leaf);
    }

    #[test]
    #[should_panic(expected = "before its entry is published")]
    fn an_entry_is_published_before_it_is_used() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let page = bench.page(Attributes::MAP);
        bench.set(page);
        let _ = bench.mmu.load(ADDRESS);
    }

    #[test]
    #[should_panic(expected = "stale translation")]
    fn a_downgrade_reaches_the_tlb_before_the_next_access() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let page = bench.page(Attributes::MAP.writable());
        bench.set(page);
        bench.set(page.write_protected());
        bench.mmu.publish();
        let _ = bench.mmu.translate(ADDRESS, Access::Write);
    }

    #[test]
    #[should_panic(expected = "was freed while the TLB has it")]
    fn a_frame_is_freed_after_the_tlb_forgot_it() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let page = bench.page(Attributes::MAP);
        bench.set(page);
        bench.set(Entry::INVALID);
        memory
            .frames()
            .free(page.address().frame(), Owner::Anonymous);
        bench.forget();
    }

    #[test]
    #[should_panic(expected = "the TLB was never told")]
    fn forgotten_maintenance_is_found_by_the_check() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let page = bench.page(Attributes::MAP);
        bench.set(page);
        bench.set(Entry::INVALID);
        bench.mmu.publish();
        bench.mmu.check();
    }

    #[test]
    #[should_panic(expected = "is torn")]
    fn a_contiguous_bit_alone_is_found() {
        let memory = SimMemory::new(4 << 20);
        let mut bench = Bench::new(&memory);
        let page = bench.page(Attributes::MAP.contiguous());
        bench.set(page);
        bench.mmu.publish();
        bench.mmu.check_group(PAGE);
    }
}
