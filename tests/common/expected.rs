//! What the bytes of a file may be, in memory and after a power cut, when errors and others leave more than one answer.

use super::machine::PAGE;
use pinfold::fs::FsError;
use std::fmt;
use std::ops::Range;

/// The values that a byte may have.
#[derive(Clone, Copy)]
pub struct Values([u64; 4]);

impl Values {
    pub fn only(value: u8) -> Self {
        let mut values = Self([0; 4]);
        values.add(value);
        values
    }

    pub fn add(&mut self, value: u8) {
        self.0[usize::from(value / 64)] |= 1 << (value % 64);
    }

    pub fn contains(self, value: u8) -> bool {
        self.0[usize::from(value / 64)] & 1 << (value % 64) != 0
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = (0..=u8::MAX).filter(|value| self.contains(*value));
        f.debug_set().entries(all).finish()
    }
}

/// What the file may be. At first it is empty.
#[derive(Default)]
pub struct Expected {
    /// In memory, each of its bytes.
    pub now: Vec<Values>,
    /// After a power cut, if it is that long. Behind the end of this there are zeros.
    durable: Vec<Values>,
    /// After a power cut, the least and the most.
    sizes: (u64, u64),
}

impl Expected {
    pub fn size(&self) -> u64 {
        self.now.len() as u64
    }

    /// These bytes may be found after a power cut from now on.
    pub fn may_become_durable(&mut self, bytes: Range<u64>, value: u8) {
        let (start, end) = (bytes.start as usize, bytes.end as usize);
        if self.durable.len() < end {
            self.durable.resize(end, Values::only(0));
        }
        for values in self.durable.iter_mut().take(end).skip(start) {
            values.add(value);
        }
    }

    /// The file ends at `size`, after zeros where it is longer than before. The rest of the last page of a cut is zeroed on the
    /// device, perhaps before the file is cut there.
    pub fn resize(&mut self, size: u64) {
        let (least, most) = (self.size().min(size), self.size().max(size));
        let zeroed = match size == least {
            true => most.min(size.next_multiple_of(PAGE)),
            false => most,
        };
        self.may_become_durable(least..zeroed, 0);
        self.now.resize(size as usize, Values::only(0));
        self.sizes = (self.sizes.0.min(size), self.sizes.1.max(size));
    }

    /// `result` came of writing these bytes: after an error a part of it may have been done.
    pub fn write(&mut self, bytes: Range<u64>, value: u8, result: Result<(), FsError>) {
        self.may_become_durable(bytes.clone(), value);
        let (start, end) = (bytes.start as usize, bytes.end as usize);
        for values in self.now.iter_mut().take(end).skip(start) {
            match result {
                Ok(()) => *values = Values::only(value),
                Err(_) => values.add(value),
            }
        }
    }

    /// What others stored while `unclear` bytes changed: there nobody knows who was first.
    pub fn stored(&mut self, stored: Vec<(u64, u8)>, unclear: &Range<u64>) {
        for (at, value) in stored {
            self.may_become_durable(at..at + 1, value);
            match self.now.get_mut(at as usize) {
                Some(values) if unclear.contains(&at) => values.add(value),
                Some(values) => *values = Values::only(value),
                None => {}
            }
        }
    }

    /// A commit: what was cut off is gone for good.
    pub fn committed(&mut self) {
        self.durable.truncate(self.now.len());
        // What was not written is not there, perhaps.
        self.sizes = (self.sizes.0.min(self.size()), self.size());
    }

    pub fn synced(&mut self) {
        self.durable.clone_from(&self.now);
        self.sizes = (self.size(), self.size());
    }

    /// These bytes are durable, as far as the file has them.
    pub fn synced_part(&mut self, bytes: Range<u64>) {
        let (start, end) = (bytes.start.min(self.size()), bytes.end.min(self.size()));
        let len = self.durable.len().max(end as usize);
        self.durable.resize(len, Values::only(0));
        let part = start as usize..end as usize;
        self.durable[part.clone()].copy_from_slice(&self.now[part]);
        self.sizes.0 = self.sizes.0.max(end);
    }

    pub fn check(&self, found: &[u8]) {
        assert_eq!(found.len(), self.now.len());
        for (at, (byte, values)) in found.iter().zip(&self.now).enumerate() {
            assert!(
                values.contains(*byte),
                "byte {at} is {byte}, not {values:?}"
            );
        }
    }

    pub fn check_after_power_cut(&self, found: &[u8]) {
        let (size, (least, most)) = (found.len() as u64, self.sizes);
        assert!(
            (least..=most).contains(&size),
            "{size} is not in {least}..={most}"
        );
        for (at, byte) in found.iter().enumerate() {
            let values = self.durable.get(at).copied();
            let values = values.unwrap_or(Values::only(0));
            assert!(
                values.contains(*byte),
                "byte {at} is {byte}, not {values:?}"
            );
        }
    }
}
