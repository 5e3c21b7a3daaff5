//! The fault path: an access failed; make it succeed, or say why not.
//!
//! ```text
//!  handle_fault
//!   |  what does the table hold?
//!   |-- the access is allowed by now: somebody else was faster, a success
//!   |-- a store to a page whose map allows stores: the entry says all that is needed, no map is looked up
//!   |     zeros -> fresh page    shared -> copy    ours alone -> writable again    file -> dirty, or copy
//!   '-- nothing: find the map, does it allow the access?
//!         anonymous: load -> zeros around it; store -> fresh page, group or block
//!         file:      lookup in the page cache
//!           Resident -> enter it and those around it
//!           Edge     -> the same, and start to read what follows
//!           Hole     -> enter the zeros
//!           Busy, Absent -> let go of the lock, wait or read, and look again from the top
//!
//!  a store to a shared page of a file that has no room on the device yet lets go of the lock, too, and makes room
//! ```
//!
//! Nothing is entered before its bytes are right. Frames are for data ([`Urgency::Data`]) or for tables (critical); the
//! heap is not used. While the lock is open the file is kept alive by a count of it, whatever becomes of its map.

use super::addr::{Frame, Page, VirtAddr};
use super::fault::{Fault, FaultError, FaultKind, Outcome};
use super::frame::{BLOCK_ORDER, Frames, OutOfFrames, Owner, Urgency};
use super::manager::{MemoryMapManager, State};
use super::maps::{Hot, HotFile};
use super::object::{
    BATCH, Condition, Dirtied, IoError, Lookup, MappableFile, Pattern, Pinned, Sharing,
};
use super::table::{Access, Kind, PageTable, Present, Protection, Removed, Stores};
use crate::arch::page;
use crate::sync::SpinLockGuard;
use alloc::sync::Arc;
use core::ops::Range;

/// Pages of a group that writes in ascending order get at once: 64 KiB.
const GROUP_ORDER: u32 = 4;
const GROUP: u64 = 1 << GROUP_ORDER;
const BLOCK: u64 = 1 << BLOCK_ORDER;

/// Faults in ascending order before blocks are given.
const BLOCK_FROM: u32 = 32;

/// Pages of a file among which those that are resident are entered with one that was touched: as many as are a
/// group, and all that one table covers where pages are touched in ascending order.
const FILE_AROUND: u64 = GROUP;
const FILE_AROUND_RUN: u64 = BLOCK;

impl From<OutOfFrames> for FaultError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

impl From<IoError> for FaultError {
    fn from(error: IoError) -> Self {
        match error {
            IoError::OutOfFrames => Self::OutOfFrames,
            error => Self::Io(error),
        }
    }
}

/// How far a fault got with the lock held.
#[derive(Clone, Copy)]
enum Step {
    Done(Outcome),
    /// Done; and what follows the block should be read now: not with the lock held.
    Ahead(Outcome),
    /// The block must be read, or somebody reads it: not with the lock held.
    Wait,
    /// Something is in the way no more: look again.
    Again,
    /// The block may be stored to once there is room for it: not with the lock held.
    Room,
    /// A block of memory would do, and must be zeroed: not with the lock held.
    Block,
}

/// What is left to do of a fault, with the lock open. It keeps the file alive.
pub enum Rest {
    /// It is resolved; what follows the block of the file should be read.
    Ahead(Arc<dyn MappableFile>, u64),
    /// The block must be read.
    Wait(Arc<dyn MappableFile>, u64, Pattern),
    /// There must be room for the block.
    Room(Arc<dyn MappableFile>, u64),
    /// A block of memory.
    Block(Hot),
    /// Another look.
    Again,
    /// Nothing but to say why.
    Failed(FaultError),
}

