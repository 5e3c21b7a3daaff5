//! The superblock: 1024 bytes at offset 1024, and what follows from them.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Super Block".

use super::bytes::{halves32, le16, le32, put_le32};
use super::checksum::{START, compensate, crc32c};
use super::features::{
    COMPAT_SPARSE_SUPER2, Features, INCOMPAT_64BIT, INCOMPAT_CSUM_SEED, INCOMPAT_FLEX_BG,
    INCOMPAT_META_BG, RO_COMPAT_BIGALLOC, RO_COMPAT_METADATA_CSUM, RO_COMPAT_SPARSE_SUPER,
};
use crate::fs::checksum_agrees;
use crate::fs::error::{FeatureSet, FsError, Structure, Unsupported};

/// Bytes in a superblock.
pub(super) const SIZE: usize = 1024;
/// Where the primary one lies on the device, in bytes.
pub(super) const OFFSET: u64 = 1024;

pub(super) const FREE_BLOCKS_LOW: usize = 0x0c;
pub(super) const FREE_INODES: usize = 0x10;
pub(super) const MOUNT_TIME: usize = 0x2c;
pub(super) const WRITE_TIME: usize = 0x30;
pub(super) const MOUNT_COUNT: usize = 0x34;
pub(super) const STATE: usize = 0x3a;
pub(super) const FEATURE_INCOMPAT: usize = 0x60;
pub(super) const FEATURE_RO_COMPAT: usize = 0x64;
pub(super) const LAST_ORPHAN: usize = 0xe8;
pub(super) const FREE_BLOCKS_HIGH: usize = 0x158;
const CHECKSUM: usize = 0x3fc;
/// The head of a list of snapshots that no kernel ever kept: a field nobody reads while `s_snapshot_inum` is 0.
const SPARE: usize = 0x190;

/// The geometry of a file system, checked. Nothing in it changes while it is mounted.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    pub(super) block_size: usize,
    pub(super) blocks_count: u64,
    pub(super) inodes_count: u32,
    pub(super) first_data_block: u32,
    pub(super) blocks_per_group: u32,
    pub(super) inodes_per_group: u32,
    pub(super) groups: u32,
    pub(super) inode_size: usize,
    pub(super) wanted_extra_size: u16,
    pub(super) descriptor_size: usize,
    pub(super) first_inode: u32,
    pub(super) features: Features,
    pub(super) uuid: [u8; 16],
    pub(super) journal_inode: u32,
    pub(super) journal_device: u32,
    pub(super) hash_seed: [u32; 4],
    pub(super) default_hash: u8,
    pub(super) is_hash_unsigned: bool,
    pub(super) checksum_seed: u32,
    pub(super) backup_groups: [u32; 2],
    pub(super) orphan_file_inode: u32,
    /// When it was last written, in seconds since 1970.
    pub(super) write_time: u32,
    groups_per_flexible: u32,
    first_meta_group: u32,
    reserved_descriptor_blocks: u32,
}

