//! One file, and others that come in between: wherever the page cache calls the file system, the log is committed, the disk
//! filled, the file stored to, read, written out or evicted.
//!
//! The file itself is written, cut, stored to through a map, evicted, synced, closed and found again, while the disk fills up
//! and empties; requests may fail. All of it is compared with plain bytes. During each step the power is cut, too, and now and
//! then the machine goes on from there: what was cut off before a commit is not back, what was synced is there, and `e2fsck`
//! is satisfied. In the end no promise of room is left.
//!
//! `PINFOLD_SEEDS=1000 cargo test --release --test page_cache_between` is a long run; `PINFOLD_FIRST=N` begins with seed N.

#![cfg(not(target_os = "none"))]

mod common;

use common::expected::{Expected, Values};
use common::hooked::{Hooked, hook};
use common::machine::{Machine, PAGE, at};
use common::{campaign, e2fsck, mkfs, mount, read_file};
use pinfold::fs::ext4::Access as FsAccess;
use pinfold::fs::sim_disk::{Random, SimDisk, crash_image};
use pinfold::fs::{FileId, FileKind, FileSystem, FsError};
use pinfold::mm::addr::VirtAddr;
use pinfold::mm::fault::FaultError;
use pinfold::mm::object::{IoError, MappableFile, Pattern};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

const MEMORY: u64 = 4 << 20;
/// As few as mkfs makes a journal for.
const BLOCKS: u64 = 2048;
/// Bytes that are free in one piece: filling the disk takes no time.
const FREE: u64 = 160 << 10;
/// Where writes begin, and most cuts are.
const PAGES: u64 = 12;
/// The file is never longer: all of it is in the map.
const MAX_PAGES: u64 = 32;
const STEPS: usize = 100;
const NAME: &str = "a";

/// How the volume is made.
#[derive(Clone, Copy, Debug)]
struct Volume {
    block_size: u64,
    index: Index,
}

/// What leads from a file to its blocks.
#[derive(Clone, Copy, Debug)]
enum Index {
    Extents,
    BlockMap,
}

/// Whether requests fail.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Sound,
    FailsNowAndThen,
}

/// What is done.
#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        len: u64,
        value: u8,
    },
    SetLen(u64),
    WriteOut(Range<u64>),
    Evict(Range<u64>),
    Store {
        at: u64,
        value: u8,
    },
    Sync,
    SyncPart(Range<u64>),
    Commit,
    Fill,
    Empty,
    FindAgain,
    /// What a store does first, before it finds its map gone.
    MakeRoom(u64),
    /// The machine comes up again, and goes on.
    PowerCut,
}

/// What happens in between.
#[derive(Debug)]
enum Between {
    Commit,
    Fill,
    Evict(Range<u64>),
    WriteOut(Range<u64>),
    Read { at: u64 },
    Store { at: u64, value: u8 },
    Unmap,
}

/// Calls at which no transfer of the file is under way: others may wait for one.
const OUTSIDE_TRANSFERS: [&str; 6] = [
    "before truncate_prepare",
    "after truncate_prepare",
    "before set_len",
    "after set_len",
    "before reserve",
    "after reserve",
];

/// The others.
const WITHIN_TRANSFERS: [&str; 6] = [
    "before allocate",
    "after allocate",
    "before written",
    "after written",
    "before map",
    "after map",
];

/// Calls in the midst of a cut.
const AFTER_FIRST_HALF: [&str; 2] = ["after truncate_prepare", "before set_len"];

/// What is told of a run when it fails.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

/// What those know who come in between.
#[derive(Clone)]
struct Scene {
    machine: Machine,
    file: FileId,
    /// It takes what is free.
    filler: FileId,
    map: Arc<Mutex<Option<VirtAddr>>>,
    /// Where a cut that is under way makes the file end.
    cut: Arc<Mutex<Option<u64>>>,
    /// What others stored.
    stored: Arc<Mutex<Vec<(u64, u8)>>>,
    log: Log,
}

impl Scene {
    fn fill(&self) {
        let beneath = &self.machine.beneath;
        for piece in [64 << 10, 1 << 10] {
            let Ok(attributes) = beneath.attributes(self.filler) else {
                return;
            };
            let mut end = attributes.size;
            while beneath.write_at(self.filler, end, &vec![0; piece]).is_ok() {
                end += piece as u64;
            }
        }
    }

    fn map(&self) -> VirtAddr {
        let mut map = self.map.lock().unwrap();
        *map.get_or_insert_with(|| self.machine.map(self.file, 0, MAX_PAGES))
    }