impl<T: PageTable> MemoryMapManager<'_, T> {
    /// Resolves `fault`, so that the instruction can run again.
    #[inline]
    pub fn handle_fault(&self, fault: Fault) -> Result<(), FaultError> {
        if let FaultKind::AccessFlag(_) = fault.kind {
            // The entry is right but for its access flag.
            let mut state = self.state.lock();
            state.table.refresh(fault.address.page());
            state.counts.count(Outcome::Spurious);
            return Ok(());
        }
        self.trap(fault.address, fault.access)
    }

    /// Makes an access to `address` succeed, or says why it cannot.
    #[inline]
    pub fn trap(&self, address: VirtAddr, access: Access) -> Result<(), FaultError> {
        match self.try_trap(address, access) {
            None => Ok(()),
            Some(rest) => self.finish_trap(address, access, rest),
        }
    }

    /// Makes an access to `address` succeed, if that takes no waiting; else, what is left to do, for
    /// [`finish_trap`](Self::finish_trap).
    #[inline(never)]
    pub fn try_trap(&self, address: VirtAddr, access: Access) -> Option<Rest> {
        try_step(&mut self.state.lock(), self.frames, address, access)
    }

    /// The same, for a handler that has interrupts masked.
    #[inline(always)]
    pub fn try_trap_masked(&self, address: VirtAddr, access: Access) -> Option<Rest> {
        try_step(&mut self.state.lock_masked(), self.frames, address, access)
    }

    /// Goes on where [`try_trap`](Self::try_trap) left off.
    #[cold]
    pub fn finish_trap(
        &self,
        address: VirtAddr,
        access: Access,
        mut rest: Rest,
    ) -> Result<(), FaultError> {
        loop {
            match rest {
                Rest::Again => {}
                Rest::Ahead(file, block) => {
                    file.read_ahead(block);
                    return Ok(());
                }
                Rest::Wait(file, block, pattern) => self.not_failed(file.prime(block, pattern))?,
                Rest::Room(file, block) => self.not_failed(file.make_room(block))?,
                Rest::Block(hot) => {
                    if self.enter_block(address.page(), hot) {
                        return Ok(());
                    }
                }
                Rest::Failed(FaultError::OutOfFrames) => {
                    if !(self.reclaim)() {
                        return self.not_failed(Err(IoError::OutOfFrames));
                    }
                }
                Rest::Failed(error) => {
                    self.state.lock().counts.count(Outcome::Failed);
                    return Err(error);
                }
            }
            match self.try_trap(address, access) {
                None => return Ok(()),
                Some(next) => rest = next,
            }
        }
    }

    fn not_failed(&self, result: Result<(), IoError>) -> Result<(), FaultError> {
        result.map_err(|error| {
            self.state.lock().counts.count(Outcome::Failed);
            error.into()
        })
    }

    /// Gives the map that `hot` describes a block at `page`; `false` where that is not to be, by now.
    #[cold]
    fn enter_block(&self, page: Page, hot: Hot) -> bool {
        let block = self
            .frames
            .alloc_run(Owner::Anonymous, Urgency::Data, BLOCK_ORDER);
        if let Ok(first) = block {
            // SAFETY: the frames are ours, and nobody else knows them.
            unsafe { page::zero(self.frames.pointer(first), BLOCK as usize) };
            let mut state = self.state.lock();
            if state.enter_block(page, first, &hot) {
                return true;
            }
            drop(state);
            self.frames.free_run(first, BLOCK, Owner::Anonymous);
        }
        // What is left is a group or a page.
        self.end_stream(self.state.lock());
        false
    }

    fn end_stream(&self, mut state: SpinLockGuard<'_, State<T>>) {
        state.stream.hits = 1;
    }
}

#[inline(always)]
fn try_step<T: PageTable>(
    state: &mut State<T>,
    frames: &Frames,
    address: VirtAddr,
    access: Access,
) -> Option<Rest> {
    let page = address.page();
    // Each kind of fault is settled by itself: the most frequent ones in registers.
    if !state.table.is_known_absent(page)
        && let Some(present) = state.table.find(page)
    {
        let step = state.step_present(frames, page, access, present);
        return state.settle(page, step);
    }
    if let Some(hot) = state.maps.last_hot(page.0) {
        let step = state.step_anonymous(frames, page, access, hot);
        return state.settle(page, step);
    }
    if state.maps.last_file(page.0).is_some() {
        if access == Access::Write {
            let step = state.store_to_new(frames, page);
            return state.settle(page, step);
        }
        let step = state.load_from_file(page, access);
        return state.settle(page, step);
    }
    let step = state.step_elsewhere(frames, page, access);
    state.settle(page, step)
}

