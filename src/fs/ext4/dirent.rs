//! Directory blocks: entries one after the other, each as long as it says, filling the block exactly.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Directory Entries".

use super::bytes::{le16, le32, put_le16, put_le32};
use super::checksum::crc32c;
use crate::fs::FileKind;
use crate::fs::checksum_agrees;
use crate::fs::error::{FsError, Structure};

/// Bytes before the name.
const HEADER: usize = 8;
/// Bytes of the fake entry at a block's end that holds its checksum.
pub(super) const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xde;

/// One entry, where it lies in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// The inode, or 0 for free space.
    pub(super) inode: u32,
    /// The type byte, or 0 where the format keeps none.
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
    /// Where it begins.
    pub(super) at: usize,
    /// Bytes up to the next.
    pub(super) len: usize,
}

impl Entry<'_> {
    /// Bytes it needs; the rest up to `len` is free.
    pub(super) fn needed(&self) -> usize {
        if self.inode == 0 {
            0
        } else {
            needed(self.name.len())
        }
    }
}

/// Bytes an entry with a name of `len` bytes needs.
pub(super) fn needed(len: usize) -> usize {
    (HEADER + len).next_multiple_of(4)
}

/// The entries of a block that is block `at` of the device; free ones too. Ends after the first wrong one.
pub(super) fn entries(block: &[u8], at: u64) -> impl Iterator<Item = Result<Entry<'_>, FsError>> {
    let mut next = 0;
    core::iter::from_fn(move || {
        if next >= block.len() {
            return None;
        }
        let entry = entry(block, next, at);
        next = entry.map_or(block.len(), |entry| entry.at + entry.len);
        Some(entry)
    })
}

fn entry(block: &[u8], at: usize, block_number: u64) -> Result<Entry<'_>, FsError> {
    let wrong = FsError::corrupt(Structure::DirectoryEntry, block_number, at as u64);
    if at + HEADER > block.len() {
        return Err(wrong);
    }
    let len = usize::from(le16(block, at + 4));
    let name_len = usize::from(block[at + 6]);
    if len < HEADER || !len.is_multiple_of(4) || at + len > block.len() || HEADER + name_len > len {
        return Err(wrong);
    }
    let inode = le32(block, at);
    let name = &block[at + HEADER..at + HEADER + name_len];
    if inode != 0 && (name.is_empty() || name.contains(&b'/') || name.contains(&0)) {
        return Err(wrong);
    }
    Ok(Entry {
        inode,
        kind: block[at + 7],
        name,
        at,
        len,
    })
}

/// The kind of file a type byte stands for.
pub(super) fn kind(code: u8) -> Option<FileKind> {
    Some(match code {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::CharacterDevice,
        4 => FileKind::BlockDevice,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Symlink,
        _ => return None,
    })
}

/// Writes an entry of `len` bytes at `at`.
pub(super) fn put(block: &mut [u8], at: usize, len: usize, inode: u32, kind: u8, name: &[u8]) {
    put_le32(block, at, inode);
    put_le16(block, at + 4, len as u16);
    block[at + 6] = name.len() as u8;
    block[at + 7] = kind;
    block[at + HEADER..at + HEADER + name.len()].copy_from_slice(name);
}

/// Makes `block` an empty directory block: one free entry, and a tail where blocks have checksums.
pub(super) fn clear(block: &mut [u8], has_tail: bool) {
    block.fill(0);
    let end = usable(block.len(), has_tail);
    put(block, 0, end, 0, 0, &[]);
    if has_tail {
        put(block, end, TAIL, 0, TAIL_TYPE, &[]);
        block[end + 6] = 0;
    }
}

/// Bytes for entries in a block of `len`.
pub(super) fn usable(len: usize, has_tail: bool) -> usize {
    if has_tail { len - TAIL } else { len }
}