    fn unmap(&self) {
        self.machine.manager.unmap_all().unwrap();
        *self.map.lock().unwrap() = None;
    }

    fn store(&self, byte: u64, value: u8) -> Result<(), FaultError> {
        let map = self.map();
        self.machine.store(at(map, 0, byte), value)
    }

    /// Errors are told to those who ask later.
    fn come_between(&self, call: &str, what: Between) {
        let machine = &self.machine;
        let line = format!("    {call}: {what:?}");
        self.log.note(line);
        match what {
            Between::Commit => drop(machine.beneath.sync()),
            Between::Fill => self.fill(),
            Between::Evict(pages) => {
                // Not yet in use, perhaps.
                if let Some(file) = machine.cache.find(machine.fs.volume(), self.file) {
                    file.evict(pages);
                }
            }
            Between::WriteOut(pages) => drop(machine.cached(self.file).write_out(pages)),
            Between::Read { at } => {
                let mut bytes = [0; 5000];
                let _ = machine.fs.read_at(self.file, at, &mut bytes);
            }
            Between::Store { at, value } => {
                if self.store(at, value).is_ok() {
                    self.stored.lock().unwrap().push((at, value));
                }
            }
            Between::Unmap => self.unmap(),
        }
        self.check_cut(call);
    }

    /// From the first half of a cut on the file beneath does not grow, whatever arrives.
    fn check_cut(&self, call: &str) {
        let is_begun = AFTER_FIRST_HALF.contains(&call);
        let attributes = self.machine.beneath.attributes(self.file);
        if let (Some(len), Ok(attributes), true) = (*self.cut.lock().unwrap(), attributes, is_begun)
        {
            assert!(attributes.size <= len, "it grew while it was cut");
        }
    }
}

struct World {
    scene: Scene,
    hooked: Arc<Hooked>,
    random: Random,
    last_value: u8,
    /// The page that room was made for last.
    with_room: u64,
    expected: Expected,
    disk: Disk,
    /// Requests failed since the last sync.
    is_in_trouble: bool,
    /// The bytes that were synced just now.
    part: Option<Range<u64>>,
}

impl std::ops::Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.scene.machine
    }
}

impl World {
    fn new(seed: u64, base: &[u8], disk: Disk, log: &Log) -> Self {
        let (machine, hooked) = hook(Machine::on(base.to_vec(), seed, MEMORY));
        let (file, filler) = (machine.create(NAME, &[]), machine.create("filler", &[]));
        machine.fs.sync().unwrap();
        let scene = Scene {
            machine,
            file,
            filler,
            map: Arc::default(),
            cut: Arc::default(),
            stored: Arc::default(),
            log: log.clone(),
        };
        Self {
            scene,
            hooked,
            random: Random::new(seed),
            last_value: 0,
            with_room: 0,
            expected: Expected::default(),
            disk,
            is_in_trouble: false,
            part: None,
        }
    }

    /// Not zero, and none that was used lately.
    fn value(&mut self) -> u8 {
        self.last_value = self.last_value % u8::MAX + 1;
        self.last_value
    }

    fn pages(&mut self) -> Range<u64> {
        let first = self.random.below(PAGES);
        first..first + 1 + self.random.below(PAGES)
    }

    /// A length: anything, or a small one, or whole pages, or blocks, or about that of the file.
    fn len(&mut self) -> u64 {
        let len = match self.random.below(5) {
            0 => self.random.below(PAGES * PAGE),
            1 => self.random.below(40),
            2 => self.random.below(PAGES) * PAGE,
            3 => self.random.below(PAGES * PAGE / 1024) * 1024,
            _ => (self.expected.size() + self.random.below(2 * PAGE)).saturating_sub(PAGE),
        };
        len.min(MAX_PAGES * PAGE)
    }

    /// A byte that the file has, perhaps its last one, or one that room was made for.
    fn place(&mut self) -> Option<u64> {
        let last = self.expected.size().checked_sub(1)?;
        match self.random.below(4) {
            0 => Some(last),
            1 => Some(last.min(self.with_room * PAGE)),
            _ => Some(self.random.below(last + 1)),
        }
    }

    /// A page, perhaps one that the file has.
    fn page(&mut self) -> u64 {
        let pages = self.expected.size().div_ceil(PAGE);
        self.random.below(pages + 1)
    }

