//! `iobench`: reads and writes a file as `fio` would, with the words that `fio` has for it.

use crate::command::{SUCCESS, Status, USAGE};
use crate::mm::CACHE;
use crate::mmap::{Advice, MmapError, MmapMut};
use crate::println;
use crate::program::fs::File;
use crate::program::options::{self, Size};
use crate::program::thread::{self, SpawnError};
use crate::program::time::{Duration, Instant};
use crate::sync::SpinLock;
use crate::thread::Call;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

crate::program! {
    name: "iobench",
    summary: "read and write a file, with fio's words: filename= rw= bs= size= iodepth= ioengine= runtime=",
    main: main,
}

const HELP: &str = "\
usage: run iobench filename=PATH [WORD...], with the words of fio:
  rw=read|write|randread|randwrite   what to do, read unless said
  bs=4k                              bytes at a time
  size=64m                           bytes of the file; it is made, or made longer
  iodepth=1                          how many at a time, by as many threads
  ioengine=sync|mmap                 by read and write, or through a map
  runtime=SECONDS                    end then, else when size bytes are done
  invalidate=1|0                     whether to forget cached pages first
  fsync=0|1                          whether writing ends with making it durable (in the time measured)";

/// Why it cannot be measured.
enum Failure {
    /// A word whose value cannot be.
    Word(&'static str, String),
    Map(MmapError),
    Threads(SpawnError),
}

impl From<MmapError> for Failure {
    fn from(error: MmapError) -> Self {
        Self::Map(error)
    }
}

impl From<crate::fs::FsError> for Failure {
    fn from(error: crate::fs::FsError) -> Self {
        Self::Map(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(name, value) => write!(f, "{name}={value}: {name} is {}", values(name)),
            Self::Map(error) => error.fmt(f),
            Self::Threads(error) => error.fmt(f),
        }
    }
}

/// What a word may be.
fn values(name: &str) -> &'static str {
    match name {
        "rw" => "read, write, randread or randwrite",
        "bs" => "1 to 16m, and no more than size",
        "size" => "a number from 1 on, perhaps with k, m or g behind it",
        "iodepth" => "1 to 64",
        "ioengine" => "sync or mmap",
        _ => "a number",
    }
}

/// What was asked for.
struct Job {
    filename: String,
    rw: String,
    is_random: bool,
    is_write: bool,
    is_mapped: bool,
    ends_durable: bool,
    bs: u64,
    size: u64,
    iodepth: u64,
    runtime: Option<Duration>,
}

const WORDS: [&str; 9] = [
    "filename",
    "rw",
    "bs",
    "size",
    "iodepth",
    "ioengine",
    "runtime",
    "invalidate",
    "fsync",
];

fn main(words: &[String]) -> Result<Status, Failure> {
    let is_known = |word: &&String| {
        word.split_once('=')
            .is_some_and(|(name, _)| WORDS.contains(&name))
    };
    if let Some(word) = words.iter().find(|word| !is_known(word)) {
        println!("iobench: {word} is not known here");
        println!("{HELP}");
        return Ok(USAGE);
    }
    let Some(filename) = text(words, "filename", "")?.filter(|name| !name.is_empty()) else {
        println!("{HELP}");
        return Ok(USAGE);
    };
    let rw = text(words, "rw", "read")?.unwrap_or_default();
    let (is_random, is_write) = match rw.as_str() {
        "read" => (false, false),
        "write" => (false, true),
        "randread" => (true, false),
        "randwrite" => (true, true),
        _ => return Err(Failure::Word("rw", rw)),
    };
    let ioengine = text(words, "ioengine", "sync")?.unwrap_or_default();
    if !matches!(ioengine.as_str(), "sync" | "mmap") {
        return Err(Failure::Word("ioengine", ioengine));
    }
    let job = Job {
        filename,
        is_random,
        is_write,
        is_mapped: ioengine == "mmap",
        ends_durable: number(words, "fsync", 0)? != 0,
        bs: size(words, "bs", 4 << 10)?,
        size: size(words, "size", 64 << 20)?,
        iodepth: number(words, "iodepth", 1)?,
        runtime: match number(words, "runtime", 0)? {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        },
        rw,
    };
    if job.size == 0 {
        return Err(Failure::Word("size", "0".into()));
    }
    if !(1..=16 << 20).contains(&job.bs) || job.bs > job.size {
        return Err(Failure::Word("bs", alloc::format!("{}", job.bs)));
    }
    if !(1..=64).contains(&job.iodepth) {
        return Err(Failure::Word("iodepth", alloc::format!("{}", job.iodepth)));
    }
    let file = job.prepare()?;
    if number(words, "invalidate", 1)? != 0 {
        let _call = Call::enter();
        CACHE.drop_clean();
    }
    println!(
        "{}: rw={}, bs={}, size={}, ioengine={ioengine}, iodepth={}",
        job.filename, job.rw, job.bs, job.size, job.iodepth
    );
    job.run(&file)
}

fn text(words: &[String], name: &'static str, default: &str) -> Result<Option<String>, Failure> {
    let value = options::value(words, name).map_err(|value| Failure::Word(name, value.into()))?;
    Ok(value.or_else(|| Some(default.into())))
}

fn number(words: &[String], name: &'static str, default: u64) -> Result<u64, Failure> {
    let value = options::value(words, name).map_err(|value| Failure::Word(name, value.into()))?;
    Ok(value.unwrap_or(default))
}

