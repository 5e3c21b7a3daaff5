//! A file in the cache.

use super::chunk::{Chunk, GROUP, PAGES, Slot, bits, mask};
use super::read_ahead::{ReadAhead, Window};
use super::transfer::Run;
use super::{PageCache, VolumeId, add};
use crate::arch::page;
use crate::fs::block::{BlockDevice, BlockError};
use crate::fs::error::ReadOnlyReason;
use crate::fs::{Backing, Extent, FileId, FileKind, FileSystem, FsError, Reservation};
use crate::mm::addr::{Frame, PAGE_SIZE};
use crate::mm::frame::{Frames, Owner, Urgency};
use crate::mm::object::{
    BATCH, Dirtied, FileKey, IoError, Lookup, MappableFile, Pattern, Pinned, SyncMode, Which,
};
use crate::mm::trace::{self, Kind};
use crate::sync::{Mutex, SpinLock, SpinLockGuard, WaitQueue};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::ops::{Deref, Range, RangeBounds};
use core::ptr::NonNull;
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
    fn new() -> Self {
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

    fn insert(&mut self, number: u64, chunk: Box<Chunk>) {
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

    /// Keeps the file from being cut before byte `end`.
    pub fn hold(self: &Arc<Self>, end: u64) -> Hold {
        let mut state = self.state.lock();
        // What lies behind the end of the file is nothing to keep.
        let end = end.min(state.size);
        state.holds.push(end);
        Hold(self.clone(), end)
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

    /// Before the file ends at `end`, further than now: with blocks smaller than a page, its last page may have places for a
    /// part only. Room is promised to all of it.
    fn back_last_page(self: &Arc<Self>, end: u64) -> Result<(), FsError> {
        let size = self.size();
        if end.min(size.next_multiple_of(PAGE)) <= size.next_multiple_of(self.block_size) {
            return Ok(());
        }
        let block = size / PAGE;
        let bit = 1 << (block % PAGES);
        // What is promised to a page is for all of it.
        let lacks = |chunk: &&mut Chunk| chunk.resident & !chunk.promised & bit != 0;
        if self.state.lock().chunk(block).filter(lacks).is_none() {
            return Ok(());
        }
        let promise = self.reserve(block..block + 1, end)?;
        let mut state = self.state.lock();
        match state.chunk(block).filter(lacks) {
            Some(chunk) => chunk.give_room(bit, promise),
            None => {
                drop(state);
                self.fs.release(promise);
            }
        }
        Ok(())
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

    /// Makes sure that the block may become dirty.
    fn make_room(self: &Arc<Self>, block: u64) -> Result<(), FsError> {
        if self.is_read_only() {
            return Err(self.refusal());
        }
        self.cache.limit_dirty()?;
        let bit = 1u64 << (block % PAGES);
        let state = self.state.lock();
        let size = state.size;
        if block * PAGE >= size {
            return Ok(());
        }
        if state.slot(block) == Slot::Hole {
            drop(state);
            self.fill_hole(block)?;
        } else {
            drop(state);
        }
        let is_backed = |state: &mut State| {
            state
                .chunk(block)
                .is_none_or(|chunk| chunk.resident & !chunk.backed & bit == 0)
        };
        // Whoever finds it gone by now looks again.
        if is_backed(&mut self.state.lock()) {
            return Ok(());
        }
        let promise = self.reserve(block..block + 1, size)?;
        let mut state = self.state.lock();
        let unused = if is_backed(&mut state) {
            Some(promise)
        } else if let Some(chunk) = state.chunk(block) {
            chunk.give_room(bit, promise);
            None
        } else {
            Some(promise)
        };
        drop(state);
        if let Some(promise) = unused {
            self.fs.release(promise);
        }
        Ok(())
    }

    /// Has room promised for the blocks: nothing, if all that they hold of a file that ends at `end` has places.
    ///
    /// Promises are for the worst, and for whole blocks: where they seem to take all there is, what has places needs none;
    /// then what is dirty is given its places first, and what was freed becomes usable.
    fn reserve(&self, blocks: Range<u64>, end: u64) -> Result<Reservation, FsError> {
        let (offset, len) = (blocks.start * PAGE, (blocks.end - blocks.start) * PAGE);
        let needed = end.next_multiple_of(self.block_size).saturating_sub(offset);
        match self.fs.reserve(self.id, offset, len) {
            Err(FsError::NoSpace) => {}
            reserved => return reserved,
        }
        if needed < len {
            match self.fs.reserve(self.id, offset, needed) {
                Ok(promise) if !promise.is_none() => self.fs.release(promise),
                Err(FsError::NoSpace) => {}
                reserved => return reserved,
            }
        }
        // What fails is another file's, perhaps, and told with its next flush.
        let _ = self.cache.write_back(Some(self.volume));
        self.fs.sync()?;
        self.fs.reserve(self.id, offset, len)
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
        let resizing = self.resizing.lock();
        let offset = offset.unwrap_or_else(|| self.size());
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(FsError::FileTooLarge)?;
        let blocks = offset / PAGE..end.div_ceil(PAGE);
        if end > self.size() {
            self.settle_cut()?;
        }
        self.back_last_page(end)?;
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
        if let Some(room) = room.filter(|room| !room.promise.is_none()) {
            self.fs.release(room.promise);
        }
        result
    }

    /// Room for a write to the blocks, after which the file has at least `end` bytes.
    fn room(&self, blocks: Range<u64>, end: u64) -> Result<Room, FsError> {
        let promise = self.reserve(blocks.clone(), end.max(self.size()))?;
        let (offset, len) = (blocks.start * PAGE, (blocks.end - blocks.start) * PAGE);
        let mut holes = Vec::new();
        if !promise.is_none() {
            let extents = match self.fs.map(self.id, offset, len) {
                Ok(extents) => extents,
                Err(error) => {
                    self.fs.release(promise);
                    return Err(error);
                }
            };
            let is_hole = |extent: &Extent| extent.backing == Backing::Hole;
            holes = extents.into_iter().filter(is_hole).collect();
        }
        Ok(Room {
            promise,
            left: holes.iter().map(|hole| hole.len).sum(),
            holes,
        })
    }

    /// Whether one of the blocks may not become dirty yet.
    fn lacks_room(&self, blocks: Range<u64>) -> bool {
        let state = self.state.lock();
        chunks_of(blocks).any(|(number, pages)| {
            state
                .chunks
                .get(number)
                .is_none_or(|chunk| pages & !chunk.backed != 0)
        })
    }

    /// Before a write at `offset`: where the last page ends with the file, and the write begins behind it, what lies
    /// between reads as zeros from now on, whatever the device holds there.
    fn settle_end(self: &Arc<Self>, offset: u64) -> Result<(), FsError> {
        let size = self.size();
        let block = size / PAGE;
        if size.is_multiple_of(PAGE) || offset / PAGE <= block {
            return Ok(());
        }
        loop {
            self.prime(block, Pattern::Normal)?;
            let mut state = self.state.lock();
            if self.is_read_only() {
                drop(state);
                return Err(self.refusal());
            }
            let bit = 1 << (block % PAGES);
            match state.chunk(block) {
                Some(chunk) if chunk.hole & bit != 0 => return Ok(()), // the device holds nothing there
                Some(chunk) if chunk.resident & chunk.backed & bit != 0 => {
                    let is_new = (chunk.dirty | chunk.writing) & bit == 0;
                    chunk.dirty |= bit;
                    drop(state);
                    self.cache.note_dirty(u64::from(is_new));
                    return Ok(());
                }
                _ => {}
            }
            drop(state);
            self.make_room(block)?;
        }
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

    /// The file ends at `size` from now on, no nearer than before. What programs stored behind its end is gone.
    fn grow(&self, state: &mut State, size: u64) {
        let (block, from) = (state.size / PAGE, state.size % PAGE);
        if from > 0
            && let Slot::Resident(frame) = state.slot(block)
        {
            zero_from(self.pointer(frame), from);
        }
        state.size = size;
    }

    /// Cuts the file, or lets it grow with zeros.
    pub fn set_len(self: &Arc<Self>, len: u64) -> Result<(), FsError> {
        let _resizing = self.resizing.lock();
        if let Some(reason) = self.fs.read_only() {
            return Err(FsError::ReadOnly(reason));
        }
        let last = len / PAGE;
        if len < self.size() && !len.is_multiple_of(PAGE) {
            // Needed below; where it cannot be read, or not become dirty, nothing has been cut yet.
            self.cache.limit_dirty()?;
            self.prime(last, Pattern::Normal)?;
        }
        let mut state = self.state.lock();
        let before = state.size;
        if len >= before {
            drop(state);
            if len > before {
                self.settle_cut()?;
                self.back_last_page(len)?;
                // The file system first: from then on the device has zeros behind the old end.
                self.fs.set_len(self.id, len)?;
                // A read that began before may bring what was there.
                let is_busy = |state: &mut State| state.slot(before / PAGE) == Slot::Busy;
                self.grow(&mut self.wait_while(self.state.lock(), is_busy), len);
            }
            return Ok(());
        }
        if state.holds.iter().any(|end| *end > len) {
            return Err(FsError::Busy);
        }
        // Size, maps, pages, blocks: nobody enters a page behind the end once the size says so.
        state.size = len;
        drop(state);
        self.drop_from(len.div_ceil(PAGE));
        // What is on its way to the last page is as long as the file was.
        self.wait_for_writes(last..last + 1);
        let cut = self.fs.set_len(self.id, len);
        let mut state = self.state.lock();
        if cut.is_err() {
            drop(state);
            let size = self.fs.attributes(self.id).map_or(0, |found| found.size);
            state = self.state.lock();
            if size > len {
                // It is as long as it was; what was not written of the rest is gone, but nothing that was to stay.
                state.size = size;
                return cut;
            }
        }
        self.grow(&mut state, len);
        drop(state);
        let is_settled = self.is_on_device(len) == Ok(false);
        self.state.lock().is_unsettled = !is_settled;
        // It is cut, whatever becomes of this: before it grows it is tried again.
        let _ = self.settle_cut();
        cut
    }

    /// What was cut off goes from the device, too, and before the file grows: it must not come back when the power fails
    /// before its last page is written.
    fn settle_cut(self: &Arc<Self>) -> Result<(), FsError> {
        if self.state.lock().is_unsettled {
            let last = self.size() / PAGE;
            self.settle_end(u64::MAX)?;
            self.write_out(last..last + 1)?;
            self.state.lock().is_unsettled = false;
        }
        Ok(())
    }

    /// Whether byte `at`, in the midst of a page, is in a block that holds data on the device.
    fn is_on_device(&self, at: u64) -> Result<bool, FsError> {
        if at.is_multiple_of(self.block_size) {
            return Ok(false);
        }
        let extents = self.fs.map(self.id, at, 1)?;
        let is_written = |extent: &Extent| matches!(extent.backing, Backing::Written(_));
        Ok(extents.iter().any(is_written))
    }

    /// Drops all blocks from `first` on, which is where the file ends by now: maps, then pages. Waits for transfers.
    fn drop_from(&self, first: u64) {
        self.unmap(first..u64::MAX, Which::All);
        let mut from = first;
        loop {
            let mut frames: ArrayVec<Frame, { PAGES as usize }> = ArrayVec::new();
            let state = self.state.lock();
            let Some((number, _)) = state.chunks.range(from / PAGES..).next() else {
                return;
            };
            let pages = mask((from.max(number * PAGES)) - number * PAGES, PAGES);
            let is_moving = |state: &mut State| {
                state
                    .chunks
                    .get(number)
                    .is_some_and(|chunk| (chunk.busy | chunk.writing) & pages != 0)
            };
            let mut state = self.wait_while(state, is_moving);
            let mut promise = Reservation::NONE;
            let mut dropped = 0;
            let mut is_pinned = false;
            let mut is_empty = false;
            if let Some(chunk) = state.chunks.find(number) {
                promise = chunk.redeem(pages);
                let free = chunk.unpinned(chunk.resident & pages);
                is_pinned = free != chunk.resident & pages;
                dropped = free;
                self.cache
                    .note_clean((chunk.dirty & free).count_ones().into());
                frames.extend(bits(free).map(|i| chunk.take(i)));
                chunk.hole &= !pages;
                chunk.backed &= !pages;
                chunk.evicted &= !pages;
                is_empty = chunk.is_empty();
            }
            match is_empty {
                true => self.remove_chunk(state, number),
                false => drop(state),
            }
            trace::record_mask(Kind::Dropped, self.number, number * PAGES, dropped);
            for frame in frames {
                self.cache.frames.free(frame, Owner::Cache);
            }
            if !promise.is_none() {
                self.fs.release(promise);
            }
            if is_pinned {
                // A fault entered it that had looked before the size changed.
                self.unmap(first..u64::MAX, Which::All);
                continue;
            }
            from = (number + 1) * PAGES;
        }
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

/// Room for a write: what was promised to the holes that it fills.
struct Room {
    promise: Reservation,
    holes: Vec<Extent>,
    /// Bytes of the holes that have had no share.
    left: u64,
}

impl Room {
    /// The share of a block that has had none: nothing, if it has a place.
    fn take(&mut self, block: u64) -> Reservation {
        let (start, end) = (block * PAGE, (block + 1) * PAGE);
        let inside = |hole: &Extent| {
            let hole = hole.offset.max(start)..(hole.offset + hole.len).min(end);
            hole.end.saturating_sub(hole.start)
        };
        let part = self.holes.iter().map(inside).sum();
        let share = self.promise.split(part, self.left);
        self.left -= part;
        share
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

/// Keeps a file at least as long as it was told.
pub struct Hold(Arc<CachedFile>, u64);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if let Some(at) = state.holds.iter().position(|end| *end == self.1) {
            state.holds.swap_remove(at);
        }
    }
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

/// A file as maps hold it.
pub struct FileHandle(Arc<CachedFile>);

impl FileHandle {
    /// The file.
    pub fn file(&self) -> &Arc<CachedFile> {
        &self.0
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        // Whoever drops it may hold the maps' lock, and closing a file is work.
        if self.0.state.lock().is_unlinked {
            self.0.cache.press();
        }
    }
}

impl MappableFile for FileHandle {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn number(&self) -> u32 {
        self.0.number()
    }

    fn pin_block(&self, block: u64) -> Lookup {
        self.0.state.lock_masked().pin(block, |_, _| true)
    }

    fn pin_to_store(&self, block: u64) -> Result<Lookup, IoError> {
        let is_limited = self.0.cache.has_too_much_dirty();
        let mut is_new = false;
        let mut state = self.0.state.lock_masked();
        if self.0.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        let lookup = state.pin(block, |chunk, bit| {
            if is_limited || chunk.backed & bit == 0 {
                return false;
            }
            is_new = (chunk.dirty | chunk.writing) & bit == 0;
            chunk.dirty |= bit;
            true
        });
        drop(state);
        if is_new {
            self.0.cache.note_dirty(1);
        }
        Ok(lookup)
    }

    fn pin_resident(
        &self,
        first: u64,
        wanted: u64,
        frames: &mut [Frame; BATCH as usize],
    ) -> Pinned {
        let mut state = self.0.state.lock();
        let mut pinned = Pinned::default();
        let mut used = 0;
        let last = state.last_touched;
        // They lie in one chunk, or in two.
        let shift = first % PAGES;
        for (number, at) in [(first / PAGES, 0), (first / PAGES + 1, PAGES - shift)] {
            let wanted = if at == 0 {
                wanted << shift
            } else if at < PAGES {
                wanted >> at
            } else {
                0
            };
            if wanted == 0 {
                continue;
            }
            let Some(chunk) = state.chunks.find(number) else {
                continue;
            };
            let found = wanted & chunk.resident & !chunk.edge;
            let to = if at == 0 { -(shift as i64) } else { at as i64 };
            let groups = chunk.pin_all(found, to, frames);
            let placed = |pages: u64| if at == 0 { pages >> shift } else { pages << at };
            pinned.blocks |= placed(found);
            pinned.groups |= placed(groups);
            // Whether they are used nobody will know. But what is entered again, after its translations had been taken
            // away, lies where somebody is at work, and a scan comes by once. The page of the fault was asked for just now.
            let is_here = last / PAGES == number;
            used += chunk.touch(found & !(u64::from(is_here) << (last % PAGES)));
        }
        state.used += u64::from(used);
        pinned
    }

    fn unpin(&self, first: u64, count: u64) {
        let mut state = self.0.state.lock_masked();
        if count == 1 {
            if let Some(chunk) = state.chunk(first) {
                chunk.unpin_one((first % PAGES) as u32);
            }
            return;
        }
        for (number, pages) in chunks_of(first..first + count) {
            if let Some(chunk) = state.chunks.find(number) {
                let first = pages.trailing_zeros() as usize;
                chunk.unpin(first..first + pages.count_ones() as usize);
            }
        }
    }

    fn dirty_block(&self, block: u64) -> Result<Dirtied, IoError> {
        let bit = 1 << (block % PAGES);
        if self.0.cache.has_too_much_dirty() {
            return Ok(Dirtied::NeedsRoom);
        }
        let mut state = self.0.state.lock();
        if self.0.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        let Some(chunk) = state.chunk(block) else {
            return Ok(Dirtied::NeedsRoom);
        };
        if chunk.resident & chunk.backed & bit == 0 {
            return Ok(Dirtied::NeedsRoom);
        }
        let is_new = (chunk.dirty | chunk.writing) & bit == 0;
        chunk.dirty |= bit;
        drop(state);
        self.0.cache.note_dirty(u64::from(is_new));
        Ok(Dirtied::Done)
    }

    fn prime(&self, block: u64, pattern: Pattern) -> Result<(), IoError> {
        Ok(self.0.prime(block, pattern)?)
    }

    fn make_room(&self, block: u64) -> Result<(), IoError> {
        Ok(self.0.make_room(block)?)
    }

    fn read_ahead(&self, block: u64) {
        self.0.read_ahead(block);
    }

    fn will_need(&self, blocks: Range<u64>) {
        let end = blocks.end.min(self.0.state.lock().blocks());
        let most = self.0.max_window();
        let mut at = blocks.start;
        while at < end {
            let window = Window {
                blocks: at..end.min(at + most),
                edge: None,
            };
            // Advice: where there is no memory for it, it is not taken.
            if self.0.read_window(&window, None).is_err() {
                return;
            }
            at = window.blocks.end;
        }
    }

    fn dont_need(&self, blocks: Range<u64>) {
        self.0.evict(blocks);
    }

    fn sync(&self, blocks: Range<u64>, mode: SyncMode) -> Result<(), IoError> {
        match mode {
            SyncMode::Wait => Ok(self.0.sync(blocks)?),
            SyncMode::Start => {
                self.0.cache.press();
                Ok(())
            }
        }
    }
}
