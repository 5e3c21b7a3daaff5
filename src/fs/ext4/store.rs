//! Metadata blocks in memory, and the transaction that changes them.
//!
//! ```text
//!  operation  what the call in progress has changed      Err: dropped, as if nothing had happened
//!      | the call ends well
//!  running    the transaction that collects calls
//!      | commit: written to the log, flushed
//!  committed  waits to be written to its place
//!      | checkpoint: written, flushed
//!  cache      as on the medium; may be evicted
//! ```
//!
//! A block is looked for in this order, so every reader sees the newest state, and a changed block is in exactly the
//! layers that changed it: there is no dirty cache beside the transaction. Blocks that were freed are not given out
//! again before the transaction that freed them is committed; freed metadata is revoked, so that replaying an older
//! transaction cannot overwrite what the block holds by then. Without a journal, a commit writes to the places.

use super::cache::Cache;
use super::journal::Journal;
use crate::fs::Timestamp;
use crate::fs::block::BlockDevice;
use crate::fs::blocking;
use crate::fs::error::{FsError, ReadOnlyReason, Structure};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Runs freed in a transaction, or blocks revoked, after which it takes no further operation: they are kept in memory.
const MAX_FREED: usize = 1024;

/// The contents of a metadata block.
pub(super) type Block = Arc<Vec<u8>>;

/// How much memory metadata may take, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataLimits {
    /// Blocks as on the medium.
    pub cached: usize,
    /// Blocks of one transaction.
    pub transaction: usize,
    /// Blocks committed and not yet in their places.
    pub committed: usize,
}

impl MetadataLimits {
    /// What is reasonable on a machine with `bytes` of memory: all of it together is an eighth at most.
    pub fn for_memory(bytes: u64) -> Self {
        let all = usize::try_from(bytes / 8 / 4096).unwrap_or(usize::MAX);
        let default = Self::default();
        // A transaction is copied when it is committed.
        Self {
            cached: default.cached.min(all * 2 / 6).max(16),
            transaction: default.transaction.min(all / 6).max(16),
            committed: default.committed.min(all * 2 / 6).max(16),
        }
    }
}

impl Default for MetadataLimits {
    fn default() -> Self {
        Self {
            cached: 512,
            transaction: 256,
            committed: 512,
        }
    }
}

/// All metadata blocks.
pub(super) struct Store {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    limits: MetadataLimits,
    cache: Cache,
    operation: Option<Changes>,
    running: Changes,
    committed: BTreeMap<u64, Block>,
    journal: Option<Journal>,
    /// File data was written since the last flush.
    has_unflushed_data: bool,
    failure: Option<ReadOnlyReason>,
    /// How often a commit has made freed blocks usable.
    releases: u64,
}

/// What an operation or a transaction did.
#[derive(Default)]
struct Changes {
    blocks: BTreeMap<u64, Block>,
    revoked: BTreeSet<u64>,
    /// Runs that were freed: start and end.
    freed: Vec<(u64, u64)>,
    /// There is more to it than when files were changed last.
    is_essential: bool,
}

impl Store {
    pub(super) fn new(
        device: Arc<dyn BlockDevice>,
        block_size: usize,
        limits: MetadataLimits,
        journal: Option<Journal>,
    ) -> Self {
        Self {
            device,
            block_size,
            limits,
            cache: Cache::new(limits.cached),
            operation: None,
            running: Changes::default(),
            committed: BTreeMap::new(),
            journal,
            has_unflushed_data: false,
            failure: None,
            releases: 0,
        }
    }

    pub(super) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// The contents of `block`, newest state.
    pub(super) fn read(&mut self, block: u64) -> Result<Block, FsError> {
        self.read_checked(block, |_| Ok(()))
    }

    /// The contents of `block`; `check` sees them when they come from the medium.
    pub(super) fn read_checked(
        &mut self,
        block: u64,
        check: impl FnOnce(&[u8]) -> Result<(), FsError>,
    ) -> Result<Block, FsError> {
        if let Some(changed) = self.changed(block) {
            return Ok(changed.clone());
        }
        if let Some(cached) = self.cache.get(block) {
            return Ok(cached);
        }
        let offset = block * self.block_size as u64;
        let bytes = Arc::new(blocking::read(&*self.device, offset, self.block_size)?);
        check(&bytes)?;
        self.cache.insert(block, bytes.clone());
        Ok(bytes)
    }

    /// The contents of `block`, to be changed by the operation in progress.
    pub(super) fn modify(&mut self, block: u64) -> Result<&mut Vec<u8>, FsError> {
        let is_new = self
            .operation
            .as_ref()
            .is_none_or(|changes| !changes.blocks.contains_key(&block));
        if is_new {
            let bytes = self.read(block)?;
            self.changes().blocks.insert(block, bytes);
        }
        let zeros = self.block_size;
        let bytes = self
            .changes()
            .blocks
            .entry(block)
            .or_insert_with(|| Arc::new(alloc::vec![0; zeros]));
        Ok(Arc::make_mut(bytes))
    }