impl<T: PageTable> State<T> {
    #[inline(always)]
    fn settle(&mut self, page: Page, step: Result<Step, FaultError>) -> Option<Rest> {
        match step {
            Ok(Step::Done(outcome)) => {
                self.counts.count(outcome);
                None
            }
            other => Some(self.rest(page, other)),
        }
    }

    /// What is left to do after `step`, at `page`.
    #[cold]
    fn rest(&mut self, page: Page, step: Result<Step, FaultError>) -> Rest {
        let step = match step {
            Ok(step) => step,
            Err(error) => return Rest::Failed(error),
        };
        if let Step::Ahead(outcome) = step {
            self.counts.count(outcome);
        }
        // The map is the one that the step was about: the lock was not open since.
        if let Step::Block = step {
            return self.maps.find_hot(page.0).map_or(Rest::Again, Rest::Block);
        }
        let Some(hot) = self.maps.find_file(page.0) else {
            return Rest::Again;
        };
        let block = hot.block(page.0);
        match step {
            Step::Ahead(_) => Rest::Ahead(hot.file.clone(), block),
            Step::Wait => Rest::Wait(hot.file.clone(), block, hot.pattern),
            Step::Room => Rest::Room(hot.file.clone(), block),
            Step::Done(_) | Step::Again | Step::Block => Rest::Again,
        }
    }

    /// Where nothing is present in the anonymous map that `hot` describes.
    #[inline(never)]
    fn step_anonymous(
        &mut self,
        frames: &Frames,
        page: Page,
        access: Access,
        hot: Hot,
    ) -> Result<Step, FaultError> {
        if !hot.protection.allows(access) {
            return Err(FaultError::Denied);
        }
        if access == Access::Write {
            return self.fresh(frames, page, Some(hot), hot.protection);
        }
        self.table
            .enter_zero(page, Page(hot.start)..Page(hot.end), hot.protection)?;
        Ok(Step::Done(Outcome::Zero))
    }

    #[inline(never)]
    fn step_present(
        &mut self,
        frames: &Frames,
        page: Page,
        access: Access,
        present: Present,
    ) -> Result<Step, FaultError> {
        if present.allows(access) {
            self.table.refresh(page);
            return Ok(Step::Done(Outcome::Spurious));
        }
        if access != Access::Write || !present.may_store || present.is_held {
            return Err(FaultError::Denied);
        }
        match present.kind {
            Kind::Zero => {
                let is_run = self.stream.next == page.0;
                let hot = if is_run {
                    self.maps.find_hot(page.0)
                } else {
                    None
                };
                let protection = protection_of(&present);
                self.fresh(frames, page, hot, protection)
            }
            Kind::Own if frames.count(present.frame) == 0 => {
                self.table.allow_stores(page)?;
                Ok(Step::Done(Outcome::Reused))
            }
            Kind::Own => {
                let protection = protection_of(&present);
                enter_copy(&mut self.table, frames, page, present.frame, protection)?;
                // The table has forgotten the old frame: the others' count of it is all there is now.
                frames.subtract_from_count(present.frame, 1);
                Ok(Step::Done(Outcome::Copied))
            }
            Kind::File => self.store_to_file(frames, page, &present),
        }
    }

    /// Where it is none of the maps that were found last: another one, a guard, or nothing.
    #[inline(never)]
    fn step_elsewhere(
        &mut self,
        frames: &Frames,
        page: Page,
        access: Access,
    ) -> Result<Step, FaultError> {
        if let Some(hot) = self.maps.find_hot(page.0) {
            return self.step_anonymous(frames, page, access, hot);
        }
        if self.maps.find_file(page.0).is_some() {
            // Now it is the one that was found last.
            return Ok(Step::Again);
        }
        match self.maps.find(page.0).map(|object| object.condition) {
            Some(Condition::Guard) => Err(FaultError::Guard),
            _ => Err(FaultError::NoMapping),
        }
    }

