//! FAT12, FAT16 and FAT32, for the firmware partition: `hadris-fat` behind our trait.
//!
//! The driver knows files by nodes that are *pinned* while somebody may name them. We pin each file once, when it is
//! first found, until it is removed: a volume of firmware has few. FAT cannot say that space is allocated but not
//! written, has no symbolic or hard links, and cannot keep a file without a name: such calls are refused.

use super::block::{BlockDevice, BlockError, Durability};
use super::blocking;
use super::error::{FeatureSet, FsError, ReadOnlyReason, Structure, Unsupported};
use super::file_system::{
    Attributes, Backing, Cursor, DirectoryEntry, Extent, FileId, FileKind, FileSystem, Statistics,
    Timestamp,
};
use crate::sync::Mutex;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use hadris_fat::sync::FatFs;
use hadris_fs::{
    DateTime, DirCursor, ErrorKind, FileType, MountOptions, Name, NodeId, OpenMode, RenameMode,
    SetAttr,
};
use hadris_storage::{BlockIndex, BlockSize};

/// More files than this at once are refused: memory for them must end somewhere.
const MAX_NODES: usize = 65536;
/// Bytes read or written with the volume locked once: the caller's memory, which may fault, is copied with the lock open.
const PIECE: usize = 1 << 16;
/// Entries given out by one call that lists a directory.
const ENTRIES_PER_CALL: usize = 64;

/// What time it is. The driver wants one clock that lives for ever; the first volume that is mounted brings it.
static CLOCK: spin::Once<fn() -> Timestamp> = spin::Once::new();

struct GlobalClock;

impl hadris_fs::Clock for GlobalClock {
    fn now(&self) -> DateTime {
        let now = CLOCK.get().map_or(Timestamp::default(), |clock| clock());
        date_time(now).unwrap_or(hadris_fs::Clock::now(&hadris_fs::NoClock))
    }
}

/// A mounted FAT volume.
pub struct Fat {
    volume: Mutex<Volume>,
}

struct Volume {
    driver: FatFs<Disk>,
    read_only: Option<ReadOnlyReason>,
    /// Why what was written may not be on the medium: whoever asks for it is told, not only the first.
    sync_error: Option<FsError>,
    /// Files that the driver keeps for us.
    pinned: BTreeSet<NodeId>,
    /// Files that are open, and how often.
    open: BTreeMap<NodeId, u32>,
}

impl Fat {
    /// Mounts the volume on `device`; only to be read, if so asked or if the device cannot be written.
    pub fn mount(
        device: Arc<dyn BlockDevice>,
        is_read_only: bool,
        clock: fn() -> Timestamp,
    ) -> Result<Self, FsError> {
        CLOCK.call_once(|| clock);
        let properties = device.properties();
        let read_only = if properties.is_read_only {
            Some(ReadOnlyReason::Device)
        } else {
            is_read_only.then_some(ReadOnlyReason::Asked)
        };
        let options = MountOptions::new()
            .with_clock(&GlobalClock)
            .with_node_limit(MAX_NODES);
        let options = if read_only.is_some() {
            options.read_only()
        } else {
            options
        };
        let size =
            BlockSize::new(properties.sector_size).ok_or(FsError::Unsupported(Unsupported {
                set: FeatureSet::BlockSize,
                bits: properties.sector_size,
            }))?;
        let disk = Disk {
            device,
            size,
            is_writable: read_only.is_none(),
        };
        let driver = FatFs::mount(disk, options).map_err(|failed| error(failed.into_error()))?;
        let volume = Volume {
            driver,
            read_only,
            sync_error: None,
            pinned: BTreeSet::new(),
            open: BTreeMap::new(),
        };
        Ok(Self {
            volume: Mutex::new(volume),
        })
    }
}

impl FileSystem for Fat {
    fn root(&self) -> FileId {
        FileId(self.volume.lock().driver.root().get())
    }

