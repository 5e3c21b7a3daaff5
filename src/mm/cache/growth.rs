//! How costs grow with how much there is: `run growth`, one `name value unit` a line, for `bench/growth.sh`.
//!
//! Instructions, as the processor counts them: waiting for the disk takes none, but in QEMU's time it does. A figure is of
//! one run, since runs repeat exactly under `--icount`. Where the processor does not count, nothing is measured.

use crate::arch::aarch64::pmu;
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::file::File;
use crate::files::VFS;
use crate::fs::vfs::{LastLink, Node};
use crate::fs::{Cursor, FileKind, FsError};
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::bench::{permutation, touch_read, touch_write};
use crate::mm::manager::{Advice, MapError, Placement};
use crate::mm::object::{Pattern, Sharing};
use crate::mm::table::Protection;
use crate::mm::{self, CACHE, FRAMES, maps};
use crate::println;
use crate::program::{PROGRAMS, Program};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use linkme::distributed_slice;

#[distributed_slice(PROGRAMS)]
static GROWTH: Program = Program {
    name: "growth",
    summary: "measure with so many: maps N, files N, directory N, or scan, write",
    main: growth,
};

const PAGE: u64 = PAGE_SIZE as u64;

/// Of each thing, so many are tried at most.
const SAMPLE: u64 = 2000;
/// And there are so many at most.
const MOST: u64 = 10_000_000;

/// What could not be measured.
enum Failure {
    Map(MapError),
    Fs(FsError),
}

impl From<MapError> for Failure {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}

fn growth(arguments: &[String]) -> Status {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if !pmu::has_instructions() {
        println!("growth: this processor does not count instructions");
        return FAILURE;
    }
    let number = match words.get(1) {
        Some(word) => word.parse().ok().filter(|n| (1..=MOST).contains(n)),
        None => Some(0),
    };
    let measured = match (words[..].first(), number) {
        (Some(&"scan"), Some(0)) => scan(),
        (Some(&"write"), Some(0)) => write(),
        (Some(&"maps"), Some(n @ 1..)) => many_maps(n),
        (Some(&"files"), Some(n @ 1..)) => many_files(n),
        (Some(&"directory"), Some(n @ 1..)) => directory(n),
        _ => {
            println!("usage: run growth maps N | files N | directory N | scan | write");
            return USAGE;
        }
    };
    match measured {
        Ok(()) => return SUCCESS,
        Err(Failure::Map(error)) => println!("growth: {error}"),
        Err(Failure::Fs(error)) => println!("growth: {error}"),
    }
    FAILURE
}

/// Does `f` for `count` things, and says what one took.
#[inline(never)]
fn each(name: &str, count: u64, f: &mut dyn FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let start = pmu::instructions();
    f()?;
    tell(name, since(start) / count.max(1), "insn");
    Ok(())
}

/// Instructions since `start`; the counter has 32 bits.
fn since(start: u64) -> u64 {
    pmu::instructions().wrapping_sub(start) & u64::from(u32::MAX)
}

#[inline(never)]
fn tell(name: &str, value: u64, unit: &str) {
    println!("growth_{name} {value} {unit}");
}

/// `n` maps of a page each, with a gap between neighbours.
fn many_maps(n: u64) -> Result<(), Failure> {
    let base = maps().map_anon(Placement::Anywhere, 2 * n * PAGE, Protection::NONE)?;
    maps().remove(base, 2 * n * PAGE)?;
    let at = |i: u64| VirtAddr(base.0 + 2 * i * PAGE);
    for i in 0..n {
        let place = Placement::FixedNoReplace(at(i));
        maps().map_anon(place, PAGE, Protection::READ_WRITE)?;
    }
    // In no order; of few each again and again.
    let order = permutation(n);
    let order: Vec<VirtAddr> = order
        .iter()
        .cycle()
        .take(SAMPLE as usize)
        .map(|i| at(u64::from(*i)))
        .collect();
    type Touch = fn(VirtAddr, u64);
    let touches: [(&str, Touch); 2] = [
        ("maps_read_fault", touch_read),
        ("maps_write_fault", touch_write),
    ];
    for (name, touch) in touches {
        let mut count = 0;
        // Rounds, so that each touch is a fault.
        for round in order.chunks(n.min(SAMPLE) as usize) {
            for page in round {
                maps().advise(*page, PAGE, Advice::DontNeed)?;
            }
            let start = pmu::instructions();
            round.iter().for_each(|page| touch(*page, 1));
            count += since(start);
        }
        tell(name, count / SAMPLE, "insn");
    }
    each("maps_lookup", SAMPLE, &mut || {
        for page in &order {
            maps().contains(*page, PAGE)?;
        }
        Ok(())
    })?;
    each("maps_map_unmap", SAMPLE, &mut || {
        for _ in 0..SAMPLE {
            let base = maps().map_anon(Placement::Anywhere, 3 * PAGE, Protection::READ)?;
            maps().remove(base, 3 * PAGE)?;
        }
        Ok(())
    })?;
    for i in 0..n {
        maps().remove(at(i), PAGE)?;
    }
    Ok(())
}

const DIRECTORY: &str = "/many";

/// A new directory.
fn make_directory() -> Result<Node, FsError> {
    let (parent, name) = VFS.resolve_parent(DIRECTORY.as_bytes())?;
    let made = parent
        .fs
        .create(parent.file, &name, FileKind::Directory, 0o755)?;
    Ok(parent.beside(made))
}

