//! What faults and operations on maps cost: the rows of `mmapbench`, with its names and its procedure.
//!
//! All of it runs on SP_EL0, as a program does. `mmapbench` turns huge pages off where it measures single faults; so do
//! the rows here that have an `_single` of their own: the pattern "random" makes every fault bring in one page.

use super::addr::{PAGE_SIZE, VirtAddr};
use super::fault::{Access, Outcome};
use super::low_half::maps;
use super::manager::{Advice, MapError, Placement};
use super::object::Pattern;
use super::table::Protection;
use crate::bench::{BENCHES, Bench, REPETITIONS, Samples};
use crate::println;
use crate::program;
use crate::sync::SpinLock;
use crate::thread::{Exit, Role};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use linkme::distributed_slice;

const PAGE: u64 = PAGE_SIZE as u64;
const RW: Protection = Protection::READ_WRITE;

#[distributed_slice(BENCHES)]
static ANON: Bench = Bench {
    name: "anon",
    run: || on_program_stack(anon),
};

#[distributed_slice(BENCHES)]
static MMAP: Bench = Bench {
    name: "mmap",
    run: || on_program_stack(mmap),
};

#[distributed_slice(BENCHES)]
static MPROTECT: Bench = Bench {
    name: "mprotect",
    run: || on_program_stack(mprotect),
};

#[distributed_slice(BENCHES)]
static MAPS: Bench = Bench {
    name: "maps",
    run: || on_program_stack(many_maps),
};

#[distributed_slice(BENCHES)]
static FRAMES: Bench = Bench {
    name: "frames",
    run: || on_program_stack(frames),
};

/// Runs `f` as a program runs.
pub(super) fn on_program_stack(f: fn() -> Result<(), MapError>) -> Result<(), &'static str> {
    let outcome = Arc::new(SpinLock::new(Err(MapError::OutOfFrames)));
    let result = outcome.clone();
    let thread = program::spawn("bench", Role::Test, move || *result.lock() = f())
        .map_err(|_| "no memory for a thread")?;
    if let Exit::Crashed(report) = thread.join() {
        println!("{report}");
        return Err("it crashed");
    }
    let outcome = *outcome.lock();
    outcome.map_err(|error| match error {
        MapError::OutOfFrames => "out of memory",
        _ => "an operation on maps failed",
    })
}

/// Loads one byte of each page.
#[inline(never)]
pub(super) fn touch_read(base: VirtAddr, pages: u64) {
    for page in 0..pages {
        // SAFETY: in a map that the caller made, and any byte is one.
        unsafe { ((base.0 + page * PAGE) as *const u8).read_volatile() };
    }
}

/// Stores one byte to each page.
#[inline(never)]
pub(super) fn touch_write(base: VirtAddr, pages: u64) {
    for page in 0..pages {
        // SAFETY: in a map that the caller made and nobody else uses.
        unsafe { ((base.0 + page * PAGE) as *mut u8).write_volatile(1) };
    }
}

fn new(pages: u64, protection: Protection) -> Result<VirtAddr, MapError> {
    maps().map_anon(Placement::Anywhere, pages * PAGE, protection)
}

fn new_of_single_pages(pages: u64) -> Result<VirtAddr, MapError> {
    let base = new(pages, RW)?;
    maps().advise(base, pages * PAGE, Advice::Pattern(Pattern::Random))?;
    Ok(base)
}

pub(super) fn remove(base: VirtAddr, pages: u64) -> Result<(), MapError> {
    maps().remove(base, pages * PAGE).map(|_| ())
}

