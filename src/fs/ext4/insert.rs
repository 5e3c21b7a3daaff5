//! Adding names to directories, and taking them away.
//!
//! A directory of one block becomes a hash tree when the block is full. A full leaf is split at the middle of its
//! names' hashes; the new leaf needs an entry in the node above, which may have to be split first, and so on up to the
//! root, which gets a level beneath it when it is full. Each of these makes room for the next, so they are tried one
//! after the other until the name fits.

use super::bytes::put_le32;
use super::directory::{Found, TreePath};
use super::dirent;
use super::extent::Run;
use super::features::{COMPAT_DIR_INDEX, INCOMPAT_FILETYPE};
use super::hash::HashKind;
use super::htree::{self, IndexBlock, RootInfo};
use super::inode::{EXTENTS, INDEX, Inode};
use super::volume::Volume;
use crate::fs::error::{FsError, Structure};
use alloc::vec::Vec;

/// More than the levels of a tree plus one split in each.
const MAX_ATTEMPTS: u32 = 10;

/// A name and what it is for.
#[derive(Clone, Copy)]
pub(super) struct NewName<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    /// The directory entry's type byte.
    pub(super) kind: u8,
}

impl Volume {
    /// Adds a name that the directory does not have. The caller writes the directory's inode.
    pub(super) fn insert_name(
        &mut self,
        directory: &mut Inode,
        new: NewName<'_>,
    ) -> Result<(), FsError> {
        let has_kind = self.superblock.features.has_incompat(INCOMPAT_FILETYPE);
        let new = NewName {
            kind: if has_kind { new.kind } else { 0 },
            ..new
        };
        if self.has_tree(directory) {
            return self.insert_by_hash(directory, new);
        }
        let blocks = self.directory_blocks(directory);
        for block in 0..blocks {
            let (at, _) = self.directory_block(directory, block)?;
            if self.insert_into(directory, at, new)? {
                return Ok(());
            }
        }
        if blocks == 1
            && self.superblock.features.has_compat(COMPAT_DIR_INDEX)
            && self.make_tree(directory)?
        {
            return self.insert_by_hash(directory, new);
        }
        // Names in an unordered block would be invisible to a tree that nobody keeps.
        directory.set_flags(directory.flags() & !INDEX);
        let (_, at) = self.append_block(directory)?;
        self.clear_leaf(directory, at)?;
        if self.insert_into(directory, at, new)? {
            Ok(())
        } else {
            Err(FsError::NameTooLong)
        }
    }

    /// Takes a found name out of its block.
    pub(super) fn remove_name(&mut self, directory: &Inode, found: Found) -> Result<(), FsError> {
        dirent::remove(self.store.modify(found.block)?, found.block, found.at)?;
        self.seal_leaf(directory, found.block)
    }

    /// Makes a found name mean another file.
    pub(super) fn redirect_name(
        &mut self,
        directory: &Inode,
        found: Found,
        inode: u32,
        kind: u8,
    ) -> Result<(), FsError> {
        let has_kind = self.superblock.features.has_incompat(INCOMPAT_FILETYPE);
        let bytes = self.store.modify(found.block)?;
        put_le32(bytes, found.at, inode);
        bytes[found.at + 7] = if has_kind { kind } else { 0 };
        let (first, _) = self.directory_block(directory, 0)?;
        if found.block == first && self.has_tree(directory) {
            return self.seal_index(directory, found.block, true);
        }
        self.seal_leaf(directory, found.block)
    }

    /// Makes the first block of a new directory.
    pub(super) fn make_directory(
        &mut self,
        directory: &mut Inode,
        parent: u32,
    ) -> Result<(), FsError> {
        let has_kind = self.superblock.features.has_incompat(INCOMPAT_FILETYPE);
        let has_tail = self.superblock.has_checksums();
        let kind = if has_kind { 2 } else { 0 };
        let (_, at) = self.append_block(directory)?;
        let number = directory.number;
        let bytes = self.store.modify(at)?;
        dirent::clear(bytes, has_tail);
        let end = dirent::usable(bytes.len(), has_tail);
        dirent::put(bytes, 0, 12, number, kind, b".");
        dirent::put(bytes, 12, end - 12, parent, kind, b"..");
        self.seal_leaf(directory, at)
    }

    /// Gives the file another block of metadata at its end: its number there, and on the device.
    pub(super) fn append_block(&mut self, inode: &mut Inode) -> Result<(u32, u64), FsError> {
        let size = self.superblock.block_size as u64;
        let block = u32::try_from(inode.size() / size).map_err(|_| FsError::FileTooLarge)?;
        let goal = match block.checked_sub(1) {
            Some(last) => self.block_of(inode, last)? + 1,
            None => self.goal_of(inode),
        };
        let place = self.allocate_metadata(inode, goal)?;
        if inode.has_flag(EXTENTS) {
            self.insert_run(
                inode,
                Run {
                    first: block,
                    len: 1,
                    start: place,
                    is_written: true,
                },
            )?;
        } else {
            self.insert_pointers(inode, block, 1, place)?;
        }
        inode.set_size(inode.size() + size);
        Ok((block, place))
    }

