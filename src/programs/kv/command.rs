//! The program: what is typed, and the file that a store is kept in.
//!
//! Keys and values are bytes. In lines, of `import` and `export`, a tab stands between them; a tab, a newline and a backslash
//! in them are `\t`, `\n` and `\\`.

use super::store::{Error, Storage, Store};
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::console;
use crate::mmap::{Advice, Mmap, MmapError, MmapMut, RemapOptions};
use crate::println;
use crate::program::fs::{self, File, FsError};
use crate::program::time::Instant;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

crate::program! {
    name: "kv",
    summary: "a key-value store that survives power cuts: FILE get|put|delete|scan|import|export|compare|bench|stats",
    main: main,
}

const HELP: &str = "\
usage: run kv FILE get KEY
       run kv FILE put KEY VALUE
       run kv FILE delete KEY
       run kv FILE scan [PREFIX]          the keys that begin so, in order
       run kv FILE import LINES [FIRST]   put each line of a file, KEY tab VALUE, from line FIRST on
       run kv FILE export                 print all lines
       run kv FILE compare LINES [COUNT]  say which lines, of the first COUNT, are not there
       run kv FILE bench COUNT            put and get so many records
       run kv FILE stats                  how many records, and how large
       run kv FILE compact                write it anew, without what is no longer of use";

/// Lines that one commit makes durable.
const BATCH: u64 = 10_000;

type KvError = Error<MmapError>;
type FileStore = Store<MappedFile>;

fn main(arguments: &[String]) -> Status {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [path, words @ ..] = &words[..] else {
        println!("{HELP}");
        return USAGE;
    };
    run(path, words).unwrap_or_else(|error| {
        println!("kv: {path}: {error}");
        FAILURE
    })
}

fn run(path: &str, words: &[&str]) -> Result<Status, KvError> {
    let number = |text: &str| text.parse::<u64>().ok();
    match words {
        ["put", key, value] => {
            let mut store = open_or_make(path)?;
            store.put(key.as_bytes(), value.as_bytes())?;
            store.commit()?;
            tidy(path, store)
        }
        ["delete", key] => {
            let mut store = open(path)?;
            if !store.delete(key.as_bytes())? {
                println!("kv: {path}: no key \"{key}\"");
                return Ok(FAILURE);
            }
            store.commit()?;
            tidy(path, store)
        }
        ["get", key] => match open(path)?.get(key.as_bytes()) {
            Some(value) => {
                console::write_bytes(value);
                println!();
                Ok(SUCCESS)
            }
            None => {
                println!("kv: {path}: no key \"{key}\"");
                Ok(FAILURE)
            }
        },
        ["scan"] => scan(path, b""),
        ["scan", prefix] => scan(path, prefix.as_bytes()),
        ["export"] => scan(path, b""),
        ["import", lines] => import(path, lines, 0),
        ["import", lines, first] if number(first).is_some() => {
            import(path, lines, number(first).unwrap_or(0))
        }
        ["compare", lines] => compare(path, lines, u64::MAX),
        ["compare", lines, count] if number(count).is_some() => {
            compare(path, lines, number(count).unwrap_or(0))
        }
        ["bench", count] if number(count).is_some() => bench(path, number(count).unwrap_or(0)),
        ["stats"] => stats(path),
        ["compact"] => {
            let store = open(path)?;
            compact(path, &store)?;
            Ok(SUCCESS)
        }
        _ => {
            println!("{HELP}");
            Ok(USAGE)
        }
    }
}

/// A store's file, mapped to be written.
struct MappedFile {
    file: File,
    map: MmapMut,
}

impl MappedFile {
    fn open(path: &str, missing: Missing) -> Result<Self, MmapError> {
        let mut options = File::options();
        let options = options.read(true).write(true);
        let file = options.create(missing == Missing::Made).open(path)?;
        // SAFETY: nobody changes it while it is mapped: a store belongs to one program at a time, as its users know.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Self { file, map })
    }
}

impl Storage for MappedFile {
    type Error = MmapError;

    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn flush(&mut self, range: Range<usize>) -> Result<(), MmapError> {
        self.map.flush_range(range.start, range.len())
    }

    fn grow(&mut self, len: usize) -> Result<(), MmapError> {
        self.file.set_len(len as u64)?;
        self.file.sync_all()?;
        // SAFETY: the file is as long.
        unsafe { self.map.remap(len, RemapOptions::new().may_move(true)) }
    }
}

/// What becomes of a store that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    Told,
}

/// The store of that name, to look into it.
fn open(path: &str) -> Result<FileStore, KvError> {
    open_or(path, Missing::Told)
}

/// The store of that name, or a new one.
fn open_or_make(path: &str) -> Result<FileStore, KvError> {
    open_or(path, Missing::Made)
}

fn open_or(path: &str, missing: Missing) -> Result<FileStore, KvError> {
    let file = MappedFile::open(path, missing).map_err(Error::Storage)?;
    file.map.advise(Advice::Sequential)?;
    // A new store is written to zeros; who looks into one writes nothing.
    if missing == Missing::Told && file.map.iter().all(|byte| *byte == 0) {
        return Err(Error::NotAStore);
    }
    let store = Store::open(file)?;
    Ok(store)
}

/// Where a store is written anew; what a power cut left there is of no use.
fn path_of_copy(path: &str) -> String {
    alloc::format!("{path}.compact")
}

fn tidy(path: &str, store: FileStore) -> Result<Status, KvError> {
    if store.is_mostly_garbage() {
        compact(path, &store)?;
    }
    Ok(SUCCESS)
}

