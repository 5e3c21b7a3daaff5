//! Dirty pages to the device.
//!
//! ```text
//!   begin: dirty -> writing        from here on a store makes the page dirty once more
//!     |  every alias is write-protected: what was stored so far is in the frame, what comes later faults
//!     |  what lies past the end of the file is zeroed
//!     |  the file system gives the run its place, for which room was promised at the first store
//!   transfer                       several runs are in flight
//!     |
//!   written: the file system learns that the place holds data, and how long the file is by now
//!     |
//!   end: writing -> clean; after an error back to dirty, and the file remembers
//! ```

use super::chunk::{PAGES, bits};
use super::chunks::chunks_of;
use super::file::{CachedFile, MAX_RUN, Room};
use super::transfer::{Batch, Run, Units};
use super::{PageCache, VolumeId, add};
use crate::fs::error::Structure;
use crate::fs::{Backing, FileId, FileSystem, FsError, Reservation};
use crate::mm::addr::PAGE_SIZE;
use crate::mm::trace::{self, Kind};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

const PAGE: u64 = PAGE_SIZE as u64;

/// Runs in flight at a time.
const DEPTH: usize = 8;

/// A run on its way.
struct Flight {
    run: Run,
    batch: Arc<Batch>,
    bytes: Range<u64>,
    /// Where the file ended when it was launched: what comes behind is not in it.
    size: u64,
}

/// What write-back finds next.
enum Next {
    Run(Run, Reservation),
    /// A page that is dirty, and is being written as it was before.
    Wait(u64),
    Nothing,
}

impl CachedFile {
    /// Writes what is dirty in `blocks`. Pages that are being written, and have not changed since, are not waited for.
    pub(super) fn write_back(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), FsError> {
        let mut flights = VecDeque::new();
        let mut result = Ok(());
        let mut at = blocks.start;
        loop {
            match self.begin_write(at..blocks.end) {
                Next::Run(run, promise) => {
                    at = run.blocks().end;
                    match self.launch(run, promise) {
                        Ok(flight) => flights.push_back(flight),
                        Err(error) => result = result.and(Err(error)),
                    }
                    if flights.len() >= DEPTH
                        && let Some(flight) = flights.pop_front()
                    {
                        result = result.and(self.finish(flight));
                    }
                }
                Next::Wait(block) => {
                    // It may be one of ours.
                    for flight in flights.drain(..) {
                        result = result.and(self.finish(flight));
                    }
                    self.wait_for_writes(block..block + 1);
                }
                Next::Nothing => break,
            }
        }
        for flight in flights {
            result = result.and(self.finish(flight));
        }
        result
    }

