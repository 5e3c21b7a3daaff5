//! `MemoryMapManager`: all maps of the address space, and everything that can be asked of them.
//!
//! # Locking
//!
//! One spin lock is around the maps and the page table. Whatever may take long lets go of it between batches: nothing is
//! kept across such a gap but page numbers, and whoever goes on looks the map up again. A map that is being removed is
//! *dying* meanwhile: no fault finds it, and whoever wants its addresses waits in `settled`.
//!
//! | | may overlap with | because |
//! | --- | --- | --- |
//! | a fault | everything | it looks again after every gap |
//! | `remove` | everything but a change of the same maps, which waits | the maps are dying |
//! | `set_permissions` | everything | each batch applies what the maps say *then* |
//! | `populate`, `clone_range` | everything | each batch looks up what it works on |
//! | `remap`, `map_*` | nothing | done in one go |
//!
//! Maps themselves come from the kernel heap; the fault path never does: it draws on frames alone.

mod advice;
mod aliases;
mod remap;

pub use advice::Advice;
pub use remap::Remap;

use super::addr::{PAGE_SIZE, Page, VirtAddr};
use super::fault::{FaultCounts, FaultError};
use super::frame::{Frames, OutOfFrames, Owner, Urgency};
use super::maps::{Maps, lies_in};
use super::object::{
    AnonymousMemoryMap, Backing, Condition, IoError, MappableFile, MemoryMappedFile,
    MemoryMappedObject, Sharing,
};
use super::table::{Access, Kind, PageTable, Protection, Removed, Run};
use super::trace::{NO_FILE, Place};
use crate::sync::{SpinLock, SpinLockGuard, WaitQueue};
use alloc::sync::Arc;
use core::cmp::Ordering;
use core::fmt;
use core::ops::Range;

/// Pages of a table: what long operations do at a time.
const BATCH_PAGES: u64 = 512;

/// Bytes that no file is longer than.
const MAX_FILE_SIZE: u64 = 1 << 62;

/// Frames that must be free before a map is made or split: more than the heap takes for that.
const HEAP_ROOM: u64 = 8;

/// Why an operation on maps was not done. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// A length of zero.
    Empty,
    /// An address or an offset that is not a multiple of the page.
    Misaligned,
    /// Addresses where no map may be: the null guard, past the end, or past the end of all numbers.
    OutOfRange,
    /// Something is mapped there.
    Occupied,
    /// Nothing, or not everything asked for, is mapped there.
    NotMapped,
    /// The pages are locked.
    Locked,
    /// No gap is large enough.
    OutOfAddresses,
    /// No memory for it.
    OutOfFrames,
    /// The map does not allow that.
    Denied,
    /// The file could not be read or written.
    Io(IoError),
}

impl From<OutOfFrames> for MapError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

impl From<FaultError> for MapError {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::NoMapping | FaultError::PastEnd => Self::NotMapped,
            FaultError::Denied | FaultError::Guard => Self::Denied,
            FaultError::OutOfFrames => Self::OutOfFrames,
            FaultError::Io(error) => Self::Io(error),
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a length of zero",
            Self::Misaligned => "not a multiple of the page",
            Self::OutOfRange => "no map may be there",
            Self::Occupied => "something is mapped there",
            Self::NotMapped => "not all of it is mapped",
            Self::Locked => "the pages are locked",
            Self::OutOfAddresses => "no gap is large enough",
            Self::OutOfFrames => "out of memory",
            Self::Denied => "the map does not allow it",
            Self::Io(error) => return error.fmt(f),
        })
    }
}

/// Where a map goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Wherever there is room.
    Anywhere,
    /// There, if there is room, else anywhere.
    Hint(VirtAddr),
    /// There, in the place of whatever is there.
    Fixed(VirtAddr),
    /// There, if nothing is.
    FixedNoReplace(VirtAddr),
}

/// What runs of writes look like.
#[derive(Clone, Copy, Default)]
pub(super) struct Stream {
    /// The page that comes next if the run goes on.
    pub(super) next: u64,
    /// How many faults the run has had.
    pub(super) hits: u32,
}

