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
enum Step {
    Done(Outcome),
    /// Done; and what follows the block should be read now: not with the lock held.
    Ahead(Outcome, Arc<dyn MappableFile>, u64),
    /// The block must be read, or somebody reads it: not with the lock held.
    Wait(Arc<dyn MappableFile>, u64, Pattern),
    /// Something is in the way no more: look again.
    Again,
    /// The block may be stored to once there is room for it: not with the lock held.
    Room(Arc<dyn MappableFile>, u64),
    /// A block of memory would do, and must be zeroed: not with the lock held.
    Block(Hot),
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
        let page = address.page();
        loop {
            let mut state = self.state.lock();
            match state.step(self.frames, page, access) {
                Ok(Step::Done(outcome)) => {
                    state.counts.count(outcome);
                    return Ok(());
                }
                Ok(Step::Again) => {}
                Ok(Step::Ahead(outcome, file, block)) => {
                    state.counts.count(outcome);
                    drop(state);
                    file.read_ahead(block);
                    return Ok(());
                }
                Ok(Step::Wait(file, block, pattern)) => {
                    drop(state);
                    self.not_failed(file.prime(block, pattern))?;
                }
                Ok(Step::Room(file, block)) => {
                    drop(state);
                    self.not_failed(file.make_room(block))?;
                }
                Ok(Step::Block(hot)) => {
                    drop(state);
                    if self.enter_block(page, hot) {
                        return Ok(());
                    }
                }
                Err(FaultError::OutOfFrames) => {
                    drop(state);
                    if !(self.reclaim)() {
                        return self.not_failed(Err(IoError::OutOfFrames));
                    }
                }
                Err(error) => {
                    state.counts.count(Outcome::Failed);
                    return Err(error);
                }
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

impl<T: PageTable> State<T> {
    #[inline(always)]
    fn step(&mut self, frames: &Frames, page: Page, access: Access) -> Result<Step, FaultError> {
        if let Some(present) = self.table.find(page) {
            return self.step_present(frames, page, access, present);
        }
        match self.maps.last_hot(page.0) {
            Some(hot) => self.step_anonymous(frames, page, access, hot),
            None => self.step_elsewhere(frames, page, access),
        }
    }

    #[inline(always)]
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

    #[inline(always)]
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

    /// Where the anonymous map is not that was found last: another one, a file's, a guard, or nothing.
    #[inline(never)]
    fn step_elsewhere(
        &mut self,
        frames: &Frames,
        page: Page,
        access: Access,
    ) -> Result<Step, FaultError> {
        if !self.maps.is_last_file(page.0)
            && let Some(hot) = self.maps.find_hot(page.0)
        {
            return self.step_anonymous(frames, page, access, hot);
        }
        let Some(hot) = self.maps.find_file(page.0) else {
            return match self.maps.find(page.0).map(|object| object.condition) {
                Some(Condition::Guard) => Err(FaultError::Guard),
                _ => Err(FaultError::NoMapping),
            };
        };
        let protection = hot.protection;
        if !protection.allows(access) {
            return Err(FaultError::Denied);
        }
        let block = hot.block(page.0);
        let (frame, is_edge) = match hot.file.pin_block(block) {
            Lookup::Resident(frame) => (frame, false),
            Lookup::Edge(frame) => (frame, true),
            Lookup::PastEnd => return Err(FaultError::PastEnd),
            Lookup::Busy | Lookup::Absent => {
                return Ok(Step::Wait(hot.file.clone(), block, hot.pattern));
            }
            Lookup::Hole => match (access, hot.sharing) {
                (Access::Write, Sharing::Shared) => {
                    return Ok(Step::Room(hot.file.clone(), block));
                }
                (Access::Write, Sharing::CopyOnWrite) => {
                    return self.fresh(frames, page, None, protection);
                }
                _ => {
                    let zeros = self.table.zero_frame();
                    self.table
                        .enter(page, 1, zeros, Kind::File, protection, Stores::Trap)?;
                    return Ok(Step::Done(Outcome::File));
                }
            },
        };
        // The entry keeps the pin, unless the block is copied, or not entered.
        let (outcome, keeps_pin) = match (access, hot.sharing) {
            (Access::Write, Sharing::Shared) => match hot.file.dirty_block(block) {
                Ok(Dirtied::Done) => {
                    let stores = Stores::Reach;
                    let entered = self
                        .table
                        .enter_new(page, frame, Kind::File, protection, stores);
                    let outcome = entered.map(|()| Outcome::FileDirty);
                    (outcome.map_err(FaultError::from), entered.is_ok())
                }
                Ok(Dirtied::NeedsRoom) => {
                    hot.file.unpin(block, 1);
                    return Ok(Step::Room(hot.file.clone(), block));
                }
                Err(error) => (Err(error.into()), false),
            },
            (Access::Write, Sharing::CopyOnWrite) => {
                let copied = enter_copy(&mut self.table, frames, page, frame, protection);
                let outcome = copied.map(|()| Outcome::Copied);
                (outcome.map_err(FaultError::from), false)
            }
            _ => {
                let stores = Stores::Trap;
                let entered = self
                    .table
                    .enter_new(page, frame, Kind::File, protection, stores);
                if entered.is_ok() && hot.pattern != Pattern::Random {
                    enter_file_around(&mut self.table, &mut self.next_of_file, page, hot);
                }
                let outcome = entered.map(|()| Outcome::File);
                (outcome.map_err(FaultError::from), entered.is_ok())
            }
        };
        if !keeps_pin {
            hot.file.unpin(block, 1);
        }
        match outcome {
            Ok(outcome) if is_edge => Ok(Step::Ahead(outcome, hot.file.clone(), block)),
            outcome => outcome.map(Step::Done),
        }
    }

    /// A store to a block that is entered for loads.
    #[inline(never)]
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
                    return Ok(Step::Room(hot.file.clone(), block));
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
                return Ok(Step::Block(hot));
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

/// Enters what is resident around `page`, which was just entered: a fault saved each. Whatever goes wrong, they can
/// still fault. `next` is where the run ends that was entered last.
fn enter_file_around<T: PageTable>(table: &mut T, next: &mut u64, page: Page, hot: &HotFile) {
    let span = match hot.pattern {
        Pattern::Sequential => FILE_AROUND_RUN,
        _ if *next == page.0 => FILE_AROUND_RUN,
        _ => FILE_AROUND,
    };
    let window = page.0 & !(span - 1);
    let end = (window + span).min(hot.end);
    // In a run nothing before the page is missing.
    let mut at = if span == FILE_AROUND_RUN {
        page.0
    } else {
        window.max(hot.start)
    };
    *next = end;
    let mut found = [Frame(0); BATCH as usize];
    while at < end {
        let count = (end - at).min(BATCH);
        let absent = table.absent(Page(at), count);
        let first_block = hot.block(at);
        let pinned = match absent {
            0 => Pinned::default(),
            _ => hot.file.pin_resident(first_block, absent, &mut found),
        };
        if table
            .enter_file_pages(Page(at), pinned, &found, hot.protection)
            .is_err()
        {
            for i in (0..count).filter(|i| pinned.blocks >> i & 1 != 0) {
                hot.file.unpin(first_block + i, 1);
            }
            return;
        }
        // Where the run ends, the next fault is.
        let missing = (absent & !pinned.blocks) >> page.0.saturating_sub(at).min(BATCH - 1);
        if missing != 0 && at + BATCH > page.0 {
            *next = page.0.max(at) + u64::from(missing.trailing_zeros());
            return;
        }
        at += count;
    }
}

/// What the map of a present page that allows stores allows.
fn protection_of(present: &Present) -> Protection {
    match present.is_executable {
        true => Protection::READ_WRITE_EXECUTE,
        false => Protection::READ_WRITE,
    }
}
