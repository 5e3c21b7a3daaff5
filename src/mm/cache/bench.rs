//! What maps of files cost: the rows of `mmapbench`'s sections `warm`, `cow`, `msync`, `copy`, `cold` and `large`, with
//! its names, files and procedure.
//!
//! The files are `/warm.dat`, `/wr.dat`, `/cold.dat` and `/big.dat`, whose words count up in steps of [`PATTERN`]. The
//! first two are made where they are missing, and removed again; the others are only measured where they are.

use super::{InUse, Residence};
use crate::arch::aarch64::timer;
use crate::bench::{BENCHES, Bench, REPETITIONS, Samples};
use crate::files::VFS;
use crate::fs::vfs::{LastLink, Node};
use crate::fs::{FileKind, FsError};
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::bench::{on_program_stack, permutation, remove, touch_read, touch_write};
use crate::mm::manager::{Advice, MapError, Placement};
use crate::mm::object::{IoError, Pattern, Sharing, SyncMode};
use crate::mm::table::{Access, Protection};
use crate::mm::{CACHE, maps};
use crate::println;
use crate::thread::{self, Role};
use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use linkme::distributed_slice;

const PAGE: u64 = PAGE_SIZE as u64;
const RW: Protection = Protection::READ_WRITE;
const READ: Protection = Protection::READ;

/// The difference of two words of a file that follow each other.
const PATTERN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes of the files that are made.
const SPAN: u64 = 64 << 20;

#[distributed_slice(BENCHES)]
static WARM: Bench = Bench {
    name: "warm",
    run: || on_program_stack(|| with_file("warm.dat", warm).and(with_file("wr.dat", stores))),
};

#[distributed_slice(BENCHES)]
static COW: Bench = Bench {
    name: "cow",
    run: || on_program_stack(|| with_file("warm.dat", cow)),
};

#[distributed_slice(BENCHES)]
static MSYNC: Bench = Bench {
    name: "msync",
    run: || on_program_stack(|| with_file("wr.dat", msync)),
};

#[distributed_slice(BENCHES)]
static COPY: Bench = Bench {
    name: "copy",
    run: || on_program_stack(|| with_file("warm.dat", copy)),
};

#[distributed_slice(BENCHES)]
static COLD: Bench = Bench {
    name: "cold",
    run: || on_program_stack(|| with_present("cold.dat", cold)),
};

#[distributed_slice(BENCHES)]
static LARGE: Bench = Bench {
    name: "large",
    run: || on_program_stack(|| with_present("big.dat", large)),
};

#[distributed_slice(BENCHES)]
static SCAN: Bench = Bench {
    name: "scan",
    run: || on_program_stack(|| with_file("warm.dat", |used| scan(used, "big.dat"))),
};

/// A file that is measured, and its whole pages.
struct Subject {
    node: Node,
    file: InUse,
    pages: u64,
}

impl Subject {
    fn new(node: Node, name: &str) -> Result<Self, FsError> {
        let file = node.fs.mappable(node.file, name)?;
        let pages = file.size() / PAGE;
        Ok(Self { node, file, pages })
    }

    fn map(&self, protection: Protection, sharing: Sharing) -> Result<VirtAddr, MapError> {
        let len = self.pages * PAGE;
        maps().map_file(
            self.file.handle(),
            Placement::Anywhere,
            len,
            protection,
            0,
            sharing,
        )
    }

    /// Brings all of it into memory.
    fn warm(&self) -> Result<(), MapError> {
        let mut bytes = alloc::vec![0; 64 << 10];
        for at in (0..self.pages * PAGE).step_by(bytes.len()) {
            self.node
                .fs
                .read_at(self.node.file, at, &mut bytes)
                .map_err(io)?;
        }
        Ok(())
    }

    /// Lets nothing of it be in memory.
    fn cool(&self) -> Result<(), MapError> {
        self.node.fs.sync().map_err(io)?;
        CACHE.drop_clean();
        let (pages, _) = self.file.pages();
        if pages > 0 {
            println!("# {pages} pages are still cached");
        }
        Ok(())
    }

