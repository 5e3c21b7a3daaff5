//! What happened to a disk, and what may be on it when the power fails at one point of that.

use pinfold::fs::sim_disk::Random;
use std::fmt;

/// Bytes no device tears.
pub const SECTOR: usize = 512;

/// Writes that a device has begun at a time: no more are looked for behind a cut.
pub const IN_FLIGHT: usize = 256;

/// One entry of a disk's history, in the order in which they completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes reached the device's cache.
    Write {
        /// Where, in bytes.
        offset: usize,
        /// What.
        bytes: Vec<u8>,
        /// How many entries there were when it was asked for.
        begun: usize,
    },
    /// What had completed when the flush was asked for is durable.
    Flush {
        /// How many entries that were.
        covers: usize,
    },
    /// The image knows that this step of its workload is durable.
    Mark(u64),
}

/// A disk's history.
pub struct Record {
    /// What it held at first.
    pub base: Vec<u8>,
    /// What happened.
    pub events: Vec<Event>,
}

impl Record {
    /// What the disk may hold if the power fails after the first `cut` events. Of the writes that no flush covers, and of
    /// those that were under way, any part may be there, sector by sector: `seed` decides.
    pub fn crash(&self, cut: usize, seed: u64) -> Vec<u8> {
        let mut image = self.base.clone();
        let mut random = Random::new(seed);
        let covered = self.events[..cut].iter().map(|event| match event {
            Event::Flush { covers } => *covers,
            _ => 0,
        });
        let certain = covered.max().unwrap_or(0);
        for event in &self.events[..certain] {
            apply(&mut image, event, |_| true);
        }
        // Each image has its own luck, so that "all", "none" and everything between come up.
        let luck = random.below(5);
        let later = self.events.iter().enumerate().skip(certain);
        for (at, event) in later.take(cut - certain + IN_FLIGHT) {
            let Event::Write { begun, .. } = event else {
                continue;
            };
            let is_complete = at < cut;
            if !is_complete && *begun > cut {
                continue;
            }
            let is_there = is_complete && luck == 4 || random.below(4) < luck;
            if is_there {
                apply(&mut image, event, |_| true);
            } else if luck > 0 && random.below(3) == 0 {
                apply(&mut image, event, |_| random.below(2) == 0);
            }
        }
        image
    }

    /// The last step known to be durable when the first `cut` events had happened; none before the workload began.
    pub fn acknowledged(&self, cut: usize) -> Option<u64> {
        self.events[..cut]
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::Mark(step) => Some(*step),
                _ => None,
            })
    }
}

impl fmt::Display for Record {
    /// One event a line, to look at after a failure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, event) in self.events.iter().enumerate() {
            match event {
                Event::Write {
                    offset,
                    bytes,
                    begun,
                } => {
                    let len = bytes.len();
                    writeln!(f, "{number:5} write {len:7} at {offset:9}, begun {begun}")?;
                }
                Event::Flush { covers } => writeln!(f, "{number:5} flush of {covers}")?,
                Event::Mark(step) => writeln!(f, "{number:5} step {step} is durable")?,
            }
        }
        Ok(())
    }
}

/// Copies the sectors of a write that `has_sector` says are there.
pub fn apply(image: &mut [u8], event: &Event, mut has_sector: impl FnMut(usize) -> bool) {
    let Event::Write { offset, bytes, .. } = event else {
        return;
    };
    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
        if has_sector(i) {
            let at = offset + i * SECTOR;
            image[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u8, begun: usize) -> Event {
        Event::Write {
            offset: usize::from(value) * 1024,
            bytes: vec![value; 1024],
            begun,
        }
    }

    fn crashes(events: &[Event], cut: usize) -> Vec<Vec<u8>> {
        let record = Record {
            base: vec![0; 4096],
            events: events.to_vec(),
        };
        (0..200).map(|seed| record.crash(cut, seed)).collect()
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_was_asked_for() {
        // The second write completed while the flush was on its way.
        let events = [write(1, 0), write(2, 0), Event::Flush { covers: 1 }];
        let images = crashes(&events, 3);
        assert!(images.iter().all(|image| image[1024] == 1));
        assert!(images.iter().any(|image| image[2048] == 0));
        assert!(images.iter().any(|image| image[2048] == 2));
    }

    #[test]
    fn a_flush_on_its_way_covers_nothing() {
        let events = [write(1, 0), Event::Flush { covers: 1 }];
        assert!(crashes(&events, 1).iter().any(|image| image[1024] == 0));
    }

    #[test]
    fn a_write_may_be_torn_and_one_under_way_be_there() {
        let events = [write(1, 0), write(2, 0), write(3, 1)];
        let images = crashes(&events, 0);
        for state in [[0, 0], [1, 1], [0, 1], [1, 0]] {
            let is_state = |image: &Vec<u8>| [image[1024], image[1536]] == state;
            assert!(images.iter().any(is_state), "{state:?} never came up");
        }
        // The third had not been asked for.
        assert!(images.iter().all(|image| image[3072] == 0));
    }

    #[test]
    fn the_last_mark_before_a_cut_counts() {
        let record = Record {
            base: Vec::new(),
            events: vec![Event::Mark(0), write(1, 0), Event::Mark(7)],
        };
        let marks = [0, 1, 2, 3].map(|cut| record.acknowledged(cut));
        assert_eq!(marks, [None, Some(0), Some(0), Some(7)]);
    }
}