    /// A load where nothing is present in the map of a file, which was found last.
    #[inline(always)]
    fn load_from_file(&mut self, page: Page, access: Access) -> Result<Step, FaultError> {
        let Some(hot) = self.maps.last_file(page.0) else {
            return Ok(Step::Again);
        };
        if !hot.protection.allows(access) {
            return Err(FaultError::Denied);
        }
        let block = hot.block(page.0);
        let lookup = hot.file.pin_block(block);
        let (Lookup::Resident(frame) | Lookup::Edge(frame)) = lookup else {
            return self.step_absent(page, lookup, access);
        };
        if hot.pattern != Pattern::Random
            && enter_file_around(&mut self.table, &mut self.next_of_file, page, hot)
        {
            // With a pin of its own.
            hot.file.unpin(block, 1);
        } else {
            // From here on the entry keeps the pin.
            let stores = Stores::Trap;
            let entered = self
                .table
                .enter_new(page, frame, Kind::File, hot.protection, stores);
            if let Err(error) = entered {
                hot.file.unpin(block, 1);
                return Err(error.into());
            }
        }
        match lookup {
            Lookup::Edge(_) => Ok(Step::Ahead(Outcome::File)),
            _ => Ok(Step::Done(Outcome::File)),
        }
    }

    /// A store where nothing is present in the map of a file, which was found last.
    #[inline(always)]
    fn store_to_new(&mut self, frames: &Frames, page: Page) -> Result<Step, FaultError> {
        let Some(hot) = self.maps.last_file(page.0) else {
            return Ok(Step::Again);
        };
        if !hot.protection.allows(Access::Write) {
            return Err(FaultError::Denied);
        }
        if hot.sharing == Sharing::CopyOnWrite {
            return self.copy_from_file(frames, page);
        }
        let block = hot.block(page.0);
        let lookup = hot.file.pin_to_store(block)?;
        let (Lookup::Resident(frame) | Lookup::Edge(frame)) = lookup else {
            return self.step_absent(page, lookup, Access::Write);
        };
        let stores = Stores::Reach;
        let entered = self
            .table
            .enter_new(page, frame, Kind::File, hot.protection, stores);
        if let Err(error) = entered {
            hot.file.unpin(block, 1);
            return Err(error.into());
        }
        match lookup {
            Lookup::Edge(_) => Ok(Step::Ahead(Outcome::FileDirty)),
            _ => Ok(Step::Done(Outcome::FileDirty)),
        }
    }

    /// A load from a block, or a store to it, that is in no frame, or may not become dirty yet.
    #[cold]
    fn step_absent(
        &mut self,
        page: Page,
        lookup: Lookup,
        access: Access,
    ) -> Result<Step, FaultError> {
        match lookup {
            Lookup::PastEnd => Err(FaultError::PastEnd),
            Lookup::NoRoom => Ok(Step::Room),
            Lookup::Hole if access == Access::Write => Ok(Step::Room),
            Lookup::Hole => {
                let protection = self
                    .maps
                    .last_file(page.0)
                    .map_or(Protection::NONE, |hot| hot.protection);
                let zeros = self.table.zero_frame();
                self.table
                    .enter(page, 1, zeros, Kind::File, protection, Stores::Trap)?;
                Ok(Step::Done(Outcome::File))
            }
            Lookup::Resident(_) | Lookup::Edge(_) | Lookup::Busy | Lookup::Absent => Ok(Step::Wait),
        }
    }

