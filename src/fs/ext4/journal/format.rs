//! JBD2's blocks, from and to bytes. All of it is big-endian.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Journal (jbd2)".

use crate::fs::checksum_agrees;
use crate::fs::error::{FeatureSet, FsError, Structure, Unsupported};
use crate::fs::ext4::bytes::{be16, be32, be64, halves32, put_be16, put_be32, put_be64};
use crate::fs::ext4::checksum::{START, crc32c};
use alloc::vec::Vec;

pub(super) const MAGIC: u32 = 0xc03b_3998;
pub(super) const HEADER: usize = 12;

pub(super) const DESCRIPTOR: u32 = 1;
pub(super) const COMMIT: u32 = 2;
const SUPERBLOCK_V2: u32 = 4;
pub(super) const REVOKE: u32 = 5;

const INCOMPAT_REVOKE: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 =
    INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3 | INCOMPAT_FAST_COMMIT;
/// `s_checksum_type`: CRC-32C.
const CRC32C: u8 = 4;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

const SUPERBLOCK_CHECKSUM: usize = 0xfc;

/// The journal's superblock, with the bytes it came from.
#[derive(Clone, Debug)]
pub(super) struct JournalSuperblock {
    bytes: Vec<u8>,
    pub(super) format: Format,
    /// Blocks of the log, the superblock included.
    pub(super) blocks: u32,
    /// First block that belongs to the log.
    pub(super) first: u32,
    /// The block after the last that belongs to the log; fast commits come after it.
    pub(super) end: u32,
    /// Number of the first transaction in the log, or of the next to come.
    pub(super) sequence: u32,
    /// Where the first transaction begins; 0: the log is empty.
    pub(super) start: u32,
}

/// How blocks of this journal are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    is_64bit: bool,
    checksums: Checksums,
    seed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksums {
    None,
    V2,
    V3,
}

impl JournalSuperblock {
    /// Reads and checks the journal's first block.
    pub(super) fn decode(block: &[u8]) -> Result<Self, FsError> {
        let wrong = |at, value: u32| {
            Err(FsError::corrupt(
                Structure::JournalSuperblock,
                at,
                value.into(),
            ))
        };
        if be32(block, 0) != MAGIC {
            return wrong(0, be32(block, 0));
        }
        if be32(block, 4) != SUPERBLOCK_V2 {
            return wrong(4, be32(block, 4));
        }
        let incompat = be32(block, 0x28);
        let unknown = incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(FsError::Unsupported(Unsupported {
                set: FeatureSet::Journal,
                bits: unknown,
            }));
        }
        let checksums = match (
            incompat & INCOMPAT_CSUM_V2 != 0,
            incompat & INCOMPAT_CSUM_V3 != 0,
        ) {
            (false, false) => Checksums::None,
            (true, false) => Checksums::V2,
            (false, true) => Checksums::V3,
            (true, true) => return wrong(0x28, incompat),
        };
        if checksums != Checksums::None {
            if block[0x50] != CRC32C {
                return wrong(0x50, block[0x50].into());
            }
            let stored = be32(block, SUPERBLOCK_CHECKSUM);
            if !checksum_agrees(stored, superblock_checksum(block)) {
                return wrong(SUPERBLOCK_CHECKSUM as u64, stored);
            }
        }
        let fast = match be32(block, 0x54) {
            _ if incompat & INCOMPAT_FAST_COMMIT == 0 => 0,
            0 => 256,
            count => count,
        };
        let blocks = be32(block, 0x10);
        let superblock = Self {
            bytes: block[..1024].to_vec(),
            format: Format {
                is_64bit: incompat & INCOMPAT_64BIT != 0,
                checksums,
                seed: crc32c(START, &block[0x30..0x40]),
            },
            blocks,
            first: be32(block, 0x14),
            end: blocks.saturating_sub(fast),
            sequence: be32(block, 0x18),
            start: be32(block, 0x1c),
        };
        if be32(block, 0x0c) as usize != block.len() {
            return wrong(0x0c, be32(block, 0x0c));
        }
        if superblock.first == 0 || superblock.first >= superblock.end {
            return wrong(0x14, superblock.first);
        }
        let log = superblock.first..superblock.end;
        if superblock.start != 0 && !log.contains(&superblock.start) {
            return wrong(0x1c, superblock.start);
        }
        Ok(superblock)
    }

    /// Whether fast commits may be in the blocks from [`end`](Self::end) on.
    pub(super) fn has_fast_commits(&self) -> bool {
        self.end < self.blocks
    }

    /// Turns on what we write: revoke records, long block numbers and checksums where the file system has them. Only
    /// for an empty log.
    pub(super) fn upgrade(&mut self, is_64bit: bool, has_checksums: bool) {
        let mut incompat = be32(&self.bytes, 0x28) | INCOMPAT_REVOKE;
        if is_64bit {
            incompat |= INCOMPAT_64BIT;
            self.format.is_64bit = true;
        }
        if has_checksums {
            incompat = incompat & !INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;
            self.bytes[0x50] = CRC32C;
            self.format.checksums = Checksums::V3;
        }
        put_be32(&mut self.bytes, 0x28, incompat);
    }

    /// The first 1024 bytes of the journal.
    pub(super) fn encode(&mut self) -> Vec<u8> {
        put_be32(&mut self.bytes, 0x18, self.sequence);
        put_be32(&mut self.bytes, 0x1c, self.start);
        if self.format.checksums != Checksums::None {
            let checksum = superblock_checksum(&self.bytes);
            put_be32(&mut self.bytes, SUPERBLOCK_CHECKSUM, checksum);
        }
        self.bytes.clone()
    }
}