    fn insert_into(
        &mut self,
        directory: &Inode,
        at: u64,
        new: NewName<'_>,
    ) -> Result<bool, FsError> {
        let has_tail = self.superblock.has_checksums();
        let bytes = self.store.read(at)?;
        let mut changed = bytes.to_vec();
        if !dirent::insert(&mut changed, at, new.inode, new.kind, new.name, has_tail)? {
            return Ok(false);
        }
        self.store.modify(at)?.copy_from_slice(&changed);
        self.seal_leaf(directory, at)?;
        Ok(true)
    }

    fn insert_by_hash(&mut self, directory: &mut Inode, new: NewName<'_>) -> Result<(), FsError> {
        for _ in 0..MAX_ATTEMPTS {
            let hash = self
                .tree_kind(directory)?
                .hash(new.name, self.superblock.hash_seed);
            let path = self.tree_path(directory, hash)?;
            let (at, _) = self.directory_block(directory, path.leaf)?;
            if self.insert_into(directory, at, new)? {
                return Ok(());
            }
            self.make_room(directory, &path)?;
        }
        Err(FsError::NoSpace)
    }

    /// Splits one block on the path: the leaf, or if the node above has no room for another entry, that; or so on.
    fn make_room(&mut self, directory: &mut Inode, path: &TreePath) -> Result<(), FsError> {
        let Some(not_full) = path.steps.iter().rposition(|step| !step.index.is_full()) else {
            return self.add_level(directory, path);
        };
        if not_full + 1 == path.steps.len() {
            return self.split_leaf(directory, path);
        }
        // The node below it is full: its upper half moves to a new one.
        let (block, place) = self.append_block(directory)?;
        let step = &path.steps[not_full + 1];
        let mut lower = step.index.clone();
        let upper = lower.entries.split_off(lower.entries.len() / 2);
        let Some(&(hash, _)) = upper.first() else {
            return Err(FsError::corrupt(Structure::HashTree, step.block, 0));
        };
        htree::clear_node(self.store.modify(place)?);
        let upper = IndexBlock {
            entries: upper,
            ..lower.clone()
        };
        self.put_index(directory, place, &upper)?;
        self.put_index(directory, step.block, &lower)?;
        let above = &path.steps[not_full];
        let mut index = above.index.clone();
        index.entries.insert(above.position + 1, (hash, block));
        self.put_index(directory, above.block, &index)
    }

    /// Moves the root's entries to a node below it.
    fn add_level(&mut self, directory: &mut Inode, path: &TreePath) -> Result<(), FsError> {
        if path.info.levels >= self.max_tree_levels() {
            return Err(FsError::NoSpace);
        }
        let (block, place) = self.append_block(directory)?;
        let root = &path.steps[0];
        let has_tail = self.superblock.has_checksums();
        let limit = htree::capacity(self.superblock.block_size, false, has_tail);
        htree::clear_node(self.store.modify(place)?);
        let node = IndexBlock {
            is_root: false,
            entries: root.index.entries.clone(),
            limit,
        };
        self.put_index(directory, place, &node)?;
        let info = RootInfo {
            levels: path.info.levels + 1,
            ..path.info
        };
        htree::make_root(self.store.modify(root.block)?, info);
        let index = IndexBlock {
            entries: Vec::from([(0, block)]),
            ..root.index.clone()
        };
        self.put_index(directory, root.block, &index)
    }

    /// Moves the upper half of a leaf's names, by hash, to a new leaf.
    fn split_leaf(&mut self, directory: &mut Inode, path: &TreePath) -> Result<(), FsError> {
        let (at, bytes) = self.directory_block(directory, path.leaf)?;
        let names = self.hashed_names(&bytes, at, path.kind)?;
        let Some(middle) = middle(&names) else {
            return Err(FsError::corrupt(
                Structure::HashTree,
                at,
                names.len() as u64,
            ));
        };
        let (block, place) = self.append_block(directory)?;
        self.put_names(directory, at, &names[..middle])?;
        self.put_names(directory, place, &names[middle..])?;
        let hash = names[middle].hash;
        // Names of one hash on both sides: whoever looks for them must go on.
        let goes_on = u32::from(names[middle - 1].hash == hash);
        let Some(step) = path.steps.last() else {
            return Err(FsError::corrupt(Structure::HashTree, at, 0));
        };
        let mut index = step.index.clone();
        index
            .entries
            .insert(step.position + 1, (hash | goes_on, block));
        self.put_index(directory, step.block, &index)
    }

