//! What every file system offers: names, attributes, bytes, and for the page cache the places of a file's bytes.

use super::block::BlockDevice;
use super::error::{FsError, ReadOnlyReason};
use crate::mm::cache::InUse;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// A file within its file system. Stays valid while the file has a name or is [open](FileSystem::open).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// Bytes.
    File,
    /// Names.
    Directory,
    /// Another path.
    Symlink,
    /// A device of characters; kept, not served.
    CharacterDevice,
    /// A device of blocks; kept, not served.
    BlockDevice,
    /// A named pipe; kept, not served.
    Fifo,
    /// A local socket; kept, not served.
    Socket,
}

/// A moment, since 1970 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// And the rest, under a thousand million.
    pub nanoseconds: u32,
}

/// What is known about a file besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, as in `chmod`.
    pub permissions: u16,
    /// Names it has.
    pub links: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Bytes in it.
    pub size: u64,
    /// Bytes it takes on the medium, its metadata included.
    pub allocated: u64,
    /// Last read.
    pub accessed: Timestamp,
    /// Last change of its bytes.
    pub modified: Timestamp,
    /// Last change of its bytes or attributes.
    pub changed: Timestamp,
    /// Made at; zero where the format does not say.
    pub created: Timestamp,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name: any bytes but `/` and zero.
    pub name: Vec<u8>,
    /// The file.
    pub file: FileId,
    /// What it is, where the directory says so.
    pub kind: Option<FileKind>,
}

/// Where reading a directory goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cursor(pub u64);

/// What backs a run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: zeros.
    Hole,
    /// Data, from this byte of the device on.
    Written(u64),
    /// Space on the device, from this byte on, that reads as zeros.
    Unwritten(u64),
}

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// What backs them.
    pub backing: Backing,
}

/// Sizes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that nothing uses.
    pub free_blocks: u64,
    /// Those of them that can be had: neither promised nor held back.
    pub available_blocks: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that nothing uses.
    pub free_inodes: u64,
}

/// Space promised to a file before its blocks are chosen, so that writing back cannot run out of it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the space stays promised until it is allocated or released"]
pub struct Reservation {
    pub(super) blocks: u64,
}

impl Reservation {
    /// Nothing.
    pub const NONE: Self = Self { blocks: 0 };

    /// Whether it promises nothing, so that releasing it is not needed.
    pub fn is_none(&self) -> bool {
        self.blocks == 0
    }

    /// Both together.
    pub fn merge(&mut self, other: Self) {
        self.blocks += other.blocks;
    }

    /// Takes as much of it out as `part` of `whole` equal pieces.
    pub fn split(&mut self, part: u64, whole: u64) -> Self {
        let whole = u128::from(whole.max(1));
        let blocks = (u128::from(self.blocks) * u128::from(part)).div_ceil(whole);
        let blocks = (blocks as u64).min(self.blocks);
        self.blocks -= blocks;
        Self { blocks }
    }
}

/// A mounted file system. Calls may wait for the device; several threads may call at once.
///
/// Changes are visible to everybody when a call returns, and durable later: [`sync`](Self::sync),
/// [`sync_file`](Self::sync_file) and [`unmount`](Self::unmount) alone end with a flush of the device (a journaling
/// file system may commit, and flush, at any other time, too). A power cut leaves the state of one moment between the
/// last of these and now, apart from the bytes of files that were being written. An error of any call leaves names,
/// sizes and allocation as they were before, but a large write may have been done in part, and a file been cut whose
/// blocks could not be freed.
///
/// The bytes that [`read_at`](Self::read_at) and [`write_at`](Self::write_at) are given may lie in a map of the same file
/// system: they are touched while no lock is held. Names and targets must lie in memory that cannot fault.
pub trait FileSystem: Send + Sync {
    /// The directory that holds all others.
    fn root(&self) -> FileId;
    /// Sizes and what is free.
    fn statistics(&self) -> Result<Statistics, FsError>;

    /// The device that [extents](Self::map) are on, where they may be transferred without this file system's doing.
    fn device(&self) -> Option<Arc<dyn BlockDevice>> {
        None
    }

    /// The file as maps show it; `name` is what people call it.
    fn mappable(&self, file: FileId, name: &str) -> Result<InUse, FsError> {
        let _ = (file, name);
        Err(FsError::NotMappable)
    }

    /// Why nothing can be written, if nothing can: as mounted, or since an error.
    fn read_only(&self) -> Option<ReadOnlyReason>;

    /// What is known about a file.
    fn attributes(&self, file: FileId) -> Result<Attributes, FsError>;
    /// The file that `name` means in `directory`; `.` and `..` too.
    fn lookup(&self, directory: FileId, name: &[u8]) -> Result<FileId, FsError>;
    /// Some of the entries from `cursor` on, which moves behind them; none at the end.
    fn read_directory(
        &self,
        directory: FileId,
        cursor: &mut Cursor,
    ) -> Result<Vec<DirectoryEntry>, FsError>;
    /// The path a symbolic link holds.
    fn read_link(&self, link: FileId) -> Result<Vec<u8>, FsError>;

