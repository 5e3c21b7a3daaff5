//! A file in the cache.

mod handle;
mod resize;
mod room;

pub use handle::FileHandle;
pub use resize::Hold;
pub(super) use room::Room;

use super::chunk::{Chunk, GROUP, PAGES, Slot, bits, mask};
use super::chunks::{Chunks, chunks_of};
use super::read_ahead::{ReadAhead, Window};
use super::transfer::Run;
use super::{PageCache, VolumeId, add};
use crate::arch::page;
use crate::fs::block::{BlockDevice, BlockError};
use crate::fs::error::ReadOnlyReason;
use crate::fs::{Backing, Extent, FileId, FileKind, FileSystem, FsError};
use crate::mm::addr::{Frame, PAGE_SIZE};
use crate::mm::frame::{Frames, Owner, Urgency};
use crate::mm::object::{FileKey, Lookup, Pattern, Which};
use crate::mm::trace::{self, Kind};
use crate::sync::{Mutex, SpinLock, SpinLockGuard, WaitQueue};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::{Deref, Range};
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

const PAGE: u64 = PAGE_SIZE as u64;

/// The most blocks of one run: what most devices take in one request.
pub(super) const MAX_RUN: usize = 256;

/// Frames that runs of which are asked for together.
const GROUP_ORDER: u32 = GROUP.trailing_zeros();

/// The largest read-ahead: 4 MiB.
const MAX_WINDOW: u64 = 1024;

/// Frames that must be free before a chunk is made: more than the heap takes for that.
const HEAP_ROOM: u64 = 8;

/// A file, and those of its pages that are in memory.
pub struct CachedFile {
    cache: &'static PageCache,
    volume: VolumeId,
    fs: Arc<dyn FileSystem>,
    device: Arc<dyn BlockDevice>,
    id: FileId,
    number: u32,
    name: Once<String>,
    block_size: u64,
    /// Nothing of it may become dirty. Read with the state locked by whoever makes a page dirty: what is found dirty after
    /// this was set is all there will be.
    is_read_only: AtomicBool,
    state: SpinLock<State>,
    /// Where those wait who need a page that is busy or being written.
    changed: WaitQueue,
    /// Held by whoever changes the size.
    resizing: Mutex<()>,
}

pub(super) struct State {
    pub size: u64,
    pub chunks: Chunks,
    ahead: ReadAhead,
    hits: u64,
    used: u64,
    /// Asked for last: asking again at once says nothing.
    last_touched: u64,
    read_error: FsError,
    /// What went wrong with a write that nobody was told of.
    pub write_error: Option<FsError>,
    /// Runs that could not be written, ever.
    pub failures: u64,
    users: u32,
    is_unlinked: bool,
    /// The device may hold something behind the end, in the last page: it was cut, and not written since.
    is_unsettled: bool,
    /// Where the file is about to end, if it is growing.
    growing_to: u64,
    handle: Weak<FileHandle>,
    /// Sizes that the file must keep.
    holds: Vec<u64>,
}

