//! Finding and listing names.

use super::bytes::le32;
use super::dirent;
use super::features::{COMPAT_DIR_INDEX, INCOMPAT_LARGE_DIR};
use super::hash::HashKind;
use super::htree::{self, IndexBlock};
use super::inode::{INDEX, Inode};
use super::store::Block;
use super::volume::Volume;
use crate::fs::checksum_agrees;
use crate::fs::error::{FsError, Structure};
use crate::fs::{Cursor, DirectoryEntry, FileId, FileKind};
use alloc::vec::Vec;

/// A name, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) inode: u32,
    /// The device block with the entry.
    pub(super) block: u64,
    /// Where in it.
    pub(super) at: usize,
}

/// An index block on the way to a leaf, and which of its entries was taken.
pub(super) struct Step {
    pub(super) block: u64,
    pub(super) index: IndexBlock,
    pub(super) position: usize,
}

/// The way from the root of a hash tree to a leaf.
pub(super) struct TreePath {
    pub(super) kind: HashKind,
    pub(super) info: htree::RootInfo,
    pub(super) steps: Vec<Step>,
    /// The leaf, as a block of the directory.
    pub(super) leaf: u32,
}

impl Volume {
    /// The directory `number`.
    pub(super) fn directory(&mut self, number: u32) -> Result<Inode, FsError> {
        let inode = self.live_inode(number)?;
        if inode.kind()? != FileKind::Directory {
            return Err(FsError::NotADirectory);
        }
        let size = inode.size();
        if !size.is_multiple_of(self.superblock.block_size as u64)
            || size >> 32 >= self.superblock.block_size as u64
        {
            return Err(FsError::corrupt(Structure::InodeSize, number.into(), size));
        }
        self.count_blocks(&inode, Structure::InodeSize)?;
        Ok(inode)
    }

    /// How many blocks a directory has.
    pub(super) fn directory_blocks(&self, directory: &Inode) -> u32 {
        (directory.size() / self.superblock.block_size as u64).min(u32::MAX.into()) as u32
    }

