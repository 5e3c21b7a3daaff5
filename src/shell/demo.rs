//! `demo`: what this system is about, in a minute.
//!
//! It uses what every program can use. Each step runs as a program of its own, so that what it maps goes with it, and
//! the last one may crash.

use super::interrupted;
use crate::arch::aarch64::timer;
use crate::command::{COMMANDS, Command, FAILURE, SUCCESS, Status};
use crate::console::{self, Style, Styled, complain, is_interrupted, is_terminal};
use crate::file::{File, OpenOptions};
use crate::files::VFS;
use crate::fs::FsError;
use crate::fs::vfs::LastLink;
use crate::mm::cache::CachedFile;
use crate::mm::cache::watch::Strip;
use crate::mm::{CACHE, free_frames, maps};
use crate::mmap::{Advice, Mmap, MmapError, MmapMut, MmapOptions};
use crate::progress::Progress;
use crate::size::{Count, human};
use crate::thread::{Exit, Role};
use crate::{print, println, program};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use linkme::distributed_slice;

#[distributed_slice(COMMANDS)]
static DEMO: Command = Command {
    name: "demo",
    arguments: "[FILE]",
    summary: "see in a minute what this system is about\n\n\
        FILE is read, the larger the better; /big unless said. At a terminal each\n\
        step waits for Enter, and q leaves. Some steps change a new file, /demo.txt\n\
        or /demo-1.txt and so on, which is removed at the end.\n\
        Example: demo",
    run: demo,
};

const PAGE: usize = 4096;

/// The files of a demo.
#[derive(Clone)]
struct Subject {
    /// What is read.
    path: String,
    /// What is made and changed.
    note: String,
}

/// What is in the latter.
const TEXT: &[u8] = b"This line is in the file.\n";

