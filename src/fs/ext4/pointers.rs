//! Changing block maps: the pointers of files without extents.

use super::bytes::{le32, put_le32};
use super::inode::Inode;
use super::map::{DIRECT, pointer_path};
use super::volume::Volume;
use crate::fs::FileKind;
use crate::fs::error::{FsError, Structure};

impl Volume {
    /// Makes the file's blocks from `first` on, which are holes, point to `len` device blocks from `start` on.
    pub(super) fn insert_pointers(
        &mut self,
        inode: &mut Inode,
        first: u32,
        len: u32,
        start: u64,
    ) -> Result<(), FsError> {
        for i in 0..len {
            let block = start + u64::from(i);
            // A pointer has 32 bits, on whatever medium.
            let pointer = u32::try_from(block).map_err(|_| FsError::NoSpace)?;
            self.insert_pointer(inode, u64::from(first) + u64::from(i), pointer)?;
        }
        Ok(())
    }

    fn insert_pointer(
        &mut self,
        inode: &mut Inode,
        block: u64,
        pointer: u32,
    ) -> Result<(), FsError> {
        let per_block = self.superblock.block_size as u64 / 4;
        let (slot, path) = pointer_path(block, per_block).ok_or(FsError::FileTooLarge)?;
        let Some((&last, inner)) = path.split_last() else {
            put_le32(inode.map_mut(), slot * 4, pointer);
            return Ok(());
        };
        let mut place = u64::from(le32(inode.map(), slot * 4));
        if place == 0 {
            place = self.allocate_metadata(inode, pointer.into())?;
            put_le32(inode.map_mut(), slot * 4, place as u32);
        }
        for &index in inner {
            let bytes = self.metadata(place, inode)?;
            let mut next = u64::from(le32(&bytes, index as usize * 4));
            if next == 0 {
                next = self.allocate_metadata(inode, pointer.into())?;
                put_le32(self.store.modify(place)?, index as usize * 4, next as u32);
            }
            place = next;
        }
        self.metadata(place, inode)?;
        put_le32(self.store.modify(place)?, last as usize * 4, pointer);
        Ok(())
    }

    /// Frees blocks from `first` on, the last ones first, at most `budget` of them. Says whether none is left.
    pub(super) fn cut_pointers(
        &mut self,
        inode: &mut Inode,
        first: u64,
        mut budget: u32,
    ) -> Result<bool, FsError> {
        let per_block = self.superblock.block_size as u64 / 4;
        for levels in (1..=3u32).rev() {
            let slot = DIRECT as usize + levels as usize - 1;
            let base = DIRECT + (1..levels).map(|level| per_block.pow(level)).sum::<u64>();
            let pointer = le32(inode.map(), slot * 4).into();
            if pointer == 0 || base + per_block.pow(levels) <= first {
                continue;
            }
            let is_empty = self.cut_below(inode, pointer, levels, base, first, &mut budget)?;
            if is_empty && base >= first {
                put_le32(inode.map_mut(), slot * 4, 0);
            }
            if budget == 0 {
                return Ok(false);
            }
        }
        for block in (first..DIRECT).rev() {
            let pointer = le32(inode.map(), block as usize * 4).into();
            if pointer != 0 {
                self.free_data(inode, pointer)?;
                put_le32(inode.map_mut(), block as usize * 4, 0);
            }
        }
        Ok(true)
    }

    /// The same for the block of pointers at `place`, with `levels` of them above the data, the first of which is block
    /// `base` of the file. Frees the block itself if all below it is to go, and has; and says so.
    fn cut_below(
        &mut self,
        inode: &mut Inode,
        place: u64,
        levels: u32,
        base: u64,
        first: u64,
        budget: &mut u32,
    ) -> Result<bool, FsError> {
        let per_block = self.superblock.block_size as u64 / 4;
        let reach = per_block.pow(levels - 1);
        let bytes = self.metadata(place, inode)?;
        for index in (0..per_block).rev() {
            let start = base + index * reach;
            let pointer = u64::from(le32(&bytes, index as usize * 4));
            if start + reach <= first {
                return Ok(false);
            }
            if pointer == 0 {
                continue;
            }
            if *budget == 0 {
                return Ok(false);
            }
            let is_gone = if levels > 1 {
                self.cut_below(inode, pointer, levels - 1, start, first, budget)?
            } else {
                self.free_data(inode, pointer)?;
                *budget -= 1;
                true
            };
            if is_gone {
                put_le32(self.store.modify(place)?, index as usize * 4, 0);
            } else if *budget == 0 {
                return Ok(false);
            }
        }
        if base < first {
            return Ok(false);
        }
        *budget = budget.saturating_sub(1);
        self.free_metadata(inode, place)?;
        Ok(true)
    }

    fn free_data(&mut self, inode: &mut Inode, block: u64) -> Result<(), FsError> {
        if !self.superblock.contains(block, 1) {
            return Err(FsError::corrupt(
                Structure::BlockPointer,
                inode.number.into(),
                block,
            ));
        }
        self.free(block, 1)?;
        self.remove_blocks(inode, 1);
        if inode.kind()? != FileKind::File {
            // Blocks of directories and symbolic links went through the journal.
            self.store.forget(block);
        }
        Ok(())
    }
}
