//! Pages that come into memory, and bytes that are read from them.

use super::super::add;
use super::super::chunk::{Chunk, GROUP, PAGES, Slot, bits, mask};
use super::super::chunks::chunks_of;
use super::super::read_ahead::Window;
use super::super::transfer::Run;
use super::{CachedFile, MAX_RUN, PAGE, State, zero_from};
use crate::fs::FsError;
use crate::fs::block::BlockError;
use crate::mm::addr::Frame;
use crate::mm::frame::{Owner, Urgency};
use crate::mm::object::Pattern;
use crate::mm::trace::{self, Kind};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// Frames that runs of which are asked for together.
const GROUP_ORDER: u32 = GROUP.trailing_zeros();

/// The largest read-ahead: 4 MiB.
const MAX_WINDOW: u64 = 1024;

/// Frames that must be free before a chunk is made: more than the heap takes for that.
const HEAP_ROOM: u64 = 8;

impl CachedFile {
    /// Reads at `offset`; returns how much, less than asked for only at the end of the file. `bytes` cannot fault.
    pub fn read(self: &Arc<Self>, offset: u64, bytes: &mut [u8]) -> Result<usize, FsError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset.saturating_add(done as u64);
            let mut state = self.state.lock();
            if at >= state.size {
                break;
            }
            let (len, edge) = state.copy_out(self.cache.frames, at, &mut bytes[done..]);
            drop(state);
            done += len;
            let block = at / PAGE;
            if len == 0 {
                self.prime(block, Pattern::Normal)?;
                continue;
            }
            trace::record(
                Kind::Read,
                self.number,
                block..(at + len as u64).div_ceil(PAGE),
            );
            if let Some(edge) = edge {
                self.read_ahead(edge);
            }
        }
        Ok(done)
    }

    /// Brings a block into memory.
    pub(in crate::mm::cache) fn prime(
        self: &Arc<Self>,
        block: u64,
        pattern: Pattern,
    ) -> Result<(), FsError> {
        let bit = 1 << (block % PAGES);
        let mut has_waited = false;
        loop {
            let mut state = self.state.lock();
            if block >= state.blocks() {
                return Ok(());
            }
            match state.slot(block) {
                Slot::Resident(_) | Slot::Hole => return Ok(()),
                Slot::Busy => {
                    drop(self.wait_while(state, |state| state.slot(block) == Slot::Busy));
                    has_waited = true;
                    continue;
                }
                Slot::Absent => {}
            }
            let has_failed = state
                .chunk(block)
                .is_some_and(|chunk| chunk.failed & bit != 0);
            if has_failed && has_waited {
                return Err(state.read_error);
            }
            let is_alone = state
                .chunk(block)
                .is_some_and(|chunk| chunk.suspect & bit != 0);
            let pattern = if is_alone { Pattern::Random } else { pattern };
            let most = self.max_window();
            let mut window = state.ahead.on_miss(block, pattern, most);
            window.blocks.end = window.blocks.end.min(state.blocks());
            drop(state);
            add(&self.cache.counts.misses, 1);
            match self.read_window(&window, Some(block)) {
                Err(FsError::OutOfMemory) if self.cache.reclaim_or_write() => {}
                result => result?,
            }
            has_waited = true;
        }
    }

    pub(super) fn read_ahead(self: &Arc<Self>, block: u64) {
        let most = self.max_window();
        let mut state = self.state.lock();
        if let Some(chunk) = state.chunk(block) {
            chunk.edge &= !(1 << (block % PAGES));
        }
        let Some(mut window) = state.ahead.on_edge(block, most) else {
            return;
        };
        window.blocks.end = window.blocks.end.min(state.blocks());
        drop(state);
        // An error is one of memory: whoever needs the blocks will wait for it.
        let _ = self.read_window(&window, None);
    }

    /// The largest window there is memory for.
    pub(super) fn max_window(&self) -> u64 {
        (self.cache.frames.counts().total / 16).clamp(1, MAX_WINDOW)
    }

    /// Reads what is absent in a window; `wanted` is a block of it somebody waits for. Returns when all is on its way.
    pub(super) fn read_window(
        self: &Arc<Self>,
        window: &Window,
        wanted: Option<u64>,
    ) -> Result<(), FsError> {
        let mut rest = window.blocks.clone();
        // Behind the end of the file there is nothing to read.
        if rest.is_empty() {
            return Ok(());
        }
        self.cache.make_frames(rest.end - rest.start);
        while !rest.is_empty() {
            match self.begin_read(&rest, window, wanted) {
                Ok(Some(run)) => {
                    rest.start = run.blocks().end;
                    self.trace_read(&run, wanted);
                    self.read_run(&run);
                }
                Ok(None) => break,
                // What nobody waits for may as well be read later.
                Err(error) => {
                    return if rest == window.blocks {
                        Err(error)
                    } else {
                        Ok(())
                    };
                }
            }
        }
        Ok(())
    }

    /// Marks the first run of absent blocks in `blocks` as busy; `None` where there is none.
    pub(super) fn begin_read(
        self: &Arc<Self>,
        blocks: &Range<u64>,
        window: &Window,
        wanted: Option<u64>,
    ) -> Result<Option<Run>, FsError> {
        let mut frames = Vec::new();
        let most = (blocks.end - blocks.start).min(MAX_RUN as u64) as usize;
        frames
            .try_reserve_exact(most)
            .map_err(|_| FsError::OutOfMemory)?;
        let mut state = self.state.lock();
        let end = blocks.end.min(state.blocks());
        let Some(first) = state.first_absent(blocks.start, end) else {
            return Ok(None);
        };
        let mut at = first;
        while at < end && frames.len() < most && state.slot(at) == Slot::Absent {
            let chunk = match self.chunk_for(&mut state, at) {
                Ok(chunk) => chunk,
                Err(_) if at > first => break,
                Err(error) => return Err(error),
            };
            let group = mask(at % PAGES, (at % PAGES + GROUP).min(PAGES));
            let is_group = at.is_multiple_of(GROUP)
                && at + GROUP <= end
                && frames.len() + GROUP as usize <= most
                && (chunk.resident | chunk.busy | chunk.hole) & group == 0;
            let (frame, count) = match self.alloc(is_group) {
                Ok(some) => some,
                Err(_) if at > first => break,
                Err(error) => return Err(error),
            };
            match count {
                GROUP => chunk.begin_group((at % PAGES) as u32, frame),
                _ => chunk.begin((at % PAGES) as u32, frame),
            }
            frames.extend((frame.0..frame.0 + count).map(Frame));
            let pages = mask(at % PAGES, at % PAGES + count);
            let bit_of = |block: Option<u64>| match block {
                Some(block) if block / PAGES == at / PAGES => pages & 1 << (block % PAGES),
                _ => 0,
            };
            // Nobody had time to ask for them yet: the hand spares them once.
            let ahead = pages & !bit_of(wanted);
            chunk.ahead |= ahead;
            chunk.heat[0] |= ahead;
            add(&self.cache.counts.read_ahead, ahead.count_ones().into());
            // Evicted too early: the next rounds of the hand spare them.
            let refaults = chunk.evicted & pages;
            chunk.evicted &= !pages;
            chunk.heat = chunk.heat.map(|heat| heat | refaults);
            add(&self.cache.counts.refaults, refaults.count_ones().into());
            chunk.edge |= bit_of(window.edge);
            at += count;
        }
        Ok(Some(Run { first, frames }))
    }

    /// The chunk of `block`, a new one if need be. Takes memory from the heap, and says so if there is none.
    pub(super) fn chunk_for<'s>(
        self: &Arc<Self>,
        state: &'s mut State,
        block: u64,
    ) -> Result<&'s mut Chunk, FsError> {
        let number = block / PAGES;
        if state.chunks.get(number).is_none() {
            if !self.cache.frames.has(HEAP_ROOM, Urgency::Kernel) {
                return Err(FsError::OutOfMemory);
            }
            let place = self.cache.enrol(self, number)?;
            let mut chunk = Box::new(Chunk::EMPTY);
            chunk.place = place;
            state.chunks.insert(number, chunk);
        }
        state.chunk(block).ok_or(FsError::OutOfMemory)
    }

    /// A frame, or a group of them where that is possible and wanted.
    pub(super) fn alloc(&self, is_group: bool) -> Result<(Frame, u64), FsError> {
        let frames = self.cache.frames;
        if is_group && let Ok(first) = frames.alloc_run(Owner::Cache, Urgency::Data, GROUP_ORDER) {
            return Ok((first, GROUP));
        }
        let frame = frames.alloc(Owner::Cache, Urgency::Data);
        frame
            .map(|frame| (frame, 1))
            .map_err(|_| FsError::OutOfMemory)
    }

    /// A run is about to be read, of which somebody waits for `wanted`.
    pub(super) fn trace_read(&self, run: &Run, wanted: Option<u64>) {
        let Range { mut start, end } = run.blocks();
        if let Some(wanted) = wanted.filter(|wanted| run.blocks().contains(wanted)) {
            trace::record(Kind::Ahead, self.number, start..wanted);
            trace::record(Kind::Miss, self.number, wanted..wanted + 1);
            start = wanted + 1;
        }
        trace::record(Kind::Ahead, self.number, start..end);
    }

    /// Reads have ended. Called by the device's interrupt.
    pub(in crate::mm::cache) fn end_read(&self, blocks: Range<u64>, result: Result<(), FsError>) {
        let mut state = self.state.lock();
        let size = state.size;
        if let Err(error) = result {
            state.read_error = error;
        }
        // One bad block fails a whole request: who needs any of them tries it alone. A device that is silent is not asked
        // again.
        let is_silent = matches!(result, Err(FsError::Block(BlockError::TimedOut { .. })));
        let is_sure = is_silent || blocks.end - blocks.start == 1;
        for (number, pages) in chunks_of(blocks.clone()) {
            let Some(chunk) = state.chunks.find(number) else {
                continue;
            };
            let first = number * PAGES;
            if result.is_err() {
                if is_sure {
                    chunk.failed |= pages;
                } else {
                    chunk.suspect |= pages;
                }
                for i in bits(pages) {
                    self.cache.frames.free(chunk.take(i), Owner::Cache);
                }
                continue;
            }
            // What lies past the end of the file is zeros, whatever the device holds.
            if (first..first + PAGES).contains(&(size / PAGE))
                && pages >> (size / PAGE - first) & 1 != 0
            {
                zero_from(
                    self.pointer(chunk.frame((size / PAGE - first) as u32)),
                    size % PAGE,
                );
            }
            chunk.publish(pages);
        }
        drop(state);
        let kind = if result.is_ok() {
            Kind::Filled
        } else {
            Kind::NotRead
        };
        trace::record(kind, self.number, blocks);
        self.changed.wake_all();
    }

    /// The block has a place on the device.
    pub(in crate::mm::cache) fn note_backed(&self, block: u64) {
        if let Some(chunk) = self.state.lock().chunk(block) {
            chunk.backed |= 1 << (block % PAGES);
        }
    }

    /// Busy blocks are holes.
    pub(in crate::mm::cache) fn become_holes(&self, blocks: &[u64]) {
        if blocks.is_empty() {
            return;
        }
        for block in blocks {
            let mut state = self.state.lock();
            let Some(chunk) = state.chunk(*block) else {
                continue;
            };
            let frame = chunk.take((block % PAGES) as u32);
            chunk.hole |= 1 << (block % PAGES);
            drop(state);
            self.cache.frames.free(frame, Owner::Cache);
        }
        self.changed.wake_all();
    }
}
