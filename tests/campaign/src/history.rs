//! What a workload does to names and bytes, step by step, and whether what is on a disk is one of the things it may be.
//!
//! After a power cut the names are those of one moment between the last step that was acknowledged and the one under
//! way. A byte of a file is one it had at the file's last flush or later; or, where the file was shorter at some time
//! since then, zero.

use crate::common::{Node, Tree};
use pinfold::workload::{DIRECTORIES, Step, Workload};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

const PAGE: usize = 4096;

/// Number of a file among all that ever were.
type File = usize;

/// Names of files at one moment.
type Names = Arc<BTreeMap<Vec<u8>, File>>;

/// One file's life.
#[derive(Default)]
struct Life {
    /// What it held from a step on.
    versions: Vec<(u64, Arc<Vec<u8>>)>,
    /// Steps after which a range was durable, and the length.
    flushed: Vec<(u64, Range<usize>)>,
    /// The last step that gave it a name.
    named: u64,
}

/// All that a workload does.
pub struct History {
    lives: Vec<Life>,
    /// After each step.
    names: Vec<Names>,
    /// After each step: the oldest names that may be found after a power cut.
    oldest: Vec<u64>,
    steps: Vec<Step>,
}

impl History {
    /// What the first steps of `seed` do.
    pub fn new(seed: u64, steps: u64) -> Self {
        let mut history = Self {
            lives: Vec::new(),
            names: vec![Names::default()],
            oldest: vec![0],
            steps: Workload::new(seed).take(steps as usize).collect(),
        };
        for number in 1..=steps {
            history.take(number, history.steps[number as usize - 1]);
        }
        history
    }

    fn take(&mut self, number: u64, step: Step) {
        let mut names = self.names[number as usize - 1].clone();
        let mut oldest = self.oldest[number as usize - 1];
        let path = |name| pinfold::workload::Name::to_string(&name).into_bytes();
        match step {
            Step::Create(name) => {
                self.lives.push(Life {
                    versions: vec![(number, Arc::default())],
                    named: number,
                    ..Life::default()
                });
                Arc::make_mut(&mut names).insert(path(name), self.lives.len() - 1);
            }
            Step::Write(name, at, data) | Step::Store(name, at, data) => {
                let (at, end) = (at as usize, (at + data.len) as usize);
                self.change(number, names[&path(name)], |bytes| {
                    bytes.resize(bytes.len().max(end), 0);
                    data.fill(&mut bytes[at..end]);
                });
            }
            Step::SetLen(name, len) => {
                self.change(number, names[&path(name)], |bytes| {
                    bytes.resize(len as usize, 0);
                });
            }
            Step::Rename(from, to) => {
                let names = Arc::make_mut(&mut names);
                let file = names.remove(&path(from)).expect("the workload knows it");
                names.insert(path(to), file);
                self.lives[file].named = number;
            }
            Step::Remove(name) => {
                Arc::make_mut(&mut names).remove(&path(name));
            }
            Step::Evict => {}
            Step::Flush(name, at, len) => {
                let file = names[&path(name)];
                let range = at as usize / PAGE * PAGE..((at + len) as usize).next_multiple_of(PAGE);
                self.lives[file].flushed.push((number, range));
                oldest = oldest.max(self.lives[file].named);
            }
            Step::SyncData(name) | Step::SyncAll(name) => {
                let file = names[&path(name)];
                self.lives[file].flushed.push((number, 0..usize::MAX));
                oldest = oldest.max(self.lives[file].named);
            }
            Step::Sync => {
                for &file in names.values() {
                    self.lives[file].flushed.push((number, 0..usize::MAX));
                }
                oldest = number;
            }
        }
        self.names.push(names);
        self.oldest.push(oldest);
    }

    /// What they do when the machine then powers off by itself: everything is durable as it is.
    pub fn with_power_off(seed: u64, steps: u64) -> Self {
        let mut history = Self::new(seed, steps);
        for &file in history.names[steps as usize].values() {
            history.lives[file].flushed.push((steps, 0..usize::MAX));
        }
        history.oldest[steps as usize] = steps;
        history
    }

    fn change(&mut self, number: u64, file: File, change: impl FnOnce(&mut Vec<u8>)) {
        let versions = &mut self.lives[file].versions;
        let mut bytes = versions.last().map(|(_, bytes)| bytes.to_vec());
        let mut bytes = bytes.take().unwrap_or_default();
        change(&mut bytes);
        versions.push((number, Arc::new(bytes)));
    }

