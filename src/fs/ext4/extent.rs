//! Nodes of the extent tree, from and to bytes.
//!
//! ```text
//!  inode: header, 4 entries         depth 2
//!           | index (first block of the file -> child)
//!  block: header, 84..340 entries   depth 1
//!           |
//!  block: header, 84..340 extents   depth 0     (first block of the file, length, first block on the device)
//! ```
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Extent Tree".

use super::bytes::{halves32, le16, le32, put_le16, put_le32};
use super::checksum::crc32c;
use super::superblock::Superblock;
use crate::fs::error::{FsError, Structure};
use alloc::vec::Vec;

/// No tree is deeper: five levels of the smallest nodes hold more blocks than a file can have.
pub(super) const MAX_DEPTH: u16 = 5;
/// The longest extent, and the longest that was never written.
pub(super) const MAX_WRITTEN: u32 = 32768;
pub(super) const MAX_UNWRITTEN: u32 = 32767;

const MAGIC: u16 = 0xf30a;
const HEADER: usize = 12;
const ENTRY: usize = 12;

/// A run of a file's blocks on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First block of the file.
    pub(super) first: u32,
    /// How many.
    pub(super) len: u32,
    /// First block on the device.
    pub(super) start: u64,
    /// Whether the blocks hold data; else they are allocated and read as zeros.
    pub(super) is_written: bool,
}

impl Run {
    /// The file's block after the last of the run.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.len)
    }

    /// Whether `next` continues this run and both fit into one extent.
    pub(super) fn joins(&self, next: &Self) -> bool {
        let longest = if self.is_written {
            MAX_WRITTEN
        } else {
            MAX_UNWRITTEN
        };
        self.end() == u64::from(next.first)
            && self.start + u64::from(self.len) == next.start
            && self.is_written == next.is_written
            && self.len + next.len <= longest
    }

    /// The part of this run that lies in `first..end`.
    pub(super) fn cut(&self, first: u64, end: u64) -> Option<Self> {
        let from = first.max(self.first.into());
        let to = end.min(self.end());
        (from < to).then(|| Self {
            first: from as u32,
            len: (to - from) as u32,
            start: self.start + (from - u64::from(self.first)),
            is_written: self.is_written,
        })
    }
}

/// An entry of an inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// First block of the file that lies below.
    pub(super) first: u32,
    /// The block of the child node.
    pub(super) child: u64,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entries {
    Runs(Vec<Run>),
    Indexes(Vec<Index>),
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Levels below this one.
    pub(super) depth: u16,
    pub(super) entries: Entries,
}

impl Node {
    /// An empty tree's root.
    pub(super) const EMPTY: Self = Self {
        depth: 0,
        entries: Entries::Runs(Vec::new()),
    };

    /// Reads a node that lies at `at`; `superblock` says which blocks exist.
    pub(super) fn decode(bytes: &[u8], at: u64, superblock: &Superblock) -> Result<Self, FsError> {
        let wrong = |value: u64| FsError::corrupt(Structure::ExtentHeader, at, value);
        let (magic, count, max, depth) = (
            le16(bytes, 0),
            le16(bytes, 2),
            le16(bytes, 4),
            le16(bytes, 6),
        );
        if magic != MAGIC {
            return Err(wrong(magic.into()));
        }
        if usize::from(max) > capacity(bytes.len()) || count > max {
            return Err(wrong(u64::from(max) << 16 | u64::from(count)));
        }
        if depth > MAX_DEPTH || (depth > 0 && count == 0) {
            return Err(FsError::corrupt(Structure::ExtentDepth, at, depth.into()));
        }
        let raw = bytes[HEADER..].chunks_exact(ENTRY).take(count.into());
        let entries = if depth == 0 {
            Entries::Runs(raw.map(run).collect())
        } else {
            Entries::Indexes(raw.map(index).collect())
        };
        let node = Self { depth, entries };
        node.check(at, superblock)?;
        Ok(node)
    }