/// Why a step did not end well.
enum Failure {
    Map(MmapError),
    File(FsError),
    /// It was not what it should be.
    Wrong(&'static str),
}

impl From<MmapError> for Failure {
    fn from(error: MmapError) -> Self {
        Self::Map(error)
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        Self::File(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

struct Step {
    title: &'static str,
    run: fn(&Subject) -> Result<(), Failure>,
    /// It needs a disk that can be written.
    writes: bool,
    must_crash: bool,
}

impl Step {
    const fn new(title: &'static str, run: fn(&Subject) -> Result<(), Failure>) -> Self {
        Self {
            title,
            run,
            writes: false,
            must_crash: false,
        }
    }

    const fn writes(self) -> Self {
        Self {
            writes: true,
            ..self
        }
    }
}

const STEPS: [Step; 6] = [
    Step::new("A file is memory", fill),
    Step::new("Copy on write", copy_on_write).writes(),
    Step::new("A shared map reaches the disk", share).writes(),
    Step::new("Larger than memory", flow),
    Step::new("Everything is counted", count),
    Step {
        must_crash: true,
        ..Step::new("What goes wrong is told", crash).writes()
    },
];

fn demo(arguments: &[&str]) -> Status {
    let path = match arguments {
        [] => "/big",
        [path] => path,
        _ => return super::usage("demo"),
    };
    let Ok(root) = VFS.resolve(b"/", LastLink::Follow) else {
        complain(format_args!(
            "demo: nothing is mounted on /: it needs a disk"
        ));
        return FAILURE;
    };
    let size = File::open(path).and_then(|file| Ok(file.mappable()?.size()));
    let refusal = match size {
        Ok(1..) => None,
        Ok(0) => Some("it is empty".to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(refusal) = refusal {
        complain(format_args!(
            "demo: {path}: {refusal}; `demo FILE` takes another file"
        ));
        return FAILURE;
    }
    let subject = Subject {
        path: path.to_string(),
        note: free_name(),
    };
    let can_write = root.fs.read_only().is_none();
    let mut status = SUCCESS;
    for (i, step) in STEPS.iter().enumerate() {
        let title = format_args!("{}/{}  {}", i + 1, STEPS.len(), step.title);
        println!("\n{}\n", Styled(Style::Strong, title));
        if step.writes && !can_write {
            println!("Skipped: the disk is read-only.");
        } else if !run(step, &subject) {
            status = FAILURE;
        }
        let is_last = i + 1 == STEPS.len();
        if is_interrupted() || (!is_last && !wait_for_enter()) {
            break;
        }
    }
    if can_write {
        match root.fs.unlink(root.file, &subject.note.as_bytes()[1..]) {
            Ok(_) | Err(FsError::NotFound) => {}
            Err(error) => {
                complain(format_args!("demo: {}: {error}", subject.note));
                status = FAILURE;
            }
        }
    }
    if is_interrupted() {
        return interrupted("demo");
    }
    println!("\n`map`, `poke`, `peek` and `residency` do the same by hand; `help` lists the rest.");
    status
}

/// A path in the root that nobody has.
fn free_name() -> String {
    let mut name = "/demo.txt".to_string();
    let mut number = 0;
    while VFS.resolve(name.as_bytes(), LastLink::Keep).is_ok() {
        number += 1;
        name = alloc::format!("/demo-{number}.txt");
    }
    name
}

/// Runs a step as a program; `false` if it did not end as it should, which was told.
fn run(step: &'static Step, subject: &Subject) -> bool {
    let subject = subject.clone();
    let has_failed = Arc::new(AtomicBool::new(false));
    let fails = has_failed.clone();
    let spawned = program::spawn("demo", Role::Program, move || {
        if let Err(failure) = (step.run)(&subject) {
            complain(format_args!("demo: {failure}"));
            fails.store(true, Ordering::Relaxed);
        }
    });
    let thread = match spawned {
        Ok(thread) => thread,
        Err(error) => {
            complain(format_args!("demo: {error}"));
            return false;
        }
    };
    let has_crashed = thread.join() != Exit::Returned;
    // What a crash left behind.
    if let Err(error) = maps().remove_holder(thread.id) {
        complain(format_args!("demo: maps remain: {error}"));
    }
    has_crashed == step.must_crash && !has_failed.load(Ordering::Relaxed)
}

/// At a terminal, waits for Enter; `false` if somebody has seen enough.
fn wait_for_enter() -> bool {
    if !is_terminal() {
        return true;
    }
    print!("\n{}", Styled(Style::Strong, "Enter goes on, q leaves. "));
    let goes_on = loop {
        match console::read_byte_unless_interrupted() {
            Some(b'\r' | b'\n') => break true,
            Some(b'q' | 0x04) | None => break false,
            Some(_) => {}
        }
    };
    print!("\r\x1b[K");
    goes_on
}

/// What is in memory of the file, in less than a row.
fn strip(file: &CachedFile) -> Strip {
    Strip::new(file, 64)
}

fn show_strip(file: &CachedFile) {
    println!("[{}]", strip(file).text);
}

fn forget_all() -> Result<(), FsError> {
    VFS.sync()?;
    CACHE.drop_clean();
    Ok(())
}

fn faults() -> u64 {
    maps().fault_counts().total()
}

/// A byte of each page is enough to bring it in.
fn touch(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(PAGE)
        .map(|byte| u64::from(*byte))
        .sum()
}

fn fill(Subject { path, .. }: &Subject) -> Result<(), Failure> {
    forget_all()?;
    let file = File::open(path)?;
    let cached = file.mappable()?;
    // SAFETY: a file that nobody changes while this runs; who does, sees it change.
    let map = unsafe { Mmap::map(&file)? };
    println!(
        "{path}, {}, is mapped at {:p}. Nothing was read.",
        human(map.len() as u64),
        map.as_ptr()
    );
    println!(
        "A character stands for {}: . not in memory, # in memory, + in part.",
        human(strip(&cached).each * PAGE as u64)
    );
    show_strip(&cached);
    map.advise(Advice::Random)?;
    let before = faults();
    let spots = (1..8).map(|i| map.len() / 8 * i);
    core::hint::black_box(spots.map(|at| u64::from(map[at])).sum::<u64>());
    println!(
        "\nSeven bytes are touched, here and there: {}, a page read for each:",
        Count(faults() - before, "fault")
    );
    show_strip(&cached);
    map.advise(Advice::Normal)?;
    println!("\nThe first quarter is touched from its beginning, and read ahead as it goes:");
    let (before, quarter) = (faults(), map.len() / 4);
    let pieces = map[..quarter].chunks(4 << 20);
    for (i, piece) in pieces.enumerate() {
        core::hint::black_box(touch(piece));
        if is_terminal() && i % 4 == 0 {
            print!("\r[{}]", strip(&cached).text);
        }
        if is_interrupted() {
            break;
        }
    }
    print!("{}", if is_terminal() { "\r" } else { "" });
    show_strip(&cached);
    let pages = Count(quarter.div_ceil(PAGE) as u64, "page");
    println!("{pages}, {}.", Count(faults() - before, "fault"));
    Ok(())
}

/// The file to be changed, as it was at the beginning.
fn make(note: &str) -> Result<File, FsError> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(note)?;
    file.write_all_at(TEXT, 0)?;
    Ok(file)
}

fn line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().into()
}

fn copy_on_write(Subject { note, .. }: &Subject) -> Result<(), Failure> {
    let file = make(note)?;
    // SAFETY: the file is ours.
    let (shared, mut private) = unsafe { (Mmap::map(&file)?, MmapOptions::new().map_copy(&file)?) };
    println!("{note} is mapped twice, shared and private. Both show the same page:");
    println!("  shared   {}", line(&shared));
    println!("  private  {}", line(&private));
    private[..TEXT.len()].copy_from_slice(b"This line is a mere copy.\n");
    println!("\nStored to the private one: its page is copied at that moment, the file's stays.");
    println!("  shared   {}", line(&shared));
    println!("  private  {}", line(&private));
    match &*shared == TEXT {
        true => Ok(()),
        false => Err(Failure::Wrong("the file was changed through a private map")),
    }
}

fn share(Subject { note, .. }: &Subject) -> Result<(), Failure> {
    const CHANGED: &[u8] = b"This line was stored only.\n";
    let file = make(note)?;
    file.set_len(CHANGED.len() as u64)?;
    // SAFETY: the file is ours.
    let mut map = unsafe { MmapMut::map_mut(&file)? };
    map[..CHANGED.len()].copy_from_slice(CHANGED);
    println!("Stored to a shared map of {note}: no write, but its page is dirty.");
    let started = timer::now();
    map.flush()?;
    let us = timer::us_from_ticks(timer::now() - started);
    println!("flush() took {us} us: the disk has it now.");
    drop(map);
    forget_all()?;
    let mut read = [0; CHANGED.len()];
    let len = file.read_at(&mut read, 0)?;
    println!("\nWith the caches dropped, read() brings it back from the disk:");
    println!("  {}", line(&read[..len]));
    match read == CHANGED {
        true => Ok(()),
        false => Err(Failure::Wrong("what was stored is not there")),
    }
}

fn flow(Subject { path, .. }: &Subject) -> Result<(), Failure> {
    let file = File::open(path)?;
    let cached = file.mappable()?;
    // SAFETY: as in `fill`.
    let map = unsafe { Mmap::map(&file)? };
    let size = map.len() as u64;
    let free = free_frames() * PAGE as u64;
    println!("{path} has {}, and {} are free.", human(size), human(free));
    println!("All of it is touched, from the beginning to the end:");
    let (started, before) = (timer::now(), CACHE.counts().evicted);
    let mut progress = Progress::new(path, size);
    for piece in map.chunks(1 << 20) {
        core::hint::black_box(touch(piece));
        progress.add(piece.len() as u64);
        if is_interrupted() {
            return Ok(());
        }
    }
    drop(progress);
    let us = timer::us_from_ticks(timer::now() - started).max(1);
    let evicted = CACHE.counts().evicted - before;
    println!(
        "  {} in {}.{:03} s, {}/s",
        human(size),
        us / 1_000_000,
        us / 1000 % 1000,
        human((u128::from(size) * 1_000_000 / u128::from(us)) as u64)
    );
    println!(
        "  {} of older pages went to make room; {} are free",
        human(evicted * PAGE as u64),
        human(free_frames() * PAGE as u64)
    );
    println!("\nWhat is in memory of it now:");
    show_strip(&cached);
    Ok(())
}

fn count(_: &Subject) -> Result<(), Failure> {
    println!("Faults since power-on, by how they ended (`faults`):\n");
    for row in maps().fault_counts().to_string().lines() {
        if !row.ends_with(" 0") {
            println!("  {row}");
        }
    }
    println!("\nPages of files (`cache`):\n");
    for row in CACHE.counts().to_string().lines() {
        println!("  {row}");
    }
    Ok(())
}

fn crash(Subject { note, .. }: &Subject) -> Result<(), Failure> {
    let file = make(note)?;
    // SAFETY: the file is ours, and what happens when it is cut is what is to be seen.
    let map = unsafe { Mmap::map(&file)? };
    println!("{note} is mapped, and then cut to nothing. A program that touches the map now");
    println!("is stopped, with a report: what it did, where, in which file, and who called it.");
    println!("The console goes on.\n");
    file.set_len(0)?;
    core::hint::black_box(map[0]);
    Err(Failure::Wrong("a byte past the end could be read"))
}
