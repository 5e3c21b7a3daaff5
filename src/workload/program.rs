//! The program that does the steps.
//!
//! What it has been told to be durable it writes to a disk of its own, as the number of the step: whoever records both
//! disks knows at which moment of the one the other was told so.

use super::{DIRECTORIES, Data, NAMES, Name, Step, Workload};
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::disk;
use crate::file::File;
use crate::files::VFS;
use crate::fs::block::{BlockDevice, Durability, SECTOR_SIZE};
use crate::fs::{FileKind, FsError, blocking};
use crate::mm::CACHE;
use crate::mmap::{MmapError, MmapMut};
use crate::println;
use crate::program::{PROGRAMS, Program};
use crate::thread::Call;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use linkme::distributed_slice;

#[distributed_slice(PROGRAMS)]
static WORKLOAD: Program = Program {
    name: "workload",
    summary: "random steps on the files in /w and /x: SEED STEPS [DISK]; what is durable is noted on the disk",
    main: run,
};

/// How often a step that failed is tried.
const TRIES: u32 = 3;

/// Files that live on without a name for a while.
const ORPHANS: usize = 3;

fn run(arguments: &[String]) -> Status {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (numbers, disk): ([Result<u64, _>; 2], _) = match words[..] {
        [seed, steps] => ([seed.parse(), steps.parse()], None),
        [seed, steps, disk] => ([seed.parse(), steps.parse()], Some(disk)),
        _ => {
            println!("usage: run workload SEED STEPS [DISK]");
            return USAGE;
        }
    };
    let [Ok(seed), Ok(steps)] = numbers else {
        println!("workload: SEED and STEPS are numbers");
        return USAGE;
    };
    let notes = match disk.map(disk::find).transpose() {
        Ok(disk) => disk.map(|disk| disk.device),
        Err(error) => {
            println!("workload: {error}");
            return FAILURE;
        }
    };
    let mut files = Files::under("");
    if !(try_step(0, || files.clear()) && note(notes.as_deref(), 0)) {
        return FAILURE;
    }
    for (number, step) in (1..=steps).zip(Workload::new(seed)) {
        if !try_step(number, || files.take(step)) {
            return FAILURE;
        }
        if step.is_acknowledged() && !note(notes.as_deref(), number) {
            return FAILURE;
        }
    }
    println!("workload: {steps} steps of seed {seed} are done");
    SUCCESS
}

/// Does a step, again if it fails; every failure is told.
fn try_step(number: u64, mut step: impl FnMut() -> Result<(), MmapError>) -> bool {
    for _ in 0..TRIES {
        match step() {
            Ok(()) => return true,
            Err(error) => println!("workload: step {number}: {error}"),
        }
    }
    false
}

fn note(disk: Option<&dyn BlockDevice>, number: u64) -> bool {
    let Some(disk) = disk else {
        println!("workload: durable up to step {number}");
        return true;
    };
    let mut sector = number.to_le_bytes().to_vec();
    sector.resize(SECTOR_SIZE as usize, 0);
    let written = blocking::write(disk, 0, sector, Durability::Cached);
    if let Err(error) = &written {
        println!("workload: step {number} cannot be noted: {error}");
    }
    written.is_ok()
}

/// A file of the workload, and its map as long as it was when it was last stored to.
struct Open {
    map: Option<MmapMut>,
    file: File,
}

/// The files of one workload.
pub(super) struct Files {
    /// The directory that its directories are in; empty for the root.
    top: String,
    named: [Option<Open>; NAMES as usize],
    orphans: VecDeque<Open>,
}

impl Files {
    pub(super) fn under(top: &str) -> Self {
        Self {
            top: String::from(top),
            named: Default::default(),
            orphans: VecDeque::new(),
        }
    }