    fn choose(&mut self) -> Step {
        match self.random.below(22) {
            0..=3 => Step::Write {
                at: self.random.below(PAGES * PAGE),
                len: (self.len() / 2).max(1),
                value: self.value(),
            },
            4..=6 => Step::SetLen(self.len()),
            7 => Step::WriteOut(self.pages()),
            8 => Step::Evict(self.pages()),
            9 | 10 => match self.place() {
                Some(at) => Step::Store {
                    at,
                    value: self.value(),
                },
                None => Step::Sync,
            },
            11 => Step::Sync,
            12 => Step::Commit,
            13 => Step::Fill,
            14 => Step::Empty,
            15 | 16 => Step::FindAgain,
            17 | 18 => Step::MakeRoom(self.page()),
            19 | 20 => Step::SyncPart(self.pages()),
            _ => Step::PowerCut,
        }
    }

    fn choose_between(&mut self) -> Between {
        match self.random.below(11) {
            0 | 1 => Between::Commit,
            2 => Between::Evict(self.pages()),
            3 | 4 => Between::Fill,
            5 | 6 => Between::WriteOut(self.pages()),
            7 => Between::Read {
                at: self.random.below(PAGES * PAGE),
            },
            8 => Between::Unmap,
            _ => match self.place() {
                Some(at) => Between::Store {
                    at,
                    value: self.value(),
                },
                None => Between::Commit,
            },
        }
    }

    /// Has something happen at the next call of some kind.
    fn prepare(&mut self) {
        let what = self.choose_between();
        let may_be_within = matches!(what, Between::Commit | Between::Fill | Between::Evict(_));
        let from = match self.random.below(2) {
            0 if may_be_within => WITHIN_TRANSFERS,
            _ => OUTSIDE_TRANSFERS,
        };
        let call = from[self.random.below(from.len() as u64) as usize];
        let scene = self.scene.clone();
        self.hooked.on(call, move || scene.come_between(call, what));
    }

    fn step(&mut self) {
        // From here on what is durable has been told to be.
        self.scene.machine.disk.mark(0);
        let before = self.scene.machine.disk.record_len();
        (0..self.random.below(5)).for_each(|_| self.prepare());
        let step = self.choose();
        self.scene.log.note(format!("{step:?}"));
        if step.may_fail() && self.disk == Disk::FailsNowAndThen && self.random.below(4) == 0 {
            let count = self.random.below(8);
            self.scene
                .log
                .note(format!("  requests fail after {count}"));
            self.scene.machine.disk.fail_after(count);
            self.is_in_trouble = true;
        }
        let unclear = step.unclear(&self.expected);
        self.perform(&step);
        let stored = std::mem::take(&mut *self.scene.stored.lock().unwrap());
        self.expected.stored(stored, &unclear);
        self.cut_power(before);
        match step {
            Step::PowerCut => self.come_up_again(),
            Step::Sync | Step::FindAgain => self.expected.synced(),
            Step::SyncPart(_) => {
                if let Some(part) = self.part.take() {
                    self.expected.synced_part(part);
                }
            }
            Step::Commit => self.expected.committed(),
            _ => {}
        }
    }

    fn perform(&mut self, step: &Step) {
        let machine = self.scene.machine.clone();
        match step {
            Step::Write { at, len, value } => self.write(*at..at + len, *value),
            Step::SetLen(len) => self.set_len(*len),
            Step::WriteOut(pages) => {
                let written = machine.cached(self.scene.file).write_out(pages.clone());
                machine.disk.heal();
                self.judge(written);
            }
            Step::Evict(pages) => {
                machine.cached(self.scene.file).evict(pages.clone());
                machine.disk.heal();
            }
            Step::Store { at, value } => self.store(*at, *value),
            Step::Sync => self.sync(),
            Step::SyncPart(pages) => {
                let synced = machine.cached(self.scene.file).sync(pages.clone());
                machine.disk.heal();
                self.part = synced.is_ok().then(|| pages.start * PAGE..pages.end * PAGE);
                if let Err(error) = synced {
                    assert!(self.is_in_trouble, "{error}, where room was promised");
                }
            }
            Step::Commit => drop(machine.beneath.sync()),
            Step::Fill => self.scene.fill(),
            Step::Empty => drop(machine.beneath.set_len(self.scene.filler, 0)),
            Step::FindAgain => self.find_again(),
            Step::MakeRoom(page) => {
                let handle = machine.cached(self.scene.file).handle();
                self.with_room = *page;
                let primed = handle.prime(*page, Pattern::Normal);
                let _ = primed.and_then(|()| handle.make_room(*page));
            }
            Step::PowerCut => {}
        }
    }