    /// The step that may have been under way when `acknowledged` was the last one known to be durable.
    pub fn under_way(&self, acknowledged: u64) -> u64 {
        let later = self.steps.iter().skip(acknowledged as usize);
        let waits = later.take_while(|step| !step.is_acknowledged()).count() as u64;
        (acknowledged + waits + 1).min(self.steps.len() as u64)
    }

    /// Whether `tree` may be found when steps up to `acknowledged` were durable, and none after `last` had begun.
    pub fn check(&self, tree: &Tree, acknowledged: u64, last: u64) -> Result<(), String> {
        let is_ours = |path: &[u8]| {
            let directory = |name: &str| path.starts_with(format!("{name}/").as_bytes());
            DIRECTORIES.iter().any(|name| directory(name))
        };
        let found: BTreeMap<&[u8], &Node> = tree
            .iter()
            .map(|(path, node)| (&path[..], node))
            .filter(|(path, _)| is_ours(path))
            .collect();
        let mut report = format!(
            "the names are of no moment between step {} and {last}: {:?}",
            self.oldest[acknowledged as usize],
            found
                .keys()
                .map(|path| path.escape_ascii().to_string())
                .collect::<Vec<_>>(),
        );
        let mut checked: Option<&Names> = None;
        for moment in self.oldest[acknowledged as usize]..=last {
            let names = &self.names[moment as usize];
            if checked.is_some_and(|checked| Arc::ptr_eq(checked, names))
                || !names.keys().map(|path| &path[..]).eq(found.keys().copied())
            {
                continue;
            }
            checked = Some(names);
            match self.check_files(&found, names, acknowledged, last) {
                Ok(()) => return Ok(()),
                Err(wrong) => report = format!("with the names of step {moment}, {wrong}"),
            }
        }
        Err(report)
    }

    fn check_files(
        &self,
        found: &BTreeMap<&[u8], &Node>,
        names: &Names,
        acknowledged: u64,
        last: u64,
    ) -> Result<(), String> {
        for (path, &file) in names.iter() {
            let checked = match found[&path[..]] {
                Node::File(bytes) => self.lives[file].check(bytes, acknowledged, last),
                other => Err(format!("is {other:?}")),
            };
            checked.map_err(|report| format!("{} {report}", path.escape_ascii()))?;
        }
        Ok(())
    }
}

impl Life {
    fn check(&self, found: &[u8], acknowledged: u64, last: u64) -> Result<(), String> {
        let flushed = || {
            self.flushed
                .iter()
                .filter(|(step, _)| *step <= acknowledged)
        };
        // Since the last flush of all of it; a flush of a range reaches as far as what was put there.
        let whole = flushed().filter(|(_, range)| range.end == usize::MAX);
        let since = whole.map(|(step, _)| *step).max().unwrap_or(0);
        let least = flushed().map(|(step, range)| {
            let versions = self.between(*step, last).iter();
            versions.map(|(_, bytes)| reach(bytes, range)).min()
        });
        let least = least.max().flatten().unwrap_or(0);
        let lens = self
            .between(since, last)
            .iter()
            .map(|(_, bytes)| bytes.len());
        let most = lens.max().unwrap_or(0);
        if !(least..=most).contains(&found.len()) {
            let len = found.len();
            return Err(format!(
                "has {len} bytes, which must be {least} to {most} since the flush of step {since}"
            ));
        }
        for (page, part) in found.chunks(PAGE).enumerate() {
            let at = page * PAGE;
            let covering = flushed().filter(|(_, range)| range.contains(&at));
            let since = covering.map(|(step, _)| *step).max().unwrap_or(0);
            let versions = self.between(since, last);
            let is_version = |bytes: &[u8]| bytes.get(at..at + part.len()) == Some(part);
            if versions.iter().any(|(_, bytes)| is_version(bytes)) {
                continue;
            }
            // Or of several: sectors, pages and sizes reach the disk one by one.
            for (i, byte) in part.iter().enumerate() {
                let may_be = |bytes: &[u8]| *byte == bytes.get(at + i).copied().unwrap_or(0);
                if !versions.iter().any(|(_, bytes)| may_be(bytes)) {
                    let had: Vec<_> = versions
                        .iter()
                        .map(|(step, bytes)| (*step, bytes.get(at + i)))
                        .collect();
                    return Err(format!(
                        "has {byte} at {}, and (step, byte) were {had:?} since the flush of step {since}",
                        at + i
                    ));
                }
            }
        }
        Ok(())
    }