    /// Returns when all of the file is durable, with all that is known about it.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn sync_all(self: &Arc<Self>) -> Result<(), FsError> {
        self.sync_by(0..u64::MAX, |fs, file| fs.sync_file(file))
    }

    /// Returns when the blocks, as they are now, are durable, with all that is needed to find them. When the file was
    /// changed last may be told later.
    ///
    /// # Errors
    /// What went wrong now, or with an earlier write of this file that nobody was told of.
    pub fn sync(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), FsError> {
        // What is appended from now on is not meant.
        let end = blocks.end.saturating_mul(PAGE).min(self.size());
        self.sync_by(blocks, |fs, file| {
            let noted = self.note_size(end);
            fs.sync_data(file).and(noted)
        })
    }

    fn sync_by(
        self: &Arc<Self>,
        blocks: Range<u64>,
        make_durable: impl FnOnce(&dyn FileSystem, FileId) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let written = self.write_out(blocks);
        let flushed = make_durable(self.fs(), self.id());
        let earlier = self.lock().write_error.take().map_or(Ok(()), Err);
        written.and(earlier).and(flushed)
    }

    /// Writes what is dirty of the blocks to the device, without making it durable, and returns when none of it is on its
    /// way any more, whoever began to write it.
    pub fn write_out(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), FsError> {
        loop {
            let failures = self.lock().failures;
            let written = self.write_back(blocks.clone());
            self.wait_for_writes(blocks.clone());
            // What somebody else could not write meanwhile is dirty again: it is ours to try.
            if written.is_err() || self.lock().failures == failures {
                return written;
            }
        }
    }

    pub(super) fn wait_for_writes(&self, blocks: Range<u64>) {
        drop(self.wait_while(self.lock(), |state| {
            let range = blocks.start / PAGES..blocks.end.div_ceil(PAGES);
            state.chunks.range(range).any(|(number, chunk)| {
                if chunk.writing == 0 {
                    return false;
                }
                let first = number * PAGES;
                let pages = chunks_of(blocks.start.max(first)..blocks.end.min(first + PAGES));
                chunk.writing & pages.fold(0, |all, (_, pages)| all | pages) != 0
            })
        }));
    }

    /// The first run of dirty blocks, which are marked as being written.
    fn begin_write(&self, blocks: Range<u64>) -> Next {
        // Not with the lock held: memory for it may have to be reclaimed.
        let mut frames = Vec::with_capacity(MAX_RUN);
        let mut promise = Reservation::NONE;
        let mut state = self.lock();
        // With blocks smaller than a page, the last page gets places up to the end only: its next store needs room anew.
        let size = state.size;
        let has_part = !size.is_multiple_of(PAGE) && self.block_size() < PAGE;
        let part = has_part.then_some(size / PAGE);
        let part_of = |number: u64| match part {
            Some(block) if block / PAGES == number => 1 << (block % PAGES),
            _ => 0,
        };
        let mut first = None;
        let mut next = 0;
        'run: for (number, chunk) in state
            .chunks
            .range_mut(blocks.start / PAGES..blocks.end.div_ceil(PAGES))
        {
            if chunk.dirty == 0 {
                continue;
            }
            let start = number * PAGES;
            let range = blocks.start.max(start)..blocks.end.min(start + PAGES);
            let meant = chunks_of(range).fold(0, |all, (_, pages)| all | pages);
            let mut taken = 0;
            for i in bits(chunk.dirty & meant) {
                let block = start + u64::from(i);
                let is_next = first.is_none() || block == next;
                if !is_next || frames.len() == MAX_RUN || chunk.writing & 1 << i != 0 {
                    if first.is_none() {
                        return Next::Wait(block);
                    }
                    promise.merge(begin(chunk, taken, part_of(number)));
                    break 'run;
                }
                first.get_or_insert(block);
                next = block + 1;
                frames.push(chunk.frame(i));
                taken |= 1 << i;
            }
            promise.merge(begin(chunk, taken, part_of(number)));
        }
        match first {
            Some(first) => Next::Run(Run { first, frames }, promise),
            None => Next::Nothing,
        }
    }

    /// Sends a run on its way.
    fn launch(self: &Arc<Self>, run: Run, promise: Reservation) -> Result<Flight, FsError> {
        trace::record(Kind::Writing, self.number(), run.blocks());
        self.write_protect(run.blocks());
        let size = self.zero_behind_end(&run);
        let bytes = run.bytes();
        let end = bytes.end.min(size.next_multiple_of(self.block_size()));
        let bytes = bytes.start..end.max(bytes.start);
        let batch = Batch::new();
        if bytes.is_empty() {
            // Cut off meanwhile: whoever does that waits for us, and then drops the pages.
            self.fs().release(promise);
            return Ok(Flight {
                run,
                batch,
                bytes,
                size,
            });
        }
        let len = bytes.end - bytes.start;
        let mut promise = promise;
        let extents = match self
            .fs()
            .allocate(self.id(), bytes.start, len, &mut promise)
        {
            Ok(extents) => extents,
            Err(error) => {
                self.end_write(&run, Err(error), promise);
                return Err(error);
            }
        };
        let mut units = Units::write(self, batch.clone());
        for extent in &extents {
            match extent.backing {
                Backing::Written(place) | Backing::Unwritten(place) => {
                    units.add(&run, extent, place)
                }
                // It was given a place just now.
                Backing::Hole => {
                    units.launch();
                    let _ = batch.wait(self.device());
                    let error = FsError::corrupt(Structure::Extent, self.id().0, extent.offset);
                    self.end_write(&run, Err(error), promise);
                    return Err(error);
                }
            }
        }
        units.launch();
        Ok(Flight {
            run,
            batch,
            bytes,
            size,
        })
    }

    /// Zeroes what a run holds past the end of the file; returns where that is.
    fn zero_behind_end(&self, run: &Run) -> u64 {
        // Not opened meanwhile: who appends to the page does so with the lock held.
        let state = self.lock();
        let size = state.size;
        let (block, from) = (size / PAGE, (size % PAGE) as usize);
        if from > 0 && run.blocks().contains(&block) {
            // SAFETY: the frame stays while it is being written; stores to it fault, or come before ours.
            unsafe {
                self.pointer(run.frame(block))
                    .add(from)
                    .write_bytes(0, PAGE_SIZE - from)
            };
        }
        size
    }

    /// Waits for a run.
    fn finish(self: &Arc<Self>, flight: Flight) -> Result<(), FsError> {
        let Flight {
            run,
            batch,
            bytes,
            size,
        } = flight;
        let mut result = batch.wait(self.device());
        if result.is_ok() && !bytes.is_empty() {
            let size = self.lock().size.min(size).min(bytes.end);
            let len = bytes.end - bytes.start;
            let written = self.fs().written(self.id(), bytes.start, len, size);
            result = written;
        }
        let promise = match result {
            // Its last page may have got places for a part, and the file have grown since. Where there is no room by now,
            // there is what is held back.
            Err(_) => {
                let (offset, len) = (run.bytes().start, run.bytes().end - run.bytes().start);
                let promise = self.fs().reserve(self.id(), offset, len);
                promise.unwrap_or(Reservation::NONE)
            }
            Ok(()) => Reservation::NONE,
        };
        self.end_write(&run, result, promise);
        result
    }

    /// A run is not on its way any more. After an error its pages are dirty as before, with what is still promised to them.
    fn end_write(&self, run: &Run, result: Result<(), FsError>, promise: Reservation) {
        let shared = self.share(promise, run.blocks());
        // Where nobody can say who lacks a place, each has a share.
        let evenly = |(promise, _)| Room::shared_by(vec![run.blocks()], promise);
        let mut room = shared.unwrap_or_else(evenly);
        let mut state = self.lock();
        let mut clean = 0;
        for (number, pages) in chunks_of(run.blocks()) {
            let Some(chunk) = state.chunks.find(number) else {
                continue;
            };
            chunk.writing &= !pages;
            if result.is_ok() {
                clean += u64::from((pages & !chunk.dirty).count_ones());
            } else {
                chunk.dirty |= pages;
                for i in bits(pages) {
                    chunk.give_room(1 << i, room.take(number * PAGES + u64::from(i)));
                }
            }
        }
        let count = run.frames.len() as u64;
        match result {
            Ok(()) => add(&self.cache().counts.written, count),
            Err(error) => {
                add(&self.cache().counts.failed, count);
                state.failures += 1;
                state.write_error.get_or_insert(error);
            }
        }
        drop(state);
        self.end_sharing(room);
        let kind = if result.is_ok() {
            Kind::Written
        } else {
            Kind::NotWritten
        };
        trace::record(kind, self.number(), run.blocks());
        self.cache().note_clean(clean);
        self.wake();
    }

    fn has_dirty(&self) -> bool {
        self.lock().chunks.all().any(|(_, chunk)| chunk.dirty != 0)
    }
}