/// Writes the store anew beside itself, and puts that in its place: at any moment one of the two is whole, and there.
fn compact(path: &str, store: &FileStore) -> Result<(), KvError> {
    let fs = |error: FsError| Error::Storage(MmapError::Fs(error));
    let copy_path = path_of_copy(path);
    match fs::remove_file(&copy_path) {
        Ok(()) | Err(FsError::NotFound) => {}
        Err(error) => return Err(fs(error)),
    }
    let mut copy = open_or_make(&copy_path)?;
    store.copy_to(&mut copy)?;
    let (before, after) = (store.statistics(), copy.statistics());
    let MappedFile { file, .. } = copy.into_storage();
    file.sync_all().map_err(fs)?;
    fs::rename(&copy_path, path).map_err(fs)?;
    file.sync_all().map_err(fs)?;
    println!("kv: {path}: {} bytes, were {}", after.used, before.used);
    Ok(())
}

fn scan(path: &str, prefix: &[u8]) -> Result<Status, KvError> {
    let store = open(path)?;
    let mut line = Vec::new();
    for (key, value) in store.scan(prefix)? {
        line.clear();
        escape(key, &mut line);
        line.push(b'\t');
        escape(value, &mut line);
        line.push(b'\n');
        console::write_bytes(&line);
    }
    Ok(SUCCESS)
}

fn escape(bytes: &[u8], line: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'\t' => line.extend(b"\\t"),
            b'\n' => line.extend(b"\\n"),
            b'\\' => line.extend(b"\\\\"),
            byte => line.push(*byte),
        }
    }
}

/// The reverse; `None` where a backslash stands before anything else.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b't' => b'\t',
                b'n' => b'\n',
                b'\\' => b'\\',
                _ => return None,
            },
            byte => *byte,
        });
    }
    Some(bytes)
}

/// Hands key and value of each line to `f`, with the line's number from 0 on; `false` where a line is none, which is told.
fn for_each_line(
    path: &str,
    mut f: impl FnMut(u64, Vec<u8>, Vec<u8>) -> Result<bool, KvError>,
) -> Result<bool, KvError> {
    let file = File::open(path).map_err(|error| Error::Storage(error.into()))?;
    // SAFETY: nobody changes it meanwhile.
    let map = unsafe { Mmap::map(&file)? };
    map.advise(Advice::Sequential)?;
    let lines = map.split(|byte| *byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let tab = line.iter().position(|byte| *byte == b'\t');
        let parts =
            tab.and_then(|tab| Some((unescape(&line[..tab])?, unescape(&line[tab + 1..])?)));
        let Some((key, value)) = parts else {
            println!("kv: {path}: line {} is not KEY tab VALUE", number + 1);
            return Ok(false);
        };
        if !f(number as u64, key, value)? {
            break;
        }
    }
    Ok(true)
}

fn import(path: &str, lines: &str, first: u64) -> Result<Status, KvError> {
    let mut store = open_or_make(path)?;
    let start = Instant::now();
    let (mut put, mut next) = (0, first);
    let is_whole = for_each_line(lines, |number, key, value| {
        if number < first {
            return Ok(true);
        }
        store.put(&key, &value)?;
        put += 1;
        next = number + 1;
        if put % BATCH == 0 {
            store.commit()?;
            println!("committed {next}");
        }
        Ok(true)
    })?;
    store.commit()?;
    println!("committed {next}");
    println!("{put} records in {} ms", start.elapsed().as_millis());
    tidy(path, store)?;
    Ok(if is_whole { SUCCESS } else { FAILURE })
}

fn compare(path: &str, lines: &str, count: u64) -> Result<Status, KvError> {
    let store = open(path)?;
    let (mut same, mut different) = (0, 0);
    let is_whole = for_each_line(lines, |number, key, value| {
        if number >= count {
            return Ok(false);
        }
        if store.get(&key) == Some(&value[..]) {
            same += 1;
        } else {
            different += 1;
            if different <= 10 {
                println!("kv: {path}: line {} is not there", number + 1);
            }
        }
        Ok(true)
    })?;
    println!("{same} lines are there, {different} are not");
    Ok(if is_whole && different == 0 {
        SUCCESS
    } else {
        FAILURE
    })
}

fn bench(path: &str, count: u64) -> Result<Status, KvError> {
    let mut store = open_or_make(path)?;
    let key = |i: u64| alloc::format!("bench {i:012}").into_bytes();
    let rate = |what: &str, count: u64, start: Instant| {
        let us = (start.elapsed().as_micros() as u64).max(1);
        println!("kv.{what} {} op/s", count.saturating_mul(1_000_000) / us);
    };
    let start = Instant::now();
    for i in 0..count {
        store.put(&key(i), &i.to_le_bytes().repeat(4))?;
        if (i + 1) % BATCH == 0 {
            store.commit()?;
        }
    }
    store.commit()?;
    rate("put", count, start);
    let start = Instant::now();
    for j in 0..count {
        let i = (j.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count; // here and there
        if store.get(&key(i)) != Some(&i.to_le_bytes().repeat(4)) {
            println!("kv: {path}: record {i} is not as it was put");
            return Ok(FAILURE);
        }
    }
    rate("get", count, start);
    let commits = count.min(100);
    let start = Instant::now();
    for i in 0..commits {
        store.put(&key(i), &i.to_le_bytes().repeat(4))?;
        store.commit()?;
    }
    rate("commit", commits, start);
    tidy(path, store)
}

fn stats(path: &str) -> Result<Status, KvError> {
    let statistics = open(path)?.statistics();
    println!("records  {}", statistics.records);
    println!("commits  {}", statistics.commits);
    println!("used     {} bytes", statistics.used);
    println!("garbage  {} bytes", statistics.garbage);
    println!("file     {} bytes", statistics.size);
    Ok(SUCCESS)
}
