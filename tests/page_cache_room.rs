//! Room on the disk for what is in memory: promised before a page may become dirty, so that no write that was accepted is
//! lost for want of it, and given back.

#![cfg(not(target_os = "none"))]

mod common;

use common::hooked::{Started, hook, hooked, join};
use common::machine::{Machine, PAGE, at, fill, machine, numbered};
use common::mkfs;
use pinfold::fs::sim_disk::crash_image;
use pinfold::fs::{FileId, FileKind, FileSystem, FsError, Reservation};
use pinfold::mm::addr::PAGE_SIZE;
use pinfold::mm::fault::FaultError;
use pinfold::mm::object::{Dirtied, IoError, MappableFile, Pattern};
use std::sync::mpsc::channel;
use std::time::Duration;

#[test]
fn a_full_disk_is_told_at_the_first_store() {
    let machine = machine();
    let file = machine.create("a", &[]);
    let filler = machine.create("b", &[]);
    machine.fs.set_len(file, 400 * PAGE).unwrap();
    machine.fs.sync().unwrap();
    let base = machine.map(file, 0, 400);
    let free = machine.fs.statistics().unwrap().available_blocks;
    let mut offset = 0;
    let full = loop {
        match machine.fs.write_at(filler, offset, &numbered(16)) {
            Ok(()) => offset += 16 * PAGE,
            Err(error) => break error,
        }
    };
    assert_eq!(full, FsError::NoSpace);
    assert!(offset / PAGE + 40 > free, "{offset} of {free} pages");
    let mut stored = 0;
    let denied = (0..400).find_map(|page| match machine.store(at(base, page, 0), 1) {
        Ok(()) => {
            stored += 1;
            None
        }
        Err(error) => Some((page, error)),
    });
    let Some((page, FaultError::Io(IoError::NoSpace))) = denied else {
        panic!("{stored} stores, then {denied:?}");
    };
    // Reading goes on, and all that was allowed is written.
    assert_eq!(machine.load(at(base, page, 0)), Ok(0));
    machine.sync(base, 400).unwrap();
    machine.fs.unlink(machine.fs.root(), b"b").unwrap();
    machine.fs.close(filler).unwrap();
    machine.store(at(base, page, 0), 1).unwrap();
    let on_disk = machine.finish(file);
    assert_eq!(
        on_disk.iter().filter(|byte| **byte == 1).count(),
        stored + 1
    );
}

/// How many pages could be promised to a file without any.
fn room(machine: &Machine) -> u64 {
    let file = machine.create("room", &[]);
    let fits = |pages: u64| match machine.beneath.reserve(file, 0, pages * PAGE) {
        Ok(promise) => {
            machine.beneath.release(promise);
            true
        }
        Err(FsError::NoSpace) => false,
        Err(error) => panic!("{error}"),
    };
    let most = (0..).take_while(|pages| fits(*pages)).last().unwrap();
    machine.fs.unlink(machine.fs.root(), b"room").unwrap();
    machine.fs.close(file).unwrap();
    machine.fs.sync().unwrap();
    most
}

#[test]
fn what_was_promised_to_pages_is_theirs_after_they_could_not_be_given_places() {
    let empty = mkfs(16 << 10, &["-b", "4096"], None);
    let machine = Machine::on(empty, 1, 16 << 20);
    let file = machine.create("a", &[1; 8 * PAGE_SIZE]);
    // Nobody has looked at the map of free blocks yet.
    machine.disk.fail_after(0);
    let cached = machine.cached(file);
    assert!(cached.write_out(0..8).is_err());
    machine.disk.heal();
    machine.check();
    let before = room(&machine);
    cached.write_out(0..8).unwrap();
    drop(cached);
    // The promise was for eight pages and what their map might have taken.
    let after = room(&machine);
    assert!(before < after, "{before} pages had room, then {after}");
    // What went wrong is told once.
    machine.fs.sync_file(file).unwrap_err();
    machine.fs.sync_file(file).unwrap();
    machine.finish(file);
}

