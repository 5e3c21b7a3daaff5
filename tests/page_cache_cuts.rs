//! Where a file ends, while it is cut, grows and is written: what was cut off stays away, and what was to stay is kept, also
//! where a cut fails or the power does.

#![cfg(not(target_os = "none"))]

mod common;

use common::hooked::{Started, hooked, join};
use common::machine::{Machine, PAGE, at, found_on, machine, numbered};
use common::{e2fsck, mount, read_file};
use pinfold::fs::block::{BlockError, Durability};
use pinfold::fs::cached::Cached;
use pinfold::fs::error::ReadOnlyReason;
use pinfold::fs::ext4::Access as FsAccess;
use pinfold::fs::sim_disk::{SimDisk, crash_image};
use pinfold::fs::{Backing, FileId, FileKind, FileSystem, FsError, blocking};
use pinfold::mm::addr::PAGE_SIZE;
use pinfold::mm::fault::FaultError;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

#[test]
fn a_cut_that_is_refused_cuts_nothing() {
    let machine = machine();
    let file = machine.create("a", &[7; 10_000]);
    machine.fs.close(file).unwrap();
    machine.fs.unmount().unwrap();
    let disk = Arc::new(SimDisk::new(machine.disk.contents(), 1));
    let beneath = mount(disk, FsAccess::ReadOnly).unwrap().file_system;
    let fs = Cached::new(Arc::new(beneath), machine.cache);
    fs.open(file).unwrap();
    let reason = ReadOnlyReason::Asked;
    assert_eq!(fs.set_len(file, 100), Err(FsError::ReadOnly(reason)));
    assert_eq!(fs.attributes(file).unwrap().size, 10_000);
    let mut bytes = vec![0; 10_000];
    assert_eq!(fs.read_at(file, 0, &mut bytes), Ok(10_000));
    assert!(bytes.iter().all(|byte| *byte == 7));
}

#[test]
fn a_cut_that_fails_keeps_what_was_to_stay() {
    let machine = machine();
    let file = machine.create("a", &[8; 100]);
    machine.fs.sync().unwrap();
    let Backing::Written(place) = machine.fs.map(file, 0, PAGE).unwrap()[0].backing else {
        panic!("what was synced has a place");
    };
    // The file system knows of 100 bytes: to it the cut is growth, which looks at the block that they end in.
    let rest = [8; 10 * PAGE_SIZE];
    machine.fs.write_at(file, 100, &rest).unwrap();
    let error = BlockError::Device { offset: place };
    machine.disk.fail_sector(place / 512, error);
    assert_eq!(machine.fs.set_len(file, 5 * PAGE), Err(error.into()));
    machine.disk.heal();
    // Nothing of it was done.
    let before = vec![8; 100 + rest.len()];
    assert!(machine.read(file, 0, before.len() + 1) == before);
    machine.fs.sync().unwrap();
    assert!(machine.on_disk(file) == before);
    machine.fs.set_len(file, 50).unwrap();
    machine.fs.set_len(file, 60).unwrap();
    assert_eq!(
        machine.read(file, 45, 15),
        [[8; 5], [0; 5], [0; 5]].concat()
    );
}

/// Cuts a file of a page, has it grow while what is left is on its way, and then the power fails.
fn what_was_cut_off_stays_away(is_synced: bool, grow: fn(&Machine, FileId)) {
    let machine = Machine::new(1, 16 << 20, &["-b", "4096"]);
    let fs = &machine.fs;
    let file = machine.create("a", &[b'o'; PAGE_SIZE]);
    fs.sync_file(file).unwrap();
    fs.set_len(file, 100).unwrap();
    if is_synced {
        fs.sync_file(file).unwrap();
    }
    fs.write_at(file, 0, b"n").unwrap();
    let image = Arc::new(Mutex::new(Vec::new()));
    let (other, to) = (machine.clone(), image.clone());
    machine.disk.during_next_write(Box::new(move || {
        grow(&other, file);
        // Somebody else's fsync.
        other.beneath.sync().unwrap();
        *to.lock().unwrap() = other.disk.contents();
    }));
    let volume = machine.fs.volume();
    machine.cache.write_out(volume).unwrap();
    let image = std::mem::take(&mut *image.lock().unwrap());
    assert!(!image.is_empty());
    let bytes = found_on(image, b"a");
    let end = bytes.len().min(PAGE_SIZE);
    assert!(bytes[end.min(100)..end].iter().all(|byte| *byte == 0));
}