    /// A newly allocated metadata block, all zeros.
    pub(super) fn fresh(&mut self, block: u64) -> &mut Vec<u8> {
        let bytes = Arc::new(alloc::vec![0; self.block_size]);
        let changes = self.changes();
        changes.revoked.remove(&block);
        changes.blocks.insert(block, bytes);
        self.cache.remove(block);
        let zeros = self.block_size;
        let bytes = self
            .changes()
            .blocks
            .entry(block)
            .or_insert_with(|| Arc::new(alloc::vec![0; zeros]));
        Arc::make_mut(bytes)
    }

    /// Records that a metadata block is none any more: it was freed.
    pub(super) fn forget(&mut self, block: u64) {
        let changes = self.changes();
        changes.blocks.remove(&block);
        changes.revoked.insert(block);
        self.cache.remove(block);
    }

    /// Records that these blocks were freed: they are not for use before the next commit.
    pub(super) fn freed(&mut self, start: u64, len: u64) {
        self.changes().add_freed(start, start + len);
    }

    /// The runs that are free in the bitmaps but not for use yet.
    pub(super) fn not_yet_free(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let operation = self.operation.iter().flat_map(|changes| &changes.freed);
        operation.chain(&self.running.freed).copied()
    }

    /// Changes whenever freed blocks have become usable.
    pub(super) fn releases(&self) -> u64 {
        self.releases
    }

    /// Whether a commit would make freed blocks usable.
    pub(super) fn has_freed(&self) -> bool {
        !self.running.freed.is_empty()
    }

    /// Whether the operation in progress has changed so much that it should end: it must fit into the log, alone.
    pub(super) fn is_large(&self) -> bool {
        let changes = self.operation.as_ref();
        changes.is_some_and(|changes| changes.blocks.len() > self.limit() / 2)
    }

    /// An error where the operation in progress does not fit into the log.
    pub(super) fn check_size(&self) -> Result<(), FsError> {
        let (Some(journal), Some(changes)) = (&self.journal, &self.operation) else {
            return Ok(());
        };
        let needed = journal.needed(changes.blocks.len(), changes.revoked.len());
        match journal.could_hold(needed) {
            true => Ok(()),
            false => Err(FsError::corrupt(
                Structure::TransactionTooLarge,
                0,
                needed as u64,
            )),
        }
    }

    /// The most blocks a transaction should have.
    fn limit(&self) -> usize {
        match &self.journal {
            Some(journal) => journal.transaction_limit().min(self.limits.transaction),
            None => self.limits.transaction,
        }
    }

    /// Whether the operation in progress has changed `block`.
    pub(super) fn is_changed(&self, block: u64) -> bool {
        self.operation
            .as_ref()
            .is_some_and(|changes| changes.blocks.contains_key(&block))
    }

    /// Records that file data went to the device past this store.
    pub(super) fn data_written(&mut self) {
        self.has_unflushed_data = true;
    }

    /// Why nothing can be written any more.
    pub(super) fn failure(&self) -> Option<ReadOnlyReason> {
        self.failure
    }

    pub(super) fn begin(&mut self) {
        debug_assert!(self.operation.is_none(), "an operation inside an operation");
        self.operation = Some(Changes {
            is_essential: true,
            ..Changes::default()
        });
    }

    /// The operation in progress changed times of files, and nothing else.
    pub(super) fn only_times_changed(&mut self) {
        self.changes().is_essential = false;
    }

    /// Drops what the operation did, and says whether that was anything.
    pub(super) fn cancel(&mut self) -> bool {
        self.operation
            .take()
            .is_some_and(|changes| !changes.is_empty())
    }

    /// Makes the operation part of the running transaction. If both together are too large, the transaction is
    /// committed first: the operation's blocks are whole, and stand on that state.
    pub(super) fn finish(&mut self, now: Timestamp) -> Result<(), FsError> {
        let Some(operation) = self.operation.take() else {
            return Ok(());
        };
        let is_full = self.running.blocks.len() + operation.blocks.len() > self.limit()
            || self.running.freed.len() + operation.freed.len() > MAX_FREED
            || self.running.revoked.len() + operation.revoked.len() > MAX_FREED;
        if is_full && !self.running.is_empty() {
            self.commit(now)?;
        }
        self.running.absorb(operation);
        Ok(())
    }

    /// Whether there is something to commit.
    pub(super) fn is_dirty(&self) -> bool {
        !self.running.is_empty()
    }

