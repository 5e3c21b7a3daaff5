//! Power cuts at any point of a recorded run, and QEMU killed at any moment.

use crate::Options;
use crate::common::{Tree, mkfs};
use crate::disk::Faults;
use crate::history::History;
use crate::judge;
use crate::qemu::{Boot, Ended};
use crate::record::{Event, Record};
use pinfold::fs::sim_disk::Random;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What can be given, and what is meant if it is not.
pub const OPTIONS: [(&str, u64); 7] = [
    ("first", 1),
    ("seeds", 1),
    ("steps", 400),
    ("cuts", 100),
    ("boots", 2),
    ("kills", 10),
    ("jobs", 1),
];

/// How the disks are made, in turn.
pub const SETS: [&[&str]; 4] = [
    &["-b", "4096"],
    &["-b", "1024"],
    &["-b", "4096", "-O", "orphan_file"],
    &[
        "-b",
        "2048",
        "-O",
        "^extents,^64bit,^metadata_csum,^flex_bg,^huge_file",
    ],
];

/// KiB of a disk.
pub const SIZE: u64 = 24 << 10;

/// So that pages are also evicted for want of memory.
const MEMORY: [&str; 2] = ["64M", "12M"];

/// How long a killed machine may have run: longer than its workload takes on an idle PC.
const LIFE_MS: u64 = 1500;

#[derive(Default)]
struct Counts {
    cuts: usize,
    at_flushes: usize,
    boots: usize,
    kills: usize,
    acknowledged: u64,
}

/// Runs the campaign; its summary.
pub fn run(kernel: &Path, options: &Options) -> Result<String, String> {
    let mut counts = Counts::default();
    let first = options.get("first");
    for seed in first..first + options.get("seeds") {
        one_seed(kernel, options, seed, &mut counts)
            .map_err(|error| format!("seed {seed}: {error}"))?;
    }
    kills(kernel, options, &mut counts)?;
    let Counts {
        cuts,
        at_flushes,
        boots,
        kills,
        acknowledged,
    } = counts;
    Ok(format!(
        "{cuts} power cuts, {at_flushes} of them at flushes, {boots} of them recovered by the image in QEMU too; QEMU killed \
         {kills} times; {acknowledged} acknowledgements; nothing lost, e2fsck satisfied each time"
    ))
}

/// The boot of a workload on a disk without faults.
pub fn workload<'a>(kernel: &'a Path, command: &'a str, disk: Vec<u8>, seed: u64) -> Boot<'a> {
    Boot {
        kernel,
        memory: MEMORY[seed as usize / SETS.len() % MEMORY.len()],
        command,
        disk,
        faults: Faults::default(),
        seed,
        killed_after: None,
    }
}

/// A disk as it is made for a seed.
pub fn fresh_disk(seed: u64) -> Vec<u8> {
    mkfs(SIZE, SETS[seed as usize % SETS.len()], None)
}

fn one_seed(
    kernel: &Path,
    options: &Options,
    seed: u64,
    counts: &mut Counts,
) -> Result<(), String> {
    let steps = options.get("steps");
    let command = format!("run workload {seed} {steps} vdb");
    let ended = workload(kernel, &command, fresh_disk(seed), seed).run()?;
    let history = History::new(seed, steps);
    let Ended {
        text, status, disk, ..
    } = ended;
    if status != Some(0) {
        return Err(format!("the workload ended with {status:?}:\n{text}"));
    }
    // Nothing went wrong: everything is there, and nothing is to be recovered.
    judge::sound(&disk.image)?;
    History::with_power_off(seed, steps).check(&judge::read(disk.image)?, steps, steps)?;

    let record = disk.record;
    let is_mark = |event: &&Event| matches!(event, Event::Mark(_));
    counts.acknowledged += record.events.iter().filter(is_mark).count() as u64;
    let cuts = cuts(&record, options.get("cuts"), seed);
    let is_flush = |at: usize| matches!(record.events.get(at), Some(Event::Flush { .. }));
    counts.at_flushes += cuts
        .iter()
        .filter(|at| is_flush(**at) || **at > 0 && is_flush(**at - 1))
        .count();
    counts.cuts += cuts.len();
    let boots = options.get("boots") as usize;
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), String> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(&cut) = cuts.get(number) else {
                return Ok(());
            };
            let image = || record.crash(cut, seed << 32 | number as u64);
            // Some of those at flushes, some of those elsewhere.
            let is_booted = number * boots / cuts.len() != (number + 1) * boots / cuts.len();
            one_cut(
                kernel,
                &history,
                record.acknowledged(cut),
                image(),
                is_booted,
            )
            .map_err(|error| {
                let kept = keep(&image(), &record);
                format!(
                    "cut {number} at {cut} of {}, image in {kept}: {error}",
                    record.events.len()
                )
            })?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.get("jobs").max(1))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a worker has ended")?)
    })?;
    counts.boots += boots.min(cuts.len());
    Ok(())
}