    fn statistics(&self) -> Result<Statistics, FsError> {
        let stats = self.volume.lock().driver.statfs().map_err(error)?;
        Ok(Statistics {
            block_size: stats.block_size(),
            blocks: stats.total_blocks(),
            free_blocks: stats.free_blocks(),
            available_blocks: stats.free_blocks(),
            inodes: 0,
            free_inodes: 0,
        })
    }

    fn read_only(&self) -> Option<ReadOnlyReason> {
        self.volume.lock().read_only
    }

    fn attributes(&self, file: FileId) -> Result<Attributes, FsError> {
        let mut volume = self.volume.lock();
        let node = node(file)?;
        let metadata = volume.driver.stat(node).map_err(error)?;
        let time = |time: Option<DateTime>| {
            time.map_or(Timestamp::default(), |time| Timestamp {
                seconds: time.unix_seconds(),
                nanoseconds: time.nanoseconds(),
            })
        };
        Ok(Attributes {
            kind: kind(metadata.file_type()).unwrap_or(FileKind::File),
            permissions: metadata.permissions().bits() as u16,
            links: 1,
            owner: (0, 0),
            size: metadata.len(),
            allocated: metadata.allocated(),
            accessed: time(metadata.accessed()),
            modified: time(metadata.modified()),
            changed: time(metadata.changed().or(metadata.modified())),
            created: time(metadata.created()),
        })
    }

    fn lookup(&self, directory: FileId, name: &[u8]) -> Result<FileId, FsError> {
        let mut volume = self.volume.lock();
        let directory = node(directory)?;
        let found = match name {
            b"." => return Ok(FileId(directory.get())),
            b".." => volume.driver.parent(directory),
            _ => volume.driver.lookup(directory, Name::from_bytes(name)),
        };
        let found = found.map_err(error)?;
        Ok(volume.pin(found))
    }

    fn read_directory(
        &self,
        directory: FileId,
        cursor: &mut Cursor,
    ) -> Result<Vec<DirectoryEntry>, FsError> {
        let mut volume = self.volume.lock();
        let directory = node(directory)?;
        let mut entries = Vec::new();
        while entries.len() < ENTRIES_PER_CALL {
            let from = DirCursor::from_raw(cursor.0);
            let Some(entry) = volume.driver.readdir(directory, from).map_err(error)? else {
                break;
            };
            cursor.0 = entry.next_cursor().into_raw();
            entries.push(DirectoryEntry {
                name: entry.name().as_bytes().to_vec(),
                file: FileId(entry.node().get()),
                kind: kind(entry.file_type()),
            });
        }
        // A listed file is nobody's yet; who goes on with it must find it valid.
        for entry in &entries {
            let found = volume
                .driver
                .lookup(directory, Name::from_bytes(&entry.name))
                .map_err(error)?;
            volume.pin(found);
        }
        Ok(entries)
    }

    fn read_link(&self, _: FileId) -> Result<Vec<u8>, FsError> {
        Err(FsError::NotASymlink)
    }

    fn open(&self, file: FileId) -> Result<(), FsError> {
        let mut volume = self.volume.lock();
        let node = node(file)?;
        volume.driver.stat(node).map_err(error)?;
        *volume.open.entry(node).or_insert(0) += 1;
        Ok(())
    }

    fn close(&self, file: FileId) -> Result<(), FsError> {
        let mut volume = self.volume.lock();
        let node = node(file)?;
        match volume.open.get_mut(&node) {
            None => return Err(FsError::NotFound),
            Some(1) => drop(volume.open.remove(&node)),
            Some(count) => *count -= 1,
        }
        Ok(())
    }

