//! The block device trait: requests in, completions out, many in flight.
//!
//! ```text
//!  caller                     device
//!  submit(Request) ---------> queue           Err(Refused): the request comes back, nothing was done
//!                             transfer        in any order; nothing is durable yet
//!  on_completion  <---------- interrupt/poll  buffers and result come back
//!  submit(Flush)  ---------->                 every write completed before this one was submitted is durable
//! ```
//!
//! A request owns its memory until it completes, so no frame can be freed or reused under a running transfer. A
//! completion runs where the device's interrupt is handled: it may take a spin lock and wake a thread, not wait.
//! [`blocking`](super::blocking) turns this into calls that wait.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// The unit no device tears: smaller than any request, and what "sector" means here whatever the medium calls so.
pub const SECTOR_SIZE: u64 = 512;

/// A disk, a partition, or what stands in for one.
pub trait BlockDevice: Send + Sync {
    /// What the device is; never changes while it is in use.
    fn properties(&self) -> Properties;

    /// Queues `request` and returns at once. Its completion runs exactly once, perhaps before this call returns.
    fn submit(&self, request: Request) -> Result<(), Refused>;

    /// Completes what the device has finished. Interrupts do this by themselves; a thread that waits without them
    /// calls it in its loop.
    fn poll(&self);
}

/// What a device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Bytes it holds, a multiple of [`sector_size`](Self::sector_size).
    pub capacity: u64,
    /// Offsets and lengths are multiples of this, a power of two from 512 to 4096.
    pub sector_size: u32,
    /// The most bytes of one request.
    pub max_request: usize,
    /// Writes are refused.
    pub is_read_only: bool,
    /// There is a volatile cache with a command to empty it. Without one, completion is all that can be known.
    pub has_flush: bool,
    /// The most bytes of one [`Operation::Discard`]; 0 where it is not served.
    pub max_discard: u64,
    /// The most bytes of one [`Operation::WriteZeroes`]; 0 where it is not served.
    pub max_write_zeroes: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffers from the medium.
    Read,
    /// Write the buffers to the medium.
    Write(Durability),
    /// Make every write that has completed durable.
    Flush,
    /// Tell the device that these bytes are no longer needed; they read as anything afterwards.
    Discard {
        /// How many bytes.
        len: u64,
    },
    /// Write zeros without a transfer.
    WriteZeroes {
        /// How many bytes.
        len: u64,
    },
}

/// When a write may be called complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the device has it; a flush makes it durable.
    Cached,
    /// Not before it would survive a power cut (force unit access).
    Durable,
}

/// Memory a device transfers from or to: heap bytes, or frames of the page cache.
///
/// In the image all of it lies in the linear map, so a driver finds the physical address from [`address`](Self::address);
/// a disk without DMA copies.
pub trait Buffer: Send {
    /// Bytes in the buffer, contiguous in physical memory.
    fn len(&self) -> usize;
    /// Whether there is nothing to transfer.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Where the buffer lies.
    fn address(&self) -> *const u8;
    /// Copies from the buffer, beginning at `at`.
    fn copy_out(&self, at: usize, bytes: &mut [u8]);
    /// Copies into the buffer, beginning at `at`.
    fn copy_in(&mut self, at: usize, bytes: &[u8]);
    /// The bytes themselves, where the buffer is a heap vector: how a caller gets them back.
    fn into_bytes(self: Box<Self>) -> Option<Vec<u8>> {
        None
    }
}

impl Buffer for Vec<u8> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn address(&self) -> *const u8 {
        self.as_ptr()
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self[at..at + bytes.len()]);
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn into_bytes(self: Box<Self>) -> Option<Vec<u8>> {
        Some(*self)
    }
}

/// Buffers of one request that every device takes.
pub const MAX_BUFFERS: usize = 128;

/// Called once with the outcome.
pub type OnCompletion = Box<dyn FnOnce(Completion) + Send>;

/// One transfer.
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Where it begins on the device, in bytes.
    pub offset: u64,
    /// Memory for a read or write, in order; each a multiple of the sector size. Empty otherwise.
    pub buffers: Vec<Box<dyn Buffer>>,
    /// Who wants to know.
    pub on_completion: OnCompletion,
}

impl Request {
    /// Bytes of the device this request touches.
    pub fn len(&self) -> u64 {
        match self.operation {
            Operation::Read | Operation::Write(_) => {
                self.buffers.iter().map(|buffer| buffer.len() as u64).sum()
            }
            Operation::Flush => 0,
            Operation::Discard { len } | Operation::WriteZeroes { len } => len,
        }
    }

    /// Whether it touches no byte, as a flush.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands buffers and `result` to whoever waits.
    pub fn complete(self, result: Result<(), BlockError>) {
        (self.on_completion)(Completion {
            buffers: self.buffers,
            result,
        });
    }

