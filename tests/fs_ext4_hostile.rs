//! Damaged and hostile images: an error or wrong bytes, never a panic, a hang, or an access outside.
//!
//! `PINFOLD_MUTATIONS=1000000 cargo test --release --test fs_ext4_hostile` is the long run; `PINFOLD_FIRST=N` goes on
//! where one of N mutations ended.

mod common;
#[path = "common/targets.rs"]
mod targets;

use common::machine::Machine;
use common::{OPTION_SETS, Scratch, campaign, changed_by_debugfs, mkfs, mount};
use pinfold::fs::error::Structure;
use pinfold::fs::ext4::Access;
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::sim_disk::Random;
use pinfold::fs::{FileKind, FileSystem, FsError};
use std::sync::Arc;
use targets::{change, walk};

/// The blocks of an image that are neither empty nor file data, by their first bytes and contents.
fn metadata_bytes(image: &[u8]) -> Vec<usize> {
    let blocks = image.chunks(1024).enumerate().filter(|(_, block)| {
        let is_filled = block.iter().all(|byte| *byte == block[0]);
        !is_filled
    });
    blocks
        .flat_map(|(i, block)| {
            block
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte != 0)
                .map(move |(at, _)| i * 1024 + at)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn mutated_images_neither_panic_nor_hang() {
    let source = common::hostile_source();
    let (first, runs) = (
        campaign("PINFOLD_FIRST", 0),
        campaign("PINFOLD_MUTATIONS", 1500),
    );
    // Without checksums, so that mutations reach the code behind them.
    let sets: Vec<_> = OPTION_SETS
        .iter()
        .filter(|(name, _)| {
            ["ext2", "ext3", "uninit-bg", "no-metadata-csum", "debian"].contains(name)
        })
        .collect();
    for (set, (_, options)) in sets.iter().enumerate() {
        let image = mkfs(2 * 1024, options, Some(&source.0));
        let scratch = Scratch::new();
        let path = scratch.0.join("image");
        std::fs::write(&path, &image).unwrap();
        common::run("e2fsck", &["-fyD", path.to_str().unwrap()]);
        let image = std::fs::read(&path).unwrap();
        let places = metadata_bytes(&image);
        let count = sets.len() as u64;
        for run in first / count..(first + runs) / count {
            let mut random = Random::new(run << 8 | set as u64);
            let mut mutated = image.clone();
            for _ in 0..=random.below(6) {
                let at = places[random.below(places.len() as u64) as usize];
                mutated[at] = match random.below(4) {
                    0 => 0xff,
                    1 => 0,
                    2 => mutated[at] ^ 1 << random.below(8),
                    _ => random.next_u64() as u8,
                };
            }
            let access = if random.below(2) == 0 {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            };
            if let Ok(mounted) = mount(Arc::new(RamDisk::new(mutated)), access) {
                walk(&mounted.file_system);
                if access == Access::ReadWrite {
                    change(&mounted.file_system, &mut random);
                    let _ = mounted.file_system.unmount();
                }
            }
        }
    }
}

#[test]
fn noise_is_not_mounted() {
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..1 << 20).map(|_| random.next_u64() as u8).collect();
    let error = mount(Arc::new(RamDisk::new(noise)), Access::ReadOnly).err();
    assert!(matches!(error, Some(FsError::Corrupt(_))));
}

#[test]
fn a_device_too_small_for_a_superblock_is_not_mounted() {
    for len in [0, 512, 1024, 1536] {
        let disk = Arc::new(RamDisk::new(vec![0; len]));
        assert_eq!(mount(disk, Access::ReadOnly).err(), Some(FsError::TooSmall));
    }
}

#[test]
fn mutated_logs_neither_panic_nor_hang() {
    let source = common::hostile_source();
    let base = mkfs(
        4 * 1024,
        &["-b", "1024", "-O", "^metadata_csum"],
        Some(&source.0),
    );
    let disk = Arc::new(RamDisk::new(base));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    for round in 0..6 {
        for i in 0..20 {
            let name = format!("{round} {i}");
            let made = fs
                .create(fs.root(), name.as_bytes(), FileKind::File, 0o644)
                .unwrap();
            fs.write_at(made, 0, &[round; 100]).unwrap();
            if i % 3 == 0 {
                fs.unlink(fs.root(), name.as_bytes()).unwrap();
            }
        }
        fs.sync().unwrap();
    }
    // Not unmounted: the log is full of it.
    let image = disk.contents();
    let log: Vec<usize> = (0..image.len() / 1024)
        .filter(|block| image[block * 1024..block * 1024 + 4] == [0xc0, 0x3b, 0x39, 0x98])
        .flat_map(|block| {
            (block * 1024..block * 1024 + 1024).filter(|&at| at % 1024 < 64 || image[at] != 0)
        })
        .collect();
    assert!(log.len() > 300, "{}", log.len());
    let (first, runs) = (
        campaign("PINFOLD_FIRST", 0),
        campaign("PINFOLD_MUTATIONS", 1500),
    );
    for run in first / 5..(first + runs) / 5 {
        let mut random = Random::new(run);
        let mut mutated = image.clone();
        for _ in 0..=random.below(4) {
            mutated[log[random.below(log.len() as u64) as usize]] = random.next_u64() as u8;
        }
        if let Ok(mounted) = mount(Arc::new(RamDisk::new(mutated)), Access::ReadWrite) {
            walk(&mounted.file_system);
            let _ = mounted.file_system.unmount();
        }
    }
}

#[test]
fn a_directory_larger_than_the_disk_is_an_error() {
    // Each of its blocks is the same one, of 16 million.
    let features = "^extents,^has_journal,^64bit,^metadata_csum,^dir_index";
    let image = mkfs(2048, &["-b", "1024", "-O", features], None);
    let direct = (1..12).map(|i| (i.to_string(), 1503));
    let levels = [("IND", 1502), ("DIND", 1501), ("TIND", 1500)];
    let levels = levels.map(|(name, block)| (name.to_string(), block));
    let pointers = direct.chain(levels);
    let set = pointers.map(|(slot, block)| format!("set_inode_field d block[{slot}] {block}"));
    let mut commands = vec!["mkdir d".to_string()];
    commands.extend(set);
    commands.push("set_inode_field d size 17247240192".into());
    let mut image = changed_by_debugfs(&image, &commands);
    for (block, below) in [(1500, 1501u32), (1501, 1502), (1502, 1503)] {
        for entry in image[block * 1024..][..1024].chunks_exact_mut(4) {
            entry.copy_from_slice(&below.to_le_bytes());
        }
    }
    let names = &mut image[1503 * 1024..][..1024];
    names.fill(0);
    names[4..6].copy_from_slice(&1024u16.to_le_bytes());
    let mounted = mount(Arc::new(RamDisk::new(image)), Access::ReadOnly).unwrap();
    let fs = mounted.file_system;
    let directory = fs.lookup(fs.root(), b"d").unwrap();
    let error = fs.lookup(directory, b"x").unwrap_err();
    let is_size =
        matches!(error, FsError::Corrupt(found) if found.structure == Structure::InodeSize);
    assert!(is_size, "{error:?}");
}

#[test]
fn a_size_that_no_file_can_have_is_an_error() {
    let features = "^has_journal,^metadata_csum";
    let commands = [
        "write /dev/null a",
        "set_inode_field a size 0xffffffffffffffff",
    ];
    let image = mkfs(2048, &["-b", "1024", "-O", features], None);
    let image = changed_by_debugfs(&image, &commands.map(String::from));
    let machine = Machine::on(image, 1, 16 << 20);
    let file = machine.fs.lookup(machine.fs.root(), b"a").unwrap();
    let is_size = |error: FsError| matches!(error, FsError::Corrupt(found) if found.structure == Structure::InodeSize);
    let error = machine.fs.open(file).unwrap_err();
    assert!(is_size(error), "{error:?}");
    for at in [1 << 63, u64::MAX - 200_000, u64::MAX - 5000, u64::MAX - 10] {
        let error = machine.fs.read_at(file, at, &mut [0; 10]).unwrap_err();
        assert!(is_size(error), "{error:?}");
    }
    // It can be removed.
    machine.fs.unlink(machine.fs.root(), b"a").unwrap();
}