    fn read_at(&self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<usize, FsError> {
        let node = node(file)?;
        let mut done = 0;
        while done < bytes.len() {
            let wanted = (bytes.len() - done).min(PIECE);
            let data = self
                .volume
                .lock()
                .read(node, offset.saturating_add(done as u64), wanted)?;
            bytes[done..done + data.len()].copy_from_slice(&data);
            done += data.len();
            if data.len() < wanted {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let node = node(file)?;
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            let piece = piece.to_vec();
            self.volume.lock().write(node, at, &piece)?;
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    fn set_len(&self, file: FileId, len: u64) -> Result<(), FsError> {
        self.volume.lock().truncate(node(file)?, len)
    }

    fn set_permissions(&self, file: FileId, permissions: u16) -> Result<(), FsError> {
        let changes =
            SetAttr::new().with_permissions(hadris_fs::Permissions::new(permissions.into()));
        self.volume.lock().change(node(file)?, &changes)
    }

    fn set_times(&self, file: FileId, _: Timestamp, modified: Timestamp) -> Result<(), FsError> {
        let modified =
            date_time(modified).ok_or(FsError::corrupt(Structure::FatTime, file.0, 0))?;
        let changes = SetAttr::new().with_modified(modified);
        self.volume.lock().change(node(file)?, &changes)
    }

    fn create(
        &self,
        directory: FileId,
        name: &[u8],
        kind: FileKind,
        _: u16,
    ) -> Result<FileId, FsError> {
        let mut volume = self.volume.lock();
        volume.check_writable()?;
        let (directory, name) = (node(directory)?, Name::from_bytes(name));
        let made = match kind {
            FileKind::File => volume.driver.create(directory, name, &SetAttr::new()),
            FileKind::Directory => volume.driver.mkdir(directory, name, &SetAttr::new()),
            _ => return Err(FsError::NotAFile),
        };
        let made = made.map_err(error)?;
        Ok(volume.pin(made))
    }

    fn symlink(&self, _: FileId, _: &[u8], _: &[u8]) -> Result<FileId, FsError> {
        Err(FsError::NotOffered)
    }

    fn link(&self, _: FileId, _: FileId, _: &[u8]) -> Result<(), FsError> {
        Err(FsError::NotOffered)
    }

    fn unlink(&self, directory: FileId, name: &[u8]) -> Result<Option<FileId>, FsError> {
        // What is open is refused.
        let mut volume = self.volume.lock();
        volume.unname(node(directory)?, name, None, |driver, directory, name| {
            driver.unlink(directory, name)
        })?;
        Ok(None)
    }

    fn remove_directory(&self, directory: FileId, name: &[u8]) -> Result<(), FsError> {
        self.volume
            .lock()
            .unname(node(directory)?, name, None, |driver, directory, name| {
                driver.rmdir(directory, name)
            })
    }

    fn rename(
        &self,
        from: FileId,
        name: &[u8],
        to: FileId,
        new_name: &[u8],
    ) -> Result<Option<FileId>, FsError> {
        let (from, name) = (node(from)?, Name::from_bytes(name));
        let mut volume = self.volume.lock();
        let moved = volume.driver.lookup(from, name).map_err(error)?;
        let renamed = volume.unname(node(to)?, new_name, Some(moved), |driver, to, new_name| {
            driver.rename(from, name, to, new_name, RenameMode::Replace)
        });
        volume.driver.forget(moved, 1);
        renamed.map(|()| None)
    }

    fn map(&self, file: FileId, offset: u64, len: u64) -> Result<Vec<Extent>, FsError> {
        self.volume.lock().map(node(file)?, offset, len)
    }

    fn sync_file(&self, file: FileId) -> Result<(), FsError> {
        let file = node(file)?;
        let mut volume = self.volume.lock();
        volume.durably(|driver| driver.fsync(file))
    }

    fn sync(&self) -> Result<(), FsError> {
        self.volume.lock().sync()
    }

    fn unmount(&self) -> Result<(), FsError> {
        let mut volume = self.volume.lock();
        volume.sync()?;
        volume.read_only = Some(ReadOnlyReason::Unmounted);
        Ok(())
    }
}

type DriverResult<T> = Result<T, hadris_fs::Error<BlockError>>;

impl Volume {
    /// Keeps a node that the driver has pinned, once.
    fn pin(&mut self, node: NodeId) -> FileId {
        if !self.pinned.insert(node) {
            self.driver.forget(node, 1);
        }
        FileId(node.get())
    }

    fn opened<T>(
        &mut self,
        node: NodeId,
        mode: OpenMode,
        work: impl FnOnce(&mut FatFs<Disk>, NodeId) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        if mode == OpenMode::Write {
            self.check_writable()?;
        }
        self.driver.open(node, mode).map_err(error)?;
        let result = work(&mut self.driver, node);
        let closed = self.driver.close(node).map_err(error);
        let value = result?;
        closed.map(|()| value)
    }

    fn read(&mut self, node: NodeId, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let mut bytes = alloc::vec![0; len];
        self.opened(node, OpenMode::Read, |driver, node| {
            let mut done = 0;
            while done < bytes.len() {
                match driver
                    .read(node, offset + done as u64, &mut bytes[done..])
                    .map_err(error)?
                {
                    0 => break,
                    more => done += more,
                }
            }
            bytes.truncate(done);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn write(&mut self, node: NodeId, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        if offset.checked_add(bytes.len() as u64).is_none() {
            return Err(FsError::FileTooLarge);
        }
        self.opened(node, OpenMode::Write, |driver, node| {
            let mut done = 0;
            while done < bytes.len() {
                match driver
                    .write(node, offset + done as u64, &bytes[done..])
                    .map_err(error)?
                {
                    0 => return Err(FsError::NoSpace),
                    more => done += more,
                }
            }
            Ok(())
        })
    }

    fn check_writable(&self) -> Result<(), FsError> {
        self.read_only
            .map_or(Ok(()), |reason| Err(FsError::ReadOnly(reason)))
    }

    fn change(&mut self, node: NodeId, changes: &SetAttr) -> Result<(), FsError> {
        self.check_writable()?;
        self.driver.setattr(node, changes).map_err(error)
    }

    fn truncate(&mut self, node: NodeId, len: u64) -> Result<(), FsError> {
        self.opened(node, OpenMode::Write, |driver, node| {
            driver.truncate(node, len).map_err(error)
        })
    }

    /// Does `f`, which takes the name from what has it, if anything but `moved` has: that is what has the name afterwards,
    /// perhaps in other letters. What is open cannot be without a name here.
    fn unname(
        &mut self,
        directory: NodeId,
        name: &[u8],
        moved: Option<NodeId>,
        f: impl FnOnce(&mut FatFs<Disk>, NodeId, &Name) -> DriverResult<()>,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        let name = Name::from_bytes(name);
        let found = match self.driver.lookup(directory, name).map_err(error) {
            Err(FsError::NotFound) => return f(&mut self.driver, directory, name).map_err(error),
            found => found?,
        };
        let stays = moved == Some(found);
        let done = match self.open.contains_key(&found) && !stays {
            true => Err(FsError::Busy),
            false => f(&mut self.driver, directory, name).map_err(error),
        };
        self.driver.forget(found, 1);
        if done.is_ok() && !stays && self.pinned.remove(&found) {
            self.driver.forget(found, 1);
        }
        done
    }

    fn map(&mut self, node: NodeId, offset: u64, len: u64) -> Result<Vec<Extent>, FsError> {
        let end = offset.saturating_add(len);
        let unit = u64::from(self.driver.statfs().map_err(error)?.block_size().max(1));
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset - offset % unit;
        while at < end {
            let mut runs = [hadris_fs::Extent::new(0, 0); 16];
            let count = self.driver.extents(node, at, &mut runs).map_err(error)?;
            for run in &runs[..count] {
                // The driver begins with the run that holds `at`, perhaps before it.
                let skip = at.saturating_sub(run.file_offset());
                let len = run.len().next_multiple_of(unit).saturating_sub(skip);
                if len == 0 || at >= end {
                    break;
                }
                let len = len.min((end - at).next_multiple_of(unit));
                extents.push(Extent {
                    offset: at,
                    len,
                    backing: Backing::Written(run.offset() + skip),
                });
                at += len;
            }
            if count == 0 {
                let len = (end - at).next_multiple_of(unit);
                extents.push(Extent {
                    offset: at,
                    len,
                    backing: Backing::Hole,
                });
                break;
            }
        }
        Ok(extents)
    }

    fn sync(&mut self) -> Result<(), FsError> {
        if self.read_only.is_some() {
            return Ok(());
        }
        self.durably(|driver| driver.sync())
    }

    /// Does what makes something durable. A device that has failed in that once may have dropped what it had: nothing is
    /// acknowledged any more.
    fn durably(
        &mut self,
        sync: impl FnOnce(&mut FatFs<Disk>) -> Result<(), hadris_fs::Error<BlockError>>,
    ) -> Result<(), FsError> {
        if let Some(error) = self.sync_error {
            return Err(error);
        }
        let result = sync(&mut self.driver).map_err(error);
        self.sync_error = result
            .err()
            .filter(|error| matches!(error, FsError::Block(_)));
        result
    }
}

/// Our block device as the driver wants it.
struct Disk {
    device: Arc<dyn BlockDevice>,
    size: BlockSize,
    is_writable: bool,
}

impl Disk {
    fn offset(&self, block: BlockIndex) -> u64 {
        block.get().saturating_mul(self.size.get().into())
    }
}

impl hadris_io::ErrorType for Disk {
    type Error = BlockError;
}

impl hadris_storage::sync::BlockDevice for Disk {
    fn block_size(&self) -> BlockSize {
        self.size
    }

    fn block_count(&self) -> u64 {
        self.device.properties().capacity / u64::from(self.size.get())
    }

    fn writable(&self) -> bool {
        self.is_writable
    }

    fn read_blocks(&mut self, first: BlockIndex, bytes: &mut [u8]) -> DriverResult<()> {
        let read = blocking::read(&*self.device, self.offset(first), bytes.len());
        bytes.copy_from_slice(&read.map_err(device_error)?);
        Ok(())
    }

    fn write_blocks(&mut self, first: BlockIndex, bytes: &[u8]) -> DriverResult<()> {
        let offset = self.offset(first);
        blocking::write(&*self.device, offset, bytes.to_vec(), Durability::Cached)
            .map_err(device_error)
    }

    fn flush(&mut self) -> DriverResult<()> {
        blocking::flush(&*self.device).map_err(device_error)
    }
}

fn device_error(error: BlockError) -> hadris_fs::Error<BlockError> {
    hadris_fs::Error::device(error, "block device")
}

fn node(file: FileId) -> Result<NodeId, FsError> {
    NodeId::new(file.0).ok_or(FsError::NotFound)
}

fn kind(of: FileType) -> Option<FileKind> {
    match of {
        of if of.is_dir() => Some(FileKind::Directory),
        of if of.is_file() => Some(FileKind::File),
        of if of.is_symlink() => Some(FileKind::Symlink),
        _ => None,
    }
}

fn date_time(time: Timestamp) -> Option<DateTime> {
    DateTime::new(time.seconds, time.nanoseconds).ok()
}

/// The driver's error in our words.
fn error(error: hadris_fs::Error<BlockError>) -> FsError {
    if let Some(error) = error.device_error() {
        return FsError::Block(*error);
    }
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidHandle => FsError::NotFound,
        ErrorKind::AlreadyExists => FsError::Exists,
        ErrorKind::NotADirectory => FsError::NotADirectory,
        ErrorKind::IsADirectory => FsError::IsADirectory,
        ErrorKind::DirectoryNotEmpty => FsError::NotEmpty,
        ErrorKind::NoSpace | ErrorKind::LimitExceeded => FsError::NoSpace,
        ErrorKind::ReadOnly => FsError::ReadOnly(ReadOnlyReason::Asked),
        ErrorKind::InvalidInput => FsError::InvalidName,
        ErrorKind::NameTooLong => FsError::NameTooLong,
        ErrorKind::FileTooLarge => FsError::FileTooLarge,
        ErrorKind::Busy => FsError::Busy,
        ErrorKind::Unsupported | ErrorKind::Symlink => FsError::NotOffered,
        _ => {
            let code = error.detail().map_or(0, |detail| detail.code().into());
            FsError::corrupt(Structure::Fat, 0, code)
        }
    }
}
