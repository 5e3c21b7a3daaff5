//! Everything at once for a long time: several workloads, pins, anonymous memory. Afterwards nothing may be left behind.
//!
//! What is in use is counted while nothing is mounted, after a short round and after the long one: the first makes what is
//! made once and kept.

use super::program::Files;
use super::{Data, Name, Step, Workload};
use crate::arch::aarch64::timer;
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::file::File;
use crate::files::{self, VFS};
use crate::fs::FsError;
use crate::fs::ext4::Access;
use crate::mm::addr::PAGE_SIZE;
use crate::mm::{CACHE, FRAMES, heap_objects, maps};
use crate::mmap::{MmapError, MmapMut};
use crate::println;
use crate::program::{self, PROGRAMS, Program};
use crate::thread::{Exit, Role};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use linkme::distributed_slice;

#[distributed_slice(PROGRAMS)]
static SOAK: Program = Program {
    name: "soak",
    summary: "threads that map, store, flush, cut, evict and pin: SECONDS SEED; fails if anything is left in use",
    main: run,
};

const THREADS: u64 = 4;

/// Seconds of the first round.
const FIRST: u64 = 3;

/// Bytes of anonymous memory that a thread has at a time, at most.
const ANONYMOUS: u32 = 10 << 20;

/// Bytes of its own stack that it touches first, more than it needs: its frames are among those that are counted.
const DEPTH: usize = 64 << 10;

/// What is in use, in frames, maps and heap objects.
struct InUse([(&'static str, u64); 5]);

impl InUse {
    fn now() -> Self {
        let objects = heap_objects();
        let maps = maps().len() as u64;
        let counts = FRAMES.counts();
        Self([
            ("heap objects", objects),
            ("maps", maps),
            ("frames of the page cache", counts.cache),
            ("frames of anonymous memory", counts.anonymous),
            ("frames of translation tables", counts.page_table),
        ])
    }
}

impl InUse {
    /// Whether nothing is more than `before`. Less is no leak: a list that has outgrown the small objects of the heap is
    /// none of them any more.
    fn is_within(&self, before: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&before.0);
        pairs.all(|((_, after), (_, before))| after <= before)
    }
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (what, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {what}", if number > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

fn run(arguments: &[String]) -> Status {
    let words: Vec<Result<u64, _>> = arguments.iter().map(|word| word.parse()).collect();
    let [Ok(seconds), Ok(seed)] = words[..] else {
        println!("usage: run soak SECONDS SEED");
        return USAGE;
    };
    touch_stack();
    let round = |seconds, seed| {
        let is_done = work(seconds, seed);
        let in_use = count();
        if let Err(error) = &in_use {
            println!("soak: the root cannot be mounted again: {error}");
        }
        in_use.ok().filter(|_| is_done)
    };
    let Some(before) = round(FIRST, seed) else {
        return FAILURE;
    };
    let Some(after) = round(seconds, seed + THREADS) else {
        return FAILURE;
    };
    println!("soak: before: {before}");
    println!("soak: after:  {after}");
    match after.is_within(&before) {
        true => SUCCESS,
        false => {
            println!("soak: something is left behind");
            FAILURE
        }
    }
}

#[inline(never)]
fn touch_stack() {
    core::hint::black_box(&mut [0u8; DEPTH]);
}

/// Runs the threads; whether all did what they should.
fn work(seconds: u64, seed: u64) -> bool {
    let end = timer::now() + timer::ticks_from_us(seconds * 1_000_000);
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            program::spawn("soak", Role::Program, move || {
                match one_thread(number, seed + number, end) {
                    Ok(steps) => println!("soak: {steps} steps of seed {}", seed + number),
                    Err(error) => panic!("soak: seed {}: {error}", seed + number),
                }
            })
        })
        .collect();
    let mut is_done = true;
    for thread in threads {
        match thread {
            Ok(thread) => {
                is_done &= matches!(thread.join(), Exit::Returned);
                // What it mapped, if it has crashed.
                is_done &= maps().remove_holder(thread.id).is_ok();
            }
            Err(error) => {
                println!("soak: {error}");
                is_done = false;
            }
        }
    }
    is_done
}

fn one_thread(number: u64, seed: u64, end: u64) -> Result<u64, MmapError> {
    let mut files = Files::under(&alloc::format!("/soak{number}"));
    files.clear()?;
    let mut steps = 0;
    let mut workload = Workload::new(seed);
    while timer::now() < end
        && let Some(step) = workload.next()
    {
        files.take(step)?;
        match step {
            Step::Store(name, at, data) => is_there(&mut files, name, at, data)?,
            Step::Evict => anonymous(workload.below(ANONYMOUS))?,
            _ => {}
        }
        steps += 1;
    }
    files.clear()?;
    Ok(steps)
}

/// What was stored is read through the file and, pinned, through the map.
fn is_there(files: &mut Files, name: Name, at: u32, data: Data) -> Result<(), MmapError> {
    let mut stored = alloc::vec![0; data.len as usize];
    data.fill(&mut stored);
    let mut read = alloc::vec![0; data.len as usize];
    File::open(files.path(name))?.read_at(&mut read, at.into())?;
    let range = at as usize..at as usize + stored.len();
    let pinned = files.map(name)?.pin(range)?;
    assert!(read == stored && *pinned == *stored, "{name} lost a store");
    Ok(())
}

/// Anonymous memory comes and goes.
fn anonymous(len: u32) -> Result<(), MmapError> {
    let mut map = MmapMut::map_anon(len as usize)?;
    for (number, page) in map.chunks_mut(PAGE_SIZE).enumerate() {
        page[0] = number as u8;
    }
    let mut pages = map.chunks(PAGE_SIZE).enumerate();
    assert!(pages.all(|(number, page)| page[0] == number as u8));
    Ok(())
}

/// Counts what is in use when nothing is mounted.
fn count() -> Result<InUse, files::MountError> {
    let root = VFS.mounts().into_iter().next().ok_or(FsError::NotFound)?;
    // Whoever holds the file system holds its metadata as well, of which there is more or less.
    let source = root.source;
    drop(root.fs);
    VFS.unmount(b"/")?;
    // The hand lets go of the files that it kept for their pages.
    CACHE.reclaim(u64::MAX);
    let in_use = InUse::now();
    files::mount(&String::from_utf8_lossy(&source), "/", Access::ReadWrite)?;
    Ok(in_use)
}
