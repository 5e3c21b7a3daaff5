//! Whether an image that a power cut left is sound, and holds what it must.

use crate::common::{Scratch, Tree, check_file, clock, read_tree, run, write_sparse};
use pinfold::fs::FileSystem;
use pinfold::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions};
use pinfold::fs::ram_disk::RamDisk;
use std::sync::Arc;

/// The bit of the superblock's incompatible features that says there is a log to replay.
const NEEDS_RECOVERY: (usize, u8) = (1024 + 0x60, 4);

fn options() -> MountOptions {
    MountOptions {
        access: Access::ReadWrite,
        clock,
        limits: MetadataLimits::default(),
    }
}

/// What Pinfold finds after it has replayed the log; e2fsck is satisfied with what it leaves.
pub fn recovered_by_us(image: Vec<u8>) -> Result<Tree, String> {
    let disk = Arc::new(RamDisk::new(image));
    let mounted =
        Ext4::mount(disk.clone(), options()).map_err(|error| format!("mount: {error}"))?;
    let fs = mounted.file_system;
    let tree = read_tree(&fs).map_err(|error| format!("read: {error}"))?;
    fs.unmount().map_err(|error| format!("unmount: {error}"))?;
    sound(&disk.contents())?;
    Ok(tree)
}

/// What is there after e2fsck has replayed the log; nothing else is to be mended.
pub fn recovered_by_e2fsck(image: &[u8]) -> Result<Tree, String> {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    let (at, bit) = NEEDS_RECOVERY;
    let needs_recovery = image[at] & bit != 0;
    write_sparse(&path, image).map_err(|error| error.to_string())?;
    if needs_recovery {
        let name = path.to_str().ok_or("a path that is no text")?;
        run("e2fsck", &["-y", "-E", "journal_only", name]);
    }
    check_file(&path)?;
    read(std::fs::read(&path).map_err(|error| error.to_string())?)
}

/// Whether `e2fsck -fn` is satisfied.
pub fn sound(image: &[u8]) -> Result<(), String> {
    crate::common::e2fsck(image)
}

/// What is there, as it stands.
pub fn read(image: Vec<u8>) -> Result<Tree, String> {
    let disk = Arc::new(RamDisk::read_only(image));
    let mounted = Ext4::mount(disk, options()).map_err(|error| format!("mount: {error}"))?;
    read_tree(&mounted.file_system).map_err(|error| format!("read: {error}"))
}
