//! The page cache, and maps of files, for who sits at the console.

use super::InUse;
use super::watch::{LEGEND, Strip};
use crate::command::{self, COMMANDS, Command, FAILURE, INTERRUPTED, SUCCESS, Status, USAGE};
use crate::console::{complain, is_interrupted};
use crate::files::VFS;
use crate::fs::FsError;
use crate::fs::vfs::LastLink;
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::manager::{Advice, MapError, Placement};
use crate::mm::object::{Pattern, Sharing, SyncMode};
use crate::mm::table::Protection;
use crate::mm::{CACHE, maps};
use crate::program;
use crate::progress::Progress;
use crate::shell::{self, usage};
use crate::size::{self, Size};
use crate::thread::{Exit, Role};
use crate::{print, println};
use alloc::string::String;
use alloc::vec::Vec;
use linkme::distributed_slice;
use sha2::{Digest, Sha256};

const PAGE: u64 = PAGE_SIZE as u64;

macro_rules! command {
    ($static:ident, $name:literal, $arguments:literal, $summary:literal, $run:path) => {
        #[distributed_slice(COMMANDS)]
        static $static: Command = Command {
            name: $name,
            arguments: $arguments,
            summary: $summary,
            run: $run,
        };
    };
}

command!(
    CACHE_COMMAND,
    "cache",
    "[-b]",
    "what is cached of which file, and what the cache has done\n\n\
        -b  sizes in bytes\n\
        Example: cache",
    cache
);
command!(
    DROP,
    "drop-caches",
    "",
    "forget every page that can be read again\n\n\
        What has changed is written first, so nothing is lost; what is read next\n\
        comes from the disk.\n\
        Example: drop-caches",
    drop_caches
);
command!(
    MAP,
    "map",
    "[-r|-w|-p] PATH [OFFSET [LENGTH]]",
    "map a file, and say at which address\n\n\
        -r  to be read\n\
        -w  shared: what is stored is the file's (as if not said)\n\
        -p  private: what is stored is a copy\n\
        Nothing is read before it is touched, by `peek` or `poke`.\n\
        Example: map -p /docs/start.md",
    map
);
command!(
    UNMAP,
    "unmap",
    "ADDRESS",
    "remove the map that begins there\n\nExample: unmap 0x800000008000",
    unmap
);
command!(
    PEEK,
    "peek",
    "ADDRESS [LENGTH]",
    "show memory that is mapped, 64 bytes unless said\n\nExample: peek 0x800000008000 32",
    peek
);
command!(
    POKE,
    "poke",
    "ADDRESS TEXT...",
    "store text to memory that is mapped\n\nExample: poke 0x800000008000 Hello",
    poke
);
command!(
    FLUSH,
    "flush",
    "ADDRESS [LENGTH]",
    "make what was stored to a shared map durable\n\nExample: flush 0x800000008000",
    flush
);
command!(
    RESIDENCY,
    "residency",
    "PATH",
    "show which part of a file is in memory\n\nExample: residency /big",
    residency
);
command!(
    ADVISE,
    "advise",
    "ADDRESS LENGTH normal|random|sequential|willneed|dontneed",
    "say what a program would say of its map\n\n\
        normal, random, sequential  how it will be touched\n\
        willneed, dontneed          whether it will be touched soon\n\
        Example: advise 0x800000200000 64M willneed",
    advise
);
command!(
    SUM_MAPPED,
    "mapsum",
    "PATH...",
    "SHA-256 of files, read through a map\n\nExample: mapsum /big",
    mapsum
);

/// Says what failed with what.
fn told(command: &str, what: &str, result: Result<(), impl core::fmt::Display>) -> Status {
    match result {
        Ok(()) => SUCCESS,
        Err(error) => {
            complain(format_args!("{command}: {what}: {error}"));
            FAILURE
        }
    }
}

/// All of them, or what is none, told.
fn numbers<const N: usize>(command: &str, texts: [&str; N]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for (number_, text) in numbers.iter_mut().zip(texts) {
        let Some(found) = size::parse(text) else {
            complain(format_args!(
                "{command}: \"{text}\" is no number: 0x1000, 4096 or 4K"
            ));
            return None;
        };
        *number_ = found;
    }
    Some(numbers)
}

fn file(path: &str) -> Result<InUse, FsError> {
    let node = VFS.resolve(path.as_bytes(), LastLink::Follow)?;
    node.fs.mappable(node.file, path)
}