    /// Keeps the file, even without a name, until it is closed as often.
    fn open(&self, file: FileId) -> Result<(), FsError>;
    /// The counterpart of [`open`](Self::open): the last one removes a file without a name.
    fn close(&self, file: FileId) -> Result<(), FsError>;
    /// Reads at `offset`; less than asked for only at the end of the file.
    fn read_at(&self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<usize, FsError>;
    /// Writes all of `bytes` at `offset`; the file grows where needed.
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), FsError>;
    /// Writes `bytes` at the end, wherever that is by then; returns where the file ends with them.
    fn append(&self, file: FileId, bytes: &[u8]) -> Result<u64, FsError> {
        let end = self.attributes(file)?.size;
        self.write_at(file, end, bytes)?;
        Ok(end + bytes.len() as u64)
    }
    /// Cuts the file, or lets it grow with zeros.
    fn set_len(&self, file: FileId, len: u64) -> Result<(), FsError>;
    /// Sets permission bits, as `chmod`.
    fn set_permissions(&self, file: FileId, permissions: u16) -> Result<(), FsError>;
    /// Sets the times of last read and last change.
    fn set_times(
        &self,
        file: FileId,
        accessed: Timestamp,
        modified: Timestamp,
    ) -> Result<(), FsError>;

    /// Makes an empty file or directory.
    fn create(
        &self,
        directory: FileId,
        name: &[u8],
        kind: FileKind,
        permissions: u16,
    ) -> Result<FileId, FsError>;
    /// Makes a symbolic link to `target`.
    fn symlink(&self, directory: FileId, name: &[u8], target: &[u8]) -> Result<FileId, FsError>;
    /// Gives `file` another name.
    fn link(&self, file: FileId, directory: FileId, name: &[u8]) -> Result<(), FsError>;
    /// Takes a name away from anything but a directory; returns the file if that was its last, and it is open.
    fn unlink(&self, directory: FileId, name: &[u8]) -> Result<Option<FileId>, FsError>;
    /// Removes an empty directory.
    fn remove_directory(&self, directory: FileId, name: &[u8]) -> Result<(), FsError>;
    /// Moves a name, atomically; what had the new name loses it, and is returned if that was its last, and it is open.
    fn rename(
        &self,
        from: FileId,
        name: &[u8],
        to: FileId,
        new_name: &[u8],
    ) -> Result<Option<FileId>, FsError>;

    /// The extents that cover `len` bytes from `offset` on, in order and without gaps; ends are rounded to blocks.
    fn map(&self, file: FileId, offset: u64, len: u64) -> Result<Vec<Extent>, FsError>;

    // --- for the page cache: offered where there is a device ---

    /// Promises space for a write of `len` bytes at `offset`, at its first store: to each page that lacks any, for all of
    /// its blocks, so that pages can share promises evenly.
    fn reserve(&self, file: FileId, offset: u64, len: u64) -> Result<Reservation, FsError> {
        let _ = (file, offset, len);
        Err(FsError::NotOffered)
    }
    /// Gives back a promise that is not needed.
    fn release(&self, reservation: Reservation) {
        debug_assert!(reservation.is_none(), "nothing was promised");
    }
    /// Backs `len` bytes at `offset` with space, unwritten where it is new, and redeems the promise; after an error it is
    /// as good as before. For write-back, which then transfers and calls [`written`](Self::written); until that, a power
    /// cut leaves zeros.
    fn allocate(
        &self,
        file: FileId,
        offset: u64,
        len: u64,
        promise: &mut Reservation,
    ) -> Result<Vec<Extent>, FsError> {
        let _ = (file, offset, len, promise);
        Err(FsError::NotOffered)
    }
    /// Says that a transfer to `len` bytes at `offset` is complete, and that the file has at least `size` bytes.
    fn written(&self, file: FileId, offset: u64, len: u64, size: u64) -> Result<(), FsError> {
        let _ = (file, offset, len, size);
        Err(FsError::NotOffered)
    }
    /// First half of a cut: the file ends at `size` from now on, but its blocks are still its own. The caller then lets
    /// go of pages past the end and waits for transfers to them; [`set_len`](Self::set_len) to `size` frees the blocks.
    /// Where the file ended before `size`, for what was written behind its end is not known yet, it grows.
    fn truncate_prepare(&self, file: FileId, size: u64) -> Result<(), FsError> {
        let _ = (file, size);
        Err(FsError::NotOffered)
    }

    /// Returns when all that was done to `file` is durable: its bytes, size and names. Flushes only if something has
    /// changed since the last time.
    fn sync_file(&self, file: FileId) -> Result<(), FsError>;

    /// Makes the file's data durable, and what is needed to find it; times and the like may follow later.
    fn sync_data(&self, file: FileId) -> Result<(), FsError> {
        self.sync_file(file)
    }
    /// Returns when everything is durable. A kernel thread calls this every few seconds: it costs nothing when nothing
    /// has changed, else it commits all changes since the last time together.
    fn sync(&self) -> Result<(), FsError>;
    /// Tells the device which bytes nothing uses, and says how many they are.
    fn trim(&self) -> Result<u64, FsError> {
        Err(FsError::NotOffered)
    }
    /// Makes everything durable and marks the file system clean. Open files without a name are removed. Afterwards
    /// nothing can be written; calling it again does nothing.
    fn unmount(&self) -> Result<(), FsError>;
}