    /// A store to a private map of a file, where nothing is present.
    #[inline(never)]
    fn copy_from_file(&mut self, frames: &Frames, page: Page) -> Result<Step, FaultError> {
        let Some(hot) = self.maps.last_file(page.0) else {
            return Ok(Step::Again);
        };
        let (block, protection) = (hot.block(page.0), hot.protection);
        let (frame, is_edge) = match hot.file.pin_block(block) {
            Lookup::Resident(frame) => (frame, false),
            Lookup::Edge(frame) => (frame, true),
            Lookup::Hole => return self.fresh(frames, page, None, protection),
            // A load's business: the block itself stays as it is.
            other => return self.step_absent(page, other, Access::Read),
        };
        let copied = enter_copy(&mut self.table, frames, page, frame, protection);
        hot.file.unpin(block, 1);
        copied?;
        match is_edge {
            true => Ok(Step::Ahead(Outcome::Copied)),
            false => Ok(Step::Done(Outcome::Copied)),
        }
    }

    /// A store to a block that is entered for loads.
    fn store_to_file(
        &mut self,
        frames: &Frames,
        page: Page,
        present: &Present,
    ) -> Result<Step, FaultError> {
        let hot = self.maps.find_file(page.0).ok_or(FaultError::NoMapping)?;
        let block = hot.block(page.0);
        let is_hole = present.frame == self.table.zero_frame();
        match hot.sharing {
            Sharing::Shared if is_hole => {
                // Not zeros much longer: whoever stores now looks the block up again.
                self.take_out(frames, page.0..page.0 + 1, &mut Removed::new())?;
                Ok(Step::Again)
            }
            Sharing::Shared => {
                if hot.file.dirty_block(block)? == Dirtied::NeedsRoom {
                    return Ok(Step::Room);
                }
                self.table.allow_stores(page)?;
                Ok(Step::Done(Outcome::FileDirty))
            }
            Sharing::CopyOnWrite => {
                let protection = protection_of(present);
                enter_copy(&mut self.table, frames, page, present.frame, protection)?;
                if !is_hole {
                    hot.file.unpin(block, 1);
                }
                Ok(Step::Done(Outcome::Copied))
            }
        }
    }

    /// Puts a page of zeros that is the map's own where nothing or zeros are; several, where stores come in ascending
    /// order and it is known how far the map goes.
    #[inline(always)]
    fn fresh(
        &mut self,
        frames: &Frames,
        page: Page,
        hot: Option<Hot>,
        protection: Protection,
    ) -> Result<Step, FaultError> {
        let is_run = self.stream.next == page.0;
        self.stream.hits = if is_run { self.stream.hits + 1 } else { 0 };
        self.stream.next = page.0 + 1;
        if is_run
            && page.0.is_multiple_of(GROUP)
            && let Some(hot) = hot
            && page.0 + GROUP <= hot.end
            && !hot.is_random
        {
            if self.stream.hits >= BLOCK_FROM
                && page.0.is_multiple_of(BLOCK)
                && page.0 + BLOCK <= hot.end
                && self.table.is_block_free(page)
            {
                return Ok(Step::Block);
            }
            if self.fresh_group(frames, page, protection) {
                self.stream.next = page.0 + GROUP;
                return Ok(Step::Done(Outcome::FreshGroup));
            }
        }
        let frame = frames.alloc(Owner::Anonymous, Urgency::Data)?;
        // SAFETY: the frame is ours, and nobody else knows it.
        unsafe { page::zero(frames.pointer(frame), 1) };
        if let Err(error) = self
            .table
            .enter(page, 1, frame, Kind::Own, protection, Stores::Reach)
        {
            frames.free(frame, Owner::Anonymous);
            return Err(error.into());
        }
        Ok(Step::Done(Outcome::Fresh))
    }

    /// Whether a whole group could be given.
    fn fresh_group(&mut self, frames: &Frames, page: Page, protection: Protection) -> bool {
        if !self.table.is_replaceable(page, GROUP) {
            return false;
        }
        let Ok(first) = frames.alloc_run(Owner::Anonymous, Urgency::Data, GROUP_ORDER) else {
            return false;
        };
        // SAFETY: the frames are ours, and nobody else knows them.
        unsafe { page::zero(frames.pointer(first), GROUP as usize) };
        let entered = self
            .table
            .enter(page, GROUP, first, Kind::Own, protection, Stores::Reach);
        if entered.is_err() {
            frames.free_run(first, GROUP, Owner::Anonymous);
        }
        entered.is_ok()
    }