#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows_during_write_back() {
    for is_synced in [true, false] {
        what_was_cut_off_stays_away(is_synced, |machine, file| {
            // It may wait for this very transfer.
            let _ = machine.meanwhile(move |other| other.fs.set_len(file, 10_000).unwrap());
        });
    }
}

#[test]
fn what_was_cut_off_does_not_come_back_when_a_later_page_arrives_first() {
    for is_synced in [true, false] {
        what_was_cut_off_stays_away(is_synced, |machine, file| {
            machine.fs.write_at(file, 20 * PAGE, b"far").unwrap();
            // Write-back of that page alone, by another thread's msync, say.
            let _ = machine.meanwhile(move |other| other.cached(file).write_out(20..21).unwrap());
        });
    }
}

#[test]
fn nothing_is_cut_where_the_last_page_cannot_be_read_or_become_dirty() {
    let machine = Machine::new(1, 4 << 20, &["-b", "4096"]);
    let fs = &machine.fs;
    let file = machine.create("a", &[b'o'; 2 * PAGE_SIZE]);
    fs.sync_file(file).unwrap();
    let is_cut = || {
        machine.disk.fail_after(0);
        let cut = fs.set_len(file, 100);
        machine.disk.heal();
        assert_eq!(fs.attributes(file).unwrap().size == 100, cut.is_ok());
        cut.is_ok()
    };
    machine.cached(file).evict(0..2);
    assert!(!is_cut());
    // In memory again; but another file has as much dirty as may be, and cannot be written.
    assert_eq!(machine.read(file, 0, 10), [b'o'; 10]);
    let other = machine.create("b", &[]);
    let most = machine.memory.frames().counts().total / 8 * 3;
    while machine.cache.counts().dirty <= most {
        fs.append(other, &[1; 32 * PAGE_SIZE]).unwrap();
    }
    assert!(!is_cut());
    fs.sync_file(other).unwrap_err();
    fs.sync_file(other).unwrap();
    fs.close(other).unwrap();
    machine.finish(file);
}

#[test]
fn what_a_cut_that_failed_halfway_has_left_does_not_show_again() {
    const LEN: u64 = 10 * PAGE;
    let grow: [fn(&Machine, FileId); 4] = [
        |machine, file| machine.fs.set_len(file, LEN).unwrap(),
        |machine, file| machine.fs.write_at(file, LEN - 1, b"n").unwrap(),
        |machine, file| machine.beneath.write_at(file, LEN - 1, b"n").unwrap(),
        // As the page cache writes: to places that are the file's own, and no more those that were cut off.
        |machine, file| {
            let beneath = &machine.beneath;
            let mut promise = beneath.reserve(file, LEN - PAGE, PAGE).unwrap();
            let extents = beneath.allocate(file, LEN - PAGE, PAGE, &mut promise);
            let Backing::Unwritten(place) = extents.unwrap()[0].backing else {
                panic!("a place that holds something");
            };
            let bytes = vec![b'n'; PAGE_SIZE];
            blocking::write(&*machine.disk, place, bytes, Durability::Cached).unwrap();
            beneath.written(file, LEN - PAGE, PAGE, LEN).unwrap();
        },
    ];
    for (i, grow) in grow.into_iter().enumerate() {
        let (machine, file) = ten_pages();
        // The map of free blocks cannot be read.
        machine.disk.fail_after(0);
        machine.fs.set_len(file, 100).unwrap_err();
        machine.disk.heal();
        grow(&machine, file);
        if i < 2 {
            assert_eq!(machine.read(file, 2 * PAGE, 10), [0; 10]);
        }
        machine.fs.sync().unwrap();
        let bytes = machine.on_disk(file);
        assert_eq!(bytes.len() as u64, LEN);
        assert!(bytes[PAGE_SIZE..].iter().all(|byte| *byte != b'o'));
        assert_eq!(bytes.last() == Some(&b'n'), i > 0);
        machine.cached(file).evict(0..10);
        machine.finish(file);
    }
}

