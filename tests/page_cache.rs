//! What must never go wrong between a map, the page cache and the disk: a test for each defect that others had.
//!
//! A race is not left to luck: the other party runs inside [`SimDisk::during_next_read`] or `during_next_write`, at the
//! one moment that matters. Where it must wait for the disk itself, it is a thread that has been given time to get there.
//!
//! | Seen elsewhere | Here |
//! | --- | --- |
//! | protection ignored on shared maps | `a_read_only_shared_map_is_not_stored_to` |
//! | eviction that never evicts | `a_file_larger_than_memory_is_read_through_a_map` |
//! | sync to the wrong block | `sync_writes_each_page_to_its_own_place` |
//! | one zero block for all holes, writable | `a_store_to_a_hole_changes_no_other` |
//! | the tail zeroed one byte short | `the_tail_is_zeros_to_its_last_byte`, `a_store_behind_the_end_never_reaches_the_disk` |
//! | parts of a page at offset 0 | `small_blocks_lie_where_they_belong_in_their_page` |
//! | partial unmap | `a_removal_across_gaps_leaves_no_translation_and_no_pin` |
//! | protection none | `protection_none_allows_nothing_and_keeps_what_is_there` |
//! | I/O under a lock | `nothing_waits_for_a_read_that_does_not_need_it`, `nothing_waits_for_a_write_that_does_not_need_it` |
//! | a page seen before its bytes are right | `a_page_is_seen_when_its_bytes_are_right_and_pinned_once` |
//! | a map that dies while its fault waits | `unmap_races_a_fault_that_waits_for_the_disk` |
//! | dirty pages found by checksum | `a_page_that_always_changes_is_written` |
//! | address space never given back | `addresses_are_given_back_and_hints_take_nothing` |
//! | no end-of-file check | `behind_the_end_is_an_error_also_after_a_cut` |
//! | no read-ahead, errors only logged | `a_sequential_read_takes_few_requests`, `an_error_reaches_everybody_who_waits` |
//! | stores after the first sync are lost | `stores_after_a_sync_are_written_by_the_next`, `..._through_two_maps` |
//! | sync without a flush | `what_sync_acknowledged_survives_a_power_cut` |
//! | errors of write-back dropped | `a_failed_write_stays_dirty_and_is_told_once` |
//! | a frame freed too early | the simulated MMU panics, in each of these |
//! | eviction races with a map | `eviction_races_a_fault` |
//! | dirty cleared while a map can store | `a_store_during_write_back_is_written_again` |
//! | write-back that needs memory | `dirty_pages_are_written_when_memory_is_gone` |
//! | a request for each fault | `a_sequential_read_takes_few_requests` |

#![cfg(not(target_os = "none"))]

mod common;

use common::machine::{Machine, OPTIONS, PAGE, at, found_on, machine, numbered};
use common::{campaign, e2fsck, mkfs, mount};
use pinfold::fs::block::BlockError;
use pinfold::fs::error::ReadOnlyReason;
use pinfold::fs::ext4::Access as FsAccess;
use pinfold::fs::sim_disk::{SimDisk, crash_image};
use pinfold::fs::{Backing, FileId, FileKind, FileSystem, FsError};
use pinfold::mm::addr::{Frame, PAGE_SIZE, VirtAddr};
use pinfold::mm::cache::Residence;
use pinfold::mm::fault::{Access, FaultError};
use pinfold::mm::frame::{Owner, Urgency};
use pinfold::mm::manager::{Advice, Placement};
use pinfold::mm::object::{Aliases, FileKey, IoError, Pattern, Sharing};
use pinfold::mm::table::Protection;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

// --- the fifteen ---

#[test]
fn a_read_only_shared_map_is_not_stored_to() {
    let machine = machine();
    let file = machine.cold("a", &numbered(2));
    let base = machine.map_with(file, 0, 2, Protection::READ, Sharing::Shared);
    assert_eq!(machine.load(base), Ok(0));
    for page in 0..2 {
        assert_eq!(machine.store(at(base, page, 0), 9), Err(FaultError::Denied));
    }
    assert_eq!(machine.cache.counts().dirty, 0);
    assert_eq!(machine.finish(file), numbered(2));
}

#[test]
fn a_file_larger_than_memory_is_read_through_a_map() {
    let machine = Machine::new(1, 2 << 20, OPTIONS);
    const PAGES: u64 = 700;
    let file = machine.cold("a", &numbered(PAGES));
    let base = machine.map(file, 0, PAGES);
    for _ in 0..2 {
        for page in 0..PAGES {
            assert_eq!(machine.load(at(base, page, 7)), Ok(page as u8));
        }
    }
    assert!(machine.cache.counts().evicted > PAGES);
    machine.finish(file);
}

#[test]
fn sync_writes_each_page_to_its_own_place() {
    let machine = machine();
    // Two files whose blocks take turns on the disk.
    let (file, other) = (machine.create("a", &[]), machine.create("b", &[]));
    for page in 0..24 {
        for (file, byte) in [(file, page), (other, 100 + page)] {
            let bytes = [byte as u8; PAGE_SIZE];
            machine.fs.write_at(file, page * PAGE, &bytes).unwrap();
            machine.fs.sync_file(file).unwrap();
        }
    }
    let base = machine.map(file, 5, 12);
    for page in [2, 3, 9] {
        machine.store(at(base, page, 11), 0xd1).unwrap();
    }
    machine.sync(at(base, 3, 0), 7).unwrap();
    let mut expected = numbered(24);
    // Page 2 of the map was not in the range.
    for page in [8, 14] {
        expected[page * PAGE_SIZE + 11] = 0xd1;
    }
    assert!(machine.on_disk(file) == expected);
    machine.sync(base, 12).unwrap();
    expected[7 * PAGE_SIZE + 11] = 0xd1;
    assert!(machine.on_disk(file) == expected);
    let others: Vec<u8> = numbered(24).iter().map(|byte| byte + 100).collect();
    assert!(machine.on_disk(other) == others);
    machine.fs.close(other).unwrap();
    assert!(machine.finish(file) == expected);
}

#[test]
fn a_store_to_a_hole_changes_no_other() {
    let machine = machine();
    let file = machine.create("a", &[]);
    machine.fs.set_len(file, 64 * PAGE).unwrap();
    let (base, again) = (machine.map(file, 0, 64), machine.map(file, 0, 64));
    let before = machine.memory.frames().counts().cache;
    for page in 0..64 {
        assert_eq!(machine.load(at(base, page, 5)), Ok(0));
        assert_eq!(machine.load(at(again, page, 5)), Ok(0));
    }
    let counts = machine.memory.frames().counts();
    assert_eq!(counts.cache, before, "a hole costs no frame");
    machine.store(at(base, 20, 5), 0xab).unwrap();
    for page in 0..64 {
        let expected = if page == 20 { 0xab } else { 0 };
        for base in [base, again] {
            assert_eq!(machine.load(at(base, page, 5)), Ok(expected));
        }
    }
    let on_disk = machine.finish(file);
    let written = on_disk.iter().enumerate().filter(|(_, byte)| **byte != 0);
    assert!(written.eq([(20 * PAGE_SIZE + 5, &0xab)]));
}

