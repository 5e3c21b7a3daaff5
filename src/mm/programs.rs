//! Programs that show what maps do.

use super::addr::PAGE_SIZE;
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::file::File;
use crate::mmap::{MmapError, MmapMut};
use crate::println;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

const PAGE: u64 = PAGE_SIZE as u64;

/// What `sparse` and `fill` map: far more than there is.
const SIZE: u64 = 64 << 30;

crate::program! { name: "sparse", summary: "map 64 GiB and store to a page in every GiB", main: sparse }

crate::program! {
    name: "fill",
    summary: "map 64 GiB and store to every page, until there is no memory left",
    main: fill,
}

crate::program! {
    name: "churn",
    summary: "store to random pages of a mapped file: PATH STORES [SEED]; -c as first word checks that they are there",
    main: churn,
}

/// Where the stores of `churn` go, and what they store.
struct Stores {
    random: u64,
    pages: u64,
}

impl Iterator for Stores {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Some((self.random % self.pages, self.random))
    }
}

fn churn(arguments: &[String]) -> Status {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (is_check, words) = match &words[..] {
        ["-c", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (path, numbers): (_, [Result<u64, _>; 2]) = match words {
        [path, stores] => (path, [stores.parse(), Ok(1)]),
        [path, stores, seed] => (path, [stores.parse(), seed.parse()]),
        _ => {
            println!("usage: run churn [-c] PATH STORES [SEED]");
            return USAGE;
        }
    };
    let [Ok(count), Ok(seed)] = numbers else {
        println!("churn: STORES and SEED are numbers");
        return USAGE;
    };
    match churn_file(path, count as usize, seed, is_check) {
        Ok(0) => SUCCESS,
        Ok(wrong) => {
            println!("churn: {wrong} pages are not as they were stored");
            FAILURE
        }
        Err(error) => {
            println!("churn: {path}: {error}");
            FAILURE
        }
    }
}

/// How many pages are not as they should be.
fn churn_file(path: &str, count: usize, seed: u64, is_check: bool) -> Result<u64, MmapError> {
    let file = File::options().read(true).write(true).open(path)?;
    // SAFETY: nobody else has business with the file.
    let mut map = unsafe { MmapMut::map_mut(&file)? };
    let pages = map.len() as u64 / PAGE;
    if pages == 0 {
        return Err(MmapError::OutOfRange);
    }
    let stores = || Stores {
        random: seed.max(1),
        pages,
    };
    if !is_check {
        for (page, value) in stores().take(count) {
            let at = (page * PAGE + value % (PAGE / 8) * 8) as usize;
            map[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        map.flush()?;
        return Ok(0);
    }
    // Each word of a page may have been stored to again: the last one counts.
    let mut last = BTreeMap::new();
    for (page, value) in stores().take(count) {
        last.insert((page, value % (PAGE / 8)), value);
    }
    let wrong = last.into_iter().filter(|((page, word), value)| {
        let at = (page * PAGE + word * 8) as usize;
        map[at..at + 8] != value.to_le_bytes()
    });
    Ok(wrong.count() as u64)
}

fn sparse() -> Status {
    touch(1 << 30)
}

fn fill() -> Status {
    touch(PAGE)
}

fn touch(step: u64) -> Status {
    let map = match MmapMut::map_anon(SIZE as usize) {
        Ok(map) => map,
        Err(error) => {
            println!("no map of {} GiB: {error}", SIZE >> 30);
            return FAILURE;
        }
    };
    let address = |offset: u64| (map.as_ptr().addr() as u64 + offset) as *mut u64;
    for offset in (0..SIZE).step_by(step as usize) {
        // SAFETY: in the map made above, which nobody else knows.
        unsafe { address(offset).write_volatile(offset) };
    }
    for offset in (0..SIZE).step_by(step as usize) {
        // SAFETY: as above.
        let found = unsafe { address(offset).read_volatile() };
        if found != offset {
            println!("at {offset:#x}: {found:#x}");
            return FAILURE;
        }
    }
    SUCCESS
}
