//! Writing transactions to the log, and emptying it.

use super::format::{self, MAGIC};
use super::{Journal, run_place};
use crate::fs::Timestamp;
use crate::fs::block::Durability;
use crate::fs::blocking;
use crate::fs::error::{FsError, Structure};
use crate::fs::ext4::bytes::be32;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

impl Journal {
    /// Makes the empty log ours: the features we write, and a start from which transactions count.
    pub(in crate::fs::ext4) fn start(
        &mut self,
        is_64bit: bool,
        has_checksums: bool,
    ) -> Result<(), FsError> {
        self.superblock.upgrade(is_64bit, has_checksums);
        self.head = self.superblock.first;
        self.set_tail()
    }

    /// The most blocks a transaction should have, so that several fit into the log.
    pub(in crate::fs::ext4) fn transaction_limit(&self) -> usize {
        (self.size() / 4) as usize
    }

    /// How many blocks of the log a transaction takes.
    pub(in crate::fs::ext4) fn needed(&self, blocks: usize, revoked: usize) -> usize {
        let format = self.superblock.format;
        blocks
            + blocks.div_ceil(format.tags_per_block(self.block_size))
            + revoked.div_ceil(format.revokes_per_block(self.block_size))
            + 1
    }

    /// Whether the log, empty, could take `needed` blocks.
    pub(in crate::fs::ext4) fn could_hold(&self, needed: usize) -> bool {
        needed < self.size() as usize
    }

    /// Whether `needed` blocks can be written without overwriting what is not in its place yet.
    pub(in crate::fs::ext4) fn has_room(&self, needed: usize) -> bool {
        self.could_hold(needed + self.used as usize)
    }

    /// Writes a transaction; when this returns it is durable, and so is all that was written before.
    pub(in crate::fs::ext4) fn commit(
        &mut self,
        blocks: &BTreeMap<u64, Arc<Vec<u8>>>,
        revoked: &BTreeSet<u64>,
        now: Timestamp,
    ) -> Result<(), FsError> {
        let needed = self.needed(blocks.len(), revoked.len());
        if !self.has_room(needed) {
            return Err(FsError::corrupt(
                Structure::TransactionTooLarge,
                self.used.into(),
                needed as u64,
            ));
        }
        let sequence = self.superblock.sequence;
        let log = self.log_blocks(sequence, blocks, revoked);
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        for block in log {
            let offset = run_place(&self.runs, self.head)? * self.block_size as u64;
            self.advance();
            writes.push((offset, block));
        }
        blocking::write_all(&*self.device, writes)?;
        // The log's blocks, and the file data they point to, before the block that makes them valid.
        blocking::flush(&*self.device)?;
        let commit = self.superblock.format.commit(
            self.block_size,
            sequence,
            now.seconds as u64,
            now.nanoseconds,
        );
        let offset = run_place(&self.runs, self.head)? * self.block_size as u64;
        self.advance();
        blocking::write(&*self.device, offset, commit, Durability::Durable)?;
        self.used += needed as u32;
        self.superblock.sequence = sequence.wrapping_add(1);
        Ok(())
    }

    /// Forgets all transactions: their blocks are in their places, durably.
    pub(in crate::fs::ext4) fn set_tail(&mut self) -> Result<(), FsError> {
        self.superblock.start = self.head;
        self.used = 0;
        self.write_superblock()
    }

    /// Marks the log empty, at unmount.
    pub(in crate::fs::ext4) fn close(&mut self) -> Result<(), FsError> {
        self.superblock.start = 0;
        self.used = 0;
        self.write_superblock()
    }

    fn size(&self) -> u32 {
        self.superblock.end - self.superblock.first
    }

    fn advance(&mut self) {
        self.head += 1;
        if self.head == self.superblock.end {
            self.head = self.superblock.first;
        }
    }

    /// All blocks of a transaction in their order, without the commit block.
    fn log_blocks(
        &self,
        sequence: u32,
        blocks: &BTreeMap<u64, Arc<Vec<u8>>>,
        revoked: &BTreeSet<u64>,
    ) -> Vec<Vec<u8>> {
        let format = self.superblock.format;
        let uuid = format::uuid(&self.superblock);
        let mut log = Vec::with_capacity(self.needed(blocks.len(), revoked.len()));
        let revoked: Vec<u64> = revoked.iter().copied().collect();
        for part in revoked.chunks(format.revokes_per_block(self.block_size)) {
            log.push(format.revoke(self.block_size, sequence, part));
        }
        let mut data = blocks.iter().map(|(&number, data)| escape(number, data));
        loop {
            let most = format.tags_per_block(self.block_size);
            let part: Vec<(u64, bool, Vec<u8>)> = data.by_ref().take(most).collect();
            if part.is_empty() {
                break;
            }
            let tags: Vec<_> = part
                .iter()
                .map(|(number, escaped, data)| (*number, *escaped, data.as_slice()))
                .collect();
            log.push(format.descriptor(self.block_size, sequence, &uuid, &tags));
            log.extend(part.into_iter().map(|(_, _, data)| data));
        }
        log
    }
}

/// A block as it goes to the log: one that begins like a block of the log itself gets zeros there.
fn escape(number: u64, data: &[u8]) -> (u64, bool, Vec<u8>) {
    let is_escaped = be32(data, 0) == MAGIC;
    let mut data = data.to_vec();
    if is_escaped {
        data[..4].fill(0);
    }
    (number, is_escaped, data)
}
