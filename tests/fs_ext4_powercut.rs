//! The power fails at any write of a workload: recovered by us or by e2fsck, the file system is whole, and what was
//! acknowledged is there.
//!
//! Writes since the last flush are there or not, in any order, and torn between sectors.
//! `PINFOLD_CUTS=2000 PINFOLD_SEEDS=5 cargo test --release --test fs_ext4_powercut` is the long run: cuts for each of
//! the option sets and seeds.

mod common;

use common::model::Model;
use common::{Node, Scratch, Tree, campaign, check_file, clock, e2fsck, mkfs, read_tree, run};
use pinfold::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions};
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::sim_disk::{Event, Random, SimDisk, crash_image};
use pinfold::fs::{FileKind, FileSystem};
use std::sync::Arc;

const SETS: [(&str, u64, &[&str]); 5] = [
    ("1k", 6 * 1024, &["-b", "1024"]),
    ("4k", 16 * 1024, &["-b", "4096"]),
    (
        "no-metadata-csum",
        6 * 1024,
        &["-b", "1024", "-O", "^metadata_csum"],
    ),
    (
        "orphan-file",
        8 * 1024,
        &["-b", "2048", "-O", "orphan_file"],
    ),
    (
        "ext3",
        6 * 1024,
        &[
            "-b",
            "1024",
            "-O",
            "^extents,^64bit,^metadata_csum,^flex_bg,^huge_file",
        ],
    ),
];

/// A workload that ran: the disk before it, what happened, and what had been acknowledged at each mark.
struct Run {
    base: Vec<u8>,
    record: Vec<Event>,
    acknowledged: Vec<Tree>,
    /// How much had happened when the unmount began.
    unmount: usize,
}

fn options() -> MountOptions {
    // Little memory, so that transactions are small and checkpoints many.
    let limits = MetadataLimits {
        cached: 64,
        transaction: 48,
        committed: 60,
    };
    MountOptions {
        access: Access::ReadWrite,
        clock,
        limits,
    }
}

fn workload(kib: u64, mkfs_options: &[&str], seed: u64) -> Run {
    let base = mkfs(kib, mkfs_options, None);
    let disk = Arc::new(SimDisk::new(base.clone(), seed));
    let fs = Ext4::mount(disk.clone(), options()).unwrap().file_system;
    let mut model = Model::new(seed, fs.root(), disk.clone());
    model.set_max_len(60_000);
    let mut acknowledged = vec![Tree::new()];
    let mut random = Random::new(seed);
    for _ in 0..250 {
        model.step(&fs);
        if random.below(9) == 0 {
            if random.below(3) == 0 {
                fs.trim().unwrap();
            }
            fs.sync_file(fs.root()).unwrap();
            disk.mark(acknowledged.len() as u64);
            acknowledged.push(model.tree());
        }
    }
    fs.sync().unwrap();
    disk.mark(acknowledged.len() as u64);
    acknowledged.push(model.tree());
    let unmount = disk.record_len();
    fs.unmount().unwrap();
    Run {
        unmount,
        base,
        record: disk.record(),
        acknowledged,
    }
}

/// What must be there at `cut`: what was acknowledged before and is the same at the next acknowledgement.
fn certain(run: &Run, cut: usize) -> Tree {
    let mark = run.record[..cut]
        .iter()
        .rev()
        .find_map(|event| match event {
            Event::Mark(mark) => Some(*mark as usize),
            _ => None,
        });
    let before = &run.acknowledged[mark.unwrap_or(0)];
    let after = run
        .acknowledged
        .get(mark.unwrap_or(0) + 1)
        .unwrap_or(before);
    before
        .iter()
        .filter(|(path, node)| after.get(*path) == Some(node))
        .map(|(p, n)| (p.clone(), n.clone()))
        .collect()
}

fn recovered_by_us(image: Vec<u8>, certain: &Tree) -> Result<(), String> {
    let disk = Arc::new(RamDisk::new(image));
    let fs = Ext4::mount(disk.clone(), options())
        .map_err(|error| format!("mount: {error}"))?
        .file_system;
    let tree = read_tree(&fs).map_err(|error| format!("read: {error}"))?;
    compare(&tree, certain)?;
    fs.unmount().map_err(|error| format!("unmount: {error}"))?;
    e2fsck(&disk.contents())
}

fn recovered_by_e2fsck(image: Vec<u8>, certain: &Tree) -> Result<(), String> {
    replayed_by_e2fsck(&["-y", "-E", "journal_only"], image, certain)
}

fn replayed_by_e2fsck(how: &[&str], image: Vec<u8>, certain: &Tree) -> Result<(), String> {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    // Who trusts the flag that says whether to replay the log must be right.
    let needs_recovery = image[1024 + 0x60] & 4 != 0;
    std::fs::write(&path, image).unwrap();
    if needs_recovery {
        run("e2fsck", &[how, &[path.to_str().unwrap()]].concat());
    }
    check_file(&path)?;
    let disk = Arc::new(RamDisk::read_only(std::fs::read(&path).unwrap()));
    let fs = Ext4::mount(disk, options())
        .map_err(|error| format!("mount: {error}"))?
        .file_system;
    compare(
        &read_tree(&fs).map_err(|error| format!("read: {error}"))?,
        certain,
    )
}

