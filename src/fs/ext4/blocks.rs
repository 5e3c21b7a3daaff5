//! Allocating and freeing blocks.
//!
//! A file's next block is best right behind its last: so a run at the goal is taken if it is there, else the first run
//! long enough, from the goal's group on, else the longest there is.

use super::bitmap;
use super::bytes::{halves32, le32, put_le32};
use super::group::{self, BLOCK_UNINIT, Descriptor};
use super::inode::Inode;
use super::store::Block;
use super::superblock::{FREE_BLOCKS_HIGH, FREE_BLOCKS_LOW};
use super::volume::Volume;
use crate::fs::error::{FsError, Structure};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The longest run that is asked for at once.
const MAX_RUN: u32 = 2048;
/// A run at the goal is taken if it is at least this long, or all that is wanted.
const WORTH_KEEPING: u32 = 16;

/// A run of device blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allocated {
    pub(super) start: u64,
    pub(super) len: u32,
}

impl Volume {
    /// Allocates up to `wanted` blocks in one run, near `goal`.
    pub(super) fn allocate(&mut self, goal: u64, wanted: u32) -> Result<Allocated, FsError> {
        if self.bounds_from != self.store.releases() {
            self.bounds_from = self.store.releases();
            self.longest_free.fill(u32::MAX);
        }
        let available = self.statistics()?.available_blocks;
        let wanted = wanted
            .min(MAX_RUN)
            .min(available.try_into().unwrap_or(u32::MAX));
        if wanted == 0 {
            return Err(FsError::NoSpace);
        }
        let goal = if self.superblock.contains(goal, 1) {
            goal
        } else {
            self.superblock.first_data_block.into()
        };
        let (goal_group, goal_index) = self.superblock.group_of(goal);
        let (group, start, len) = match self.run_at_goal(goal_group, goal_index, wanted)? {
            Some(run) => run,
            None => match self.first_fit(goal_group, goal_index, wanted)? {
                Some(run) => run,
                None => self.longest_run(goal_group)?.ok_or(FsError::NoSpace)?,
            },
        };
        let len = len.min(wanted);
        self.set_blocks(group, start, len, true)?;
        Ok(Allocated {
            start: self.superblock.group_start(group) + u64::from(start),
            len,
        })
    }

    /// Allocates one block of metadata for a file, all zeros, near `goal`.
    pub(super) fn allocate_metadata(
        &mut self,
        inode: &mut Inode,
        goal: u64,
    ) -> Result<u64, FsError> {
        let block = self.allocate(goal, 1)?.start;
        self.add_blocks(inode, 1);
        self.store.fresh(block);
        Ok(block)
    }

    /// Frees one block of a file's metadata.
    pub(super) fn free_metadata(&mut self, inode: &mut Inode, block: u64) -> Result<(), FsError> {
        self.free(block, 1)?;
        self.store.forget(block);
        self.remove_blocks(inode, 1);
        Ok(())
    }

    /// Frees blocks; they can be allocated again after the next commit.
    pub(super) fn free(&mut self, start: u64, len: u64) -> Result<(), FsError> {
        if len == 0 || !self.superblock.contains(start, len) {
            return Err(FsError::corrupt(Structure::Bitmap, start, len));
        }
        let mut at = start;
        while at < start + len {
            let (group, index) = self.superblock.group_of(at);
            let rest = u64::from(self.superblock.group_len(group) - index);
            let part = rest.min(start + len - at) as u32;
            self.set_blocks(group, index, part, false)?;
            self.longest_free[group as usize] = u32::MAX;
            at += u64::from(part);
        }
        self.store.freed(start, len);
        Ok(())
    }

    /// Counts `blocks` more as the file's.
    pub(super) fn add_blocks(&self, inode: &mut Inode, blocks: u64) {
        let sectors =
            inode.sectors(&self.superblock) + blocks * (self.superblock.block_size as u64 / 512);
        inode.set_sectors(sectors, &self.superblock);
    }

