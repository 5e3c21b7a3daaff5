//! Cutting files and removing them, in steps that a power cut may fall between.
//!
//! The file is first put on the list of orphans, with its new size or without a name; then its blocks are freed, so
//! many in each operation; with the last, it leaves the list. Whoever mounts after a power cut goes on from there.

use super::bytes::{le16, le32, put_le32};
use super::checksum::crc32c;
use super::inode::{EXTENTS, Inode};
use super::map::END;
use super::volume::Volume;
use crate::fs::FileKind;
use crate::fs::error::{FsError, Structure};

/// Runs freed in one operation: each may lie in a group of its own.
const RUNS_PER_STEP: u32 = 24;
/// The same for single blocks, which lie together more often.
const BLOCKS_PER_STEP: u32 = 96;

const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;

impl Volume {
    /// Cuts the file, or lets it grow with a hole.
    pub(super) fn set_len(&mut self, number: u32, len: u64) -> Result<(), FsError> {
        let is_begun = self.cutting.remove(&number);
        if !is_begun && len > self.file(number)?.size() {
            return self.change_size(number, len, false);
        }
        // Should anything fail.
        self.half_cut.insert(number);
        // Whoever cuts has waited for transfers to what goes; those that failed will not come again.
        let first = len.div_ceil(self.superblock.block_size as u64);
        self.end_filling(number, first..u64::MAX);
        self.change_size(number, len, true)?;
        self.free_past_end(number)
    }

    /// First half of a cut: the file ends at `len`, and does not grow until [`set_len`](Self::set_len), whatever arrives
    /// behind that.
    pub(super) fn truncate_prepare(&mut self, number: u32, len: u64) -> Result<(), FsError> {
        if self.half_cut.contains(&number) {
            // Now nothing is on its way to what an earlier cut has left: from here on something may be.
            self.free_past_end(number)?;
        }
        self.change_size(number, len, true)?;
        self.cutting.insert(number);
        Ok(())
    }

    /// Before the file grows to `end`: what an earlier cut has left behind its last block must not show again. Changes the
    /// inode: whoever has read it reads it again.
    pub(super) fn finish_cut(&mut self, number: u32, end: u64) -> Result<(), FsError> {
        if !self.half_cut.contains(&number) {
            return Ok(());
        }
        let size = self.file(number)?.size();
        match end > size.next_multiple_of(self.superblock.block_size as u64) {
            true => self.free_past_end(number),
            false => Ok(()),
        }
    }

    /// Makes the file end at `len`, where zeros lie between that and its present end. For a cut it is an orphan until its
    /// blocks behind that are freed, also where it ended before: what is on its way may yet arrive behind it.
    fn change_size(&mut self, number: u32, len: u64, is_cut: bool) -> Result<(), FsError> {
        self.finish_cut(number, len)?;
        self.transact(|volume| {
            let mut inode = volume.file(number)?;
            if len > inode.size() {
                volume.check_size(&inode, len)?;
                volume.zero_tail(&inode, len)?;
            }
            volume.set_size(&mut inode, len)?;
            // A file without a name is on the list already.
            if is_cut && inode.links() > 0 && !volume.is_orphan(number)? {
                volume.add_orphan(&mut inode)?;
            }
            volume.touch(&mut inode);
            volume.put_inode(&mut inode)
        })
    }

    /// Frees the blocks behind the end of a file that is an orphan, and ends that if it has a name.
    pub(super) fn free_past_end(&mut self, number: u32) -> Result<(), FsError> {
        loop {
            let is_done = self.transact(|volume| {
                let mut inode = volume.inode(number)?;
                let first = inode.size().div_ceil(volume.superblock.block_size as u64);
                let is_done = volume.free_some(&mut inode, first)?;
                if is_done && inode.links() > 0 {
                    volume.remove_orphan(&mut inode)?;
                }
                volume.put_inode(&mut inode)?;
                Ok(is_done)
            })?;
            if is_done {
                self.half_cut.remove(&number);
                return Ok(());
            }
        }
    }