impl Superblock {
    /// Reads a superblock that lies in a file system of at most `capacity` bytes.
    pub(super) fn decode(bytes: &[u8], capacity: u64) -> Result<Self, FsError> {
        let magic = le16(bytes, 0x38);
        if magic != 0xef53 {
            return Err(FsError::corrupt(
                Structure::SuperblockMagic,
                0,
                magic.into(),
            ));
        }
        let is_dynamic = le32(bytes, 0x4c) >= 1;
        let features = Features {
            compat: if is_dynamic { le32(bytes, 0x5c) } else { 0 },
            incompat: if is_dynamic {
                le32(bytes, FEATURE_INCOMPAT)
            } else {
                0
            },
            ro_compat: if is_dynamic {
                le32(bytes, FEATURE_RO_COMPAT)
            } else {
                0
            },
        };
        if let Some(unsupported) = features.unmountable() {
            return Err(FsError::Unsupported(unsupported));
        }
        if features.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
            let checksum = crc32c(START, &bytes[..CHECKSUM]);
            if !checksum_agrees(le32(bytes, CHECKSUM), checksum) {
                return Err(FsError::corrupt(
                    Structure::SuperblockChecksum,
                    0,
                    checksum.into(),
                ));
            }
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[0x68..0x78]);
        let is_64bit = features.has_incompat(INCOMPAT_64BIT);
        let high = |at| if is_64bit { le32(bytes, at) } else { 0 };
        let superblock = Self {
            block_size: block_size(le32(bytes, 0x18))?,
            blocks_count: halves32(le32(bytes, 0x04), high(0x150)),
            inodes_count: le32(bytes, 0x00),
            first_data_block: le32(bytes, 0x14),
            blocks_per_group: le32(bytes, 0x20),
            inodes_per_group: le32(bytes, 0x28),
            groups: 0,
            inode_size: if is_dynamic {
                le16(bytes, 0x58).into()
            } else {
                128
            },
            wanted_extra_size: le16(bytes, 0x15e),
            descriptor_size: if is_64bit {
                le16(bytes, 0xfe).into()
            } else {
                32
            },
            first_inode: if is_dynamic { le32(bytes, 0x54) } else { 11 },
            features,
            uuid,
            journal_inode: le32(bytes, 0xe0),
            journal_device: le32(bytes, 0xe4),
            hash_seed: [0xec, 0xf0, 0xf4, 0xf8].map(|at| le32(bytes, at)),
            default_hash: bytes[0xfc],
            is_hash_unsigned: le32(bytes, 0x160) & 2 != 0,
            checksum_seed: if features.has_incompat(INCOMPAT_CSUM_SEED) {
                le32(bytes, 0x270)
            } else {
                crc32c(START, &uuid)
            },
            backup_groups: [le32(bytes, 0x24c), le32(bytes, 0x250)],
            orphan_file_inode: le32(bytes, 0x280),
            write_time: le32(bytes, WRITE_TIME),
            groups_per_flexible: 1u32.checked_shl(bytes[0x174].into()).unwrap_or(u32::MAX),
            first_meta_group: le32(bytes, 0x104),
            reserved_descriptor_blocks: le16(bytes, 0xce).into(),
        };
        let clusters = (le32(bytes, 0x1c), le32(bytes, 0x18));
        if clusters.0 != clusters.1 && !features.has_ro_compat(RO_COMPAT_BIGALLOC) {
            let wrong = Structure::SuperblockGeometry;
            return Err(FsError::corrupt(wrong, 0x1c, clusters.0.into()));
        }
        superblock.checked(capacity)
    }

    /// Checks every number against the others, and counts the groups. An error's `at` is the field's offset.
    fn checked(mut self, capacity: u64) -> Result<Self, FsError> {
        let wrong =
            |at, value: u64| Err(FsError::corrupt(Structure::SuperblockGeometry, at, value));
        let bits = 8 * self.block_size as u32;
        let is_cluster = self.features.has_ro_compat(RO_COMPAT_BIGALLOC);
        if self.blocks_count > capacity / self.block_size as u64 {
            return wrong(0x04, self.blocks_count);
        }
        if self.first_data_block != u32::from(self.block_size == 1024) {
            return wrong(0x14, self.first_data_block.into());
        }
        let groups = self.blocks_per_group;
        if groups == 0 || !groups.is_multiple_of(8) || (groups > bits && !is_cluster) {
            return wrong(0x20, groups.into());
        }
        if !self.inode_size.is_power_of_two() || !(128..=self.block_size).contains(&self.inode_size)
        {
            return wrong(0x58, self.inode_size as u64);
        }
        let inodes = self.inodes_per_group;
        if inodes == 0
            || inodes > bits
            || !inodes.is_multiple_of(8)
            || inodes < self.inodes_per_block()
        {
            return wrong(0x28, inodes.into());
        }
        let size = self.descriptor_size;
        if !size.is_power_of_two() || !(32..=1024).contains(&size) || (size < 64 && self.is_64bit())
        {
            return wrong(0xfe, size as u64);
        }
        let Some(data) = self.blocks_count.checked_sub(self.first_data_block.into()) else {
            return wrong(0x04, self.blocks_count);
        };
        let count = data.div_ceil(self.blocks_per_group.into());
        self.groups = match u32::try_from(count) {
            Ok(count) if count > 0 => count,
            _ => return wrong(0x04, self.blocks_count),
        };
        if u64::from(self.groups) * u64::from(inodes) != u64::from(self.inodes_count) {
            return wrong(0x00, self.inodes_count.into());
        }
        if self.first_inode < 11 || self.first_inode > self.inodes_count {
            return wrong(0x54, self.first_inode.into());
        }
        let table =
            u64::from(self.descriptor_blocks()) + u64::from(self.reserved_descriptor_blocks);
        if !self.has_meta_groups() && table + 1 >= u64::from(self.blocks_per_group).min(data) {
            return wrong(0xce, self.reserved_descriptor_blocks.into());
        }
        Ok(self)
    }

    pub(super) fn is_64bit(&self) -> bool {
        self.features.has_incompat(INCOMPAT_64BIT)
    }

    pub(super) fn has_checksums(&self) -> bool {
        self.features.has_ro_compat(RO_COMPAT_METADATA_CSUM)
    }

    fn has_meta_groups(&self) -> bool {
        self.features.has_incompat(INCOMPAT_META_BG)
    }

    /// The block that holds the primary superblock, and where in it.
    pub(super) fn place(&self) -> (u64, usize) {
        (
            OFFSET / self.block_size as u64,
            (OFFSET % self.block_size as u64) as usize,
        )
    }

    pub(super) fn inodes_per_block(&self) -> u32 {
        (self.block_size / self.inode_size) as u32
    }

    pub(super) fn descriptors_per_block(&self) -> u32 {
        (self.block_size / self.descriptor_size) as u32
    }

    fn descriptor_blocks(&self) -> u32 {
        self.groups.div_ceil(self.descriptors_per_block())
    }

    pub(super) fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// How many blocks `group` has: the last may be short.
    pub(super) fn group_len(&self, group: u32) -> u32 {
        let rest = self.blocks_count - self.group_start(group);
        rest.min(self.blocks_per_group.into()) as u32
    }

    /// The group `block` lies in, and its number there.
    pub(super) fn group_of(&self, block: u64) -> (u32, u32) {
        let index = block - u64::from(self.first_data_block);
        let size = u64::from(self.blocks_per_group);
        ((index / size) as u32, (index % size) as u32)
    }

    /// The groups that keep their bitmaps and inodes together with those of `group`.
    pub(super) fn flexible_group(&self, group: u32) -> core::ops::Range<u32> {
        if !self.features.has_incompat(INCOMPAT_FLEX_BG) {
            return group..group + 1;
        }
        let first = group - group % self.groups_per_flexible;
        first
            ..first
                .saturating_add(self.groups_per_flexible)
                .min(self.groups)
    }

    /// The group an inode lies in, and its number there.
    pub(super) fn group_of_inode(&self, number: u32) -> (u32, u32) {
        let index = number - 1;
        (index / self.inodes_per_group, index % self.inodes_per_group)
    }

    /// Whether these blocks exist.
    pub(super) fn contains(&self, start: u64, len: u64) -> bool {
        start >= u64::from(self.first_data_block)
            && start
                .checked_add(len)
                .is_some_and(|end| end <= self.blocks_count)
    }

    /// The block of the descriptor table with the descriptor of `group`, and the byte it begins at.
    pub(super) fn descriptor_place(&self, group: u32) -> (u64, usize) {
        let per_block = self.descriptors_per_block();
        let (index, slot) = (group / per_block, (group % per_block) as usize);
        let block = if self.has_meta_groups() && index >= self.first_meta_group {
            let first = index * per_block;
            self.group_start(first) + u64::from(self.has_backup(first))
        } else {
            u64::from(self.first_data_block) + 1 + u64::from(index)
        };
        (block, slot * self.descriptor_size)
    }

    /// Whether `group` begins with a copy of the superblock.
    pub(super) fn has_backup(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.has_compat(COMPAT_SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        let is_power_of = |base: u32| {
            let mut power = u64::from(base);
            while power < u64::from(group) {
                power *= u64::from(base);
            }
            power == u64::from(group)
        };
        !self.features.has_ro_compat(RO_COMPAT_SPARSE_SUPER)
            || group == 1
            || [3, 5, 7].into_iter().any(is_power_of)
    }

    /// How many blocks at the start of `group` hold the superblock and descriptors, or are reserved for them.
    pub(super) fn header_blocks(&self, group: u32) -> u32 {
        let has_backup = self.has_backup(group);
        let per_block = self.descriptors_per_block();
        let meta_group = group / per_block;
        if self.has_meta_groups() && meta_group >= self.first_meta_group {
            // A meta group keeps its one block of descriptors in its first, second and last group.
            let position = group % per_block;
            let has_descriptors = position <= 1 || position == per_block - 1;
            return u32::from(has_backup) + u32::from(has_descriptors);
        }
        let old = if self.has_meta_groups() {
            self.first_meta_group.min(self.descriptor_blocks())
        } else {
            self.descriptor_blocks()
        };
        if has_backup {
            1 + old + self.reserved_descriptor_blocks
        } else {
            0
        }
    }
}