#[test]
fn a_page_of_small_blocks_that_got_places_for_a_part_needs_room_anew() {
    for (block_size, dirtied) in [("1024", Dirtied::NeedsRoom), ("4096", Dirtied::Done)] {
        let machine = Machine::new(1, 16 << 20, &["-b", block_size]);
        let file = machine.create("a", b"short");
        let handle = machine.cached(file).handle();
        assert_eq!(handle.dirty_block(0), Ok(Dirtied::Done));
        machine.fs.sync_file(file).unwrap();
        assert_eq!(handle.dirty_block(0), Ok(dirtied));
        drop(handle);
        machine.finish(file);
    }
}

#[test]
fn a_full_disk_is_told_before_a_page_of_small_blocks_grows() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", b"short");
    machine.fs.sync().unwrap();
    let filler = machine.create("b", &[]);
    let mut end = 0;
    for len in [65536, 4096, 1024] {
        while machine.fs.write_at(filler, end, &vec![1; len]).is_ok() {
            end += len as u64;
        }
        machine.fs.sync().unwrap();
    }
    // Promises are for the worst: what they left is taken as well.
    let directory = |i: usize| {
        let name = format!("d{i}");
        let root = machine.fs.root();
        machine
            .fs
            .create(root, name.as_bytes(), FileKind::Directory, 0o755)
    };
    assert!((0..).map(directory).any(|made| made.is_err()));
    let base = machine.map(file, 0, 1);
    for grow in [
        |machine: &Machine, file| machine.fs.write_at(file, 1024, &[2; 3072]),
        |machine: &Machine, file| machine.fs.write_at(file, 8192, &[2; 1024]),
    ] {
        assert_eq!(grow(&machine, file), Err(FsError::NoSpace));
        // What has a place can still be stored to, and written.
        machine.store(base, b'S').unwrap();
        machine.fs.sync_file(file).unwrap();
        machine.fs.write_at(file, 1, b"H").unwrap();
        machine.fs.sync_file(file).unwrap();
    }
    let bytes = machine.finish(file);
    assert_eq!(&bytes[..5], b"SHort");
}

#[test]
fn what_has_places_once_it_is_written_back_is_not_refused() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", &[]);
    machine.beneath.write_at(file, PAGE, &[1; 904]).unwrap();
    machine.beneath.sync().unwrap();
    let machine = Machine::on(machine.disk.contents(), 1, 16 << 20);
    machine.fs.open(file).unwrap();
    // Its promise is for the worst, and is nearly all there is.
    machine.fs.write_at(file, 0, &[2; PAGE_SIZE]).unwrap();
    fill(&machine);
    machine.fs.write_at(file, 0, &[3; 5000]).unwrap();
    machine.fs.sync_file(file).unwrap();
    assert_eq!(machine.finish(file), [3; 5000]);
}

#[test]
fn pages_that_have_places_take_no_room_from_others() {
    let machine = machine();
    let file = machine.create("a", &[b'o'; 31 * PAGE_SIZE]);
    machine.fs.sync_file(file).unwrap();
    machine.cached(file).evict(0..64);
    machine
        .fs
        .write_at(file, 0, &[b'n'; 32 * PAGE_SIZE])
        .unwrap();
    machine.check();
    machine.cached(file).write_out(0..31).unwrap();
    // The rest of the disk is somebody else's.
    let filler = machine.create("filler", &[]);
    let mut end = 0;
    while machine
        .beneath
        .write_at(filler, end, &[0; PAGE_SIZE])
        .is_ok()
    {
        end += PAGE;
    }
    machine.fs.sync_file(file).unwrap();
    machine.fs.close(filler).unwrap();
    machine.finish(file);
}

