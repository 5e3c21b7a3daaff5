//! Mounting: superblock, journal recovery, and what makes a volume read-only.

use super::Ext4;
use super::bytes::{le16, le32, put_le16, put_le32};
use super::features::{COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER};
use super::inode::Inode;
use super::journal::{self, Journal, Recovered};
use super::store::{MetadataLimits, Store};
use super::superblock::{self, Superblock};
use super::volume::{Clock, Volume};
use crate::fs::block::{BlockDevice, Durability};
use crate::fs::blocking;
use crate::fs::error::{FsError, ReadOnlyReason, Structure};
use crate::sync::Mutex;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Whether a volume may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read. A journal that is not empty is still recovered, if the device can be written.
    ReadOnly,
    /// Read and written, where features and device allow it.
    ReadWrite,
}

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions {
    /// Whether to write.
    pub access: Access,
    /// What time it is, for time stamps.
    pub clock: Clock,
    /// Memory for metadata.
    pub limits: MetadataLimits,
}

/// A mounted file system, and what there is to say about it.
pub struct Mounted {
    /// The file system.
    pub file_system: Ext4,
    /// What the journal held, if it was not empty.
    pub recovered: Option<Recovered>,
    /// Why it cannot be written, if it cannot.
    pub read_only: Option<ReadOnlyReason>,
    /// Whether the device can make writes durable on demand.
    pub has_flush: bool,
}