/// Makes the checksum of a changed superblock right, by making a spare field fit: the checksum itself stays.
///
/// All that we change lies in the first 512 bytes, the checksum in the last. If it changed with them, a write torn
/// between the two sectors would leave a superblock that nobody accepts; this way each half fits either other half.
pub(super) fn seal(bytes: &mut [u8]) {
    if le32(bytes, FEATURE_RO_COMPAT) & RO_COMPAT_METADATA_CSUM == 0 {
        return;
    }
    let wanted = le32(bytes, CHECKSUM);
    let field = compensate(&bytes[..SPARE], &bytes[SPARE + 4..CHECKSUM], wanted);
    put_le32(bytes, SPARE, u32::from_le_bytes(field));
}

fn block_size(log: u32) -> Result<usize, FsError> {
    match log {
        0..=2 => Ok(1024 << log),
        _ => {
            let bits = 1024u32.checked_shl(log.min(32)).unwrap_or(0);
            Err(FsError::Unsupported(Unsupported {
                set: FeatureSet::BlockSize,
                bits,
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ext4::bytes::put_le16;

    fn plain() -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        put_le32(&mut bytes, 0x00, 128);
        put_le32(&mut bytes, 0x04, 8192);
        put_le32(&mut bytes, 0x14, 1);
        put_le32(&mut bytes, 0x20, 8192);
        put_le32(&mut bytes, 0x28, 128);
        put_le16(&mut bytes, 0x38, 0xef53);
        put_le32(&mut bytes, 0x4c, 1);
        put_le32(&mut bytes, 0x54, 11);
        put_le16(&mut bytes, 0x58, 128);
        bytes
    }

    fn wrong_field(at: usize, value: u32) -> Result<u64, FsError> {
        let mut bytes = plain();
        put_le32(&mut bytes, at, value);
        match Superblock::decode(&bytes, 8192 * 1024) {
            Err(FsError::Corrupt(corruption)) => Ok(corruption.at),
            Err(error) => Err(error),
            Ok(_) => Ok(0xffff),
        }
    }

    #[test]
    fn impossible_numbers_are_refused_by_the_field_they_are_in() {
        assert!(Superblock::decode(&plain(), 8192 * 1024).is_ok());
        assert_eq!(wrong_field(0x04, 8193), Ok(0x04));
        assert_eq!(wrong_field(0x04, 0), Ok(0x04));
        assert_eq!(wrong_field(0x14, 0), Ok(0x14));
        assert_eq!(wrong_field(0x20, 0), Ok(0x20));
        assert_eq!(wrong_field(0x20, 8200), Ok(0x20));
        assert_eq!(wrong_field(0x28, 0), Ok(0x28));
        assert_eq!(wrong_field(0x58, 96), Ok(0x58));
        assert_eq!(wrong_field(0x00, 129), Ok(0x00));
    }

    #[test]
    fn an_unknown_incompatible_feature_is_refused_by_name() {
        let error = FsError::Unsupported(Unsupported {
            set: FeatureSet::Incompatible,
            bits: 0x8000,
        });
        assert_eq!(wrong_field(FEATURE_INCOMPAT, 0x8042), Err(error));
    }

    #[test]
    fn backups_lie_in_groups_of_powers_of_three_five_and_seven() {
        let mut bytes = plain();
        put_le32(&mut bytes, FEATURE_RO_COMPAT, RO_COMPAT_SPARSE_SUPER);
        let superblock = Superblock::decode(&bytes, 8192 * 1024).unwrap();
        let groups = (0..130).filter(|&group| superblock.has_backup(group));
        assert!(groups.eq([0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]));
    }

    #[test]
    fn sealing_leaves_the_second_sector_as_it_was() {
        let mut bytes = plain();
        put_le32(&mut bytes, FEATURE_RO_COMPAT, RO_COMPAT_METADATA_CSUM);
        let checksum = crc32c(START, &bytes[..CHECKSUM]);
        put_le32(&mut bytes, CHECKSUM, checksum);
        let before = bytes;
        put_le32(&mut bytes, FREE_INODES, 77);
        seal(&mut bytes);
        assert_eq!(before[512..], bytes[512..]);
        assert!(Superblock::decode(&bytes, 8192 * 1024).is_ok());
    }
}
