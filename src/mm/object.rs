//! One map: a run of pages, what they allow, and what stands behind them.

use super::addr::{Frame, Page};
use super::table::Protection;
use alloc::sync::Arc;
use core::fmt;
use core::ops::Range;

/// Why a file's page could not be had, or could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoError {
    /// The device failed to read or write.
    Device {
        /// Where on the device, in bytes.
        offset: u64,
    },
    /// The device did not answer in time.
    TimedOut {
        /// Where on the device, in bytes.
        offset: u64,
    },
    /// The device is gone.
    Removed,
    /// The file system has no room for the page.
    NoSpace,
    /// The file cannot be written.
    ReadOnly,
    /// The file system is damaged there.
    Damaged,
    /// No frame is left for the page.
    OutOfFrames,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device { offset } => {
                return write!(f, "the device reports an error at its byte {offset:#x}");
            }
            Self::TimedOut { offset } => {
                return write!(f, "the device does not answer at its byte {offset:#x}");
            }
            Self::Removed => "the device is gone",
            Self::NoSpace => "no space is left on the file system",
            Self::ReadOnly => "the file cannot be written",
            Self::Damaged => "the file system is damaged",
            Self::OutOfFrames => "out of memory",
        })
    }
}

/// Where a page of a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// In this frame, which stays until it is unpinned.
    Resident(Frame),
    /// The same, and it is time to [read on](MappableFile::read_ahead) from there.
    Edge(Frame),
    /// Nowhere: the file has a hole there, and nothing is pinned.
    Hole,
    /// On its way: somebody else reads it.
    Busy,
    /// On the disk only.
    Absent,
    /// Nowhere: the file is shorter.
    PastEnd,
    /// Resident, but room must be [made](MappableFile::make_room) before it may be stored to.
    NoRoom,
}

/// Whether a page may be stored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dirtied {
    /// It is noted as dirty.
    Done,
    /// Room must be [made](MappableFile::make_room) first.
    NeedsRoom,
}

/// What is to have happened when a [`sync`](MappableFile::sync) returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMode {
    /// The device has the pages.
    Wait,
    /// The pages are on their way.
    Start,
}

/// Blocks that are pinned with one call: a bit of a `u64` for each.
pub const BATCH: u64 = u64::BITS as u64;

/// What was pinned of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pinned {
    /// These blocks.
    pub blocks: u64,
    /// Of these, the first of each whole group: 16 blocks whose frames follow each other from a multiple of 16 on. Only
    /// the first one's frame is told.
    pub groups: u64,
}

/// What a file must offer to be mapped. Blocks are pages of the file, by number.
///
/// What says "does not wait" is called with the maps locked, and so with interrupts masked: it takes no lock that is held while memory is touched that
/// may fault, or during I/O.
pub trait MappableFile: Send + Sync {
    /// What a person calls it.
    fn name(&self) -> &str;
    /// What events call it; zero where they do not.
    fn number(&self) -> u32 {
        0
    }
    /// Looks the block up, and pins it where it is resident. Does not wait.
    fn pin_block(&self, block: u64) -> Lookup;
    /// Pins those of the [`BATCH`] blocks from `first` on that `wanted` has a bit for and that are resident, but no
    /// edge; says which, and puts their frames in `frames`. Does not wait.
    fn pin_resident(&self, first: u64, wanted: u64, frames: &mut [Frame; BATCH as usize])
    -> Pinned;
    /// Takes one pin away from each of `count` blocks. Does not wait.
    fn unpin(&self, first: u64, count: u64);
    /// Notes that the block, which is pinned, is about to be written, if there will be room for it. Does not wait.
    fn dirty_block(&self, block: u64) -> Result<Dirtied, IoError>;
    /// Looks the block up for a store: what is resident is pinned, and noted as dirty, if there will be room for it. Does
    /// not wait.
    fn pin_to_store(&self, block: u64) -> Result<Lookup, IoError> {
        let lookup = self.pin_block(block);
        if let Lookup::Resident(_) | Lookup::Edge(_) = lookup {
            match self.dirty_block(block) {
                Ok(Dirtied::Done) => {}
                refused => {
                    self.unpin(block, 1);
                    return refused.map(|_| Lookup::NoRoom);
                }
            }
        }
        Ok(lookup)
    }
    /// Brings the block into memory, or waits while somebody else does, and as many after it as `pattern` suggests.
    fn prime(&self, block: u64, pattern: Pattern) -> Result<(), IoError>;
    /// Makes sure that there is room on the device for the block, and in memory for more that is dirty.
    fn make_room(&self, block: u64) -> Result<(), IoError>;
    /// Starts to read what follows the block, which was an edge. Does not wait for the device.
    fn read_ahead(&self, block: u64);
    /// Starts to read `blocks`, as far as there is memory. Does not wait for the device.
    fn will_need(&self, blocks: Range<u64>);
    /// Nobody needs `blocks` soon.
    fn dont_need(&self, blocks: Range<u64>);
    /// Writes what is dirty in `blocks` to the device.
    fn sync(&self, blocks: Range<u64>, mode: SyncMode) -> Result<(), IoError>;
}