    /// Counts `blocks` fewer as the file's.
    pub(super) fn remove_blocks(&self, inode: &mut Inode, blocks: u64) {
        let fewer = blocks * (self.superblock.block_size as u64 / 512);
        inode.set_sectors(
            inode.sectors(&self.superblock).saturating_sub(fewer),
            &self.superblock,
        );
    }

    fn run_at_goal(
        &mut self,
        group: u32,
        index: u32,
        wanted: u32,
    ) -> Result<Option<(u32, u32, u32)>, FsError> {
        let bits = self.usable(group)?;
        let end = self
            .superblock
            .group_len(group)
            .min(index.saturating_add(wanted));
        let len = bitmap::next(&bits, index, end, true) - index;
        Ok((len >= wanted.min(WORTH_KEEPING)).then_some((group, index, len)))
    }

    fn first_fit(
        &mut self,
        goal_group: u32,
        goal_index: u32,
        wanted: u32,
    ) -> Result<Option<(u32, u32, u32)>, FsError> {
        for group in self.groups_from(goal_group) {
            if self.longest_free[group as usize] < wanted {
                continue;
            }
            let bits = self.usable(group)?;
            let len = self.superblock.group_len(group);
            let from = if group == goal_group { goal_index } else { 0 };
            let mut runs =
                bitmap::free_runs(&bits, from, len).chain(bitmap::free_runs(&bits, 0, len));
            if let Some((start, len)) = runs.find(|&(_, len)| len >= wanted) {
                return Ok(Some((group, start, len)));
            }
            let longest = bitmap::free_runs(&bits, 0, len).map(|(_, len)| len).max();
            self.longest_free[group as usize] = longest.unwrap_or(0);
        }
        Ok(None)
    }

    fn longest_run(&mut self, goal_group: u32) -> Result<Option<(u32, u32, u32)>, FsError> {
        let mut best: Option<(u32, u32, u32)> = None;
        for group in self.groups_from(goal_group) {
            let best_len = best.map_or(0, |(_, _, len)| len);
            if self.longest_free[group as usize] <= best_len {
                continue;
            }
            let bits = self.usable(group)?;
            let len = self.superblock.group_len(group);
            let longest = bitmap::free_runs(&bits, 0, len).max_by_key(|&(_, len)| len);
            self.longest_free[group as usize] = longest.map_or(0, |(_, len)| len);
            match longest {
                Some((start, len)) if len > best_len => best = Some((group, start, len)),
                _ => {}
            }
        }
        Ok(best)
    }

    fn groups_from(&self, first: u32) -> impl Iterator<Item = u32> + use<> {
        let groups = self.superblock.groups;
        (first..groups).chain(0..first)
    }

    /// The group's bitmap, with what is not for use yet counted as used.
    pub(super) fn usable(&mut self, group: u32) -> Result<Vec<u8>, FsError> {
        let descriptor = self.descriptor(group)?;
        let mut bits = self.block_bitmap(group, &descriptor)?.to_vec();
        let start = self.superblock.group_start(group);
        let end = start + u64::from(self.superblock.group_len(group));
        for (from, to) in self.store.not_yet_free() {
            let (from, to) = (from.max(start), to.min(end));
            if from < to {
                bitmap::assign(&mut bits, (from - start) as u32, (to - from) as u32, true);
            }
        }
        Ok(bits)
    }

    fn block_bitmap(&mut self, group: u32, descriptor: &Descriptor) -> Result<Block, FsError> {
        if descriptor.flags & BLOCK_UNINIT != 0 {
            return self.initial_bitmap(group).map(Arc::new);
        }
        let superblock = &self.superblock;
        let used = superblock.blocks_per_group as usize / 8;
        self.store.read_checked(descriptor.block_bitmap, |bytes| {
            if group::bitmap_checksum_matches(
                descriptor.block_bitmap_checksum,
                &bytes[..used],
                superblock,
            ) {
                return Ok(());
            }
            let at = descriptor.block_bitmap;
            Err(FsError::corrupt(
                Structure::BlockBitmapChecksum,
                at,
                group.into(),
            ))
        })
    }