impl State {
    /// Blocks of the file.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(PAGE)
    }

    #[inline]
    pub(super) fn chunk(&mut self, block: u64) -> Option<&mut Chunk> {
        self.chunks.find(block / PAGES)
    }

    fn slot(&self, block: u64) -> Slot {
        match self.chunks.get(block / PAGES) {
            Some(chunk) => chunk.slot((block % PAGES) as u32),
            None => Slot::Absent,
        }
    }

    /// The first absent block from `at` on, before `end`.
    fn first_absent(&self, mut at: u64, end: u64) -> Option<u64> {
        while at < end {
            let Some(chunk) = self.chunks.get(at / PAGES) else {
                return Some(at);
            };
            let absent = !(chunk.resident | chunk.busy | chunk.hole) & mask(at % PAGES, PAGES);
            let first = at - at % PAGES + u64::from(absent.trailing_zeros());
            if absent != 0 {
                return (first < end).then_some(first);
            }
            at = first;
        }
        None
    }

    /// Looks a block up, and pins it where it is resident, if `may` allows that, which gets its chunk and its bit.
    #[inline(always)]
    fn pin(&mut self, block: u64, may: impl FnOnce(&mut Chunk, u64) -> bool) -> Lookup {
        // Maps end where a file can: the product is in range.
        if block * PAGE >= self.size {
            return Lookup::PastEnd;
        }
        let (page, bit) = ((block % PAGES) as u32, 1 << (block % PAGES));
        let Some(chunk) = self.chunks.find(block / PAGES) else {
            return Lookup::Absent;
        };
        if chunk.resident & bit == 0 {
            return match chunk.slot(page) {
                Slot::Hole => Lookup::Hole,
                Slot::Busy => Lookup::Busy,
                _ => Lookup::Absent,
            };
        }
        if !may(chunk, bit) {
            return Lookup::NoRoom;
        }
        let frame = chunk.pin(page);
        self.hits += 1;
        if self.last_touched != block {
            self.last_touched = block;
            let used = chunk.touch(bit);
            if used != 0 {
                self.used += u64::from(used);
            }
        }
        match chunk.edge & bit {
            0 => Lookup::Resident(frame),
            _ => Lookup::Edge(frame),
        }
    }

    /// Somebody asks for resident pages of a chunk.
    #[inline]
    fn touch(&mut self, number: u64, pages: u64) {
        if pages == 0 {
            return;
        }
        self.hits += u64::from(pages.count_ones());
        // Who asks for a page in parts, one after the other, asks for it once.
        let last = self.last_touched;
        let again = u64::from(last / PAGES == number) << (last % PAGES);
        self.last_touched = number * PAGES + u64::from(pages.ilog2());
        if let Some(chunk) = self.chunks.find(number) {
            self.used += u64::from(chunk.touch(pages & !again));
        }
    }

    /// Copies bytes from `at`, which lies in the file, on: those of resident pages and of holes, up to the end of a group
    /// of pages. Says how many, and where it stopped for what follows to be read.
    fn copy_out(&mut self, frames: &Frames, at: u64, bytes: &mut [u8]) -> (usize, Option<u64>) {
        let first = at / PAGE;
        let end = (first - first % GROUP + GROUP) * PAGE;
        let len = (bytes.len() as u64).min(self.size.min(end) - at) as usize;
        let Some(chunk) = self.chunks.find(first / PAGES) else {
            return (0, None);
        };
        let (mut done, mut asked_for, mut edge) = (0, 0, None);
        while done < len && edge.is_none() {
            let block = (at + done as u64) / PAGE;
            let from = (at + done as u64) as usize % PAGE_SIZE;
            let to = &mut bytes[done..len.min(done + PAGE_SIZE - from)];
            match chunk.slot((block % PAGES) as u32) {
                Slot::Resident(frame) => {
                    // SAFETY: the frame is the cache's, and stays with the lock held; programs may store to it, and then
                    // any of the bytes is right.
                    unsafe {
                        let start = frames.pointer(frame).add(from);
                        to.as_mut_ptr().copy_from_nonoverlapping(start, to.len());
                    }
                    let bit = 1 << (block % PAGES);
                    asked_for |= bit;
                    edge = (chunk.edge & bit != 0).then_some(block);
                }
                Slot::Hole => to.fill(0),
                Slot::Busy | Slot::Absent => break,
            }
            done += to.len();
        }
        self.touch(first / PAGES, asked_for);
        (done, edge)
    }
}

/// What is in memory of a file, block by block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residence {
    /// Not in memory.
    Absent,
    /// On its way.
    Busy,
    /// A hole: zeros.
    Hole,
    /// As on the device.
    Clean,
    /// Newer than on the device.
    Dirty,
    /// Being written.
    Writing,
}

/// What is in memory of 64 pages, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    /// The first one's number.
    pub first: u64,
    /// In memory.
    pub resident: u64,
    /// Newer than on the device.
    pub dirty: u64,
    /// Zeros, in no frame.
    pub hole: u64,
}

impl CachedFile {
    pub(super) fn new(
        cache: &'static PageCache,
        volume: VolumeId,
        fs: Arc<dyn FileSystem>,
        id: FileId,
        name: &str,
    ) -> Result<Self, FsError> {
        let attributes = fs.attributes(id)?;
        if attributes.kind != FileKind::File {
            return Err(FsError::NotAFile);
        }
        let named = Once::new();
        if !name.is_empty() {
            named.call_once(|| String::from(name));
        }
        Ok(Self {
            cache,
            volume,
            device: fs.device().ok_or(FsError::NotOffered)?,
            block_size: u64::from(fs.statistics()?.block_size),
            is_read_only: AtomicBool::new(fs.read_only().is_some()),
            id,
            number: cache.new_number(),
            name: named,
            state: SpinLock::new(State {
                size: attributes.size,
                chunks: Chunks::new(),
                ahead: ReadAhead::new(),
                hits: 0,
                used: 0,
                last_touched: u64::MAX,
                read_error: FsError::NotFound,
                write_error: None,
                failures: 0,
                users: 0,
                is_unlinked: attributes.links == 0,
                is_unsettled: false,
                growing_to: 0,
                handle: Weak::new(),
                holds: Vec::new(),
            }),
            changed: WaitQueue::new(),
            resizing: Mutex::new(()),
            fs,
        })
    }