/// Tells files apart that maps show.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FileKey(usize);

impl FileKey {
    /// The file's, as long as anybody has it.
    pub fn of<F: MappableFile + ?Sized>(file: *const F) -> Self {
        Self(file.addr())
    }
}

/// Which maps of a file are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// All.
    All,
    /// Those that are not locked.
    Unlocked,
}

/// All translations of a file's pages: what the page cache asks of the maps. Never called with the cache locked.
pub trait Aliases: Sync {
    /// Lets every store to the blocks fault, through whatever map. No TLB lets one pass when this returns.
    fn write_protect(&self, file: FileKey, blocks: Range<u64>);
    /// Removes the file's own pages in `blocks` from maps, and unpins them. Private copies stay.
    fn unmap(&self, file: FileKey, blocks: Range<u64>, which: Which);
}

/// How stores to a map of a file relate to the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// They are stores to the file.
    Shared,
    /// Each page that is stored to becomes a copy; the file never sees it.
    CopyOnWrite,
}

/// What a program says it will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Nothing in particular.
    Normal,
    /// Touch pages in no order: one at a time is enough.
    Random,
    /// Touch pages in ascending order.
    Sequential,
}

/// Memory with no file behind it: zeros until written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnonymousMemoryMap;

/// A run of a file's pages.
#[derive(Clone)]
pub struct MemoryMappedFile {
    /// The file; the map keeps it alive.
    pub file: Arc<dyn MappableFile>,
    /// The block that the map's first page shows.
    pub first_block: u64,
    /// How stores relate to it.
    pub sharing: Sharing,
}

/// What stands behind a map.
#[derive(Clone)]
pub enum Backing {
    /// Nothing.
    Anonymous(AnonymousMemoryMap),
    /// A file.
    File(MemoryMappedFile),
}

/// Whether the map can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Yes.
    Live,
    /// Every access is a fault, whatever its protection says.
    Guard,
    /// It is being removed: nobody finds it, but its addresses are still taken.
    Dying,
}

/// One map.
#[derive(Clone)]
pub struct MemoryMappedObject {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) protection: Protection,
    pub(super) pattern: Pattern,
    pub(super) condition: Condition,
    pub(super) is_locked: bool,
    /// Whose it is, so that it goes when they do.
    pub(super) holder: u64,
    pub(super) backing: Backing,
}

impl MemoryMappedObject {
    pub(super) fn new(
        pages: Range<u64>,
        protection: Protection,
        holder: u64,
        backing: Backing,
    ) -> Self {
        Self {
            holder,
            start: pages.start,
            end: pages.end,
            protection,
            pattern: Pattern::Normal,
            condition: Condition::Live,
            is_locked: false,
            backing,
        }
    }

    /// The pages it covers.
    pub fn pages(&self) -> Range<Page> {
        Page(self.start)..Page(self.end)
    }

    /// What it allows.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The file behind it, if there is one.
    pub fn file(&self) -> Option<&MemoryMappedFile> {
        match &self.backing {
            Backing::Anonymous(_) => None,
            Backing::File(file) => Some(file),
        }
    }

    /// Which file is behind it, if there is one.
    pub(super) fn file_key(&self) -> Option<FileKey> {
        self.file().map(|file| FileKey::of(Arc::as_ptr(&file.file)))
    }

    /// The pages that show `blocks` of its file.
    pub(super) fn pages_of(&self, blocks: &Range<u64>) -> Range<u64> {
        let Backing::File(file) = &self.backing else {
            return self.start..self.start;
        };
        let len = self.end - self.start;
        let page = |block: u64| self.start + block.saturating_sub(file.first_block).min(len);
        page(blocks.start)..page(blocks.end)
    }

    /// The block of its file that `page` shows.
    pub(super) fn block(&self, page: u64) -> u64 {
        match &self.backing {
            Backing::Anonymous(_) => 0,
            Backing::File(file) => file.first_block + (page - self.start),
        }
    }

    /// Takes what lies from `at` on away, as a map of its own.
    pub(super) fn split(&mut self, at: u64) -> Self {
        debug_assert!(self.start < at && at < self.end);
        let mut rest = self.clone();
        rest.start = at;
        if let Backing::File(file) = &mut rest.backing {
            file.first_block += at - self.start;
        }
        self.end = at;
        rest
    }

    /// Whether `next`, which begins where this one ends, is more of the same.
    pub(super) fn continues_with(&self, next: &Self) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.pattern == next.pattern
            && self.condition == next.condition
            && self.is_locked == next.is_locked
            && self.holder == next.holder
            && self.condition != Condition::Dying
            && match (&self.backing, &next.backing) {
                (Backing::Anonymous(_), Backing::Anonymous(_)) => true,
                (Backing::File(file), Backing::File(other)) => {
                    Arc::ptr_eq(&file.file, &other.file)
                        && file.sharing == other.sharing
                        && file.first_block + (self.end - self.start) == other.first_block
                }
                _ => false,
            }
    }
}
