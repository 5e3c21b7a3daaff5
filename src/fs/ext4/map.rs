//! Where a file's blocks are: one view of extent trees and block maps.

use super::bytes::le32;
use super::extent::{self, Entries, Node, Run};
use super::inode::{EXTENTS, Inode};
use super::store::Block;
use super::volume::Volume;
use crate::fs::checksum_agrees;
use crate::fs::error::{FsError, Structure};
use alloc::vec::Vec;

/// The number after the last block a file can have.
pub(super) const END: u64 = (1 << 32) - 1;
/// Pointers in the inode that lead to data directly.
pub(super) const DIRECT: u64 = 12;

/// A stretch of a file: a run from the asked block on, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The blocks, none for a hole.
    pub(super) run: Option<Run>,
    /// The file's block after the stretch.
    pub(super) end: u64,
}

impl Volume {
    /// What backs the file from `block` on.
    pub(super) fn piece_at(&mut self, inode: &Inode, block: u32) -> Result<Piece, FsError> {
        if inode.has_flag(EXTENTS) {
            self.extent_at(inode, block)
        } else {
            self.mapped_at(inode, block)
        }
    }

    /// All runs of blocks `first..end` of the file, cut to that range.
    pub(super) fn runs(
        &mut self,
        inode: &Inode,
        first: u64,
        end: u64,
    ) -> Result<Vec<Run>, FsError> {
        let mut runs: Vec<Run> = Vec::new();
        let mut at = first;
        // What a cut has left behind the end is nobody's.
        let end = match self.half_cut.contains(&inode.number) {
            true => end.min(inode.size().div_ceil(self.superblock.block_size as u64)),
            false => end.min(END),
        };
        while at < end {
            let piece = self.piece_at(inode, at as u32)?;
            if let Some(run) = piece.run.and_then(|run| run.cut(at, end)) {
                match runs.last_mut() {
                    Some(last) if last.joins(&run) => last.len += run.len,
                    _ => {
                        // As many as the image says.
                        runs.try_reserve(1).map_err(|_| FsError::OutOfMemory)?;
                        runs.push(run);
                    }
                }
            }
            at = piece.end.max(at + 1);
        }
        Ok(runs)
    }

    /// The device block of a directory's or another metadata file's block, which must not be a hole.
    pub(super) fn block_of(&mut self, inode: &Inode, block: u32) -> Result<u64, FsError> {
        match self.piece_at(inode, block)?.run {
            Some(run) if run.is_written => Ok(run.start),
            _ => Err(FsError::corrupt(
                Structure::DirectoryHole,
                inode.number.into(),
                block.into(),
            )),
        }
    }

    /// The root node of the inode's extent tree.
    pub(super) fn extent_root(&self, inode: &Inode) -> Result<Node, FsError> {
        Node::decode(inode.map(), inode.number.into(), &self.superblock)
    }

    /// The node in `block`, which must have `depth` levels below it.
    pub(super) fn extent_node(
        &mut self,
        inode: &Inode,
        block: u64,
        depth: u16,
    ) -> Result<Node, FsError> {
        let bytes = self.extent_block(inode, block)?;
        let node = Node::decode(&bytes, block, &self.superblock)?;
        if node.depth != depth {
            return Err(FsError::corrupt(
                Structure::ExtentDepth,
                block,
                node.depth.into(),
            ));
        }
        Ok(node)
    }

    fn extent_block(&mut self, inode: &Inode, block: u64) -> Result<Block, FsError> {
        let seed = self
            .superblock
            .has_checksums()
            .then(|| inode.checksum_seed(&self.superblock));
        self.store.read_checked(block, |bytes| {
            let Some(seed) = seed else {
                return Ok(());
            };
            let (at, checksum) = extent::checksum(bytes, seed);
            if checksum_agrees(le32(bytes, at), checksum) {
                return Ok(());
            }
            Err(FsError::corrupt(
                Structure::ExtentChecksum,
                block,
                checksum.into(),
            ))
        })
    }