fn anon() -> Result<(), MapError> {
    // As many pages as mmapbench has, where there is memory for them.
    let free = super::FRAMES.counts().free;
    let n = if free > 20_000 { 16_384 } else { free / 4 };
    let mut read = Samples::new();
    let mut write = Samples::new();
    let mut upgrade = Samples::new();
    let mut drop = Samples::new();
    let mut again = Samples::new();
    let mut populate = Samples::new();
    let mut unmap = Samples::new();
    let mut write_single = Samples::new();
    let mut upgrade_single = Samples::new();
    let mut unmap_single = Samples::new();
    for _ in 0..REPETITIONS {
        let base = new(n, RW)?;
        read.measure(|| touch_read(base, n));
        upgrade.measure(|| touch_write(base, n));
        remove(base, n)?;

        let base = new(n, RW)?;
        write.measure(|| touch_write(base, n));
        drop.measure(|| maps().advise(base, n * PAGE, Advice::DontNeed))?;
        again.measure(|| touch_write(base, n));
        unmap.measure(|| remove(base, n))?;

        let base = new(n, RW)?;
        populate.measure(|| maps().populate(base, n * PAGE, Access::Write))?;
        remove(base, n)?;

        let base = new_of_single_pages(n)?;
        touch_read(base, n);
        upgrade_single.measure(|| touch_write(base, n));
        remove(base, n)?;
        let base = new_of_single_pages(n)?;
        write_single.measure(|| touch_write(base, n));
        unmap_single.measure(|| remove(base, n))?;
    }
    read.print("anon_read_fault", n);
    write.print("anon_write_fault", n);
    write_single.print("anon_write_fault_single", n);
    upgrade.print("anon_upgrade_fault", n);
    upgrade_single.print("anon_upgrade_fault_single", n);
    again.print("anon_refault_write", n);
    populate.print("anon_populate_write", n);
    drop.print("anon_dontneed_per_page", n);
    unmap.print("anon_munmap_per_page", n);
    unmap_single.print("anon_munmap_per_page_single", n);
    cow()
}

fn cow() -> Result<(), MapError> {
    let n = 1024;
    let mut samples = Samples::new();
    for _ in 0..REPETITIONS {
        let base = new(n, RW)?;
        touch_write(base, n);
        let copy = maps().clone_range(base, n * PAGE, Placement::Anywhere)?;
        samples.measure(|| touch_write(copy, n));
        remove(copy, n)?;
        remove(base, n)?;
    }
    samples.print("cow_write_fault_anon", n);
    Ok(())
}

fn mmap() -> Result<(), MapError> {
    const N: u64 = 2000;
    for pages in [1, 1024] {
        let mut samples = Samples::new();
        for _ in 0..REPETITIONS {
            samples.measure(|| (0..N).try_for_each(|_| remove(new(pages, RW)?, pages)))?;
        }
        samples.print(&format!("mmap_munmap_anon_{pages}"), N);
    }
    let mut samples = Samples::new();
    for _ in 0..REPETITIONS {
        samples.measure(|| {
            (0..N).try_for_each(|_| {
                let base = new(1, RW)?;
                touch_write(base, 1);
                remove(base, 1)
            })
        })?;
    }
    samples.print("mmap_touch_munmap_anon_1", N);
    let mut samples = Samples::new();
    for _ in 0..REPETITIONS {
        samples.measure(|| {
            (0..10).try_for_each(|_| {
                let base = new(1024, RW)?;
                touch_write(base, 1024);
                remove(base, 1024)
            })
        })?;
    }
    samples.print("mmap_touch_munmap_anon_1024", 10);
    Ok(())
}

fn mprotect() -> Result<(), MapError> {
    const N: u64 = 1000;
    for is_touched in [false, true] {
        let what = if is_touched { "touched" } else { "untouched" };
        let base = new(64, RW)?;
        if is_touched {
            touch_write(base, 64);
        }
        let middle = VirtAddr(base.0 + 31 * PAGE);
        let mut samples = Samples::new();
        for _ in 0..REPETITIONS {
            samples.measure(|| {
                (0..N).try_for_each(|_| {
                    maps().set_permissions(middle, PAGE, Protection::READ)?;
                    maps().set_permissions(middle, PAGE, RW).map(|_| ())
                })
            })?;
        }
        // There and back: a split and a merge.
        samples.print(&format!("mprotect_split_{what}"), 2 * N);
        remove(base, 64)?;
    }
    let base = new(1024, RW)?;
    touch_write(base, 1024);
    let mut samples = Samples::new();
    for _ in 0..REPETITIONS {
        samples.measure(|| {
            (0..20).try_for_each(|_| {
                maps().set_permissions(base, 1024 * PAGE, Protection::READ)?;
                maps().set_permissions(base, 1024 * PAGE, RW).map(|_| ())
            })
        })?;
    }
    samples.print("mprotect_1024_touched", 40);
    remove(base, 1024)
}