    /// The bitmap of a group in which nothing was ever allocated: what lies in it is metadata of its flexible group.
    fn initial_bitmap(&mut self, group: u32) -> Result<Vec<u8>, FsError> {
        let superblock = &self.superblock;
        let mut bits = alloc::vec![0; superblock.block_size];
        let (start, len) = (superblock.group_start(group), superblock.group_len(group));
        bitmap::assign(&mut bits, 0, superblock.header_blocks(group).min(len), true);
        bitmap::assign(&mut bits, len, 8 * superblock.block_size as u32 - len, true);
        let table = u64::from(
            superblock
                .inodes_per_group
                .div_ceil(superblock.inodes_per_block()),
        );
        for other in superblock.flexible_group(group) {
            let descriptor = self.descriptor(other)?;
            let places = [
                (descriptor.block_bitmap, 1),
                (descriptor.inode_bitmap, 1),
                (descriptor.inode_table, table),
            ];
            for (from, count) in places {
                let (from, to) = (from.max(start), (from + count).min(start + u64::from(len)));
                if from < to {
                    bitmap::assign(&mut bits, (from - start) as u32, (to - from) as u32, true);
                }
            }
        }
        Ok(bits)
    }

    /// Writes the bitmap of a group that had none so far.
    pub(super) fn initialize_blocks(
        &mut self,
        group: u32,
        descriptor: &mut Descriptor,
    ) -> Result<(), FsError> {
        if descriptor.flags & BLOCK_UNINIT != 0 {
            let bits = self.initial_bitmap(group)?;
            let used = self.superblock.blocks_per_group as usize / 8;
            descriptor.block_bitmap_checksum =
                group::bitmap_checksum(&bits[..used], &self.superblock);
            descriptor.flags &= !BLOCK_UNINIT;
            self.store
                .fresh(descriptor.block_bitmap)
                .copy_from_slice(&bits);
        }
        Ok(())
    }

    /// Marks blocks of a group used or free, in the bitmap and in all counts.
    fn set_blocks(
        &mut self,
        group: u32,
        start: u32,
        len: u32,
        is_used: bool,
    ) -> Result<(), FsError> {
        let mut descriptor = self.descriptor(group)?;
        self.block_bitmap(group, &descriptor)?;
        self.initialize_blocks(group, &mut descriptor)?;
        let place = descriptor.block_bitmap;
        let used = self.superblock.blocks_per_group as usize / 8;
        let bits = self.store.modify(place)?;
        if bitmap::assign(bits, start, len, is_used) != len {
            return Err(FsError::corrupt(Structure::Bitmap, place, start.into()));
        }
        descriptor.block_bitmap_checksum = group::bitmap_checksum(&bits[..used], &self.superblock);
        let free = if is_used {
            descriptor.free_blocks.checked_sub(len)
        } else {
            Some(descriptor.free_blocks + len)
        };
        let wrong = FsError::corrupt(
            Structure::GroupDescriptor,
            group.into(),
            descriptor.free_blocks.into(),
        );
        descriptor.free_blocks = free
            .filter(|&free| free <= self.superblock.blocks_per_group)
            .ok_or(wrong)?;
        self.put_descriptor(group, &descriptor)?;
        self.count_free_blocks(if is_used { -i64::from(len) } else { len.into() })
    }

    fn count_free_blocks(&mut self, change: i64) -> Result<(), FsError> {
        let is_64bit = self.superblock.is_64bit();
        let bytes = self.superblock_mut()?;
        let high = if is_64bit {
            le32(bytes, FREE_BLOCKS_HIGH)
        } else {
            0
        };
        let free = halves32(le32(bytes, FREE_BLOCKS_LOW), high);
        let wrong = FsError::corrupt(Structure::SuperblockGeometry, FREE_BLOCKS_LOW as u64, free);
        let free = free.checked_add_signed(change).ok_or(wrong)?;
        put_le32(bytes, FREE_BLOCKS_LOW, free as u32);
        if is_64bit {
            put_le32(bytes, FREE_BLOCKS_HIGH, (free >> 32) as u32);
        }
        Ok(())
    }
}
