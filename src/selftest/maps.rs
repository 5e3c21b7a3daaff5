//! Maps on the shipped image: real tables, a real TLB, real faults, from both stacks.

use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::fault::{Access, Outcome};
use crate::mm::manager::{Advice, MapError, Placement};
use crate::mm::table::Protection;
use crate::mm::{self, maps};
use crate::program;
use crate::selftest;
use crate::thread::{self, Exit, Role};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = PAGE_SIZE as u64;
const RW: Protection = Protection::READ_WRITE;

/// Pages that each thread of a test has.
const THREAD_PAGES: u64 = 96;

fn load(address: u64) -> u8 {
    // SAFETY: tests touch only maps of their own, or want the fault.
    unsafe { (address as *const u8).read_volatile() }
}

fn store(address: u64, value: u8) {
    // SAFETY: as above.
    unsafe { (address as *mut u8).write_volatile(value) };
}

fn new(pages: u64) -> VirtAddr {
    maps()
        .map_anon(Placement::Anywhere, pages * PAGE, RW)
        .expect("a map")
}

/// Runs `f` as a program: on SP_EL0.
fn as_program(f: impl FnOnce() + Send + 'static) -> Exit {
    program::spawn("map test", Role::Test, f)
        .expect("a thread")
        .join()
}

fn report_of(f: impl FnOnce() + Send + 'static) -> String {
    match as_program(f) {
        Exit::Crashed(report) => report,
        exit => panic!("it did not crash: {exit:?}"),
    }
}

#[track_caller]
fn assert_says(report: &str, words: &[&str]) {
    for words in words {
        assert!(report.contains(words), "no \"{words}\" in:\n{report}");
    }
}

fn touch_all(base: u64, pages: u64) {
    for page in 0..pages {
        assert_eq!(load(base + page * PAGE + 4095), 0);
        store(base + page * PAGE, page as u8 ^ 0x5a);
    }
    for page in 0..pages {
        assert_eq!(load(base + page * PAGE), page as u8 ^ 0x5a);
    }
}

selftest!(fn memory_from_both_stacks() "maps: memory is zeros, then what was stored, for programs and for the kernel" {
    let base = new(600);
    touch_all(base.0, 300);
    let rest = base.0 + 300 * PAGE;
    assert_eq!(as_program(move || touch_all(rest, 300)), Exit::Returned);
    maps().unmap(base).expect("unmapped");
});

selftest!(fn frames_come_back() "maps: frames and tables come back when maps go" {
    // The first map takes the tables that stay.
    maps().unmap(new(1)).expect("unmapped");
    let before = mm::FRAMES.counts();
    let base = new(3000);
    for page in (0..3000).step_by(3) {
        load(base.0 + page * PAGE);
    }
    touch_all(base.0, 1500);
    assert!(mm::FRAMES.counts().anonymous >= before.anonymous + 1500);
    maps().unmap(base).expect("unmapped");
    let after = mm::FRAMES.counts();
    assert_eq!(after.anonymous, before.anonymous);
    assert!(after.page_table <= before.page_table + 2, "{after:?}, before {before:?}");
});

selftest!(fn streams_get_blocks() "maps: stores in ascending order get groups, then blocks of 2 MiB" {
    if mm::free_frames() < 4096 {
        return;
    }
    let base = new(3 * 512);
    let before = maps().fault_counts();
    for page in 0..3 * 512 {
        store(base.0 + page * PAGE + page, 1);
    }
    let after = maps().fault_counts();
    let more = |outcome| after.of(outcome) - before.of(outcome);
    assert!(more(Outcome::FreshGroup) > 0 && more(Outcome::FreshBlock) > 0);
    // Given back piece by piece.
    maps().remove(VirtAddr(base.0 + 700 * PAGE), PAGE).expect("removed");
    for page in (0..3 * 512).filter(|page| *page != 700) {
        assert_eq!(load(base.0 + page * PAGE + page), 1);
    }
    maps().remove(base, 3 * 512 * PAGE).expect("removed");
});

