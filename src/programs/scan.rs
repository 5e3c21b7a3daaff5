//! Goes through a mapped file with several threads: while one waits for the disk, another computes.

use crate::mmap::{Advice, Mmap, MmapError};
use crate::program::fs::File;
use crate::program::thread;
use crate::sync::SpinLock;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a piece.
const PIECE: usize = 1 << 20;

/// Threads: one computes, the others wait for their first pages.
const THREADS: usize = 3;

/// Why a file was not gone through.
pub(super) enum ScanError {
    /// It was not mapped.
    Map(MmapError),
    /// There are no threads to be had.
    Threads(thread::SpawnError),
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Threads(error) => error.fmt(f),
        }
    }
}

/// Maps the file at `path`.
pub(super) fn map(path: &str) -> Result<Mmap, ScanError> {
    let file = File::open(path).map_err(|error| ScanError::Map(error.into()))?;
    // SAFETY: who changes the file meanwhile gets the result of neither before nor after, but no harm comes of it: bytes are
    // looked at one by one, and no assumption about them is kept.
    unsafe { Mmap::map(&file) }.map_err(ScanError::Map)
}

/// The bytes of a piece.
pub(super) fn piece(map: &Mmap, number: usize) -> Range<usize> {
    number * PIECE..((number + 1) * PIECE).min(map.len())
}

/// Calls `f` with each piece of `map`, in any order; what it returned, in the order of the pieces.
pub(super) fn pieces<R: Send>(
    map: &Mmap,
    f: &(dyn Fn(&[u8], Range<usize>) -> R + Sync),
) -> Result<Vec<R>, ScanError> {
    map.advise(Advice::Sequential).map_err(ScanError::Map)?;
    let next = AtomicUsize::new(0);
    let count = map.len().div_ceil(PIECE);
    let results = SpinLock::new(Vec::from_iter((0..count).map(|_| None)));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let Range { start, end } = piece(map, number);
            // Its reads begin now, and are under way while others compute. Advice that is not taken costs time only.
            let _ = map.advise_range(Advice::WillNeed, start, end - start);
            let result = f(map, start..end);
            results.lock()[number] = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..THREADS.min(count) {
            scope.spawn(work)?;
        }
        work();
        Ok(())
    })
    .map_err(ScanError::Threads)?;
    let results = core::mem::take(&mut *results.lock());
    Ok(results.into_iter().flatten().collect())
}