/// A file of pages of small blocks: half of each 64 lack their last block, the others lack all.
fn pages_that_lack_blocks(pages: u64) -> (Machine, FileId) {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", &[]);
    for page in (0..pages).filter(|page| page % 64 < 32) {
        let written = machine.beneath.write_at(file, page * PAGE, &[1; 3072]);
        written.unwrap();
    }
    machine.beneath.set_len(file, pages * PAGE).unwrap();
    machine.finish(file);
    let machine = Machine::on(machine.disk.contents(), 1, 16 << 20);
    machine.fs.open(file).unwrap();
    (machine, file)
}

#[test]
fn pages_that_lack_more_blocks_than_others_find_room_for_all() {
    let (machine, file) = pages_that_lack_blocks(640);
    let write = machine.fs.write_at(file, 0, &[2; 640 * PAGE_SIZE]);
    write.unwrap();
    let cached = machine.cached(file);
    for first in (0..640).step_by(64) {
        cached.write_out(first..first + 32).unwrap();
    }
    drop(cached);
    fill(&machine);
    machine.fs.sync_file(file).unwrap();
    assert_eq!(machine.finish(file), [2; 640 * PAGE_SIZE]);
}

#[test]
fn pages_that_have_places_take_no_room_from_others_when_writing_fails() {
    let (machine, file) = pages_that_lack_blocks(64);
    let write = machine.beneath.write_at(file, 0, &[1; 60 * PAGE_SIZE]);
    write.unwrap();
    machine.finish(file);
    let machine = Machine::on(machine.disk.contents(), 1, 16 << 20);
    machine.fs.open(file).unwrap();
    let cached = machine.cached(file);
    machine.fs.write_at(file, 0, &[2; 64 * PAGE_SIZE]).unwrap();
    // Nobody has looked at the map of free blocks yet.
    machine.disk.fail_after(0);
    cached.write_out(0..64).unwrap_err();
    machine.disk.heal();
    machine.check();
    cached.write_out(0..60).unwrap();
    drop(cached);
    fill(&machine);
    machine.fs.sync_file(file).unwrap_err();
    machine.fs.sync_file(file).unwrap();
    assert_eq!(machine.finish(file), [2; 64 * PAGE_SIZE]);
}

#[test]
fn pages_of_unwritten_extents_become_data_on_a_full_disk() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", &[]);
    let (beneath, len) = (&machine.beneath, 400 * PAGE);
    let mut promise = beneath.reserve(file, 0, len).unwrap();
    beneath.allocate(file, 0, len, &mut promise).unwrap();
    beneath.set_len(file, len).unwrap();
    machine.finish(file);
    let machine = Machine::on(machine.disk.contents(), 1, 16 << 20);
    machine.fs.open(file).unwrap();
    fill(&machine);
    // Each second page: the map needs blocks of its own for that, which nobody has asked room for.
    for page in (0..400).step_by(2) {
        machine
            .fs
            .write_at(file, page * PAGE, &[2; PAGE_SIZE])
            .unwrap();
    }
    machine.fs.sync_file(file).unwrap();
    let bytes = machine.finish(file);
    for (page, bytes) in bytes.chunks(PAGE_SIZE).enumerate() {
        assert_eq!(bytes[..], [2 - 2 * (page as u8 & 1); PAGE_SIZE]);
    }
}

#[test]
fn what_is_appended_to_a_page_of_small_blocks_is_promised_room_once() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", &[1; 600]);
    let before = room(&machine);
    for _ in 0..5 {
        machine.fs.append(file, &[1; 600]).unwrap();
    }
    // The block that has its place by now is promised once more, with the rest of its page.
    assert_eq!(room(&machine), before - 1);
    machine.finish(file);
}

#[test]
fn a_cut_within_a_hole_takes_no_room() {
    let machine = machine();
    let file = machine.create("a", &[]);
    machine.fs.set_len(file, 10 * PAGE).unwrap();
    machine.fs.sync().unwrap();
    let before = room(&machine);
    machine.fs.set_len(file, 5 * PAGE + 7).unwrap();
    assert_eq!(machine.cache.counts().dirty, 0);
    machine.fs.sync().unwrap();
    assert_eq!(room(&machine), before);
    machine.finish(file);
}