    fn write(&mut self, bytes: Range<u64>, value: u8) {
        let data = vec![value; (bytes.end - bytes.start) as usize];
        let written = self.fs.write_at(self.scene.file, bytes.start, &data);
        self.scene.machine.disk.heal();
        let size = self.size();
        assert!(
            size >= self.expected.size(),
            "a write makes no file shorter"
        );
        assert!(size >= bytes.end || written.is_err());
        self.expected.resize(size);
        self.expected.write(bytes, value, written);
        self.judge(written);
    }

    fn set_len(&mut self, len: u64) {
        let before = self.expected.size();
        *self.scene.cut.lock().unwrap() = (len < before).then_some(len);
        let done = self.fs.set_len(self.scene.file, len);
        *self.scene.cut.lock().unwrap() = None;
        self.scene.machine.disk.heal();
        let size = self.size();
        // What fails may still have been cut, but for the blocks to be freed.
        let is_cut = done.is_ok() || size != before;
        assert_eq!(size, if is_cut { len } else { before });
        self.expected.resize(size);
        self.judge(done);
    }

    fn store(&mut self, at: u64, value: u8) {
        let stored = self.scene.store(at, value);
        self.scene.machine.disk.heal();
        match stored {
            Ok(()) => self.expected.write(at..at + 1, value, Ok(())),
            // Somebody took the map away.
            Err(FaultError::NoMapping | FaultError::Io(IoError::NoSpace)) => {}
            Err(error) => assert!(self.is_in_trouble, "{error}"),
        }
    }

    /// What went wrong before is told once.
    fn sync(&mut self) {
        if let Err(error) = self.fs.sync_file(self.scene.file) {
            assert!(self.is_in_trouble, "{error}, where room was promised");
            self.fs.sync_file(self.scene.file).unwrap();
        }
        self.is_in_trouble = false;
    }

    /// The cache lets the file go, and finds it again.
    fn find_again(&mut self) {
        self.scene.unmap();
        self.sync();
        let fs = self.fs.clone();
        self.cached(self.scene.file).evict(0..MAX_PAGES);
        fs.close(self.scene.file).unwrap();
        self.cache.tidy().unwrap();
        fs.open(self.scene.file).unwrap();
    }

    /// There may be no room; else only requests that failed are a reason.
    fn judge(&self, result: Result<(), FsError>) {
        match result {
            Ok(()) | Err(FsError::NoSpace) => {}
            Err(error) => assert!(self.is_in_trouble, "{error}"),
        }
    }

    fn size(&self) -> u64 {
        self.fs.attributes(self.scene.file).unwrap().size
    }

    /// What is found if the power fails at some moments since `before`.
    fn cut_power(&mut self, before: usize) {
        let record = self.scene.machine.disk.record();
        for _ in 0..1 + self.random.below(2) {
            let moments = record.len() - before + 1;
            let cut = before + self.random.below(moments as u64) as usize;
            let luck = self.random.next_u64();
            let image = crash_image(&self.base, &record, cut, luck);
            let disk = Arc::new(SimDisk::new(image, 1));
            let fs = mount(disk.clone(), FsAccess::ReadWrite)
                .unwrap()
                .file_system;
            let file = fs.lookup(fs.root(), NAME.as_bytes()).unwrap();
            let found = read_file(&fs, file).unwrap();
            self.expected.check_after_power_cut(&found);
            if self.random.below(20) == 0 {
                fs.unmount().unwrap();
                e2fsck(&disk.contents()).unwrap();
            }
        }
    }

    /// Whatever the file is then, it is durable.
    fn come_up_again(&mut self) {
        let record = self.scene.machine.disk.record();
        let luck = self.random.next_u64();
        let image = crash_image(&self.base, &record, record.len(), luck);
        let (machine, hooked) = hook(Machine::on(image, luck, MEMORY));
        let Scene { file, filler, .. } = self.scene;
        machine.fs.open(file).unwrap();
        machine.fs.open(filler).unwrap();
        let found = read_file(&*machine.fs, file).unwrap();
        self.expected.now = found.into_iter().map(Values::only).collect();
        self.expected.synced();
        self.is_in_trouble = false;
        *self.scene.map.lock().unwrap() = None;
        (self.scene.machine, self.hooked) = (machine, hooked);
    }

