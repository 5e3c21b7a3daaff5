//! Random operations on mapped files, against plain bytes.
//!
//! Everything is there that the image has, but the processor: ext4 on a simulated disk, the page cache in front of it,
//! maps on the simulated MMU, and so little memory that pages are evicted all the time. Seeds are fixed; for a campaign
//! set `PINFOLD_CAMPAIGN` to the number of seconds it may take, and `PINFOLD_SEED` to repeat one.

#![cfg(not(target_os = "none"))]

mod common;

use common::machine::{Machine, PAGE, Random};
use common::{campaign, e2fsck, mount};
use pinfold::fs::block::{BlockError, Durability};
use pinfold::fs::ext4::Access as FsAccess;
use pinfold::fs::sim_disk::{Event, SimDisk, crash_image};
use pinfold::fs::{Backing, FileId, FileKind, FileSystem, FsError};
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
    /// Some sectors of the disk fail.
    is_in_trouble: bool,
    promises: Promises,
}

/// What survives a power cut, by file: its bytes as they were when they were last synced, `None` where they have changed
/// since.
type Certain = Vec<(String, Vec<Option<u8>>)>;

/// What must be there after a power cut.
#[derive(Default)]
struct Promises {
    now: Certain,
    /// What was certain all the time from one acknowledgement to the next. Only kept by tests that cut.
    history: Option<Vec<Certain>>,
}

impl Promises {
    /// `file` changes from byte `from` on, up to `to`.
    fn forget(&mut self, file: usize, from: u64, to: u64) {
        let certain = &mut self.now[file].1;
        let len = certain.len();
        certain[len.min(from as usize)..len.min(to as usize)].fill(None);
    }