#[test]
fn what_a_cut_that_failed_halfway_has_left_does_not_show_when_a_hole_is_synced() {
    for heals in [true, false] {
        let (machine, file) = ten_pages();
        fail_block_bitmap(&machine.disk);
        machine.fs.set_len(file, 5 * PAGE).unwrap_err();
        if heals {
            machine.disk.heal();
        }
        let _ = machine.fs.write_at(file, 9 * PAGE, b"n");
        let base = machine.map(file, 0, 10);
        let _ = machine.sync(at(base, 6, 0), 1);
        let _ = machine.fs.sync_data(file);
        machine.disk.heal();
        machine.manager.unmap_all().unwrap();
        let bytes = machine.on_disk(file);
        assert!(bytes.iter().skip(5 * PAGE_SIZE).all(|byte| *byte != b'o'));
        let bytes = machine.finish(file);
        assert!(bytes.iter().skip(5 * PAGE_SIZE).all(|byte| *byte != b'o'));
    }
}

#[test]
fn a_file_ends_where_numbers_do() {
    for block_size in ["1024", "4096"] {
        let machine = Machine::new(1, 16 << 20, &["-b", block_size]);
        let file = machine.create("a", &[1; 600]);
        machine.fs.sync_file(file).unwrap();
        for at in [u64::MAX, u64::MAX - 10, 1 << 63, (1 << 63) - 1] {
            assert_eq!(machine.fs.set_len(file, at), Err(FsError::FileTooLarge));
            let written = machine.fs.write_at(file, at, b"hello");
            assert_eq!(written, Err(FsError::FileTooLarge));
        }
        machine.finish(file);
    }
}

/// A file of ten pages on a disk of which nothing was read yet but its first page.
fn ten_pages() -> (Machine, FileId) {
    let machine = Machine::new(1, 16 << 20, &["-b", "4096"]);
    let file = machine.create("a", &[b'o'; 10 * PAGE_SIZE]);
    machine.finish(file);
    let machine = Machine::on(machine.disk.contents(), 1, 16 << 20);
    machine.fs.open(file).unwrap();
    assert_eq!(machine.read(file, 0, 10), [b'o'; 10]);
    (machine, file)
}

#[test]
fn what_a_failed_cut_has_left_of_the_last_page_goes_before_the_file_grows() {
    let (machine, file) = ten_pages();
    machine.disk.fail_after(0);
    machine.fs.set_len(file, 100).unwrap_err();
    machine.disk.heal();
    machine.fs.write_at(file, 0, b"n").unwrap();
    let image = Arc::new(Mutex::new(Vec::new()));
    let (other, to) = (machine.clone(), image.clone());
    machine.disk.during_next_write(Box::new(move || {
        let _ = other.meanwhile(move |other| other.fs.set_len(file, 10_000).unwrap());
        other.beneath.sync().unwrap();
        *to.lock().unwrap() = other.disk.contents();
    }));
    machine.cache.write_out(machine.fs.volume()).unwrap();
    let image = std::mem::take(&mut *image.lock().unwrap());
    let bytes = found_on(image, b"a");
    assert!(bytes[100.min(bytes.len())..].iter().all(|byte| *byte == 0));
}

/// The map of free blocks cannot be read, nor written.
fn fail_block_bitmap(disk: &SimDisk) {
    // The descriptors of groups are in block 1; the first one begins with where the map is.
    let bytes = disk.contents();
    let bitmap = u32::from_le_bytes(bytes[PAGE_SIZE..][..4].try_into().unwrap());
    for sector in 0..8 {
        let error = BlockError::Device { offset: 0 };
        disk.fail_sector(u64::from(bitmap) * 8 + sector, error);
    }
}