#[test]
fn promises_are_given_back() {
    let machine = machine();
    machine.fs.sync().unwrap();
    let before = room(&machine);
    let file = machine.create("a", &[]);
    machine.fs.set_len(file, 50 * PAGE).unwrap();
    let base = machine.map(file, 0, 50);
    for page in 0..50 {
        machine.store(at(base, page, 0), 1).unwrap();
    }
    assert!(room(&machine) <= before - 50);
    for page in 0..50 {
        machine.store(at(base, page, 0), 2).unwrap();
    }
    // Some are written, some cut off, and the rest goes with the file.
    machine.sync(base, 20).unwrap();
    machine.store(at(base, 30, 0), 3).unwrap();
    machine.fs.set_len(file, 31 * PAGE).unwrap();
    machine.fs.set_len(file, 50 * PAGE).unwrap();
    machine.store(at(base, 40, 0), 4).unwrap();
    machine.manager.unmap_all().unwrap();
    machine.fs.unlink(machine.fs.root(), b"a").unwrap();
    machine.fs.close(file).unwrap();
    machine.fs.sync().unwrap();
    assert_eq!(room(&machine), before);
}

#[test]
fn a_clean_page_at_the_end_of_a_file_that_grows_takes_no_room() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let (fs, root) = (&machine.fs, machine.fs.root());
    let name = |i: usize| format!("f{i}").into_bytes();
    for i in 0..100 {
        let file = fs.create(root, &name(i), FileKind::File, 0o644).unwrap();
        fs.write_at(file, 0, b"short").unwrap();
    }
    fs.sync().unwrap();
    let before = room(&machine);
    for i in 0..100 {
        let file = fs.lookup(root, &name(i)).unwrap();
        fs.open(file).unwrap();
        assert_eq!(machine.read(file, 0, 10), b"short");
        fs.set_len(file, 2 * PAGE).unwrap();
        fs.close(file).unwrap();
    }
    fs.sync().unwrap();
    assert_eq!(room(&machine), before);
}

#[test]
fn what_was_promised_for_stores_that_did_not_come_is_given_to_others() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", &[]);
    machine.fs.set_len(file, 64 * PAGE).unwrap();
    let statistics = || machine.fs.statistics().unwrap();
    let held_back = statistics().free_blocks - statistics().available_blocks;
    let handle = machine.cached(file).handle();
    for page in 0..64 {
        handle.prime(page, Pattern::Normal).unwrap();
        handle.make_room(page).unwrap();
    }
    let other = machine.create("b", &[]);
    let mut end = 0;
    while machine.fs.write_at(other, end, &[1; PAGE_SIZE]).is_ok() {
        end += PAGE;
    }
    // But for what is promised to the last page for the worst.
    let left = statistics().free_blocks - held_back;
    assert!(left < 32, "{left} blocks are left");
    drop(handle);
    machine.finish(other);
}

#[test]
fn a_page_whose_room_was_given_to_others_asks_anew() {
    let machine = machine();
    let file = machine.create("a", &[]);
    machine.fs.set_len(file, PAGE).unwrap();
    let handle = machine.cached(file).handle();
    handle.prime(0, Pattern::Normal).unwrap();
    handle.make_room(0).unwrap();
    let other = machine.create("b", &[]);
    let mut end = 0;
    while machine.fs.write_at(other, end, &[1; PAGE_SIZE]).is_ok() {
        end += PAGE;
    }
    assert_eq!(handle.dirty_block(0), Ok(Dirtied::NeedsRoom));
    drop(handle);
    machine.finish(other);
}

#[test]
fn a_write_gives_back_what_was_promised_to_pages_that_had_room() {
    let machine = machine();
    let file = machine.create("a", &[1; PAGE_SIZE]);
    machine.fs.write_at(file, 0, &[2; 2 * PAGE_SIZE]).unwrap();
    machine.check_promises();
    machine.finish(file);
}