    fn extent_at(&mut self, inode: &Inode, block: u32) -> Result<Piece, FsError> {
        let mut node = self.extent_root(inode)?;
        let mut end = END;
        loop {
            match &node.entries {
                Entries::Runs(runs) => {
                    let next = runs.partition_point(|run| run.end() <= block.into());
                    return Ok(match runs.get(next) {
                        Some(run) if run.first <= block => Piece {
                            run: run.cut(block.into(), run.end()),
                            end: run.end(),
                        },
                        Some(run) => Piece {
                            run: None,
                            end: run.first.into(),
                        },
                        None => Piece { run: None, end },
                    });
                }
                Entries::Indexes(indexes) => {
                    let next = indexes.partition_point(|index| index.first <= block);
                    if let Some(after) = indexes.get(next) {
                        end = after.first.into();
                    }
                    let Some(at) = next.checked_sub(1) else {
                        return Ok(Piece { run: None, end });
                    };
                    node = self.extent_node(inode, indexes[at].child, node.depth - 1)?;
                }
            }
        }
    }

    /// The same for a block map: pointers in the inode, then one, two and three levels of blocks of pointers.
    fn mapped_at(&mut self, inode: &Inode, block: u32) -> Result<Piece, FsError> {
        let per_block = self.superblock.block_size as u64 / 4;
        let Some((slot, path)) = pointer_path(block.into(), per_block) else {
            return Ok(Piece {
                run: None,
                end: END,
            });
        };
        let mut pointer = u64::from(le32(inode.map(), slot * 4));
        // How many blocks one pointer of the present level stands for.
        let mut reach = per_block.pow(path.len() as u32);
        if path.is_empty() {
            return self.pointed(inode, block, |i| {
                let slot = slot + i as usize;
                (slot < DIRECT as usize).then(|| le32(inode.map(), slot * 4))
            });
        }
        for (level, &index) in path.iter().enumerate() {
            if pointer == 0 {
                let rest = path[level..]
                    .iter()
                    .fold(0, |sum, &index| sum * per_block + index);
                return Ok(Piece {
                    run: None,
                    end: (u64::from(block) - rest + reach).min(END),
                });
            }
            let bytes = self.metadata(pointer, inode)?;
            reach /= per_block;
            if level + 1 == path.len() {
                return self.pointed(inode, block, |i| {
                    let slot = index + i;
                    (slot < per_block).then(|| le32(&bytes, slot as usize * 4))
                });
            }
            pointer = le32(&bytes, index as usize * 4).into();
        }
        Ok(Piece {
            run: None,
            end: u64::from(block) + 1,
        })
    }

    /// The longest piece that the pointers `pointer(0)`, `pointer(1)`, … make.
    fn pointed(
        &self,
        inode: &Inode,
        block: u32,
        pointer: impl Fn(u64) -> Option<u32>,
    ) -> Result<Piece, FsError> {
        let start = u64::from(pointer(0).unwrap_or(0));
        let continues = |i: u64| match (start, pointer(i)) {
            (0, Some(next)) => next == 0,
            (_, Some(next)) => u64::from(next) == start + i,
            (_, None) => false,
        };
        let mut len = 1;
        while u64::from(block) + len < END && continues(len) {
            len += 1;
        }
        let end = u64::from(block) + len;
        if start == 0 {
            return Ok(Piece { run: None, end });
        }
        if !self.superblock.contains(start, len) {
            return Err(FsError::corrupt(
                Structure::BlockPointer,
                inode.number.into(),
                start,
            ));
        }
        let run = Run {
            first: block,
            len: len as u32,
            start,
            is_written: true,
        };
        Ok(Piece {
            run: Some(run),
            end,
        })
    }
}

/// The slot in the inode and the indexes in the blocks below it that lead to `block`.
pub(super) fn pointer_path(block: u64, per_block: u64) -> Option<(usize, Vec<u64>)> {
    if block < DIRECT {
        return Some((block as usize, Vec::new()));
    }
    let mut rest = block - DIRECT;
    for levels in 1..=3u32 {
        let reach = per_block.pow(levels);
        if rest < reach {
            let index = |level: u32| rest / per_block.pow(level) % per_block;
            return Some((
                DIRECT as usize + levels as usize - 1,
                (0..levels).rev().map(index).collect(),
            ));
        }
        rest -= reach;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::pointer_path;

    #[test]
    fn a_block_is_reached_through_as_many_levels_as_it_needs() {
        assert_eq!(pointer_path(11, 256), Some((11, [].into())));
        assert_eq!(pointer_path(12, 256), Some((12, [0].into())));
        assert_eq!(pointer_path(12 + 256, 256), Some((13, [0, 0].into())));
        assert_eq!(
            pointer_path(12 + 256 + 65536 + 65536 + 257, 256),
            Some((14, [1, 1, 1].into()))
        );
        assert_eq!(pointer_path(12 + 256 + 65536 + (1 << 24), 256), None);
    }
}