#[test]
fn the_tail_is_zeros_to_its_last_byte() {
    for len in [1, 511, 512, 4095, 4097] {
        let machine = machine();
        // A longer file was there before, so that the device has other bytes behind the end.
        let file = machine.cold("a", &[0xff; 3 * PAGE_SIZE]);
        let place = machine.fs.map(file, 0, 2 * PAGE).unwrap()[0].backing;
        machine.fs.set_len(file, len).unwrap();
        machine.fs.sync().unwrap();
        machine.cache.drop_clean();
        let Backing::Written(start) = place else {
            panic!("{place:?}");
        };
        // Whoever wrote the file may have left anything there.
        let tail = len.next_multiple_of(512);
        let rest = tail.next_multiple_of(PAGE) - tail;
        if rest > 0 {
            let dirt = vec![0xee; rest as usize];
            pinfold::fs::blocking::write(
                &*machine.disk,
                start + tail,
                dirt,
                pinfold::fs::block::Durability::Cached,
            )
            .unwrap();
        }
        let base = machine.map(file, 0, 2);
        for byte in 0..len.next_multiple_of(PAGE) {
            let expected = if byte < len { 0xff } else { 0 };
            assert_eq!(machine.load(at(base, 0, byte)), Ok(expected), "{byte}");
        }
        machine.finish(file);
    }
}

#[test]
fn a_store_behind_the_end_never_reaches_the_disk() {
    let machine = machine();
    let file = machine.cold("a", &[7; 1000]);
    let base = machine.map(file, 0, 1);
    machine.store(at(base, 0, 10), 8).unwrap();
    machine.store(at(base, 0, 1000), 0xee).unwrap();
    machine.store(at(base, 0, 4095), 0xee).unwrap();
    machine.sync(base, 1).unwrap();
    let Backing::Written(place) = machine.fs.map(file, 0, PAGE).unwrap()[0].backing else {
        panic!("no block");
    };
    let on_device = &machine.disk.contents()[place as usize..][..PAGE_SIZE];
    assert_eq!(on_device[1000..], [0; PAGE_SIZE - 1000]);
    // It is zeros again, in the frame too.
    assert_eq!(machine.load(at(base, 0, 4095)), Ok(0));
    // Stored once more, then the file grows over it, by each way there is.
    machine.store(at(base, 0, 2000), 0xee).unwrap();
    machine.fs.set_len(file, 3000).unwrap();
    assert_eq!(machine.read(file, 1000, 4096), [0; 2000]);
    machine.store(at(base, 0, 3500), 0xee).unwrap();
    machine.fs.write_at(file, 4000, &[1]).unwrap();
    assert_eq!(machine.load(at(base, 0, 3500)), Ok(0));
    machine.store(at(base, 0, 4050), 0xee).unwrap();
    machine.fs.write_at(file, 5000, &[1]).unwrap();
    assert_eq!(machine.load(at(base, 0, 4050)), Ok(0));
    // A cut makes a tail, too.
    machine.store(at(base, 0, 600), 0xdd).unwrap();
    machine.fs.set_len(file, 500).unwrap();
    assert_eq!(machine.load(at(base, 0, 600)), Ok(0));
    machine.fs.set_len(file, 700).unwrap();
    assert_eq!(machine.load(at(base, 0, 600)), Ok(0));
    let mut expected = vec![7; 500];
    expected[10] = 8;
    expected.resize(700, 0);
    assert!(machine.finish(file) == expected);
}

#[test]
fn small_blocks_lie_where_they_belong_in_their_page() {
    for options in [
        &["-b", "1024"][..],
        &["-b", "2048"],
        &["-b", "1024", "-O", "^extents,^has_journal,^64bit"],
    ] {
        let machine = Machine::new(1, 16 << 20, options);
        let (file, other) = (machine.create("a", &[]), machine.create("b", &[]));
        // Its blocks are apart from each other, and some are holes.
        let mut expected = vec![0; 16 << 10];
        for block in [0, 1, 3, 6, 7, 8, 9, 13, 15] {
            let bytes = [block as u8 + 1; 1024];
            machine.fs.write_at(file, block * 1024, &bytes).unwrap();
            machine.fs.sync_file(file).unwrap();
            machine.fs.write_at(other, block * 1024, &bytes).unwrap();
            machine.fs.sync_file(other).unwrap();
            expected[block as usize * 1024..][..1024].copy_from_slice(&bytes);
        }
        machine.cache.drop_clean();
        let base = machine.map(file, 0, 4);
        for (i, byte) in expected.iter().enumerate() {
            assert_eq!(machine.load(at(base, 0, i as u64)), Ok(*byte), "{i}");
        }
        for byte in [2 * 1024, 6 * 1024 + 5, 14 * 1024 + 1023] {
            machine.store(at(base, 0, byte), 0xcc).unwrap();
            expected[byte as usize] = 0xcc;
        }
        machine.sync(base, 4).unwrap();
        assert!(machine.on_disk(file) == expected);
        machine.fs.close(other).unwrap();
        assert!(machine.finish(file) == expected);
    }
}

#[test]
fn a_removal_across_gaps_leaves_no_translation_and_no_pin() {
    let machine = machine();
    let file = machine.cold("a", &numbered(32));
    let base = machine.map(file, 0, 32);
    for page in 0..32 {
        machine.load(at(base, page, 0)).unwrap();
    }
    for gap in [4, 9, 20] {
        machine.manager.remove(at(base, gap, 0), 2 * PAGE).unwrap();
    }
    // Three maps end or lose a part, and there are two gaps between them.
    let touched = machine.manager.remove(at(base, 2, 0), 12 * PAGE).unwrap();
    assert_eq!(touched, 3);
    machine.check();
    for page in 0..32 {
        let is_mapped = !(2..14).contains(&page) && !(20..22).contains(&page);
        let expected = match is_mapped {
            true => Ok(page as u8),
            false => Err(FaultError::NoMapping),
        };
        assert_eq!(machine.load(at(base, page, 0)), expected, "page {page}");
    }
    assert_eq!(machine.finish(file), numbered(32));
}

#[test]
fn protection_none_allows_nothing_and_keeps_what_is_there() {
    let machine = machine();
    let file = machine.cold("a", &numbered(4));
    let (shared, private) = (machine.map(file, 0, 4), machine.map_private(file, 0, 4));
    for base in [shared, private] {
        machine.store(at(base, 1, 0), 77).unwrap();
        let none = Protection::NONE;
        assert_eq!(machine.manager.set_permissions(base, 4 * PAGE, none), Ok(1));
        for page in 0..4 {
            assert_eq!(machine.load(at(base, page, 0)), Err(FaultError::Denied));
            assert_eq!(machine.store(at(base, page, 0), 1), Err(FaultError::Denied));
        }
        let all = Protection::READ_WRITE;
        assert_eq!(machine.manager.set_permissions(base, 4 * PAGE, all), Ok(1));
        assert_eq!(machine.load(at(base, 1, 0)), Ok(77));
    }
    let mut expected = numbered(4);
    expected[PAGE_SIZE] = 77;
    assert!(machine.finish(file) == expected);
}

#[test]
fn nothing_waits_for_a_read_that_does_not_need_it() {
    let machine = machine();
    let (file, other) = (
        machine.cold("a", &numbered(4)),
        machine.create("b", &[1; 9]),
    );
    let base = machine.map(file, 0, 4);
    let during = machine.clone();
    machine.disk.during_next_read(Box::new(move || {
        let base = during.map(other, 0, 1);
        assert_eq!(during.load(base), Ok(1));
        during.store(base, 2).unwrap();
        let anon = during
            .manager
            .map_anon(Placement::Anywhere, 9 * PAGE, Protection::READ_WRITE)
            .unwrap();
        during.store(anon, 3).unwrap();
        during.manager.remove(anon, 9 * PAGE).unwrap();
        during.cache.write_back(None).unwrap();
        during.fs.write_at(other, 3, &[4; 5000]).unwrap();
        during.fs.sync_file(other).unwrap();
    }));
    assert_eq!(machine.load(base), Ok(0));
    assert!(machine.on_disk(other)[..4] == [2, 1, 1, 4]);
    machine.fs.close(other).unwrap();
    machine.finish(file);
}