fn cache(arguments: &[&str]) -> Status {
    let unit = match command::options(arguments, "b") {
        Ok((options, [])) => size::unit(&options),
        _ => return usage("cache"),
    };
    println!("{:>12} {:>12} {:>12}  FILE", "CACHED", "DIRTY", "SIZE");
    let size = |bytes| Size(bytes, unit);
    let (mut nameless, mut cached, mut changed) = (0, 0, 0);
    for file in CACHE.files(None) {
        let (pages, dirty) = file.pages();
        if file.name().is_empty() {
            nameless += 1;
            cached += pages * PAGE;
            changed += dirty * PAGE;
            continue;
        }
        println!(
            "{:>12} {:>12} {:>12}  {}",
            size(pages * PAGE),
            size(dirty * PAGE),
            size(file.size()),
            file.name()
        );
    }
    if nameless > 0 {
        println!(
            "{:>12} {:>12} {:>12}  {nameless} files that were never mapped",
            size(cached),
            size(changed),
            ""
        );
    }
    print!("\nPAGES\n{}", CACHE.counts());
    SUCCESS
}

fn drop_caches(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return usage("drop-caches");
    }
    let written = VFS.sync();
    CACHE.drop_clean();
    told("drop-caches", "not all could be written", written)
}

fn map(arguments: &[&str]) -> Status {
    let (protection, sharing, arguments) = match arguments {
        ["-r", rest @ ..] => (Protection::READ, Sharing::Shared, rest),
        ["-p", rest @ ..] => (Protection::READ_WRITE, Sharing::CopyOnWrite, rest),
        ["-w", rest @ ..] | rest => (Protection::READ_WRITE, Sharing::Shared, rest),
    };
    let (path, place) = match arguments {
        [path] => (path, numbers("map", ["0", "0"])),
        [path, offset] => (path, numbers("map", [offset, "0"])),
        [path, offset, length] => (path, numbers("map", [offset, length])),
        _ => return usage("map"),
    };
    let Some([offset, length]) = place else {
        return USAGE;
    };
    let file = match file(path) {
        Ok(file) => file,
        Err(error) => return told("map", path, Err(error)),
    };
    let length = match length {
        0 => file.size().saturating_sub(offset),
        length => length,
    };
    let place = Placement::Anywhere;
    let mapped = maps().map_file(file.handle(), place, length, protection, offset, sharing);
    told("map", path, mapped.map(|base| println!("{:#x}", base.0)))
}

fn unmap(arguments: &[&str]) -> Status {
    let [address] = arguments else {
        return usage("unmap");
    };
    match numbers("unmap", [address]) {
        Some([base]) => told("unmap", address, maps().unmap(VirtAddr(base))),
        None => USAGE,
    }
}

/// Runs `f` as a program: what it touches may fault for good, and then it alone ends.
fn as_program(name: &str, f: impl FnOnce() + Send + 'static) -> Status {
    match program::spawn(name, Role::Program, f) {
        Ok(thread) => match thread.join() {
            Exit::Returned => SUCCESS,
            Exit::Crashed(_) | Exit::Stopped => FAILURE,
        },
        Err(error) => {
            complain(format_args!("{name}: {error}"));
            FAILURE
        }
    }
}

/// Whether a command may touch `length` bytes at `base`: they are in maps. The rest of memory is not to be tried.
fn check_range(command: &str, base: u64, length: u64) -> Option<Status> {
    let mapped = maps().contains(VirtAddr(base & !(PAGE - 1)), length + base % PAGE);
    match mapped {
        Ok(true) => None,
        Ok(false) => Some(told(command, "nothing is there", Err(MapError::NotMapped))),
        Err(error) => Some(told(command, "no such range", Err(error))),
    }
}

fn peek(arguments: &[&str]) -> Status {
    let place = match arguments {
        [address] => numbers("peek", [address, "64"]),
        [address, length] => numbers("peek", [address, length]),
        _ => return usage("peek"),
    };
    let Some([base, length]) = place else {
        return USAGE;
    };
    if let Some(status) = check_range("peek", base, length) {
        return status;
    }
    as_program("peek", move || {
        for at in (0..length).step_by(16) {
            let count = 16.min(length - at);
            let bytes: Vec<u8> = (0..count)
                // SAFETY: in the maps' half of the addresses; where nothing is, the fault ends this program.
                .map(|i| unsafe { ((base + at + i) as *const u8).read_volatile() })
                .collect();
            print!("{:012x} ", base + at);
            for byte in &bytes {
                print!(" {byte:02x}");
            }
            for _ in count..16 {
                print!("   ");
            }
            let text = bytes.iter().map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            });
            println!("  {}", text.collect::<String>());
        }
    })
}

