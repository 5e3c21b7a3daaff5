//! `trace`: events for who sits at the console.

use super::{Event, Kind, Name, Ring, clear, counts, is_on, start, stop, with_ring};
use crate::arch::aarch64::timer;
use crate::command::{COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::file::File;
use crate::fs::FsError;
use crate::mm::addr::PAGE_SIZE;
use crate::mm::{CACHE, FRAMES, low_half};
use crate::shell::usage;
use crate::size;
use crate::{console, println};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use linkme::distributed_slice;

#[distributed_slice(COMMANDS)]
static TRACE: Command = Command {
    name: "trace",
    arguments: "[on [SIZE]|off|dump [PATH]|clear]",
    summary: "record faults and what the cache does; print that, or write it to a file\n\n\
        The record takes SIZE bytes of memory, and keeps what came last. On a PC\n\
        pinfold-tools makes a picture of a dump.\n\
        Example: trace on; mapsum /big; trace dump /trace",
    run: trace,
};

/// Parts of memory that the ring takes unless another size is asked for, and the least it takes: what is in memory at the
/// end must have room in it, page by page in the worst case.
const PART: u64 = 64;
const LEAST_PART: u64 = 512;

/// As much as the ring takes by itself, and as is written to a file at a time.
const MOST: u64 = 64 << 20;
const PIECE: usize = 16 << 10;

fn trace(arguments: &[&str]) -> Status {
    match arguments {
        [] => {
            tell();
            SUCCESS
        }
        ["on"] => on(None),
        ["on", size] => match size::parse(size) {
            Some(size) => on(Some(size)),
            None => {
                println!("trace: \"{size}\" is no size: 1M, 512K");
                USAGE
            }
        },
        ["off"] => {
            if !off() {
                println!("trace: nothing is being recorded");
                return FAILURE;
            }
            tell();
            SUCCESS
        }
        ["dump"] => dump(None),
        ["dump", path] => dump(Some(path)),
        ["clear"] => {
            low_half::watch(low_half::TRACING, false);
            clear();
            SUCCESS
        }
        _ => usage("trace"),
    }
}

fn on(size: Option<u64>) -> Status {
    let memory = FRAMES.counts().total * PAGE_SIZE as u64;
    let least = memory / LEAST_PART;
    let size = size.unwrap_or((memory / PART).min(MOST).max(least));
    if !(least..=memory / 4).contains(&size) {
        println!(
            "trace: events take from {} to {} KiB on this machine",
            least >> 10,
            memory >> 12
        );
        return USAGE;
    }
    // What was recorded before makes room.
    clear();
    let Some(ring) = Ring::new(size, timer::now) else {
        println!("trace: no memory for {} KiB of events", size >> 10);
        return FAILURE;
    };
    start(ring);
    low_half::watch(low_half::TRACING, true);
    SUCCESS
}

/// Ends the recording with what is in memory; `false` where there was none.
fn off() -> bool {
    low_half::watch(low_half::TRACING, false);
    stop(|add| {
        for file in CACHE.files(None) {
            for present in file.present() {
                add(Kind::Here, file.number(), present.first, present.resident);
                add(Kind::HereDirty, file.number(), present.first, present.dirty);
            }
        }
    })
}

fn tell() {
    let Some((events, room, lost)) = counts() else {
        println!("nothing is recorded; `trace on` begins");
        return;
    };
    let state = if is_on() { "on" } else { "off" };
    println!("{state}: {events} events, room for {room}, {lost} lost");
}

/// Text on its way to somewhere, in large pieces.
struct Pieces<F: FnMut(&[u8]) -> Result<(), FsError>> {
    text: String,
    write: F,
    error: Option<FsError>,
}

impl<F: FnMut(&[u8]) -> Result<(), FsError>> Pieces<F> {
    fn flush(&mut self) {
        if self.error.is_none() {
            self.error = (self.write)(self.text.as_bytes()).err();
        }
        self.text.clear();
    }
}

impl<F: FnMut(&[u8]) -> Result<(), FsError>> Write for Pieces<F> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        // Whole lines: others may print between two pieces.
        if self.text.len() >= PIECE && text.ends_with('\n') {
            self.flush();
        }
        self.error.map_or(Ok(()), |_| Err(fmt::Error))
    }
}

fn dump(path: Option<&str>) -> Status {
    off();
    let to_console = |piece: &[u8]| {
        console::write_bytes(piece);
        Ok(())
    };
    let written = match path {
        None => with_ring(|ring| write(ring, to_console)),
        Some(path) => with_ring(|ring| {
            let file = File::create(path)?;
            write(ring, |piece| file.write_all(piece))?;
            file.sync_all()
        }),
    };
    match (written, path) {
        (None, _) => println!("trace: nothing was recorded; `trace on` begins"),
        (Some(Err(error)), _) => println!("trace: {}: {error}", path.unwrap_or("console")),
        (Some(Ok(())), Some(_)) => {
            tell();
            return SUCCESS;
        }
        (Some(Ok(())), None) => return SUCCESS,
    }
    FAILURE
}

fn write(ring: &Ring, to: impl FnMut(&[u8]) -> Result<(), FsError>) -> Result<(), FsError> {
    let mut pieces = Pieces {
        text: String::with_capacity(2 * PIECE),
        write: to,
        error: None,
    };
    // The only error is one of `pieces`, which it keeps.
    let _ = ring.dump(&names(ring), timer::ns_from_ticks, &mut pieces);
    pieces.flush();
    pieces.error.map_or(Ok(()), Err)
}

/// The files that events speak of.
fn names(ring: &Ring) -> Vec<Name> {
    let mut is_spoken_of: Vec<bool> = Vec::new();
    for Event { file, .. } in ring.events() {
        let file = file as usize;
        if file >= is_spoken_of.len() {
            is_spoken_of.resize(file + 1, false);
        }
        is_spoken_of[file] = true;
    }
    let is_wanted = |number: u32| is_spoken_of.get(number as usize) == Some(&true);
    let mut names = Vec::new();
    for file in CACHE.files(None) {
        if is_wanted(file.number()) {
            names.push(file.trace_name());
        }
    }
    for Name { number, size, name } in ring.ended() {
        if is_wanted(*number) {
            names.push(Name {
                number: *number,
                size: *size,
                name: format!("{name} (removed)"),
            });
        }
    }
    names
}
