//! The journal: a ring of blocks in which every change of metadata is written, whole, before it is made.
//!
//! ```text
//!  | superblock | ... | descriptor | block | block | ... | revoke | commit | descriptor | ...
//!                     ^ start                                              ^ head
//! ```
//!
//! A transaction counts from the moment its commit block is on the medium. The order of writes is all there is to it:
//!
//! 1. file data (by whoever wrote the file), then descriptor, blocks and revoke records;
//! 2. flush: all of that is durable;
//! 3. the commit block, durable by itself;
//! 4. later, the blocks to their places; flush;
//! 5. only then the superblock, saying that the log begins after that transaction.

pub(super) mod format;
mod recovery;
mod write;

pub use recovery::Recovered;

use super::extent::Run;
use crate::fs::block::{BlockDevice, Durability};
use crate::fs::blocking;
use crate::fs::error::{FeatureSet, FsError, Structure, Unsupported};
use alloc::sync::Arc;
use alloc::vec::Vec;
use format::JournalSuperblock;

/// A journal in a file of its file system.
pub(super) struct Journal {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    superblock: JournalSuperblock,
    runs: Vec<Run>,
    /// Where the next transaction begins.
    head: u32,
    /// Blocks of the log that hold transactions not yet in their places.
    used: u32,
}

/// A place in the ring, and how many blocks may still be gone on.
struct LogPlace {
    index: u32,
    left: u32,
}

impl Journal {
    /// Opens the journal whose file has these runs.
    pub(super) fn open(
        device: Arc<dyn BlockDevice>,
        block_size: usize,
        runs: Vec<Run>,
    ) -> Result<Self, FsError> {
        let first = run_place(&runs, 0)?;
        let block = blocking::read(&*device, first * block_size as u64, block_size)?;
        let superblock = JournalSuperblock::decode(&block)?;
        let blocks: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        if u64::from(superblock.blocks) > blocks {
            let value = superblock.blocks.into();
            return Err(FsError::corrupt(Structure::JournalGeometry, 0x10, value));
        }
        let head = superblock.first;
        Ok(Self {
            device,
            block_size,
            superblock,
            runs,
            head,
            used: 0,
        })
    }

    /// Whether the log holds transactions.
    pub(super) fn is_empty(&self) -> bool {
        self.superblock.start == 0
    }

    fn read_log(&self, index: u32) -> Result<Vec<u8>, FsError> {
        let block = run_place(&self.runs, index)?;
        Ok(blocking::read(
            &*self.device,
            block * self.block_size as u64,
            self.block_size,
        )?)
    }

    fn write_superblock(&mut self) -> Result<(), FsError> {
        // Everything that changes lies in the first 512 bytes: a torn write is one that did not happen, or did.
        let bytes = self.superblock.encode();
        let offset = run_place(&self.runs, 0)? * self.block_size as u64;
        Ok(blocking::write(
            &*self.device,
            offset,
            bytes,
            Durability::Durable,
        )?)
    }
}

/// The error for a journal on a device of its own.
pub(super) fn external(device: u32) -> FsError {
    FsError::Unsupported(Unsupported {
        set: FeatureSet::ExternalJournal,
        bits: device,
    })
}

fn run_place(runs: &[Run], index: u32) -> Result<u64, FsError> {
    let at = runs.partition_point(|run| run.end() <= index.into());
    match runs.get(at) {
        Some(run) if run.first <= index => Ok(run.start + u64::from(index - run.first)),
        _ => Err(FsError::corrupt(
            Structure::JournalGeometry,
            index.into(),
            0,
        )),
    }
}