fn size(words: &[String], name: &'static str, default: u64) -> Result<u64, Failure> {
    let value = options::value(words, name).map_err(|value| Failure::Word(name, value.into()))?;
    Ok(value.map_or(default, |Size(size)| size))
}

/// What one thread did.
#[derive(Default)]
struct Done {
    latencies_ns: Vec<u64>,
    bytes: u64,
}

impl Job {
    /// The file, of the size that was asked for, with no holes.
    fn prepare(&self) -> Result<File, Failure> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .open(&self.filename)?;
        let mut at = file.metadata()?.size;
        if at < self.size {
            let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ i >> 7) as u8).collect();
            while at < self.size {
                let len = (self.size - at).min(piece.len() as u64);
                file.write_all_at(&piece[..len as usize], at)?;
                at += len;
            }
            file.sync_all()?;
        }
        Ok(file)
    }

    fn run(&self, file: &File) -> Result<Status, Failure> {
        // SAFETY: whoever else changes the file changes what is measured, no more: bytes are copied and not looked at.
        let map = unsafe { MmapMut::map_mut(file)? };
        let pattern = if self.is_random {
            Advice::Random
        } else {
            Advice::Sequential
        };
        map.advise(pattern)?;
        let start = Instant::now();
        let done = SpinLock::new(Vec::new());
        let failure = SpinLock::new(None);
        thread::scope(|scope| {
            let work = |number| {
                match self.work(file, &map, number, start) {
                    Ok(result) => done.lock().push(result),
                    Err(error) => *failure.lock() = Some(error),
                };
            };
            for number in 1..self.iodepth {
                scope.spawn(move || work(number))?;
            }
            work(0);
            Ok(())
        })
        .map_err(Failure::Threads)?;
        if let Some(failure) = failure.lock().take() {
            return Err(failure);
        }
        if self.is_write && self.ends_durable {
            file.sync_data()?;
        }
        let elapsed = start.elapsed();
        let done = core::mem::take(&mut *done.lock());
        report(self, done, elapsed);
        Ok(SUCCESS)
    }

    /// What thread `number` does: its share of the blocks, one after the other.
    fn work(
        &self,
        file: &File,
        map: &MmapMut,
        number: u64,
        start: Instant,
    ) -> Result<Done, Failure> {
        let blocks = self.size / self.bs;
        let share = blocks / self.iodepth + u64::from(number < blocks % self.iodepth);
        let mut buffer = alloc::vec![0x5a; self.bs as usize];
        let mut done = Done::default();
        let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut i = 0;
        loop {
            match self.runtime {
                Some(runtime) if start.elapsed() >= runtime => break,
                None if i == share => break,
                _ => {}
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let block = match self.is_random {
                true => random % blocks,
                false => (i % share.max(1)) * self.iodepth + number,
            };
            let began = Instant::now();
            self.one(file, map, block.min(blocks - 1) * self.bs, &mut buffer)?;
            let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            done.latencies_ns.push(ns);
            done.bytes += self.bs;
            i += 1;
        }
        Ok(done)
    }

    fn one(
        &self,
        file: &File,
        map: &MmapMut,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), Failure> {
        let range = offset as usize..offset as usize + buffer.len();
        match (self.is_mapped, self.is_write) {
            (false, false) => drop(file.read_at(buffer, offset)?),
            (false, true) => file.write_all_at(buffer, offset)?,
            (true, false) => buffer.copy_from_slice(&map[range]),
            (true, true) => {
                let to = map[range].as_ptr().cast_mut();
                // SAFETY: within the map, which allows stores; threads that store to the same block store the same bytes, and
                // nobody has a reference to them.
                unsafe { to.copy_from_nonoverlapping(buffer.as_ptr(), buffer.len()) };
            }
        }
        Ok(())
    }
}

fn report(job: &Job, done: Vec<Done>, elapsed: Duration) {
    let bytes: u64 = done.iter().map(|done| done.bytes).sum();
    let mut latencies: Vec<u64> = done
        .into_iter()
        .flat_map(|done| done.latencies_ns)
        .collect();
    latencies.sort_unstable();
    let (Some(first), Some(last)) = (latencies.first(), latencies.last()) else {
        println!("  nothing was done");
        return;
    };
    let count = latencies.len() as u64;
    let us = (elapsed.as_micros() as u64).max(1);
    let per_second = |amount: u64| u128::from(amount) * 1_000_000 / u128::from(us);
    let tenths = per_second(bytes) * 10 / (1 << 20);
    println!(
        "  {}: IOPS={}, BW={}.{}MiB/s ({} bytes/{}msec)",
        if job.is_write { "write" } else { "read" },
        per_second(count),
        tenths / 10,
        tenths % 10,
        bytes,
        us / 1000
    );
    let sum: u64 = latencies.iter().sum();
    println!("  lat (nsec): min={first}, max={last}, avg={}", sum / count);
    let percentile = |per_mille: usize| latencies[(latencies.len() - 1) * per_mille / 1000];
    println!("  clat percentiles (nsec):");
    println!(
        "   | 50.0th=[{}], 90.0th=[{}], 99.0th=[{}], 99.9th=[{}]",
        percentile(500),
        percentile(900),
        percentile(990),
        percentile(999)
    );
}
