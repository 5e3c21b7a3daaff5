//! A disk for tests: slow, disordered, failing on demand, and remembering every write and flush.
//!
//! [`SimDisk::record`] is the whole history; [`crash_image`] is what a medium may hold when the power fails at one point
//! of it. A write is certain to be there once a flush submitted after its completion has completed, or if it was
//! durable itself and has completed; of the others, any part may be there, sector by sector.

use super::block::{
    BlockDevice, BlockError, Durability, Operation, Properties, Refusal, Refused, Request,
    SECTOR_SIZE,
};
use super::ram_disk;
use crate::sync::SpinLock;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// One entry of a disk's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes reached the device's cache.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
        /// Whether it was durable by itself.
        durability: Durability,
    },
    /// All writes before this are durable.
    Flush,
    /// A mark the test set, e.g. "fsync returned".
    Mark(u64),
}

/// The disk. Nothing completes before [`poll`](BlockDevice::poll).
pub struct SimDisk {
    state: SpinLock<State>,
    properties: Properties,
}

type Hook = Box<dyn FnOnce() + Send>;

const READ: usize = 0;
const WRITE: usize = 1;
const BYTES_READ: usize = 2;

struct State {
    bytes: Vec<u8>,
    queue: VecDeque<(u32, Request)>,
    record: Vec<Event>,
    random: Random,
    latency: u32,
    failing: BTreeMap<u64, BlockError>,
    fail_after: Option<u64>,
    requests: u64,
    during_next: [Option<Hook>; 3],
}

impl SimDisk {
    /// A disk with these contents. `seed` decides the order of completions.
    pub fn new(bytes: Vec<u8>, seed: u64) -> Self {
        let properties = Properties {
            capacity: bytes.len() as u64 / SECTOR_SIZE * SECTOR_SIZE,
            sector_size: SECTOR_SIZE as u32,
            max_request: 1 << 20,
            is_read_only: false,
            has_flush: true,
            // So small that a test of megabytes has to take several.
            max_discard: 64 << 10,
            max_write_zeroes: 0,
        };
        let state = State {
            bytes,
            queue: VecDeque::new(),
            record: Vec::new(),
            random: Random::new(seed),
            latency: 0,
            failing: BTreeMap::new(),
            fail_after: None,
            requests: 0,
            during_next: [None, None, None],
        };
        Self {
            state: SpinLock::new(state),
            properties,
        }
    }

    /// Makes each request take up to `polls` calls of `poll`.
    pub fn set_latency(&self, polls: u32) {
        self.state.lock().latency = polls;
    }

    /// Makes every request that touches `sector` fail, until [`heal`](Self::heal).
    pub fn fail_sector(&self, sector: u64, error: BlockError) {
        self.state.lock().failing.insert(sector, error);
    }

    /// Makes every request fail once `count` more have been served.
    pub fn fail_after(&self, count: u64) {
        let mut state = self.state.lock();
        state.fail_after = Some(state.requests + count);
    }

    /// No more errors.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.failing.clear();
        state.fail_after = None;
    }

    /// Runs `hook` while the next read is on its way: the moment in which races happen.
    pub fn during_next_read(&self, hook: Hook) {
        self.state.lock().during_next[READ] = Some(hook);
    }

    /// Runs `hook` when the next read has its bytes, and nobody knows yet.
    pub fn after_next_read(&self, hook: Hook) {
        self.state.lock().during_next[BYTES_READ] = Some(hook);
    }

    /// As [`during_next_read`](Self::during_next_read), of a write: before any of its bytes are taken.
    pub fn during_next_write(&self, hook: Hook) {
        self.state.lock().during_next[WRITE] = Some(hook);
    }

    /// Adds a mark to the history.
    pub fn mark(&self, mark: u64) {
        self.state.lock().record.push(Event::Mark(mark));
    }

    /// All that happened so far, in the order in which it completed.
    pub fn record(&self) -> Vec<Event> {
        self.state.lock().record.clone()
    }

    /// How much has happened so far: the length of [`record`](Self::record).
    pub fn record_len(&self) -> usize {
        self.state.lock().record.len()
    }

    /// How many requests have been served.
    pub fn requests(&self) -> u64 {
        self.state.lock().requests
    }

    /// What the disk holds, as if everything had become durable.
    pub fn contents(&self) -> Vec<u8> {
        self.state.lock().bytes.clone()
    }
}