    /// Notes where the first words of its pages are not what they should be.
    fn check(&self, name: &str, sum: u64) {
        let pages = u128::from(self.pages);
        let wanted = ((pages * (pages - 1) / 2) as u64)
            .wrapping_mul(PAGE / 8)
            .wrapping_mul(PATTERN);
        if sum != wanted {
            println!("# FAIL {name}: {sum:#x}, not {wanted:#x}");
        }
    }
}

fn io(error: FsError) -> MapError {
    MapError::Io(IoError::from(error))
}

/// Measures a file that is made if it is missing.
fn with_file(name: &str, measure: fn(&Subject) -> Result<(), MapError>) -> Result<(), MapError> {
    if VFS.resolve(name.as_bytes(), LastLink::Follow).is_ok() {
        return with_present(name, measure);
    }
    let Ok(root) = VFS.resolve(b"/", LastLink::Follow) else {
        println!("# nothing is mounted");
        return Ok(());
    };
    let fs = root.fs.clone();
    let statistics = fs.statistics().map_err(io)?;
    let room = statistics.available_blocks * u64::from(statistics.block_size);
    let span = SPAN
        .min(room / 2)
        .min(crate::mm::FRAMES.counts().total * PAGE / 4)
        & !((1 << 20) - 1);
    let file = fs
        .create(root.file, name.as_bytes(), FileKind::File, 0o600)
        .map_err(io)?;
    let made = fill(&root.beside(file), span);
    let measured = made.and_then(|()| with_present(name, measure));
    let removed = fs.unlink(root.file, name.as_bytes()).map_err(io);
    measured.and(removed.map(drop))
}

fn fill(node: &Node, span: u64) -> Result<(), MapError> {
    let mut bytes = alloc::vec![0; 1 << 20];
    for at in (0..span).step_by(bytes.len()) {
        for (k, word) in (at / 8..).zip(bytes.as_chunks_mut::<8>().0) {
            *word = k.wrapping_mul(PATTERN).to_le_bytes();
        }
        node.fs.write_at(node.file, at, &bytes).map_err(io)?;
    }
    node.fs.sync_file(node.file).map_err(io)
}

fn with_present(name: &str, measure: fn(&Subject) -> Result<(), MapError>) -> Result<(), MapError> {
    let Ok(node) = VFS.resolve(name.as_bytes(), LastLink::Follow) else {
        println!("# there is no /{name}");
        return Ok(());
    };
    measure(&Subject::new(node, name).map_err(io)?)
}

/// The first words of pages.
#[inline(never)]
fn sum_pages(base: VirtAddr, pages: u64) -> u64 {
    (0..pages).fold(0u64, |sum, page| {
        // SAFETY: in a map that the caller made; any word is one.
        sum.wrapping_add(unsafe { ((base.0 + page * PAGE) as *const u64).read_volatile() })
    })
}

