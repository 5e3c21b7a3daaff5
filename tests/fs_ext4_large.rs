//! Directories up to what the format holds.
//!
//! `PINFOLD_ENTRIES=1000000 cargo test --release --test fs_ext4_large -- --nocapture` is the long run; it prints what a
//! name costs at every tenfold size.

mod common;

use common::{campaign, e2fsck, mkfs, mount};
use pinfold::fs::ext4::{Access, Ext4};
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::{Cursor, FileId, FileKind, FileSystem, FsError};
use std::sync::Arc;
use std::time::Instant;

fn fresh(kib: u64, options: &[&str]) -> (Arc<RamDisk>, Ext4) {
    let disk = Arc::new(RamDisk::new(mkfs(kib, options, None)));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    (disk, fs)
}

fn name(i: u64) -> Vec<u8> {
    format!("name {i:07}").into_bytes()
}

/// Times `each` for 0 to `count`, and says after each power of ten what one took of late.
fn timed(what: &str, count: u64, mut each: impl FnMut(u64)) {
    let mut mark = 1000;
    let (mut since, mut from) = (Instant::now(), 0);
    for i in 0..count {
        each(i);
        if i + 1 == mark || i + 1 == count {
            let ns = since.elapsed().as_nanos() as u64 / (i + 1 - from);
            println!("{what} up to {:7}: {ns} ns each", i + 1);
            (since, from) = (Instant::now(), i + 1);
            mark *= 10;
        }
    }
}

fn names_come_and_go(block_size: &str, count: u64) {
    let inodes = (count + count / 10 + 100).to_string();
    let kib = (count * 6 / 10).max(16 * 1024);
    let (disk, fs) = fresh(kib, &["-b", block_size, "-N", &inodes]);
    let free = fs.statistics().unwrap();
    let directory = fs
        .create(fs.root(), b"many", FileKind::Directory, 0o755)
        .unwrap();
    timed("create", count, |i| {
        fs.create(directory, &name(i), FileKind::File, 0o644)
            .unwrap();
    });
    fs.sync().unwrap();
    assert_eq!(e2fsck(&disk.contents()), Ok(()));
    // A prime that divides no power of ten: every name once, in no order of the directory's.
    let scattered = |i| name(i * 7919 % count);
    timed("lookup", count, |i| {
        fs.lookup(directory, &scattered(i)).unwrap();
    });
    timed("unlink", count, |i| {
        fs.unlink(directory, &scattered(i)).unwrap();
    });
    let mut cursor = Cursor::default();
    assert_eq!(fs.read_directory(directory, &mut cursor).unwrap().len(), 2);
    fs.remove_directory(fs.root(), b"many").unwrap();
    fs.sync().unwrap();
    assert_eq!(fs.statistics().unwrap(), free);
    fs.unmount().unwrap();
    assert_eq!(e2fsck(&disk.contents()), Ok(()));
}

#[test]
fn a_hundred_thousand_names_come_and_go() {
    names_come_and_go("4096", campaign("PINFOLD_ENTRIES", 100_000));
}

#[test]
fn a_hundred_thousand_names_in_small_blocks_come_and_go() {
    names_come_and_go("1024", campaign("PINFOLD_ENTRIES", 100_000));
}

/// Fills a directory with the longest names, and says how many it took.
fn fill(fs: &Ext4, directory: FileId, most: u64) -> u64 {
    let mut target = None;
    for i in 0..most {
        // A file has at most 65 000 names.
        if i % 60_000 == 0 {
            let file = fs.create(fs.root(), &name(i), FileKind::File, 0o644);
            target = file.ok();
        }
        match fs.link(target.unwrap(), directory, &long_name(i)) {
            Ok(()) => {}
            Err(FsError::NoSpace) => return i,
            Err(error) => panic!("after {i} names: {error}"),
        }
    }
    most
}

fn long_name(i: u64) -> Vec<u8> {
    format!("{i:0255}").into_bytes()
}

#[test]
fn a_directory_as_large_as_its_tree_can_be_refuses_another_name_and_stays_whole() {
    let (disk, fs) = fresh(64 * 1024, &["-b", "1024"]);
    let directory = fs
        .create(fs.root(), b"full", FileKind::Directory, 0o755)
        .unwrap();
    let count = fill(&fs, directory, 60_000);
    // 123 entries in the root and 126 in a node lead to 15 498 leaves of at most three such names.
    assert!((20_000..46_494).contains(&count), "{count}");
    assert!(fs.statistics().unwrap().free_blocks > 10_000);
    assert!((0..count).all(|i| fs.lookup(directory, &long_name(i)).is_ok()));
    assert!(fs.lookup(directory, &long_name(count)).is_err());
    fs.unlink(directory, &long_name(7)).unwrap();
    fs.link(
        fs.lookup(fs.root(), &name(0)).unwrap(),
        directory,
        &long_name(7),
    )
    .unwrap();
    fs.unmount().unwrap();
    assert_eq!(e2fsck(&disk.contents()), Ok(()));
}

#[test]
fn with_large_dir_a_tree_has_another_level() {
    let (disk, fs) = fresh(96 * 1024, &["-b", "1024", "-O", "large_dir"]);
    let directory = fs
        .create(fs.root(), b"large", FileKind::Directory, 0o755)
        .unwrap();
    assert_eq!(fill(&fs, directory, 60_000), 60_000);
    assert!((0..60_000).all(|i| fs.lookup(directory, &long_name(i)).is_ok()));
    fs.sync().unwrap();
    assert_eq!(e2fsck(&disk.contents()), Ok(()));
    for i in 0..60_000 {
        fs.unlink(directory, &long_name(i)).unwrap();
    }
    fs.remove_directory(fs.root(), b"large").unwrap();
    fs.unmount().unwrap();
    assert_eq!(e2fsck(&disk.contents()), Ok(()));
}