    /// Finds `name`, if it is there.
    pub(super) fn find(
        &mut self,
        directory: &Inode,
        name: &[u8],
    ) -> Result<Option<Found>, FsError> {
        // "." and ".." are in block 0, outside the order of hashes.
        if self.has_tree(directory) && name != b"." && name != b".." {
            return self.find_by_hash(directory, name);
        }
        for block in 0..self.directory_blocks(directory) {
            if let Some(found) = self.find_in_block(directory, block, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether names are to be found through a hash tree.
    pub(super) fn has_tree(&self, directory: &Inode) -> bool {
        directory.has_flag(INDEX) && self.superblock.features.has_compat(COMPAT_DIR_INDEX)
    }

    fn find_by_hash(&mut self, directory: &Inode, name: &[u8]) -> Result<Option<Found>, FsError> {
        let hash = self
            .tree_kind(directory)?
            .hash(name, self.superblock.hash_seed);
        let mut path = self.tree_path(directory, hash)?;
        // Names of one hash may go on in the next leaves; there are no more leaves than blocks.
        for _ in 0..self.directory_blocks(directory) {
            if let Some(found) = self.find_in_block(directory, path.leaf, name)? {
                return Ok(Some(found));
            }
            if !self.next_leaf(directory, &mut path, hash)? {
                break;
            }
        }
        Ok(None)
    }

    /// The hash that orders a directory's tree.
    pub(super) fn tree_kind(&mut self, directory: &Inode) -> Result<HashKind, FsError> {
        let (at, root) = self.directory_block(directory, 0)?;
        let info = htree::root_info(&root, at, self.max_tree_levels())?;
        HashKind::decode(info.hash, &self.superblock).ok_or(FsError::corrupt(
            Structure::HashTree,
            at,
            info.hash.into(),
        ))
    }

    pub(super) fn max_tree_levels(&self) -> u8 {
        if self.superblock.features.has_incompat(INCOMPAT_LARGE_DIR) {
            2
        } else {
            1
        }
    }

    /// The way to the first leaf that may hold `hash`.
    pub(super) fn tree_path(&mut self, directory: &Inode, hash: u32) -> Result<TreePath, FsError> {
        let kind = self.tree_kind(directory)?;
        let (at, root) = self.directory_block(directory, 0)?;
        let info = htree::root_info(&root, at, self.max_tree_levels())?;
        let mut path = TreePath {
            kind,
            info,
            steps: Vec::new(),
            leaf: 0,
        };
        for _ in 0..=info.levels {
            let step = self.tree_step(directory, path.leaf, hash)?;
            path.leaf = step.index.entries[step.position].1;
            path.steps.push(step);
        }
        Ok(path)
    }

    fn tree_step(&mut self, directory: &Inode, block: u32, hash: u32) -> Result<Step, FsError> {
        let has_tail = self.superblock.has_checksums();
        let (at, bytes) = self.directory_block(directory, block)?;
        let index = IndexBlock::decode(&bytes, at, block == 0, has_tail)?;
        let position = index.position(hash);
        Ok(Step {
            block: at,
            index,
            position,
        })
    }

    /// Moves on to the next leaf if names with `hash` go on there.
    fn next_leaf(
        &mut self,
        directory: &Inode,
        path: &mut TreePath,
        hash: u32,
    ) -> Result<bool, FsError> {
        let is_last = |step: &Step| step.position + 1 >= step.index.entries.len();
        let Some(turn) = path.steps.iter().rposition(|step| !is_last(step)) else {
            return Ok(false);
        };
        let step = &mut path.steps[turn];
        let (first, mut block) = step.index.entries[step.position + 1];
        if first != hash | 1 {
            return Ok(false);
        }
        step.position += 1;
        for level in turn + 1..path.steps.len() {
            path.steps[level] = self.tree_step(directory, block, 0)?;
            block = path.steps[level].index.entries[0].1;
        }
        path.leaf = block;
        Ok(true)
    }

    fn find_in_block(
        &mut self,
        directory: &Inode,
        block: u32,
        name: &[u8],
    ) -> Result<Option<Found>, FsError> {
        let (at, bytes) = self.directory_block(directory, block)?;
        for entry in dirent::entries(&bytes, at) {
            let entry = entry?;
            if entry.inode != 0 && entry.name == name {
                self.check_entry(entry.inode, at)?;
                return Ok(Some(Found {
                    inode: entry.inode,
                    block: at,
                    at: entry.at,
                }));
            }
        }
        Ok(None)
    }

    fn check_entry(&self, inode: u32, block: u64) -> Result<(), FsError> {
        let is_reserved = inode < self.superblock.first_inode && inode != super::inode::ROOT;
        if is_reserved || inode > self.superblock.inodes_count {
            return Err(FsError::corrupt(
                Structure::InodeNumber,
                block,
                inode.into(),
            ));
        }
        Ok(())
    }

    /// Block `block` of a directory: where it lies, and its bytes.
    pub(super) fn directory_block(
        &mut self,
        directory: &Inode,
        block: u32,
    ) -> Result<(u64, Block), FsError> {
        if block >= self.directory_blocks(directory) {
            return Err(FsError::corrupt(
                Structure::HashTree,
                directory.number.into(),
                block.into(),
            ));
        }
        let at = self.block_of(directory, block)?;
        let seed = self
            .superblock
            .has_checksums()
            .then(|| directory.checksum_seed(&self.superblock));
        let has_tree = self.has_tree(directory);
        let bytes = self.store.read_checked(at, |bytes| match seed {
            Some(seed) => check_block(bytes, at, seed, has_tree, block == 0),
            None => Ok(()),
        })?;
        Ok((at, bytes))
    }

    /// The entries of the first block from `cursor` on that has any.
    pub(super) fn list(
        &mut self,
        directory: &Inode,
        cursor: &mut Cursor,
    ) -> Result<Vec<DirectoryEntry>, FsError> {
        let size = self.superblock.block_size as u64;
        let mut names = Vec::new();
        while names.is_empty() && cursor.0 < directory.size() {
            let block = (cursor.0 / size) as u32;
            let from = (cursor.0 % size) as usize;
            let (at, bytes) = self.directory_block(directory, block)?;
            for entry in dirent::entries(&bytes, at) {
                let entry = entry?;
                if entry.inode == 0 || entry.at < from {
                    continue;
                }
                names.push(DirectoryEntry {
                    name: entry.name.to_vec(),
                    file: FileId(entry.inode.into()),
                    kind: dirent::kind(entry.kind),
                });
            }
            cursor.0 = (u64::from(block) + 1) * size;
        }
        Ok(names)
    }

    /// Whether a directory has only "." and "..".
    pub(super) fn is_empty(&mut self, directory: &Inode) -> Result<bool, FsError> {
        let mut cursor = Cursor::default();
        loop {
            let names = self.list(directory, &mut cursor)?;
            if names.is_empty() {
                return Ok(true);
            }
            if names
                .iter()
                .any(|entry| entry.name != b"." && entry.name != b"..")
            {
                return Ok(false);
            }
        }
    }
}

fn check_block(
    bytes: &[u8],
    at: u64,
    seed: u32,
    has_tree: bool,
    is_first: bool,
) -> Result<(), FsError> {
    if has_tree && (is_first || htree::is_node(bytes)) {
        return match htree::checksum(bytes, is_first, seed) {
            Some((place, checksum)) if checksum_agrees(le32(bytes, place), checksum) => Ok(()),
            _ => Err(FsError::corrupt(Structure::HashTreeChecksum, at, 0)),
        };
    }
    if dirent::checksum_matches(bytes, seed) {
        return Ok(());
    }
    Err(FsError::corrupt(
        Structure::DirectoryChecksum,
        at,
        le32(bytes, bytes.len() - 4).into(),
    ))
}
