//! The file system trait: each call takes the volume and does one thing with it.

use super::Ext4;
use super::inode::{ROOT, Time};
use crate::fs::block::BlockDevice;
use crate::fs::error::{FsError, ReadOnlyReason, Structure};
use crate::fs::{
    Attributes, Cursor, DirectoryEntry, Extent, FileId, FileKind, FileSystem, Reservation,
    Statistics, Timestamp,
};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Bytes of a file read or written with the volume locked once; no more than one operation backs, with any block size.
///
/// They are copied from and to the caller's memory with the lock open: that memory may be a map, and the fault that
/// brings its page in may need this very volume.
const PIECE: u64 = 1 << 20;

impl FileSystem for Ext4 {
    fn root(&self) -> FileId {
        FileId(ROOT.into())
    }

    fn statistics(&self) -> Result<Statistics, FsError> {
        self.volume.lock().statistics()
    }

    fn device(&self) -> Option<Arc<dyn BlockDevice>> {
        Some(self.volume.lock().store.device().clone())
    }

    fn read_only(&self) -> Option<ReadOnlyReason> {
        self.volume.lock().read_only()
    }

    fn attributes(&self, file: FileId) -> Result<Attributes, FsError> {
        self.volume.lock().attributes(number(file)?)
    }

    fn lookup(&self, directory: FileId, name: &[u8]) -> Result<FileId, FsError> {
        let mut volume = self.volume.lock();
        let directory = volume.directory(number(directory)?)?;
        let found = volume.find(&directory, name)?.ok_or(FsError::NotFound)?;
        Ok(FileId(found.inode.into()))
    }

    fn read_directory(
        &self,
        directory: FileId,
        cursor: &mut Cursor,
    ) -> Result<Vec<DirectoryEntry>, FsError> {
        let mut volume = self.volume.lock();
        let directory = volume.directory(number(directory)?)?;
        volume.list(&directory, cursor)
    }

    fn read_link(&self, link: FileId) -> Result<Vec<u8>, FsError> {
        self.volume.lock().read_link(number(link)?)
    }

    fn open(&self, file: FileId) -> Result<(), FsError> {
        self.volume.lock().open(number(file)?)
    }

    fn close(&self, file: FileId) -> Result<(), FsError> {
        self.volume.lock().close(number(file)?)
    }

    fn read_at(&self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<usize, FsError> {
        let file = number(file)?;
        let mut done = 0;
        while done < bytes.len() {
            let wanted = (bytes.len() - done).min(PIECE as usize);
            let at = offset.saturating_add(done as u64);
            let data = self.volume.lock().read_at(file, at, wanted)?;
            bytes[done..done + data.len()].copy_from_slice(&data);
            done += data.len();
            if data.len() < wanted {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let file = number(file)?;
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = (PIECE - at % PIECE).min(rest.len() as u64) as usize;
            let part = rest[..len].to_vec();
            let written = self.volume.lock().write_at(file, at, &part)?;
            at += written as u64;
            rest = &rest[written..];
        }
        Ok(())
    }

    fn set_len(&self, file: FileId, len: u64) -> Result<(), FsError> {
        self.volume.lock().set_len(number(file)?, len)
    }

    fn set_permissions(&self, file: FileId, permissions: u16) -> Result<(), FsError> {
        self.volume.lock().change_inode(number(file)?, |inode| {
            inode.set_mode(inode.mode() & !0o7777 | permissions & 0o7777);
        })
    }

    fn set_times(
        &self,
        file: FileId,
        accessed: Timestamp,
        modified: Timestamp,
    ) -> Result<(), FsError> {
        self.volume.lock().change_inode(number(file)?, |inode| {
            inode.set_time(Time::Access, accessed);
            inode.set_time(Time::Modify, modified);
        })
    }

    fn create(
        &self,
        directory: FileId,
        name: &[u8],
        kind: FileKind,
        permissions: u16,
    ) -> Result<FileId, FsError> {
        let created = self
            .volume
            .lock()
            .create(number(directory)?, name, kind, permissions)?;
        Ok(FileId(created.into()))
    }

    fn symlink(&self, directory: FileId, name: &[u8], target: &[u8]) -> Result<FileId, FsError> {
        let created = self
            .volume
            .lock()
            .symlink(number(directory)?, name, target)?;
        Ok(FileId(created.into()))
    }

    fn link(&self, file: FileId, directory: FileId, name: &[u8]) -> Result<(), FsError> {
        self.volume
            .lock()
            .link(number(file)?, number(directory)?, name)
    }

    fn unlink(&self, directory: FileId, name: &[u8]) -> Result<Option<FileId>, FsError> {
        let kept = self.volume.lock().unlink(number(directory)?, name)?;
        Ok(kept.map(|number| FileId(number.into())))
    }

    fn remove_directory(&self, directory: FileId, name: &[u8]) -> Result<(), FsError> {
        self.volume
            .lock()
            .remove_directory(number(directory)?, name)
    }

    fn rename(
        &self,
        from: FileId,
        name: &[u8],
        to: FileId,
        new_name: &[u8],
    ) -> Result<Option<FileId>, FsError> {
        let kept = self
            .volume
            .lock()
            .rename(number(from)?, name, number(to)?, new_name)?;
        Ok(kept.map(|number| FileId(number.into())))
    }

    fn map(&self, file: FileId, offset: u64, len: u64) -> Result<Vec<Extent>, FsError> {
        let mut volume = self.volume.lock();
        let inode = volume.file(number(file)?)?;
        volume.extents(&inode, offset, len)
    }

    fn reserve(&self, file: FileId, offset: u64, len: u64) -> Result<Reservation, FsError> {
        self.volume.lock().reserve(number(file)?, offset, len)
    }

    fn release(&self, reservation: Reservation) {
        self.volume.lock().release(&reservation);
    }

    fn allocate(
        &self,
        file: FileId,
        offset: u64,
        len: u64,
        promise: &mut Reservation,
    ) -> Result<Vec<Extent>, FsError> {
        self.volume
            .lock()
            .allocate_range(number(file)?, offset, len, promise)
    }

    fn written(&self, file: FileId, offset: u64, len: u64, size: u64) -> Result<(), FsError> {
        self.volume.lock().written(number(file)?, offset, len, size)
    }

    fn truncate_prepare(&self, file: FileId, size: u64) -> Result<(), FsError> {
        self.volume.lock().truncate_prepare(number(file)?, size)
    }

    fn sync_file(&self, file: FileId) -> Result<(), FsError> {
        let mut volume = self.volume.lock();
        volume.check_live(number(file)?)?;
        volume.sync()
    }

    fn sync_data(&self, file: FileId) -> Result<(), FsError> {
        let mut volume = self.volume.lock();
        volume.check_live(number(file)?)?;
        volume.sync_data()
    }

    fn sync(&self) -> Result<(), FsError> {
        self.volume.lock().sync()
    }

    fn trim(&self) -> Result<u64, FsError> {
        self.discard_free()
    }

    fn unmount(&self) -> Result<(), FsError> {
        self.volume.lock().unmount()
    }
}

fn number(file: FileId) -> Result<u32, FsError> {
    u32::try_from(file.0).map_err(|_| FsError::corrupt(Structure::InodeNumber, 0, file.0))
}
