//! The page cache: every page of every file that is in memory, once.
//!
//! ```text
//!   maps (faults)        read, write (fs::cached)
//!         \                 /
//!          CachedFile  one for each file: its size, its chunks, its streams      file
//!               |      as maps see it; where it ends; room on the device         file::{handle, resize, room}
//!               |
//!             Chunk    64 pages: what each is, its frame, its pins               chunk, chunks
//!               |
//!    read ------+------ write-back           frames <-> device, no copy          transfer, write_back
//!               |
//!            the hand: goes round all chunks and takes what nobody asked for      reclaim
//! ```
//!
//! # Rules
//!
//! 1. A page is published when its bytes are right. Whoever needs it earlier waits for [`Slot::Busy`](chunk::Slot) to end.
//! 2. A page becomes dirty only when there is room for it on the device: a full disk is told at the first store.
//! 3. Write-back lets every alias fault again *before* it reads the frame, and forgets "dirty" before that: a store
//!    either is in what is written, or makes the page dirty again.
//! 4. A frame is freed when it is unpinned, and it is unpinned when no TLB translates to it.
//! 5. A page that could not be written stays dirty, and the next flush of its file says so.
//!
//! # Locks
//!
//! A file's state is behind a spin lock, which is taken with the maps locked; nothing is asked of the maps, the file
//! system or the device with it held. The ring of chunks has another. Whoever changes a file's size holds a mutex
//! meanwhile, the file system and the device being waited for. Their order is with [all others](crate::sync).

#[cfg(target_os = "none")]
mod bench;
pub mod chunk;
mod chunks;
#[cfg(target_os = "none")]
mod commands;
mod file;
mod files;
#[cfg(all(target_os = "none", feature = "growth"))]
mod growth;
mod read_ahead;
mod reclaim;
mod ring;
mod transfer;
pub mod watch;
mod write_back;

pub use file::{CachedFile, FileHandle, Hold, InUse, Present, Residence};
pub use files::Files;

use self::ring::Ring;
use super::frame::Frames;
use super::object::{Aliases, IoError};
use crate::fs::block::BlockError;
use crate::fs::{FileId, FileSystem, FsError};
use crate::sync::{Mutex, SpinLock, WaitQueue};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;

/// Tells mounted file systems apart: each [`volume`](PageCache::new_volume) is a number of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VolumeId(u64);

/// The page cache of a machine.
pub struct PageCache {
    frames: &'static Frames,
    aliases: Once<&'static dyn Aliases>,
    files: SpinLock<BTreeMap<(VolumeId, FileId), Arc<CachedFile>>>,
    /// Held from when files are taken from the table until they are closed beneath: nobody ends one twice, and none is
    /// still being closed when its file system is unmounted.
    ending: Mutex<()>,
    /// How many files were taken from the table.
    forgotten: AtomicU64,
    /// All chunks, in the order in which the hand comes to them.
    ring: SpinLock<Ring<(Arc<CachedFile>, u64)>>,
    /// Whether somebody wants write-back now.
    is_pressed: SpinLock<bool>,
    pressed: WaitQueue,
    volumes: AtomicU64,
    /// How many files it has had.
    numbers: AtomicU64,
    dirty: AtomicU64,
    /// Frames there are in all, once somebody has asked.
    total: AtomicU64,
    counts: Counters,
}

/// What the cache has done. Hits are counted by the files, and are here once a file has ended.
#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    read: AtomicU64,
    read_ahead: AtomicU64,
    used: AtomicU64,
    wasted: AtomicU64,
    evicted: AtomicU64,
    refaults: AtomicU64,
    written: AtomicU64,
    failed: AtomicU64,
}