/// Dirty pages of a chunk begin to be written, of which those in `parts` will not get places for all of their bytes;
/// returns what was promised to them.
fn begin(chunk: &mut super::chunk::Chunk, pages: u64, parts: u64) -> Reservation {
    chunk.dirty &= !pages;
    chunk.writing |= pages;
    let promise = chunk.redeem(pages);
    chunk.backed &= !(pages & parts);
    promise
}

impl PageCache {
    /// Pages that may be dirty before the writer thread is woken, and before whoever makes more of them writes some.
    fn dirty_limits(&self) -> (u64, u64) {
        let total = match self.total.load(Ordering::Relaxed) {
            0 => {
                let total = self.frames.counts().total;
                self.total.store(total, Ordering::Relaxed);
                total
            }
            total => total,
        };
        (total / 8, total / 8 * 3)
    }

    pub(super) fn note_dirty(&self, pages: u64) {
        add(&self.dirty, pages);
    }

    pub(super) fn note_clean(&self, pages: u64) {
        self.dirty.fetch_sub(pages, Ordering::Relaxed);
    }

    pub(super) fn has_too_much_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed) > self.dirty_limits().1
    }

    /// Writes some pages back if too many are dirty. An error says that they still are.
    pub(super) fn limit_dirty(&self) -> Result<(), FsError> {
        let (soft, _) = self.dirty_limits();
        if self.dirty.load(Ordering::Relaxed) > soft {
            self.press();
        }
        if !self.has_too_much_dirty() {
            return Ok(());
        }
        let mut result = Ok(());
        for file in self.files(None) {
            result = result.and(file.write_back(0..u64::MAX));
            if !self.has_too_much_dirty() {
                return Ok(());
            }
        }
        result?;
        // The rest is being written by others: it is waited for, not asked about again and again.
        self.files(None).any(|file| file.wait_for_transfer());
        Ok(())
    }

    /// Writes all dirty pages of one file system, or of all, to their devices; the first error, after all were tried.
    /// They are durable once the file system was synced.
    pub fn write_back(&self, volume: Option<VolumeId>) -> Result<(), FsError> {
        let mut result = Ok(());
        for file in self.files(volume) {
            if file.has_dirty() {
                result = result.and(file.write_back(0..u64::MAX));
            }
        }
        result
    }

    /// Writes all that is dirty of one file system to its device, and returns when none of it is on its way any more,
    /// whoever began to write it.
    pub fn write_out(&self, volume: VolumeId) -> Result<(), FsError> {
        let mut result = Ok(());
        for file in self.files(Some(volume)) {
            result = result.and(file.write_out(0..u64::MAX));
        }
        result
    }

    /// Whether maps show a file of the file system.
    pub fn is_mapped(&self, volume: VolumeId) -> bool {
        self.files(Some(volume)).any(|file| file.is_mapped())
    }

    /// Lets nothing of these files become dirty any more, before the last of what is is written.
    pub fn refuse_stores(&self, volume: VolumeId) {
        for file in self.files(Some(volume)) {
            file.refuse_stores();
        }
    }

    /// Ends all files of a file system that is about to be unmounted: what is not written is lost.
    pub fn end_volume(&self, volume: VolumeId) -> Result<(), FsError> {
        let _ending = self.ending.lock();
        let mut result = Ok(());
        for file in self.files(Some(volume)) {
            self.files.lock().remove(&(volume, file.id()));
            result = result.and(file.end());
        }
        result
    }

    /// Has the writer thread look at once.
    pub fn press(&self) {
        *self.is_pressed.lock() = true;
        self.pressed.wake_all();
    }

    /// Waits until somebody [presses](Self::press), for `us` microseconds at most; whether somebody did.
    #[cfg(target_os = "none")]
    pub fn wait_for_pressure(&self, us: u64) -> bool {
        let mut is_pressed = self.is_pressed.lock();
        if !*is_pressed {
            (is_pressed, _) = self.pressed.wait_timeout(is_pressed, us);
        }
        core::mem::take(&mut *is_pressed)
    }

    /// Closes files that nobody needs any more. For the writer thread.
    pub fn tidy(&self) -> Result<(), FsError> {
        let mut result = Ok(());
        for file in self.files(None) {
            if file.is_idle() {
                result = result.and(self.forget(&file).map(drop));
            }
        }
        result
    }
}