impl Ext4 {
    /// Mounts the volume on `device`.
    pub fn mount(device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Mounted, FsError> {
        let properties = device.properties();
        let (mut superblock, mut from_backup) = read_superblock(&*device)?;
        let mut read_only = match options.access {
            _ if properties.is_read_only => Some(ReadOnlyReason::Device),
            Access::ReadOnly => Some(ReadOnlyReason::Asked),
            Access::ReadWrite => superblock
                .features
                .unwritable()
                .map(ReadOnlyReason::Feature),
        };
        let mut recovered = None;
        let mut journal = open_journal(&device, &superblock, options)?;
        if let Some(journal) = &mut journal
            && !journal.is_empty()
        {
            if properties.is_read_only {
                return Err(FsError::ReadOnly(ReadOnlyReason::Device));
            }
            recovered = Some(journal.recover(superblock.blocks_count)?);
            // The log may have held a newer superblock, or a whole one in place of a torn one.
            (superblock, from_backup) = read_superblock(&*device)?;
        }
        if recovered.is_some() && !from_backup {
            set_recovery_flag(&*device, &superblock, false)?;
        }
        if from_backup {
            read_only = read_only.or(Some(ReadOnlyReason::BackupSuperblock));
        }
        if read_only.is_none() {
            if let Some(journal) = &mut journal {
                // The flag first: a log that is in use is never without it.
                set_recovery_flag(&*device, &superblock, true)?;
                journal.start(superblock.is_64bit(), superblock.has_checksums())?;
            } else {
                change_superblock(&*device, |bytes| set_valid(bytes, false))?;
            }
        }
        let journal = journal.filter(|_| read_only.is_none());
        let mut longest_free = Vec::new();
        longest_free
            .try_reserve_exact(superblock.groups as usize)
            .map_err(|_| FsError::OutOfMemory)?;
        longest_free.resize(superblock.groups as usize, u32::MAX);
        let held_back = (superblock.blocks_count / 50).min(MAX_HELD_BACK);
        let mut volume = Volume {
            longest_free,
            store: Store::new(device, superblock.block_size, options.limits, journal),
            superblock,
            clock: options.clock,
            read_only,
            open: BTreeMap::new(),
            half_cut: BTreeSet::new(),
            cutting: BTreeSet::new(),
            reserved: 0,
            held_back,
            bounds_from: 0,
            inode_table: None,
        };
        if read_only.is_none() {
            match volume.process_orphans() {
                Ok(()) => volume.count_mount()?,
                // What they are to leave free is not to be found out; all else is there.
                Err(FsError::Block(error)) => {
                    volume.read_only = Some(ReadOnlyReason::Unfinished(error));
                    read_only = volume.read_only();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Mounted {
            file_system: Self {
                volume: Mutex::new(volume),
            },
            recovered,
            read_only,
            has_flush: properties.has_flush,
        })
    }
}

/// The primary superblock, or the first backup that is whole; and whether it is a backup.
fn read_superblock(device: &dyn BlockDevice) -> Result<(Superblock, bool), FsError> {
    let primary = superblock_at(device, superblock::OFFSET);
    let Err(FsError::Corrupt(_)) = primary else {
        return primary.map(|superblock| (superblock, false));
    };
    for block_size in [1024u64, 2048, 4096] {
        let first = u64::from(block_size == 1024);
        // Groups are as large as their bitmap allows, unless asked otherwise.
        for group in [1, 3, 5, 7, 9] {
            let offset = (first + group * 8 * block_size) * block_size;
            if let Ok(superblock) = superblock_at(device, offset)
                && superblock.block_size as u64 == block_size
            {
                return Ok((superblock, true));
            }
        }
    }
    primary.map(|superblock| (superblock, false))
}

fn superblock_at(device: &dyn BlockDevice, offset: u64) -> Result<Superblock, FsError> {
    let capacity = device.properties().capacity;
    if offset + superblock::SIZE as u64 > capacity {
        return Err(FsError::TooSmall);
    }
    let (bytes, at) = superblock_bytes(device, offset)?;
    Superblock::decode(&bytes[at..at + superblock::SIZE], capacity)
}

/// The sectors that hold the superblock at `offset`, and where in them it begins.
fn superblock_bytes(device: &dyn BlockDevice, offset: u64) -> Result<(Vec<u8>, usize), FsError> {
    let sector = u64::from(device.properties().sector_size);
    let start = offset - offset % sector;
    let end = (offset + superblock::SIZE as u64).next_multiple_of(sector);
    Ok((
        blocking::read(device, start, (end - start) as usize)?,
        (offset - start) as usize,
    ))
}

/// Blocks of the largest journal: mke2fs(8), `-J size`.
const MAX_JOURNAL: u64 = 10_240_000;

/// The most blocks that are held back, of which otherwise there are a fiftieth.
const MAX_HELD_BACK: u64 = 4096;

fn open_journal(
    device: &Arc<dyn BlockDevice>,
    superblock: &Superblock,
    options: MountOptions,
) -> Result<Option<Journal>, FsError> {
    if !superblock.features.has_compat(COMPAT_HAS_JOURNAL) {
        return Ok(None);
    }
    if superblock.journal_inode == 0 {
        return Err(journal::external(superblock.journal_device));
    }
    // The journal's own inode is found with a volume of its own, whose cache is dropped before recovery.
    let mut volume = Volume {
        longest_free: Vec::new(),
        store: Store::new(device.clone(), superblock.block_size, options.limits, None),
        superblock: superblock.clone(),
        clock: options.clock,
        read_only: Some(ReadOnlyReason::Asked),
        open: BTreeMap::new(),
        half_cut: BTreeSet::new(),
        cutting: BTreeSet::new(),
        reserved: 0,
        held_back: 0,
        bounds_from: 0,
        inode_table: None,
    };
    let inode: Inode = volume.inode(superblock.journal_inode)?;
    let blocks = volume.count_blocks(&inode, Structure::JournalGeometry)?;
    if blocks > MAX_JOURNAL {
        let number = inode.number.into();
        return Err(FsError::corrupt(Structure::JournalGeometry, number, blocks));
    }
    let runs = volume.runs(&inode, 0, blocks)?;
    Journal::open(device.clone(), superblock.block_size, runs).map(Some)
}

impl Volume {
    fn count_mount(&mut self) -> Result<(), FsError> {
        let now = self.now().seconds as u32;
        self.transact(|volume| {
            let bytes = volume.superblock_mut()?;
            put_le32(bytes, superblock::MOUNT_TIME, now);
            let count = le16(bytes, superblock::MOUNT_COUNT).saturating_add(1);
            put_le16(bytes, superblock::MOUNT_COUNT, count);
            Ok(())
        })
    }

    /// Makes everything so far durable.
    pub(super) fn sync(&mut self) -> Result<(), FsError> {
        if let Some(reason) = self.store.failure() {
            return Err(FsError::ReadOnly(reason));
        }
        let now = self.now();
        self.store.commit(now)
    }

    /// Makes all data durable that was written so far, with what is needed to find it.
    pub(super) fn sync_data(&mut self) -> Result<(), FsError> {
        if let Some(reason) = self.store.failure() {
            return Err(FsError::ReadOnly(reason));
        }
        let now = self.now();
        self.store.commit_data(now)
    }

    /// Makes everything durable, and says on the medium that it is.
    pub(super) fn unmount(&mut self) -> Result<(), FsError> {
        if self.read_only.is_some() {
            self.sync()?;
            self.read_only = Some(ReadOnlyReason::Unmounted);
            return Ok(());
        }
        // Whoever had files open has no more use for them.
        self.open.clear();
        let now = self.now();
        if self.check_writable().is_ok()
            && let Err(error) = self.process_orphans()
        {
            // They stay on the list, for the next attempt or the next mount; what else was done is not to wait for that.
            self.store.commit(now)?;
            return Err(error);
        }
        if self.store.is_dirty() {
            self.transact(|volume| {
                put_le32(
                    volume.superblock_mut()?,
                    superblock::WRITE_TIME,
                    now.seconds as u32,
                );
                Ok(())
            })?;
        }
        self.store.close(now)?;
        self.read_only = Some(ReadOnlyReason::Unmounted);
        let device = self.store.device().clone();
        if self.superblock.features.has_compat(COMPAT_HAS_JOURNAL) {
            // Only now: the log is empty on the medium, and every block in its place.
            return set_recovery_flag(&*device, &self.superblock, false);
        }
        change_superblock(&*device, |bytes| set_valid(bytes, true))
    }
}

/// Says on the medium whether the log must be replayed before anything is read.
fn set_recovery_flag(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    is_set: bool,
) -> Result<(), FsError> {
    debug_assert!(superblock.features.has_compat(COMPAT_HAS_JOURNAL));
    change_superblock(device, |bytes| {
        let features = le32(bytes, superblock::FEATURE_INCOMPAT);
        let changed = if is_set {
            features | INCOMPAT_RECOVER
        } else {
            features & !INCOMPAT_RECOVER
        };
        put_le32(bytes, superblock::FEATURE_INCOMPAT, changed);
    })
}

/// Says, without a journal, whether the file system was left in order.
fn set_valid(bytes: &mut [u8], is_valid: bool) {
    const VALID: u16 = 1;
    let state = le16(bytes, superblock::STATE);
    put_le16(
        bytes,
        superblock::STATE,
        if is_valid {
            state | VALID
        } else {
            state & !VALID
        },
    );
}

/// Changes the superblock on the medium at once, past the journal, and makes it durable.
fn change_superblock(
    device: &dyn BlockDevice,
    change: impl FnOnce(&mut [u8]),
) -> Result<(), FsError> {
    let (mut bytes, at) = superblock_bytes(device, superblock::OFFSET)?;
    let primary = &mut bytes[at..at + superblock::SIZE];
    change(primary);
    superblock::seal(primary);
    Ok(blocking::write(
        device,
        superblock::OFFSET - at as u64,
        bytes,
        Durability::Durable,
    )?)
}
