//! One file on a disk that fails now and then, against plain bytes: what was refused has changed nothing, and what was cut
//! off does not come back.
//!
//! `PINFOLD_SEEDS=1000 cargo test --release --test page_cache_errors` is a long run; `PINFOLD_FIRST=N` begins with seed N.

#![cfg(not(target_os = "none"))]

mod common;

use common::machine::{Machine, PAGE, Random};
use common::{campaign, e2fsck};
use pinfold::fs::{FileId, FileKind, FileSystem};
use std::ops::Range;

const MEMORY: u64 = 4 << 20;
const MAX_PAGES: u64 = 16;
const STEPS: usize = 120;

struct World {
    machine: Machine,
    file: FileId,
    random: Random,
    /// For each byte what it may be: after an error there may be several answers.
    bytes: Vec<Vec<u8>>,
}

impl World {
    fn new(seed: u64, options: &[&str]) -> Self {
        let machine = Machine::new(seed, MEMORY, options);
        let (beneath, root) = (&machine.beneath, machine.fs.root());
        let name = |i: u64| format!("f{i}").into_bytes();
        // What is free is in pieces: a transfer takes several requests.
        for i in 0..60 {
            let piece = beneath.create(root, &name(i), FileKind::File, 0o644);
            let bytes = vec![1; 1024 + i as usize % 7 * 1024];
            beneath.write_at(piece.unwrap(), 0, &bytes).unwrap();
        }
        for i in (0..60).step_by(2) {
            beneath.unlink(root, &name(i)).unwrap();
        }
        beneath.sync().unwrap();
        let file = machine.create("a", &[]);
        Self {
            machine,
            file,
            random: Random(seed * 2 + 1),
            bytes: Vec::new(),
        }
    }

    fn size(&self) -> u64 {
        self.machine.fs.attributes(self.file).unwrap().size
    }

    /// A length: anything, or a small one, or whole pages, or about that of the file.
    fn len(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.below(MAX_PAGES * PAGE),
            1 => self.random.below(40),
            2 => self.random.below(MAX_PAGES) * PAGE,
            _ => (self.bytes.len() as u64 + self.random.below(2 * PAGE)).saturating_sub(PAGE),
        }
    }

    fn pages(&mut self) -> Range<u64> {
        let first = self.random.below(MAX_PAGES);
        first..first + 1 + self.random.below(MAX_PAGES)
    }

    fn write(&mut self) {
        let at = self.random.below(MAX_PAGES * PAGE);
        let len = (self.len() as usize).max(1);
        let value = 1 + self.random.below(255) as u8;
        let fs = &self.machine.fs;
        let written = fs.write_at(self.file, at, &vec![value; len]);
        self.machine.disk.heal();
        let (at, end, size) = (at as usize, at as usize + len, self.size() as usize);
        self.bytes.resize(size.max(self.bytes.len()), vec![0]);
        assert_eq!(self.bytes.len(), size, "a write makes no file shorter");
        for may in &mut self.bytes[at.min(size)..end.min(size)] {
            match written {
                Ok(()) => *may = vec![value],
                // A part may have been done.
                Err(_) => may.push(value),
            }
        }
        assert!(written.is_err() || end <= size);
    }

    fn set_len(&mut self) {
        let len = self.len();
        let done = self.machine.fs.set_len(self.file, len);
        self.machine.disk.heal();
        let size = self.size();
        // What fails may still have been cut, but for the blocks to be freed.
        let is_cut = done.is_ok() || size != self.bytes.len() as u64;
        assert_eq!(size, if is_cut { len } else { self.bytes.len() as u64 });
        self.bytes.resize(size as usize, vec![0]);
    }

    /// What went wrong before is told once.
    fn sync(&self) {
        let fs = &self.machine.fs;
        if fs.sync_file(self.file).is_err() {
            fs.sync_file(self.file).unwrap();
        }
    }

    fn mount_again(&mut self) {
        self.sync();
        self.machine.fs.close(self.file).unwrap();
        self.machine.fs.unmount().unwrap();
        self.machine = Machine::on(self.machine.disk.contents(), 1, MEMORY);
        self.machine.fs.open(self.file).unwrap();
    }

    /// The cache lets the file go, and finds it again.
    fn open_again(&mut self) {
        self.sync();
        let fs = self.machine.fs.clone();
        self.machine.cached(self.file).evict(0..MAX_PAGES * 2);
        fs.close(self.file).unwrap();
        self.machine.cache.tidy().unwrap();
        fs.open(self.file).unwrap();
    }

    fn step(&mut self) {
        if self.random.below(3) == 0 {
            let count = self.random.below(6);
            self.machine.disk.fail_after(count);
        }
        match self.random.below(10) {
            0..=2 => self.write(),
            3 | 4 => self.set_len(),
            // An error is told by the next sync, too.
            5 => drop(self.machine.cached(self.file).write_out(self.pages())),
            6 => self.machine.cached(self.file).evict(self.pages()),
            which => {
                self.machine.disk.heal();
                match which {
                    7 => drop(self.machine.fs.sync()),
                    8 => self.open_again(),
                    _ => self.mount_again(),
                }
            }
        }
        self.machine.disk.heal();
    }

    /// Whether the file is what it may be. A log that could not be written ends it: nothing is written from then on.
    fn check(&self) -> bool {
        if self.machine.fs.read_only().is_some() {
            return false;
        }
        let bytes = self.machine.read(self.file, 0, self.bytes.len() + 1);
        assert_eq!(bytes.len(), self.bytes.len());
        for (at, (byte, may)) in bytes.iter().zip(&self.bytes).enumerate() {
            assert!(may.contains(byte), "byte {at} is {byte}, not {may:?}");
        }
        self.machine.check();
        true
    }
}

fn run(seed: u64, options: &[&str]) {
    let mut world = World::new(seed, options);
    for _ in 0..STEPS {
        world.step();
        if !world.check() {
            return;
        }
    }
    world.mount_again();
    assert!(world.check());
    world.machine.fs.unmount().unwrap();
    e2fsck(&world.machine.disk.contents()).unwrap();
}

fn runs(options: &[&str]) {
    let first = campaign("PINFOLD_FIRST", 1);
    for seed in first..first + campaign("PINFOLD_SEEDS", 20) {
        let result = std::panic::catch_unwind(|| run(seed, options));
        result.unwrap_or_else(|_| panic!("with PINFOLD_FIRST={seed}"));
    }
}

#[test]
fn extents() {
    runs(&["-b", "4096"]);
}

#[test]
fn extents_of_small_blocks() {
    runs(&["-b", "1024"]);
}

#[test]
fn extents_without_a_journal() {
    runs(&["-b", "2048", "-O", "^has_journal"]);
}

#[test]
fn block_maps() {
    runs(&["-b", "4096", "-O", "^extents,^64bit"]);
}

#[test]
fn block_maps_of_small_blocks_without_a_journal() {
    runs(&["-b", "1024", "-O", "^extents,^has_journal,^64bit"]);
}