#[test]
fn nothing_waits_for_a_write_that_does_not_need_it() {
    let machine = machine();
    let file = machine.cold("a", &numbered(8));
    let base = machine.map(file, 0, 8);
    machine.store(at(base, 2, 0), 50).unwrap();
    let during = machine.clone();
    machine.disk.during_next_write(Box::new(move || {
        // The page itself can be read, and be stored to; so can others.
        assert_eq!(during.residence(file, 2), Residence::Writing);
        assert_eq!(during.load(at(base, 2, 0)), Ok(50));
        during.store(at(base, 2, 0), 51).unwrap();
        during.store(at(base, 5, 0), 52).unwrap();
        assert_eq!(during.read(file, 2 * PAGE, 1), [51]);
        during.fs.write_at(file, 6 * PAGE, &[53]).unwrap();
    }));
    machine.cache.write_back(None).unwrap();
    let mut expected = numbered(8);
    for (page, byte) in [(2, 51), (5, 52), (6, 53)] {
        expected[page * PAGE_SIZE] = byte;
    }
    assert!(machine.finish(file) == expected);
}

#[test]
fn a_page_is_seen_when_its_bytes_are_right_and_pinned_once() {
    let machine = machine();
    let file = machine.cold("a", &numbered(2));
    let base = machine.map(file, 0, 1);
    let during = machine.clone();
    let second = Arc::new(Mutex::new(None));
    let thread = second.clone();
    machine.disk.during_next_read(Box::new(move || {
        assert!(during.mmu.load(base).is_err(), "entered before it was read");
        assert_eq!(during.residence(file, 0), Residence::Busy);
        // Another thread faults on the same page, and waits.
        *thread.lock().unwrap() =
            Some(during.meanwhile(move |machine| assert_eq!(machine.load(base), Ok(0))));
        assert!(during.mmu.load(base).is_err());
    }));
    let before = machine.disk.requests();
    assert_eq!(machine.load(base), Ok(0));
    second.lock().unwrap().take().unwrap().join().unwrap();
    assert_eq!(machine.disk.requests() - before, 1);
    // One pin: with the map gone, nothing keeps the page.
    machine.manager.remove(base, PAGE).unwrap();
    machine.cache.drop_clean();
    assert_eq!(machine.residence(file, 0), Residence::Absent);
    machine.finish(file);
}

#[test]
fn unmap_races_a_fault_that_waits_for_the_disk() {
    let machine = machine();
    let file = machine.cold("a", &numbered(4));
    for access in [Access::Read, Access::Write] {
        machine.cache.drop_clean();
        let base = machine.map(file, 0, 4);
        let during = machine.clone();
        machine.disk.during_next_read(Box::new(move || {
            assert_eq!(during.manager.remove(base, 4 * PAGE), Ok(1));
        }));
        let result = match access {
            Access::Read => machine.load(base).map(drop),
            _ => machine.store(base, 1),
        };
        assert_eq!(result, Err(FaultError::NoMapping));
        machine.check();
    }
    assert_eq!(machine.finish(file), numbered(4));
}

#[test]
fn the_file_outlives_its_name_and_its_map_while_a_fault_waits() {
    let machine = machine();
    let file = machine.cold("a", &numbered(4));
    let base = machine.map(file, 0, 4);
    machine.fs.close(file).unwrap();
    let during = machine.clone();
    machine.disk.during_next_read(Box::new(move || {
        during.fs.unlink(during.fs.root(), b"a").unwrap();
        during.manager.remove(base, 4 * PAGE).unwrap();
        during.cache.tidy().unwrap();
    }));
    assert_eq!(machine.load(base), Err(FaultError::NoMapping));
    machine.cache.tidy().unwrap();
    assert!(machine.cache.files(None).all(|cached| cached.id() != file));
    machine.fs.unmount().unwrap();
    e2fsck(&machine.disk.contents()).unwrap();
}

#[test]
fn an_append_during_write_back_is_kept() {
    let machine = machine();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            machine.adopt_thread();
            while !is_over.load(Ordering::Relaxed) {
                machine.cache.write_back(None).unwrap();
            }
        });
        let is_kept = |round| {
            let file = machine.create(&format!("{round}"), &[]);
            for at in 0..4000 {
                machine.fs.write_at(file, at, &[7]).unwrap();
            }
            machine.read(file, 0, 4000) == [7; 4000]
        };
        let lost = (0..60).filter(|round| !is_kept(*round)).count();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "rounds in which bytes were lost");
    });
}

#[test]
fn a_file_does_not_end_behind_what_was_written() {
    let machine = machine();
    let file = machine.create("a", &[7; 100]);
    let size = Arc::new(std::sync::Mutex::new(None));
    let (during, seen) = (machine.clone(), size.clone());
    machine.disk.during_next_write(Box::new(move || {
        during.fs.write_at(file, 100, &[7; 10]).unwrap();
        let (again, seen) = (during.clone(), seen.clone());
        during.disk.during_next_write(Box::new(move || {
            *seen.lock().unwrap() = Some(again.beneath.attributes(file).unwrap().size);
        }));
    }));
    while machine.cache.counts().dirty > 0 {
        machine.cache.write_back(None).unwrap();
    }
    assert_eq!(*size.lock().unwrap(), Some(100));
    assert_eq!(machine.beneath.attributes(file).unwrap().size, 110);
}

#[test]
fn a_file_that_loses_its_name_while_it_is_found_is_closed() {
    let machine = machine();
    let root = machine.fs.root();
    machine.fs.sync().unwrap();
    let free = || machine.fs.statistics().unwrap().free_inodes;
    let before = free();
    for round in 0..3000 {
        let file = machine
            .beneath
            .create(root, b"a", FileKind::File, 0o644)
            .unwrap();
        machine.beneath.write_at(file, 0, &[1; 100]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                machine.adopt_thread();
                // It is there, or not any more.
                let _ = machine.fs.read_at(file, 0, &mut [0; 10]);
            });
            for _ in 0..round % 60 * 50 {
                std::hint::spin_loop();
            }
            machine.fs.unlink(root, b"a").unwrap();
        });
        machine.cache.tidy().unwrap();
        assert_eq!(free(), before, "round {round}");
    }
}

#[test]
fn every_cached_file_is_found_once_whatever_comes_and_goes() {
    let machine = machine();
    let create = |i: u32| machine.create(&format!("{i}"), &[1; 10]);
    let mut ids: Vec<_> = (0..100).map(create).collect();
    ids.sort_unstable();
    let mut found = Vec::new();
    for file in machine.cache.files(None) {
        if found.len() == 50 {
            // Before, behind and at the place where it is; and new ones, which are not waited for.
            for i in [3, 49, 50, 51, 77] {
                machine
                    .cache
                    .files(None)
                    .find(|file| file.id() == ids[i])
                    .unwrap();
                machine.fs.close(ids[i]).unwrap();
                machine
                    .fs
                    .unlink(machine.fs.root(), format!("{i}").as_bytes())
                    .unwrap();
            }
            machine.cache.tidy().unwrap();
        }
        create(1000 + found.len() as u32);
        found.push(file.id());
    }
    assert!(
        found.iter().all(|id| ids.contains(id)),
        "it runs after what comes"
    );
    assert!(found.is_sorted_by(|a, b| a < b));
    let mut missed = ids.iter().filter(|id| !found.contains(id));
    assert!(missed.all(|id| [ids[51], ids[77]].contains(id)));
    let volume = machine.cache.files(None).next().unwrap().volume();
    assert_eq!(
        machine.cache.files(Some(volume)).count(),
        machine.cache.files(None).count()
    );
}