    /// Whether entries are in order, apart from each other, and point into the file system.
    fn check(&self, at: u64, superblock: &Superblock) -> Result<(), FsError> {
        let wrong = |value: u64| Err(FsError::corrupt(Structure::Extent, at, value));
        let mut end = 0;
        match &self.entries {
            Entries::Runs(runs) => {
                for run in runs {
                    let is_long = run.end() > 1 << 32;
                    if u64::from(run.first) < end || run.len == 0 || is_long {
                        return wrong(run.first.into());
                    }
                    if !superblock.contains(run.start, run.len.into()) {
                        return wrong(run.start);
                    }
                    end = run.end();
                }
            }
            Entries::Indexes(indexes) => {
                for index in indexes {
                    if u64::from(index.first) < end {
                        return wrong(index.first.into());
                    }
                    if !superblock.contains(index.child, 1) {
                        return wrong(index.child);
                    }
                    end = u64::from(index.first) + 1;
                }
            }
        }
        Ok(())
    }

    /// Writes the node over `bytes`, which are the inode's map or a whole block. The checksum is the caller's.
    pub(super) fn encode(&self, bytes: &mut [u8]) {
        let max = capacity(bytes.len());
        debug_assert!(self.len() <= max);
        bytes[..HEADER].fill(0);
        put_le16(bytes, 0, MAGIC);
        put_le16(bytes, 2, self.len() as u16);
        put_le16(bytes, 4, max as u16);
        put_le16(bytes, 6, self.depth);
        bytes[HEADER..HEADER + max * ENTRY].fill(0);
        for i in 0..self.len() {
            let entry = &mut bytes[HEADER + i * ENTRY..][..ENTRY];
            match &self.entries {
                Entries::Runs(runs) => {
                    let run = runs[i];
                    let len = if run.is_written {
                        run.len
                    } else {
                        run.len + MAX_WRITTEN
                    };
                    put_le32(entry, 0, run.first);
                    put_le16(entry, 4, len as u16);
                    put_le16(entry, 6, (run.start >> 32) as u16);
                    put_le32(entry, 8, run.start as u32);
                }
                Entries::Indexes(indexes) => {
                    let index = indexes[i];
                    put_le32(entry, 0, index.first);
                    put_le32(entry, 4, index.child as u32);
                    put_le16(entry, 8, (index.child >> 32) as u16);
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.entries {
            Entries::Runs(runs) => runs.len(),
            Entries::Indexes(indexes) => indexes.len(),
        }
    }

    /// The file's first block below this node.
    pub(super) fn first(&self) -> Option<u32> {
        match &self.entries {
            Entries::Runs(runs) => runs.first().map(|run| run.first),
            Entries::Indexes(indexes) => indexes.first().map(|index| index.first),
        }
    }
}

/// How many entries fit into a node of `len` bytes. After them a block keeps its checksum.
pub(super) fn capacity(len: usize) -> usize {
    (len - HEADER) / ENTRY
}

/// The checksum of the node in a block; `seed` is the inode's. Returns where it belongs, too.
pub(super) fn checksum(block: &[u8], seed: u32) -> (usize, u32) {
    // A damaged header must not lead outside the block.
    let max = usize::from(le16(block, 4)).min(capacity(block.len() - 4));
    let at = HEADER + max * ENTRY;
    (at, crc32c(seed, &block[..at]))
}

fn run(entry: &[u8]) -> Run {
    let len = u32::from(le16(entry, 4));
    let is_written = len <= MAX_WRITTEN;
    Run {
        first: le32(entry, 0),
        len: if is_written { len } else { len - MAX_WRITTEN },
        start: halves32(le32(entry, 8), le16(entry, 6).into()),
        is_written,
    }
}

fn index(entry: &[u8]) -> Index {
    Index {
        first: le32(entry, 0),
        child: halves32(le32(entry, 4), le16(entry, 8).into()),
    }
}
