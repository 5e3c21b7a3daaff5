//! Telling the device which blocks nothing uses, so that it need not keep them.

use super::Ext4;
use super::bitmap;
use super::volume::Volume;
use crate::fs::block::BlockError;
use crate::fs::blocking;
use crate::fs::error::FsError;

impl Ext4 {
    /// Discards all that is free; says how many bytes. Others may work meanwhile: the volume is locked for one group at
    /// a time.
    pub(super) fn discard_free(&self) -> Result<u64, FsError> {
        let groups = {
            let mut volume = self.volume.lock();
            volume.check_writable()?;
            if volume.store.device().properties().max_discard == 0 {
                return Err(FsError::Block(BlockError::Unsupported));
            }
            // What was removed a moment ago is free only then.
            volume.sync()?;
            volume.superblock.groups
        };
        (0..groups).try_fold(0, |sum, group| {
            Ok(sum + self.volume.lock().discard_free_in(group)?)
        })
    }
}

impl Volume {
    /// Discards what is free in `group`, and was so at the last commit: a power cut must find the bytes of what had
    /// been there. Nothing is allocated meanwhile, since the volume is locked.
    fn discard_free_in(&mut self, group: u32) -> Result<u64, FsError> {
        self.check_writable()?;
        let bits = self.usable(group)?;
        let size = self.superblock.block_size as u64;
        let start = self.superblock.group_start(group);
        let runs = bitmap::free_runs(&bits, 0, self.superblock.group_len(group));
        let runs = runs.map(|(at, len)| ((start + u64::from(at)) * size, u64::from(len) * size));
        Ok(blocking::discard_all(&**self.store.device(), runs)?)
    }
}