fn poke(arguments: &[&str]) -> Status {
    let [address, text @ ..] = arguments else {
        return usage("poke");
    };
    let text = text.join(" ");
    if text.is_empty() {
        return usage("poke");
    }
    let Some([base]) = numbers("poke", [address]) else {
        return USAGE;
    };
    if let Some(status) = check_range("poke", base, text.len() as u64) {
        return status;
    }
    as_program("poke", move || {
        for (at, byte) in (base..).zip(text.bytes()) {
            // SAFETY: as for `peek`; nothing but what who typed this has mapped is there, or a stack, which is theirs
            // to break as well.
            unsafe { (at as *mut u8).write_volatile(byte) };
        }
    })
}

fn flush(arguments: &[&str]) -> Status {
    let (address, length) = match arguments {
        [address] => (address, "1"),
        [address, length] => (address, *length),
        _ => return usage("flush"),
    };
    let Some([base, length]) = numbers("flush", [address, length]) else {
        return USAGE;
    };
    let page = base & !(PAGE - 1);
    let flushed = maps().sync(VirtAddr(page), length + (base - page), SyncMode::Wait);
    told("flush", address, flushed)
}

/// Columns of the strip that `residency` shows.
const COLUMNS: u64 = 64;

fn residency(arguments: &[&str]) -> Status {
    let [path] = arguments else {
        return usage("residency");
    };
    let file = match file(path) {
        Ok(file) => file,
        Err(error) => return told("residency", path, Err(error)),
    };
    let strip = Strip::new(&file, COLUMNS);
    println!("[{}]\n{LEGEND}; {} pages each", strip.text, strip.each);
    let pages = file.size().div_ceil(PAGE);
    println!("{} of {pages} pages, {} dirty", strip.resident, strip.dirty);
    SUCCESS
}

fn advise(arguments: &[&str]) -> Status {
    let [address, length, advice] = arguments else {
        return usage("advise");
    };
    let advice = match *advice {
        "normal" => Advice::Pattern(Pattern::Normal),
        "random" => Advice::Pattern(Pattern::Random),
        "sequential" => Advice::Pattern(Pattern::Sequential),
        "willneed" => Advice::WillNeed,
        "dontneed" => Advice::DontNeed,
        _ => return usage("advise"),
    };
    match numbers("advise", [address, length]) {
        Some([base, length]) => told(
            "advise",
            address,
            maps().advise(VirtAddr(base), length, advice),
        ),
        None => USAGE,
    }
}

fn mapsum(arguments: &[&str]) -> Status {
    if arguments.is_empty() {
        return usage("mapsum");
    }
    let mut status = SUCCESS;
    for path in arguments {
        match sum_one(path) {
            SUCCESS => {}
            INTERRUPTED => return INTERRUPTED,
            failure => status = failure,
        }
    }
    status
}

fn sum_one(path: &str) -> Status {
    let file = match file(path) {
        Ok(file) => file,
        Err(error) => return told("mapsum", path, Err(error)),
    };
    let size = file.size();
    if size == 0 {
        print_sum(Sha256::new(), path);
        return SUCCESS;
    }
    let mapped = maps().map_file(
        file.handle(),
        Placement::Anywhere,
        size,
        Protection::READ,
        0,
        Sharing::Shared,
    );
    let base = match mapped {
        Ok(base) => base,
        Err(error) => return told("mapsum", path, Err(error)),
    };
    let name = String::from(path);
    let status = as_program("mapsum", move || {
        // SAFETY: mapped above, for as long as this runs; nobody is to store to the file meanwhile.
        let bytes = unsafe { core::slice::from_raw_parts(base.0 as *const u8, size as usize) };
        let mut hash = Sha256::new();
        let mut progress = Progress::new(&name, size);
        for part in bytes.chunks(1 << 20) {
            hash.update(part);
            progress.add(part.len() as u64);
            if is_interrupted() {
                return;
            }
        }
        drop(progress);
        print_sum(hash, &name);
    });
    match maps().unmap(base) {
        Ok(()) if is_interrupted() => shell::interrupted("mapsum"),
        Ok(()) => status,
        Err(error) => told("mapsum", path, Err(error)),
    }
}

fn print_sum(hash: Sha256, path: &str) {
    let mut line = String::new();
    for byte in hash.finalize() {
        line.push_str(&alloc::format!("{byte:02x}"));
    }
    println!("{line}  {path}");
}