    /// Makes the directories, empties them, and makes that durable.
    pub(super) fn clear(&mut self) -> Result<(), MmapError> {
        let directories = DIRECTORIES
            .iter()
            .map(|path| alloc::format!("{}{path}", self.top));
        for path in Some(self.top.clone())
            .into_iter()
            .filter(|top| !top.is_empty())
            .chain(directories)
        {
            let _call = Call::enter();
            let (parent, name) = VFS.resolve_parent(path.as_bytes())?;
            let kind = FileKind::Directory;
            match parent.fs.create(parent.file, &name, kind, 0o755) {
                Ok(_) | Err(FsError::Exists) => {}
                Err(error) => return Err(error.into()),
            }
        }
        *self = Self::under(&self.top);
        for name in (0..NAMES).map(Name) {
            match self.unlink(name) {
                Ok(()) | Err(FsError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let _call = Call::enter();
        Ok(VFS.sync()?)
    }

    pub(super) fn path(&self, name: Name) -> String {
        alloc::format!("{}{name}", self.top)
    }

    fn unlink(&self, name: Name) -> Result<(), FsError> {
        let _call = Call::enter();
        let (parent, name) = VFS.resolve_parent(self.path(name).as_bytes())?;
        parent.fs.unlink(parent.file, &name)?;
        Ok(())
    }

    /// Does a step. What the kernel does beneath it is a call; the rest is a program's, which may be ended, and be told that
    /// there is no memory.
    pub(super) fn take(&mut self, step: Step) -> Result<(), MmapError> {
        match step {
            Step::Create(name) => {
                let mut options = File::options();
                options.read(true).write(true).create(true);
                let file = options.open(self.path(name))?;
                self.named[usize::from(name.0)] = Some(Open { map: None, file });
            }
            Step::Write(name, at, data) => {
                let file = &self.open(name)?.file;
                file.write_all_at(&bytes(data), at.into())?;
            }
            Step::Store(name, at, data) => {
                let at = at as usize;
                data.fill(&mut self.map(name)?[at..at + data.len as usize]);
            }
            Step::SetLen(name, len) => self.open(name)?.file.set_len(len.into())?,
            Step::Rename(from, to) => {
                let call = Call::enter();
                let (old, old_name) = VFS.resolve_parent(self.path(from).as_bytes())?;
                let (new, new_name) = VFS.resolve_parent(self.path(to).as_bytes())?;
                old.fs.rename(old.file, &old_name, new.file, &new_name)?;
                drop((call, old, new));
                let moved = self.named[usize::from(from.0)].take();
                let replaced = core::mem::replace(&mut self.named[usize::from(to.0)], moved);
                self.orphan(replaced);
            }
            Step::Remove(name) => {
                self.unlink(name)?;
                let removed = self.named[usize::from(name.0)].take();
                self.orphan(removed);
            }
            Step::Evict => {
                let _call = Call::enter();
                CACHE.write_back(None)?;
                CACHE.drop_clean();
            }
            Step::Flush(name, at, len) => {
                self.map(name)?.flush_range(at as usize, len as usize)?;
            }
            Step::SyncData(name) => self.open(name)?.file.sync_data()?,
            Step::SyncAll(name) => self.open(name)?.file.sync_all()?,
            Step::Sync => {
                let _call = Call::enter();
                VFS.sync()?;
            }
        }
        Ok(())
    }

    fn open(&mut self, name: Name) -> Result<&mut Open, FsError> {
        let open = self.named[usize::from(name.0)].as_mut();
        open.ok_or(FsError::NotFound)
    }

    /// A shared map of all of the file.
    pub(super) fn map(&mut self, name: Name) -> Result<&mut MmapMut, MmapError> {
        let open = self.open(name)?;
        let len = open.file.metadata()?.size;
        if open.map.as_ref().is_none_or(|map| map.len() as u64 != len) {
            // SAFETY: nothing is borrowed from it while the file is written or cut.
            open.map = Some(unsafe { MmapMut::map_mut(&open.file)? });
        }
        open.map.as_mut().ok_or(MmapError::OutOfRange)
    }

    fn orphan(&mut self, open: Option<Open>) {
        self.orphans.extend(open);
        if self.orphans.len() > ORPHANS {
            self.orphans.pop_front();
        }
    }
}

fn bytes(data: Data) -> Vec<u8> {
    let mut bytes = alloc::vec![0; data.len as usize];
    data.fill(&mut bytes);
    bytes
}
