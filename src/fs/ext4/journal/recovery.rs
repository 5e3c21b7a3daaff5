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
use alloc::vec::Vec;
use core::ops::Range;

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
    revoked: Revoked,
}

/// Which blocks are revoked, and by which transaction, counted from the first in the log: numbers wrap around. How many
/// there are is up to the log.
#[derive(Default)]
struct Revoked {
    entries: Vec<(u64, u32)>,
}

impl Revoked {
    fn add(&mut self, block: u64, transaction: u32) -> Result<(), FsError> {
        if self.entries.len() == self.entries.capacity() {
            // The log's own map may name one block many times: what is there more than once makes room.
            self.sort();
            if 2 * self.entries.len() >= self.entries.capacity() {
                let more = self.entries.len().max(64);
                let reserved = self.entries.try_reserve_exact(more);
                reserved.map_err(|_| FsError::OutOfMemory)?;
            }
        }
        self.entries.push((block, transaction));
        Ok(())
    }

    fn sort(&mut self) {
        self.entries.sort_unstable();
        self.entries.dedup();
    }

    /// Whether `block` is revoked by a transaction among these.
    fn contains(&self, block: u64, transactions: Range<u32>) -> bool {
        let first = (block, transactions.start);
        let at = self.entries.partition_point(|entry| *entry < first);
        let next = self.entries.get(at);
        next.is_some_and(|&(revoked, by)| revoked == block && by < transactions.end)
    }
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
            revoked: Revoked::default(),
        };
        let mut place = self.first_place();
        while let Some(block) = self.read_next(&mut place)? {
            match header(&block) {
                Some((_, sequence)) if sequence != scan.end_sequence => break,
                Some((DESCRIPTOR, _)) if format.tail_matches(&block) => {
                    let tags = format.tags(&block).len() as u32;
                    if !place.skip(tags, &self.superblock) {
                        break;
                    }
                }
                Some((REVOKE, sequence)) if format.tail_matches(&block) => {
                    let Ok(blocks) = format.revoked(&block, place.index.into()) else {
                        break;
                    };
                    let transaction = sequence.wrapping_sub(self.superblock.sequence);
                    for block in blocks {
                        scan.revoked.add(block, transaction)?;
                    }
                }
                Some((COMMIT, sequence)) if format.commit_matches(&block) => {
                    scan.end_sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        scan.revoked.sort();
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
        let first = self.superblock.sequence;
        let transactions = scan.end_sequence.wrapping_sub(first);
        let mut sequence = first;
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
                        // One that was never whole revokes nothing.
                        let by = sequence.wrapping_sub(first)..transactions;
                        if scan.revoked.contains(tag.block, by) {
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

#[cfg(test)]
mod tests {
    use super::Revoked;

    #[test]
    fn a_block_is_revoked_for_the_transactions_up_to_the_one_that_says_so() {
        let mut revoked = Revoked::default();
        for transaction in [1, 3, 6] {
            revoked.add(7, transaction).unwrap();
        }
        revoked.sort();
        // Five are whole.
        let is_revoked = (0..5).map(|transaction| revoked.contains(7, transaction..5));
        assert!(is_revoked.eq([true, true, true, true, false]));
        assert!(!revoked.contains(6, 0..5));
        assert!(!revoked.contains(8, 0..5));
    }

    #[test]
    fn what_is_revoked_again_and_again_takes_no_memory() {
        let mut revoked = Revoked::default();
        for i in 0..if cfg!(miri) { 1_000 } else { 100_000 } {
            revoked.add(i % 50, 2).unwrap();
        }
        assert!(revoked.entries.capacity() <= 128);
    }
}