#[inline(never)]
fn name(i: u32) -> String {
    format!("file-{i:07}")
}

#[inline(never)]
fn path(i: u32) -> String {
    format!("{DIRECTORY}/file-{i:07}")
}

fn some_of(n: u64) -> Vec<u32> {
    let mut order = permutation(n);
    order.truncate(SAMPLE as usize);
    order
}

/// The cache with `n` files of a page.
fn many_files(n: u64) -> Result<(), Failure> {
    make_directory()?;
    for i in 0..n as u32 {
        File::create(path(i))?.write_all(&[7; PAGE_SIZE])?;
    }
    VFS.sync()?;
    let some = some_of(n);
    let count = some.len() as u64;
    let read_some = &mut || {
        for i in &some {
            File::open(path(*i))?.read(&mut [0; 8])?;
        }
        Ok(())
    };
    each("files_open_read", count, read_some)?;
    each("files_sync_nothing", 1, &mut || Ok(VFS.sync()?))?;
    each("files_tidy", 1, &mut || Ok(CACHE.tidy()?))?;
    each("files_counts", 1, &mut || {
        core::hint::black_box(CACHE.counts());
        Ok(())
    })?;
    // Each page has a chunk of its own.
    let half = FRAMES.counts().cache.div_ceil(2);
    each("files_reclaim", half, &mut || {
        CACHE.reclaim(half);
        Ok(())
    })?;
    CACHE.drop_clean();
    each("files_read_cold", count, read_some)
}

/// A directory with `n` entries.
fn directory(n: u64) -> Result<(), Failure> {
    let Node {
        fs, file: parent, ..
    } = &make_directory()?;
    let create = |i: u32| fs.create(*parent, name(i).as_bytes(), FileKind::File, 0o644);
    let last = (n - n.min(SAMPLE)) as u32;
    for i in 0..last {
        create(i)?;
    }
    VFS.sync()?;
    each("directory_create", n.min(SAMPLE), &mut || {
        for i in last..n as u32 {
            create(i)?;
        }
        Ok(())
    })?;
    VFS.sync()?;
    let some = some_of(n);
    let count = some.len() as u64;
    each("directory_lookup", count, &mut || {
        for i in &some {
            fs.lookup(*parent, name(*i).as_bytes())?;
        }
        Ok(())
    })?;
    each("directory_lookup_missing", count, &mut || {
        for i in &some {
            // As long as those that are there.
            let mut name = name(*i);
            name.replace_range(..4, "none");
            if fs.lookup(*parent, name.as_bytes()).is_ok() {
                return Err(FsError::Exists.into());
            }
        }
        Ok(())
    })?;
    let mut seen = 0;
    each("directory_list", n, &mut || {
        let mut cursor = Cursor::default();
        loop {
            let entries = fs.read_directory(*parent, &mut cursor)?.len();
            if entries == 0 {
                return Ok(());
            }
            seen += entries as u64;
        }
    })?;
    tell("directory_entries", seen, "entries");
    each("directory_remove", count, &mut || {
        for i in &some {
            fs.unlink(*parent, name(*i).as_bytes())?;
        }
        Ok(())
    })
}

/// `/growth.dat` through a map, a touch a page, twice as much as there is memory: each page is read, and one evicted.
fn scan() -> Result<(), Failure> {
    let path = "/growth.dat";
    let node = VFS.resolve(path.as_bytes(), LastLink::Follow)?;
    let file = node.fs.mappable(node.file, path)?;
    let memory = FRAMES.counts().total;
    let pages = (2 * memory).min(file.size() / PAGE);
    let place = Placement::Anywhere;
    let (protection, sharing) = (Protection::READ, Sharing::Shared);
    let base = maps().map_file(file.handle(), place, pages * PAGE, protection, 0, sharing)?;
    let touch = |from: u64, to: u64| touch_read(VirtAddr(base.0 + from * PAGE), to - from);
    each("scan_read", memory / 2, &mut || {
        touch(0, memory / 2);
        Ok(())
    })?;
    touch(memory / 2, memory);
    let before = CACHE.counts().evicted;
    each("scan_read_and_reclaim", pages - memory, &mut || {
        touch(memory, pages);
        Ok(())
    })?;
    tell("scan_evicted", CACHE.counts().evicted - before, "pages");
    maps().advise(base, pages * PAGE, Advice::Pattern(Pattern::Random))?;
    let mut at = 1u64;
    each("scan_random", SAMPLE, &mut || {
        for _ in 0..SAMPLE {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = (at >> 20) % pages;
            touch(page, page + 1);
        }
        Ok(())
    })?;
    Ok(maps().remove(base, pages * PAGE).map(drop)?)
}

/// The first file on a disk, and a second one.
fn write() -> Result<(), Failure> {
    // From when the counter was switched on, early at boot.
    tell("disk_boot", pmu::instructions(), "insn");
    tell("disk_memory", mm::used_bytes() >> 10, "KiB");
    for name in ["first", "second"] {
        each(&format!("disk_write_{name}"), 1, &mut || {
            let file = File::create(format!("/{name}"))?;
            file.write_all(&[7; PAGE_SIZE])?;
            Ok(file.sync_all()?)
        })?;
    }
    tell("disk_memory_then", mm::used_bytes() >> 10, "KiB");
    Ok(())
}