/// Puts an entry into the first gap large enough, if there is one.
pub(super) fn insert(
    block: &mut [u8],
    block_number: u64,
    inode: u32,
    kind: u8,
    name: &[u8],
    has_tail: bool,
) -> Result<bool, FsError> {
    let wanted = needed(name.len());
    let end = usable(block.len(), has_tail);
    let mut found = None;
    for entry in entries(&block[..end], block_number) {
        let entry = entry?;
        if entry.len - entry.needed() >= wanted {
            found = Some((entry.at, entry.len, entry.needed()));
            break;
        }
    }
    let Some((at, len, used)) = found else {
        return Ok(false);
    };
    if used > 0 {
        put_le16(block, at + 4, used as u16);
    }
    put(block, at + used, len - used, inode, kind, name);
    Ok(true)
}

/// Takes out the entry that begins at `at`: the one before swallows it, else it becomes free space.
pub(super) fn remove(block: &mut [u8], block_number: u64, at: usize) -> Result<(), FsError> {
    let mut before = None;
    let mut found = None;
    for entry in entries(block, block_number) {
        let entry = entry?;
        if entry.at == at {
            found = Some(entry.len);
            break;
        }
        before = Some((entry.at, entry.len));
    }
    match (found, before) {
        (Some(len), Some((start, before_len))) => {
            put_le16(block, start + 4, (before_len + len) as u16)
        }
        (Some(_), None) => put_le32(block, at, 0),
        (None, _) => {
            return Err(FsError::corrupt(
                Structure::DirectoryEntry,
                block_number,
                at as u64,
            ));
        }
    }
    Ok(())
}

/// Whether the block ends with the fake entry that holds its checksum.
pub(super) fn has_tail(block: &[u8]) -> bool {
    let at = block.len() - TAIL;
    le32(block, at) == 0 && le16(block, at + 4) == TAIL as u16 && block[at + 7] == TAIL_TYPE
}

/// Whether the checksum at the end of the block is right.
pub(super) fn checksum_matches(block: &[u8], seed: u32) -> bool {
    let end = block.len() - TAIL;
    has_tail(block) && checksum_agrees(le32(block, end + 8), crc32c(seed, &block[..end]))
}

/// Writes the checksum at the end of the block.
pub(super) fn seal(block: &mut [u8], seed: u32) {
    let (end, len) = (block.len() - TAIL, block.len());
    let checksum = crc32c(seed, &block[..end]);
    put_le32(block, len - 4, checksum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn names(block: &[u8]) -> Vec<&[u8]> {
        let entries = entries(block, 0).map(Result::unwrap);
        entries
            .filter(|entry| entry.inode != 0)
            .map(|entry| entry.name)
            .collect()
    }

    #[test]
    fn entries_come_and_go() {
        let mut block = [0; 1024];
        clear(&mut block, true);
        for name in [&b"one"[..], b"two", b"three"] {
            assert_eq!(insert(&mut block, 0, 12, 1, name, true), Ok(true));
        }
        assert_eq!(names(&block), [&b"one"[..], b"two", b"three"]);
        let at = entries(&block, 0)
            .map(Result::unwrap)
            .find(|entry| entry.name == b"two")
            .unwrap()
            .at;
        remove(&mut block, 0, at).unwrap();
        remove(&mut block, 0, 0).unwrap();
        assert_eq!(names(&block), [&b"three"[..]]);
        assert!(has_tail(&block));
    }

    #[test]
    fn a_full_block_takes_no_more() {
        let mut block = [0; 1024];
        clear(&mut block, true);
        let mut count = 0;
        while insert(&mut block, 0, 12, 1, &[b'x'; 92], true).unwrap() {
            count += 1;
        }
        assert_eq!(count, (1024 - TAIL) / 100);
        assert!(has_tail(&block));
    }

    #[test]
    fn an_entry_that_reaches_outside_the_block_is_an_error() {
        let mut block = [0; 1024];
        clear(&mut block, false);
        for len in [0u16, 4, 9, 1028, u16::MAX] {
            put_le16(&mut block, 4, len);
            assert!(entries(&block, 5).any(|entry| entry.is_err()), "{len}");
        }
    }
}