pub(super) struct State<T> {
    pub(super) maps: Maps,
    pub(super) table: T,
    pub(super) stream: Stream,
    /// The page where the pages of a file end that were entered last.
    pub(super) next_of_file: u64,
    pub(super) counts: FaultCounts,
    /// How often maps were moved.
    moves: u64,
}

/// All maps of the address space, and the handler of its faults.
pub struct MemoryMapManager<'f, T> {
    pub(super) frames: &'f Frames,
    pub(super) state: SpinLock<State<T>>,
    /// The pages where maps may be: known without the lock.
    limits: Range<u64>,
    /// Where those wait who need addresses that somebody is removing maps from.
    settled: WaitQueue,
    /// Who asks.
    holder: fn() -> u64,
    /// Takes frames from the page cache; whether it got some.
    pub(super) reclaim: fn() -> bool,
}

impl<'f, T: PageTable> MemoryMapManager<'f, T> {
    /// No maps yet; they may be in `limits`.
    pub fn new(frames: &'f Frames, table: T, limits: Range<VirtAddr>) -> Self {
        let limits = limits.start.page().0..limits.end.page().0;
        Self {
            frames,
            state: SpinLock::new(State {
                maps: Maps::new(limits.clone()),
                table,
                stream: Stream::default(),
                next_of_file: u64::MAX,
                counts: FaultCounts::NONE,
                moves: 0,
            }),
            limits,
            settled: WaitQueue::new(),
            holder: || 0,
            reclaim: || false,
        }
    }

    /// The same, with maps that belong to whoever `holder` names when they are made.
    #[must_use]
    pub fn with_holder(self, holder: fn() -> u64) -> Self {
        Self { holder, ..self }
    }

    /// The same, asking `reclaim` to free frames when none is left; it says whether there are some now.
    #[must_use]
    pub fn with_reclaim(self, reclaim: fn() -> bool) -> Self {
        Self { reclaim, ..self }
    }

    /// Maps `length` bytes that are zeros until they are written. Returns where.
    pub fn map_anon(
        &self,
        placement: Placement,
        length: u64,
        protection: Protection,
    ) -> Result<VirtAddr, MapError> {
        let backing = Backing::Anonymous(AnonymousMemoryMap);
        self.map(placement, length, protection, Condition::Live, backing)
    }