selftest!(fn protection_is_exact() "maps: each protection allows what it says and nothing else" {
    for (protection, words) in [
        (Protection::NONE, "load failed"),
        (Protection::READ, "store failed"),
        (Protection::READ_WRITE, "instruction fetch failed"),
    ] {
        let base = new(1);
        store(base.0, 1);
        maps().set_permissions(base, PAGE, protection).expect("changed");
        let report = report_of(move || match protection {
            Protection::NONE => { load(base.0); }
            Protection::READ => { load(base.0); store(base.0, 2); }
            _ => {
                store(base.0, 2);
                // SAFETY: it faults.
                unsafe { core::arch::asm!("blr {}", in(reg) base.0, out("x30") _) };
            }
        });
        assert_says(&report, &[words, "permission fault", "the map does not allow it"]
            .map(|w| if protection == Protection::NONE && w == "permission fault" { "translation fault" } else { w }));
        maps().unmap(base).expect("unmapped");
    }
});

selftest!(fn code_in_a_map() "maps: instructions written to a map run once it is made executable" {
    let base = new(1);
    for value in [1u32, 2] {
        maps().set_permissions(base, PAGE, RW).expect("changed");
        // SAFETY: in a map of ours: `mov w0, #value`, `ret`.
        unsafe {
            (base.0 as *mut u32).write_volatile(0x5280_0000 | value << 5);
            ((base.0 + 4) as *mut u32).write_volatile(0xd65f_03c0);
        }
        maps().set_permissions(base, PAGE, Protection::READ_EXECUTE).expect("changed");
        // SAFETY: the function just written; it takes nothing and touches w0 only.
        let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(base.0) };
        assert_eq!(function(), value);
    }
    maps().unmap(base).expect("unmapped");
});

selftest!(fn clones_are_apart() "maps: a clone shows the same, and stores to either stay there" {
    let base = new(64);
    touch_all(base.0, 64);
    let copy = maps().clone_range(base, 64 * PAGE, Placement::Anywhere).expect("a clone");
    store(base.0, 1);
    store(copy.0 + PAGE, 2);
    assert_eq!((load(base.0), load(copy.0)), (1, 0x5a));
    assert_eq!((load(base.0 + PAGE), load(copy.0 + PAGE)), (0x5b, 2));
    maps().unmap(base).expect("unmapped");
    assert_eq!(load(copy.0 + 5 * PAGE), 0x5f);
    store(copy.0 + 5 * PAGE, 3);
    maps().unmap(copy).expect("unmapped");
});

selftest!(fn nothing_mapped() "maps: an access where nothing is mapped is reported as such" {
    // Far above whatever was mapped last.
    let base = VirtAddr(0x7fff_0000_0000);
    assert_says(&report_of(move || store(base.0, 1)), &["translation fault", "nothing is mapped there"]);
});

selftest!(fn stack_with_a_guard() "maps: a stack ends in a guard, and says so" {
    let top = maps().map_stack(8 * PAGE).expect("a stack");
    store(top.0 - 1, 1);
    store(top.0 - 8 * PAGE, 1);
    let report = report_of(move || store(top.0 - 8 * PAGE - 1, 1));
    assert_says(&report, &["a guard: a stack ran over", "the map from"]);
    maps().remove(VirtAddr(top.0 - 9 * PAGE), 9 * PAGE).expect("removed");
});

selftest!(fn sixty_four_gib() "maps: 64 GiB, sparsely touched, take the memory of what was stored" {
    let size = 64 << 30;
    let base = maps().map_anon(Placement::Anywhere, size, RW).expect("a map");
    let before = mm::free_frames();
    for i in 0..64 {
        let at = base.0 + i * (size / 64);
        assert_eq!(load(at + 123), 0);
        store(at, i as u8);
    }
    for i in 0..64 {
        assert_eq!(load(base.0 + i * (size / 64)), i as u8);
    }
    // A page, and its tables: two for each.
    assert!(before - mm::free_frames() <= 64 * 3 + 8);
    maps().unmap(base).expect("unmapped");
});