#[test]
fn the_map_finds_room_when_it_grows_with_the_last_pages() {
    let machine = machine();
    let file = machine.create("a", &[b'o'; 50 * PAGE_SIZE]);
    machine.check();
    let cached = machine.cached(file);
    fill(&machine);
    for page in (0..20).chain((22..36).step_by(2)) {
        cached.write_out(page..page + 1).unwrap();
        if page >= 19 {
            // What became free is somebody else's.
            fill(&machine);
        }
    }
    drop(cached);
    machine.finish(file);
}

/// As a power cut leaves it between `allocate` and `written`: the file is empty, and a page behind its end has places.
fn places_behind_the_end() -> (Machine, FileId) {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let file = machine.create("a", &[7; PAGE_SIZE]);
    let (tell, told) = channel();
    let (beneath, disk) = (machine.beneath.clone(), machine.disk.clone());
    machine.disk.during_next_write(Box::new(move || {
        beneath.sync().unwrap();
        tell.send(disk.record_len()).unwrap();
    }));
    machine.cached(file).write_out(0..1).unwrap();
    let at = told.recv().unwrap();
    let image = crash_image(&machine.base, &machine.disk.record(), at, 1);
    let machine = Machine::on(image, 1, 16 << 20);
    assert_eq!(machine.fs.attributes(file).unwrap().size, 0);
    machine.fs.open(file).unwrap();
    (machine, file)
}

#[test]
fn a_file_grows_into_a_page_that_had_places_behind_the_end() {
    let (machine, file) = places_behind_the_end();
    machine.fs.append(file, &[1; 1000]).unwrap();
    let (done, end) = channel();
    machine.meanwhile(move |other| {
        other.fs.append(file, &[2; 1000]).unwrap();
        done.send(()).unwrap();
    });
    let ended = end.recv_timeout(Duration::from_secs(60));
    ended.expect("an append goes on for ever");
    let bytes = machine.finish(file);
    assert_eq!(bytes, [[1; 1000], [2; 1000]].concat());
}

#[test]
fn a_page_that_was_found_before_a_cut_and_read_after_it_has_no_places_by_that() {
    let (machine, hooked) = hooked(&["-b", "1024"]);
    let file = machine.cold("a", &[7; PAGE_SIZE]);
    let (go, may_go) = channel::<()>();
    let reader = Started::default();
    let (during, thread, hooks) = (machine.clone(), reader.clone(), hooked.clone());
    hooked.on("before truncate_prepare", move || {
        // Memory is short, and somebody reads it anew.
        during.cached(file).evict(0..1);
        hooks.on("after map", move || may_go.recv().unwrap());
        let reading = during.meanwhile(move |other| drop(other.read(file, 0, 10)));
        *thread.lock().unwrap() = Some(reading);
    });
    machine.fs.set_len(file, 1024).unwrap();
    let writing = machine.meanwhile(move |other| {
        other.fs.write_at(file, 1024, &[8; 3072]).unwrap();
    });
    go.send(()).unwrap();
    writing.join().unwrap();
    join(&reader);
    machine.check();
    machine.finish(file);
}

#[test]
fn a_store_that_needs_no_room_asks_again_where_the_file_grows_meanwhile() {
    let (machine, hooked) = hooked(&["-b", "1024"]);
    let file = machine.cold("a", &[7; 1000]);
    fill(&machine);
    let handle = machine.cached(file).handle();
    handle.prime(0, Pattern::Normal).unwrap();
    let (during, hooks) = (machine.clone(), hooked.clone());
    // The first time all of the page is asked for, then what the file has of it.
    hooked.on("after reserve", move || {
        hooks.on("after reserve", move || {
            during.fs.set_len(file, 3000).unwrap();
        });
    });
    handle.make_room(0).unwrap();
    assert_eq!(handle.dirty_block(0), Ok(Dirtied::NeedsRoom));
    assert_eq!(machine.fs.attributes(file).unwrap().size, 3000);
    machine.check();
    drop(handle);
    machine.finish(file);
}