#[test]
fn a_page_that_always_changes_is_written() {
    let machine = machine();
    let file = machine.cold("a", &[0; PAGE_SIZE]);
    let base = machine.map(file, 0, 1);
    for value in 1..20 {
        machine.store(base, value).unwrap();
        let during = machine.clone();
        machine.disk.during_next_write(Box::new(move || {
            during.store(at(base, 0, 1), value).unwrap();
        }));
        machine.cache.write_back(None).unwrap();
        machine.fs.sync().unwrap();
        assert_eq!(machine.on_disk(file)[0], value);
    }
    machine.finish(file);
}

#[test]
fn addresses_are_given_back_and_hints_take_nothing() {
    let machine = machine();
    let file = machine.cold("a", &numbered(4));
    let first = machine.map(file, 0, 4);
    let (pages, protection) = (4 * PAGE, Protection::READ);
    let hinted = machine
        .manager
        .map_file(
            machine.cached(file).handle(),
            Placement::Hint(first),
            pages,
            protection,
            0,
            Sharing::Shared,
        )
        .unwrap();
    assert_ne!(hinted, first, "what was there is there");
    assert_eq!(machine.load(first), Ok(0));
    machine.manager.remove(hinted, pages).unwrap();
    let taken = machine.memory.frames().counts();
    for _ in 0..5000 {
        let base = machine.map(file, 0, 4);
        machine.load(base).unwrap();
        machine.manager.remove(base, pages).unwrap();
        assert!(base.0 - first.0 < 64 << 30, "addresses run away: {base}");
    }
    let now = machine.memory.frames().counts();
    assert_eq!((taken.cache, taken.page_table), (now.cache, now.page_table));
    machine.finish(file);
}

#[test]
fn behind_the_end_is_an_error_also_after_a_cut() {
    let machine = machine();
    let file = machine.cold("a", &numbered(6));
    let (base, private) = (machine.map(file, 0, 8), machine.map_private(file, 0, 8));
    machine.load(at(base, 5, 0)).unwrap();
    machine.load(at(private, 4, 0)).unwrap();
    machine.store(at(private, 5, 0), 99).unwrap();
    for base in [base, private] {
        assert_eq!(machine.load(at(base, 6, 0)), Err(FaultError::PastEnd));
        assert_eq!(machine.store(at(base, 7, 0), 1), Err(FaultError::PastEnd));
    }
    machine.fs.set_len(file, 3 * PAGE).unwrap();
    machine.check();
    for page in 3..8 {
        assert_eq!(machine.load(at(base, page, 0)), Err(FaultError::PastEnd));
    }
    assert_eq!(machine.load(at(private, 4, 0)), Err(FaultError::PastEnd));
    assert_eq!(
        machine.load(at(private, 5, 0)),
        Ok(99),
        "private pages stay"
    );
    // What grows is seen by maps that were there before.
    machine.fs.write_at(file, 4 * PAGE, &[42]).unwrap();
    assert_eq!(machine.load(at(base, 3, 0)), Ok(0));
    assert_eq!(machine.load(at(base, 4, 0)), Ok(42));
    assert_eq!(machine.load(at(private, 4, 0)), Ok(42));
    let mut expected = numbered(3);
    expected.resize(4 * PAGE_SIZE, 0);
    expected.push(42);
    assert!(machine.finish(file) == expected);
}

#[test]
fn a_sequential_read_takes_few_requests() {
    let machine = machine();
    const PAGES: u64 = 700;
    let file = machine.cold("a", &numbered(PAGES));
    let base = machine.map(file, 0, PAGES);
    let before = machine.disk.requests();
    for page in 0..PAGES {
        assert_eq!(machine.load(at(base, page, 0)), Ok(page as u8));
    }
    let requests = machine.disk.requests() - before;
    assert!(requests < 40, "{requests} requests for {PAGES} pages");
    // At random, none reads what nobody asked for.
    machine.manager.remove(base, PAGES * PAGE).unwrap();
    machine.cache.drop_clean();
    let base = machine.map(file, 0, PAGES);
    let before = machine.cache.counts().read;
    for i in 0..50 {
        machine.load(at(base, i * 397 % PAGES, 0)).unwrap();
    }
    let read = machine.cache.counts().read - before;
    assert!(read < 50 * 5, "{read} pages read for 50");
    machine.finish(file);
}

#[test]
fn one_bad_block_costs_no_other_page() {
    let machine = machine();
    const PAGES: u64 = 300;
    let file = machine.cold("a", &numbered(PAGES));
    let base = machine.map(file, 0, PAGES);
    let bad = [40, 41, 200];
    for page in bad {
        let offset = sector(&machine, file, page) * 512;
        let error = BlockError::Device { offset };
        machine.disk.fail_sector(offset / 512, error);
    }
    // Requests for read-ahead have hundreds of pages; each that touches a bad one fails.
    for page in 0..PAGES {
        let expected = match bad.contains(&page) {
            false => Ok(page as u8),
            true => {
                let offset = sector(&machine, file, page) * 512;
                Err(FaultError::Io(IoError::Device { offset }))
            }
        };
        assert_eq!(machine.load(at(base, page, 0)), expected, "page {page}");
    }
    machine.disk.heal();
    assert_eq!(machine.finish(file), numbered(PAGES));
}

/// Where a page of the file is on the disk, in sectors.
fn sector(machine: &Machine, file: FileId, page: u64) -> u64 {
    match machine.fs.map(file, page * PAGE, PAGE).unwrap()[0].backing {
        Backing::Written(place) | Backing::Unwritten(place) => place / 512,
        Backing::Hole => panic!("a hole"),
    }
}

#[test]
fn an_error_reaches_everybody_who_waits() {
    let machine = machine();
    let file = machine.cold("a", &numbered(64));
    let place = sector(&machine, file, 9);
    for error in [
        BlockError::Device {
            offset: place * 512,
        },
        BlockError::TimedOut {
            offset: place * 512,
        },
    ] {
        let expected = match error {
            BlockError::TimedOut { offset } => IoError::TimedOut { offset },
            _ => IoError::Device {
                offset: place * 512,
            },
        };
        machine.disk.fail_sector(place, error);
        let base = machine.map(file, 0, 64);
        let during = machine.clone();
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let threads = waiting.clone();
        machine.disk.during_next_read(Box::new(move || {
            for _ in 0..3 {
                let thread = during.meanwhile(move |machine| {
                    let loaded = machine.load(at(base, 9, 0));
                    assert_eq!(loaded, Err(FaultError::Io(expected)));
                });
                threads.lock().unwrap().push(thread);
            }
        }));
        assert_eq!(machine.load(at(base, 9, 0)), Err(FaultError::Io(expected)));
        for thread in waiting.lock().unwrap().drain(..) {
            thread.join().unwrap();
        }
        let mut bytes = [0; 1];
        assert!(machine.fs.read_at(file, 9 * PAGE, &mut bytes).is_err());
        // Those beside it can be read all the same, if the device answers.
        if let BlockError::Device { .. } = error {
            assert_eq!(machine.load(at(base, 8, 0)), Ok(8));
            assert_eq!(machine.load(at(base, 10, 0)), Ok(10));
        }
        // And the page, once the device is well.
        machine.disk.heal();
        assert_eq!(machine.load(at(base, 9, 0)), Ok(9));
        machine.manager.remove(base, 64 * PAGE).unwrap();
        machine.cache.drop_clean();
    }
    assert_eq!(machine.finish(file), numbered(64));
}

// --- today's ---