/// All words.
#[inline(never)]
fn sum_words(base: VirtAddr, bytes: u64) -> u64 {
    // SAFETY: in a map that the caller made, which nobody stores to.
    let words = unsafe { core::slice::from_raw_parts(base.0 as *const u64, bytes as usize / 8) };
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

fn warm(subject: &Subject) -> Result<(), MapError> {
    let n = subject.pages;
    subject.warm()?;
    for (name, pattern) in [
        ("file_read_fault_warm_faultaround", Pattern::Normal),
        ("file_read_fault_warm_single", Pattern::Random),
    ] {
        let mut samples = Samples::new();
        for _ in 0..REPETITIONS {
            let base = subject.map(READ, Sharing::Shared)?;
            maps().advise(base, n * PAGE, Advice::Pattern(pattern))?;
            let sum = samples.measure(|| sum_pages(base, n));
            subject.check(name, sum);
            remove(base, n)?;
        }
        samples.print(name, n);
    }
    let order = permutation(n);
    let mut random = Samples::new();
    let mut every_16th = Samples::new();
    let mut populate = Samples::new();
    let mut drop = Samples::new();
    let mut unmap = Samples::new();
    for _ in 0..REPETITIONS {
        let base = subject.map(READ, Sharing::Shared)?;
        random.measure(|| {
            for page in &order {
                touch_read(VirtAddr(base.0 + u64::from(*page) * PAGE), 1);
            }
        });
        remove(base, n)?;
        let base = subject.map(READ, Sharing::Shared)?;
        every_16th.measure(|| {
            for page in (0..n).step_by(16) {
                touch_read(VirtAddr(base.0 + page * PAGE), 1);
            }
        });
        remove(base, n)?;
        let base = subject.map(READ, Sharing::Shared)?;
        populate.measure(|| maps().populate(base, n * PAGE, Access::Read))?;
        unmap.measure(|| remove(base, n))?;
        let base = subject.map(READ, Sharing::Shared)?;
        touch_read(base, n);
        drop.measure(|| maps().advise(base, n * PAGE, Advice::DontNeed))?;
        remove(base, n)?;
        subject.warm()?;
    }
    random.print("file_read_fault_warm_random_order", n);
    every_16th.print("file_read_one_faultaround16", n / 16);
    populate.print("file_populate_read", n);
    drop.print("file_dontneed_per_page", n);
    unmap.print("file_munmap_per_page", n);
    for pages in [1, 1024] {
        const N: u64 = 2000;
        let mut samples = Samples::new();
        for _ in 0..REPETITIONS {
            samples.measure(|| {
                (0..N).try_for_each(|_| {
                    let handle = subject.file.handle();
                    let base = maps().map_file(
                        handle,
                        Placement::Anywhere,
                        pages * PAGE,
                        READ,
                        0,
                        Sharing::Shared,
                    )?;
                    remove(base, pages)
                })
            })?;
        }
        samples.print(&format!("mmap_munmap_file_{pages}"), N);
    }
    Ok(())
}

fn stores(subject: &Subject) -> Result<(), MapError> {
    let n = subject.pages;
    subject.warm()?;
    let mut first = Samples::new();
    let mut again = Samples::new();
    let mut dirty = Samples::new();
    for _ in 0..REPETITIONS {
        let base = subject.map(RW, Sharing::Shared)?;
        first.measure(|| touch_write(base, n));
        maps().sync(base, n * PAGE, SyncMode::Wait)?;
        again.measure(|| touch_write(base, n));
        maps().sync(base, n * PAGE, SyncMode::Wait)?;
        remove(base, n)?;
        let base = subject.map(RW, Sharing::Shared)?;
        touch_write(base, n);
        remove(base, n)?;
        let base = subject.map(RW, Sharing::Shared)?;
        dirty.measure(|| touch_write(base, n));
        maps().sync(base, n * PAGE, SyncMode::Wait)?;
        remove(base, n)?;
    }
    first.print("file_shared_write_fault_warm", n);
    again.print("file_shared_redirty_after_msync", n);
    dirty.print("file_shared_write_fault_already_dirty", n);
    Ok(())
}

fn cow(subject: &Subject) -> Result<(), MapError> {
    // Copies stay in memory: as many as there is room for.
    let n = subject.pages.min(crate::mm::FRAMES.counts().free / 2);
    subject.warm()?;
    let mut write = Samples::new();
    let mut write_after_read = Samples::new();
    let mut unmap = Samples::new();
    for _ in 0..REPETITIONS {
        let base = subject.map(RW, Sharing::CopyOnWrite)?;
        write.measure(|| touch_write(base, n));
        unmap.measure(|| remove(base, subject.pages))?;
        let base = subject.map(RW, Sharing::CopyOnWrite)?;
        touch_read(base, n);
        write_after_read.measure(|| touch_write(base, n));
        remove(base, subject.pages)?;
    }
    write.print("cow_write_fault_warm", n);
    write_after_read.print("cow_write_after_read", n);
    unmap.print("cow_munmap_per_page", n);
    Ok(())
}

fn msync(subject: &Subject) -> Result<(), MapError> {
    let n = subject.pages;
    let sync = |base, pages| maps().sync(base, pages * PAGE, SyncMode::Wait);
    subject.warm()?;
    let mut all = Samples::new();
    let mut some = Samples::new();
    let mut one = Samples::new();
    let mut none = Samples::new();
    for _ in 0..REPETITIONS {
        let base = subject.map(RW, Sharing::Shared)?;
        touch_write(base, n);
        all.measure(|| sync(base, n))?;
        for page in (0..n).step_by(16) {
            touch_write(VirtAddr(base.0 + page * PAGE), 1);
        }
        some.measure(|| sync(base, n))?;
        one.measure(|| {
            (0..32).try_for_each(|i| {
                let page = VirtAddr(base.0 + i * 37 % n * PAGE);
                touch_write(page, 1);
                sync(page, 1)
            })
        })?;
        none.measure(|| (0..100).try_for_each(|_| sync(base, n)))?;
        remove(base, n)?;
    }
    all.print_rate("msync_MBps", n * PAGE);
    some.print("msync_1_of_16_pages_each", n / 16);
    one.print("msync_one_page", 32);
    none.print("msync_clean_64M", 100);
    Ok(())
}

fn copy(subject: &Subject) -> Result<(), MapError> {
    const B: usize = 1 << 16;
    let bytes = subject.pages * PAGE;
    let mut buffer = alloc::vec![0u8; B];
    subject.warm()?;
    let mut read = Samples::new();
    let mut mapped = Samples::new();
    let mut present = Samples::new();
    let mut sum = Samples::new();
    let mut sum_cold_map = Samples::new();
    let copy_all = |base: VirtAddr, buffer: &mut [u8]| {
        for at in (0..bytes).step_by(B) {
            // SAFETY: in the map, which nobody stores to.
            let from = unsafe { core::slice::from_raw_parts((base.0 + at) as *const u8, B) };
            buffer.copy_from_slice(from);
        }
    };
    for _ in 0..REPETITIONS {
        read.measure(|| {
            (0..bytes).step_by(B).try_for_each(|at| {
                let read = subject.node.fs.read_at(subject.node.file, at, &mut buffer);
                read.map(drop).map_err(io)
            })
        })?;
        mapped.measure(|| {
            let base = subject.map(READ, Sharing::Shared)?;
            copy_all(base, &mut buffer);
            remove(base, subject.pages)
        })?;
        let base = subject.map(READ, Sharing::Shared)?;
        maps().populate(base, bytes, Access::Read)?;
        present.measure(|| copy_all(base, &mut buffer));
        sum.measure(|| sum_words(base, bytes));
        remove(base, subject.pages)?;
        sum_cold_map.measure(|| {
            let base = subject.map(READ, Sharing::Shared)?;
            core::hint::black_box(sum_words(base, bytes));
            remove(base, subject.pages)
        })?;
    }
    read.print_rate("copy_read_64k", bytes);
    mapped.print_rate("copy_mmap_64k", bytes);
    present.print_rate("copy_mmap_present_64k", bytes);
    sum.print_rate("sum_mmap_present", bytes);
    sum_cold_map.print_rate("sum_mmap_warm", bytes);
    Ok(())
}

fn cold(subject: &Subject) -> Result<(), MapError> {
    let (n, bytes) = (subject.pages, subject.pages * PAGE);
    for (name, pattern) in [
        ("seq_cold_touch", Pattern::Normal),
        ("seq_cold_touch_madv_sequential", Pattern::Sequential),
        ("seq_cold_touch_madv_random", Pattern::Random),
    ] {
        let mut samples = Samples::new();
        for _ in 0..REPETITIONS {
            subject.cool()?;
            let (base, sum) = samples.measure(|| {
                let base = subject.map(READ, Sharing::Shared)?;
                maps().advise(base, bytes, Advice::Pattern(pattern))?;
                Ok::<_, MapError>((base, sum_pages(base, n)))
            })?;
            subject.check(name, sum);
            remove(base, n)?;
        }
        samples.print_rate(name, bytes);
    }
    let mut sum8 = Samples::new();
    let mut read = Samples::new();
    let mut buffer = alloc::vec![0u8; 1 << 17];
    for _ in 0..REPETITIONS {
        subject.cool()?;
        sum8.measure(|| {
            let base = subject.map(READ, Sharing::Shared)?;
            core::hint::black_box(sum_words(base, bytes));
            remove(base, n)
        })?;
        subject.cool()?;
        read.measure(|| {
            (0..bytes).step_by(buffer.len()).try_for_each(|at| {
                let read = subject.node.fs.read_at(subject.node.file, at, &mut buffer);
                read.map(drop).map_err(io)
            })
        })?;
    }
    sum8.print_rate("seq_cold_sum8", bytes);
    read.print_rate("seq_cold_read_128k", bytes);
    const READS: usize = 4096;
    let order = permutation(n);
    let order = &order[..READS.min(order.len())];
    for (name, pattern) in [
        ("rand_cold", Pattern::Random),
        ("rand_cold_default_advice", Pattern::Normal),
    ] {
        let mut samples = Samples::new();
        for _ in 0..REPETITIONS {
            subject.cool()?;
            let base = subject.map(READ, Sharing::Shared)?;
            maps().advise(base, bytes, Advice::Pattern(pattern))?;
            samples.measure(|| {
                for page in order {
                    touch_read(VirtAddr(base.0 + u64::from(*page) * PAGE), 1);
                }
            });
            remove(base, n)?;
        }
        samples.print(name, order.len() as u64);
    }
    Ok(())
}

/// A file that is larger than memory, twice.
fn large(subject: &Subject) -> Result<(), MapError> {
    let (n, bytes) = (subject.pages, subject.pages * PAGE);
    subject.cool()?;
    let base = subject.map(READ, Sharing::Shared)?;
    for pass in ["large_touch_pass1", "large_touch_pass2"] {
        let mut samples = Samples::new();
        let sum = samples.measure(|| sum_pages(base, n));
        subject.check(pass, sum);
        samples.print_rate(pass, bytes);
    }
    remove(base, n)?;
    let base = subject.map(RW, Sharing::Shared)?;
    let mut samples = Samples::new();
    samples.measure(|| {
        for page in 0..n {
            let word = (base.0 + page * PAGE) as *mut u64;
            // SAFETY: in the map. The word becomes what it is.
            unsafe { word.write_volatile(word.read_volatile()) };
        }
        maps().sync(base, bytes, SyncMode::Wait)
    })?;
    samples.print_rate("large_write_msync", bytes);
    remove(base, n)
}

/// A working set of half of the memory, used again and again while another thread goes through a file that is larger than
/// all of it: how much of the working set that costs, and what the scan still gets.
fn scan(used: &Subject, scanned: &str) -> Result<(), MapError> {
    const ROUNDS: u64 = 3;
    let Ok(node) = VFS.resolve(scanned.as_bytes(), LastLink::Follow) else {
        println!("# there is no /{scanned}");
        return Ok(());
    };
    let scanned = Subject::new(node, scanned).map_err(io)?;
    used.cool()?;
    let pages = used.pages.min(crate::mm::FRAMES.counts().total / 2);
    let base = used.map(READ, Sharing::Shared)?;
    // It is known to be in use once it was touched again after the hand of reclaim went by.
    for _ in 0..4 {
        sum_pages(base, pages);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let bytes = scanned.pages * PAGE;
    let scanner = crate::program::spawn("scan", Role::Program, move || {
        let start = timer::now();
        let result = scanned.map(READ, Sharing::Shared).and_then(|base| {
            for _ in 0..ROUNDS {
                sum_pages(base, scanned.pages);
            }
            remove(base, scanned.pages)
        });
        if let Err(error) = result {
            println!("# FAIL scan: {error}");
        }
        let us = timer::us_from_ticks(timer::now() - start).max(1);
        println!("scan_rate {}.0 MB/s", ROUNDS * bytes / us);
        over.store(true, Ordering::Release);
    })
    .map_err(|_| MapError::OutOfFrames)?;
    let absent = || {
        let pages = used.file.residence(0..pages);
        let is_absent = |page: &&Residence| **page == Residence::Absent;
        pages.iter().filter(is_absent).count() as u64
    };
    let (mut most, mut rounds) = (0, 0);
    while !is_over.load(Ordering::Acquire) {
        most = most.max(absent());
        sum_pages(base, pages);
        rounds += 1;
        thread::sleep(10_000);
    }
    scanner.join();
    println!("scan_working_set {pages}.0 pages");
    println!("scan_working_set_rounds {rounds}.0 times");
    println!("scan_most_evicted_at_a_time {most}.0 pages");
    remove(base, used.pages)
}
