//! What the recorded events say is what the cache has done. A process has one ring: all is one test.

#![cfg(not(target_os = "none"))]

mod common;

use common::machine::{Machine, PAGE, Random};
use pinfold::fs::{FileId, FileSystem};
use pinfold::mm::addr::VirtAddr;
use pinfold::mm::trace::{self, Kind, Name, Ring};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

const PAGES: u64 = 300;

fn ticks() -> u64 {
    static NOW: AtomicU64 = AtomicU64::new(0);
    NOW.fetch_add(1, Ordering::Relaxed)
}

/// What is in memory of a file.
fn present(machine: &Machine, file: FileId) -> BTreeSet<u64> {
    let file = machine.cached(file);
    file.present()
        .flat_map(|present| {
            (0..64)
                .filter(move |i| present.resident >> i & 1 != 0)
                .map(move |i| present.first + i)
        })
        .collect()
}

/// Loads, stores, reads and writes in no order, cuts and growth, in less memory than the files take.
fn work(machine: &Machine, files: &[(FileId, VirtAddr)], random: &mut Random) {
    let (file, base) = files[random.below(files.len() as u64) as usize];
    let page = random.below(PAGES);
    let address = VirtAddr(base.0 + page * PAGE);
    match random.below(100) {
        0..40 => drop(machine.load(address)),
        40..70 => drop(machine.store(address, 1)),
        70..80 => drop(machine.read(file, page * PAGE, 3 * PAGE as usize)),
        80..96 => machine.fs.write_at(file, page * PAGE, &[7; 9000]).unwrap(),
        96..98 => machine.fs.set_len(file, page * PAGE).unwrap(),
        98 => machine.fs.sync_file(file).unwrap(),
        _ => machine.cache.drop_clean(),
    }
}

#[test]
fn events_tell_what_is_in_memory_and_who_asked() {
    let machine = Machine::new(1, 2 << 20, &["-b", "4096"]);
    let mut random = Random(11);
    let files: Vec<(FileId, VirtAddr)> = ["a", "b"]
        .map(|name| {
            let file = machine.create(name, &vec![1; (PAGES * PAGE) as usize]);
            (file, machine.map(file, 0, PAGES))
        })
        .to_vec();
    machine.fs.sync().unwrap();
    machine.cache.drop_clean();

    trace::start(Ring::new(64 << 20, ticks).unwrap());
    let before = machine.cache.counts();
    for _ in 0..20_000 {
        work(&machine, &files, &mut random);
    }
    let counts = machine.cache.counts();
    let removed = machine.create("c", b"not for long");
    let number = machine.cached(removed).number();
    machine.fs.unlink(machine.fs.root(), b"c").unwrap();
    machine.fs.close(removed).unwrap();
    assert!(trace::stop(|add| {
        for file in machine.cache.files(None) {
            for present in file.present() {
                add(Kind::Here, file.number(), present.first, present.resident);
                add(Kind::HereDirty, file.number(), present.first, present.dirty);
            }
        }
    }));

    let mut resident: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    let mut here = resident.clone();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut text = String::new();
    trace::with_ring(|ring| {
        assert_eq!(ring.overwritten(), 0);
        assert!(ring.ended().iter().any(|file| file.number == number));
        let names: [Name; 0] = [];
        ring.dump(&names, |ticks| ticks, &mut text).unwrap();
    });
    let mut last = 0;
    for line in text.lines().skip(2) {
        let words: Vec<&str> = line.split(' ').collect();
        let [time, kind, file, first, count @ ..] = &words[..] else {
            assert_eq!(words[0], "end");
            continue;
        };
        let [time, first] = [time, first].map(|word| word.parse::<u64>().unwrap());
        assert!(time >= last);
        last = time;
        let file: u32 = file.parse().unwrap();
        let count: u64 = count.first().map_or(1, |count| count.parse().unwrap());
        *sums.entry(kind).or_default() += count;
        let pages = first..first + count;
        match *kind {
            // Each page comes and goes in turn.
            "fill" => {
                pages.for_each(|page| assert!(resident.entry(file).or_default().insert(page)))
            }
            "evict" | "drop" => {
                pages.for_each(|page| assert!(resident.entry(file).or_default().remove(&page)));
            }
            "here" => here.entry(file).or_default().extend(pages),
            _ => {}
        }
    }
    for (file, _) in &files {
        let number = machine.cached(*file).number();
        assert_eq!(resident[&number], present(&machine, *file));
        assert_eq!(
            here.get(&number),
            resident.get(&number).filter(|pages| !pages.is_empty())
        );
    }
    let sum = |kinds: &[&str]| kinds.iter().filter_map(|kind| sums.get(kind)).sum::<u64>();
    assert_eq!(sum(&["evict"]), counts.evicted - before.evicted);
    assert_eq!(sum(&["clean"]), counts.written - before.written);
    assert_eq!(sum(&["ahead"]), counts.read_ahead - before.read_ahead);
    for kind in [
        "miss", "ahead", "fill", "read", "write", "flush", "clean", "evict", "drop", "dirty",
    ] {
        assert!(sum(&[kind]) > 0, "no {kind}");
    }
}