fn superblock_checksum(block: &[u8]) -> u32 {
    let crc = crc32c(START, &block[..SUPERBLOCK_CHECKSUM]);
    crc32c(crc32c(crc, &[0; 4]), &block[SUPERBLOCK_CHECKSUM + 4..1024])
}

/// The type and transaction of a block that has a header.
pub(super) fn header(block: &[u8]) -> Option<(u32, u32)> {
    (be32(block, 0) == MAGIC).then(|| (be32(block, 4), be32(block, 8)))
}

fn put_header(block: &mut [u8], kind: u32, sequence: u32) {
    put_be32(block, 0, MAGIC);
    put_be32(block, 4, kind);
    put_be32(block, 8, sequence);
}

/// Says where the next block of the log belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// The block's place in the file system.
    pub(super) block: u64,
    /// Its first four bytes were the magic number, and are zero in the log.
    pub(super) is_escaped: bool,
    checksum: u32,
}

impl Format {
    fn tag_size(self) -> usize {
        match (self.checksums, self.is_64bit) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (Checksums::None, true) => 12,
            (Checksums::None, false) => 8,
        }
    }

    fn tail_size(self) -> usize {
        if self.checksums == Checksums::None {
            0
        } else {
            4
        }
    }

    fn entry_size(self) -> usize {
        if self.is_64bit { 8 } else { 4 }
    }

    /// Whether the checksum at the end of a descriptor or revoke block is right.
    pub(super) fn tail_matches(self, block: &[u8]) -> bool {
        self.checksums == Checksums::None
            || checksum_agrees(be32(block, block.len() - 4), self.tail_checksum(block))
    }

    fn tail_checksum(self, block: &[u8]) -> u32 {
        crc32c(crc32c(self.seed, &block[..block.len() - 4]), &[0; 4])
    }

    fn put_tail(self, block: &mut [u8]) {
        if self.checksums != Checksums::None {
            let (at, checksum) = (block.len() - 4, self.tail_checksum(block));
            put_be32(block, at, checksum);
        }
    }

    /// The tags of a descriptor block. Stops at the last, or where a damaged block ends.
    pub(super) fn tags(self, block: &[u8]) -> Vec<Tag> {
        let end = block.len() - self.tail_size();
        let mut tags = Vec::new();
        let mut at = HEADER;
        while at + self.tag_size() <= end {
            let is_v3 = self.checksums == Checksums::V3;
            let flags = if is_v3 {
                be32(block, at + 4)
            } else {
                be16(block, at + 6).into()
            };
            let high = if self.is_64bit {
                be32(block, at + 8)
            } else {
                0
            };
            tags.push(Tag {
                block: halves32(be32(block, at), high),
                is_escaped: flags & TAG_ESCAPED != 0,
                checksum: if is_v3 {
                    be32(block, at + 12)
                } else {
                    be16(block, at + 4).into()
                },
            });
            at += self.tag_size();
            if flags & TAG_SAME_UUID == 0 {
                at += 16;
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        tags
    }

    /// How many tags fit into a descriptor block of `len` bytes, the first with its UUID.
    pub(super) fn tags_per_block(self, len: usize) -> usize {
        (len - HEADER - self.tail_size() - 16) / self.tag_size()
    }

    /// A descriptor block for `blocks`, which follow it in the log as they are given here.
    pub(super) fn descriptor(
        self,
        len: usize,
        sequence: u32,
        uuid: &[u8],
        blocks: &[(u64, bool, &[u8])],
    ) -> Vec<u8> {
        let mut block = alloc::vec![0; len];
        put_header(&mut block, DESCRIPTOR, sequence);
        let mut at = HEADER;
        for (i, &(number, is_escaped, data)) in blocks.iter().enumerate() {
            let mut flags = if is_escaped { TAG_ESCAPED } else { 0 };
            if i > 0 {
                flags |= TAG_SAME_UUID;
            }
            if i + 1 == blocks.len() {
                flags |= TAG_LAST;
            }
            let checksum = self.data_checksum(sequence, data);
            put_be32(&mut block, at, number as u32);
            if self.checksums == Checksums::V3 {
                put_be32(&mut block, at + 4, flags);
                put_be32(&mut block, at + 12, checksum);
            } else {
                let low = if self.checksums == Checksums::V2 {
                    checksum as u16
                } else {
                    0
                };
                put_be16(&mut block, at + 4, low);
                put_be16(&mut block, at + 6, flags as u16);
            }
            if self.is_64bit {
                put_be32(&mut block, at + 8, (number >> 32) as u32);
            }
            at += self.tag_size();
            if i == 0 {
                block[at..at + 16].copy_from_slice(uuid);
                at += 16;
            }
        }
        self.put_tail(&mut block);
        block
    }

    /// Whether `data` is the block that `tag` describes.
    pub(super) fn data_matches(self, tag: &Tag, sequence: u32, data: &[u8]) -> bool {
        let checksum = self.data_checksum(sequence, data);
        match self.checksums {
            Checksums::None => true,
            Checksums::V2 => checksum_agrees(tag.checksum, checksum & 0xffff),
            Checksums::V3 => checksum_agrees(tag.checksum, checksum),
        }
    }

    fn data_checksum(self, sequence: u32, data: &[u8]) -> u32 {
        if self.checksums == Checksums::None {
            return 0;
        }
        crc32c(crc32c(self.seed, &sequence.to_be_bytes()), data)
    }

    /// The blocks a revoke block names.
    pub(super) fn revoked(self, block: &[u8], at: u64) -> Result<Vec<u64>, FsError> {
        let (used, end) = (be32(block, HEADER) as usize, block.len() - self.tail_size());
        if !(HEADER + 4..=end).contains(&used) {
            return Err(FsError::corrupt(Structure::JournalRevoke, at, used as u64));
        }
        let entries = block[HEADER + 4..used].chunks_exact(self.entry_size());
        Ok(entries
            .map(|entry| {
                if self.is_64bit {
                    be64(entry, 0)
                } else {
                    be32(entry, 0).into()
                }
            })
            .collect())
    }

    /// How many entries fit into a revoke block of `len` bytes.
    pub(super) fn revokes_per_block(self, len: usize) -> usize {
        (len - HEADER - 4 - self.tail_size()) / self.entry_size()
    }

    /// A revoke block that names `blocks`.
    pub(super) fn revoke(self, len: usize, sequence: u32, blocks: &[u64]) -> Vec<u8> {
        let mut block = alloc::vec![0; len];
        put_header(&mut block, REVOKE, sequence);
        let mut at = HEADER + 4;
        for &number in blocks {
            if self.is_64bit {
                put_be64(&mut block, at, number);
            } else {
                put_be32(&mut block, at, number as u32);
            }
            at += self.entry_size();
        }
        put_be32(&mut block, HEADER, at as u32);
        self.put_tail(&mut block);
        block
    }

    /// The block that makes a transaction valid.
    pub(super) fn commit(
        self,
        len: usize,
        sequence: u32,
        seconds: u64,
        nanoseconds: u32,
    ) -> Vec<u8> {
        let mut block = alloc::vec![0; len];
        put_header(&mut block, COMMIT, sequence);
        put_be64(&mut block, 0x30, seconds);
        put_be32(&mut block, 0x38, nanoseconds);
        if self.checksums != Checksums::None {
            let checksum = crc32c(self.seed, &block);
            put_be32(&mut block, 0x10, checksum);
        }
        block
    }

    /// Whether a commit block's checksum is right.
    pub(super) fn commit_matches(self, block: &[u8]) -> bool {
        if self.checksums == Checksums::None {
            return true;
        }
        let crc = crc32c(crc32c(self.seed, &block[..0x10]), &[0; 4]);
        checksum_agrees(be32(block, 0x10), crc32c(crc, &block[0x14..]))
    }
}

/// The UUID that the first tag of a descriptor carries: the journal's own.
pub(super) fn uuid(superblock: &JournalSuperblock) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&superblock.bytes[0x30..0x40]);
    uuid
}
