//! Single behaviours of files and directories that a random workload seldom meets.

mod common;

use common::{
    Node, Scratch, changed_by_debugfs, debugfs, e2fsck, mkfs, mount, options, read_file, read_tree,
    run,
};
use pinfold::fs::block::{BlockError, Durability};
use pinfold::fs::error::ReadOnlyReason;
use pinfold::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions};
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::sim_disk::{Random, SimDisk};
use pinfold::fs::{
    Backing, Cursor, Extent, FileId, FileKind, FileSystem, FsError, Reservation, Timestamp,
    blocking,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn fresh(kib: u64, options: &[&str]) -> (Arc<RamDisk>, Ext4) {
    let disk = Arc::new(RamDisk::new(mkfs(kib, options, None)));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    (disk, fs)
}

fn file(fs: &Ext4, name: &[u8]) -> FileId {
    fs.create(fs.root(), name, FileKind::File, 0o644).unwrap()
}

fn finish(disk: &RamDisk, fs: &Ext4) -> Vec<u8> {
    fs.unmount().unwrap();
    let image = disk.contents();
    assert_eq!(e2fsck(&image), Ok(()));
    image
}

#[test]
fn a_file_written_at_once_lies_in_a_handful_of_extents() {
    let (disk, fs) = fresh(96 * 1024, &["-b", "4096"]);
    let big = file(&fs, b"big");
    let piece = vec![7; 1 << 20];
    for i in 0..64 {
        fs.write_at(big, i << 20, &piece).unwrap();
    }
    let extents = fs.map(big, 0, 64 << 20).unwrap();
    assert!(extents.len() <= 6, "{} extents", extents.len());
    finish(&disk, &fs);
}

#[test]
fn directories_of_twenty_thousand_names_stay_valid_and_searchable() {
    for options in [
        &["-b", "1024", "-N", "25000"][..],
        &["-b", "4096", "-N", "25000", "-O", "^metadata_csum"],
    ] {
        let (disk, fs) = fresh(48 * 1024, options);
        let directory = fs
            .create(fs.root(), b"many", FileKind::Directory, 0o755)
            .unwrap();
        let target = file(&fs, b"target");
        let name = |i: u32| format!("name {i:05} {}", "x".repeat(i as usize % 40)).into_bytes();
        for i in 0..20_000 {
            // Links need no inode each; some files do.
            if i % 4 > 0 {
                fs.create(directory, &name(i), FileKind::File, 0o644)
                    .unwrap();
            } else {
                fs.link(target, directory, &name(i)).unwrap();
            }
        }
        for i in (0..20_000).step_by(3) {
            fs.unlink(directory, &name(i)).unwrap();
        }
        for i in (0..20_000).step_by(7) {
            assert_eq!(fs.lookup(directory, &name(i)).is_ok(), i % 3 != 0);
        }
        let mut count = 0;
        let mut cursor = Cursor::default();
        loop {
            match fs.read_directory(directory, &mut cursor).unwrap().len() {
                0 => break,
                more => count += more,
            }
        }
        assert_eq!(count, 2 + 20_000 - 6667);
        let image = finish(&disk, &fs);
        let tree = String::from_utf8(debugfs(&image, "htree_dump /many")).unwrap();
        assert!(tree.contains("Root node dump"));
    }
}

#[test]
fn names_of_bytes_above_127_are_hashed_as_the_pc_hashes_them() {
    let (disk, fs) = fresh(16 * 1024, &["-b", "1024"]);
    let directory = fs
        .create(fs.root(), b"d", FileKind::Directory, 0o755)
        .unwrap();
    let mut random = Random::new(5);
    let names: Vec<Vec<u8>> = (0..3000)
        .map(|_| random.next_u64().to_le_bytes().map(|b| b | 0x80).to_vec())
        .collect();
    for name in &names {
        match fs.create(directory, name, FileKind::File, 0o644) {
            Ok(_) | Err(FsError::Exists) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(names.iter().all(|name| fs.lookup(directory, name).is_ok()));
    finish(&disk, &fs);
}

#[test]
fn what_is_free_is_discarded_and_nothing_else() {
    for options in [&["-b", "4096"][..], &["-b", "1024", "-g", "1024"]] {
        let disk = Arc::new(SimDisk::new(mkfs(16 * 1024, options, None), 1));
        let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
        let create = |name: &[u8]| fs.create(fs.root(), name, FileKind::File, 0o644).unwrap();
        let (kept, removed) = (create(b"kept"), create(b"removed"));
        for i in 0..20 {
            fs.write_at(kept, i * 8192, &[7; 5000]).unwrap();
            fs.write_at(removed, i * 8192, &[0x99; 5000]).unwrap();
        }
        fs.sync().unwrap();
        fs.unlink(fs.root(), b"removed").unwrap();
        let free = fs.statistics().unwrap();
        let bytes = free.free_blocks * u64::from(free.block_size);
        assert_eq!(fs.trim(), Ok(bytes));
        let secret = [0x99; 512];
        assert!(!disk.contents().chunks(512).any(|sector| sector == secret));
        fs.write_at(create(b"after"), 0, &[5; 100_000]).unwrap();
        fs.unmount().unwrap();
        assert!(matches!(fs.trim(), Err(FsError::ReadOnly(_))));
        let image = disk.contents();
        assert_eq!(e2fsck(&image), Ok(()));
        let disk = Arc::new(RamDisk::new(image));
        let fs = mount(disk, Access::ReadWrite).unwrap().file_system;
        let mut bytes = vec![0; 19 * 8192 + 5000];
        let kept = fs.lookup(fs.root(), b"kept").unwrap();
        assert_eq!(fs.read_at(kept, 0, &mut bytes), Ok(bytes.len()));
        let wanted = (0..bytes.len()).map(|i| if i % 8192 < 5000 { 7 } else { 0 });
        assert!(bytes.iter().copied().eq(wanted));
        assert_eq!(fs.trim(), Err(FsError::Block(BlockError::Unsupported)));
    }
}

#[test]
fn a_sparse_file_past_four_gib_takes_only_what_was_written() {
    let (disk, fs) = fresh(16 * 1024, &["-b", "4096"]);
    let sparse = file(&fs, b"sparse");
    for at in [0, 5 << 30, 9 << 40] {
        fs.write_at(sparse, at, b"here").unwrap();
    }
    let attributes = fs.attributes(sparse).unwrap();
    assert_eq!(attributes.size, (9 << 40) + 4);
    assert_eq!(attributes.allocated, 3 * 4096);
    let mut bytes = [9; 8];
    assert_eq!(fs.read_at(sparse, (5 << 30) - 2, &mut bytes), Ok(8));
    assert_eq!(&bytes, b"\0\0here\0\0");
    assert_eq!(
        fs.write_at(sparse, 16 << 40, b"x"),
        Err(FsError::FileTooLarge)
    );
    finish(&disk, &fs);
}

#[test]
fn many_extents_make_a_deep_tree_and_go_again() {
    let (disk, fs) = fresh(32 * 1024, &["-b", "1024"]);
    let full = fs.statistics().unwrap().free_blocks;
    let holes = file(&fs, b"holes");
    let mut random = Random::new(3);
    let mut places: Vec<u64> = (0..8000).collect();
    for i in 0..places.len() {
        places.swap(i, random.below(i as u64 + 1) as usize);
    }
    for place in &places {
        fs.write_at(holes, place * 2048, &place.to_le_bytes())
            .unwrap();
    }
    let image = finish(&disk, &fs);
    let dump = String::from_utf8(debugfs(&image, "dump_extents /holes")).unwrap();
    assert!(
        dump.contains(" 2/ 2") || dump.contains(" 2/2"),
        "the tree is not deep: {}",
        &dump[..200.min(dump.len())]
    );
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    let holes = fs.lookup(fs.root(), b"holes").unwrap();
    for place in &places {
        let mut bytes = [0; 8];
        fs.read_at(holes, place * 2048, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), *place);
    }
    fs.set_len(holes, 1_000_000).unwrap();
    fs.set_len(holes, 0).unwrap();
    assert_eq!(fs.attributes(holes).unwrap().allocated, 0);
    assert_eq!(fs.statistics().unwrap().free_blocks, full);
    finish(&disk, &fs);
}

#[test]
fn times_have_nanoseconds_and_reach_past_2038() {
    let (disk, fs) = fresh(4096, &["-b", "1024", "-I", "256"]);
    let dated = file(&fs, b"dated");
    let modified = Timestamp {
        seconds: 5_000_000_000,
        nanoseconds: 987_654_321,
    };
    let accessed = Timestamp {
        seconds: -1_000,
        nanoseconds: 1,
    };
    fs.set_times(dated, accessed, modified).unwrap();
    let image = finish(&disk, &fs);
    let fs = mount(Arc::new(RamDisk::new(image.clone())), Access::ReadOnly)
        .unwrap()
        .file_system;
    let attributes = fs
        .attributes(fs.lookup(fs.root(), b"dated").unwrap())
        .unwrap();
    assert_eq!(
        (attributes.modified, attributes.accessed),
        (modified, accessed)
    );
    let stat = String::from_utf8(debugfs(&image, "stat /dated")).unwrap();
    assert!(stat.contains("2128"), "{stat}");
}

#[test]
fn extended_attributes_stay_and_go_with_their_file() {
    let image = mkfs(4096, &["-b", "1024"], None);
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    std::fs::write(&path, image).unwrap();
    let value = scratch.0.join("value");
    std::fs::write(&value, vec![b'v'; 600]).unwrap();
    for command in [
        format!("write {} f", value.display()),
        format!("ea_set -f {} f user.large", value.display()),
        "ea_set f user.small s".to_string(),
    ] {
        run("debugfs", &["-w", "-R", &command, path.to_str().unwrap()]);
    }
    let disk = Arc::new(RamDisk::new(std::fs::read(&path).unwrap()));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    let f = fs.lookup(fs.root(), b"f").unwrap();
    fs.write_at(f, 100_000, b"more").unwrap();
    let before = fs.statistics().unwrap().free_blocks;
    let image = finish(&disk, &fs);
    let list = String::from_utf8(debugfs(&image, "ea_list f")).unwrap();
    assert!(
        list.contains("user.large (600)") && list.contains("user.small"),
        "{list}"
    );
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    fs.unlink(fs.root(), b"f").unwrap();
    // One block of data, one of what was written first, one of attributes.
    assert_eq!(fs.statistics().unwrap().free_blocks, before + 3);
    finish(&disk, &fs);
}

#[test]
fn an_open_file_without_a_name_lives_until_it_is_closed() {
    let (disk, fs) = fresh(4096, &["-b", "1024"]);
    let free = fs.statistics().unwrap();
    let held = file(&fs, b"held");
    fs.write_at(held, 0, &[1; 5000]).unwrap();
    fs.open(held).unwrap();
    fs.unlink(fs.root(), b"held").unwrap();
    fs.write_at(held, 5000, &[2; 5000]).unwrap();
    assert_eq!(read_file(&fs, held).unwrap()[4999..5001], [1, 2]);
    assert_eq!(fs.link(held, fs.root(), b"again"), Err(FsError::NotFound));
    fs.close(held).unwrap();
    assert_eq!(fs.attributes(held), Err(FsError::NotFound));
    assert_eq!(fs.statistics().unwrap(), free);
    finish(&disk, &fs);
}

#[test]
fn an_orphan_left_by_a_power_cut_is_removed_at_mount() {
    for options in [
        &["-b", "1024"][..],
        &["-b", "1024", "-O", "orphan_file"],
        &["-b", "1024", "-O", "^has_journal"],
    ] {
        let (disk, fs) = fresh(6144, options);
        let free = fs.statistics().unwrap();
        let held = file(&fs, b"held");
        fs.write_at(held, 0, &vec![1; 500_000]).unwrap();
        fs.open(held).unwrap();
        fs.unlink(fs.root(), b"held").unwrap();
        fs.sync().unwrap();
        let disk = Arc::new(RamDisk::new(disk.contents()));
        let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
        assert_eq!(fs.statistics().unwrap(), free);
        finish(&disk, &fs);
    }
}

#[test]
fn an_orphan_file_written_by_others_is_emptied() {
    let source = Scratch::new();
    std::fs::write(source.0.join("f"), vec![5; 30_000]).unwrap();
    let mut image = mkfs(
        6144,
        &["-b", "1024", "-O", "orphan_file,^metadata_csum"],
        Some(&source.0),
    );
    let stat = String::from_utf8(debugfs(&image, "stat f")).unwrap();
    let number: u32 = stat.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The first entry of the orphan file's block says that this inode was being cut.
    let tail = image
        .chunks(1024)
        .position(|block| block[1016..1020] == [0x04, 0xca, 0x10, 0x0b])
        .unwrap();
    image[tail * 1024..tail * 1024 + 4].copy_from_slice(&number.to_le_bytes());
    image[1024 + 0x66] |= 1;
    let disk = Arc::new(RamDisk::new(image));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    assert_eq!(
        read_tree(&fs).unwrap()[&b"/f"[..]],
        Node::File(vec![5; 30_000])
    );
    let image = finish(&disk, &fs);
    assert_eq!(image[1024 + 0x66] & 1, 0);
}

#[test]
fn unwritten_space_reads_as_zeros_also_after_a_power_cut() {
    let stale = vec![0xee; 8 << 20];
    let (disk, fs) = fresh(8 * 1024, &["-b", "4096"]);
    let old = file(&fs, b"old");
    fs.write_at(old, 0, &stale[..2 << 20]).unwrap();
    fs.sync().unwrap();
    fs.unlink(fs.root(), b"old").unwrap();
    fs.sync().unwrap();
    let new = file(&fs, b"new");
    let mut reservation = fs.reserve(new, 0, 3 << 20).unwrap();
    let extents = fs.allocate(new, 0, 3 << 20, &mut reservation).unwrap();
    assert!(
        extents
            .iter()
            .all(|extent| matches!(extent.backing, Backing::Unwritten(_)))
    );
    fs.set_len(new, 3 << 20).unwrap();
    fs.sync().unwrap();
    let disk = Arc::new(RamDisk::new(disk.contents()));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    let new = fs.lookup(fs.root(), b"new").unwrap();
    assert!(read_file(&fs, new).unwrap().iter().all(|byte| *byte == 0));
    finish(&disk, &fs);
}

#[test]
fn a_failed_journal_write_makes_everything_read_only_and_says_why() {
    let base = mkfs(6144, &["-b", "1024"], None);
    let disk = Arc::new(SimDisk::new(base, 1));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    let kept = file(&fs, b"kept");
    fs.write_at(kept, 0, b"kept").unwrap();
    fs.sync_file(kept).unwrap();
    file(&fs, b"lost");
    disk.fail_after(0);
    assert!(matches!(
        fs.sync(),
        Err(FsError::Block(BlockError::Device { .. }))
    ));
    disk.heal();
    let reason = fs.read_only().unwrap();
    assert!(matches!(
        reason,
        ReadOnlyReason::JournalFailed(BlockError::Device { .. })
    ));
    assert_eq!(
        fs.create(fs.root(), b"x", FileKind::File, 0o644),
        Err(FsError::ReadOnly(reason))
    );
    assert_eq!(fs.sync(), Err(FsError::ReadOnly(reason)));
    assert_eq!(read_file(&fs, kept).unwrap(), b"kept");
    let disk = Arc::new(RamDisk::new(disk.contents()));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    assert_eq!(
        read_file(&fs, fs.lookup(fs.root(), b"kept").unwrap()).unwrap(),
        b"kept"
    );
    finish(&disk, &fs);
}

#[test]
fn errors_of_the_device_at_any_request_leave_a_file_system_that_recovers() {
    let base = mkfs(6144, &["-b", "1024"], None);
    for count in 0..60 {
        let disk = Arc::new(SimDisk::new(base.clone(), 1));
        let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
        disk.fail_after(count);
        for i in 0..10u8 {
            if let Ok(made) = fs.create(fs.root(), &[b'a' + i], FileKind::File, 0o644) {
                let _ = fs.write_at(made, 0, &[i; 3000]);
                let _ = fs.sync_file(made);
            }
        }
        let _ = fs.unmount();
        let disk = Arc::new(RamDisk::new(disk.contents()));
        let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
        read_tree(&fs).unwrap();
        finish(&disk, &fs);
    }
}

#[test]
fn a_full_disk_is_an_error_and_freed_space_is_usable_at_once() {
    let (disk, fs) = fresh(2048, &["-b", "1024", "-O", "^has_journal"]);
    let big = file(&fs, b"big");
    let mut len = 0;
    let full = loop {
        match fs.write_at(big, len, &[1; 65536]) {
            Ok(()) => len += 65536,
            Err(error) => break error,
        }
    };
    assert_eq!(full, FsError::NoSpace);
    assert_eq!(fs.attributes(big).unwrap().size, len);
    fs.set_len(big, 0).unwrap();
    fs.write_at(big, 0, &vec![2; len as usize]).unwrap();
    finish(&disk, &fs);
}

#[test]
fn the_pc_reads_what_was_written_here() {
    for (name, options) in common::OPTION_SETS {
        let (disk, fs) = fresh(8 * 1024, options);
        let mut random = Random::new(11);
        let bytes: Vec<u8> = (0..777_777).map(|_| random.next_u64() as u8).collect();
        fs.write_at(file(&fs, b"f"), 0, &bytes).unwrap();
        fs.symlink(fs.root(), b"s", &[b'q'; 150]).unwrap();
        let image = finish(&disk, &fs);
        assert!(debugfs(&image, "cat /f") == bytes, "{name}");
        let stat = String::from_utf8(debugfs(&image, "stat /s")).unwrap();
        assert!(stat.contains("Size: 150"), "{name}: {stat}");
    }
}

#[test]
fn an_unknown_read_only_feature_mounts_read_only_and_is_named() {
    let image = mkfs(2048, &["-b", "1024", "-O", "quota"], None);
    let mounted = mount(Arc::new(RamDisk::new(image)), Access::ReadWrite).unwrap();
    let Some(ReadOnlyReason::Feature(feature)) = mounted.read_only else {
        panic!("{:?}", mounted.read_only);
    };
    assert_eq!(feature.to_string(), "unsupported features: quota");
    assert_eq!(mounted.file_system.read_only(), mounted.read_only);
}

#[test]
fn a_damaged_superblock_is_read_from_its_backup() {
    let source = Scratch::new();
    std::fs::write(source.0.join("f"), b"still here").unwrap();
    let mut image = mkfs(16 * 1024, &["-b", "1024"], Some(&source.0));
    image[1024 + 4] ^= 0x55;
    let mounted = mount(Arc::new(RamDisk::new(image)), Access::ReadWrite).unwrap();
    assert_eq!(mounted.read_only, Some(ReadOnlyReason::BackupSuperblock));
    assert_eq!(
        read_tree(&mounted.file_system).unwrap()[&b"/f"[..]],
        Node::File(b"still here".to_vec())
    );
}

#[test]
fn names_are_bytes_of_up_to_255() {
    let (disk, fs) = fresh(2048, &["-b", "1024"]);
    let longest = [0xffu8; 255];
    let made = file(&fs, &longest);
    assert_eq!(fs.lookup(fs.root(), &longest), Ok(made));
    let create = |name: &[u8]| fs.create(fs.root(), name, FileKind::File, 0o644);
    assert_eq!(create(&[b'x'; 256]), Err(FsError::NameTooLong));
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(create(name), Err(FsError::InvalidName));
    }
    finish(&disk, &fs);
}

#[test]
fn a_rename_over_a_file_or_an_empty_directory_replaces_it() {
    let (disk, fs) = fresh(2048, &["-b", "1024"]);
    let top = fs.root();
    let free = fs.statistics().unwrap();
    let directory = |at, name: &[u8]| fs.create(at, name, FileKind::Directory, 0o755).unwrap();
    let (a, b) = (directory(top, b"a"), directory(top, b"b"));
    let (old, new) = (file(&fs, b"old"), file(&fs, b"new"));
    fs.write_at(old, 0, &[1; 5000]).unwrap();
    fs.rename(top, b"new", top, b"old").unwrap();
    assert_eq!(fs.lookup(top, b"old"), Ok(new));
    assert_eq!(fs.attributes(old), Err(FsError::NotFound));
    let (inner, empty) = (directory(a, b"inner"), directory(b, b"empty"));
    assert_eq!(fs.rename(top, b"a", inner, b"a"), Err(FsError::IntoItself));
    assert_eq!(fs.rename(top, b"a", top, b"b"), Err(FsError::NotEmpty));
    fs.rename(a, b"inner", b, b"empty").unwrap();
    assert_eq!(fs.attributes(empty), Err(FsError::NotFound));
    assert_eq!(fs.lookup(inner, b".."), Ok(b));
    let links = |id| fs.attributes(id).unwrap().links;
    assert_eq!((links(a), links(b)), (2, 3));
    fs.remove_directory(b, b"empty").unwrap();
    for name in [&b"a"[..], b"b"] {
        fs.remove_directory(top, name).unwrap();
    }
    fs.unlink(top, b"old").unwrap();
    fs.sync().unwrap();
    assert_eq!(fs.statistics().unwrap(), free);
    finish(&disk, &fs);
}

#[test]
fn a_file_removed_when_the_clock_stands_at_zero_is_a_removed_file() {
    fn clock() -> Timestamp {
        Timestamp {
            seconds: 0,
            nanoseconds: 0,
        }
    }
    let disk = Arc::new(RamDisk::new(mkfs(4096, &[], None)));
    let options = MountOptions {
        clock,
        ..options(Access::ReadWrite)
    };
    let fs = Ext4::mount(disk.clone(), options).unwrap().file_system;
    file(&fs, b"short-lived");
    fs.unlink(fs.root(), b"short-lived").unwrap();
    finish(&disk, &fs);
}

#[test]
fn an_overwrite_right_after_another_changes_no_time() {
    static MICROSECONDS: AtomicU32 = AtomicU32::new(0);
    fn at(microseconds: u32) -> Timestamp {
        Timestamp {
            seconds: 1_700_000_000,
            nanoseconds: microseconds * 1000,
        }
    }
    let disk = Arc::new(RamDisk::new(mkfs(4096, &[], None)));
    let options = MountOptions {
        clock: || at(MICROSECONDS.load(Ordering::Relaxed)),
        ..options(Access::ReadWrite)
    };
    let fs = Ext4::mount(disk.clone(), options).unwrap().file_system;
    let file = file(&fs, b"file");
    fs.write_at(file, 0, &[1; 4096]).unwrap();
    let changed_when_written_at = |microseconds| {
        MICROSECONDS.store(microseconds, Ordering::Relaxed);
        fs.written(file, 0, 4096, 4096).unwrap();
        fs.attributes(file).unwrap().modified
    };
    assert_eq!(changed_when_written_at(10_000), at(10_000));
    assert_eq!(changed_when_written_at(13_999), at(10_000));
    assert_eq!(changed_when_written_at(14_000), at(14_000));
    // A time that somebody has set, and that is still to come.
    fs.set_times(file, at(0), at(15_000)).unwrap();
    assert_eq!(changed_when_written_at(14_500), at(14_500));
    finish(&disk, &fs);
}

/// The block that the page cache is writing when the file grows, by another transfer or by a call.
#[test]
fn a_last_block_that_is_being_written_is_not_zeroed_when_the_file_grows() {
    let grow: [fn(&Ext4, FileId); 3] = [
        |fs, file| fs.set_len(file, 9000).unwrap(),
        // Twice within that block.
        |fs, file| {
            fs.set_len(file, 1600).unwrap();
            fs.set_len(file, 1700).unwrap();
        },
        |fs, file| {
            let mut reservation = fs.reserve(file, 8192, 1024).unwrap();
            drop(fs.allocate(file, 8192, 1024, &mut reservation).unwrap());
            fs.written(file, 8192, 1024, 9000).unwrap();
        },
    ];
    for grow in grow {
        let (disk, fs) = fresh(4096, &["-b", "1024"]);
        let grown = file(&fs, b"grown");
        fs.open(grown).unwrap();
        fs.write_at(grown, 0, &[1; 1500]).unwrap();
        let mut nothing = Reservation::NONE;
        let extents = fs.allocate(grown, 1024, 1024, &mut nothing).unwrap();
        let Backing::Written(place) = extents[0].backing else {
            panic!("{extents:?}");
        };
        let on_its_way = vec![2; 1024];
        blocking::write(&*disk, place, on_its_way, Durability::Cached).unwrap();
        grow(&fs, grown);
        fs.written(grown, 1024, 1024, 2048).unwrap();
        assert!(read_file(&fs, grown).unwrap()[1024..2048] == [2; 1024]);
        // The next time it is zeroed again.
        fs.set_len(grown, 1100).unwrap();
        fs.set_len(grown, 1200).unwrap();
        assert_eq!(read_file(&fs, grown).unwrap()[1100..], [0; 100]);
        fs.close(grown).unwrap();
        finish(&disk, &fs);
    }
}

#[test]
fn a_transfer_across_two_unwritten_extents_that_touch_fills_both() {
    const LEN: u64 = 50_000 << 10;
    const NEAR: u64 = 100 << 10;
    // No backup superblock comes between: what is one run on the disk is several extents in the map.
    let options = [
        "-b",
        "1024",
        "-O",
        "sparse_super2,^resize_inode",
        "-E",
        "num_backup_sb=0",
    ];
    let image = changed_by_debugfs(
        &mkfs(64 << 10, &options, None),
        &[
            "write /dev/null a".into(),
            "fallocate a 0 49999".into(),
            format!("set_inode_field a size {LEN}"),
        ],
    );
    let disk = Arc::new(RamDisk::new(image));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    let file = fs.lookup(fs.root(), b"a").unwrap();
    fs.open(file).unwrap();
    let place = |extent: Extent| match extent.backing {
        Backing::Unwritten(place) => place,
        other => panic!("{other:?} at {}", extent.offset),
    };
    let extents = fs.map(file, 0, LEN).unwrap();
    let touching = extents
        .windows(2)
        .find(|pair| place(pair[0]) + pair[0].len == place(pair[1]))
        .expect("no extents touch");
    let (from, len) = (touching[1].offset - NEAR, 2 * NEAR);
    let mut nothing = Reservation::NONE;
    fs.allocate(file, from, len, &mut nothing).unwrap();
    fs.written(file, from, len, LEN).unwrap();
    let written = Extent {
        offset: from,
        len,
        backing: Backing::Written(place(touching[1]) - NEAR),
    };
    assert_eq!(fs.map(file, from, len), Ok([written].into()));
    fs.close(file).unwrap();
    finish(&disk, &fs);
}

/// Both by a write, and as the page cache writes.
#[test]
fn a_write_to_free_blocks_in_more_groups_than_the_log_has_blocks_is_several_operations() {
    let options = [
        "-b",
        "1024",
        "-g",
        "256",
        "-J",
        "size=1",
        "-N",
        "4096",
        "-m",
        "0",
        "-O",
        "^resize_inode",
    ];
    let (disk, fs) = fresh(400 << 10, &options);
    // Full of files of 100 blocks; then of each group that one of them ends in, one block is free.
    let mut files = Vec::new();
    let full = loop {
        let file = file(&fs, format!("{}", files.len()).as_bytes());
        files.push(file);
        if let Err(error) = fs.write_at(file, 0, &[1; 100 << 10]) {
            break error;
        }
    };
    assert_eq!(full, FsError::NoSpace);
    let rest = files.pop().unwrap();
    let mut at = 0;
    while fs.write_at(rest, at, &[1; 1024]).is_ok() {
        at += 1024;
    }
    let mut groups = BTreeSet::new();
    for file in files {
        let extents = fs.map(file, 99 << 10, 1024).unwrap();
        if let Backing::Written(place) = extents[0].backing
            && groups.insert((place / 1024 - 1) / 256)
        {
            fs.set_len(file, 99 << 10).unwrap();
        }
    }
    fs.sync().unwrap();
    let log = 1024;
    assert!(groups.len() > log, "{} groups have room", groups.len());
    let spread = file(&fs, b"spread");
    let bytes = vec![3; 1000 << 10];
    fs.write_at(spread, 0, &bytes).unwrap();
    fs.sync().unwrap();
    assert_eq!(read_file(&fs, spread).unwrap(), bytes);
    fs.set_len(spread, 0).unwrap();
    fs.sync().unwrap();
    fs.open(spread).unwrap();
    let len = 1000 << 10;
    let mut promise = fs.reserve(spread, 0, len).unwrap();
    fs.allocate(spread, 0, len, &mut promise).unwrap();
    fs.written(spread, 0, len, len).unwrap();
    assert_eq!(fs.attributes(spread).unwrap().size, len);
    fs.close(spread).unwrap();
    finish(&disk, &fs);
}

#[test]
fn nothing_is_read_after_an_unmount() {
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let (disk, fs) = fresh(4096, &["-b", "1024"]);
        let made = file(&fs, b"a");
        fs.write_at(made, 0, b"words").unwrap();
        finish(&disk, &fs);
        let fs = mount(disk, access).unwrap().file_system;
        fs.open(made).unwrap();
        fs.unmount().unwrap();
        let unmounted = FsError::ReadOnly(ReadOnlyReason::Unmounted);
        assert_eq!(fs.read_at(made, 0, &mut [0; 5]), Err(unmounted));
        assert_eq!(fs.map(made, 0, 5), Err(unmounted));
        assert_eq!(fs.open(made), Err(unmounted));
        assert_eq!(fs.lookup(fs.root(), b"a"), Err(unmounted));
        fs.unmount().unwrap();
    }
}

