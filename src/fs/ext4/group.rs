//! Group descriptors: where a group keeps its bitmaps and inodes, and how much is free.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Block Group Descriptors".

use super::bytes::{halves16, halves32, le16, le32, put_le16};
use super::checksum::{crc16, crc32c};
use super::features::RO_COMPAT_GDT_CSUM;
use super::superblock::Superblock;
use crate::fs::checksum_agrees;
use crate::fs::error::{FsError, Structure};

/// The inode bitmap was never written, and is all free.
pub(super) const INODE_UNINIT: u16 = 1;
/// The block bitmap was never written, and is all free but for the group's own metadata.
pub(super) const BLOCK_UNINIT: u16 = 2;

const CHECKSUM: usize = 0x1e;

/// One group's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) used_directories: u32,
    pub(super) unused_inodes: u32,
    pub(super) block_bitmap_checksum: u32,
    pub(super) inode_bitmap_checksum: u32,
    pub(super) flags: u16,
}

impl Descriptor {
    /// Reads the descriptor of `group` and checks that what it points to exists.
    pub(super) fn decode(
        bytes: &[u8],
        group: u32,
        superblock: &Superblock,
    ) -> Result<Self, FsError> {
        if has_checksum(superblock) {
            let checksum = checksum(bytes, group, superblock);
            if !checksum_agrees(le16(bytes, CHECKSUM), checksum) {
                let structure = Structure::GroupDescriptorChecksum;
                return Err(FsError::corrupt(structure, group.into(), checksum.into()));
            }
        }
        let is_long = bytes.len() >= 64;
        let high32 = |at| if is_long { le32(bytes, at) } else { 0 };
        let high16 = |at| if is_long { le16(bytes, at) } else { 0 };
        let descriptor = Self {
            block_bitmap: halves32(le32(bytes, 0x00), high32(0x20)),
            inode_bitmap: halves32(le32(bytes, 0x04), high32(0x24)),
            inode_table: halves32(le32(bytes, 0x08), high32(0x28)),
            free_blocks: halves16(le16(bytes, 0x0c), high16(0x2c)),
            free_inodes: halves16(le16(bytes, 0x0e), high16(0x2e)),
            used_directories: halves16(le16(bytes, 0x10), high16(0x30)),
            flags: if has_checksum(superblock) {
                le16(bytes, 0x12)
            } else {
                0
            },
            block_bitmap_checksum: halves16(le16(bytes, 0x18), high16(0x38)),
            inode_bitmap_checksum: halves16(le16(bytes, 0x1a), high16(0x3a)),
            unused_inodes: halves16(le16(bytes, 0x1c), high16(0x32)),
        };
        let table_len = superblock
            .inodes_per_group
            .div_ceil(superblock.inodes_per_block());
        let places = [
            (descriptor.block_bitmap, 1),
            (descriptor.inode_bitmap, 1),
            (descriptor.inode_table, table_len.into()),
        ];
        for (start, len) in places {
            if !superblock.contains(start, len) {
                return Err(FsError::corrupt(
                    Structure::GroupDescriptor,
                    group.into(),
                    start,
                ));
            }
        }
        if descriptor.unused_inodes > superblock.inodes_per_group {
            let value = descriptor.unused_inodes.into();
            return Err(FsError::corrupt(
                Structure::GroupDescriptor,
                group.into(),
                value,
            ));
        }
        Ok(descriptor)
    }

    /// Writes what can change: counts, flags and checksums.
    pub(super) fn encode(&self, bytes: &mut [u8], group: u32, superblock: &Superblock) {
        let is_long = bytes.len() >= 64;
        let mut put = |low, high, value: u32| {
            put_le16(bytes, low, value as u16);
            if is_long {
                put_le16(bytes, high, (value >> 16) as u16);
            }
        };
        put(0x0c, 0x2c, self.free_blocks);
        put(0x0e, 0x2e, self.free_inodes);
        put(0x10, 0x30, self.used_directories);
        if superblock.has_checksums() {
            put(0x18, 0x38, self.block_bitmap_checksum);
            put(0x1a, 0x3a, self.inode_bitmap_checksum);
        }
        if has_checksum(superblock) {
            put(0x1c, 0x32, self.unused_inodes);
            put_le16(bytes, 0x12, self.flags);
            let checksum = checksum(bytes, group, superblock);
            put_le16(bytes, CHECKSUM, checksum);
        }
    }
}

/// Whether `stored` is the checksum of `bitmap`, of which a short descriptor keeps only half.
pub(super) fn bitmap_checksum_matches(stored: u32, bitmap: &[u8], superblock: &Superblock) -> bool {
    let checksum = bitmap_checksum(bitmap, superblock);
    let mask = if superblock.descriptor_size >= 64 {
        !0
    } else {
        0xffff
    };
    !superblock.has_checksums() || checksum_agrees(stored & mask, checksum & mask)
}

/// The checksum of a bitmap, given without its padding.
pub(super) fn bitmap_checksum(bitmap: &[u8], superblock: &Superblock) -> u32 {
    crc32c(superblock.checksum_seed, bitmap)
}

/// Whether descriptors have checksums, and with them flags and the count of unused inodes.
pub(super) fn has_checksum(superblock: &Superblock) -> bool {
    superblock.has_checksums() || superblock.features.has_ro_compat(RO_COMPAT_GDT_CSUM)
}

fn checksum(bytes: &[u8], group: u32, superblock: &Superblock) -> u16 {
    let (head, rest) = (&bytes[..CHECKSUM], &bytes[CHECKSUM + 2..]);
    if superblock.has_checksums() {
        let crc = crc32c(superblock.checksum_seed, &group.to_le_bytes());
        let crc = crc32c(crc32c(crc, head), &[0, 0]);
        return crc32c(crc, rest) as u16;
    }
    crc16(&[&superblock.uuid, &group.to_le_bytes(), head, rest])
}