    /// These bytes of `file` are durable.
    fn note(&mut self, disk: &SimDisk, file: usize, from: usize, bytes: &[u8]) {
        let Some(history) = &mut self.history else {
            return;
        };
        history.push(self.now.clone());
        let certain = &mut self.now[file].1;
        certain.resize(certain.len().max(from + bytes.len()), None);
        for (at, byte) in bytes.iter().enumerate() {
            certain[from + at] = Some(*byte);
        }
        disk.mark(history.len() as u64);
    }
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
        let names = (0..FILES).map(|i| format!("file-{i}"));
        let files = names
            .clone()
            .map(|name| (machine.create(&name, &[]), Vec::new()));
        Self {
            files: files.collect(),
            is_in_trouble: false,
            promises: Promises {
                now: names.map(|name| (name, Vec::new())).collect(),
                history: None,
            },
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
            96 => self.trouble(),
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
                (Err(error), _) if self.may_fail(error) => {}
                (loaded, expected) => panic!("{loaded:?}, not {expected:?}"),
            }
            return;
        }
        let value = self.random.next() as u8;
        match (self.store(address, value), expected) {
            (Ok(()), Some(_)) => self.note_store(i, page, at, value),
            (Err(FaultError::PastEnd), None) => {}
            (Err(error), _) if self.may_fail(error) => {}
            (stored, expected) => panic!("{stored:?}, not {expected:?}"),
        }
    }

    fn note_store(&mut self, i: usize, page: u64, at: u64, value: u8) {
        let map = &mut self.maps[i];
        let bytes = &mut self.files[map.file].1;
        let start = (map.first_page + page) * PAGE;
        if map.sharing == Sharing::Shared {
            let at = start + at;
            self.promises.forget(map.file, at, at + 1);
            if let Some(byte) = bytes.get_mut(at as usize) {
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
        self.promises.forget(file, offset, offset + len as u64);
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
        self.promises.forget(file, len, u64::MAX);
    }

    /// Whether an access may fail so.
    fn may_fail(&self, error: FaultError) -> bool {
        self.is_in_trouble && matches!(error, FaultError::Io(_) | FaultError::OutOfFrames)
    }

    /// Some of a file's sectors fail for a while. Nothing is lost, and whoever asks is told.
    fn trouble(&mut self) {
        let file = self.random.below(FILES as u64) as usize;
        let len = self.files[file].1.len() as u64;
        if len == 0 {
            return;
        }
        for _ in 0..1 + self.random.below(3) {
            let offset = self.random.below(len);
            for extent in self.fs.map(self.files[file].0, offset, 1).unwrap() {
                if let Backing::Written(place) = extent.backing {
                    let error = BlockError::Device { offset: place };
                    self.disk.fail_sector(place / 512, error);
                }
            }
        }
        self.is_in_trouble = true;
        for _ in 0..30 {
            match self.random.below(8) {
                0 => self.evict(),
                // It is told with the sync below, too.
                1 => drop(self.cache.write_back(None)),
                2 => {
                    if self.fs.sync_file(self.files[file].0).is_ok() {
                        let bytes = &self.files[file].1;
                        self.promises.note(&self.machine.disk, file, 0, bytes);
                    }
                }
                _ => self.touch(),
            }
        }
        self.disk.heal();
        self.is_in_trouble = false;
        for (file, _) in &self.files {
            // What failed is told once, and then it is over.
            let _ = self.fs.sync_file(*file);
            self.fs.sync_file(*file).unwrap();
        }
    }

    fn sync(&mut self) {
        match self.random.below(3) {
            0 => {
                self.fs.sync().unwrap();
                for (i, (_, bytes)) in self.files.iter().enumerate() {
                    self.promises.note(&self.machine.disk, i, 0, bytes);
                }
            }
            1 => {
                let i = self.random.below(FILES as u64) as usize;
                let (file, bytes) = &self.files[i];
                self.fs.sync_file(*file).unwrap();
                self.promises.note(&self.machine.disk, i, 0, bytes);
            }
            _ if self.maps.is_empty() => {}
            _ => {
                let i = self.random.below(self.maps.len() as u64) as usize;
                let map = &self.maps[i];
                let first = self.random.below(map.pages);
                let pages = 1 + self.random.below(map.pages - first);
                let base = VirtAddr(map.base.0 + first * PAGE);
                self.manager
                    .sync(base, pages * PAGE, SyncMode::Wait)
                    .unwrap();
                let bytes = &self.files[map.file].1;
                let start = bytes.len().min(((map.first_page + first) * PAGE) as usize);
                let end = bytes.len().min(start + (pages * PAGE) as usize);
                if map.sharing == Sharing::Shared {
                    let synced = &bytes[start..end];
                    self.promises
                        .note(&self.machine.disk, map.file, start, synced);
                }
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
        self.promises.now[i] = (name, Vec::new());
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
        self.check_promises();
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

/// A run that was recorded: what happened on the disk, and what was certain from each acknowledgement on.
struct Recorded {
    base: Arc<Vec<u8>>,
    record: Vec<Event>,
    history: Vec<Certain>,
}

fn recorded(seed: u64, mkfs_options: &[&str], steps: u32) -> Recorded {
    let mut world = World::new(seed, 2 << 20, mkfs_options);
    world.promises.history = Some(Vec::new());
    for _ in 0..steps {
        world.step();
    }
    let mut history = world.promises.history.take().unwrap();
    history.push(world.promises.now.clone());
    let (base, record) = (world.base.clone(), world.disk.record());
    world.finish();
    Recorded {
        base,
        record,
        history,
    }
}

impl Recorded {
    /// Cuts the power after `cut` events; what is wrong with what comes up again.
    fn recover(&self, cut: usize, seed: u64) -> Result<(), String> {
        let image = crash_image(&self.base, &self.record, cut, seed);
        let mark = self.record[..cut]
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::Mark(mark) => Some(*mark as usize),
                _ => None,
            });
        let disk = Arc::new(SimDisk::new(image, 1));
        let told = |error: FsError| error.to_string();
        let fs = mount(disk.clone(), FsAccess::ReadWrite)
            .map_err(told)?
            .file_system;
        for (name, certain) in mark.map_or(&Vec::new(), |mark| &self.history[mark]) {
            if certain.iter().all(Option::is_none) {
                continue;
            }
            let file = fs.lookup(fs.root(), name.as_bytes()).map_err(told)?;
            let mut bytes = vec![0; certain.len()];
            let read = fs.read_at(file, 0, &mut bytes).map_err(told)?;
            for (at, byte) in certain.iter().enumerate() {
                if byte.is_some_and(|byte| at >= read || bytes[at] != byte) {
                    return Err(format!("{name}: byte {at:#x} of {read:#x}"));
                }
            }
        }
        fs.unmount().map_err(told)?;
        e2fsck(&disk.contents())
    }
}

#[test]
fn what_was_synced_survives_a_power_cut() {
    let cuts = campaign("PINFOLD_CUTS", 25);
    for seed in 1..=campaign("PINFOLD_SEEDS", 4) {
        for options in &OPTIONS[..3] {
            let run = recorded(seed, options, 400);
            let mut random = Random(seed << 8 | 1);
            for i in 0..cuts {
                let cut = random.below(run.record.len() as u64 + 1) as usize;
                if let Err(report) = run.recover(cut, i) {
                    panic!("seed {seed}, {options:?}, cut {i} at {cut}: {report}");
                }
            }
        }
    }
}

/// The positive control: were flushes left out, this test's checks would notice.
#[test]
fn a_sync_without_a_flush_is_caught() {
    let mut run = recorded(3, OPTIONS[0], 400);
    run.record.retain(|event| *event != Event::Flush);
    for event in &mut run.record {
        if let Event::Write { durability, .. } = event {
            *durability = Durability::Cached;
        }
    }
    let len = run.record.len();
    assert!((0..40).any(|i| run.recover(len - i * len / 50, i as u64).is_err()));
}