    fn check(&self) {
        let len = self.expected.now.len();
        self.expected.check(&self.read(self.scene.file, 0, len + 1));
        self.scene.machine.check();
    }

    /// No promise is left, and what is on the disk is what was expected.
    fn finish(mut self) {
        self.sync();
        let Scene { file, filler, .. } = self.scene;
        self.beneath.set_len(filler, 0).unwrap();
        self.fs.close(filler).unwrap();
        self.expected.check(&self.scene.machine.finish(file));
    }
}

impl Step {
    /// Whether requests may fail meanwhile.
    fn may_fail(&self) -> bool {
        use Step::{Evict, SetLen, Store, SyncPart, Write, WriteOut};
        matches!(
            self,
            Write { .. } | SetLen(_) | WriteOut(_) | Evict(_) | Store { .. } | SyncPart(_)
        )
    }

    /// The bytes of which the step decides what they are, or what is durable of them: others who store there meanwhile come
    /// before it or after.
    fn unclear(&self, expected: &Expected) -> Range<u64> {
        let size = expected.size();
        match self {
            Step::Write { at, len, .. } if at + len > size => size.min(*at)..u64::MAX,
            Step::Write { at, len, .. } => *at..at + len,
            Step::SetLen(len) => size.min(*len)..u64::MAX,
            Step::Store { at, .. } => *at..at + 1,
            Step::Sync | Step::SyncPart(_) | Step::FindAgain => 0..u64::MAX,
            _ => 0..0,
        }
    }
}

impl Volume {
    /// An image on which little is free, and part of that in pieces: a transfer takes several requests.
    fn image(self) -> Vec<u8> {
        let block_size = self.block_size.to_string();
        let mut options = vec!["-b", &block_size];
        if let Index::BlockMap = self.index {
            options.extend(["-O", "^extents,^64bit"]);
        }
        let empty = mkfs(BLOCKS * self.block_size / 1024, &options, None);
        let machine = Machine::on(empty, 1, MEMORY);
        let (beneath, root) = (&machine.beneath, machine.fs.root());
        let create = |name: &str| {
            let file = beneath.create(root, name.as_bytes(), FileKind::File, 0o644);
            file.unwrap()
        };
        let pieces: Vec<String> = (0..60).map(|i| format!("piece-{i}")).collect();
        for (i, name) in pieces.iter().enumerate() {
            let bytes = vec![1; 1024 + i % 7 * 1024];
            beneath.write_at(create(name), 0, &bytes).unwrap();
        }
        let ballast = create("ballast");
        for page in 0.. {
            let free = beneath.statistics().unwrap().available_blocks * self.block_size;
            if free <= FREE {
                break;
            }
            let bytes = [0; PAGE as usize];
            beneath.write_at(ballast, page * PAGE, &bytes).unwrap();
        }
        for name in pieces.iter().step_by(2) {
            beneath.unlink(root, name.as_bytes()).unwrap();
        }
        beneath.unmount().unwrap();
        machine.disk.contents()
    }
}

fn run(seed: u64, base: &[u8], disk: Disk, log: &Log) {
    let mut world = World::new(seed, base, disk, log);
    for _ in 0..STEPS {
        world.step();
        if world.fs.read_only().is_some() {
            // A log that could not be written ends it: nothing is written from then on.
            assert!(disk == Disk::FailsNowAndThen);
            return;
        }
        world.check();
    }
    world.finish();
}

fn runs(index: Index, disk: Disk) {
    let first = campaign("PINFOLD_FIRST", 1);
    let seeds = campaign("PINFOLD_SEEDS", 3);
    for block_size in [1024, 2048, 4096] {
        let volume = Volume { block_size, index };
        let base = volume.image();
        for seed in first..first + seeds {
            let log = Log::default();
            let result = catch_unwind(AssertUnwindSafe(|| run(seed, &base, disk, &log)));
            if result.is_err() {
                let steps = log.0.lock().unwrap().join("\n");
                panic!("with PINFOLD_FIRST={seed}, {volume:?}, {disk:?}, after\n{steps}");
            }
        }
    }
}

#[test]
fn extents() {
    runs(Index::Extents, Disk::Sound);
}

#[test]
fn extents_with_errors() {
    runs(Index::Extents, Disk::FailsNowAndThen);
}

#[test]
fn block_maps() {
    runs(Index::BlockMap, Disk::Sound);
}

#[test]
fn block_maps_with_errors() {
    runs(Index::BlockMap, Disk::FailsNowAndThen);
}
