//! Frames that are refused, one by one: of all requests for frames of a workload the N-th, for every N.
//!
//! What is asked of a machine whose requests to the disk fail is asked here too.

use crate::Options;
use crate::durability::{fresh_disk, workload};
use crate::faults::judge;
use crate::history::History;
use crate::qemu::Ended;
use std::path::Path;

/// What can be given, and what is meant if it is not.
pub const OPTIONS: [(&str, u64); 4] =
    [("first", 1), ("steps", 120), ("points", 20), ("refused", 1)];

/// How the report of a program begins that cannot go on without memory. The kernel's own would end the machine.
const PANIC: &str = "panic: ";

/// Runs the campaign; its summary.
pub fn run(kernel: &Path, options: &Options) -> Result<String, String> {
    let (seed, steps) = (options.get("first"), options.get("steps"));
    let refused = options.get("refused");
    let history = History::new(seed, steps);
    let count = asked(&boot(kernel, seed, steps, 0, 0)?.text)?;
    let points = options.get("points").min(count).max(1);
    let (mut refusals, mut survived, mut crashed) = (0, 0, 0);
    for point in 0..points {
        let number = point * count / points;
        let ended = boot(kernel, seed, steps, number, refused)?;
        // The number of requests differs a little from run to run: the last ones may not come.
        refusals += u64::from(asked(&ended.text)? > number);
        survived += u64::from(ended.status == Some(0));
        crashed += u64::from(ended.text.contains(PANIC));
        judge(&history, steps, ended)
            .map_err(|error| format!("request {number}, {refused} of them refused: {error}"))?;
    }
    if refusals * 10 < points * 9 {
        return Err(format!("of {points} requests {refusals} were refused"));
    }
    Ok(format!(
        "of {count} requests for frames {refusals} were refused, {refused} at a time: {survived} workloads went on, {crashed} \
         crashed for want of memory of their own, the others said why not; the console lived, nothing acknowledged was lost, e2fsck satisfied each time"
    ))
}

fn boot(kernel: &Path, seed: u64, steps: u64, first: u64, count: u64) -> Result<Ended, String> {
    let command =
        format!("run refuse {first} {count}; run workload {seed} {steps} vdb; run refuse 0 0; mem");
    workload(kernel, &command, fresh_disk(seed), seed).run()
}

/// How many requests for frames there were: what is said last.
fn asked(text: &str) -> Result<u64, String> {
    let mut lines = text.lines().filter_map(|line| {
        let line = line.strip_prefix("refuse: ")?;
        line.split_whitespace().next()?.parse().ok()
    });
    lines
        .next_back()
        .ok_or_else(|| format!("an image that refuses no frames:\n{text}"))
}
