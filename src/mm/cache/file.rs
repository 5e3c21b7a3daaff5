//! A file in the cache.

mod handle;
mod read;
mod resize;
mod room;
mod show;
mod write;

pub use handle::FileHandle;
pub use resize::Hold;
pub(super) use room::Room;
pub use show::{Present, Residence};

use super::chunk::{Chunk, GROUP, PAGES, Slot, mask};
use super::chunks::Chunks;
use super::read_ahead::ReadAhead;
use super::{PageCache, VolumeId, add};
use crate::fs::block::BlockDevice;
use crate::fs::{FileId, FileKind, FileSystem, FsError};
use crate::mm::addr::{Frame, PAGE_SIZE};
use crate::mm::frame::Frames;
use crate::mm::object::{FileKey, Lookup, Which};
use crate::mm::trace;
use crate::sync::{Mutex, SpinLock, SpinLockGuard, WaitQueue};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::{Deref, Range};
use core::sync::atomic::AtomicBool;
use spin::Once;

const PAGE: u64 = PAGE_SIZE as u64;

/// The most blocks of one run: what most devices take in one request.
pub(super) const MAX_RUN: usize = 256;

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
