//! A random workload on files, the same for a seed wherever it is asked for: the image does it, and the PC knows what
//! must be on the disk.
//!
//! `run workload` does the steps in the image; `tests/campaign` keeps the same steps as plain bytes, cuts the image's
//! writes off at any point, and compares. `run soak` does several workloads at a time, and looks for what is left behind.

#[cfg(target_os = "none")]
mod program;
#[cfg(all(target_os = "none", feature = "refusal"))]
mod refuse;
#[cfg(target_os = "none")]
mod soak;

use core::fmt;

/// Names that files may have.
pub const NAMES: u8 = 16;

/// Directories they are in.
pub const DIRECTORIES: [&str; 2] = ["/w", "/x"];

/// Bytes of a file at most.
pub const MAX_LEN: u32 = 160 << 10;

/// One of [`NAMES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name(pub u8);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = DIRECTORIES[usize::from(self.0 % 2)];
        write!(f, "{directory}/{}", self.0 / 2)
    }
}

/// Bytes that a seed stands for, none of them zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Data {
    /// Where they are from.
    pub seed: u64,
    /// How many.
    pub len: u32,
}

impl Data {
    /// Puts them into `bytes`, which are as many.
    pub fn fill(self, bytes: &mut [u8]) {
        let mut random = Random(self.seed);
        for eight in bytes.chunks_mut(8) {
            let word = random.next_u64() | 0x0101_0101_0101_0101;
            eight.copy_from_slice(&word.to_le_bytes()[..eight.len()]);
        }
    }
}

/// What is done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A new file without bytes.
    Create(Name),
    /// A write at this offset, perhaps behind the end.
    Write(Name, u32, Data),
    /// Stores through a shared map, within the file.
    Store(Name, u32, Data),
    /// The file is cut, or grows with zeros.
    SetLen(Name, u32),
    /// Another name; a file that has it loses it.
    Rename(Name, Name),
    /// The file loses its name.
    Remove(Name),
    /// What is dirty is written, without a flush, and no page stays in memory.
    Evict,
    /// A flush of so many bytes of a map, from an offset on.
    Flush(Name, u32, u32),
    /// A flush of all bytes, without the times.
    SyncData(Name),
    /// A flush of all of the file.
    SyncAll(Name),
    /// A flush of everything.
    Sync,
}

impl Step {
    /// Whether something is durable afterwards.
    pub fn is_acknowledged(self) -> bool {
        matches!(
            self,
            Self::Flush(..) | Self::SyncData(_) | Self::SyncAll(_) | Self::Sync
        )
    }
}

/// The steps of a seed, without end.
pub struct Workload {
    random: Random,
    /// Which names are in use, and for how long a file.
    lens: [Option<u32>; NAMES as usize],
}

impl Workload {
    /// The steps that `seed` stands for, on empty directories.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            lens: [None; NAMES as usize],
        }
    }

    /// A number under `limit`; 0 for a limit of 0.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        (self.random.next_u64() >> 32) as u32 % limit.max(1)
    }

    /// Mostly short, sometimes long.
    fn data(&mut self, most: u32) -> Data {
        let limit = [100, 5_000, 20_000, 90_000][self.below(4) as usize];
        Data {
            len: 1 + self.below(limit.min(most)),
            seed: self.random.next_u64(),
        }
    }

    fn step(&mut self, name: Name, len: u32) -> Step {
        match self.below(20) {
            0..4 => {
                let at = match self.below(3) {
                    0 => len.min(MAX_LEN / 2),
                    1 => self.below(len.min(MAX_LEN / 2)),
                    _ => self.below(MAX_LEN / 2),
                };
                Step::Write(name, at, self.data(MAX_LEN / 2))
            }
            4..9 if len > 0 => {
                let at = self.below(len);
                Step::Store(name, at, self.data(len - at))
            }
            9 => Step::SetLen(name, self.below(MAX_LEN)),
            10 => Step::SetLen(name, self.below(len)),
            11 | 12 => {
                let other = self.below(NAMES.into()) as u8;
                let is_other = other != name.0;
                Step::Rename(name, Name(if is_other { other } else { other ^ 1 }))
            }
            13 => Step::Remove(name),
            14 | 15 if len > 0 => {
                let at = self.below(len);
                Step::Flush(name, at, 1 + self.below(len - at))
            }
            16 => Step::SyncData(name),
            17 => Step::SyncAll(name),
            18 => Step::Sync,
            _ => Step::Evict,
        }
    }

    fn apply(&mut self, step: Step) {
        let len = |name: Name| usize::from(name.0);
        match step {
            Step::Create(name) => self.lens[len(name)] = Some(0),
            Step::Write(name, at, data) => {
                let end = at + data.len;
                let old = self.lens[len(name)];
                self.lens[len(name)] = old.map(|old| old.max(end));
            }
            Step::SetLen(name, new) => self.lens[len(name)] = Some(new),
            Step::Rename(from, to) => self.lens[len(to)] = self.lens[len(from)].take(),
            Step::Remove(name) => self.lens[len(name)] = None,
            _ => {}
        }
    }
}

impl Iterator for Workload {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let name = self.below(NAMES.into()) as u8;
        let step = match self.lens[usize::from(name)] {
            Some(len) => self.step(Name(name), len),
            None => Step::Create(Name(name)),
        };
        self.apply(step);
        Some(step)
    }
}

/// splitmix64: one number of state, any seed.
struct Random(u64);

impl Random {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_step_comes_up_and_keeps_within_the_file() {
        let mut workload = Workload::new(1);
        let mut seen = [0; 11];
        for _ in 0..5_000 {
            let before = workload.lens;
            let len = |name: Name| before[usize::from(name.0)];
            let step = workload.next().unwrap();
            let (kind, is_sound) = match step {
                Step::Create(name) => (0, len(name).is_none()),
                Step::Write(name, at, data) => (1, len(name).is_some() && at + data.len <= MAX_LEN),
                Step::Store(name, at, data) => (2, Some(at + data.len) <= len(name)),
                Step::SetLen(name, new) => (3, len(name).is_some() && new < MAX_LEN),
                Step::Rename(from, to) => (4, len(from).is_some() && from != to),
                Step::Remove(name) => (5, len(name).is_some()),
                Step::Evict => (6, true),
                Step::Flush(name, at, count) => (7, Some(at + count) <= len(name)),
                Step::SyncData(name) => (8, len(name).is_some()),
                Step::SyncAll(name) => (9, len(name).is_some()),
                Step::Sync => (10, true),
            };
            assert!(is_sound, "{step:?}");
            seen[kind] += 1;
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    }

    #[test]
    fn a_seed_stands_for_its_steps_and_its_bytes() {
        let steps = |seed| Workload::new(seed).take(200).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        let mut bytes = [0; 19];
        Data { seed: 3, len: 19 }.fill(&mut bytes);
        assert!(bytes.iter().all(|byte| *byte != 0));
    }
}