selftest!(fn out_of_memory() "maps: who fills the memory is stopped with a report, and all of it comes back" {
    let before = mm::FRAMES.counts();
    let size = (before.total + 4096) * PAGE;
    let base = maps().map_anon(Placement::Anywhere, size, RW).expect("a map");
    // A machine with much memory takes long to fill: half of it is put aside in one go each.
    let mut aside = Vec::new();
    while mm::free_frames() > 65_536 {
        use crate::mm::frame::{Owner, Urgency};
        match mm::FRAMES.alloc_run(Owner::Kernel, Urgency::Kernel, 12) {
            Ok(run) => aside.push(run),
            Err(_) => break,
        }
    }
    let report = report_of(move || (0..size / PAGE).for_each(|page| store(base.0 + page * PAGE, 1)));
    assert_says(&report, &["out of memory: no frame is left", "anonymous"]);
    // The kernel goes on meanwhile.
    let reserve = mm::FRAMES.counts();
    assert!(reserve.free >= reserve.reserve / 2, "{reserve:?}");
    maps().unmap(base).expect("unmapped");
    for run in aside {
        mm::FRAMES.free_run(run, 1 << 12, crate::mm::frame::Owner::Kernel);
    }
    assert_eq!(mm::FRAMES.counts().anonymous, before.anonymous);
});

selftest!(fn bad_arguments() "maps: impossible requests are refused, and change nothing" {
    let maps = maps();
    let count = maps.len();
    let at = Placement::FixedNoReplace;
    for (placement, length, error) in [
        (Placement::Anywhere, 0, MapError::Empty),
        (at(VirtAddr(0x1_0001)), PAGE, MapError::Misaligned),
        (at(VirtAddr(0)), PAGE, MapError::OutOfRange),
        (at(VirtAddr(0xf000)), PAGE, MapError::OutOfRange),
        (at(VirtAddr(0xffff_ffff_f000)), 2 * PAGE, MapError::OutOfRange),
        (at(VirtAddr(0xffff_ff80_0000_0000)), PAGE, MapError::OutOfRange),
        (Placement::Anywhere, u64::MAX, MapError::OutOfAddresses),
    ] {
        assert_eq!(maps.map_anon(placement, length, RW), Err(error), "{placement:?} {length:#x}");
    }
    assert_eq!(maps.len(), count);
});

selftest!(fn same_page_at_once() "maps: threads that fault on the same pages at once see the same page" {
    const THREADS: u64 = 4;
    const PAGES: u64 = 200;
    let before = mm::FRAMES.counts().anonymous;
    let base = new(PAGES);
    thread::with_slice(1_000, || {
        let threads: Vec<_> = (0..THREADS).map(|i| {
            program::spawn("toucher", Role::Test, move || for page in 0..PAGES {
                store(base.0 + page * PAGE + i, i as u8 + 1);
                thread::yield_now();
            }).expect("a thread")
        }).collect();
        for thread in threads {
            assert_eq!(thread.join(), Exit::Returned);
        }
    });
    for page in 0..PAGES {
        for i in 0..THREADS {
            assert_eq!(load(base.0 + page * PAGE + i), i as u8 + 1);
        }
    }
    let most = before + PAGES.next_multiple_of(16);
    // The last thread's stack goes when somebody runs after its end.
    assert!((0..1_000).any(|_| {
        let is_gone = mm::FRAMES.counts().anonymous <= most;
        if !is_gone { thread::sleep(1_000) }
        is_gone
    }));
    maps().unmap(base).expect("unmapped");
});

selftest!(fn random_operations() "maps: threads that map, fault, protect and unmap together keep their contents, under a slice of 1 ms" {
    let stores = Arc::new(AtomicU64::new(0));
    let before = mm::FRAMES.counts().anonymous;
    // Before anything is unmapped, so that nobody's hole becomes another's map.
    let bases = [(); 3].map(|()| new(THREAD_PAGES));
    thread::with_slice(1_000, || {
        let threads: Vec<_> = (1..4u64).map(|seed| {
            let stores = stores.clone();
            let base = bases[seed as usize - 1].0;
            program::spawn("mapper", Role::Test, move || random_thread(seed, base, &stores)).expect("a thread")
        }).collect();
        for thread in threads {
            assert_eq!(thread.join(), Exit::Returned);
        }
    });
    assert!(stores.load(Ordering::Relaxed) > 1000);
    // A thread's own stack goes when somebody runs after its end, which on a busy host may be later than its join.
    for _ in 0..1_000 {
        if mm::FRAMES.counts().anonymous == before {
            break;
        }
        thread::sleep(1_000);
    }
    assert_eq!(mm::FRAMES.counts().anonymous, before);
    maps().check();
});

