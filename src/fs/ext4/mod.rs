//! ext4, read and written, with its journal.
//!
//! # How it hangs together
//!
//! ```text
//!  file_system   the trait: names, bytes, extents                      one mutex around a Volume
//!      |
//!  names directory insert    read write truncate map                   what files and directories mean
//!      |                        |
//!  blocks inodes orphans     tree pointers                             allocation; block maps
//!      |
//!  volume        inodes and group descriptors by number
//!      |
//!  store         metadata blocks, layered: operation, running, committed, cache
//!      |
//!  journal       log, recovery                                         device
//!
//!  superblock group inode extent dirent htree hash journal::format     pure: on-disk structures from and to bytes
//! ```
//!
//! A call that changes something runs as an *operation*: it sees its own changes, and they become part of the running
//! transaction together, or not at all. So no call needs to clean up after itself, and a transaction is only ever
//! committed between operations. What an operation may have to take back is in the blocks: beside them is only known what
//! is open, promised, on its way or half cut, and that changes when an operation has ended, not in it.
//!
//! File data never goes through the store. It is written to its blocks before the operation that makes them part of the
//! file ends (or, by the page cache, into unwritten extents), and a commit flushes the device before its commit block:
//! so no committed metadata points to data that is not there.
//!
//! Every number from the medium is checked where it is read, every loop is bounded by a checked number, and trees are
//! descended by a depth that must fall by one with each level.

mod bitmap;
mod blocks;
mod bytes;
mod cache;
pub(crate) mod checksum;
mod directory;
mod dirent;
mod extent;
mod features;
mod file_system;
mod group;
mod hash;
mod htree;
mod info;
mod inode;
mod inodes;
mod insert;
mod journal;
mod map;
mod mount;
mod names;
mod orphans;
mod pointers;
mod read;
mod store;
mod superblock;
mod tree;
mod trim;
mod truncate;
mod volume;
mod write;

pub use info::SuperblockInfo;
pub use journal::Recovered;
pub use mount::{Access, MountOptions, Mounted};
pub use store::MetadataLimits;
pub use volume::Clock;

use crate::sync::Mutex;
use volume::Volume;

/// A mounted ext4 file system.
pub struct Ext4 {
    volume: Mutex<Volume>,
}
