//! Index blocks of hashed directories, from and to bytes.
//!
//! ```text
//!  block 0: "." ".." | kind of hash, levels | limit, count, block | hash, block | hash, block ...
//!  node:    one free entry, the whole block | limit, count, block | hash, block | ...
//! ```
//!
//! The first entry has no hash: it stands for everything below the second. Bit 0 of a hash says that names with this
//! hash are also in the block before.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Hash Tree Directories".

use super::bytes::{le16, le32, put_le16, put_le32};
use super::checksum::crc32c;
use crate::fs::error::{FsError, Structure};
use alloc::vec::Vec;

const ROOT_ENTRIES: usize = 0x20;
const NODE_ENTRIES: usize = 8;
const ENTRY: usize = 8;
const TAIL: usize = 8;

/// What block 0 says about the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootInfo {
    /// The number of the hash function.
    pub(super) hash: u8,
    /// Levels of nodes between block 0 and the leaves.
    pub(super) levels: u8,
}

/// An index block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IndexBlock {
    /// Whether it is block 0.
    pub(super) is_root: bool,
    /// Hashes from which on names are in the blocks.
    pub(super) entries: Vec<(u32, u32)>,
    /// How many entries fit.
    pub(super) limit: usize,
}

/// Reads what block 0 says about the tree.
pub(super) fn root_info(block: &[u8], at: u64, max_levels: u8) -> Result<RootInfo, FsError> {
    let wrong = |value: u8| Err(FsError::corrupt(Structure::HashTree, at, value.into()));
    let (hash, info_len, levels) = (block[0x1c], block[0x1d], block[0x1e]);
    if info_len != 8 {
        return wrong(info_len);
    }
    if levels > max_levels {
        return wrong(levels);
    }
    if le16(block, 4) != 12 || usize::from(le16(block, 16)) != block.len() - 12 {
        return wrong(block[4]);
    }
    Ok(RootInfo { hash, levels })
}

/// Whether a block that is not block 0 is a node: one free entry fills it.
pub(super) fn is_node(block: &[u8]) -> bool {
    le32(block, 0) == 0 && usize::from(le16(block, 4)) == block.len()
}

impl IndexBlock {
    /// Reads block `at` of the device.
    pub(super) fn decode(
        block: &[u8],
        at: u64,
        is_root: bool,
        has_tail: bool,
    ) -> Result<Self, FsError> {
        let start = entries_at(is_root);
        let (limit, count) = (
            usize::from(le16(block, start)),
            usize::from(le16(block, start + 2)),
        );
        if limit != capacity(block.len(), is_root, has_tail) || count == 0 || count > limit {
            let value = (limit << 16 | count) as u64;
            return Err(FsError::corrupt(Structure::HashTree, at, value));
        }
        let entry = |i: usize| {
            let hash = if i == 0 {
                0
            } else {
                le32(block, start + i * ENTRY)
            };
            (hash, le32(block, start + i * ENTRY + 4))
        };
        let entries: Vec<_> = (0..count).map(entry).collect();
        if let Some(wrong) = entries.windows(2).find(|pair| pair[1].0 < pair[0].0) {
            return Err(FsError::corrupt(Structure::HashTree, at, wrong[1].0.into()));
        }
        Ok(Self {
            is_root,
            entries,
            limit,
        })
    }

    /// Writes entries and their count; the rest of the block stays.
    pub(super) fn encode(&self, block: &mut [u8]) {
        let start = entries_at(self.is_root);
        for (i, &(hash, child)) in self.entries.iter().enumerate() {
            put_le32(block, start + i * ENTRY, hash);
            put_le32(block, start + i * ENTRY + 4, child);
        }
        put_le16(block, start, self.limit as u16);
        put_le16(block, start + 2, self.entries.len() as u16);
    }

    /// Which entry leads to `hash`.
    pub(super) fn position(&self, hash: u32) -> usize {
        self.entries
            .partition_point(|&(first, _)| first <= hash)
            .saturating_sub(1)
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.limit
    }
}

/// How many entries fit into an index block of `len` bytes.
pub(super) fn capacity(len: usize, is_root: bool, has_tail: bool) -> usize {
    (len - entries_at(is_root) - if has_tail { TAIL } else { 0 }) / ENTRY
}

/// Makes `block` a node without entries.
pub(super) fn clear_node(block: &mut [u8]) {
    block.fill(0);
    let len = block.len() as u16;
    put_le16(block, 4, len);
}

/// Makes `block`, which begins with "." and "..", the root of a tree.
pub(super) fn make_root(block: &mut [u8], info: RootInfo) {
    let len = block.len();
    block[0x18..].fill(0);
    put_le16(block, 16, (len - 12) as u16);
    block[0x1c] = info.hash;
    block[0x1d] = 8;
    block[0x1e] = info.levels;
}

/// The checksum of an index block, and where it belongs: both follow from its own limit and count.
pub(super) fn checksum(block: &[u8], is_root: bool, seed: u32) -> Option<(usize, u32)> {
    let start = entries_at(is_root);
    let (limit, count) = (
        usize::from(le16(block, start)),
        usize::from(le16(block, start + 2)),
    );
    let tail = start + limit * ENTRY;
    if tail + TAIL > block.len() || count > limit {
        return None;
    }
    let crc = crc32c(seed, &block[..start + count * ENTRY]);
    let crc = crc32c(crc, &block[tail..tail + 4]);
    Some((tail + 4, crc32c(crc, &[0; 4])))
}

fn entries_at(is_root: bool) -> usize {
    if is_root { ROOT_ENTRIES } else { NODE_ENTRIES }
}