    /// Enters a block that was zeroed while the lock was open, if the map is still there and nothing is in the way.
    fn enter_block(&mut self, page: Page, first: Frame, hot: &Hot) -> bool {
        let block: Range<u64> = page.0..page.0 + BLOCK;
        let is_same = self.maps.find_hot(page.0).is_some_and(|now| {
            now.start <= block.start && block.end <= now.end && now.protection == hot.protection
        });
        if !is_same || !self.table.is_block_free(page) {
            return false;
        }
        let entered =
            self.table
                .enter(page, BLOCK, first, Kind::Own, hot.protection, Stores::Reach);
        if entered.is_ok() {
            self.stream.next = block.end;
            self.counts.count(Outcome::FreshBlock);
        }
        entered.is_ok()
    }
}

/// Puts a copy of `from` in the place of what is present.
fn enter_copy<T: PageTable>(
    table: &mut T,
    frames: &Frames,
    page: Page,
    from: Frame,
    protection: Protection,
) -> Result<(), OutOfFrames> {
    let copy = frames.alloc(Owner::Anonymous, Urgency::Data)?;
    // SAFETY: the new frame is ours; the old one stays what it is while its entry, or the caller's pin, is there.
    unsafe { page::copy(frames.pointer(copy), frames.pointer(from)) };
    let entered = table.enter(page, 1, copy, Kind::Own, protection, Stores::Reach);
    if entered.is_err() {
        frames.free(copy, Owner::Anonymous);
    }
    entered
}

/// Enters what is resident around `page`, which is absent and was to be loaded from: a fault saved each. Whatever goes
/// wrong, they can still fault. Says whether `page` is entered; `next` is where the run ends that was entered last.
#[inline(never)]
fn enter_file_around<T: PageTable>(
    table: &mut T,
    next: &mut u64,
    page: Page,
    hot: &HotFile,
) -> bool {
    let is_run = hot.pattern == Pattern::Sequential || *next == page.0;
    let span = if is_run { FILE_AROUND_RUN } else { FILE_AROUND };
    let window = page.0 & !(span - 1);
    let end = (window + span).min(hot.end);
    // In a run nothing before the page is missing.
    let start = if is_run {
        page.0
    } else {
        window.max(hot.start)
    };
    let absent = table.absent(Page(start), end - start);
    let mut is_entered = false;
    let mut found = [Frame(0); BATCH as usize];
    *next = end;
    for (at, absent) in (start..end).step_by(BATCH as usize).zip(absent) {
        let first_block = hot.block(at);
        let pinned = match absent {
            0 => Pinned::default(),
            _ => hot.file.pin_resident(first_block, absent, &mut found),
        };
        let entered = table.enter_file_pages(Page(at), pinned, &found, hot.protection);
        if entered.is_err() {
            for i in (0..BATCH).filter(|i| pinned.blocks >> i & 1 != 0) {
                hot.file.unpin(first_block + i, 1);
            }
            break;
        }
        // Those behind the page: where one is missing, the run ends, and the next fault is.
        let behind = match page.0.checked_sub(at) {
            None => u64::MAX,
            Some(i) if i < BATCH => {
                is_entered = pinned.blocks >> i & 1 != 0;
                u64::MAX << i << 1
            }
            Some(_) => 0,
        };
        let missing = absent & !pinned.blocks & behind;
        if missing != 0 {
            *next = at + u64::from(missing.trailing_zeros());
            break;
        }
    }
    is_entered
}

/// What the map of a present page that allows stores allows.
fn protection_of(present: &Present) -> Protection {
    match present.is_executable {
        true => Protection::READ_WRITE_EXECUTE,
        false => Protection::READ_WRITE,
    }
}
