//! Campaigns against the image: what it acknowledges must survive, whatever happens to its machine.

mod allocations;
#[path = "../../common/mod.rs"]
mod common;
mod disk;
mod durability;
mod faults;
mod history;
mod judge;
mod qemu;
mod record;

use pinfold::workload::Workload;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: pinfold-campaign durability KERNEL [NAME=VALUE]...
       pinfold-campaign faults KERNEL [NAME=VALUE]...
       pinfold-campaign allocations KERNEL [NAME=VALUE]...
       pinfold-campaign steps [NAME=VALUE]...

KERNEL is kernel8.img. It is booted on a disk that remembers all its writes and flushes, and does random work there. What it
has acknowledged must be there, and the disk sound,

durability: when its power fails at points of that, and when QEMU is killed

    first=1      the first seed
    seeds=1      how many
    steps=400    steps of each
    cuts=100     power cuts of each: at flushes first, then anywhere
    boots=2      of these, how many the image itself recovers from
    kills=10     how often QEMU is killed, afterwards, on a disk that is never made anew
    jobs=1       threads that look at images

faults: when reads, writes and flushes fail, once or from then on, and when the disk stalls

    first=1      the seed
    steps=120    its steps
    points=8     requests of each kind that fail, one in each boot, spread over all there are
    stalls=1     1: a stall that the machine must outlast; 2: another, after which it gives the disk up

allocations: when requests for frames are refused, one or several; KERNEL is of scripts/build.sh --refusal

    first=1      the seed
    steps=120    its steps
    points=20    requests that are refused, one in each boot, spread over all there are
    refused=1    requests that are refused one after the other

steps: prints the steps of the seed `first`
";

/// Numbers given as NAME=VALUE.
pub struct Options(Vec<(String, u64)>);

impl Options {
    fn parse(words: &[String], known: &[(&str, u64)]) -> Result<Self, String> {
        let mut options: Vec<_> = known.iter().map(|(n, v)| (n.to_string(), *v)).collect();
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or(format!("{word} is not NAME=VALUE"))?;
            let option = options.iter_mut().find(|(known, _)| known == name);
            let (_, old) = option.ok_or(format!("no option {name}"))?;
            *old = value.parse().map_err(|_| format!("{word}: not a number"))?;
        }
        Ok(Self(options))
    }

    /// What was given as `name`, or is so if nothing was.
    pub fn get(&self, name: &str) -> u64 {
        let option = self.0.iter().find(|(known, _)| known == name);
        option.expect("a known name").1
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match &words[..] {
        [campaign, kernel, rest @ ..] if campaign == "durability" => {
            Options::parse(rest, &durability::OPTIONS)
                .and_then(|options| durability::run(&PathBuf::from(kernel), &options))
        }
        [campaign, kernel, rest @ ..] if campaign == "faults" => {
            Options::parse(rest, &faults::OPTIONS)
                .and_then(|options| faults::run(&PathBuf::from(kernel), &options))
        }
        [campaign, kernel, rest @ ..] if campaign == "allocations" => {
            Options::parse(rest, &allocations::OPTIONS)
                .and_then(|options| allocations::run(&PathBuf::from(kernel), &options))
        }
        [what, rest @ ..] if what == "steps" => {
            Options::parse(rest, &[("first", 1), ("steps", 400)]).map(|options| steps(&options))
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pinfold-campaign: {error}");
            ExitCode::FAILURE
        }
    }
}

fn steps(options: &Options) -> String {
    let steps = Workload::new(options.get("first")).take(options.get("steps") as usize);
    let lines = steps
        .enumerate()
        .map(|(i, step)| format!("{:4} {step:?}", i + 1));
    lines.collect::<Vec<_>>().join("\n")
}
