//! Inodes, kept as the bytes they are on disk, so that what we do not know stays as it was.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Index Nodes".

use super::bytes::{halves16, halves32, le16, le32, put_le16, put_le32};
use super::checksum::crc32c;
use super::superblock::Superblock;
use crate::fs::checksum_agrees;
use crate::fs::error::{FsError, Structure};
use crate::fs::{FileKind, Timestamp};
use alloc::vec::Vec;

/// The root directory.
pub(super) const ROOT: u32 = 2;

/// The block map is an extent tree.
pub(super) const EXTENTS: u32 = 0x8_0000;
/// `i_blocks` counts file-system blocks.
const HUGE_FILE: u32 = 0x4_0000;
/// The directory has a hash tree.
pub(super) const INDEX: u32 = 0x1000;
/// Data lies in the inode itself.
pub(super) const INLINE_DATA: u32 = 0x1000_0000;

/// Where the block map lies, and how long it is.
pub(super) const MAP: core::ops::Range<usize> = 0x28..0x64;

const CHECKSUM_LOW: usize = 0x7c;
const CHECKSUM_HIGH: usize = 0x82;
const CHANGE: (usize, usize) = (0x0c, 0x84);
const MODIFY: (usize, usize) = (0x10, 0x88);
const ACCESS: (usize, usize) = (0x08, 0x8c);
const BIRTH: (usize, usize) = (0x90, 0x94);

/// Which of an inode's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Change,
    Modify,
    Access,
    Birth,
}

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) number: u32,
    bytes: Vec<u8>,
}

impl Inode {
    /// Takes the bytes of inode `number`, checked.
    pub(super) fn decode(
        bytes: &[u8],
        number: u32,
        superblock: &Superblock,
    ) -> Result<Self, FsError> {
        let inode = Self {
            number,
            bytes: bytes.to_vec(),
        };
        let extra = inode.extra_size();
        if 128 + extra > bytes.len() || !extra.is_multiple_of(4) {
            return Err(FsError::corrupt(
                Structure::InodeExtraSize,
                number.into(),
                extra as u64,
            ));
        }
        if superblock.has_checksums() {
            let (checksum, stored) = (inode.checksum(superblock), inode.stored_checksum());
            let mask = if inode.has_high_checksum() {
                !0
            } else {
                0xffff
            };
            if !checksum_agrees(stored & mask, checksum & mask) {
                return Err(FsError::corrupt(
                    Structure::InodeChecksum,
                    number.into(),
                    stored.into(),
                ));
            }
        }
        Ok(inode)
    }

    /// A new inode, all zero but for its generation and the size of its extra part.
    pub(super) fn new(number: u32, generation: u32, superblock: &Superblock) -> Self {
        let mut bytes = alloc::vec![0; superblock.inode_size];
        if bytes.len() > 128 {
            let room = bytes.len() - 128;
            let wanted = usize::from(superblock.wanted_extra_size);
            let extra = if (32..=room).contains(&wanted) && wanted.is_multiple_of(4) {
                wanted
            } else {
                32
            };
            put_le16(&mut bytes, 0x80, extra as u16);
        }
        put_le32(&mut bytes, 0x64, generation);
        Self { number, bytes }
    }

    /// The bytes with a right checksum, as they go to the disk.
    pub(super) fn encode(&mut self, superblock: &Superblock) -> &[u8] {
        if superblock.has_checksums() {
            let checksum = self.checksum(superblock);
            put_le16(&mut self.bytes, CHECKSUM_LOW, checksum as u16);
            if self.has_high_checksum() {
                put_le16(&mut self.bytes, CHECKSUM_HIGH, (checksum >> 16) as u16);
            }
        }
        &self.bytes
    }

    /// Where the checksums of this file's own metadata begin.
    pub(super) fn checksum_seed(&self, superblock: &Superblock) -> u32 {
        let seed = crc32c(superblock.checksum_seed, &self.number.to_le_bytes());
        crc32c(seed, &self.bytes[0x64..0x68])
    }

    fn checksum(&self, superblock: &Superblock) -> u32 {
        let seed = self.checksum_seed(superblock);
        let crc = crc32c(seed, &self.bytes[..CHECKSUM_LOW]);
        let crc = crc32c(crc, &[0, 0]);
        if !self.has_high_checksum() {
            return crc32c(crc, &self.bytes[CHECKSUM_LOW + 2..]);
        }
        let crc = crc32c(crc, &self.bytes[CHECKSUM_LOW + 2..CHECKSUM_HIGH]);
        crc32c(crc32c(crc, &[0, 0]), &self.bytes[CHECKSUM_HIGH + 2..])
    }

    fn stored_checksum(&self) -> u32 {
        let high = if self.has_high_checksum() {
            le16(&self.bytes, CHECKSUM_HIGH)
        } else {
            0
        };
        halves16(le16(&self.bytes, CHECKSUM_LOW), high)
    }

    fn has_high_checksum(&self) -> bool {
        self.extra_size() >= 4
    }

    fn extra_size(&self) -> usize {
        if self.bytes.len() > 128 {
            le16(&self.bytes, 0x80).into()
        } else {
            0
        }
    }

    pub(super) fn mode(&self) -> u16 {
        le16(&self.bytes, 0x00)
    }

    pub(super) fn set_mode(&mut self, mode: u16) {
        put_le16(&mut self.bytes, 0x00, mode);
    }

    /// What the file is, by its mode.
    pub(super) fn kind(&self) -> Result<FileKind, FsError> {
        let mode = self.mode();
        Ok(match mode >> 12 {
            0x1 => FileKind::Fifo,
            0x2 => FileKind::CharacterDevice,
            0x4 => FileKind::Directory,
            0x6 => FileKind::BlockDevice,
            0x8 => FileKind::File,
            0xa => FileKind::Symlink,
            0xc => FileKind::Socket,
            _ => {
                return Err(FsError::corrupt(
                    Structure::InodeMode,
                    self.number.into(),
                    mode.into(),
                ));
            }
        })
    }