#[test]
fn a_store_in_the_midst_of_a_file_does_not_mind_appends() {
    let machine = Machine::new(1, 16 << 20, &["-b", "1024"]);
    let (file, mut promise) = (machine.create("a", &[]), Reservation::NONE);
    // Places that are not written, as fallocate(1) leaves them.
    let (beneath, len) = (&machine.beneath, 2 * PAGE);
    beneath.allocate(file, 0, len, &mut promise).unwrap();
    beneath.set_len(file, len).unwrap();
    beneath.sync().unwrap();
    let (machine, hooked) = hook(Machine::on(machine.disk.contents(), 1, 16 << 20));
    machine.fs.open(file).unwrap();
    let handle = machine.cached(file).handle();
    handle.prime(0, Pattern::Normal).unwrap();
    let during = machine.clone();
    hooked.on("after reserve", move || {
        during.fs.append(file, b"more").unwrap();
    });
    handle.make_room(0).unwrap();
    assert_eq!(handle.dirty_block(0), Ok(Dirtied::Done));
    drop(handle);
    machine.finish(file);
}

#[test]
fn a_page_that_could_not_be_written_while_the_file_grew_has_room_for_all() {
    let (machine, hooked) = hooked(&["-b", "1024"]);
    let file = machine.create("a", &[7; 1000]);
    let (go, may_go) = channel::<()>();
    let writer = Started::default();
    let (during, thread) = (machine.clone(), writer.clone());
    hooked.on("before set_len", move || {
        let disk = during.disk.clone();
        disk.clone().during_next_write(Box::new(move || {
            may_go.recv().unwrap();
            disk.fail_after(0);
        }));
        let writing = during.meanwhile(move |other| {
            other.cached(file).write_out(0..1).unwrap_err();
        });
        *thread.lock().unwrap() = Some(writing);
    });
    machine.fs.set_len(file, 4000).unwrap();
    go.send(()).unwrap();
    join(&writer);
    machine.disk.heal();
    machine.check();
    machine.fs.sync_file(file).unwrap_err();
    machine.finish(file);
}

#[test]
fn a_disk_with_less_than_is_held_back_can_be_emptied() {
    for options in [
        &["-b", "1024"][..],
        &["-b", "1024", "-O", "^extents,^64bit"],
        &["-b", "4096"],
    ] {
        let machine = Machine::on(mkfs(8192, options, None), 1, 16 << 20);
        let (beneath, root) = (&machine.beneath, machine.fs.root());
        for (name, len) in [("a", 100_000), ("b", 50_000), ("c", 30_000), ("big", 0)] {
            let file = beneath.create(root, name.as_bytes(), FileKind::File, 0o644);
            beneath.write_at(file.unwrap(), 0, &vec![9; len]).unwrap();
        }
        // Takes what is held back, too: another system has done that.
        let big = beneath.lookup(root, b"big").unwrap();
        let (mut at, mut promise) = (0, Reservation::NONE);
        while beneath.allocate(big, at, 4096, &mut promise).is_ok() {
            at += 4096;
        }
        beneath.set_len(big, at).unwrap();
        beneath.sync().unwrap();
        let fs = &machine.fs;
        let statistics = fs.statistics().unwrap();
        assert!(statistics.free_blocks < 4 && statistics.available_blocks == 0);
        let [a, b, c] = ["a", "b", "c"].map(|name| fs.lookup(root, name.as_bytes()).unwrap());
        for file in [a, b, c] {
            fs.open(file).unwrap();
        }
        fs.write_at(a, 5000, &[1; 9000]).unwrap();
        fs.set_len(a, 99_001).unwrap();
        fs.rename(root, b"a", root, b"d").unwrap();
        fs.unlink(root, b"b").unwrap();
        fs.set_len(b, 1500).unwrap();
        fs.rename(root, b"c", root, b"d").unwrap();
        fs.close(b).unwrap();
        fs.close(a).unwrap();
        machine.check();
        fs.unlink(root, b"big").unwrap();
        fs.append(c, &[3; 100_000]).unwrap();
        machine.finish(c);
    }
}
