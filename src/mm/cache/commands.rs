//! The page cache, and maps of files, for who sits at the console.

use super::InUse;
use super::watch::{LEGEND, Strip};
use crate::command::{self, COMMANDS, Command, FAILURE, INTERRUPTED, SUCCESS, Status, USAGE};
use crate::console::{complain, is_interrupted};
use crate::files::VFS;
use crate::fs::FsError;
use crate::fs::vfs::{LastLink, Node};
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::manager::{Advice, MapError, Placement};
use crate::mm::object::{Pattern, Sharing, SyncMode};
use crate::mm::table::Protection;
use crate::mm::{CACHE, maps};
use crate::program;
use crate::progress::Progress;
use crate::shell::{self, usage};
use crate::size::{self, Count, Size};
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
        LENGTH reaches to the end of the file unless said.\n\
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
    "make what was stored to a shared map durable, to its end unless said\n\nExample: flush 0x800000008000",
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

/// A number, or what is none, told.
fn number(command: &str, text: &str) -> Option<u64> {
    let found = size::parse(text);
    if found.is_none() {
        complain(format_args!(
            "{command}: \"{text}\" is no number: 0x1000, 4096 or 4K"
        ));
    }
    found
}

/// An address as it is shown: hexadecimal, with or without `0x`; or what is none, told.
fn address(command: &str, text: &str) -> Option<VirtAddr> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let found = u64::from_str_radix(digits, 16).ok().map(VirtAddr);
    if found.is_none() {
        complain(format_args!(
            "{command}: \"{text}\" is no address: 0x800000008000"
        ));
    }
    found
}

fn resolve(path: &str) -> Result<Node, FsError> {
    VFS.resolve(path.as_bytes(), LastLink::Follow)
}

fn file(path: &str) -> Result<InUse, FsError> {
    let node = resolve(path)?;
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
            "{:>12} {:>12} {:>12}  {} never mapped",
            size(cached),
            size(changed),
            "",
            Count(nameless, "file")
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
    let Ok((options, arguments)) = command::options(arguments, "rwp") else {
        return usage("map");
    };
    let (protection, sharing) = match options.as_str() {
        "r" => (Protection::READ, Sharing::Shared),
        "p" => (Protection::READ_WRITE, Sharing::CopyOnWrite),
        "" | "w" => (Protection::READ_WRITE, Sharing::Shared),
        _ => return usage("map"),
    };
    let [path, place @ ..] = arguments else {
        return usage("map");
    };
    if place.len() > 2 {
        return usage("map");
    }
    let numbers: Option<Vec<u64>> = place.iter().map(|text| number("map", text)).collect();
    let Some(numbers) = numbers else {
        return USAGE;
    };
    let (offset, length) = (numbers.first().copied().unwrap_or(0), numbers.get(1));
    let node = match resolve(path) {
        Ok(node) => node,
        Err(error) => return told("map", path, Err(error)),
    };
    let file = match node.fs.mappable(node.file, path) {
        Ok(file) => file,
        Err(error) => return told("map", path, Err(error)),
    };
    if let ("" | "w", Some(reason)) = (options.as_str(), node.fs.read_only()) {
        complain(format_args!(
            "map: {path}: {}; -r maps it to be read, -p makes copies",
            FsError::ReadOnly(reason)
        ));
        return FAILURE;
    }
    let length = match (length, file.size()) {
        (Some(length), _) => *length,
        (None, 0) => return told("map", path, Err("the file is empty")),
        (None, size) if offset >= size => {
            return told("map", path, Err("OFFSET is behind the end of the file"));
        }
        (None, size) => size - offset,
    };
    let place = Placement::Anywhere;
    let mapped = maps().map_file(file.handle(), place, length, protection, offset, sharing);
    told("map", path, mapped.map(|base| println!("{:#x}", base.0)))
}

fn unmap(arguments: &[&str]) -> Status {
    let [text] = arguments else {
        return usage("unmap");
    };
    match address("unmap", text) {
        Some(base) if base.0 % PAGE != 0 => {
            told("unmap", text, Err("no map begins there; `maps` shows them"))
        }
        Some(base) => told("unmap", text, maps().unmap(base)),
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

/// Whether a command may touch `length` bytes at `base`: all of them are in maps. If not, that is told. The rest of memory is
/// not to be tried.
fn check_range(command: &str, text: &str, base: u64, length: u64) -> Result<(), Status> {
    let is_mapped = match base.checked_add(length) {
        _ if length == 0 => Err(MapError::Empty),
        Some(end) if is_mapped(base, end) => Ok(()),
        _ => Err(MapError::NotMapped),
    };
    match told(command, text, is_mapped) {
        SUCCESS => Ok(()),
        status => Err(status),
    }
}

fn is_mapped(base: u64, end: u64) -> bool {
    let mut at = base;
    while at < end {
        match maps().next_map(VirtAddr(at)).map(|object| object.pages()) {
            Some(pages) if pages.start.start().0 <= at => at = pages.end.start().0,
            _ => return false,
        }
    }
    true
}

fn peek(arguments: &[&str]) -> Status {
    let (text, length) = match arguments {
        [text] => (text, Some(64)),
        [text, length] => (text, number("peek", length)),
        _ => return usage("peek"),
    };
    let (Some(VirtAddr(base)), Some(length)) = (address("peek", text), length) else {
        return USAGE;
    };
    if let Err(status) = check_range("peek", text, base, length) {
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
    let [place, text @ ..] = arguments else {
        return usage("poke");
    };
    let text = text.join(" ");
    if text.is_empty() {
        return usage("poke");
    }
    let Some(VirtAddr(base)) = address("poke", place) else {
        return USAGE;
    };
    if let Err(status) = check_range("poke", place, base, text.len() as u64) {
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
    let (text, length) = match arguments {
        [text] => (text, None),
        [text, length] => match number("flush", length) {
            None => return USAGE,
            length => (text, length),
        },
        _ => return usage("flush"),
    };
    let Some(VirtAddr(base)) = address("flush", text) else {
        return USAGE;
    };
    let rest = || maps().next_map(VirtAddr(base)).map(|object| object.pages());
    let length = length.or_else(|| rest().map(|pages| pages.end.start().0.saturating_sub(base)));
    let length = length.unwrap_or(1);
    if let Err(status) = check_range("flush", text, base, length) {
        return status;
    }
    let page = base & !(PAGE - 1);
    let flushed = maps().sync(VirtAddr(page), length + (base - page), SyncMode::Wait);
    told("flush", text, flushed)
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
    let each = Count(strip.each, "page");
    println!("[{}]\n{LEGEND}; {each} each", strip.text);
    let pages = Count(file.size().div_ceil(PAGE), "page");
    println!("{} of {pages}, {} dirty", strip.resident, strip.dirty);
    SUCCESS
}

fn advise(arguments: &[&str]) -> Status {
    let [text, length, advice] = arguments else {
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
    match (address("advise", text), number("advise", length)) {
        (Some(base), Some(length)) => told("advise", text, maps().advise(base, length, advice)),
        _ => USAGE,
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