#[test]
fn what_stays_of_a_file_can_be_written_though_a_cut_of_it_failed() {
    let (machine, file) = ten_pages();
    fail_block_bitmap(&machine.disk);
    machine.fs.set_len(file, 5 * PAGE).unwrap_err();
    machine.fs.write_at(file, 0, b"new").unwrap();
    machine.fs.sync_file(file).unwrap();
    assert_eq!(machine.on_disk(file)[..3], *b"new");
}

#[test]
fn what_else_was_done_is_durable_when_unmounted_though_a_cut_cannot_be_finished() {
    let (machine, file) = ten_pages();
    fail_block_bitmap(&machine.disk);
    let failed = Err(FsError::Block(BlockError::Device { offset: 0 }));
    assert_eq!(machine.fs.set_len(file, 5 * PAGE), failed);
    machine.fs.write_at(file, 0, b"new").unwrap();
    machine.create("b", &[]);
    machine.cached(file).evict(0..10);
    assert_eq!(machine.fs.unmount(), failed);
    let image = machine.disk.contents();
    assert_eq!(found_on(image.clone(), b"b"), []);
    assert_eq!(found_on(image, b"a")[..3], *b"new");
    // Once it can be, it is.
    machine.disk.heal();
    machine.fs.unmount().unwrap();
    e2fsck(&machine.disk.contents()).unwrap();
    assert_eq!(machine.on_disk(file).len() as u64, 5 * PAGE);
}

#[test]
fn a_volume_whose_cut_cannot_be_finished_is_read_only() {
    let (machine, file) = ten_pages();
    fail_block_bitmap(&machine.disk);
    machine.fs.set_len(file, 5 * PAGE).unwrap_err();
    machine.fs.sync().unwrap();
    let disk = Arc::new(SimDisk::new(machine.disk.contents(), 1));
    fail_block_bitmap(&disk);
    let mounted = mount(disk.clone(), FsAccess::ReadWrite).unwrap();
    let failed = BlockError::Device { offset: 0 };
    let reason = ReadOnlyReason::Unfinished(failed);
    assert_eq!(mounted.read_only, Some(reason));
    let (fs, root) = (mounted.file_system, machine.fs.root());
    assert_eq!(read_file(&fs, file).unwrap().len() as u64, 5 * PAGE);
    let made = fs.create(root, b"b", FileKind::File, 0o644);
    assert_eq!(made, Err(FsError::ReadOnly(reason)));
    fs.unmount().unwrap();
    disk.heal();
    let mounted = mount(disk.clone(), FsAccess::ReadWrite).unwrap();
    assert_eq!(mounted.read_only, None);
    mounted.file_system.unmount().unwrap();
    e2fsck(&disk.contents()).unwrap();
}

#[test]
fn a_cut_of_what_the_device_never_had_writes_nothing() {
    let machine = machine();
    let file = machine.create("a", &[1; 10_000]);
    let before = machine.disk.requests();
    for len in [9_000, 5_000, 7_000, 100] {
        machine.fs.set_len(file, len).unwrap();
    }
    assert_eq!(machine.disk.requests(), before);
    machine.finish(file);
}

#[test]
fn a_cut_races_a_fault() {
    let machine = machine();
    let file = machine.cold("a", &numbered(8));
    let base = machine.map(file, 0, 8);
    let during = machine.clone();
    let cut = Arc::new(Mutex::new(None));
    let thread = cut.clone();
    machine.disk.during_next_read(Box::new(move || {
        *thread.lock().unwrap() =
            Some(during.meanwhile(move |machine| machine.fs.set_len(file, 2 * PAGE).unwrap()));
        let is_cut = || during.fs.attributes(file).unwrap().size == 2 * PAGE;
        let mut looks = (0..60_000).map(|_| sleep(Duration::from_millis(1)));
        assert!(looks.any(|()| is_cut()), "the cut waits before it says so");
    }));
    assert_eq!(machine.load(at(base, 5, 0)), Err(FaultError::PastEnd));
    cut.lock().unwrap().take().unwrap().join().unwrap();
    assert_eq!(machine.load(at(base, 1, 0)), Ok(1));
    assert_eq!(machine.finish(file), numbered(2));
}

