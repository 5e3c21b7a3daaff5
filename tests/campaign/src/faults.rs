//! Requests that fail, one by one: every read, write and flush of a workload, once and from then on; and a disk that
//! stalls.
//!
//! The machine must end by itself, say what went wrong, do its next command, and leave a disk that is sound and holds
//! what was acknowledged.

use crate::Options;
use crate::disk::Faults;
use crate::durability::{fresh_disk, keep, workload};
use crate::history::History;
use crate::judge;
use crate::qemu::Ended;
use std::path::Path;
use std::time::Duration;

/// What can be given, and what is meant if it is not.
pub const OPTIONS: [(&str, u64); 4] = [("first", 1), ("steps", 120), ("points", 8), ("stalls", 1)];

/// What a request that fails is, and for how long requests of its kind go on failing.
const KINDS: [(&str, u64); 6] = [
    ("read", 1),
    ("read", u64::MAX),
    ("write", 1),
    ("write", u64::MAX),
    ("flush", 1),
    ("flush", u64::MAX),
];

/// Shorter and longer than a disk may take.
const STALLS: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(45)];

/// How the console says that something went wrong: the program, the one that starts it, the report of a crash, the kernel.
const TOLD: [&str; 4] = ["workload: step", "run: workload: ", "*** ", "pinfold: "];

/// Runs the campaign; its summary.
pub fn run(kernel: &Path, options: &Options) -> Result<String, String> {
    let (seed, steps) = (options.get("first"), options.get("steps"));
    let history = History::new(seed, steps);
    let served = boot(kernel, seed, steps, Faults::default())?.disk.served;
    let (mut injected, mut failed, mut survived) = (0, 0, 0);
    for (kind, (name, lasts)) in KINDS.into_iter().enumerate() {
        let count = served[kind / 2];
        let points = options.get("points").min(count).max(1);
        for point in 0..points {
            let number = point * count / points;
            let mut faults = Faults::default();
            let range = number..number.saturating_add(lasts);
            match name {
                "read" => faults.reads = range,
                "write" => faults.writes = range,
                _ => faults.flushes = range,
            }
            let ended = boot(kernel, seed, steps, faults)?;
            failed += ended.disk.failed;
            injected += 1;
            survived += u64::from(ended.status == Some(0));
            judge(&history, steps, ended)
                .map_err(|error| format!("{name} {number}, {lasts} of them failing: {error}"))?;
        }
    }
    let all: u64 = served.iter().sum();
    for stall in STALLS.into_iter().take(options.get("stalls") as usize) {
        let faults = Faults {
            stall: Some((all / 2, stall)),
            ..Faults::default()
        };
        let ended = boot(kernel, seed, steps, faults)?;
        judge(&history, steps, ended).map_err(|error| format!("a stall of {stall:?}: {error}"))?;
    }
    Ok(format!(
        "of {served:?} reads, writes and flushes {injected} were made to fail, once or from then on: {failed} errors; \
         {survived} workloads went on, the others said why not; the console lived, nothing acknowledged was lost, \
         e2fsck satisfied each time"
    ))
}

fn boot(kernel: &Path, seed: u64, steps: u64, faults: Faults) -> Result<Ended, String> {
    // The words at the end show that the console takes commands.
    let command = format!("run workload {seed} {steps} vdb; mem");
    let mut boot = workload(kernel, &command, fresh_disk(seed), seed);
    boot.faults = faults;
    boot.run()
}

/// Whether the machine ended as it should, and left what it should.
pub fn judge(history: &History, steps: u64, ended: Ended) -> Result<(), String> {
    let Ended {
        text,
        status,
        is_hung,
        disk,
    } = ended;
    let wrong = |what: &str| Err(format!("{what}; it said:\n{text}"));
    if is_hung || status.is_none() {
        return wrong("the machine hung");
    }
    if !text.contains("page cache") {
        return wrong("the console took no command afterwards");
    }
    let is_done = text.contains("are done");
    if !is_done && !TOLD.iter().any(|words| text.contains(words)) {
        return wrong("an error was not told");
    }
    let acknowledged = disk.record.acknowledged(disk.record.events.len());
    let range = match (is_done && status == Some(0), acknowledged) {
        (true, _) => Some((steps, steps)),
        (_, Some(step)) => Some((step, history.under_way(step))),
        _ => None,
    };
    for (who, tree) in [
        ("the library", judge::recovered_by_us(disk.image.clone())),
        ("e2fsck", judge::recovered_by_e2fsck(&disk.image)),
    ] {
        let checked = tree.and_then(|tree| match range {
            Some((acknowledged, last)) => history.check(&tree, acknowledged, last),
            None => Ok(()),
        });
        if let Err(error) = checked {
            let kept = keep(&disk.image, &disk.record);
            return wrong(&format!("recovered by {who}, image in {kept}: {error}"));
        }
    }
    Ok(())
}