    /// What it held at step `since` and later, up to `last`.
    fn between(&self, since: u64, last: u64) -> &[(u64, Arc<Vec<u8>>)] {
        let first = self.versions.partition_point(|(step, _)| *step <= since);
        let end = self.versions.partition_point(|(step, _)| *step <= last);
        &self.versions[first.saturating_sub(1)..end]
    }
}

/// How long a file that holds `bytes` must be after a flush of `range`.
fn reach(bytes: &[u8], range: &Range<usize>) -> usize {
    if range.end == usize::MAX {
        return bytes.len();
    }
    let start = range.start.min(bytes.len());
    let flushed = &bytes[start..range.end.min(bytes.len())];
    // What is put anywhere is not zero.
    let last = flushed.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| start + last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 300;

    /// What is there when every step up to `step` has reached the disk.
    fn tree(history: &History, step: u64) -> Tree {
        let content = |file: File| {
            let versions = history.lives[file].between(step, step);
            Node::File(versions.last().unwrap().1.to_vec())
        };
        let names = history.names[step as usize].iter();
        names
            .map(|(path, file)| (path.clone(), content(*file)))
            .collect()
    }

    #[test]
    fn every_moment_since_the_acknowledged_one_may_be_found() {
        let history = History::new(5, STEPS);
        for acknowledged in 0..STEPS {
            let last = history.under_way(acknowledged);
            for moment in acknowledged..=last {
                history
                    .check(&tree(&history, moment), acknowledged, last)
                    .unwrap();
            }
        }
    }

    #[test]
    fn what_was_synced_and_is_not_there_is_noticed() {
        let history = History::new(6, STEPS);
        let syncs = (1..STEPS).filter(|step| history.steps[*step as usize - 1] == Step::Sync);
        let mut noticed = 0;
        for step in syncs {
            for (path, node) in tree(&history, step) {
                let mut lost = tree(&history, step);
                lost.remove(&path);
                assert!(history.check(&lost, step, step).is_err());
                let Node::File(mut bytes) = node else {
                    unreachable!()
                };
                if let Some(byte) = bytes.last_mut() {
                    *byte ^= 0x80;
                    lost.insert(path, Node::File(bytes));
                    assert!(history.check(&lost, step, step).is_err());
                    noticed += 1;
                }
            }
        }
        assert!(noticed > 20);
    }

    #[test]
    fn after_a_power_off_nothing_older_may_be_found() {
        let old = tree(&History::new(9, STEPS), STEPS - 1);
        let (cut, off) = (History::new(9, STEPS), History::with_power_off(9, STEPS));
        assert_ne!(old, tree(&cut, STEPS), "the last step changes nothing");
        assert_eq!(cut.check(&old, STEPS, STEPS), Ok(()));
        assert!(off.check(&old, STEPS, STEPS).is_err());
        assert_eq!(off.check(&tree(&off, STEPS), STEPS, STEPS), Ok(()));
    }

    #[test]
    fn bytes_that_no_step_wrote_are_noticed() {
        let history = History::new(7, STEPS);
        for acknowledged in (0..STEPS).step_by(7) {
            let last = history.under_way(acknowledged);
            let mut tree = tree(&history, last);
            let Some(Node::File(bytes)) = tree.values_mut().next() else {
                continue;
            };
            if let Some(byte) = bytes.first_mut() {
                // Even, so it is neither a hole nor what was written.
                *byte = byte.wrapping_add(1) & 0xfe | 2;
                assert!(history.check(&tree, acknowledged, last).is_err());
            }
        }
    }

    #[test]
    fn an_acknowledged_flush_binds_the_file_alone() {
        // All that is after the flush may be missing, none of what is before.
        let history = History::new(8, STEPS);
        let mut is_bound = false;
        for step in 1..STEPS {
            if !matches!(history.steps[step as usize - 1], Step::SyncData(_)) {
                continue;
            }
            let before = history.check(&tree(&history, step), step, step);
            assert_eq!(before, Ok(()));
            let old = tree(&history, step.saturating_sub(9));
            is_bound |= history.check(&old, step, step).is_err();
        }
        assert!(is_bound);
    }
}