#[test]
fn a_growth_races_a_read_of_the_last_page() {
    let machine = machine();
    // Cut by somebody who leaves the old bytes on the disk.
    let (beneath, root) = (&machine.beneath, machine.fs.root());
    let file = beneath.create(root, b"a", FileKind::File, 0o644).unwrap();
    beneath.write_at(file, 0, &[7; PAGE_SIZE]).unwrap();
    beneath.set_len(file, 100).unwrap();
    machine.fs.open(file).unwrap();
    let during = machine.clone();
    let growth = Arc::new(Mutex::new(None));
    let thread = growth.clone();
    machine.disk.after_next_read(Box::new(move || {
        *thread.lock().unwrap() =
            Some(during.meanwhile(move |machine| machine.fs.set_len(file, PAGE).unwrap()));
    }));
    let mut bytes = [1; PAGE_SIZE];
    machine.fs.read_at(file, 0, &mut bytes[..1]).unwrap();
    growth.lock().unwrap().take().unwrap().join().unwrap();
    let mut expected = vec![0; PAGE_SIZE];
    expected[..100].fill(7);
    assert_eq!(machine.fs.read_at(file, 0, &mut bytes), Ok(PAGE_SIZE));
    assert!(bytes[..] == expected, "what was cut off is back");
    assert!(machine.finish(file) == expected);
}

#[test]
fn a_cut_races_write_back() {
    let machine = machine();
    let file = machine.cold("a", &numbered(8));
    let base = machine.map(file, 0, 8);
    for page in 0..8 {
        machine.store(at(base, page, 0), 99).unwrap();
    }
    let during = machine.clone();
    let cut = Arc::new(Mutex::new(None));
    let thread = cut.clone();
    machine.disk.during_next_write(Box::new(move || {
        *thread.lock().unwrap() =
            Some(during.meanwhile(move |machine| machine.fs.set_len(file, 2 * PAGE + 7).unwrap()));
        // The size comes first, sooner or later; the blocks are not given back while they are written.
        let is_cut = || during.fs.attributes(file).unwrap().size == 2 * PAGE + 7;
        let mut looks = (0..60_000).map(|_| sleep(Duration::from_millis(1)));
        assert!(looks.any(|()| is_cut()), "the cut waits before it says so");
    }));
    machine.cache.write_back(None).unwrap();
    cut.lock().unwrap().take().unwrap().join().unwrap();
    assert_eq!(machine.load(at(base, 2, 0)), Ok(99));
    assert_eq!(machine.load(at(base, 3, 0)), Err(FaultError::PastEnd));
    let mut expected = numbered(3);
    expected.truncate(2 * PAGE_SIZE + 7);
    for page in 0..3 {
        expected[page * PAGE_SIZE] = 99;
    }
    assert!(machine.finish(file) == expected);
}

#[test]
fn what_a_cut_frees_of_its_last_page_is_given_to_others_after_the_transfer_to_it() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let (fs, root) = (&machine.fs, machine.fs.root());
    let file = machine.create("a", &[b'a'; PAGE_SIZE]);
    fs.sync_file(file).unwrap();
    // All that is free by then is what the cut frees.
    let filler = machine.create("filler", &[]);
    let mut end = 0;
    while machine.beneath.write_at(filler, end, &[0; 1024]).is_ok() {
        end += 1024;
    }
    fs.create(root, b"b", FileKind::File, 0o644).unwrap();
    let other = fs.lookup(root, b"b").unwrap();
    machine.beneath.sync().unwrap();
    fs.write_at(file, 0, &[b'A'; PAGE_SIZE]).unwrap();
    let during = machine.clone();
    machine.disk.during_next_write(Box::new(move || {
        let _ = during.meanwhile(move |machine| machine.fs.set_len(file, 1000).unwrap());
        during.beneath.sync().unwrap();
        let written = during.beneath.write_at(other, 0, &[b'b'; 2048]);
        assert_eq!(written, Err(FsError::NoSpace));
    }));
    machine.cached(file).write_out(0..1).unwrap();
    while machine.fs.attributes(file).unwrap().allocated > 1024 {
        sleep(Duration::from_millis(1));
    }
    let written = machine.beneath.write_at(other, 0, &[b'b'; 2048]);
    assert_eq!(written, Ok(()));
    fs.close(filler).unwrap();
    machine.finish(file);
}