    /// Whether `properties` allow this request; every device asks this first.
    pub fn check(&self, properties: &Properties) -> Result<(), BlockError> {
        let (len, unit) = (self.len(), u64::from(properties.sector_size));
        let is_aligned = self.offset.is_multiple_of(unit)
            && len.is_multiple_of(unit)
            && self
                .buffers
                .iter()
                .all(|b| (b.len() as u64).is_multiple_of(unit));
        if !is_aligned {
            return Err(BlockError::Misaligned {
                offset: self.offset,
                len,
            });
        }
        if self
            .offset
            .checked_add(len)
            .is_none_or(|end| end > properties.capacity)
        {
            return Err(BlockError::OutOfRange {
                offset: self.offset,
                len,
            });
        }
        match self.operation {
            Operation::Read => Ok(()),
            _ if properties.is_read_only => Err(BlockError::ReadOnly),
            Operation::Discard { len } if len > properties.max_discard => {
                Err(BlockError::Unsupported)
            }
            Operation::WriteZeroes { len } if len > properties.max_write_zeroes => {
                Err(BlockError::Unsupported)
            }
            _ => Ok(()),
        }
    }
}

/// What became of a request.
pub struct Completion {
    /// The request's memory; after an error of a read its bytes mean nothing.
    pub buffers: Vec<Box<dyn Buffer>>,
    /// Whether it was done.
    pub result: Result<(), BlockError>,
}

/// A request that was not queued, given back.
pub struct Refused {
    /// The request, untouched.
    pub request: Request,
    /// Why.
    pub reason: Refusal,
}

/// Why a request was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many are in flight as the device takes: wait for one, then try again.
    QueueFull,
    /// It would never work.
    Invalid(BlockError),
}

/// What went wrong with a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The device says it failed.
    Device {
        /// Where the transfer began, in bytes.
        offset: u64,
    },
    /// The device did not answer in time.
    TimedOut {
        /// Where the transfer began, in bytes.
        offset: u64,
    },
    /// What was transferred was damaged on the way, each time.
    Garbled {
        /// Where the transfer began, in bytes.
        offset: u64,
    },
    /// Not inside the device.
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Not whole sectors.
    Misaligned {
        /// First byte asked for.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// A write to a device that takes none.
    ReadOnly,
    /// The device does not offer this operation.
    Unsupported,
    /// The device is gone.
    Removed,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { offset } => write!(f, "the device failed at byte {offset}"),
            Self::TimedOut { offset } => write!(f, "the device did not answer at byte {offset}"),
            Self::Garbled { offset } => {
                write!(f, "data was damaged on its way at byte {offset}")
            }
            Self::OutOfRange { offset, len } => {
                write!(f, "{len} bytes at {offset} are not inside the device")
            }
            Self::Misaligned { offset, len } => {
                write!(f, "{len} bytes at {offset} are not whole sectors")
            }
            Self::ReadOnly => f.write_str("the device is read-only"),
            Self::Unsupported => f.write_str("the device does not offer this operation"),
            Self::Removed => f.write_str("the device is gone"),
        }
    }
}

impl core::error::Error for BlockError {}

#[cfg(test)]
mod tests {
    use super::*;

    const PROPERTIES: Properties = Properties {
        capacity: 4096,
        sector_size: 512,
        max_request: 4096,
        is_read_only: true,
        has_flush: true,
        max_discard: 1024,
        max_write_zeroes: 0,
    };

    fn request(operation: Operation, offset: u64, len: usize) -> Request {
        Request {
            operation,
            offset,
            buffers: Vec::from([Box::new(alloc::vec![0u8; len]) as Box<dyn Buffer>]),
            on_completion: Box::new(|_| ()),
        }
    }

    #[test]
    fn a_request_outside_the_device_is_refused() {
        let read = |offset, len| request(Operation::Read, offset, len).check(&PROPERTIES);
        assert_eq!(read(3584, 512), Ok(()));
        assert_eq!(
            read(3584, 1024),
            Err(BlockError::OutOfRange {
                offset: 3584,
                len: 1024
            })
        );
        let end = u64::MAX - 511;
        assert_eq!(
            read(end, 512),
            Err(BlockError::OutOfRange {
                offset: end,
                len: 512
            })
        );
    }

    #[test]
    fn a_request_for_part_of_a_sector_is_refused() {
        let misaligned = Err(BlockError::Misaligned {
            offset: 1,
            len: 512,
        });
        assert_eq!(
            request(Operation::Read, 1, 512).check(&PROPERTIES),
            misaligned
        );
    }

    #[test]
    fn a_discard_longer_than_the_device_takes_is_refused() {
        let writable = Properties {
            is_read_only: false,
            ..PROPERTIES
        };
        let discard = |len| Request {
            buffers: Vec::new(),
            ..request(Operation::Discard { len }, 0, 0)
        };
        assert_eq!(discard(1024).check(&writable), Ok(()));
        let unsupported = Err(BlockError::Unsupported);
        assert_eq!(discard(1536).check(&writable), unsupported);
        let zeroes = request(Operation::WriteZeroes { len: 512 }, 0, 0);
        assert_eq!(zeroes.check(&writable), unsupported);
    }

    #[test]
    fn a_write_to_a_read_only_device_is_refused() {
        let write = request(Operation::Write(Durability::Cached), 0, 512);
        assert_eq!(write.check(&PROPERTIES), Err(BlockError::ReadOnly));
    }
}