    /// What people call it; nothing until it was [mappable](FileSystem::mappable).
    pub fn name(&self) -> &str {
        self.name.get().map_or("", String::as_str)
    }

    /// Lets people call it that, if it has no name yet.
    pub fn set_name(&self, name: &str) {
        self.name.call_once(|| String::from(name));
    }

    /// The file in its file system.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What events call it: a number of its own.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The file system.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.state.lock().size
    }

    pub(super) fn cache(&self) -> &'static PageCache {
        self.cache
    }

    pub(super) fn fs(&self) -> &dyn FileSystem {
        &*self.fs
    }

    pub(super) fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    pub(super) fn block_size(&self) -> u64 {
        self.block_size
    }

    pub(super) fn pointer(&self, frame: Frame) -> *mut u8 {
        self.cache.frames.pointer(frame)
    }

    pub(super) fn lock(&self) -> SpinLockGuard<'_, State> {
        self.state.lock()
    }

    /// Lets go of the lock until something has changed.
    pub(super) fn wait<'a>(&'a self, state: SpinLockGuard<'a, State>) -> SpinLockGuard<'a, State> {
        drop(state);
        self.device.poll();
        self.state.lock()
    }

    pub(super) fn wait_while<'a>(
        &'a self,
        mut state: SpinLockGuard<'a, State>,
        condition: impl Fn(&mut State) -> bool,
    ) -> SpinLockGuard<'a, State> {
        while condition(&mut state) {
            state = self.wait(state);
            if condition(&mut state) {
                state = self.changed.wait(state);
            }
        }
        state
    }

    pub(super) fn wake(&self) {
        self.changed.wake_all();
    }

    /// What maps hold of it: one for all of them.
    pub fn handle(self: &Arc<Self>) -> Arc<FileHandle> {
        let mut state = self.state.lock();
        if let Some(handle) = state.handle.upgrade() {
            return handle;
        }
        let handle = Arc::new(FileHandle(self.clone()));
        state.handle = Arc::downgrade(&handle);
        handle
    }

    /// How maps know the file, if any shows it.
    fn key(&self) -> Option<FileKey> {
        let state = self.state.lock();
        (state.handle.strong_count() > 0).then(|| FileKey::of(state.handle.as_ptr()))
    }

    /// Whether a map shows it.
    pub fn is_mapped(&self) -> bool {
        self.state.lock().handle.strong_count() > 0
    }

    /// Removes the blocks' translations.
    pub(super) fn unmap(&self, blocks: Range<u64>, which: Which) {
        if let (Some(aliases), Some(key)) = (self.cache.aliases(), self.key()) {
            aliases.unmap(key, blocks, which);
        }
    }

    /// Lets stores to the blocks fault.
    pub(super) fn write_protect(&self, blocks: Range<u64>) {
        if let (Some(aliases), Some(key)) = (self.cache.aliases(), self.key()) {
            aliases.write_protect(key, blocks);
        }
    }

    // --- who uses it ---

    /// One more user.
    pub fn open(&self) {
        self.state.lock().users += 1;
    }

    /// One user less.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.users = state.users.saturating_sub(1);
    }

    /// It has lost its last name.
    pub fn note_unlinked(&self) {
        self.state.lock().is_unlinked = true;
    }

    pub(super) fn forget_if_unlinked(self: &Arc<Self>) -> Result<(), FsError> {
        if self.state.lock().is_unlinked {
            self.cache.forget(self)?;
        }
        Ok(())
    }

    /// Whether nobody has use for it.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let is_used = state.users > 0 || state.handle.strong_count() > 0;
        let is_kept = !state.is_unlinked
            && (state.write_error.is_some()
                || state.is_unsettled
                || state.chunks.all().any(|(_, chunk)| !chunk.is_empty()));
        !is_used && !is_kept
    }

    /// Ends it, when nobody finds it any more: what is in memory is dropped.
    pub(super) fn end(&self) -> Result<(), FsError> {
        let (hits, used) = self.finds();
        add(&self.cache.counts.hits, hits);
        add(&self.cache.counts.used, used);
        if trace::is_on() {
            trace::file_ended(self.trace_name());
        }
        self.drop_from(0);
        self.fs.close(self.id)
    }

    // --- pages that come ---

    /// The largest window there is memory for.
    fn max_window(&self) -> u64 {
        (self.cache.frames.counts().total / 16).clamp(1, MAX_WINDOW)
    }

    /// The chunk of `block`, a new one if need be. Takes memory from the heap, and says so if there is none.
    fn chunk_for<'s>(
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

    /// Marks the first run of absent blocks in `blocks` as busy; `None` where there is none.
    fn begin_read(
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

    /// A frame, or a group of them where that is possible and wanted.
    fn alloc(&self, is_group: bool) -> Result<(Frame, u64), FsError> {
        let frames = self.cache.frames;
        if is_group && let Ok(first) = frames.alloc_run(Owner::Cache, Urgency::Data, GROUP_ORDER) {
            return Ok((first, GROUP));
        }
        let frame = frames.alloc(Owner::Cache, Urgency::Data);
        frame
            .map(|frame| (frame, 1))
            .map_err(|_| FsError::OutOfMemory)
    }

    /// Reads what is absent in a window; `wanted` is a block of it somebody waits for. Returns when all is on its way.
    fn read_window(self: &Arc<Self>, window: &Window, wanted: Option<u64>) -> Result<(), FsError> {
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

    /// A run is about to be read, of which somebody waits for `wanted`.
    fn trace_read(&self, run: &Run, wanted: Option<u64>) {
        let Range { mut start, end } = run.blocks();
        if let Some(wanted) = wanted.filter(|wanted| run.blocks().contains(wanted)) {
            trace::record(Kind::Ahead, self.number, start..wanted);
            trace::record(Kind::Miss, self.number, wanted..wanted + 1);
            start = wanted + 1;
        }
        trace::record(Kind::Ahead, self.number, start..end);
    }

    /// Brings a block into memory.
    pub(super) fn prime(self: &Arc<Self>, block: u64, pattern: Pattern) -> Result<(), FsError> {
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

    fn read_ahead(self: &Arc<Self>, block: u64) {
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

    /// Reads have ended. Called by the device's interrupt.
    pub(super) fn end_read(&self, blocks: Range<u64>, result: Result<(), FsError>) {
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
    pub(super) fn note_backed(&self, block: u64) {
        if let Some(chunk) = self.state.lock().chunk(block) {
            chunk.backed |= 1 << (block % PAGES);
        }
    }

    /// Busy blocks are holes.
    pub(super) fn become_holes(&self, blocks: &[u64]) {
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

    // --- stores ---

    /// Nothing of it becomes dirty from now on.
    pub fn refuse_stores(&self) {
        self.is_read_only.store(true, Ordering::Relaxed);
        // Whoever makes a page dirty at this moment has done so when this returns.
        drop(self.state.lock());
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::Relaxed)
    }

    /// Why nothing of it may become dirty. Asks the file system.
    fn refusal(&self) -> FsError {
        let reason = self.fs.read_only();
        FsError::ReadOnly(reason.unwrap_or(ReadOnlyReason::Unmounted))
    }

    /// Makes a page of zeros of a hole. No map shows the hole any more when the page is published.
    fn fill_hole(self: &Arc<Self>, block: u64) -> Result<(), FsError> {
        let page = (block % PAGES) as u32;
        let frame = loop {
            match self.alloc(false) {
                Ok((frame, _)) => break frame,
                Err(_) if self.cache.reclaim_or_write() => {}
                Err(error) => return Err(error),
            }
        };
        // SAFETY: the frame is ours.
        unsafe { page::zero(self.pointer(frame), 1) };
        let mut state = self.state.lock();
        if state.slot(block) != Slot::Hole {
            drop(state);
            self.cache.frames.free(frame, Owner::Cache);
            return Ok(());
        }
        if let Some(chunk) = state.chunk(block) {
            chunk.hole &= !(1 << page);
            chunk.begin(page, frame);
        }
        drop(state);
        self.unmap(block..block + 1, Which::All);
        self.end_read(block..block + 1, Ok(()));
        Ok(())
    }

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

    /// Writes `bytes`, which cannot fault, at `offset`, or at the end, which is nobody else's then; returns the byte behind
    /// them. The file grows where needed. An error leaves what was written before it.
    pub fn write(self: &Arc<Self>, offset: Option<u64>, bytes: &[u8]) -> Result<u64, FsError> {
        if bytes.is_empty() {
            return Ok(offset.unwrap_or_else(|| self.size()));
        }
        if let Some(reason) = self.fs.read_only() {
            return Err(FsError::ReadOnly(reason));
        }
        self.cache.limit_dirty()?;
        let resizing = self.resize();
        let offset = offset.unwrap_or_else(|| self.size());
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(FsError::FileTooLarge)?;
        let blocks = offset / PAGE..end.div_ceil(PAGE);
        if end > self.size() {
            resizing.grow_to(end)?;
        }
        self.settle_end(offset)?;
        let mut room = match self.lacks_room(blocks.clone()) {
            true => Some(self.room(blocks.clone(), end)?),
            false => None,
        };
        let mut done = 0;
        let result = loop {
            let at = offset + done as u64;
            if at == end {
                break Ok(end);
            }
            let from = (at % PAGE) as usize;
            let len = (PAGE_SIZE - from).min(bytes.len() - done);
            match self.write_block(at / PAGE, from, &bytes[done..done + len], room.as_mut()) {
                Ok(()) => done += len,
                Err(error) => break Err(error),
            }
        };
        drop(resizing);
        if let Some(room) = room {
            self.end_sharing(room);
        }
        result
    }

    /// Writes `bytes` into one block, of which they cover a part. Without `room` to take from, it had some a moment ago.
    fn write_block(
        self: &Arc<Self>,
        block: u64,
        from: usize,
        bytes: &[u8],
        mut room: Option<&mut Room>,
    ) -> Result<(), FsError> {
        let (page, bit) = ((block % PAGES) as u32, 1u64 << (block % PAGES));
        let end = block * PAGE + (from + bytes.len()) as u64;
        let mut fresh = None;
        let result = loop {
            let mut state = self.state.lock();
            if self.is_read_only() {
                drop(state);
                break Err(self.refusal());
            }
            let frame = match state.slot(block) {
                Slot::Resident(frame) => frame,
                Slot::Busy => {
                    drop(self.wait_while(state, |state| state.slot(block) == Slot::Busy));
                    continue;
                }
                Slot::Hole => {
                    drop(state);
                    match self.fill_hole(block) {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                }
                Slot::Absent => {
                    let is_new = block * PAGE >= state.size;
                    // Without room to take it was evicted just now, and perhaps its room is gone with it.
                    let is_needed = bytes.len() < PAGE_SIZE || room.is_none();
                    if !is_new && is_needed {
                        drop(state);
                        match self.prime(block, Pattern::Normal) {
                            Ok(()) => continue,
                            Err(error) => break Err(error),
                        }
                    }
                    // No bytes of it are needed: it is not read.
                    let Some(frame) = fresh.take() else {
                        drop(state);
                        match self.alloc(false) {
                            Ok((frame, _)) => {
                                // SAFETY: the frame is ours.
                                unsafe { page::zero(self.pointer(frame), 1) };
                                fresh = Some(frame);
                            }
                            Err(_) if self.cache.reclaim_or_write() => {}
                            Err(error) => break Err(error),
                        }
                        continue;
                    };
                    match self.chunk_for(&mut state, block) {
                        Ok(chunk) => {
                            chunk.begin(page, frame);
                            chunk.publish(1 << page);
                            chunk.evicted &= !bit;
                            trace::record(Kind::Filled, self.number, block..block + 1);
                        }
                        Err(error) => {
                            fresh = Some(frame);
                            drop(state);
                            if self.cache.reclaim_or_write() {
                                continue;
                            }
                            break Err(error);
                        }
                    }
                    frame
                }
            };
            if let Some(chunk) = state.chunk(block)
                && chunk.backed & bit == 0
            {
                let Some(room) = &mut room else {
                    drop(state);
                    match self.make_room(block) {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                };
                chunk.give_room(bit, room.take(block));
            }
            if end > state.size {
                self.grow(&mut state, end);
            }
            // SAFETY: the frame is the cache's, and stays with the lock held. Programs may read or store it at the same
            // time: that is what sharing a file means.
            unsafe {
                let start = self.pointer(frame).add(from);
                start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
            state.touch(block / PAGES, 1 << (block % PAGES));
            if let Some(chunk) = state.chunk(block) {
                self.cache
                    .note_dirty(u64::from((chunk.dirty | chunk.writing) & bit == 0));
                chunk.dirty |= bit;
            }
            trace::record(Kind::Write, self.number, block..block + 1);
            break Ok(());
        };
        if let Some(frame) = fresh {
            self.cache.frames.free(frame, Owner::Cache);
        }
        result
    }

    // --- what a person sees ---

    /// What is in memory of each of `blocks`.
    pub fn residence(&self, blocks: Range<u64>) -> Vec<Residence> {
        let state = self.state.lock();
        let one = |block: u64| {
            let bit = 1 << (block % PAGES);
            let Some(chunk) = state.chunks.get(block / PAGES) else {
                return Residence::Absent;
            };
            match chunk.slot((block % PAGES) as u32) {
                Slot::Absent => Residence::Absent,
                Slot::Busy => Residence::Busy,
                Slot::Hole => Residence::Hole,
                Slot::Resident(_) if chunk.writing & bit != 0 => Residence::Writing,
                Slot::Resident(_) if chunk.dirty & bit != 0 => Residence::Dirty,
                Slot::Resident(_) => Residence::Clean,
            }
        };
        blocks.map(one).collect()
    }

    /// What is in memory, 64 pages at a time.
    pub fn present(&self) -> impl Iterator<Item = Present> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let state = self.state.lock();
            let (number, chunk) = state.chunks.range(from..).next()?;
            from = number + 1;
            Some(Present {
                first: number * PAGES,
                resident: chunk.resident,
                dirty: chunk.dirty | chunk.writing,
                hole: chunk.hole,
            })
        })
    }

    /// What a dump of events calls it.
    pub(in crate::mm) fn trace_name(&self) -> trace::Name {
        trace::Name {
            number: self.number,
            size: self.size(),
            name: match self.name() {
                "" => format!("inode {}", self.id.0),
                name => String::from(name),
            },
        }
    }

    /// Pages found in memory, and those of them that had been read ahead.
    pub(super) fn finds(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hits, state.used)
    }

    /// Pages in memory, and those of them that are dirty.
    pub fn pages(&self) -> (u64, u64) {
        let state = self.state.lock();
        state.chunks.all().fold((0, 0), |(all, dirty), (_, chunk)| {
            (
                all + u64::from(chunk.resident.count_ones()),
                dirty + u64::from((chunk.dirty | chunk.writing).count_ones()),
            )
        })
    }

    /// Panics where the state contradicts itself, or what is dirty may find no room. For tests: nobody stores or writes
    /// meanwhile.
    pub fn check(&self) {
        let state = self.state.lock();
        let mut unpromised = Vec::new();
        for (number, chunk) in state.chunks.all() {
            chunk.check();
            let pages = bits(chunk.dirty & !chunk.promised);
            unpromised.extend(pages.map(|i| number * PAGES + u64::from(i)));
            for i in bits(chunk.resident) {
                assert!(
                    number * PAGES + u64::from(i) < state.blocks(),
                    "behind the end"
                );
            }
        }
        let size = state.size;
        drop(state);
        for block in unpromised {
            let len = PAGE.min(size - block * PAGE);
            let extents = self.fs.map(self.id, block * PAGE, len).expect("a map");
            let is_hole = |extent: &Extent| extent.backing == Backing::Hole;
            assert!(!extents.iter().any(is_hole), "no room for page {block}");
        }
    }
}

/// Zeroes a page from byte `from` on.
fn zero_from(start: *mut u8, from: u64) {
    // SAFETY: the page is the cache's. Programs may store to it at the same time, behind the end of the file, where
    // nothing is kept.
    unsafe {
        start
            .add(from as usize)
            .write_bytes(0, (PAGE - from) as usize)
    };
}

/// A file that the cache keeps, whatever becomes of its names, for whoever found it there: until this ends. Somebody who
/// had but a pointer could store to a file that the cache has forgotten meanwhile, and nobody would ever write it.
#[must_use = "the cache may forget the file once this is dropped"]
pub struct InUse(Arc<CachedFile>);

impl InUse {
    pub(super) fn new(file: Arc<CachedFile>) -> Self {
        file.open();
        Self(file)
    }

    /// Ends the use; of a file without a name the last one lets it go.
    pub fn end(self) -> Result<(), FsError> {
        let file = self.0.clone();
        drop(self);
        file.forget_if_unlinked()
    }
}

impl Deref for InUse {
    type Target = Arc<CachedFile>;

    fn deref(&self) -> &Arc<CachedFile> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.close();
        if self.0.state.lock().is_unlinked {
            // Closing it is work, for the writer thread.
            self.0.cache.press();
        }
    }
}