#[test]
fn a_pin_keeps_a_file_from_being_cut() {
    let machine = machine();
    let file = machine.cold("a", &numbered(8));
    let hold = machine.cached(file).hold(3 * PAGE + 1);
    assert_eq!(machine.fs.set_len(file, 3 * PAGE), Err(FsError::Busy));
    machine.fs.set_len(file, 3 * PAGE + 1).unwrap();
    drop(hold);
    machine.fs.set_len(file, 0).unwrap();
    assert_eq!(machine.finish(file), []);
}

#[test]
fn a_file_that_grows_twice_while_its_end_is_written_keeps_what_was_written() {
    const NO_EXTENTS: [&str; 4] = ["-b", "4096", "-O", "^extents,^has_journal,^64bit"];
    let machine = Machine::new(1, 16 << 20, &NO_EXTENTS);
    let file = machine.create("a", &[7; 6000]);
    let ((arrived, has_arrived), (go, may_go)) = (channel(), channel());
    let disk = machine.disk.clone();
    // The first write zeroes the new blocks, the second is the transfer.
    machine.disk.during_next_write(Box::new(move || {
        disk.during_next_write(Box::new(move || {
            arrived.send(()).unwrap();
            may_go.recv().unwrap();
        }));
    }));
    let other = machine.clone();
    let writer = spawn(move || {
        other.adopt_thread();
        other.cache.write_back(None).unwrap();
    });
    has_arrived.recv().unwrap();
    machine.fs.set_len(file, 6500).unwrap();
    // Whoever reads the block now has it as it was, and must not write it back.
    let go_early = go.clone();
    machine.disk.after_next_read(Box::new(move || {
        let _ = go_early.send(());
        sleep(Duration::from_millis(100));
    }));
    machine.fs.set_len(file, 7000).unwrap();
    let _ = go.send(());
    writer.join().unwrap();
    machine.fs.sync_file(file).unwrap();
    machine.cache.drop_clean();
    let bytes = machine.read(file, 0, 7000);
    assert!(bytes[..6000].iter().all(|byte| *byte == 7), "overtaken");
    assert!(bytes[6000..].iter().all(|byte| *byte == 0));
    machine.finish(file);
}

#[test]
fn what_a_failed_cut_has_left_does_not_show_when_the_file_is_found_again() {
    let (machine, file) = ten_pages();
    machine.disk.fail_after(0);
    machine.fs.set_len(file, 0).unwrap_err();
    machine.disk.heal();
    assert_eq!(machine.fs.attributes(file).unwrap().size, 0);
    machine.fs.close(file).unwrap();
    machine.fs.sync().unwrap();
    // The cache lets it go.
    machine.cache.tidy().unwrap();
    machine.fs.open(file).unwrap();
    machine.fs.write_at(file, 10 * PAGE - 1, b"n").unwrap();
    assert_eq!(machine.read(file, 2 * PAGE, 10), [0; 10]);
    let bytes = machine.finish(file);
    assert!(bytes[..10 * PAGE_SIZE - 1].iter().all(|byte| *byte == 0));
}

/// A file of 100 pages on a disk of which all that is free, but for what is held back, is in pieces of four blocks.
fn in_pieces(options: &[&str]) -> (Machine, FileId) {
    let machine = Machine::new(1, 16 << 20, options);
    let (beneath, root) = (&machine.beneath, machine.fs.root());
    let name = |i: usize| format!("f{i}").into_bytes();
    let piece = |i: usize| {
        let piece = beneath.create(root, &name(i), FileKind::File, 0o644).ok()?;
        let written = beneath.write_at(piece, 0, &[1; 4 * PAGE_SIZE]);
        written.ok()
    };
    let count = (0..).take_while(|i| piece(*i).is_some()).count();
    for i in (0..count).step_by(2) {
        beneath.unlink(root, &name(i)).unwrap();
    }
    beneath.sync().unwrap();
    let file = machine.create("a", &[b'o'; 100 * PAGE_SIZE]);
    (machine, file)
}