    /// Maps `length` bytes of `file` from `offset` on. Nothing is read until it is touched. Returns where.
    pub fn map_file(
        &self,
        file: Arc<dyn MappableFile>,
        placement: Placement,
        length: u64,
        protection: Protection,
        offset: u64,
        sharing: Sharing,
    ) -> Result<VirtAddr, MapError> {
        if !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(MapError::Misaligned);
        }
        // No file goes on from there, and byte numbers stay in range.
        if offset
            .checked_add(length)
            .is_none_or(|end| end > MAX_FILE_SIZE)
        {
            return Err(MapError::OutOfRange);
        }
        let backing = Backing::File(MemoryMappedFile {
            file,
            first_block: offset / PAGE_SIZE as u64,
            sharing,
        });
        self.map(placement, length, protection, Condition::Live, backing)
    }

    fn map(
        &self,
        placement: Placement,
        length: u64,
        protection: Protection,
        condition: Condition,
        backing: Backing,
    ) -> Result<VirtAddr, MapError> {
        let len = pages_of(length)?;
        loop {
            let mut state = self.state.lock();
            self.check_heap_room()?;
            let Some(start) = place(&mut state.maps, placement, len)? else {
                // Something is in the way, and may be replaced.
                drop(state);
                if let Placement::Fixed(address) = placement {
                    self.remove_pages(address.page().0..address.page().0 + len)?;
                }
                continue;
            };
            let mut object =
                MemoryMappedObject::new(start..start + len, protection, (self.holder)(), backing);
            object.condition = condition;
            state.maps.insert_merging(object);
            return Ok(Page(start).start());
        }
    }

    /// Unmaps `length` bytes from `base` on, across borders of maps; returns how many maps it touched.
    pub fn remove(&self, base: VirtAddr, length: u64) -> Result<usize, MapError> {
        let range = self.range(base, length)?;
        self.remove_pages(range)
    }

    /// Unmaps the map that starts at `base`, as a whole.
    pub fn unmap(&self, base: VirtAddr) -> Result<(), MapError> {
        let start = base.page().0;
        let state = self.state.lock();
        let object = state
            .maps
            .find(start)
            .filter(|object| object.start == start);
        let range = object.ok_or(MapError::NotMapped)?.start..object.map_or(start, |o| o.end);
        drop(state);
        self.remove_pages(range).map(|_| ())
    }

    /// Unmaps everything.
    pub fn unmap_all(&self) -> Result<(), MapError> {
        loop {
            let state = self.state.lock();
            let Some(first) = state.maps.all().next() else {
                return Ok(());
            };
            let range = first.start..first.end;
            drop(state);
            self.remove_pages(range)?;
        }
    }

    /// Unmaps all files, as the machine ends.
    pub fn unmap_files(&self) -> Result<(), MapError> {
        let mut rest = 0..u64::MAX;
        loop {
            let state = self.state.lock();
            let file = state.maps.all_in(&rest).find(|map| map.file().is_some());
            let Some(range) = file.map(|map| map.start..map.end) else {
                return Ok(());
            };
            drop(state);
            rest.start = range.end;
            self.remove_pages(range)?;
        }
    }

    /// Unmaps what belongs to `holder`, who is gone.
    pub fn remove_holder(&self, holder: u64) -> Result<(), MapError> {
        let mut rest = 0..u64::MAX;
        loop {
            let state = self.state.lock();
            let theirs = state.maps.all_in(&rest).find(|map| map.holder == holder);
            let Some(range) = theirs.map(|map| map.start..map.end) else {
                return Ok(());
            };
            drop(state);
            rest.start = range.end;
            self.remove_pages(range)?;
        }
    }

    fn remove_pages(&self, range: Range<u64>) -> Result<usize, MapError> {
        let mut state = self.lock_settled(&range);
        // Maps that lie within are removed without memory; only cutting one takes some.
        let mut known = self.cut(&mut state, &range)?;
        let mut touched = 0;
        let mut let_others_in = false;
        let mut removed = Removed::new();
        let mut at = range.start;
        while let Some(Range { start, end }) = known.take().or_else(|| {
            let map = state.maps.first_in(&(at..range.end))?;
            Some(map.start..map.end)
        }) {
            touched += 1;
            let mut page = start;
            loop {
                page = state.take_out(self.frames, page..end, &mut removed)?;
                if page >= end {
                    break;
                }
                // It takes long. Let others in, who will not find the map any more.
                state.maps.let_die(start);
                let_others_in = true;
                drop(state);
                state = self.state.lock();
            }
            state.maps.remove(start);
            at = end;
        }
        drop(state);
        if let_others_in {
            self.settled.wake_all();
        }
        Ok(touched)
    }

    /// Changes the protection of what is mapped in a range, across borders of maps; returns how many maps it touched.
    pub fn set_permissions(
        &self,
        base: VirtAddr,
        length: u64,
        protection: Protection,
    ) -> Result<usize, MapError> {
        let range = self.range(base, length)?;
        let change = |object: &mut MemoryMappedObject| {
            object.protection = protection;
            object.condition = Condition::Live;
        };
        let mut state = self.lock_settled(&range);
        let touched = self.change_in(&mut state, &range, change)?;
        if range.end - range.start <= BATCH_PAGES {
            // All of it has this protection as long as the lock is not open.
            state
                .table
                .protect(Page(range.start)..Page(range.end), protection)?;
        } else {
            drop(state);
            self.apply(range)?;
        }
        Ok(touched)
    }

    /// Makes every access to a range fault, whatever was there: it is gone.
    pub fn guard(&self, base: VirtAddr, length: u64) -> Result<(), MapError> {
        let range = self.range(base, length)?;
        self.change(&range, |object| object.condition = Condition::Guard)?;
        self.drop_pages(&range, |_| true)
    }

    /// Maps a stack of `length` bytes with a guard page below it; returns where the stack begins, above its highest byte.
    pub fn map_stack(&self, length: u64) -> Result<VirtAddr, MapError> {
        let page = PAGE_SIZE as u64;
        let length = pages_of(length)?
            .checked_mul(page)
            .and_then(|l| l.checked_add(page));
        let length = length.ok_or(MapError::OutOfRange)?;
        let base = self.map_anon(Placement::Anywhere, length, Protection::READ_WRITE)?;
        // It is the thread's, which frees it; not its program's, whose end may come before the thread's last instruction.
        let whole = base.page().0..base.page().0 + length / page;
        let disowned = self.change(&whole, |object| object.holder = 0);
        if let Err(error) = disowned.and_then(|_| self.guard(base, page)) {
            self.remove(base, length)?;
            return Err(error);
        }
        Ok(VirtAddr(base.0 + length))
    }

    /// Whether the lock that faults take is held.
    pub fn is_locked(&self) -> bool {
        self.state.is_locked()
    }

    /// Whether any page of the range is mapped.
    pub fn contains(&self, base: VirtAddr, length: u64) -> Result<bool, MapError> {
        let range = self.range(base, length)?;
        let state = self.state.lock();
        Ok(!state.maps.is_free(&range))
    }

    /// The byte of its file that `address` shows.
    pub fn file_offset(&self, address: VirtAddr) -> Option<u64> {
        let state = self.state.lock();
        let object = state.maps.find(address.page().0)?;
        object.file()?;
        let offset = address.0 % PAGE_SIZE as u64;
        Some(object.block(address.page().0) * PAGE_SIZE as u64 + offset)
    }

    /// The first map at or above `at`, as it is now.
    pub fn next_map(&self, at: VirtAddr) -> Option<MemoryMappedObject> {
        let state = self.state.lock();
        state.maps.first_in(&(at.page().0..u64::MAX)).cloned()
    }

    /// The map that `address` is in, unless the maps are locked.
    pub fn try_find(&self, address: VirtAddr) -> Option<MemoryMappedObject> {
        self.state.try_lock()?.maps.find(address.page().0).cloned()
    }

    /// What `address` shows.
    pub fn place(&self, address: VirtAddr) -> Place {
        let page = address.page().0;
        let state = self.state.lock();
        let object = state.maps.find(page);
        match object.and_then(|object| Some((object.file()?, object.block(page)))) {
            Some((file, block)) => Place {
                file: file.file.number(),
                page: block,
                sharing: Some(file.sharing),
            },
            None => Place {
                file: NO_FILE,
                page,
                sharing: None,
            },
        }
    }

    /// How many maps there are.
    pub fn len(&self) -> usize {
        self.state.lock().maps.len()
    }

    /// Whether there is no map.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many faults there were, by how they ended.
    pub fn fault_counts(&self) -> FaultCounts {
        self.state.lock().counts
    }

    /// Lends the page table.
    pub fn with_table<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.state.lock().table)
    }

    /// Panics where maps and page table contradict each other. Looks at everything.
    pub fn check(&self) {
        let state = self.state.lock();
        state.maps.check();
        let all = Page(0)..Page(1 << 36);
        let mut at = all.start;
        while let Some((page, present)) = state.table.next_present(at..all.end) {
            let object = state.maps.find(page.0);
            let object = object.unwrap_or_else(|| panic!("{page:?} is present, but in no map"));
            let may_store = object.protection.allows(Access::Write);
            assert!(
                object.condition != Condition::Guard,
                "{page:?} is present in a guard"
            );
            assert_eq!(
                present.is_held,
                object.protection == Protection::NONE,
                "{page:?}"
            );
            assert!(may_store || !present.is_writable, "{page:?} is writable");
            assert!(
                object.protection.allows(Access::Execute) || !present.is_executable,
                "{page:?} is executable"
            );
            let owner = self.frames.owner(present.frame);
            match present.kind {
                Kind::Own => assert_eq!(owner, Owner::Anonymous, "{page:?}"),
                Kind::File => assert!(object.file().is_some(), "{page:?}"),
                Kind::Zero => assert!(!present.is_writable, "{page:?}: the zero page is writable"),
            }
            if present.kind == Kind::Own && present.is_writable {
                assert_eq!(
                    self.frames.count(present.frame),
                    0,
                    "{page:?} is shared and writable"
                );
            }
            at = Page(page.0 + 1);
        }
    }

    fn range(&self, base: VirtAddr, length: u64) -> Result<Range<u64>, MapError> {
        if !base.is_aligned(PAGE_SIZE as u64) {
            return Err(MapError::Misaligned);
        }
        let start = base.page().0;
        let range = start..start + pages_of(length)?;
        match lies_in(&range, &self.limits) {
            true => Ok(range),
            false => Err(MapError::OutOfRange),
        }
    }

    fn check_heap_room(&self) -> Result<(), MapError> {
        match self.frames.has(HEAP_ROOM, Urgency::Kernel) {
            true => Ok(()),
            false => Err(MapError::OutOfFrames),
        }
    }

    /// Every page of the range is in a map.
    fn check_mapped(&self, range: &Range<u64>) -> Result<(), MapError> {
        let state = self.state.lock();
        let mut at = range.start;
        for object in state.maps.all_in(range) {
            if object.start > at || object.condition == Condition::Dying {
                return Err(MapError::NotMapped);
            }
            at = object.end;
        }
        match at >= range.end {
            true => Ok(()),
            false => Err(MapError::NotMapped),
        }
    }

    /// Locks, once nobody is removing maps in `range`.
    fn lock_settled(&self, range: &Range<u64>) -> SpinLockGuard<'_, State<T>> {
        let mut state = self.state.lock();
        while state.maps.is_dying(range) {
            state = self.settled.wait(state);
        }
        state
    }

    /// Makes borders of maps, and of what the table holds, of the ends of `range`; returns where the map is that begins
    /// there, if one does.
    fn cut(
        &self,
        state: &mut State<T>,
        range: &Range<u64>,
    ) -> Result<Option<Range<u64>>, MapError> {
        let first = state.maps.find(range.start);
        match first.is_some_and(|map| map.start == range.start && map.end == range.end) {
            // A whole map, as it mostly is.
            true => Ok(Some(range.clone())),
            false => self.cut_inside(state, range),
        }
    }

    #[inline(never)]
    fn cut_inside(
        &self,
        state: &mut State<T>,
        range: &Range<u64>,
    ) -> Result<Option<Range<u64>>, MapError> {
        // Where the map ends that the first page is in: most ranges end no later.
        let mut known_end = 0;
        for at in [range.start, range.end] {
            let is_inside = match at.cmp(&known_end) {
                Ordering::Less => true,
                Ordering::Equal => false,
                Ordering::Greater => state.maps.find(at).is_some_and(|object| {
                    if at == range.start {
                        known_end = object.end;
                    }
                    object.start < at
                }),
            };
            if is_inside {
                self.check_heap_room()?;
                let is_block =
                    at % BATCH_PAGES != 0 && state.table.find(Page(at)).is_some_and(|p| p.is_huge);
                if is_block {
                    state.table.prepare(Page(at))?;
                }
                state.maps.split(at);
            }
        }
        let end = known_end.min(range.end);
        Ok((end > range.start).then_some(range.start..end))
    }

    /// Changes every map in `range`, cut at its ends, and merges what is alike after that.
    fn change(
        &self,
        range: &Range<u64>,
        f: impl Fn(&mut MemoryMappedObject),
    ) -> Result<usize, MapError> {
        self.change_in(&mut self.lock_settled(range), range, f)
    }

    fn change_in(
        &self,
        state: &mut State<T>,
        range: &Range<u64>,
        f: impl Fn(&mut MemoryMappedObject),
    ) -> Result<usize, MapError> {
        let mut known = self.cut(state, range)?;
        let mut touched = 0;
        let mut at = range.start;
        while let Some(object) = match known.take() {
            Some(first) => state.maps.at(first.start),
            None => state.maps.starting_in(at..range.end),
        } {
            f(object);
            let (start, end) = (object.start, object.end);
            touched += 1;
            state.maps.merge(start);
            at = end;
        }
        state.maps.merge(range.end);
        Ok(touched)
    }

    /// Gives what is present in `range` the protection its map has now.
    fn apply(&self, range: Range<u64>) -> Result<(), MapError> {
        let mut at = range.start;
        loop {
            let mut state = self.state.lock();
            // Gaps and what was never touched are passed over at once.
            let Some((page, _)) = state.table.next_present(Page(at)..Page(range.end)) else {
                return Ok(());
            };
            let Some(object) = state.maps.find(page.0) else {
                at = page.0 + 1;
                continue;
            };
            let end = object
                .end
                .min(range.end)
                .min((page.0 & !(BATCH_PAGES - 1)) + BATCH_PAGES);
            let protection = object.protection;
            state.table.protect(page..Page(end), protection)?;
            at = end;
            if at >= range.end {
                return Ok(());
            }
        }
    }

    /// Removes what is present in the maps of `range` that `is_meant` says yes to; the maps stay.
    fn drop_pages(
        &self,
        range: &Range<u64>,
        is_meant: impl Fn(&MemoryMappedObject) -> bool,
    ) -> Result<(), MapError> {
        let mut removed = Removed::new();
        let mut at = range.start;
        loop {
            let mut state = self.state.lock();
            let Some(object) = state.maps.first_in(&(at..range.end)) else {
                return Ok(());
            };
            let part = object.start.max(at)..object.end.min(range.end);
            at = part.end;
            if is_meant(object) {
                at = state.take_out(self.frames, part, &mut removed)?;
            }
            if at >= range.end {
                return Ok(());
            }
        }
    }
}

