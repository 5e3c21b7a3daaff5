//! Replaying the log at mount.
//!
//! Three passes over the transactions from the log's start: how far do they reach; which blocks are revoked, and by
//! which transaction; write every block not revoked by a later or the same one to its place. Only whole transactions
//! count: one without its commit block never happened.

use super::format::{COMMIT, DESCRIPTOR, Format, HEADER, JournalSuperblock, MAGIC, REVOKE, header};
use super::{Journal, LogPlace};
use crate::fs::block::Durability;
use crate::fs::blocking;
use crate::fs::error::{FeatureSet, FsError, Structure, Unsupported};
use crate::fs::ext4::bytes::{le16, le32};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// What recovery did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Transactions found whole and replayed.
    pub transactions: u32,
    /// Blocks written to their places.
    pub blocks: u64,
    /// Blocks left alone because a later transaction had revoked them.
    pub revoked: u64,
}

/// Where the whole transactions are, found by the first pass.
struct Scan {
    end_sequence: u32,
    revoked: BTreeMap<u64, u32>,
}

impl Journal {
    /// Writes what the log holds to its places in a file system of `blocks_count` blocks, and empties the log.
    pub(in crate::fs::ext4) fn recover(&mut self, blocks_count: u64) -> Result<Recovered, FsError> {
        let mut recovered = Recovered::default();
        if self.superblock.start == 0 {
            return Ok(recovered);
        }
        let scan = self.scan()?;
        self.refuse_fast_commits(scan.end_sequence)?;
        self.replay(&scan, blocks_count, &mut recovered)?;
        blocking::flush(&*self.device)?;
        // One number is left out, so that a transaction torn by the power cut is never taken for a new one.
        self.superblock.sequence = scan.end_sequence.wrapping_add(1);
        self.superblock.start = 0;
        self.write_superblock()?;
        Ok(recovered)
    }

    /// Finds the whole transactions, and what they revoke.
    fn scan(&self) -> Result<Scan, FsError> {
        let format = self.superblock.format;
        let mut scan = Scan {
            end_sequence: self.superblock.sequence,
            revoked: BTreeMap::new(),
        };
        let mut place = self.first_place();
        // A set: the log's own map may name one block many times.
        let mut revoked = BTreeSet::new();
        while let Some(block) = self.read_next(&mut place)? {
            match header(&block) {
                Some((_, sequence)) if sequence != scan.end_sequence => break,
                Some((DESCRIPTOR, _)) if format.tail_matches(&block) => {
                    let tags = format.tags(&block).len() as u32;
                    if !place.skip(tags, &self.superblock) {
                        break;
                    }
                }
                Some((REVOKE, _)) if format.tail_matches(&block) => {
                    let Ok(blocks) = format.revoked(&block, place.index.into()) else {
                        break;
                    };
                    revoked.extend(blocks);
                }
                Some((COMMIT, sequence)) if format.commit_matches(&block) => {
                    for block in core::mem::take(&mut revoked) {
                        scan.revoked.insert(block, sequence);
                    }
                    scan.end_sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        Ok(scan)
    }

    fn replay(
        &self,
        scan: &Scan,
        blocks_count: u64,
        recovered: &mut Recovered,
    ) -> Result<(), FsError> {
        let format = self.superblock.format;
        let mut place = self.first_place();
        let mut sequence = self.superblock.sequence;
        while sequence != scan.end_sequence {
            let Some(block) = self.read_next(&mut place)? else {
                return Err(FsError::corrupt(
                    Structure::JournalGeometry,
                    place.index.into(),
                    0,
                ));
            };
            match header(&block) {
                Some((DESCRIPTOR, _)) => {
                    for tag in format.tags(&block) {
                        let Some(mut data) = self.read_next(&mut place)? else {
                            return Err(FsError::corrupt(
                                Structure::JournalGeometry,
                                place.index.into(),
                                1,
                            ));
                        };
                        if scan.is_revoked(tag.block, sequence) {
                            recovered.revoked += 1;
                            continue;
                        }
                        check_data(format, &tag, sequence, &data, blocks_count)?;
                        if tag.is_escaped {
                            data[..4].copy_from_slice(&MAGIC.to_be_bytes());
                        }
                        let offset = tag.block * data.len() as u64;
                        blocking::write(&*self.device, offset, data, Durability::Cached)?;
                        recovered.blocks += 1;
                    }
                }
                Some((COMMIT, _)) => {
                    recovered.transactions += 1;
                    sequence = sequence.wrapping_add(1);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Fast commits hold changes that the log's blocks do not: without replaying them, acknowledged data would be lost.
    fn refuse_fast_commits(&self, sequence: u32) -> Result<(), FsError> {
        const HEAD_TAG: u16 = 9;
        if !self.superblock.has_fast_commits() {
            return Ok(());
        }
        let block = self.read_log(self.superblock.end)?;
        // A tag, its length, the features, and the transaction it builds on.
        if le16(&block, 0) == HEAD_TAG && le32(&block, 8) == sequence {
            let bits = self.superblock.blocks - self.superblock.end;
            return Err(FsError::Unsupported(Unsupported {
                set: FeatureSet::FastCommits,
                bits,
            }));
        }
        Ok(())
    }

    fn first_place(&self) -> LogPlace {
        LogPlace {
            index: self.superblock.start,
            left: self.superblock.end - self.superblock.first,
        }
    }

    /// The block at `place`, which moves on; none once the whole log was gone through.
    fn read_next(&self, place: &mut LogPlace) -> Result<Option<Vec<u8>>, FsError> {
        let index = place.index;
        if !place.skip(1, &self.superblock) {
            return Ok(None);
        }
        self.read_log(index).map(Some)
    }
}

impl LogPlace {
    /// Moves on by `count` blocks, around the end of the log; false if that is once around it.
    fn skip(&mut self, count: u32, superblock: &JournalSuperblock) -> bool {
        let Some(left) = self.left.checked_sub(count) else {
            return false;
        };
        self.left = left;
        let size = superblock.end - superblock.first;
        self.index = superblock.first + (self.index - superblock.first + count) % size;
        true
    }
}

impl Scan {
    fn is_revoked(&self, block: u64, sequence: u32) -> bool {
        // Numbers wrap around: what counts is the distance.
        self.revoked
            .get(&block)
            .is_some_and(|&by| by.wrapping_sub(sequence) as i32 >= 0)
    }
}

fn check_data(
    format: Format,
    tag: &super::format::Tag,
    sequence: u32,
    data: &[u8],
    blocks_count: u64,
) -> Result<(), FsError> {
    debug_assert!(data.len() > HEADER);
    if tag.block >= blocks_count {
        return Err(FsError::corrupt(
            Structure::JournalTag,
            sequence.into(),
            tag.block,
        ));
    }
    if !format.data_matches(tag, sequence, data) {
        return Err(FsError::corrupt(
            Structure::JournalChecksum,
            tag.block,
            sequence.into(),
        ));
    }
    Ok(())
}
