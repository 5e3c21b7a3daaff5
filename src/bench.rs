//! Measurements: `bench [FILTER]`, one `name value unit` a line.
//!
//! Time is that of the virtual counter; under QEMU's `-icount shift=0` a nanosecond is an instruction. Where the
//! processor counts retired instructions (PMUv3, event 8) each figure comes a second time as `NAME.insn`. A figure is
//! the median of [`REPETITIONS`]. Names and procedure are those of `mmapbench`, so that tables line up.

use crate::arch::aarch64::{pmu, timer};
use crate::command::{self, COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::{console, println, shell};
use alloc::vec::Vec;
use linkme::distributed_slice;

/// How often each figure is measured.
pub const REPETITIONS: usize = 5;

/// A group of figures that are measured together.
pub struct Bench {
    /// Its name; `bench NAME` runs those that contain it.
    pub name: &'static str,
    /// Measures and prints; `Err` says what made it impossible.
    pub run: fn() -> Result<(), &'static str>,
}

/// All groups, in no order.
#[distributed_slice]
pub static BENCHES: [Bench];

#[distributed_slice(COMMANDS)]
static BENCH: Command = Command {
    name: "bench",
    arguments: "[FILTER]",
    summary: "measure this image, one \"name value unit\" a line\n\n\
        Only groups with FILTER in their name, if there is one. Figures repeat under\n\
        ./qemu.sh --no-disk --icount.\n\
        Example: bench anon",
    run: bench,
};

/// What passed between two moments.
#[derive(Clone, Copy, Default)]
pub struct Span {
    ticks: u64,
    instructions: u64,
}

/// Measures `f`.
#[inline(always)]
pub fn span<R>(f: impl FnOnce() -> R) -> (R, Span) {
    let instructions = pmu::instructions();
    let ticks = timer::now();
    pmu::mark_begin();
    let result = f();
    pmu::mark_end();
    let ticks = timer::now() - ticks;
    // The counter has 32 bits: it may have passed zero.
    let instructions = pmu::instructions().wrapping_sub(instructions) & u64::from(u32::MAX);
    (
        result,
        Span {
            ticks,
            instructions,
        },
    )
}

/// The same figure, measured several times.
#[derive(Default)]
pub struct Samples(Vec<Span>);

impl Samples {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Measures `f` once more.
    #[inline(always)]
    pub fn measure<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let (result, span) = span(f);
        self.0.push(span);
        result
    }

    /// Prints the median, for each of `operations` that were measured at a time.
    pub fn print(&self, name: &str, operations: u64) {
        if self.0.is_empty() || operations == 0 {
            return;
        }
        let ns = median(self.0.iter().map(|span| timer::ns_from_ticks(span.ticks)));
        print_tenths(name, ns, operations, "ns");
        if pmu::has_instructions() {
            let count = median(self.0.iter().map(|span| span.instructions));
            print_tenths(&alloc::format!("{name}.insn"), count, operations, "insn");
        }
    }
}

impl Samples {
    /// Prints the median as a rate, each sample having dealt with `bytes`, and instructions for each 4 KiB of them.
    pub fn print_rate(&self, name: &str, bytes: u64) {
        if self.0.is_empty() || bytes == 0 {
            return;
        }
        let ns = median(self.0.iter().map(|span| timer::ns_from_ticks(span.ticks))).max(1);
        let tenths = u128::from(bytes) * 10_000 / u128::from(ns);
        println!("{name} {}.{} MB/s", tenths / 10, tenths % 10);
        if pmu::has_instructions() {
            let count = median(self.0.iter().map(|span| span.instructions));
            print_tenths(
                &alloc::format!("{name}.insn"),
                count,
                bytes.div_ceil(4096),
                "insn",
            );
        }
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

fn print_tenths(name: &str, value: u64, operations: u64, unit: &str) {
    let tenths = (value * 10 + operations / 2) / operations;
    println!("{name} {}.{} {unit}", tenths / 10, tenths % 10);
}

fn bench(arguments: &[&str]) -> Status {
    let filter = match arguments {
        [] => "",
        [filter] => *filter,
        _ => {
            println!("bench: one FILTER at most");
            return USAGE;
        }
    };
    let meant = BENCHES.iter().filter(|b| b.name.contains(filter));
    let benches = command::by_name(meant, |bench| bench.name);
    if benches.is_empty() {
        println!("bench: nothing has \"{filter}\" in its name");
        return USAGE;
    }
    let mut status = SUCCESS;
    for bench in benches {
        if console::is_interrupted() {
            return shell::interrupted("bench");
        }
        println!("# section {}", bench.name);
        if let Err(reason) = (bench.run)() {
            println!("bench: {}: {reason}", bench.name);
            status = FAILURE;
        }
    }
    status
}

#[distributed_slice(BENCHES)]
static FLOOR: Bench = Bench {
    name: "floor",
    run: floor,
};

fn floor() -> Result<(), &'static str> {
    const N: u64 = 20_000;
    let mut samples = Samples::new();
    for _ in 0..REPETITIONS {
        samples.measure(|| {
            for _ in 0..N {
                core::hint::black_box(timer::now());
            }
        });
    }
    samples.print("floor_timer_read", N);
    let mut samples = Samples::new();
    for _ in 0..REPETITIONS {
        samples.measure(|| (0..1_000).for_each(|_| crate::thread::yield_now()));
    }
    samples.print("floor_yield", 1_000);
    Ok(())
}