#[test]
fn stores_after_a_sync_are_written_by_the_next() {
    let machine = machine();
    let file = machine.cold("a", &numbered(3));
    let base = machine.map(file, 0, 3);
    for value in [10, 20, 30] {
        machine.store(at(base, 1, 100), value).unwrap();
        machine.sync(base, 3).unwrap();
        assert_eq!(machine.on_disk(file)[PAGE_SIZE + 100], value);
    }
    machine.finish(file);
}

#[test]
fn stores_after_a_sync_are_written_by_the_next_through_two_maps() {
    let machine = machine();
    let file = machine.cold("a", &numbered(3));
    let (one, two) = (machine.map(file, 0, 3), machine.map(file, 1, 2));
    let private = machine.map_private(file, 1, 1);
    assert_eq!(machine.load(private), Ok(1));
    for round in 1..4u8 {
        machine.store(at(one, 1, 100), round).unwrap();
        machine.store(at(two, 0, 200), round).unwrap();
        machine.fs.write_at(file, PAGE + 300, &[round]).unwrap();
        assert_eq!(machine.load(at(one, 1, 200)), Ok(round));
        assert_eq!(machine.load(at(two, 0, 300)), Ok(round));
        assert_eq!(machine.load(at(private, 0, 100)), Ok(round));
        machine.sync(one, 3).unwrap();
        let on_disk = machine.on_disk(file);
        for place in [100, 200, 300] {
            assert_eq!(on_disk[PAGE_SIZE + place], round, "byte {place}");
        }
        // Now the other map alone.
        machine.store(at(two, 0, 101), 100 + round).unwrap();
        machine.sync(one, 3).unwrap();
        assert_eq!(machine.on_disk(file)[PAGE_SIZE + 101], 100 + round);
    }
    // The private page is of its own from its first store on.
    machine.store(at(private, 0, 400), 1).unwrap();
    machine.store(at(one, 1, 100), 9).unwrap();
    assert_eq!(machine.load(at(private, 0, 100)), Ok(3));
    assert_eq!(machine.load(at(one, 1, 400)), Ok(1u8));
    machine.finish(file);
}

#[test]
fn what_sync_acknowledged_survives_a_power_cut() {
    let machine = machine();
    let file = machine.create("a", &[]);
    machine.fs.set_len(file, 9 * PAGE).unwrap();
    let base = machine.map(file, 0, 9);
    let mut expected = vec![0; 9 * PAGE_SIZE];
    for page in [0, 4, 8] {
        machine.store(at(base, page, 3), page as u8 + 1).unwrap();
        expected[page as usize * PAGE_SIZE + 3] = page as u8 + 1;
        machine.sync(base, 9).unwrap();
        machine.disk.mark(page);
        let record = machine.disk.record();
        for seed in 0..20 {
            let image = crash_image(&machine.base, &record, record.len(), seed);
            let disk = Arc::new(SimDisk::new(image, 1));
            let fs = mount(disk, FsAccess::ReadWrite).unwrap().file_system;
            let mut bytes = vec![0; 9 * PAGE_SIZE];
            assert_eq!(fs.read_at(file, 0, &mut bytes), Ok(9 * PAGE_SIZE));
            assert!(bytes == expected, "page {page}, seed {seed}");
        }
    }
}