    pub(super) fn owner(&self) -> (u32, u32) {
        let user = halves16(le16(&self.bytes, 0x02), le16(&self.bytes, 0x78));
        (
            user,
            halves16(le16(&self.bytes, 0x18), le16(&self.bytes, 0x7a)),
        )
    }

    pub(super) fn size(&self) -> u64 {
        halves32(le32(&self.bytes, 0x04), le32(&self.bytes, 0x6c))
    }

    pub(super) fn set_size(&mut self, size: u64) {
        put_le32(&mut self.bytes, 0x04, size as u32);
        put_le32(&mut self.bytes, 0x6c, (size >> 32) as u32);
    }

    pub(super) fn links(&self) -> u16 {
        le16(&self.bytes, 0x1a)
    }

    pub(super) fn set_links(&mut self, links: u16) {
        put_le16(&mut self.bytes, 0x1a, links);
    }

    pub(super) fn flags(&self) -> u32 {
        le32(&self.bytes, 0x20)
    }

    pub(super) fn has_flag(&self, flag: u32) -> bool {
        self.flags() & flag != 0
    }

    pub(super) fn set_flags(&mut self, flags: u32) {
        put_le32(&mut self.bytes, 0x20, flags);
    }

    /// When the inode was freed; while it is an orphan, the number of the next one.
    pub(super) fn deletion_time(&self) -> u32 {
        le32(&self.bytes, 0x14)
    }

    pub(super) fn set_deletion_time(&mut self, time: u32) {
        put_le32(&mut self.bytes, 0x14, time);
    }

    /// The block with extended attributes, or 0.
    pub(super) fn attribute_block(&self) -> u64 {
        halves32(le32(&self.bytes, 0x68), le16(&self.bytes, 0x76).into())
    }

    pub(super) fn clear_attribute_block(&mut self) {
        put_le32(&mut self.bytes, 0x68, 0);
        put_le16(&mut self.bytes, 0x76, 0);
    }

    /// The root of the block map: an extent node, block pointers, or a short symlink's target.
    pub(super) fn map(&self) -> &[u8] {
        &self.bytes[MAP]
    }

    pub(super) fn map_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[MAP]
    }

    /// How many 512-byte sectors the file takes, metadata included.
    pub(super) fn sectors(&self, superblock: &Superblock) -> u64 {
        let count = halves32(le32(&self.bytes, 0x1c), le16(&self.bytes, 0x74).into());
        if self.has_flag(HUGE_FILE) {
            count.saturating_mul(superblock.block_size as u64 / 512)
        } else {
            count
        }
    }

    /// Sets how many sectors the file takes.
    pub(super) fn set_sectors(&mut self, sectors: u64, superblock: &Superblock) {
        let is_huge = sectors >> 48 != 0;
        let flags = self.flags() & !HUGE_FILE;
        self.set_flags(if is_huge { flags | HUGE_FILE } else { flags });
        let count = if is_huge {
            sectors / (superblock.block_size as u64 / 512)
        } else {
            sectors
        };
        put_le32(&mut self.bytes, 0x1c, count as u32);
        put_le16(&mut self.bytes, 0x74, (count >> 32) as u16);
    }

    /// Whether this is a symlink whose target lies in the inode.
    pub(super) fn is_short_symlink(&self) -> bool {
        self.mode() >> 12 == 0xa && !self.has_flag(EXTENTS) && self.size() < MAP.len() as u64
    }

    pub(super) fn time(&self, time: Time) -> Timestamp {
        let (seconds_at, extra_at) = time_places(time);
        let seconds = if self.has_field(seconds_at) {
            le32(&self.bytes, seconds_at)
        } else {
            0
        };
        let extra = if self.has_field(extra_at) {
            le32(&self.bytes, extra_at)
        } else {
            0
        };
        Timestamp {
            // The seconds are signed; two extra bits count periods of 2^32 from there.
            seconds: i64::from(seconds as i32) + (i64::from(extra & 3) << 32),
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }

    pub(super) fn set_time(&mut self, time: Time, to: Timestamp) {
        let (seconds_at, extra_at) = time_places(time);
        if self.has_field(seconds_at) {
            put_le32(&mut self.bytes, seconds_at, to.seconds as u32);
        }
        if self.has_field(extra_at) {
            let period = (to.seconds - i64::from(to.seconds as i32)) >> 32;
            put_le32(
                &mut self.bytes,
                extra_at,
                to.nanoseconds << 2 | period as u32 & 3,
            );
        }
    }

    fn has_field(&self, at: usize) -> bool {
        at + 4 <= 128 || at + 4 <= 128 + self.extra_size()
    }
}

const fn time_places(time: Time) -> (usize, usize) {
    match time {
        Time::Change => CHANGE,
        Time::Modify => MODIFY,
        Time::Access => ACCESS,
        Time::Birth => BIRTH,
    }
}

/// The mode bits and the directory entry's type byte of a kind of file.
pub(super) const fn kind_codes(kind: FileKind) -> (u16, u8) {
    match kind {
        FileKind::File => (0x8000, 1),
        FileKind::Directory => (0x4000, 2),
        FileKind::CharacterDevice => (0x2000, 3),
        FileKind::BlockDevice => (0x6000, 4),
        FileKind::Fifo => (0x1000, 5),
        FileKind::Socket => (0xc000, 6),
        FileKind::Symlink => (0xa000, 7),
    }
}
