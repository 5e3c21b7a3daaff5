//! A mounted volume: its geometry, its metadata blocks, and how inodes and groups are found in them.

use super::group::Descriptor;
use super::inode::Inode;
use super::store::{Block, Store};
use super::superblock::{self, Superblock};
use crate::fs::Timestamp;
use crate::fs::error::{FsError, ReadOnlyReason, Structure};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Range;

/// Tells the time, in UTC.
pub type Clock = fn() -> Timestamp;

/// Everything a mounted file system knows, behind its mutex.
pub(super) struct Volume {
    pub(super) superblock: Superblock,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) read_only: Option<ReadOnlyReason>,
    /// Files that are open.
    pub(super) open: BTreeMap<u32, Open>,
    /// Files that were cut and may have blocks behind their end: these are being freed, or an error came between.
    pub(super) half_cut: BTreeSet<u32>,
    /// Files that are being cut: transfers to what goes may still end.
    pub(super) cutting: BTreeSet<u32>,
    /// Blocks promised to files and not yet allocated.
    pub(super) reserved: u64,
    /// Blocks that only what was promised is given: maps of files may need more blocks than anybody could foresee. As
    /// many as Linux holds back for the same reason (`ext4_calculate_resv_clusters`).
    pub(super) held_back: u64,
    /// For each group, a bound of its longest free run: what allocation need not look at again.
    pub(super) longest_free: Vec<u32>,
    /// [`Store::releases`] when these bounds were right.
    pub(super) bounds_from: u64,
    /// The group whose inodes were asked for last, and where they begin: nothing moves them.
    pub(super) inode_table: Option<(u32, u64)>,
}

/// A file that is open.
#[derive(Default)]
pub(super) struct Open {
    /// How often.
    pub(super) count: u32,
    /// Where transfers are under way: what these blocks hold, behind the end of the file too, is on its way, not left
    /// from earlier.
    pub(super) filling: Filling,
}

/// Blocks of a file between the allocation for a transfer and its being [`written`](Volume::written). A transfer that
/// failed stays, until it is tried again, perhaps in other pieces, or its blocks are cut off.
#[derive(Default)]
pub(super) struct Filling(Vec<Range<u64>>);

impl Filling {
    pub(super) fn begin(&mut self, blocks: Range<u64>) {
        self.end(blocks.clone());
        self.0.push(blocks);
    }

    pub(super) fn end(&mut self, blocks: Range<u64>) {
        let around = |range: &Range<u64>| {
            [
                range.start..range.end.min(blocks.start),
                range.start.max(blocks.end)..range.end,
            ]
        };
        let rest = self.0.iter().flat_map(around);
        self.0 = rest.filter(|range| !range.is_empty()).collect();
    }

    pub(super) fn contains(&self, block: u64) -> bool {
        self.0.iter().any(|range| range.contains(&block))
    }
}

impl Volume {
    /// Runs `operation` so that all of its changes are made, or none.
    pub(super) fn transact<T>(
        &mut self,
        mut operation: impl FnMut(&mut Self) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.check_writable()?;
        let mut result = self.attempt(&mut operation);
        if matches!(result, Err(FsError::NoSpace)) && self.store.has_freed() {
            // What was freed lately becomes usable with the commit.
            self.store.commit(self.now())?;
            result = self.attempt(&mut operation);
        }
        result
    }

    fn attempt<T>(
        &mut self,
        operation: &mut impl FnMut(&mut Self) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.store.begin();
        let result = operation(self).and_then(|value| {
            self.seal_superblock()?;
            self.store.check_size()?;
            Ok(value)
        });
        match result {
            Ok(value) => {
                self.store.finish(self.now())?;
                Ok(value)
            }
            Err(error) => {
                if self.store.cancel() {
                    // They counted blocks as used that are not, now.
                    self.longest_free.fill(u32::MAX);
                }
                Err(error)
            }
        }
    }

    /// An error that says why, if nothing can be written.
    pub(super) fn check_writable(&self) -> Result<(), FsError> {
        match self.read_only() {
            Some(reason) => Err(FsError::ReadOnly(reason)),
            None => Ok(()),
        }
    }

    /// Why nothing can be written, if nothing can.
    pub(super) fn read_only(&self) -> Option<ReadOnlyReason> {
        self.store.failure().or(self.read_only)
    }