fn compare(tree: &Tree, certain: &Tree) -> Result<(), String> {
    for (path, node) in certain {
        match tree.get(path) {
            Some(found) if found == node => {}
            found => {
                let kind = match (found, node) {
                    (None, _) => "is missing".to_string(),
                    (Some(Node::File(found)), Node::File(node)) => {
                        let at = found.iter().zip(node).position(|(a, b)| a != b);
                        format!(
                            "differs: {} bytes of {}, first at {at:?}",
                            found.len(),
                            node.len()
                        )
                    }
                    _ => "differs".to_string(),
                };
                return Err(format!(
                    "acknowledged {:?} {kind}",
                    String::from_utf8_lossy(path)
                ));
            }
        }
    }
    Ok(())
}

/// Points to cut at: flush boundaries, the last events with the unmount among them, the mount, and anywhere.
fn cuts(run: &Run, count: u64, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let len = run.record.len();
    let flushes: Vec<_> = (0..len)
        .filter(|&i| run.record[i] == Event::Flush)
        .collect();
    (0..count)
        .map(|i| match i % 4 {
            0 => flushes[random.below(flushes.len() as u64) as usize] + random.below(2) as usize,
            1 => len - random.below(40.min(len as u64)) as usize,
            2 => random.below(8) as usize,
            _ => random.below(len as u64 + 1) as usize,
        })
        .collect()
}

#[test]
fn a_power_cut_anywhere_loses_nothing_acknowledged() {
    let count = campaign("PINFOLD_CUTS", 40);
    for seed in 0..campaign("PINFOLD_SEEDS", 1) {
        for (name, kib, mkfs_options) in SETS {
            let run = workload(kib, mkfs_options, seed);
            for (i, cut) in cuts(&run, count, seed).into_iter().enumerate() {
                let image = crash_image(&run.base, &run.record, cut, i as u64);
                let certain = certain(&run, cut);
                let place = format!(
                    "{name}, seed {seed}, cut {i} at {cut} of {}",
                    run.record.len()
                );
                if let Err(report) = recovered_by_us(image.clone(), &certain) {
                    panic!("{place}, recovered by us: {report}");
                }
                if let Err(report) = recovered_by_e2fsck(image, &certain) {
                    panic!("{place}, recovered by e2fsck: {report}");
                }
            }
        }
    }
}

#[test]
fn a_power_cut_at_any_point_of_mount_and_unmount_loses_nothing() {
    for (name, kib, mkfs_options) in [SETS[0], SETS[4]] {
        let run = workload(kib, mkfs_options, 3);
        let (unmount, len) = (run.unmount, run.record.len());
        for cut in (0..6).chain(unmount..unmount + 8).chain(len - 12..=len) {
            let image = crash_image(&run.base, &run.record, cut, cut as u64);
            let certain = certain(&run, cut);
            let ours = recovered_by_us(image.clone(), &certain);
            let theirs = recovered_by_e2fsck(image, &certain);
            for result in [ours, theirs] {
                result
                    .map_err(|report| format!("{name}, cut at {cut} of {len}: {report}"))
                    .unwrap();
            }
        }
    }
}

/// The positive control: if flushes were left out, and durable writes were not, this test's checks would notice.
#[test]
fn a_build_without_flushes_is_caught() {
    let (_, kib, mkfs_options) = SETS[0];
    let mut run = workload(kib, mkfs_options, 7);
    run.record.retain(|event| *event != Event::Flush);
    for event in &mut run.record {
        if let Event::Write { durability, .. } = event {
            *durability = pinfold::fs::block::Durability::Cached;
        }
    }
    let is_caught = (0..30).any(|seed| {
        let cut = run.record.len() - seed as usize * run.record.len() / 40;
        let image = crash_image(&run.base, &run.record, cut, seed);
        recovered_by_us(image, &certain(&run, cut)).is_err()
    });
    assert!(is_caught);
}

/// The finer control: only the flush before each commit block is left out.
#[test]
fn a_build_without_the_flush_before_the_commit_block_is_caught() {
    let (_, kib, mkfs_options) = SETS[2];
    let mut run = workload(kib, mkfs_options, 8);
    let is_commit = |event: &Event| match event {
        Event::Write { bytes, .. } => bytes[..8] == [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2],
        _ => false,
    };
    let events = std::mem::take(&mut run.record);
    for (i, event) in events.iter().enumerate() {
        if !(*event == Event::Flush && events.get(i + 1).is_some_and(is_commit)) {
            run.record.push(event.clone());
        }
    }
    let commits: Vec<_> = (0..run.record.len())
        .filter(|&i| is_commit(&run.record[i]))
        .collect();
    let is_caught = commits.iter().enumerate().any(|(seed, commit)| {
        let image = crash_image(&run.base, &run.record, commit + 1, seed as u64);
        recovered_by_us(image, &certain(&run, commit + 1)).is_err()
    });
    assert!(is_caught);
}