/// Does `f` with a file that is being cut to 20 000 bytes, its end known before or not: ten blocks have arrived meanwhile.
fn during_a_cut(f: impl Fn(Arc<RamDisk>, Ext4, FileId)) {
    for (written_before, options) in [
        (0, &["-b", "4096"][..]),
        (30_000, &["-b", "4096"]),
        (0, &["-b", "4096", "-O", "^extents,^64bit"]),
        (30_000, &["-b", "4096", "-O", "^extents,^64bit"]),
    ] {
        let (disk, fs) = fresh(4 * 1024, options);
        let file = file(&fs, b"file");
        fs.write_at(file, 0, &vec![1; written_before]).unwrap();
        fs.open(file).unwrap();
        let mut promise = fs.reserve(file, 0, 40_960).unwrap();
        fs.allocate(file, 0, 40_960, &mut promise).unwrap();
        fs.truncate_prepare(file, 20_000).unwrap();
        fs.written(file, 0, 40_960, 40_960).unwrap();
        f(disk, fs, file);
    }
}

#[test]
fn what_arrives_during_a_cut_makes_the_file_no_longer() {
    during_a_cut(|disk, fs, file| {
        assert_eq!(fs.attributes(file).unwrap().size, 20_000);
        fs.set_len(file, 20_000).unwrap();
        assert_eq!(fs.attributes(file).unwrap().allocated, 20_480);
        // From then on it may.
        fs.write_at(file, 40_000, b"n").unwrap();
        let mut bytes = [1; 8];
        assert_eq!(fs.read_at(file, 20_000, &mut bytes), Ok(8));
        assert_eq!(bytes, [0; 8]);
        fs.close(file).unwrap();
        finish(&disk, &fs);
    });
}