/// Works on maps of its own, and checks them against what it stored.
fn random_thread(seed: u64, base: u64, stores: &AtomicU64) {
    const PAGES: u64 = THREAD_PAGES;
    let mut random = seed << 32 | 0x9e37_79b9;
    let mut below = move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let mut model = [0u8; PAGES as usize];
    let mut is_mapped = [true; PAGES as usize];
    for _ in 0..600 {
        let start = below(PAGES);
        let len = 1 + below((PAGES - start).min(24));
        let (at, bytes) = (VirtAddr(base + start * PAGE), len * PAGE);
        let range = start as usize..(start + len) as usize;
        match below(6) {
            0 => {
                maps().remove(at, bytes).expect("removed");
                is_mapped[range.clone()].fill(false);
                model[range].fill(0);
            }
            1 => {
                maps()
                    .map_anon(Placement::Fixed(at), bytes, RW)
                    .expect("a map");
                is_mapped[range.clone()].fill(true);
                model[range].fill(0);
            }
            2 if is_mapped[range.clone()].iter().all(|m| *m) => {
                maps()
                    .set_permissions(at, bytes, Protection::READ)
                    .expect("changed");
                for page in range.clone() {
                    assert_eq!(load(base + page as u64 * PAGE), model[page]);
                }
                maps().set_permissions(at, bytes, RW).expect("changed");
            }
            3 if is_mapped[range.clone()].iter().all(|m| *m) => {
                maps().advise(at, bytes, Advice::DontNeed).expect("dropped");
                model[range].fill(0);
            }
            _ => {
                for page in range.filter(|page| is_mapped[*page]) {
                    let value = below(255) as u8 + 1;
                    let address = base + page as u64 * PAGE;
                    assert_eq!(load(address), model[page]);
                    store(address, value);
                    model[page] = value;
                    stores.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
    for page in (0..PAGES as usize).filter(|page| is_mapped[*page]) {
        assert_eq!(load(base + page as u64 * PAGE), model[page]);
    }
    maps()
        .remove(VirtAddr(base), PAGES * PAGE)
        .expect("removed");
}

selftest!(fn populate_is_complete() "maps: populated memory faults no more" {
    let base = new(300);
    maps().populate(base, 300 * PAGE, Access::Write).expect("populated");
    let before = maps().fault_counts().total();
    touch_all(base.0, 300);
    assert_eq!(maps().fault_counts().total(), before);
    maps().unmap(base).expect("unmapped");
});

selftest!(fn pages_are_zeroed_and_copied() "maps: a page is zeroed and copied to its last byte, and no further" {
    use crate::arch::page;
    use crate::mm::frame::{Owner, Urgency};
    let run = mm::FRAMES.alloc_run(Owner::Kernel, Urgency::Kernel, 2).expect("four pages");
    let start = mm::FRAMES.pointer(run);
    // SAFETY: four pages that are ours.
    let bytes = unsafe { core::slice::from_raw_parts_mut(start, 4 * PAGE_SIZE) };
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i % 251) as u8 + 1;
    }
    // SAFETY: within them.
    unsafe {
        page::zero(start.add(PAGE_SIZE), 1);
        page::copy(start.add(2 * PAGE_SIZE), start);
    }
    for (i, byte) in bytes.iter().enumerate() {
        let expected = match i / PAGE_SIZE {
            1 => 0,
            2 => (i % PAGE_SIZE % 251) as u8 + 1,
            _ => (i % 251) as u8 + 1,
        };
        assert_eq!(*byte, expected, "byte {i}");
    }
    mm::FRAMES.free_run(run, 4, Owner::Kernel);
});