#[test]
fn what_arrived_of_a_transfer_that_failed_is_cut_off() {
    for count in 0.. {
        let options = ["-b", "4096", "-O", "^extents,^64bit"];
        let (machine, file) = in_pieces(&options);
        machine.disk.fail_after(count);
        let written = machine.cached(file).write_out(0..100);
        machine.disk.heal();
        machine.fs.set_len(file, 2 * PAGE).unwrap();
        machine.fs.write_at(file, 100 * PAGE - 1, b"n").unwrap();
        let bytes = machine.read(file, 2 * PAGE, 98 * PAGE_SIZE - 1);
        assert!(bytes.iter().all(|byte| *byte == 0), "{count} requests");
        if written.is_ok() {
            assert!(count > 5, "{count} requests are all");
            break;
        }
    }
}

#[test]
fn a_cut_whose_second_half_fails_is_one_for_everybody() {
    let machine = machine();
    let file = machine.create("a", &[b'o'; 10 * PAGE_SIZE]);
    machine.fs.sync_file(file).unwrap();
    machine.fs.write_at(file, 5 * PAGE, b"n").unwrap();
    let cut = Arc::new(Mutex::new(None));
    let (during, thread) = (machine.clone(), cut.clone());
    machine.disk.during_next_write(Box::new(move || {
        let cutting = during.meanwhile(move |other| {
            other.fs.set_len(file, 100).unwrap_err();
        });
        *thread.lock().unwrap() = Some(cutting);
        // It waits for this write; until then the log fails.
        let mut looks = (0..1000).map(|_| sleep(Duration::from_millis(10)));
        let is_cut = || during.fs.attributes(file).unwrap().size == 100;
        assert!(looks.any(|()| is_cut()), "the cut waits before it says so");
        let root = during.fs.root();
        let made = during.beneath.create(root, b"b", FileKind::File, 0o644);
        made.unwrap();
        during.disk.fail_after(0);
        during.beneath.sync().unwrap_err();
        during.disk.heal();
    }));
    let _ = machine.cached(file).write_out(5..6);
    cut.lock().unwrap().take().unwrap().join().unwrap();
    for fs in [&*machine.fs as &dyn FileSystem, &*machine.beneath] {
        assert_eq!(fs.attributes(file).unwrap().size, 100);
    }
    assert_eq!(machine.read(file, 0, PAGE_SIZE), [b'o'; 100]);
}

#[test]
fn what_is_cut_off_a_new_file_does_not_come_back_after_a_power_cut_in_between() {
    let (machine, hooked) = hooked(&["-b", "4096"]);
    let file = machine.create("a", &[b's'; 10 * PAGE_SIZE]);
    machine.beneath.sync().unwrap();
    let cutter = Started::default();
    let (during, thread) = (machine.clone(), cutter.clone());
    let (tell_half, half) = channel();
    hooked.on("after truncate_prepare", move || {
        tell_half.send(()).unwrap()
    });
    machine.disk.during_next_write(Box::new(move || {
        let cut = move |other: Machine| other.fs.set_len(file, 4 * PAGE + 7).unwrap();
        *thread.lock().unwrap() = Some(during.meanwhile(cut));
        half.recv().unwrap();
    }));
    let (tell, told) = channel();
    let (beneath, disk) = (machine.beneath.clone(), machine.disk.clone());
    // What was on its way has arrived; the second half has not come.
    hooked.on("after written", move || {
        beneath.sync().unwrap();
        tell.send(disk.record_len()).unwrap();
    });
    machine.cached(file).write_out(0..10).unwrap();
    join(&cutter);
    let at = told.recv().unwrap();
    let image = crash_image(&machine.base, &machine.disk.record(), at, 1);
    let machine = Machine::on(image, 1, 16 << 20);
    assert_eq!(machine.fs.attributes(file).unwrap().size, 4 * PAGE + 7);
    machine.fs.open(file).unwrap();
    machine.fs.set_len(file, 10 * PAGE).unwrap();
    assert_eq!(machine.read(file, 6 * PAGE, 10), [0; 10]);
    machine.finish(file);
}