impl BlockDevice for SimDisk {
    fn properties(&self) -> Properties {
        self.properties
    }

    fn submit(&self, request: Request) -> Result<(), Refused> {
        if let Err(error) = request.check(&self.properties) {
            return Err(Refused {
                request,
                reason: Refusal::Invalid(error),
            });
        }
        let mut state = self.state.lock();
        let latency = state.latency;
        let delay = state.random.below(u64::from(latency) + 1) as u32;
        state.queue.push_back((delay, request));
        Ok(())
    }

    fn poll(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(mut request) = state.take_due() else {
                return;
            };
            let kind = match request.operation {
                Operation::Read => Some(READ),
                Operation::Write(_) => Some(WRITE),
                _ => None,
            };
            if let Some(hook) = kind.and_then(|kind| state.during_next[kind].take()) {
                drop(state);
                hook();
                state = self.state.lock();
            }
            let result = state.serve(&mut request);
            let hook = (kind == Some(READ)).then(|| state.during_next[BYTES_READ].take());
            drop(state);
            hook.flatten().into_iter().for_each(|hook| hook());
            request.complete(result);
        }
    }
}

impl State {
    fn take_due(&mut self) -> Option<Request> {
        if let Some(due) = self.queue.iter().position(|(delay, _)| *delay == 0) {
            return self.queue.remove(due).map(|(_, request)| request);
        }
        for (delay, _) in &mut self.queue {
            *delay -= 1;
        }
        None
    }

    fn serve(&mut self, request: &mut Request) -> Result<(), BlockError> {
        self.requests += 1;
        let offset = request.offset;
        if self.fail_after.is_some_and(|count| self.requests > count) {
            return Err(BlockError::Device { offset });
        }
        let sectors = offset / SECTOR_SIZE..(offset + request.len()).div_ceil(SECTOR_SIZE);
        if let Some((_, &error)) = self.failing.range(sectors).next() {
            return Err(error);
        }
        ram_disk::apply(request, &mut self.bytes)?;
        match request.operation {
            Operation::Write(durability) => {
                let end = (offset + request.len()) as usize;
                let bytes = self.bytes[offset as usize..end].to_vec();
                self.record.push(Event::Write {
                    offset,
                    bytes,
                    durability,
                });
            }
            // Nonsense written over the bytes, some time before the next flush.
            Operation::Discard { len } => self.record.push(Event::Write {
                offset,
                bytes: self.bytes[offset as usize..(offset + len) as usize].to_vec(),
                durability: Durability::Cached,
            }),
            Operation::Flush => self.record.push(Event::Flush),
            Operation::Read | Operation::WriteZeroes { .. } => {}
        }
        Ok(())
    }
}

/// What the medium may hold if the power fails after the first `cut` events of `record` on a disk that held `base`.
/// Which of the writes since the last flush are there, whole or in part, `seed` decides.
pub fn crash_image(base: &[u8], record: &[Event], cut: usize, seed: u64) -> Vec<u8> {
    let mut image = base.to_vec();
    let mut random = Random::new(seed);
    let events = &record[..cut];
    let flushed = events
        .iter()
        .rposition(|event| *event == Event::Flush)
        .map_or(0, |at| at + 1);
    for event in &events[..flushed] {
        apply(&mut image, event, |_| true);
    }
    // Each epoch has its own luck, so that "all", "none" and everything between come up.
    let luck = random.below(5);
    for (at, event) in events.iter().enumerate().skip(flushed) {
        let Event::Write { durability, .. } = event else {
            continue;
        };
        // The last write was under way, and nobody had been told that it was durable.
        let is_certain = *durability == Durability::Durable && at + 1 < cut;
        let is_there = is_certain || luck == 4 || random.below(4) < luck;
        if is_there {
            apply(&mut image, event, |_| true);
        } else if luck > 0 && random.below(3) == 0 {
            apply(&mut image, event, |_| random.below(2) == 0);
        }
    }
    image
}

