//! Random operations on mapped files, against plain bytes.
//!
//! Everything is there that the image has, but the processor: ext4 on a simulated disk, the page cache in front of it,
//! maps on the simulated MMU, and so little memory that pages are evicted all the time. Seeds are fixed; for a campaign
//! set `PINFOLD_CAMPAIGN` to the number of seconds it may take, and `PINFOLD_SEED` to repeat one.

#![cfg(not(target_os = "none"))]

mod common;

use common::machine::{Machine, PAGE, Random};
use common::{campaign, e2fsck, mount};
use pinfold::fs::ext4::Access as FsAccess;
use pinfold::fs::sim_disk::SimDisk;
use pinfold::fs::{FileId, FileKind, FileSystem, FsError};
use pinfold::mm::addr::{PAGE_SIZE, VirtAddr};
use pinfold::mm::cache::Residence;
use pinfold::mm::fault::FaultError;
use pinfold::mm::manager::{Advice, Placement};
use pinfold::mm::object::{Pattern, Sharing, SyncMode};
use pinfold::mm::table::Protection;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FILES: usize = 4;
const MAX_LEN: u64 = 14 * PAGE;

/// A map, and for a private one what its own pages hold.
struct Map {
    base: VirtAddr,
    file: usize,
    first_page: u64,
    pages: u64,
    sharing: Sharing,
    /// `None` where it was copied from behind the end of the file, where others may have stored anything.
    own: Vec<Option<Vec<Option<u8>>>>,
}

struct World {
    machine: Machine,
    random: Random,
    files: Vec<(FileId, Vec<u8>)>,
    maps: Vec<Map>,
}

impl std::ops::Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl World {
    fn new(seed: u64, memory: u64, mkfs_options: &[&str]) -> Self {
        let machine = Machine::new(seed, memory, mkfs_options);
        let files = (0..FILES).map(|i| (machine.create(&format!("file-{i}"), &[]), Vec::new()));
        Self {
            files: files.collect(),
            machine,
            random: Random(seed * 2 + 1),
            maps: Vec::new(),
        }
    }