impl<T: PageTable> State<T> {
    /// Removes what is present in `range`, all in one map, for some time; returns where it got to.
    pub(super) fn take_out(
        &mut self,
        frames: &Frames,
        range: Range<u64>,
        removed: &mut Removed,
    ) -> Result<u64, OutOfFrames> {
        let Page(end) = self
            .table
            .remove(Page(range.start)..Page(range.end), removed)?;
        // From here on no TLB translates to these frames.
        for run in removed.drain() {
            match run.kind {
                Kind::Own => frames.unshare_run(run.frame, run.count),
                Kind::File => self.unpin(run),
                Kind::Zero => {}
            }
        }
        Ok(end)
    }

    fn unpin(&self, run: Run) {
        if run.frame == self.table.zero_frame() {
            return;
        }
        let mut page = run.page.0;
        let end = page + run.count;
        while page < end
            && let Some(object) = self.maps.find(page)
        {
            let part = object.end.min(end) - page;
            if let Some(file) = object.file() {
                file.file.unpin(object.block(page), part);
            }
            page += part;
        }
    }
}

/// Where a map of `len` pages goes; `None` where something must be removed first.
fn place(maps: &mut Maps, placement: Placement, len: u64) -> Result<Option<u64>, MapError> {
    let address = match placement {
        Placement::Anywhere => {
            return maps.choose(len).map(Some).ok_or(MapError::OutOfAddresses);
        }
        Placement::Hint(address)
        | Placement::Fixed(address)
        | Placement::FixedNoReplace(address) => address,
    };
    let is_hint = matches!(placement, Placement::Hint(_));
    let start = address.page().0;
    let range = start..start + len;
    let fault = if !address.is_aligned(PAGE_SIZE as u64) {
        Some(MapError::Misaligned)
    } else if !maps.may_hold(&range) {
        Some(MapError::OutOfRange)
    } else if !maps.is_free(&range) {
        Some(MapError::Occupied)
    } else {
        None
    };
    match (fault, placement) {
        (None, _) => Ok(Some(start)),
        (Some(_), _) if is_hint => maps.choose(len).map(Some).ok_or(MapError::OutOfAddresses),
        (Some(MapError::Occupied), Placement::Fixed(_)) => Ok(None),
        (Some(fault), _) => Err(fault),
    }
}

/// Pages that `length` bytes take.
fn pages_of(length: u64) -> Result<u64, MapError> {
    if length == 0 {
        return Err(MapError::Empty);
    }
    Ok(length.div_ceil(PAGE_SIZE as u64))
}