/// 10 000 pages in all, in 1, 100 or 10 000 maps with a gap between neighbours, touched in random order.
fn many_maps() -> Result<(), MapError> {
    const TOTAL: u64 = 10_000;
    let order = permutation(TOTAL);
    for count in [1, 100, TOTAL] {
        let each = TOTAL / count;
        let stride = (each + 1) * PAGE;
        let mut read = Samples::new();
        let mut upgrade = Samples::new();
        let mut pair = Samples::new();
        let mut read_faults = 0;
        for _ in 0..REPETITIONS {
            let base = maps().map_anon(Placement::Anywhere, count * stride, Protection::NONE)?;
            maps().remove(base, count * stride)?;
            for i in 0..count {
                let at = Placement::FixedNoReplace(VirtAddr(base.0 + i * stride));
                maps().map_anon(at, each * PAGE, RW)?;
            }
            let address = |page: u64| base.0 + page / each * stride + page % each * PAGE;
            let before = maps().fault_counts().of(Outcome::Zero);
            read.measure(|| {
                for page in &order {
                    // SAFETY: in one of the maps made above.
                    unsafe { (address(u64::from(*page)) as *const u8).read_volatile() };
                }
            });
            read_faults = maps().fault_counts().of(Outcome::Zero) - before;
            upgrade.measure(|| {
                for page in &order {
                    // SAFETY: as above, and nobody else uses them.
                    unsafe { (address(u64::from(*page)) as *mut u8).write_volatile(1) };
                }
            });
            pair.measure(|| (0..1000).try_for_each(|_| remove(new(3, Protection::READ)?, 3)))?;
            for i in 0..count {
                maps().remove(VirtAddr(base.0 + i * stride), each * PAGE)?;
            }
        }
        read.print(&format!("maps_{count}_read_fault"), TOTAL);
        read.print(&format!("maps_{count}_read_per_actual_fault"), read_faults);
        upgrade.print(&format!("maps_{count}_upgrade_fault"), TOTAL);
        pair.print(&format!("maps_{count}_mmap_munmap"), 1000);
    }
    Ok(())
}

pub(super) fn permutation(n: u64) -> Vec<u32> {
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..order.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(i, (random % (i as u64 + 1)) as usize);
    }
    order
}

/// What is below the maps: a frame had and given back, zeroed, copied.
fn frames() -> Result<(), MapError> {
    use super::frame::{Owner, Urgency};
    use crate::arch::page;
    const N: u64 = 1000;
    let frames = &super::FRAMES;
    let mut alloc = Samples::new();
    let mut zero = Samples::new();
    let mut copy = Samples::new();
    let from = frames.alloc(Owner::Kernel, Urgency::Kernel)?;
    let to = frames.alloc(Owner::Kernel, Urgency::Kernel)?;
    for _ in 0..REPETITIONS {
        alloc.measure(|| {
            (0..N).try_for_each(|_| {
                let frame = frames.alloc(Owner::Kernel, Urgency::Kernel)?;
                frames.free(frame, Owner::Kernel);
                Ok::<(), MapError>(())
            })
        })?;
        // SAFETY: both frames are ours.
        zero.measure(|| (0..N).for_each(|_| unsafe { page::zero(frames.pointer(to), 1) }));
        copy.measure(|| {
            for _ in 0..N {
                // SAFETY: as above.
                unsafe { page::copy(frames.pointer(to), frames.pointer(from)) };
            }
        });
    }
    frames.free(from, Owner::Kernel);
    frames.free(to, Owner::Kernel);
    alloc.print("frame_alloc_free", N);
    zero.print("page_zero", N);
    copy.print("page_copy", N);
    Ok(())
}