/// Before and after every flush, as far as they are asked for, then anywhere.
fn cuts(record: &Record, count: u64, seed: u64) -> Vec<usize> {
    let count = count as usize;
    let flushes = record
        .events
        .iter()
        .enumerate()
        .filter(|(_, event)| matches!(event, Event::Flush { .. }));
    let mut at_flushes: Vec<usize> = flushes.flat_map(|(at, _)| [at, at + 1]).collect();
    let mut random = Random::new(seed);
    // At most two thirds, so that there are always some elsewhere.
    while at_flushes.len() > count * 2 / 3 {
        at_flushes.swap_remove(random.below(at_flushes.len() as u64) as usize);
    }
    let rest = count - at_flushes.len();
    let anywhere = (0..rest).map(|_| random.below(record.events.len() as u64 + 1) as usize);
    let mut cuts: Vec<usize> = at_flushes.into_iter().chain(anywhere).collect();
    cuts.sort_unstable();
    cuts
}

fn one_cut(
    kernel: &Path,
    history: &History,
    acknowledged: Option<u64>,
    image: Vec<u8>,
    is_booted: bool,
) -> Result<(), String> {
    let check = |who: &str, tree: Result<Tree, String>| {
        let checked = tree.and_then(|tree| match acknowledged {
            Some(step) => history.check(&tree, step, history.under_way(step)),
            None => Ok(()),
        });
        checked.map_err(|error| {
            format!("acknowledged step {acknowledged:?}, recovered by {who}: {error}")
        })
    };
    check("e2fsck", judge::recovered_by_e2fsck(&image))?;
    if is_booted {
        check("the image", recovered_by_boot(kernel, image.clone()))?;
    }
    check("the library", judge::recovered_by_us(image))
}

/// What is there after the image has booted on it and powered off.
fn recovered_by_boot(kernel: &Path, image: Vec<u8>) -> Result<Tree, String> {
    let Ended {
        text, status, disk, ..
    } = workload(kernel, "ls /", image, 0).run()?;
    if status != Some(0) {
        return Err(format!("ended with {status:?}:\n{text}"));
    }
    judge::sound(&disk.image)?;
    judge::read(disk.image)
}

/// QEMU is killed, the image recovers, and works on.
fn kills(kernel: &Path, options: &Options, counts: &mut Counts) -> Result<(), String> {
    let first = options.get("first");
    let steps = options.get("steps");
    let mut random = Random::new(first);
    let mut image = fresh_disk(first);
    for seed in first..first + options.get("kills") {
        let history = History::new(seed, steps);
        let command = format!("run workload {seed} {steps} vdb");
        let mut boot = workload(kernel, &command, image, seed);
        boot.killed_after = Some(Duration::from_millis(random.below(LIFE_MS)));
        let Ended {
            text, status, disk, ..
        } = boot.run()?;
        if !matches!(status, None | Some(0)) {
            return Err(format!(
                "seed {seed} ended with {status:?} before it was killed:\n{text}"
            ));
        }
        counts.kills += usize::from(status.is_none());
        let acknowledged = disk.record.acknowledged(disk.record.events.len());
        counts.acknowledged += acknowledged.map_or(0, |_| 1);
        one_cut(kernel, &history, acknowledged, disk.image.clone(), false).map_err(|error| {
            format!(
                "killed with seed {seed}, image in {}: {error}",
                keep(&disk.image, &disk.record)
            )
        })?;
        // The next boot recovers it.
        image = disk.image;
    }
    Ok(())
}

/// Keeps an image to look at, and what had been done to it; where.
pub fn keep(image: &[u8], record: &Record) -> String {
    let path = std::env::temp_dir().join(format!("pinfold-campaign-{}.img", std::process::id()));
    let kept = std::fs::write(&path, image)
        .and_then(|()| std::fs::write(path.with_extension("txt"), record.to_string()));
    match kept {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("no file ({error})"),
    }
}
