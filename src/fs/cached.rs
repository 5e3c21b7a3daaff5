//! A file system whose files are in the page cache: reads, writes and sizes go through it, all else to the file system
//! beneath.
//!
//! A file is open beneath as long as it is cached, so its number is not given to another; it ends when it has no name,
//! no user and no map.

use super::block::BlockDevice;
use super::error::{FsError, ReadOnlyReason};
use super::file_system::{
    Attributes, Cursor, DirectoryEntry, Extent, FileId, FileKind, FileSystem, Statistics, Timestamp,
};
use crate::arch;
use crate::mm::cache::{InUse, PageCache, VolumeId};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

/// Bytes read or written at a time. Where the caller's memory may be a map, they go through memory that cannot fault:
/// they are copied with a lock held.
const PIECE: usize = 128 << 10;

/// A file system behind the page cache.
pub struct Cached {
    beneath: Arc<dyn FileSystem>,
    cache: &'static PageCache,
    volume: VolumeId,
    /// It is being unmounted: what is stored from now on would be lost.
    is_closing: AtomicBool,
}

impl Cached {
    /// Puts the page cache in front of `beneath`, which has just been mounted and offers a
    /// [device](FileSystem::device).
    pub fn new(beneath: Arc<dyn FileSystem>, cache: &'static PageCache) -> Self {
        Self {
            beneath,
            cache,
            volume: cache.new_volume(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Which files of the cache are this file system's.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    fn file(&self, file: FileId) -> Result<InUse, FsError> {
        let file = self.cache.file(self.volume, &self.beneath, file, None)?;
        // Files that were cached when it began to close know already.
        if self.is_closing.load(Ordering::Acquire) {
            file.refuse_stores();
        }
        Ok(file)
    }

    fn find(&self, file: FileId) -> Option<InUse> {
        self.cache.find(self.volume, file)
    }

    /// A file has lost its last name: if the cache is why it is still open, the cache lets it go with its last user.
    fn note_unlinked(&self, file: Option<FileId>) -> Result<Option<FileId>, FsError> {
        // By now it may be gone, and its number another file's, which has a name.
        if let Some(cached) = file.and_then(|file| self.find(file))
            && self.beneath.attributes(cached.id())?.links == 0
        {
            cached.note_unlinked();
            cached.end()?;
        }
        Ok(file)
    }

    /// Writes at `offset`, or at the end; returns the byte behind that. Each piece is appended as a whole.
    fn write(&self, file: FileId, offset: Option<u64>, bytes: &[u8]) -> Result<u64, FsError> {
        let file = self.file(file)?;
        let can_fault = !arch::cannot_fault(bytes.as_ptr());
        let mut piece = buffer(if can_fault { bytes.len() } else { 0 })?;
        let mut end = offset.unwrap_or_else(|| file.size());
        for part in bytes.chunks(PIECE) {
            let at = offset.map(|_| end);
            end = if can_fault {
                piece[..part.len()].copy_from_slice(part);
                file.write(at, &piece[..part.len()])?
            } else {
                file.write(at, part)?
            };
        }
        Ok(end)
    }

    /// Writes what is dirty of `file` to the device.
    fn write_back(&self, file: FileId) -> Result<(), FsError> {
        match self.find(file) {
            Some(file) => file.write_out(0..u64::MAX),
            None => Ok(()),
        }
    }
}

impl FileSystem for Cached {
    fn root(&self) -> FileId {
        self.beneath.root()
    }

    fn statistics(&self) -> Result<Statistics, FsError> {
        self.beneath.statistics()
    }

    fn device(&self) -> Option<Arc<dyn BlockDevice>> {
        self.beneath.device()
    }

    fn trim(&self) -> Result<u64, FsError> {
        self.beneath.trim()
    }

    fn read_only(&self) -> Option<ReadOnlyReason> {
        self.beneath.read_only()
    }

    fn mappable(&self, file: FileId, name: &str) -> Result<InUse, FsError> {
        let file = self.file(file)?;
        file.set_name(name);
        Ok(file)
    }

    fn attributes(&self, file: FileId) -> Result<Attributes, FsError> {
        let mut attributes = self.beneath.attributes(file)?;
        if let Some(cached) = self.find(file) {
            attributes.size = cached.size();
        }
        Ok(attributes)
    }

    fn lookup(&self, directory: FileId, name: &[u8]) -> Result<FileId, FsError> {
        self.beneath.lookup(directory, name)
    }

    fn read_directory(
        &self,
        directory: FileId,
        cursor: &mut Cursor,
    ) -> Result<Vec<DirectoryEntry>, FsError> {
        self.beneath.read_directory(directory, cursor)
    }

    fn read_link(&self, link: FileId) -> Result<Vec<u8>, FsError> {
        self.beneath.read_link(link)
    }

    fn open(&self, file: FileId) -> Result<(), FsError> {
        match self.file(file) {
            Ok(file) => {
                file.open();
                file.end()
            }
            Err(FsError::NotAFile) => self.beneath.open(file),
            Err(error) => Err(error),
        }
    }

    fn close(&self, file: FileId) -> Result<(), FsError> {
        match self.find(file) {
            Some(file) => {
                file.close();
                file.end()
            }
            None => self.beneath.close(file),
        }
    }

    fn read_at(&self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<usize, FsError> {
        let file = self.file(file)?;
        if arch::cannot_fault(bytes.as_ptr()) {
            return file.read(offset, bytes);
        }
        let mut piece = buffer(bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let len = piece.len().min(bytes.len() - done);
            let at = offset.saturating_add(done as u64);
            let read = file.read(at, &mut piece[..len])?;
            bytes[done..done + read].copy_from_slice(&piece[..read]);
            done += read;
            if read < len {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.write(file, Some(offset), bytes).map(drop)
    }

    fn append(&self, file: FileId, bytes: &[u8]) -> Result<u64, FsError> {
        self.write(file, None, bytes)
    }

    fn set_len(&self, file: FileId, len: u64) -> Result<(), FsError> {
        self.file(file)?.set_len(len)
    }

    fn set_permissions(&self, file: FileId, permissions: u16) -> Result<(), FsError> {
        self.beneath.set_permissions(file, permissions)
    }

    fn set_times(
        &self,
        file: FileId,
        accessed: Timestamp,
        modified: Timestamp,
    ) -> Result<(), FsError> {
        // Writing back changes the time of the last change: it must come first.
        self.write_back(file)?;
        self.beneath.set_times(file, accessed, modified)
    }

    fn create(
        &self,
        directory: FileId,
        name: &[u8],
        kind: FileKind,
        permissions: u16,
    ) -> Result<FileId, FsError> {
        self.beneath.create(directory, name, kind, permissions)
    }

    fn symlink(&self, directory: FileId, name: &[u8], target: &[u8]) -> Result<FileId, FsError> {
        self.beneath.symlink(directory, name, target)
    }

    fn link(&self, file: FileId, directory: FileId, name: &[u8]) -> Result<(), FsError> {
        self.beneath.link(file, directory, name)
    }

    fn unlink(&self, directory: FileId, name: &[u8]) -> Result<Option<FileId>, FsError> {
        self.note_unlinked(self.beneath.unlink(directory, name)?)
    }

    fn remove_directory(&self, directory: FileId, name: &[u8]) -> Result<(), FsError> {
        self.beneath.remove_directory(directory, name)
    }

    fn rename(
        &self,
        from: FileId,
        name: &[u8],
        to: FileId,
        new_name: &[u8],
    ) -> Result<Option<FileId>, FsError> {
        if self.beneath.lookup(to, new_name).is_ok() {
            // Whoever replaces a file so means to have the old one or the new one, also when the power fails: not one whose
            // bytes were still to be written when its name was durable.
            self.write_back(self.beneath.lookup(from, name)?)?;
        }
        self.note_unlinked(self.beneath.rename(from, name, to, new_name)?)
    }

    fn map(&self, file: FileId, offset: u64, len: u64) -> Result<Vec<Extent>, FsError> {
        // Where delayed blocks will be is known when they are written.
        self.write_back(file)?;
        self.beneath.map(file, offset, len)
    }

    fn sync_file(&self, file: FileId) -> Result<(), FsError> {
        match self.find(file) {
            Some(file) => file.sync_all(),
            None => self.beneath.sync_file(file),
        }
    }

    fn sync_data(&self, file: FileId) -> Result<(), FsError> {
        match self.find(file) {
            Some(file) => file.sync(0..u64::MAX),
            None => self.beneath.sync_data(file),
        }
    }

    fn sync(&self) -> Result<(), FsError> {
        let written = self.cache.write_out(self.volume);
        self.beneath.sync()?;
        written
    }

    fn unmount(&self) -> Result<(), FsError> {
        if self.cache.is_mapped(self.volume) {
            return Err(FsError::Busy);
        }
        self.is_closing.store(true, Ordering::Release);
        self.cache.refuse_stores(self.volume);
        let written = self.cache.write_out(self.volume);
        let ended = self.cache.end_volume(self.volume);
        // Whatever failed, what can be made durable is.
        self.beneath.unmount()?;
        written?;
        ended
    }
}

/// Memory that cannot fault.
fn buffer(len: usize) -> Result<Vec<u8>, FsError> {
    let len = len.min(PIECE);
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| FsError::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}
