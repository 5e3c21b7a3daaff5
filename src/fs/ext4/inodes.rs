//! Allocating and freeing inodes.

use super::bitmap;
use super::bytes::{le32, put_le32};
use super::checksum::crc32c;
use super::group::{self, Descriptor, INODE_UNINIT};
use super::inode::{Inode, Time};
use super::store::Block;
use super::superblock::FREE_INODES;
use super::volume::Volume;
use crate::fs::FileKind;
use crate::fs::error::{FsError, Structure};
use alloc::sync::Arc;
use alloc::vec::Vec;

impl Volume {
    /// A new inode, near that of its directory; a directory where there is much space. Not on the medium yet.
    pub(super) fn allocate_inode(&mut self, parent: u32, kind: FileKind) -> Result<Inode, FsError> {
        let is_directory = kind == FileKind::Directory;
        let (near, _) = self.superblock.group_of_inode(parent);
        let first = if is_directory && parent == super::inode::ROOT {
            self.emptiest_group()?
        } else {
            near
        };
        for group in (first..self.superblock.groups).chain(0..first) {
            let mut descriptor = self.descriptor(group)?;
            if descriptor.free_inodes == 0 {
                continue;
            }
            let bits = self.inode_bitmap(group, &descriptor)?;
            // Always the first: those behind the unused part of the table may never have been written.
            let reserved = if group == 0 {
                self.superblock.first_inode - 1
            } else {
                0
            };
            let index = bitmap::next(&bits, reserved, self.superblock.inodes_per_group, false);
            if index == self.superblock.inodes_per_group {
                continue;
            }
            self.initialize_blocks(group, &mut descriptor)?;
            self.set_inode(group, index, is_directory, true, descriptor)?;
            let number = group * self.superblock.inodes_per_group + index + 1;
            let now = self.now();
            let seed = crc32c(now.nanoseconds, &now.seconds.to_le_bytes());
            let generation = crc32c(seed, &number.to_le_bytes());
            let mut inode = Inode::new(number, generation, &self.superblock);
            for time in [Time::Access, Time::Change, Time::Modify, Time::Birth] {
                inode.set_time(time, now);
            }
            return Ok(inode);
        }
        Err(FsError::NoInodes)
    }

    /// Frees an inode that nothing refers to and that has no blocks any more.
    pub(super) fn free_inode(&mut self, mut inode: Inode) -> Result<(), FsError> {
        let is_directory = inode.kind()? == FileKind::Directory;
        let (group, index) = self.superblock.group_of_inode(inode.number);
        let descriptor = self.descriptor(group)?;
        self.inode_bitmap(group, &descriptor)?;
        self.set_inode(group, index, is_directory, false, descriptor)?;
        inode.set_deletion_time(self.now().seconds as u32);
        inode.set_size(0);
        self.put_inode(&mut inode)
    }

    fn emptiest_group(&mut self) -> Result<u32, FsError> {
        let mut best = (0, 0);
        for group in 0..self.superblock.groups {
            let descriptor = self.descriptor(group)?;
            if descriptor.free_inodes > 0 && descriptor.free_blocks > best.1 {
                best = (group, descriptor.free_blocks);
            }
        }
        Ok(best.0)
    }

    fn inode_bitmap(&mut self, group: u32, descriptor: &Descriptor) -> Result<Block, FsError> {
        if descriptor.flags & INODE_UNINIT != 0 {
            return Ok(Arc::new(self.initial_inode_bitmap()));
        }
        let superblock = &self.superblock;
        let used = superblock.inodes_per_group as usize / 8;
        self.store.read_checked(descriptor.inode_bitmap, |bytes| {
            if group::bitmap_checksum_matches(
                descriptor.inode_bitmap_checksum,
                &bytes[..used],
                superblock,
            ) {
                return Ok(());
            }
            let at = descriptor.inode_bitmap;
            Err(FsError::corrupt(
                Structure::InodeBitmapChecksum,
                at,
                group.into(),
            ))
        })
    }

    /// The bitmap of a group in which no inode was ever used: only the padding is set.
    fn initial_inode_bitmap(&self) -> Vec<u8> {
        let (count, size) = (self.superblock.inodes_per_group, self.superblock.block_size);
        let mut bits = alloc::vec![0; size];
        bitmap::assign(&mut bits, count, 8 * size as u32 - count, true);
        bits
    }

    /// Marks an inode used or free, in the bitmap and in all counts.
    fn set_inode(
        &mut self,
        group: u32,
        index: u32,
        is_directory: bool,
        is_used: bool,
        mut descriptor: Descriptor,
    ) -> Result<(), FsError> {
        let place = descriptor.inode_bitmap;
        if descriptor.flags & INODE_UNINIT != 0 {
            let bits = self.initial_inode_bitmap();
            self.store.fresh(place).copy_from_slice(&bits);
            descriptor.flags &= !INODE_UNINIT;
        }
        let bits = self.store.modify(place)?;
        if bitmap::assign(bits, index, 1, is_used) != 1 {
            return Err(FsError::corrupt(Structure::Bitmap, place, index.into()));
        }
        let used = self.superblock.inodes_per_group as usize / 8;
        descriptor.inode_bitmap_checksum = group::bitmap_checksum(&bits[..used], &self.superblock);
        let wrong = FsError::corrupt(
            Structure::GroupDescriptor,
            group.into(),
            descriptor.free_inodes.into(),
        );
        let change = |count: u32, more: bool| {
            if more {
                count.checked_add(1)
            } else {
                count.checked_sub(1)
            }
        };
        descriptor.free_inodes = change(descriptor.free_inodes, !is_used).ok_or(wrong)?;
        if is_directory {
            descriptor.used_directories =
                change(descriptor.used_directories, is_used).ok_or(wrong)?;
        }
        if is_used && group::has_checksum(&self.superblock) {
            let unused = self.superblock.inodes_per_group - (index + 1);
            descriptor.unused_inodes = descriptor.unused_inodes.min(unused);
        }
        self.put_descriptor(group, &descriptor)?;
        let bytes = self.superblock_mut()?;
        let free = change(le32(bytes, FREE_INODES), !is_used).ok_or(wrong)?;
        put_le32(bytes, FREE_INODES, free);
        Ok(())
    }
}