    /// Makes durable what is needed to find all data that was written: times may follow later.
    pub(super) fn commit_data(&mut self, now: Timestamp) -> Result<(), FsError> {
        if self.running.is_essential || self.failure.is_some() {
            return self.commit(now);
        }
        let result = self.flush_data();
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    /// Makes everything finished so far durable.
    pub(super) fn commit(&mut self, now: Timestamp) -> Result<(), FsError> {
        if let Some(reason) = self.failure {
            return Err(FsError::ReadOnly(reason));
        }
        let releases = u64::from(self.has_freed());
        let result = self.try_commit(now);
        self.releases += releases;
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    fn try_commit(&mut self, now: Timestamp) -> Result<(), FsError> {
        if self.running.is_empty() {
            return self.flush_data();
        }
        let Some(journal) = &mut self.journal else {
            self.write_in_place(self.running.blocks.clone())?;
            blocking::flush(&*self.device)?;
            let running = core::mem::take(&mut self.running);
            for (block, bytes) in running.blocks {
                self.cache.insert(block, bytes);
            }
            self.has_unflushed_data = false;
            return Ok(());
        };
        let needed = journal.needed(self.running.blocks.len(), self.running.revoked.len());
        if !journal.has_room(needed) {
            self.checkpoint()?;
        }
        if let Some(journal) = &mut self.journal {
            journal.commit(&self.running.blocks, &self.running.revoked, now)?;
        }
        self.has_unflushed_data = false;
        let running = core::mem::take(&mut self.running);
        for block in &running.revoked {
            self.committed.remove(block);
        }
        self.committed.extend(running.blocks);
        if self.committed.len() > self.limits.committed {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn flush_data(&mut self) -> Result<(), FsError> {
        if core::mem::take(&mut self.has_unflushed_data) {
            blocking::flush(&*self.device)?;
        }
        Ok(())
    }

    /// Writes all committed blocks to their places and empties the log.
    fn checkpoint(&mut self) -> Result<(), FsError> {
        self.write_in_place(self.committed.clone())?;
        blocking::flush(&*self.device)?;
        if let Some(journal) = &mut self.journal {
            journal.set_tail()?;
        }
        for (block, bytes) in core::mem::take(&mut self.committed) {
            self.cache.insert(block, bytes);
        }
        Ok(())
    }

    /// Commits and checkpoints everything, and marks the log empty.
    pub(super) fn close(&mut self, now: Timestamp) -> Result<(), FsError> {
        self.commit(now)?;
        let result = self.try_close();
        if let Err(error) = result {
            self.fail(error);
        }
        result
    }

    fn try_close(&mut self) -> Result<(), FsError> {
        self.checkpoint()?;
        match &mut self.journal {
            Some(journal) => journal.close(),
            None => Ok(()),
        }
    }

    fn write_in_place(&self, blocks: BTreeMap<u64, Block>) -> Result<(), FsError> {
        // Copied a few at a time: this is what runs when memory is short.
        const AT_A_TIME: usize = 64;
        let mut blocks = blocks.into_iter();
        loop {
            let some = blocks.by_ref().take(AT_A_TIME);
            let place = |block: u64| block * self.block_size as u64;
            let writes: Vec<(u64, Vec<u8>)> = some
                .map(|(block, bytes)| (place(block), bytes.to_vec()))
                .collect();
            if writes.is_empty() {
                return Ok(());
            }
            blocking::write_all(&*self.device, writes)?;
        }
    }

    fn changed(&self, block: u64) -> Option<&Block> {
        let operation = self
            .operation
            .as_ref()
            .and_then(|changes| changes.blocks.get(&block));
        operation
            .or_else(|| self.running.blocks.get(&block))
            .or_else(|| self.committed.get(&block))
    }

    fn changes(&mut self) -> &mut Changes {
        debug_assert!(
            self.operation.is_some(),
            "metadata changed outside an operation"
        );
        self.operation.get_or_insert_default()
    }

    /// The log's state on the medium is unknown: whatever is done from here on could contradict it.
    fn fail(&mut self, error: FsError) {
        let reason = match error {
            FsError::Block(error) => ReadOnlyReason::JournalFailed(error),
            FsError::Corrupt(crate::fs::error::Corruption {
                structure: Structure::TransactionTooLarge,
                ..
            }) => ReadOnlyReason::TransactionTooLarge,
            _ => ReadOnlyReason::JournalDamaged,
        };
        self.failure.get_or_insert(reason);
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revoked.is_empty()
    }

    /// Adds a run to those that were freed. Files are cut from their end: the last run often goes on at its start.
    fn add_freed(&mut self, start: u64, end: u64) {
        match self.freed.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            Some(last) if last.0 == end => last.0 = start,
            _ => self.freed.push((start, end)),
        }
    }

    fn absorb(&mut self, later: Self) {
        let is_essential = later.is_essential && !later.is_empty();
        for block in &later.revoked {
            self.blocks.remove(block);
        }
        self.revoked.extend(later.revoked);
        for block in later.blocks.keys() {
            self.revoked.remove(block);
        }
        self.blocks.extend(later.blocks);
        for (start, end) in later.freed {
            self.add_freed(start, end);
        }
        self.is_essential |= is_essential;
    }
}
