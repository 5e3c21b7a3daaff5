//! What the tables tell the hardware, in which order, and that pages are what was entered.

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