#[test]
fn a_power_cut_between_the_halves_of_a_cut_leaves_nothing_behind_the_end() {
    during_a_cut(|disk, fs, file| {
        // Somebody else's.
        fs.sync().unwrap();
        let disk = Arc::new(RamDisk::new(disk.contents()));
        let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
        let attributes = fs.attributes(file).unwrap();
        assert_eq!((attributes.size, attributes.allocated), (20_000, 20_480));
        finish(&disk, &fs);
    });
}

#[test]
fn what_a_failed_cut_has_left_is_freed_before_the_next_one_begins() {
    let disk = Arc::new(SimDisk::new(mkfs(8 * 1024, &["-b", "4096"], None), 1));
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    let file = file(&fs, b"file");
    fs.write_at(file, 0, &vec![1; 400_000]).unwrap();
    fs.unmount().unwrap();
    let fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
    fs.open(file).unwrap();
    // Nobody has looked at the map of free blocks yet.
    disk.fail_after(0);
    fs.set_len(file, 200_704).unwrap_err();
    disk.heal();
    // A transfer is on its way to what is cut next; another begins before the caller has been told.
    let none = || Reservation::NONE;
    fs.allocate(file, 102_400, 40_960, &mut none()).unwrap();
    let places = fs.map(file, 102_400, 40_960).unwrap();
    fs.truncate_prepare(file, 50_000).unwrap();
    fs.allocate(file, 151_552, 4096, &mut none()).unwrap();
    assert_eq!(fs.map(file, 102_400, 40_960), Ok(places));
    fs.set_len(file, 50_000).unwrap();
    fs.close(file).unwrap();
    fs.unmount().unwrap();
    e2fsck(&disk.contents()).unwrap();
}

