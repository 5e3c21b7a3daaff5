//! A disk of heap memory: the smallest block device there is.

use super::block::{
    BlockDevice, BlockError, Operation, Properties, Refusal, Refused, Request, SECTOR_SIZE,
};
use crate::sync::SpinLock;
use alloc::vec::Vec;

/// A disk that forgets everything when it is dropped. Requests complete as they are submitted.
pub struct RamDisk {
    bytes: SpinLock<Vec<u8>>,
    properties: Properties,
}

impl RamDisk {
    /// A disk with these contents; bytes past the last whole sector are left out.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(bytes.len() - bytes.len() % SECTOR_SIZE as usize);
        let properties = Properties {
            capacity: bytes.len() as u64,
            sector_size: SECTOR_SIZE as u32,
            max_request: 1 << 20,
            is_read_only: false,
            has_flush: true,
            max_discard: 0,
            max_write_zeroes: bytes.len() as u64,
        };
        Self {
            bytes: SpinLock::new(bytes),
            properties,
        }
    }

    /// The same disk, refusing writes.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        let mut disk = Self::new(bytes);
        disk.properties.is_read_only = true;
        disk
    }

    /// A copy of all it holds.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }
}

impl BlockDevice for RamDisk {
    fn properties(&self) -> Properties {
        self.properties
    }

    fn submit(&self, mut request: Request) -> Result<(), Refused> {
        if let Err(error) = request.check(&self.properties) {
            return Err(Refused {
                request,
                reason: Refusal::Invalid(error),
            });
        }
        let result = apply(&mut request, &mut self.bytes.lock());
        request.complete(result);
        Ok(())
    }

    fn poll(&self) {}
}

/// Carries out a checked request on the bytes of a whole disk.
pub(super) fn apply(request: &mut Request, disk: &mut [u8]) -> Result<(), BlockError> {
    let mut at = request.offset as usize;
    match request.operation {
        Operation::Read => {
            for buffer in &mut request.buffers {
                let len = buffer.len();
                buffer.copy_in(0, &disk[at..at + len]);
                at += len;
            }
        }
        Operation::Write(_) => {
            for buffer in &request.buffers {
                let len = buffer.len();
                buffer.copy_out(0, &mut disk[at..at + len]);
                at += len;
            }
        }
        Operation::WriteZeroes { len } => disk[at..at + len as usize].fill(0),
        // Discarded bytes read as anything: so that whoever relied on them learns of it.
        Operation::Discard { len } => disk[at..at + len as usize].fill(0xdb),
        Operation::Flush => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::block::Durability;
    use crate::fs::blocking;

    #[test]
    fn what_was_written_is_read_back() {
        let disk = RamDisk::new(alloc::vec![0; 4 << 20]);
        let len = if cfg!(miri) { 3 << 10 } else { 3 << 20 };
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        blocking::write(&disk, 512, bytes.clone(), Durability::Cached).unwrap();
        assert_eq!(blocking::read(&disk, 512, bytes.len()).unwrap(), bytes);
    }

    #[test]
    fn a_read_only_disk_stays_as_it_is() {
        let disk = RamDisk::read_only(alloc::vec![7; 1024]);
        let write = blocking::write(&disk, 0, alloc::vec![0; 512], Durability::Cached);
        assert_eq!(write, Err(BlockError::ReadOnly));
        assert_eq!(disk.contents(), alloc::vec![7; 1024]);
    }
}