    /// Makes a tree of a directory with one block. Says no if its names cannot be told apart by where they lie.
    fn make_tree(&mut self, directory: &mut Inode) -> Result<bool, FsError> {
        let code = self.superblock.default_hash;
        let Some(kind) = HashKind::decode(code, &self.superblock).filter(|_| code < 3) else {
            return Ok(false);
        };
        let (root, bytes) = self.directory_block(directory, 0)?;
        let mut names = self.hashed_names(&bytes, root, kind)?;
        let has_dots = dirent::entries(&bytes, root)
            .take(2)
            .map(|entry| entry.map(|entry| (entry.at, entry.name == b"." || entry.name == b"..")));
        let has_dots: Result<Vec<_>, _> = has_dots.collect();
        if has_dots? != [(0, true), (12, true)] {
            return Ok(false);
        }
        names.retain(|name| name.name != b"." && name.name != b"..");
        let (leaf, place) = self.append_block(directory)?;
        self.put_names(directory, place, &names)?;
        let has_tail = self.superblock.has_checksums();
        let limit = htree::capacity(self.superblock.block_size, true, has_tail);
        // The tree says which hash it is; signedness is the superblock's, as before.
        let hash = if self.superblock.is_hash_unsigned {
            code + 3
        } else {
            code
        };
        htree::make_root(self.store.modify(root)?, RootInfo { hash, levels: 0 });
        directory.set_flags(directory.flags() | INDEX);
        let index = IndexBlock {
            is_root: true,
            entries: Vec::from([(0, leaf)]),
            limit,
        };
        self.put_index(directory, root, &index)?;
        Ok(true)
    }

    /// The names of a block in the order of their hashes.
    fn hashed_names(
        &self,
        bytes: &[u8],
        at: u64,
        kind: HashKind,
    ) -> Result<Vec<HashedName>, FsError> {
        let mut names = Vec::new();
        for entry in dirent::entries(bytes, at) {
            let entry = entry?;
            if entry.inode != 0 {
                names.push(HashedName {
                    hash: kind.hash(entry.name, self.superblock.hash_seed),
                    inode: entry.inode,
                    kind: entry.kind,
                    name: entry.name.to_vec(),
                });
            }
        }
        names.sort_by_key(|name| name.hash);
        Ok(names)
    }

    fn put_names(
        &mut self,
        directory: &Inode,
        at: u64,
        names: &[HashedName],
    ) -> Result<(), FsError> {
        let has_tail = self.superblock.has_checksums();
        let bytes = self.store.modify(at)?;
        dirent::clear(bytes, has_tail);
        for name in names {
            if !dirent::insert(bytes, at, name.inode, name.kind, &name.name, has_tail)? {
                return Err(FsError::corrupt(
                    Structure::DirectoryEntry,
                    at,
                    name.hash.into(),
                ));
            }
        }
        self.seal_leaf(directory, at)
    }

    fn clear_leaf(&mut self, directory: &Inode, at: u64) -> Result<(), FsError> {
        self.put_names(directory, at, &[])
    }

    fn put_index(&mut self, directory: &Inode, at: u64, index: &IndexBlock) -> Result<(), FsError> {
        index.encode(self.store.modify(at)?);
        self.seal_index(directory, at, index.is_root)
    }

    fn seal_leaf(&mut self, directory: &Inode, at: u64) -> Result<(), FsError> {
        if self.superblock.has_checksums() {
            let seed = directory.checksum_seed(&self.superblock);
            dirent::seal(self.store.modify(at)?, seed);
        }
        Ok(())
    }

    fn seal_index(&mut self, directory: &Inode, at: u64, is_root: bool) -> Result<(), FsError> {
        if !self.superblock.has_checksums() {
            return Ok(());
        }
        let seed = directory.checksum_seed(&self.superblock);
        let bytes = self.store.modify(at)?;
        let Some((place, checksum)) = htree::checksum(bytes, is_root, seed) else {
            return Err(FsError::corrupt(Structure::HashTree, at, 0));
        };
        put_le32(bytes, place, checksum);
        Ok(())
    }
}

struct HashedName {
    hash: u32,
    inode: u32,
    kind: u8,
    name: Vec<u8>,
}

/// Where to split sorted names: half of their bytes on each side, and not between equal hashes if that can be avoided.
fn middle(names: &[HashedName]) -> Option<usize> {
    let sizes = names.iter().map(|name| dirent::needed(name.name.len()));
    let half = sizes.clone().sum::<usize>() / 2;
    let mut sum = 0;
    let at = sizes.take_while(|size| {
        sum += size;
        sum <= half
    });
    let at = at
        .count()
        .clamp(1, names.len().checked_sub(1).filter(|&last| last > 0)?);
    let is_between = |i: &usize| names[*i - 1].hash != names[*i].hash;
    let nearby = (at..names.len())
        .find(is_between)
        .into_iter()
        .chain((1..at).rev().find(is_between));
    nearby.min_by_key(|i| i.abs_diff(at)).or(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_of(hashes: &[u32]) -> Option<usize> {
        let name = |&hash: &u32| HashedName {
            hash,
            inode: 12,
            kind: 1,
            name: alloc::vec![b'x'; 20],
        };
        middle(&hashes.iter().map(name).collect::<Vec<_>>())
    }

    #[test]
    fn equal_hashes_stay_together_where_they_can() {
        assert_eq!(split_of(&[1, 2, 3, 4]), Some(2));
        assert_eq!(split_of(&[1, 2, 2, 4]), Some(3));
        assert_eq!(split_of(&[1, 2, 2, 2, 2, 2]), Some(1));
        assert_eq!(split_of(&[2, 2, 2, 2]), Some(2));
        assert_eq!(split_of(&[2]), None);
        assert_eq!(split_of(&[]), None);
    }
}