    /// The time, but never before the file system was last written: a machine without a clock begins at 1970, and
    /// e2fsck takes the deletion times of that day for links of the orphan list.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)().max(Timestamp {
            seconds: self.superblock.write_time.into(),
            nanoseconds: 0,
        })
    }

    /// The bytes of the superblock.
    pub(super) fn superblock_bytes(&mut self) -> Result<Vec<u8>, FsError> {
        let (block, at) = self.superblock.place();
        Ok(self.store.read(block)?[at..at + superblock::SIZE].to_vec())
    }

    /// The bytes of the superblock, to be changed; they are sealed when the operation ends.
    pub(super) fn superblock_mut(&mut self) -> Result<&mut [u8], FsError> {
        let (block, at) = self.superblock.place();
        Ok(&mut self.store.modify(block)?[at..at + superblock::SIZE])
    }

    fn seal_superblock(&mut self) -> Result<(), FsError> {
        let (block, at) = self.superblock.place();
        if self.store.is_changed(block) {
            superblock::seal(&mut self.store.modify(block)?[at..at + superblock::SIZE]);
        }
        Ok(())
    }

    /// The descriptor of `group`.
    pub(super) fn descriptor(&mut self, group: u32) -> Result<Descriptor, FsError> {
        if group >= self.superblock.groups {
            return Err(FsError::corrupt(
                Structure::GroupDescriptor,
                group.into(),
                0,
            ));
        }
        let (block, at) = self.superblock.descriptor_place(group);
        if !self.superblock.contains(block, 1) {
            return Err(FsError::corrupt(
                Structure::GroupDescriptor,
                group.into(),
                block,
            ));
        }
        let bytes = self.store.read(block)?;
        let bytes = &bytes[at..at + self.superblock.descriptor_size];
        Descriptor::decode(bytes, group, &self.superblock)
    }

    /// Changes the descriptor of `group`.
    pub(super) fn put_descriptor(
        &mut self,
        group: u32,
        descriptor: &Descriptor,
    ) -> Result<(), FsError> {
        let (block, at) = self.superblock.descriptor_place(group);
        let size = self.superblock.descriptor_size;
        let bytes = &mut self.store.modify(block)?[at..at + size];
        descriptor.encode(bytes, group, &self.superblock);
        Ok(())
    }

    /// The block and the byte in it where inode `number` begins.
    fn inode_place(&mut self, number: u32) -> Result<(u64, usize), FsError> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes_count {
            return Err(FsError::corrupt(Structure::InodeNumber, 0, number.into()));
        }
        let per_block = superblock.inodes_per_block();
        let inode_size = superblock.inode_size;
        let (group, index) = superblock.group_of_inode(number);
        let table = match self.inode_table {
            Some((last, table)) if last == group => table,
            _ => self.descriptor(group)?.inode_table,
        };
        self.inode_table = Some((group, table));
        Ok((
            table + u64::from(index / per_block),
            (index % per_block) as usize * inode_size,
        ))
    }

    /// Inode `number`, whether it is in use or not.
    pub(super) fn inode(&mut self, number: u32) -> Result<Inode, FsError> {
        if self.read_only == Some(ReadOnlyReason::Unmounted) {
            // The device may be somebody else's by now.
            return Err(FsError::ReadOnly(ReadOnlyReason::Unmounted));
        }
        let (block, at) = self.inode_place(number)?;
        let bytes = self.store.read(block)?;
        Inode::decode(
            &bytes[at..at + self.superblock.inode_size],
            number,
            &self.superblock,
        )
    }

    /// The inode of a file somebody refers to: one that has a name, or is open.
    pub(super) fn live_inode(&mut self, number: u32) -> Result<Inode, FsError> {
        let inode = self.inode(number)?;
        if inode.links() == 0 && !self.open.contains_key(&number) {
            return Err(FsError::NotFound);
        }
        inode.kind()?;
        if inode.has_flag(super::inode::INLINE_DATA) {
            let flags = inode.flags().into();
            return Err(FsError::corrupt(Structure::InodeMode, number.into(), flags));
        }
        Ok(inode)
    }

    /// An error where there is no such file. One that is open was looked at when it was opened.
    pub(super) fn check_live(&mut self, number: u32) -> Result<(), FsError> {
        if !self.open.contains_key(&number) {
            self.live_inode(number)?;
        }
        Ok(())
    }

    /// Changes an inode.
    pub(super) fn put_inode(&mut self, inode: &mut Inode) -> Result<(), FsError> {
        let (block, at) = self.inode_place(inode.number)?;
        let bytes = inode.encode(&self.superblock);
        self.store.modify(block)?[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// How many blocks a file of metadata has. It has no holes, and so no more than there are: a map may name one block
    /// any number of times, and whoever goes through it would go on for ever.
    pub(super) fn count_blocks(&self, inode: &Inode, structure: Structure) -> Result<u64, FsError> {
        let blocks = inode.size() / self.superblock.block_size as u64;
        if blocks > self.superblock.blocks_count {
            return Err(FsError::corrupt(
                structure,
                inode.number.into(),
                inode.size(),
            ));
        }
        Ok(blocks)
    }

    /// A metadata block, if there is one of that number.
    pub(super) fn metadata(&mut self, block: u64, owner: &Inode) -> Result<Block, FsError> {
        if !self.superblock.contains(block, 1) {
            return Err(FsError::corrupt(
                Structure::BlockPointer,
                owner.number.into(),
                block,
            ));
        }
        self.store.read(block)
    }
}

#[cfg(test)]
mod tests {
    use super::Filling;

    #[test]
    fn a_transfer_tried_again_in_other_pieces_leaves_nothing_behind() {
        let mut filling = Filling::default();
        filling.begin(3..10);
        for piece in [8..12, 0..4, 4..8] {
            filling.begin(piece.clone());
            assert!(piece.clone().all(|block| filling.contains(block)));
            filling.end(piece);
        }
        assert!(filling.0.is_empty());
    }

    #[test]
    fn a_transfer_that_ends_leaves_the_others() {
        let mut filling = Filling::default();
        filling.begin(0..2);
        filling.begin(2..6);
        filling.end(3..4);
        let left = (0..8).filter(|block| filling.contains(*block));
        assert!(left.eq([0, 1, 2, 4, 5]));
    }
}