/// What the cache has done since power-on, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Found in memory by a fault, a read or a write. Pages entered beside one that was touched are not among them.
    pub hits: u64,
    /// Not found.
    pub misses: u64,
    /// Read from devices.
    pub read: u64,
    /// Of these, before somebody asked for them.
    pub read_ahead: u64,
    /// Of these, asked for later.
    pub used: u64,
    /// And of these, evicted before.
    pub wasted: u64,
    /// Evicted.
    pub evicted: u64,
    /// Asked for soon after they had been evicted.
    pub refaults: u64,
    /// Written to devices.
    pub written: u64,
    /// Could not be written.
    pub failed: u64,
    /// Differ from the device now.
    pub dirty: u64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl PageCache {
    /// Nothing cached; pages will be in `frames`.
    pub const fn new(frames: &'static Frames) -> Self {
        Self {
            frames,
            aliases: Once::new(),
            files: SpinLock::new(BTreeMap::new()),
            ending: Mutex::new(()),
            forgotten: AtomicU64::new(0),
            ring: SpinLock::new(Ring::new()),
            is_pressed: SpinLock::new(false),
            pressed: WaitQueue::new(),
            volumes: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            total: AtomicU64::new(0),
            counts: Counters {
                hits: AtomicU64::new(0),
                misses: AtomicU64::new(0),
                read: AtomicU64::new(0),
                read_ahead: AtomicU64::new(0),
                used: AtomicU64::new(0),
                wasted: AtomicU64::new(0),
                evicted: AtomicU64::new(0),
                refaults: AtomicU64::new(0),
                written: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            },
        }
    }

    /// Tells who knows where pages are mapped. Nothing is mapped before.
    pub fn set_aliases(&self, aliases: &'static dyn Aliases) {
        self.aliases.call_once(|| aliases);
    }

    /// A number for a file, by which events know it.
    fn new_number(&self) -> u32 {
        let before = self.numbers.fetch_add(1, Ordering::Relaxed);
        u32::try_from(before + 1).unwrap_or(u32::MAX)
    }

    fn aliases(&self) -> Option<&'static dyn Aliases> {
        self.aliases.get().copied()
    }

    /// A number for a file system that was just mounted.
    pub fn new_volume(&self) -> VolumeId {
        VolumeId(self.volumes.fetch_add(1, Ordering::Relaxed))
    }

    /// The file, which stays open with its file system as long as it is cached. `name` is what people call it, if it is
    /// not known by a name already.
    ///
    /// # Errors
    /// What the file system says of it; [`FsError::NotAFile`].
    pub fn file(
        &'static self,
        volume: VolumeId,
        fs: &Arc<dyn FileSystem>,
        id: FileId,
        name: Option<&str>,
    ) -> Result<InUse, FsError> {
        loop {
            if let Some(file) = self.find(volume, id) {
                return Ok(file);
            }
            let forgotten = self.forgotten.load(Ordering::Acquire);
            // Until it is in the table nothing keeps it: opened first.
            fs.open(id)?;
            let file = match CachedFile::new(self, volume, fs.clone(), id, name.unwrap_or("")) {
                Ok(file) => Arc::new(file),
                Err(error) => {
                    fs.close(id)?;
                    return Err(error);
                }
            };
            let mut files = self.files.lock();
            let first = files.get(&(volume, id)).cloned().map(InUse::new);
            // Somebody else may have had it in the table, changed its size and forgotten it, since we asked for that.
            let is_fresh = self.forgotten.load(Ordering::Acquire) == forgotten;
            if first.is_none() && is_fresh {
                files.insert((volume, id), file.clone());
                let file = InUse::new(file);
                drop(files);
                // Who took its last name from it until now has not found it here.
                if fs.attributes(id)?.links == 0 {
                    file.note_unlinked();
                }
                return Ok(file);
            }
            drop(files);
            fs.close(id)?;
            if let Some(first) = first {
                return Ok(first);
            }
        }
    }

    /// Chunks that the hand goes round.
    #[cfg(not(target_os = "none"))]
    pub fn chunks(&self) -> usize {
        self.ring.lock().len()
    }

    /// The file, if it is cached.
    pub fn find(&self, volume: VolumeId, id: FileId) -> Option<InUse> {
        // Before the table is open again: until then nobody forgets it.
        let files = self.files.lock();
        files.get(&(volume, id)).cloned().map(InUse::new)
    }

    /// Closes files that have no name, no user and no map, and some of those that have no page; `true` if `file` is none
    /// of the cache any more.
    fn forget(&self, file: &Arc<CachedFile>) -> Result<bool, FsError> {
        let key = (file.volume(), file.id());
        let _ending = self.ending.lock();
        let mut files = self.files.lock();
        // With the table locked nobody finds it who has not found it yet.
        if !files
            .get(&key)
            .is_some_and(|known| Arc::ptr_eq(known, file))
            || !file.is_idle()
        {
            return Ok(false);
        }
        files.remove(&key);
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        drop(files);
        file.end()?;
        Ok(true)
    }

    /// What it has done.
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let (hits, used) = self.files(None).fold(
            (load(&counts.hits), load(&counts.used)),
            |(hits, used), file| {
                let (more_hits, more_used) = file.finds();
                (hits + more_hits, used + more_used)
            },
        );
        Counts {
            hits,
            misses: load(&counts.misses),
            read: load(&counts.read),
            read_ahead: load(&counts.read_ahead),
            used,
            wasted: load(&counts.wasted),
            evicted: load(&counts.evicted),
            refaults: load(&counts.refaults),
            written: load(&counts.written),
            failed: load(&counts.failed),
            dirty: load(&self.dirty),
        }
    }
}

impl From<FsError> for IoError {
    fn from(error: FsError) -> Self {
        match error {
            FsError::Block(BlockError::Device { offset } | BlockError::Garbled { offset }) => {
                Self::Device { offset }
            }
            FsError::Block(BlockError::TimedOut { offset }) => Self::TimedOut { offset },
            FsError::Block(BlockError::ReadOnly) | FsError::ReadOnly(_) => Self::ReadOnly,
            FsError::Block(BlockError::Removed) => Self::Removed,
            FsError::NoSpace | FsError::NoInodes | FsError::FileTooLarge => Self::NoSpace,
            FsError::OutOfMemory => Self::OutOfFrames,
            _ => Self::Damaged,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, pages) in [
            ("hits", self.hits),
            ("misses", self.misses),
            ("read", self.read),
            ("  of these ahead", self.read_ahead),
            ("  and used", self.used),
            ("  and wasted", self.wasted),
            ("evicted", self.evicted),
            ("refaults", self.refaults),
            ("written", self.written),
            ("failed to write", self.failed),
            ("dirty", self.dirty),
        ] {
            writeln!(f, "{name:18} {pages:>12}")?;
        }
        Ok(())
    }
}
