//! File systems and the block devices beneath them.
//!
//! | Where | What |
//! | --- | --- |
//! | [`block`], [`blocking`] | the device trait: requests in flight; and calls that wait |
//! | [`partition`] | partition tables, and a partition as a device |
//! | [`ram_disk`], `sim_disk` | disks of memory; the second for tests, with power cuts |
//! | [`error`] | what can go wrong, and what was found where |
//! | [`FileSystem`] | the trait: names, bytes, and extents for the page cache |
//! | [`cached`] | a file system behind the page cache |
//! | [`ext4`] | the root file system |
//! | [`fat`] | the firmware's partition |
//! | [`signature`] | what a disk looks like that has none of them |
//! | [`vfs`] | what is mounted where, and what a path means |
//!
//! Everything here runs on a PC too.

#![forbid(unsafe_code)]

pub mod block;
pub mod blocking;
pub mod cached;
pub mod error;
pub mod ext4;
pub mod fat;
mod file_system;
pub mod partition;
pub mod ram_disk;
pub mod signature;
#[cfg(not(target_os = "none"))]
pub mod sim_disk;
pub mod vfs;

pub use error::FsError;
pub use file_system::{
    Attributes, Backing, Cursor, DirectoryEntry, Extent, FileId, FileKind, FileSystem, Reservation,
    Statistics, Timestamp,
};

/// Whether a checksum on the medium is what it should be. For a fuzzer it always is: it would never guess one, and
/// never see what is behind.
fn checksum_agrees<T: PartialEq>(stored: T, computed: T) -> bool {
    stored == computed || cfg!(fuzzing)
}