/// What is read of a file after a power cut now, whatever the disk's cache held.
fn after_power_cut(machine: &Machine, file: FileId) -> Vec<Vec<u8>> {
    machine.disk.mark(0);
    let record = machine.disk.record();
    let cut = |seed| {
        let image = crash_image(&machine.base, &record, record.len(), seed);
        let disk = Arc::new(SimDisk::new(image, 1));
        let fs = mount(disk, FsAccess::ReadWrite).unwrap().file_system;
        let mut bytes = vec![0; 3 * PAGE_SIZE];
        let read = fs.read_at(file, 0, &mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    };
    (0..20).map(cut).collect()
}

#[test]
fn a_sync_of_a_hole_keeps_it_though_nothing_behind_it_was_written() {
    let machine = machine();
    let file = machine.create("a", &[1; 100]);
    machine.fs.sync().unwrap();
    machine.fs.write_at(file, 2 * PAGE + 5, &[2]).unwrap();
    let base = machine.map(file, 0, 3);
    machine.sync(at(base, 1, 0), 1).unwrap();
    let mut expected = vec![0; 2 * PAGE_SIZE];
    expected[..100].fill(1);
    for bytes in after_power_cut(&machine, file) {
        assert!(bytes == expected, "{} bytes", bytes.len());
    }
    machine.finish(file);
}

#[test]
fn a_flush_of_an_overwritten_page_writes_no_log() {
    let machine = machine();
    let file = machine.create("a", &numbered(2));
    machine.fs.sync().unwrap();
    let base = machine.map(file, 0, 2);
    machine.store(base, 9).unwrap();
    let before = machine.disk.record_len();
    machine.sync(base, 2).unwrap();
    // The page, and that it is to last.
    assert_eq!(machine.disk.record_len() - before, 2);
    let mut expected = numbered(2);
    expected[0] = 9;
    assert!(
        after_power_cut(&machine, file)
            .iter()
            .all(|bytes| *bytes == expected)
    );
    machine.finish(file);
}

#[test]
fn a_flush_of_more_than_overwritten_pages_survives_a_power_cut() {
    let machine = machine();
    let file = machine.create("a", &[1; 100]);
    machine.fs.sync().unwrap();
    // Longer, in the same block.
    machine.fs.write_at(file, 100, &[2; 50]).unwrap();
    machine.fs.sync_data(file).unwrap();
    let expected = [[1; 100].as_slice(), &[2; 50]].concat();
    assert!(
        after_power_cut(&machine, file)
            .iter()
            .all(|bytes| *bytes == expected)
    );
    // A new block, whose place was committed before its data was there.
    machine.fs.set_len(file, 2 * PAGE).unwrap();
    machine.fs.sync().unwrap();
    machine.fs.write_at(file, PAGE, &[3; PAGE_SIZE]).unwrap();
    let during = machine.clone();
    machine
        .disk
        .during_next_write(Box::new(move || during.beneath.sync().unwrap()));
    machine.fs.sync_data(file).unwrap();
    for bytes in after_power_cut(&machine, file) {
        assert_eq!(bytes[PAGE_SIZE..], [3; PAGE_SIZE]);
    }
    machine.finish(file);
}

#[test]
fn a_sync_waits_for_what_another_thread_writes() {
    sync_during_a_write(|machine, base| machine.sync(base, 2).unwrap());
}

#[test]
fn a_sync_of_everything_waits_for_what_another_thread_writes() {
    sync_during_a_write(|machine, _| machine.fs.sync().unwrap());
}

fn sync_during_a_write(sync_it: fn(&Machine, VirtAddr)) {
    let machine = machine();
    let file = machine.cold("a", &numbered(2));
    let base = machine.map(file, 0, 2);
    machine.store(base, 10).unwrap();
    let during = machine.clone();
    let sync = Arc::new(Mutex::new(None));
    let thread = sync.clone();
    machine.disk.during_next_write(Box::new(move || {
        let syncing = during.meanwhile(move |machine| {
            sync_it(&machine, base);
            machine.disk.mark(1);
        });
        assert!(!syncing.is_finished(), "what it promises is not written");
        *thread.lock().unwrap() = Some(syncing);
    }));
    machine.cache.write_back(None).unwrap();
    sync.lock().unwrap().take().unwrap().join().unwrap();
    let record = machine.disk.record();
    for seed in 0..20 {
        let image = crash_image(&machine.base, &record, record.len(), seed);
        let disk = Arc::new(SimDisk::new(image, 1));
        let fs = mount(disk, FsAccess::ReadWrite).unwrap().file_system;
        let mut byte = [0];
        fs.read_at(file, 0, &mut byte).unwrap();
        assert_eq!(byte, [10]);
    }
    machine.finish(file);
}

#[test]
fn a_sync_of_everything_tells_that_another_threads_write_failed() {
    let machine = machine();
    let file = machine.cold("a", &numbered(2));
    let base = machine.map(file, 0, 2);
    let bad = sector(&machine, file, 0);
    machine.store(base, 10).unwrap();
    machine
        .disk
        .fail_sector(bad, BlockError::Device { offset: 0 });
    let during = machine.clone();
    let sync = Arc::new(Mutex::new(None));
    let thread = sync.clone();
    machine.disk.during_next_write(Box::new(move || {
        let syncing = during.meanwhile(|machine| assert!(machine.fs.sync().is_err()));
        *thread.lock().unwrap() = Some(syncing);
    }));
    machine.cache.write_back(None).unwrap_err();
    sync.lock().unwrap().take().unwrap().join().unwrap();
    machine.disk.heal();
    machine.fs.sync().unwrap();
    let mut expected = numbered(2);
    expected[0] = 10;
    assert!(machine.finish(file) == expected);
}

#[test]
fn a_failed_write_stays_dirty_and_is_told_once() {
    let machine = machine();
    let file = machine.cold("a", &numbered(16));
    let base = machine.map(file, 0, 16);
    let place = sector(&machine, file, 4);
    let error = BlockError::Device {
        offset: place * 512,
    };
    for page in 2..7 {
        machine.store(at(base, page, 0), 200 + page as u8).unwrap();
    }
    machine.disk.fail_sector(place, error);
    // In the background, where nobody is told.
    assert_eq!(machine.cache.write_back(None), Err(FsError::Block(error)));
    assert_eq!(machine.residence(file, 4), Residence::Dirty);
    assert!(machine.cache.counts().failed > 0);
    // It is not evicted, and reads as it was stored.
    machine.cache.drop_clean();
    machine.cache.reclaim(1000);
    assert_eq!(machine.load(at(base, 4, 0)), Ok(204));
    machine.disk.heal();
    // The page is written, and still whoever asked for this file to be safe must know that once it was not.
    assert!(machine.sync(base, 16).is_err());
    assert_eq!(machine.residence(file, 4), Residence::Clean);
    machine.sync(base, 16).unwrap();
    let mut expected = numbered(16);
    for page in 2..7 {
        expected[page * PAGE_SIZE] = 200 + page as u8;
    }
    assert!(machine.finish(file) == expected);
}

#[test]
fn eviction_races_a_fault() {
    let machine = machine();
    let file = machine.cold("a", &numbered(32));
    let base = machine.map(file, 0, 32);
    for page in [0, 17, 5] {
        let during = machine.clone();
        machine.disk.during_next_read(Box::new(move || {
            // Busy pages are nobody's to take; what was entered loses its translation first.
            during.cache.drop_clean();
            during.cache.reclaim(100);
            during.check();
        }));
        assert_eq!(machine.load(at(base, page, 0)), Ok(page as u8));
        machine.cache.drop_clean();
        machine.check();
        assert!(machine.mmu.load(at(base, page, 0)).is_err());
        assert_eq!(machine.load(at(base, page, 0)), Ok(page as u8));
    }
    assert_eq!(machine.finish(file), numbered(32));
}

#[test]
fn a_store_during_write_back_is_written_again() {
    let machine = machine();
    let file = machine.cold("a", &numbered(2));
    let (one, two) = (machine.map(file, 0, 2), machine.map(file, 0, 2));
    // Through another map than the one that made the page dirty, which could store without a fault.
    machine.store(one, 10).unwrap();
    machine.store(two, 11).unwrap();
    let during = machine.clone();
    machine.disk.during_next_write(Box::new(move || {
        assert!(
            during.mmu.store_byte(one, 0).is_err(),
            "no fault to note it by"
        );
        assert!(
            during.mmu.store_byte(two, 0).is_err(),
            "no fault to note it by"
        );
        during.store(two, 12).unwrap();
    }));
    machine.cache.write_back(None).unwrap();
    assert_eq!(machine.residence(file, 0), Residence::Dirty);
    machine.sync(one, 2).unwrap();
    assert_eq!(machine.on_disk(file)[0], 12);
    machine.finish(file);
}

#[test]
fn dirty_pages_are_written_when_memory_is_gone() {
    let machine = Machine::new(3, 2 << 20, OPTIONS);
    const PAGES: u64 = 600;
    let file = machine.cold("a", &numbered(PAGES));
    let base = machine.map(file, 0, PAGES);
    // A program has most of the frames.
    let frames = machine.memory.frames();
    let mut taken = Vec::new();
    while frames.has(80, Urgency::Data) {
        taken.push(frames.alloc(Owner::Anonymous, Urgency::Data).unwrap());
    }
    for page in 0..PAGES {
        machine.store(at(base, page, 1), 255 - page as u8).unwrap();
    }
    machine.sync(base, PAGES).unwrap();
    for frame in taken {
        frames.free(frame, Owner::Anonymous);
    }
    let mut expected = numbered(PAGES);
    for page in 0..PAGES as usize {
        expected[page * PAGE_SIZE + 1] = 255 - page as u8;
    }
    assert!(machine.finish(file) == expected);
}

/// A machine whose frames are a program's, but for a file's pages, all dirty, which are mapped; the map, and one of a page of
/// memory that was never touched.
struct Tight {
    machine: Machine,
    file: FileId,
    base: VirtAddr,
    untouched: VirtAddr,
    taken: Arc<Mutex<Vec<Frame>>>,
}

impl Tight {
    const PAGES: u64 = 20;

    fn new() -> Self {
        let machine = Machine::new(3, 2 << 20, OPTIONS);
        let file = machine.cold("a", &numbered(Self::PAGES));
        let base = machine.map(file, 0, Self::PAGES);
        let map = machine
            .manager
            .map_anon(Placement::Anywhere, 2 * PAGE, Protection::READ_WRITE);
        // With the tables that its neighbour needs as well.
        let touched = map.unwrap();
        machine.store(touched, 1).unwrap();
        for page in 0..Self::PAGES {
            machine.store(at(base, page, 0), 1 + page as u8).unwrap();
        }
        let frames = machine.memory.frames();
        let taken = core::iter::from_fn(|| frames.alloc(Owner::Anonymous, Urgency::Data).ok());
        let taken = Arc::new(Mutex::new(taken.collect()));
        Self {
            machine,
            file,
            base,
            untouched: at(touched, 1, 0),
            taken,
        }
    }

    fn finish(self) {
        let frames = self.machine.memory.frames();
        for frame in self.taken.lock().unwrap().drain(..) {
            frames.free(frame, Owner::Anonymous);
        }
        let bytes = self.machine.finish(self.file);
        let firsts = bytes.iter().step_by(PAGE_SIZE);
        assert!(firsts.copied().eq(1..1 + Self::PAGES as u8));
    }
}

#[test]
fn a_fault_waits_for_memory_that_is_being_written() {
    let tight = Tight::new();
    let (during, untouched) = (tight.machine.clone(), tight.untouched);
    let faulting = Arc::new(Mutex::new(None));
    let thread = faulting.clone();
    tight.machine.disk.during_next_write(Box::new(move || {
        let fault = during.meanwhile(move |machine| machine.store(untouched, 1).unwrap());
        assert!(!fault.is_finished(), "there is no memory yet");
        *thread.lock().unwrap() = Some(fault);
    }));
    tight.machine.cache.write_back(None).unwrap();
    faulting.lock().unwrap().take().unwrap().join().unwrap();
    tight.finish();
}

#[test]
fn a_fault_takes_memory_that_came_free_while_it_wrote() {
    let tight = Tight::new();
    let (during, base, taken) = (tight.machine.clone(), tight.base, tight.taken.clone());
    tight.machine.disk.during_next_write(Box::new(move || {
        // What is written is dirty again at once.
        for page in 0..Tight::PAGES {
            during.store(at(base, page, 0), 1 + page as u8).unwrap();
        }
        let frame = taken.lock().unwrap().pop().unwrap();
        during.memory.frames().free(frame, Owner::Anonymous);
    }));
    tight.machine.store(tight.untouched, 1).unwrap();
    tight.finish();
}

// --- files that come and go while they are used ---

#[test]
fn a_file_is_not_forgotten_between_being_found_and_being_written() {
    let machine = machine();
    let root = machine.fs.root();
    let name = b"new";
    let file = machine
        .fs
        .create(root, name, FileKind::File, 0o644)
        .unwrap();
    // Whoever writes has found it; nobody has opened it, and it has no pages yet.
    let found = machine.cached(file);
    machine.cache.tidy().unwrap();
    found.write(Some(0), b"kept").unwrap();
    found.end().unwrap();
    let mut bytes = [0; 4];
    assert_eq!(machine.fs.read_at(file, 0, &mut bytes), Ok(4));
    assert_eq!(&bytes, b"kept");
    machine.fs.sync().unwrap();
    assert_eq!(machine.finish(file), b"kept");
}

#[test]
fn a_file_replaced_by_renaming_is_the_old_or_the_new_after_a_power_cut() {
    let machine = Machine::new(1, 16 << 20, &["-b", "4096"]);
    let (fs, root) = (&machine.fs, machine.fs.root());
    let old = machine.create("settings", b"old settings");
    let log = machine.create("log", b"");
    fs.sync_file(old).unwrap();
    fs.sync().unwrap();
    machine.create("new", b"new settings");
    // Somebody else's fsync, while its bytes are on their way.
    let during = Arc::new(Mutex::new(Vec::new()));
    let (other, to) = (machine.clone(), during.clone());
    machine.disk.during_next_write(Box::new(move || {
        other.beneath.sync().unwrap();
        *to.lock().unwrap() = other.disk.contents();
    }));
    fs.rename(root, b"new", root, b"settings").unwrap();
    fs.write_at(log, 0, b"a line").unwrap();
    fs.sync_file(log).unwrap();
    let during = std::mem::take(&mut *during.lock().unwrap());
    for image in [during, machine.disk.contents()] {
        let bytes = found_on(image, b"settings");
        assert!(
            bytes == b"old settings" || bytes == b"new settings",
            "{bytes:?}"
        );
    }
}

#[test]
fn two_threads_that_append_lose_nothing() {
    let machine = Machine::new(1, 16 << 20, &["-b", "4096"]);
    let file = machine.create("log", b"");
    let barrier = Arc::new(Barrier::new(2));
    let threads = [b'a', b'b'].map(|byte| {
        let (machine, barrier) = (machine.clone(), barrier.clone());
        spawn(move || {
            machine.adopt_thread();
            barrier.wait();
            for _ in 0..20_000 {
                machine.fs.append(file, &[byte; 8]).unwrap();
            }
        })
    });
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(machine.fs.attributes(file).unwrap().size, 2 * 20_000 * 8);
}

#[test]
fn a_lock_that_fails_leaves_what_was_locked_before() {
    let machine = machine();
    let file = machine.cold("a", &numbered(4));
    let base = machine.map(file, 0, 8);
    machine.manager.lock(base, 4 * PAGE).unwrap();
    assert!(machine.manager.lock(at(base, 2, 0), 6 * PAGE).is_err());
    machine.cache.drop_clean();
    for page in 0..4 {
        let present = machine.mmu.load(at(base, page, 0));
        assert!(present.is_ok(), "page {page} is locked, and faults");
    }
    machine.manager.unlock(base, 8 * PAGE).unwrap();
    machine.finish(file);
}

#[test]
fn what_is_cut_or_removed_leaves_nothing_for_the_hand() {
    let machine = machine();
    let kept = machine.create("kept", &numbered(100));
    for _ in 0..50 {
        machine.fs.set_len(kept, 0).unwrap();
        machine.fs.write_at(kept, 0, &numbered(100)).unwrap();
        let file = machine.create("a", &[7; 100]);
        machine.fs.unlink(machine.fs.root(), b"a").unwrap();
        machine.fs.close(file).unwrap();
    }
    machine.cache.tidy().unwrap();
    assert_eq!(machine.cache.chunks(), 100_usize.div_ceil(64));
    assert!(machine.finish(kept) == numbered(100));
    assert_eq!(machine.cache.chunks(), 0);
}

#[test]
fn a_file_that_nobody_needs_ends_once_when_unmounted() {
    let machine = machine();
    let written = machine.create("written", &numbered(1));
    // In memory without a page, a user or a map: whoever tidies up ends it.
    let idle = machine.create("idle", &[]);
    for file in [written, idle] {
        machine.fs.close(file).unwrap();
    }
    let during = machine.clone();
    let others = Arc::new(Mutex::new(Vec::new()));
    let threads = others.clone();
    machine.disk.during_next_write(Box::new(move || {
        // It has looked which files there are, and waits for the first; meanwhile the second ends.
        let unmount = during.meanwhile(|machine| machine.fs.unmount().unwrap());
        let tidy = during.meanwhile(|machine| machine.cache.tidy().unwrap());
        threads.lock().unwrap().extend([unmount, tidy]);
    }));
    machine.cache.write_back(None).unwrap();
    for thread in others.lock().unwrap().drain(..) {
        thread.join().unwrap();
    }
    e2fsck(&machine.disk.contents()).unwrap();
    assert_eq!(machine.on_disk(written), numbered(1));
}

#[test]
fn what_is_stored_while_a_volume_closes_is_refused() {
    let machine = machine();
    let file = machine.create("a", &numbered(2));
    let during = machine.clone();
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    machine.disk.during_next_write(Box::new(move || {
        // Page 0 is on its way: nobody looks whether it is dirty again.
        let mut results = vec![during.fs.write_at(file, 0, &[9; 8])];
        let late = during
            .fs
            .create(during.fs.root(), b"late", FileKind::File, 0o644);
        results.push(during.fs.write_at(late.unwrap(), 0, &[9; 8]));
        let base = during.map(file, 0, 2);
        let stored = during.store(at(base, 1, 0), 9);
        *tell.lock().unwrap() = Some((results, stored));
    }));
    machine.fs.unmount().unwrap();
    let refused = Err(FsError::ReadOnly(ReadOnlyReason::Unmounted));
    let stored = Err(FaultError::Io(IoError::ReadOnly));
    assert_eq!(
        *told.lock().unwrap(),
        Some((vec![refused, refused], stored)),
        "acknowledged, and lost"
    );
    machine.manager.unmap_all().unwrap();
    e2fsck(&machine.disk.contents()).unwrap();
    assert_eq!(machine.on_disk(file), numbered(2));
}

// --- threads ---

/// What one of the threads does, again and again.
type Step = Box<dyn Fn(&Machine, &mut common::machine::Random) + Send>;

/// Several threads on one file of which each owns some bytes of each page, while others sync, evict and cut; `seconds`
/// long.
fn threads(seed: u64, seconds: u64) {
    const THREADS: u64 = 3;
    const KEPT: u64 = 150;
    const PAGES: u64 = 220;
    let machine = Machine::new(seed, 2 << 20, OPTIONS);
    machine.disk.set_latency(3);
    let file = machine.create("a", &vec![0; (KEPT * PAGE) as usize]);
    let base = machine.map(file, 0, PAGES);
    let is_over = Arc::new(AtomicBool::new(false));
    let work = Arc::new(AtomicU64::new(0));
    let run = |step: Step, seed: u64| {
        let (machine, is_over, work) = (machine.clone(), is_over.clone(), work.clone());
        spawn(move || {
            machine.adopt_thread();
            let mut random = common::machine::Random(seed);
            while !is_over.load(Ordering::Relaxed) {
                step(&machine, &mut random);
                work.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let mut all = Vec::new();
    let lanes: Vec<_> = (0..THREADS)
        .map(|_| Arc::new(Mutex::new(vec![0u8; KEPT as usize])))
        .collect();
    for (i, lane) in lanes.iter().enumerate() {
        let lane = lane.clone();
        let own = machine.map(file, 0, PAGES);
        let store = move |machine: &Machine, random: &mut common::machine::Random| {
            let page = random.below(KEPT);
            let byte = i as u64 * 7 + page % 5;
            let place = at(if random.below(2) == 0 { own } else { base }, page, byte);
            let mut lane = lane.lock().unwrap();
            let before = lane[page as usize];
            match random.below(3) {
                0 => assert_eq!(machine.load(place), Ok(before), "page {page}"),
                1 => {
                    let offset = page * PAGE + byte;
                    assert_eq!(machine.read(file, offset, 1), [before], "page {page}");
                }
                _ => {
                    let value = random.next() as u8;
                    if random.below(4) == 0 {
                        let offset = page * PAGE + byte;
                        machine.fs.write_at(file, offset, &[value]).unwrap();
                    } else {
                        machine.store(place, value).unwrap();
                    }
                    lane[page as usize] = value;
                }
            }
        };
        all.push(run(Box::new(store), seed * 100 + i as u64 + 1));
    }
    let disturb = move |machine: &Machine, random: &mut common::machine::Random| {
        match random.below(7) {
            0 => machine.cache.drop_clean(),
            1 => drop(machine.cache.reclaim(1 + random.below(60))),
            2 => machine.cache.write_back(None).unwrap(),
            3 => machine.fs.sync_file(file).unwrap(),
            4 => {
                let len = KEPT * PAGE + random.below((PAGES - KEPT) * PAGE);
                machine.fs.set_len(file, len).unwrap();
            }
            5 => {
                let first = random.below(KEPT);
                machine
                    .sync(at(base, first, 0), 1 + random.below(PAGES - first))
                    .unwrap();
            }
            _ => {
                // Pages that come and go.
                let page = KEPT + random.below(PAGES - KEPT);
                match machine.store(at(base, page, 0), 1) {
                    Ok(()) | Err(FaultError::PastEnd) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    };
    all.push(run(Box::new(disturb), seed * 100 + 50));
    all.push(run(Box::new(disturb), seed * 100 + 51));
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && all.iter().all(|thread| !thread.is_finished()) {
        sleep(Duration::from_millis(10));
    }
    is_over.store(true, Ordering::Relaxed);
    for thread in all {
        thread.join().unwrap();
    }
    println!("seed {seed}: {} operations", work.load(Ordering::Relaxed));
    let on_disk = machine.finish(file);
    for (i, lane) in lanes.iter().enumerate() {
        for (page, value) in lane.lock().unwrap().iter().enumerate() {
            let byte = i * 7 + page % 5;
            assert_eq!(on_disk[page * PAGE_SIZE + byte], *value, "page {page}");
        }
    }
}

#[test]
fn maps_that_become_one_meanwhile_are_write_protected() {
    let machine = machine();
    let file = machine.create("a", &numbered(8));
    let handle = machine.cached(file).handle();
    let key = FileKey::of(Arc::as_ptr(&handle));
    let one = machine.map(file, 0, 4);
    let two = at(one, 4, 0);
    let advise = |machine: &Machine, pattern| {
        let advice = Advice::Pattern(pattern);
        machine.manager.advise(one, 4 * PAGE, advice).unwrap();
    };
    advise(&machine, Pattern::Random);
    let placement = Placement::FixedNoReplace(two);
    let protection = Protection::READ_WRITE;
    let length = 4 * PAGE;
    machine
        .manager
        .map_file(
            handle,
            placement,
            length,
            protection,
            length,
            Sharing::Shared,
        )
        .unwrap();
    assert_eq!(machine.manager.len(), 2);
    // Alike for a moment, and not alike again, over and over.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                advise(&machine, Pattern::Normal);
                advise(&machine, Pattern::Random);
            }
        });
        let missed = (0..100_000).filter(|_| {
            machine.store(one, 1).unwrap();
            machine.store(two, 1).unwrap();
            machine.manager.write_protect(key, 0..8);
            let stores = |address| {
                machine
                    .manager
                    .with_table(|_| machine.mmu.store_byte(address, 0).is_ok())
            };
            stores(one) || stores(two)
        });
        let missed = missed.count();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(missed, 0, "stores pass that nobody notes");
    });
}

#[test]
fn threads_that_store_sync_evict_and_cut_lose_nothing() {
    for seed in 1..=campaign("PINFOLD_SEEDS", 2) {
        threads(seed, campaign("PINFOLD_CAMPAIGN", 2));
    }
}

#[test]
fn pages_that_are_used_again_outlive_a_scan_also_beside_the_ones_touched() {
    const USED: u64 = 192;
    let machine = Machine::on(mkfs(16 << 10, OPTIONS, None), 1, 2 << 20);
    let [used, scanned] = [("used", USED), ("scanned", 700)].map(|(name, pages)| {
        let file = machine.cold(name, &vec![1; (pages * PAGE) as usize]);
        (file, machine.map(file, 0, pages), pages)
    });
    let go_through = |(_, base, _): (FileId, VirtAddr, u64), pages: std::ops::Range<u64>| {
        pages.for_each(|page| assert_eq!(machine.load(at(base, page, 0)), Ok(1)));
    };
    // A fault enters most of them beside the one that was touched.
    let mut evicted = 0;
    for round in 0..20 {
        go_through(used, 0..USED);
        let from = round * 140 % 700;
        go_through(scanned, from..from + 140);
        let residence = machine.cached(used.0).residence(0..USED);
        let absent = residence.iter().filter(|page| **page == Residence::Absent);
        if round > 5 {
            evicted += absent.count();
        }
    }
    assert_eq!(evicted, 0, "evicted, though in use");
    assert!(machine.cache.counts().evicted > 500);
    machine.finish(used.0);
}

/// A name that comes to mean another file while it is removed.
#[test]
fn a_name_replaced_while_it_is_removed_leaves_no_file_behind() {
    let machine = Machine::new(1, 16 << 20, &["-b", "4096"]);
    let root = machine.fs.root();
    for _ in 0..1000 {
        for name in ["x", "y"] {
            let file = machine.create(name, &[7; 5000]);
            machine.fs.close(file).unwrap();
        }
        let y = machine.fs.lookup(root, b"y").unwrap();
        let barrier = Arc::new(Barrier::new(2));
        let (other, its) = (machine.clone(), barrier.clone());
        let thread = spawn(move || {
            other.adopt_thread();
            its.wait();
            other.fs.rename(root, b"y", root, b"x").unwrap();
        });
        barrier.wait();
        machine.fs.unlink(root, b"x").unwrap();
        thread.join().unwrap();
        if machine.fs.unlink(root, b"x") == Err(FsError::NotFound) {
            // Renamed first, then unlinked: nothing is left of it.
            machine.cache.tidy().unwrap();
            assert!(machine.cache.find(machine.fs.volume(), y).is_none());
        }
    }
}