    /// What the model says a byte of a map is, if it knows; `None` past the end.
    fn expected(&self, map: &Map, page: u64, at: u64) -> Option<Option<u8>> {
        if let Some(own) = &map.own[page as usize] {
            return Some(own[at as usize]);
        }
        let bytes = &self.files[map.file].1;
        let start = (map.first_page + page) * PAGE;
        // In the rest of the last page a program may find what it stored there, or zeros.
        (start < bytes.len() as u64).then(|| bytes.get((start + at) as usize).copied())
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=5 => self.map(),
            6..=8 => self.unmap(),
            9..=38 => (0..1 + self.random.below(12)).for_each(|_| self.touch()),
            39..=50 => self.write(),
            51..=62 => self.read(),
            63..=68 => self.set_len(),
            69..=76 => self.sync(),
            77..=83 => self.evict(),
            84..=86 => self.replace(),
            87..=89 => self.invalidate(),
            90..=92 => self.advise(),
            93..=95 => self.cache.write_back(None).unwrap(),
            _ => self.cache.tidy().unwrap(),
        }
    }

    fn map(&mut self) {
        if self.maps.len() >= 8 {
            return;
        }
        let file = self.random.below(FILES as u64) as usize;
        let first_page = self.random.below(5);
        let pages = 1 + self.random.below(12);
        let sharing = match self.random.below(3) {
            0 => Sharing::CopyOnWrite,
            _ => Sharing::Shared,
        };
        let handle = self
            .fs
            .mappable(self.files[file].0, "mapped")
            .unwrap()
            .handle();
        let base = self
            .manager
            .map_file(
                handle,
                Placement::Anywhere,
                pages * PAGE,
                Protection::READ_WRITE,
                first_page * PAGE,
                sharing,
            )
            .unwrap();
        self.maps.push(Map {
            base,
            file,
            first_page,
            pages,
            sharing,
            own: (0..pages).map(|_| None).collect(),
        });
    }

    fn unmap(&mut self) {
        if self.maps.is_empty() {
            return;
        }
        let i = self.random.below(self.maps.len() as u64) as usize;
        let map = self.maps.swap_remove(i);
        self.manager.remove(map.base, map.pages * PAGE).unwrap();
    }

    fn touch(&mut self) {
        if self.maps.is_empty() {
            return;
        }
        let i = self.random.below(self.maps.len() as u64) as usize;
        let page = self.random.below(self.maps[i].pages);
        let at = match self.random.below(4) {
            0 => PAGE - 1 - self.random.below(16),
            1 => self.random.below(16),
            // Around the end of the file.
            2 => {
                let end = self.files[self.maps[i].file].1.len() as u64;
                (end % PAGE + self.random.below(16))
                    .saturating_sub(8)
                    .min(PAGE - 1)
            }
            _ => self.random.below(PAGE),
        };
        let address = VirtAddr(self.maps[i].base.0 + page * PAGE + at);
        let expected = self.expected(&self.maps[i], page, at);
        if self.random.below(2) == 0 {
            match (self.load(address), expected) {
                (Ok(byte), Some(expected)) => {
                    let expected = expected.unwrap_or(byte);
                    assert_eq!(byte, expected, "page {page}, byte {at:#x}");
                }
                (Err(FaultError::PastEnd), None) => {}
                (loaded, expected) => panic!("{loaded:?}, not {expected:?}"),
            }
            return;
        }
        let value = self.random.next() as u8;
        match (self.store(address, value), expected) {
            (Ok(()), Some(_)) => self.note_store(i, page, at, value),
            (Err(FaultError::PastEnd), None) => {}
            (stored, expected) => panic!("{stored:?}, not {expected:?}"),
        }
    }

    fn note_store(&mut self, i: usize, page: u64, at: u64, value: u8) {
        let map = &mut self.maps[i];
        let bytes = &mut self.files[map.file].1;
        let start = (map.first_page + page) * PAGE;
        if map.sharing == Sharing::Shared {
            if let Some(byte) = bytes.get_mut((start + at) as usize) {
                *byte = value;
            }
            return;
        }
        let own = map.own[page as usize].get_or_insert_with(|| {
            let end = (start + PAGE) as usize;
            (start as usize..end)
                .map(|at| bytes.get(at).copied())
                .collect()
        });
        own[at as usize] = Some(value);
    }

    fn range(&mut self) -> (usize, u64, usize) {
        let file = self.random.below(FILES as u64) as usize;
        let len = self.files[file].1.len() as u64;
        let offset = self.random.below(len + 1 + 3 * PAGE).min(MAX_LEN);
        let len = match self.random.below(3) {
            0 => self.random.below(40),
            1 => PAGE,
            _ => self.random.below(6 * PAGE),
        };
        (file, offset, len as usize)
    }

    fn write(&mut self) {
        let (file, offset, len) = self.range();
        let data: Vec<u8> = (0..len).map(|_| self.random.next() as u8).collect();
        self.fs.write_at(self.files[file].0, offset, &data).unwrap();
        let bytes = &mut self.files[file].1;
        let end = offset as usize + len;
        if len > 0 && bytes.len() < end {
            bytes.resize(end, 0);
        }
        if len > 0 {
            bytes[offset as usize..end].copy_from_slice(&data);
        }
    }

    fn read(&mut self) {
        let (file, offset, len) = self.range();
        let mut data = vec![0xee; len];
        let read = self
            .fs
            .read_at(self.files[file].0, offset, &mut data)
            .unwrap();
        let bytes = &self.files[file].1;
        let start = (offset as usize).min(bytes.len());
        let end = (start + len).min(bytes.len());
        assert_eq!(read, end - start);
        assert!(
            data[..read] == bytes[start..end],
            "file {file}, {len} bytes at {offset:#x} of {:#x}",
            bytes.len()
        );
    }

    fn set_len(&mut self) {
        let file = self.random.below(FILES as u64) as usize;
        let len = match self.random.below(3) {
            0 => self.random.below(MAX_LEN),
            1 => self.random.below(MAX_LEN / PAGE) * PAGE,
            _ => {
                let len = self.files[file].1.len() as u64;
                (len + self.random.below(2 * PAGE)).saturating_sub(PAGE)
            }
        };
        self.fs.set_len(self.files[file].0, len).unwrap();
        self.files[file].1.resize(len as usize, 0);
    }

    fn sync(&mut self) {
        match self.random.below(3) {
            0 => self.fs.sync().unwrap(),
            1 => {
                let file = self.random.below(FILES as u64) as usize;
                self.fs.sync_file(self.files[file].0).unwrap();
            }
            _ if self.maps.is_empty() => {}
            _ => {
                let i = self.random.below(self.maps.len() as u64) as usize;
                let (base, pages) = (self.maps[i].base, self.maps[i].pages);
                self.manager
                    .sync(base, pages * PAGE, SyncMode::Wait)
                    .unwrap();
            }
        }
    }

    fn evict(&mut self) {
        match self.random.below(3) {
            0 => self.cache.drop_clean(),
            1 => {
                self.manager.compact();
            }
            _ => {
                self.cache.reclaim(1 + self.random.below(64));
            }
        }
    }

    /// Takes the name of a file away, while maps show it, and makes another.
    fn replace(&mut self) {
        let i = self.random.below(FILES as u64) as usize;
        if self.maps.iter().any(|map| map.file == i) {
            // Maps of it keep the old one: they go first, so that the model stays simple.
            let gone: Vec<Map> = self.maps.extract_if(.., |map| map.file == i).collect();
            for map in gone {
                self.manager.remove(map.base, map.pages * PAGE).unwrap();
            }
        }
        let root = self.fs.root();
        let mut cursor = pinfold::fs::Cursor::default();
        let old = self.files[i].0;
        let mut name = None;
        loop {
            let entries = self.fs.read_directory(root, &mut cursor).unwrap();
            if entries.is_empty() {
                break;
            }
            name = name.or(entries.into_iter().find(|entry| entry.file == old));
        }
        self.fs.unlink(root, &name.unwrap().name).unwrap();
        if self.random.below(2) == 0 {
            let mut byte = [0; 1];
            // It is still open.
            let read = self.fs.read_at(old, 0, &mut byte).unwrap();
            assert_eq!(read, self.files[i].1.len().min(1));
        }
        self.fs.close(old).unwrap();
        assert!(self.fs.attributes(old).is_err() || self.fs.attributes(old).unwrap().links == 0);
        let name = format!("again-{}", self.random.next());
        let file = self
            .fs
            .create(root, name.as_bytes(), FileKind::File, 0o644)
            .unwrap();
        self.fs.open(file).unwrap();
        self.files[i] = (file, Vec::new());
    }

    fn invalidate(&mut self) {
        if self.maps.is_empty() {
            return;
        }
        let i = self.random.below(self.maps.len() as u64) as usize;
        let manager = self.manager;
        let map = &mut self.maps[i];
        manager.invalidate(map.base, map.pages * PAGE).unwrap();
        map.own.fill(None);
    }

    fn advise(&mut self) {
        if self.maps.is_empty() {
            return;
        }
        let i = self.random.below(self.maps.len() as u64) as usize;
        let advice = match self.random.below(5) {
            0 => Advice::Pattern(Pattern::Normal),
            1 => Advice::Pattern(Pattern::Random),
            2 => Advice::Pattern(Pattern::Sequential),
            3 => Advice::WillNeed,
            _ => Advice::DontNeed,
        };
        let manager = self.manager;
        let map = &mut self.maps[i];
        manager.advise(map.base, map.pages * PAGE, advice).unwrap();
        if advice == Advice::DontNeed {
            map.own.fill(None);
        }
    }

    /// Ends all, and compares what is on the disk.
    fn finish(self) {
        self.manager.unmap_all().unwrap();
        for (file, bytes) in &self.files {
            assert_eq!(self.fs.attributes(*file).unwrap().size, bytes.len() as u64);
            self.fs.close(*file).unwrap();
        }
        self.fs.unmount().unwrap();
        let frames = self.memory.frames().counts();
        assert_eq!((frames.cache, frames.anonymous), (0, 0));
        assert_eq!(self.cache.counts().dirty, 0);
        let image = self.disk.contents();
        e2fsck(&image).unwrap();
        let disk = Arc::new(SimDisk::new(image, 1));
        let again = mount(disk, FsAccess::ReadOnly).unwrap().file_system;
        for (file, bytes) in &self.files {
            let mut data = vec![0; bytes.len() + 1];
            let read = match again.read_at(*file, 0, &mut data) {
                Err(FsError::NotFound) if bytes.is_empty() => 0,
                read => read.unwrap(),
            };
            assert_eq!(read, bytes.len());
            assert!(data[..read] == bytes[..], "{file:?}");
        }
    }
}