fn apply(image: &mut [u8], event: &Event, mut has_sector: impl FnMut(usize) -> bool) {
    let Event::Write { offset, bytes, .. } = event else {
        return;
    };
    for (i, sector) in bytes.chunks(SECTOR_SIZE as usize).enumerate() {
        if has_sector(i) {
            let at = *offset as usize + i * SECTOR_SIZE as usize;
            image[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}

/// A small generator for tests (xorshift64*): the same seed gives the same run everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        // The finaliser of splitmix64, so that neighbouring seeds have nothing in common.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ state >> 31) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number under `limit`; 0 for a limit of 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 {
            0
        } else {
            (self.next_u64() >> 16) % limit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::blocking;
    use alloc::vec;

    fn written(disk: &SimDisk, offset: u64, value: u8, durability: Durability) {
        blocking::write(disk, offset, vec![value; 1024], durability).unwrap();
    }

    #[test]
    fn a_flushed_write_survives_every_cut() {
        let disk = SimDisk::new(vec![0; 8192], 1);
        written(&disk, 0, 1, Durability::Cached);
        blocking::flush(&disk).unwrap();
        written(&disk, 4096, 2, Durability::Cached);
        let record = disk.record();
        for seed in 0..100 {
            let image = crash_image(&vec![0; 8192], &record, record.len(), seed);
            assert_eq!(image[..1024], [1; 1024]);
        }
    }

    #[test]
    fn an_unflushed_write_may_be_there_not_there_or_torn() {
        let disk = SimDisk::new(vec![0; 8192], 1);
        written(&disk, 0, 1, Durability::Cached);
        let record = disk.record();
        let images = (0..100).map(|seed| crash_image(&vec![0; 8192], &record, 1, seed));
        let states: Vec<_> = images.map(|image| (image[0], image[512])).collect();
        for state in [(0, 0), (1, 1), (0, 1), (1, 0)] {
            assert!(states.contains(&state), "{state:?} never came up");
        }
    }

    #[test]
    fn a_durable_write_survives_without_a_flush() {
        let disk = SimDisk::new(vec![0; 8192], 1);
        written(&disk, 0, 1, Durability::Durable);
        disk.mark(1);
        let record = disk.record();
        assert!(
            (0..100).all(|seed| crash_image(&vec![0; 8192], &record, record.len(), seed)[0] == 1)
        );
    }

    #[test]
    fn a_durable_write_under_way_may_be_torn() {
        let disk = SimDisk::new(vec![0; 8192], 1);
        written(&disk, 0, 1, Durability::Durable);
        let record = disk.record();
        let mut images = (0..100).map(|seed| crash_image(&vec![0; 8192], &record, 1, seed));
        assert!(images.any(|image| image[0] != image[512]));
    }

    #[test]
    fn a_failing_sector_fails_the_request_that_touches_it() {
        let disk = SimDisk::new(vec![0; 8192], 1);
        let error = BlockError::Device { offset: 1024 };
        disk.fail_sector(2, error);
        assert_eq!(blocking::read(&disk, 512, 1024), Err(error));
        assert!(blocking::read(&disk, 0, 1024).is_ok());
        disk.heal();
        assert!(blocking::read(&disk, 512, 1024).is_ok());
    }

    #[test]
    fn late_completions_reach_whoever_waits() {
        let disk = SimDisk::new(vec![0; 1 << 17], 7);
        disk.set_latency(9);
        // Apart from each other: neighbours would go together.
        let writes = (0..16).map(|i| (i * 8192, vec![i as u8; 4096])).collect();
        blocking::write_all(&disk, writes).unwrap();
        assert_eq!(disk.contents()[15 * 8192], 15);
        let record = disk.record();
        let offsets = record.iter().map(|event| match event {
            Event::Write { offset, .. } => *offset,
            _ => 0,
        });
        assert!(!offsets.is_sorted(), "completions never changed places");
    }

    #[test]
    fn neighbours_are_written_together_up_to_the_longest_request() {
        let disk = SimDisk::new(vec![0; 4 << 20], 1);
        let writes = (0..600).map(|i| (i * 4096, vec![i as u8; 4096])).collect();
        blocking::write_all(&disk, writes).unwrap();
        // 128 buffers of 4 KiB each.
        assert_eq!(disk.requests(), 5);
        let long = vec![7; 3 << 20];
        blocking::write_all(&disk, vec![(0, long.clone())]).unwrap();
        assert_eq!(disk.requests(), 5 + 3);
        // Whole: byte by byte takes Miri minutes.
        assert!(disk.contents()[..3 << 20] == long);
    }
}
