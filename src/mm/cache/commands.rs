//! The page cache, and maps of files, for who sits at the console.

use super::InUse;
use super::watch::{LEGEND, Strip};
use crate::command::{COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::files::VFS;
use crate::fs::FsError;
use crate::fs::vfs::LastLink;
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::manager::{Advice, MapError, Placement};
use crate::mm::object::{Pattern, Sharing, SyncMode};
use crate::mm::table::Protection;
use crate::mm::{CACHE, maps};
use crate::program;
use crate::shell::usage;
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
    "",
    "what is cached of which file, and what the cache has done",
    cache
);
command!(
    DROP,
    "drop-caches",
    "",
    "forget every page that can be read again",
    drop_caches
);
command!(
    MAP,
    "map",
    "[-r|-w|-p] PATH [OFFSET [LENGTH]]",
    "map a file to be read (-r), shared (-w, as if not said) or private (-p)",
    map
);
command!(
    UNMAP,
    "unmap",
    "ADDRESS",
    "remove the map that begins there",
    unmap
);
command!(
    PEEK,
    "peek",
    "ADDRESS [LENGTH]",
    "show memory that is mapped",
    peek
);
command!(
    POKE,
    "poke",
    "ADDRESS TEXT...",
    "store text to memory that is mapped",
    poke
);
command!(
    FLUSH,
    "flush",
    "ADDRESS [LENGTH]",
    "make what was stored to a shared map durable",
    flush
);
command!(
    RESIDENCY,
    "residency",
    "PATH",
    "show which part of a file is in memory",
    residency
);
command!(
    ADVISE,
    "advise",
    "ADDRESS LENGTH normal|random|sequential|willneed|dontneed",
    "say what a program would say of its map",
    advise
);
command!(
    SUM_MAPPED,
    "mapsum",
    "PATH...",
    "SHA-256 of files, read through a map",
    mapsum
);

/// Says what failed with what.
fn told(command: &str, what: &str, result: Result<(), impl core::fmt::Display>) -> Status {
    match result {
        Ok(()) => SUCCESS,
        Err(error) => {
            println!("{command}: {what}: {error}");
            FAILURE
        }
    }
}

/// A number, hexadecimal after `0x`, decimal perhaps with K, M or G behind it.
pub(in crate::mm) fn number(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// All of them, or what is none, told.
fn numbers<const N: usize>(command: &str, texts: [&str; N]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for (number_, text) in numbers.iter_mut().zip(texts) {
        let Some(found) = number(text) else {
            println!("{command}: \"{text}\" is no number: 0x1000, 4096 or 4K");
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
    if !arguments.is_empty() {
        return usage("cache");
    }
    println!("{:>10} {:>10} {:>10}  FILE", "KiB", "DIRTY KiB", "SIZE KiB");
    let mut nameless = (0, 0, 0);
    for file in CACHE.files(None) {
        let (pages, dirty) = file.pages();
        let kib = [pages * PAGE, dirty * PAGE, file.size()].map(|bytes| bytes.div_ceil(1024));
        if file.name().is_empty() {
            nameless = (nameless.0 + 1, nameless.1 + kib[0], nameless.2 + kib[1]);
        } else {
            println!(
                "{:>10} {:>10} {:>10}  {}",
                kib[0],
                kib[1],
                kib[2],
                file.name()
            );
        }
    }
    if nameless.0 > 0 {
        println!(
            "{:>10} {:>10} {:>10}  {} files that were never mapped",
            nameless.1, nameless.2, "", nameless.0
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
            Exit::Crashed(_) => FAILURE,
        },
        Err(error) => {
            println!("{name}: {error}");
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
        let one = sum_one(path);
        if one != SUCCESS {
            status = one;
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
        hash.update(bytes);
        print_sum(hash, &name);
    });
    match maps().unmap(base) {
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