fn run(seed: u64, memory: u64, mkfs_options: &[&str], steps: u32) {
    let mut world = World::new(seed, memory, mkfs_options);
    for step in 0..steps {
        world.step();
        if step % 64 == 0 {
            world.check();
        }
    }
    world.check();
    world.finish();
}

const OPTIONS: [&[&str]; 4] = [
    &["-b", "4096"],
    &["-b", "1024"],
    &["-b", "2048"],
    &["-b", "1024", "-O", "^extents,^has_journal,^64bit"],
];

#[test]
fn mapped_files_hold_what_the_model_holds() {
    let end = Instant::now() + Duration::from_secs(campaign("PINFOLD_CAMPAIGN", 0));
    let first = campaign("PINFOLD_SEED", 1);
    for seed in first.. {
        for (i, options) in OPTIONS.iter().enumerate() {
            for memory in [2 << 20, 16 << 20] {
                println!("seed {seed}, {memory} bytes, {options:?}");
                let seed = seed << 8 | (i as u64) << 1 | u64::from(memory == 2 << 20);
                run(seed, memory, options, 6000);
            }
        }
        if Instant::now() > end && seed > first + 1 {
            return;
        }
    }
}

#[test]
fn a_scan_of_a_large_file_does_not_evict_what_is_in_use() {
    const WORKING_SET: u64 = 120;
    const SCAN: u64 = 640;
    let world = World::new(5, 2 << 20, OPTIONS[0]);
    let (used, scanned) = (world.files[0].0, world.files[1].0);
    let chunk = vec![1; 64 * PAGE_SIZE];
    for (file, pages) in [(used, WORKING_SET), (scanned, SCAN)] {
        for page in (0..pages).step_by(64) {
            let len = (pages - page).min(64) * PAGE;
            let data = &chunk[..len as usize];
            world.fs.write_at(file, page * PAGE, data).unwrap();
        }
    }
    world.fs.sync().unwrap();
    world.cache.drop_clean();
    let cached = world.fs.mappable(used, "used").unwrap();
    let base = world
        .manager
        .map_file(
            cached.handle(),
            Placement::Anywhere,
            WORKING_SET * PAGE,
            Protection::READ,
            0,
            Sharing::Shared,
        )
        .unwrap();
    let absent = || {
        let pages = cached.residence(0..WORKING_SET);
        let is_absent = |page: &&Residence| **page == Residence::Absent;
        pages.iter().filter(is_absent).count()
    };
    let mut lost = Vec::new();
    let mut bytes = vec![0; 64 * PAGE_SIZE];
    for _ in 0..6 {
        let mut most = 0;
        for page in (0..SCAN).step_by(64) {
            world.fs.read_at(scanned, page * PAGE, &mut bytes).unwrap();
            most = most.max(absent());
            for page in 0..WORKING_SET {
                world.load(VirtAddr(base.0 + page * PAGE)).unwrap();
            }
        }
        lost.push(most);
    }
    // Once it is known to be in use it stays.
    assert!(world.cache.counts().evicted > 2000, "{lost:?}");
    assert_eq!(lost[2..], [0; 4], "{lost:?}");
}

#[test]
fn promises_for_the_worst_do_not_fill_a_disk() {
    // Each page may take four blocks and some for metadata; each file has but one.
    let world = World::new(6, 16 << 20, OPTIONS[1]);
    let root = world.fs.root();
    for i in 0..900 {
        let name = format!("small-{i}");
        let file = world
            .fs
            .create(root, name.as_bytes(), FileKind::File, 0o644)
            .unwrap();
        world.fs.write_at(file, 0, &[7; 100]).unwrap();
    }
    world.finish();
}