#[test]
fn blocks_of_a_removed_file_are_not_reused_before_the_removal_is_durable() {
    let base = mkfs(6 * 1024, &["-b", "1024"], None);
    let disk = Arc::new(SimDisk::new(base.clone(), 1));
    let fs = Ext4::mount(disk.clone(), options()).unwrap().file_system;
    let create = |name: &[u8]| fs.create(fs.root(), name, FileKind::File, 0o644).unwrap();
    let (removed, cut, replaced) = (create(b"removed"), create(b"cut"), create(b"replaced"));
    for file in [removed, cut, replaced] {
        fs.write_at(file, 0, &[1; 50_000]).unwrap();
    }
    create(b"new");
    fs.sync().unwrap();
    fs.unlink(fs.root(), b"removed").unwrap();
    fs.set_len(cut, 0).unwrap();
    fs.rename(fs.root(), b"new", fs.root(), b"replaced")
        .unwrap();
    for i in 0..10 {
        let file = create(&[b'0' + i]);
        fs.write_at(file, 0, &[2; 30_000]).unwrap();
    }
    // Nothing of this is committed; its data is on the medium all the same.
    let record = disk.record();
    let last_flush = record
        .iter()
        .rposition(|event| *event == Event::Flush)
        .unwrap();
    assert!(record.len() - last_flush > 10);
    let whole = Node::File(vec![1; 50_000]);
    let certain =
        [&b"/removed"[..], b"/cut", b"/replaced"].map(|path| (path.to_vec(), whole.clone()));
    recovered_by_us(disk.contents(), &certain.into()).unwrap();
}

#[test]
fn what_is_discarded_was_removed_before() {
    let base = mkfs(6 * 1024, &["-b", "1024"], None);
    let disk = Arc::new(SimDisk::new(base.clone(), 1));
    let fs = Ext4::mount(disk.clone(), options()).unwrap().file_system;
    let (name, data) = (&b"removed"[..], vec![1; 50_000]);
    let file = fs.create(fs.root(), name, FileKind::File, 0o644).unwrap();
    fs.write_at(file, 0, &data).unwrap();
    fs.sync().unwrap();
    let before = disk.record_len();
    fs.unlink(fs.root(), name).unwrap();
    fs.trim().unwrap();
    let record = disk.record();
    let mut states = [0, 0];
    for cut in before..=record.len() {
        for seed in 0..5 {
            let image = Arc::new(RamDisk::new(crash_image(&base, &record, cut, seed)));
            let fs = Ext4::mount(image, options()).unwrap().file_system;
            let found = read_tree(&fs).unwrap().remove(&b"/removed"[..]);
            assert!(found.is_none() || found == Some(Node::File(data.clone())));
            states[usize::from(found.is_none())] += 1;
        }
    }
    assert!(states[0] > 0 && states[1] > 0, "{states:?}");
}

#[test]
fn a_long_cut_goes_on_after_a_power_cut_in_its_midst() {
    for (name, kib, mkfs_options) in SETS {
        // So small that every step of the cut is a transaction of its own.
        let limits = MetadataLimits {
            transaction: 6,
            ..options().limits
        };
        let each_step_commits = MountOptions {
            limits,
            ..options()
        };
        let base = mkfs(kib, mkfs_options, None);
        let disk = Arc::new(SimDisk::new(base.clone(), 1));
        let fs = Ext4::mount(disk.clone(), each_step_commits)
            .unwrap()
            .file_system;
        let create = |name: &[u8]| fs.create(fs.root(), name, FileKind::File, 0o644).unwrap();
        let (cut, removed) = (create(b"cut"), create(b"removed"));
        for i in 0..250 {
            fs.write_at(cut, i * 8192, &[1; 100]).unwrap();
            fs.write_at(removed, i * 8192, &[2; 100]).unwrap();
        }
        fs.sync().unwrap();
        let before = disk.record_len();
        fs.set_len(cut, 100).unwrap();
        fs.unlink(fs.root(), b"removed").unwrap();
        fs.sync().unwrap();
        let record = disk.record();
        let points: Vec<_> = (before..=record.len()).collect();
        let step = points.len().div_ceil(14);
        for point in points.into_iter().step_by(step) {
            let image = crash_image(&base, &record, point, point as u64);
            let place = format!("{name}, cut at {point} of {before}..{}", record.len());
            recovered_by_us(image.clone(), &Tree::new())
                .map_err(|report| format!("{place}: {report}"))
                .unwrap();
            // Not the log alone: -p also goes on with orphans, and looks at nothing else.
            replayed_by_e2fsck(&["-p"], image, &Tree::new())
                .map_err(|report| format!("{place}: {report}"))
                .unwrap();
        }
    }
}
