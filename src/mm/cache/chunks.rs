//! A file's chunks, by number: those that something is known of.

use super::chunk::{Chunk, PAGES, mask};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::ops::{Range, RangeBounds};
use core::ptr::NonNull;

/// A file's chunks, by number.
pub(super) struct Chunks {
    /// Each leaked from a box, and its only pointer, but for `last`.
    by_number: BTreeMap<u64, NonNull<Chunk>>,
    /// The one that was found last: most who come next want the same.
    last: (u64, NonNull<Chunk>),
}

/// No chunk has such a number.
const NOTHING_FOUND: (u64, NonNull<Chunk>) = (u64::MAX, NonNull::dangling());

// SAFETY: the chunks are the value's own.
unsafe impl Send for Chunks {}

// Everything below that follows a pointer may do so: a chunk lives until `remove`, which empties `last`, and is borrowed
// as `self` is.
impl Chunks {
    pub(super) fn new() -> Self {
        Self {
            by_number: BTreeMap::new(),
            last: NOTHING_FOUND,
        }
    }

    #[inline]
    pub(super) fn find(&mut self, number: u64) -> Option<&mut Chunk> {
        match self.last {
            // SAFETY: as said above.
            (last, mut chunk) if last == number => Some(unsafe { chunk.as_mut() }),
            _ => self.find_other(number),
        }
    }

    #[inline(never)]
    fn find_other(&mut self, number: u64) -> Option<&mut Chunk> {
        let mut chunk = *self.by_number.get(&number)?;
        self.last = (number, chunk);
        // SAFETY: as said above.
        Some(unsafe { chunk.as_mut() })
    }

    pub(super) fn insert(&mut self, number: u64, chunk: Box<Chunk>) {
        self.remove(number);
        self.by_number
            .insert(number, NonNull::from(Box::leak(chunk)));
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.last = NOTHING_FOUND;
        if let Some(chunk) = self.by_number.remove(&number) {
            // SAFETY: leaked from a box by `insert`, and nobody has it any more.
            drop(unsafe { Box::from_raw(chunk.as_ptr()) });
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&Chunk> {
        // SAFETY: as said above.
        self.by_number
            .get(&number)
            .map(|chunk| unsafe { chunk.as_ref() })
    }

    /// Those with numbers in `range`, ascending.
    pub(super) fn range(
        &self,
        range: impl RangeBounds<u64>,
    ) -> impl Iterator<Item = (u64, &Chunk)> {
        let chunks = self.by_number.range(range);
        // SAFETY: as said above.
        chunks.map(|(number, chunk)| (*number, unsafe { chunk.as_ref() }))
    }

    pub(super) fn range_mut(
        &mut self,
        range: impl RangeBounds<u64>,
    ) -> impl Iterator<Item = (u64, &mut Chunk)> {
        let chunks = self.by_number.range_mut(range);
        // SAFETY: as said above; each is handed out once.
        chunks.map(|(number, chunk)| (*number, unsafe { chunk.as_mut() }))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.range(..)
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        while let Some((&number, _)) = self.by_number.first_key_value() {
            self.remove(number);
        }
    }
}

/// Chunks with those of their pages that lie in `blocks`, as a mask.
pub(super) fn chunks_of(blocks: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut at = blocks.start;
    core::iter::from_fn(move || {
        if at >= blocks.end {
            return None;
        }
        let chunk = at / PAGES;
        let first = chunk * PAGES;
        let end = blocks.end.min(first + PAGES);
        let pages = mask(at - first, end - first);
        at = end;
        Some((chunk, pages))
    })
}