#[test]
fn a_cut_whose_second_half_cannot_read_the_inode_is_finished_later() {
    let image = mkfs(8 * 1024, &["-b", "1024", "-N", "1024"], None);
    let disk = Arc::new(SimDisk::new(image, 1));
    let limits = MetadataLimits {
        cached: 2,
        transaction: 16,
        committed: 2,
    };
    let options = MountOptions {
        limits,
        ..options(Access::ReadWrite)
    };
    let fs = Ext4::mount(disk.clone(), options).unwrap().file_system;
    let cut = file(&fs, b"file");
    let other = |i: u32| file(&fs, format!("other {i}").as_bytes());
    let others: Vec<_> = (0..400).map(other).collect();
    fs.write_at(cut, 0, &[b's'; 40_960]).unwrap();
    fs.open(cut).unwrap();
    fs.truncate_prepare(cut, 1000).unwrap();
    // The log goes round, and what was read makes room for others.
    for _ in 0..60 {
        fs.set_permissions(others[399], 0o600).unwrap();
        fs.sync().unwrap();
    }
    for other in &others {
        fs.attributes(*other).unwrap();
    }
    disk.fail_after(0);
    fs.set_len(cut, 1000).unwrap_err();
    disk.heal();
    fs.set_len(cut, 40_960).unwrap();
    let mut bytes = [1; 8];
    assert_eq!(fs.read_at(cut, 30_000, &mut bytes), Ok(8));
    assert_eq!(bytes, [0; 8]);
}