    /// Removes an orphan that has no name and is not open: its blocks, then itself.
    pub(super) fn remove_file(&mut self, number: u32) -> Result<(), FsError> {
        let inode = self.orphan(number)?;
        let has_blocks = has_map(&inode)?;
        loop {
            let is_done = self.transact(|volume| {
                let mut inode = volume.orphan(number)?;
                if has_blocks && !volume.free_some(&mut inode, 0)? {
                    volume.put_inode(&mut inode)?;
                    return Ok(false);
                }
                volume.release_attributes(&mut inode)?;
                volume.remove_orphan(&mut inode)?;
                volume.free_inode(inode)?;
                Ok(true)
            })?;
            if is_done {
                self.half_cut.remove(&number);
                return Ok(());
            }
        }
    }

    /// An inode that may be removed.
    fn orphan(&mut self, number: u32) -> Result<Inode, FsError> {
        let inode = self.inode(number)?;
        if number < self.superblock.first_inode || inode.links() != 0 {
            return Err(FsError::corrupt(
                Structure::OrphanList,
                number.into(),
                inode.links().into(),
            ));
        }
        Ok(inode)
    }

    /// Frees some of the blocks from `first` on, the last ones first. Says whether none is left.
    fn free_some(&mut self, inode: &mut Inode, first: u64) -> Result<bool, FsError> {
        if !inode.has_flag(EXTENTS) {
            return self.cut_pointers(inode, first, BLOCKS_PER_STEP);
        }
        let is_file = inode.kind()? == FileKind::File;
        for _ in 0..RUNS_PER_STEP {
            let Some(run) = self.last_run(inode)? else {
                return Ok(true);
            };
            // No more than a group has, each of which has a bitmap; groups may be small.
            let most = if is_file {
                self.superblock.blocks_per_group
            } else {
                BLOCKS_PER_STEP
            };
            let from = first.max(run.end().saturating_sub(most.into()));
            let Some(part) = run.cut(from, END + 1) else {
                return Ok(true);
            };
            self.remove_run(inode, part)?;
            self.free(part.start, part.len.into())?;
            self.remove_blocks(inode, part.len.into());
            if !is_file {
                // Blocks of directories and symbolic links went through the journal.
                for block in part.start..part.start + u64::from(part.len) {
                    self.store.forget(block);
                }
            }
        }
        Ok(false)
    }

    /// Lets go of the block with extended attributes, which several files may share.
    fn release_attributes(&mut self, inode: &mut Inode) -> Result<(), FsError> {
        let block = inode.attribute_block();
        if block == 0 {
            return Ok(());
        }
        let bytes = self.metadata(block, inode)?;
        let (magic, users) = (le32(&bytes, 0), le32(&bytes, 4));
        if magic != ATTRIBUTES_MAGIC || users == 0 || le16(&bytes, 8) != 1 {
            return Err(FsError::corrupt(
                Structure::AttributeBlock,
                block,
                magic.into(),
            ));
        }
        inode.clear_attribute_block();
        if users == 1 {
            return self.free_metadata(inode, block);
        }
        self.remove_blocks(inode, 1);
        let seed = self
            .superblock
            .has_checksums()
            .then_some(self.superblock.checksum_seed);
        let bytes = self.store.modify(block)?;
        put_le32(bytes, 4, users - 1);
        if let Some(seed) = seed {
            put_le32(bytes, 16, 0);
            let checksum = crc32c(crc32c(seed, &block.to_le_bytes()), bytes);
            put_le32(bytes, 16, checksum);
        }
        Ok(())
    }
}

/// Whether the inode's map leads to blocks, and is not a short target or the number of a device.
fn has_map(inode: &Inode) -> Result<bool, FsError> {
    Ok(match inode.kind()? {
        FileKind::File | FileKind::Directory => true,
        FileKind::Symlink => !inode.is_short_symlink(),
        _ => false,
    })
}
