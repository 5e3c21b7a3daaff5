//! Who owns which frame of physical memory.
//!
//! ```text
//!  zone        a range of RAM; at its start, what this module needs to know about it
//!  buddy       blocks of 2 MiB and larger runs of them, all free (`buddy_system_allocator`)
//!    | split   when no single frame is free                  ^ given back when all 512 are free again
//!    v                                                        |
//!  partial     two lists of blocks with some frames free, each with a bitmap: single frames and small runs
//! ```
//!
//! The buddy allocator looks for a freed block's buddy by walking a list, which is too slow for single frames; so it
//! holds only blocks, and single frames come from a bitmap, in ascending order: what is asked for one after the other
//! tends to lie together, and a freed run is a few words. One list is for what the kernel keeps, the other for what can be
//! had back, so that the pages of files that are evicted leave whole blocks, and not holes between the kernel's objects.
//! Only where one has nothing, and there is no block to split, is the other asked. Every operation on single frames is
//! O(1); adding RAM touches nothing of it but 96 bytes for each 2 MiB.
//!
//! A [`Frame`] has one owner at a time, recorded in its descriptor; freeing what is free or another's is a bug of ours
//! and panics. The owner may keep a count there: sharers, or entries in use.
//!
//! Memory is reached at a fixed distance from its physical address, so the same code runs over an array on a PC.

mod blocks;

use self::blocks::Block;
use super::addr::{Frame, PAGE_SIZE, PhysAddr};
use crate::sync::SpinLock;
use buddy_system_allocator::Heap;
use core::alloc::Layout;
use core::fmt;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Once;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Owner {
    /// Nothing: it can be had.
    Free = 0,
    /// A translation table; its count is that of the entries in use.
    PageTable = 1,
    /// A slot of the page cache; its count is that of the pins.
    Cache = 2,
    /// Memory of a map with no file behind it; its count is that of the maps it is shared with.
    Anonymous = 3,
    /// The kernel heap, kernel stacks.
    Kernel = 4,
}

const OWNERS: usize = 5;

/// Lists of blocks with free frames.
const LISTS: usize = 2;

impl Owner {
    /// The list that its frames come from.
    const fn list(self) -> usize {
        match self {
            Self::Free | Self::Cache | Self::Anonymous => 0,
            Self::PageTable | Self::Kernel => KEPT,
        }
    }
}

/// The list for what the kernel keeps.
const KEPT: usize = 1;

/// How much a frame is needed: the less, the more are left for others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// A program's data: it stops when memory is short.
    Data,
    /// The kernel's own: it can say no.
    Kernel,
    /// What gets the system out of a shortage: tables for a fault, write-back.
    Critical,
}

/// No frame that this caller may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

/// Why RAM was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddError {
    /// There is room for [`MAX_ZONES`] ranges.
    TooManyRanges,
    /// No part of the range is large enough for what must be known about it.
    TooSmall,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyRanges => "too many separate ranges of RAM",
            Self::TooSmall => "too little memory",
        })
    }
}

/// Separate ranges of RAM there can be.
pub const MAX_ZONES: usize = 8;

/// Frames in a block: 2 MiB.
pub const BLOCK_FRAMES: u64 = 512;
/// As an order: the logarithm of the number of frames.
pub const BLOCK_ORDER: u32 = 9;

/// Of a frame, for its owner.
#[repr(C)]
struct Descriptor {
    /// Owner in the highest byte, count below.
    state: AtomicU32,
    /// The owner's to use.
    data: AtomicU32,
}

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

#[derive(Clone, Copy)]
struct Zone {
    frames: (u64, u64),
    descriptors: NonNull<Descriptor>,
    blocks: NonNull<Block>,
}

// SAFETY: descriptors are atomic, blocks are reached only with `state` locked.
unsafe impl Send for Zone {}
// SAFETY: as above.
unsafe impl Sync for Zone {}

impl Zone {
    #[inline(always)]
    fn contains(&self, frame: Frame) -> bool {
        (self.frames.0..self.frames.1).contains(&frame.0)
    }

    #[inline(always)]
    fn descriptor(&self, frame: Frame) -> &Descriptor {
        debug_assert!(self.contains(frame));
        // SAFETY: the zone has a descriptor for each of its frames, from its first block's start on.
        unsafe {
            self.descriptors
                .add((frame.0 - self.first_of_blocks()) as usize)
                .as_ref()
        }
    }

    #[inline(always)]
    fn block(&self, frame: Frame) -> NonNull<Block> {
        let index = (frame.0 - self.first_of_blocks()) / BLOCK_FRAMES;
        // SAFETY: the zone has a block for each of its frames.
        unsafe { self.blocks.add(index as usize) }
    }

    fn first_of_blocks(&self) -> u64 {
        self.frames.0 & !(BLOCK_FRAMES - 1)
    }
}

struct State {
    buddy: Heap<40>,
    partial: [Option<NonNull<Block>>; LISTS],
    total: u64,
    free: u64,
    reserve: u64,
    metadata: u64,
    owned: [u64; OWNERS],
    #[cfg(feature = "refusal")]
    refusal: Refusal,
}

/// Requests that are refused on purpose.
#[cfg(feature = "refusal")]
struct Refusal {
    asked: u64,
    refused: Range<u64>,
}

#[cfg(feature = "refusal")]
impl Refusal {
    const NONE: Self = Self {
        asked: 0,
        refused: 0..0,
    };

    /// The first is refused whatever it is for, those after it as in a shortage.
    fn take(&mut self, urgency: Urgency) -> Result<(), OutOfFrames> {
        let number = self.asked;
        self.asked += 1;
        let is_spared = urgency == Urgency::Critical && number != self.refused.start;
        match self.refused.contains(&number) && !is_spared {
            true => Err(OutOfFrames),
            false => Ok(()),
        }
    }
}

// SAFETY: its pointers lead into memory that is the allocator's for good.
unsafe impl Send for State {}

/// All frames of a machine.
pub struct Frames {
    /// What to add to a physical address.
    linear: usize,
    zones: [Once<Zone>; MAX_ZONES],
    state: SpinLock<State>,
}

/// How many frames there are, and whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// All that were given to the allocator.
    pub total: u64,
    /// Free ones.
    pub free: u64,
    /// Left for what is urgent.
    pub reserve: u64,
    /// Not among them: what blocks and descriptors take.
    pub metadata: u64,
    /// Translation tables.
    pub page_table: u64,
    /// Page cache.
    pub cache: u64,
    /// Anonymous memory.
    pub anonymous: u64,
    /// Kernel heap and stacks.
    pub kernel: u64,
}

impl Frames {
    /// Whether the lock that every call takes is held.
    pub fn is_locked(&self) -> bool {
        self.state.is_locked()
    }

    /// No frames; RAM will be reached by adding `linear` to physical addresses, a multiple of 2 MiB.
    pub const fn new(linear: usize) -> Self {
        Self {
            linear,
            zones: [const { Once::new() }; MAX_ZONES],
            state: SpinLock::new(State {
                buddy: Heap::new(),
                partial: [None; LISTS],
                total: 0,
                free: 0,
                reserve: 0,
                metadata: 0,
                owned: [0; OWNERS],
                #[cfg(feature = "refusal")]
                refusal: Refusal::NONE,
            }),
        }
    }

    /// Takes over `ram` but for what is in `reserved` (in ascending order, not overlapping); parts of pages are left out.
    ///
    /// # Safety
    /// The memory is mapped, at the distance [`new`](Self::new) was told, and nobody else's from now on.
    pub unsafe fn add_ram(
        &self,
        ram: Range<PhysAddr>,
        reserved: &[Range<PhysAddr>],
    ) -> Result<(), AddError> {
        let slot = self
            .zones
            .iter()
            .find(|zone| zone.get().is_none())
            .ok_or(AddError::TooManyRanges)?;
        let frames = (page_up(ram.start), ram.end.frame().0);
        if frames.0 >= frames.1 {
            return Err(AddError::TooSmall);
        }
        let first_of_blocks = frames.0 & !(BLOCK_FRAMES - 1);
        let blocks = (frames.1 - first_of_blocks).div_ceil(BLOCK_FRAMES) as usize;
        let block_bytes = blocks * size_of::<Block>();
        let descriptor_bytes = (frames.1 - first_of_blocks) as usize * size_of::<Descriptor>();
        let needed = (block_bytes + descriptor_bytes).div_ceil(PAGE_SIZE) as u64;
        let place = free_parts(frames, reserved)
            .find(|part| part.1 - part.0 >= needed)
            .ok_or(AddError::TooSmall)?;
        let base = self.pointer(Frame(place.0));
        let (Some(blocks_at), Some(descriptors_at)) = (
            NonNull::new(base.cast::<Block>()),
            // SAFETY: within the room found above.
            NonNull::new(unsafe { base.add(block_bytes) }.cast::<Descriptor>()),
        ) else {
            return Err(AddError::TooSmall);
        };
        for i in 0..blocks {
            // SAFETY: the caller gives us the memory; the room is large enough.
            unsafe {
                let first = Frame(first_of_blocks + i as u64 * BLOCK_FRAMES);
                blocks_at.add(i).write(Block::new(first));
            }
        }
        let zone = *slot.call_once(|| Zone {
            frames,
            descriptors: descriptors_at,
            blocks: blocks_at,
        });
        let mut state = self.state.lock();
        state.metadata += needed;
        for mut part in free_parts(frames, reserved) {
            if part.0 == place.0 {
                part.0 += needed;
            }
            // Whole blocks go to the buddy allocator at once, so that it makes the largest runs of them.
            let whole_start = part.0.next_multiple_of(BLOCK_FRAMES).min(part.1);
            let whole_end = (part.1 & !(BLOCK_FRAMES - 1)).max(whole_start);
            state.add_frames(self, &zone, part.0..whole_start);
            state.add_blocks(self, &zone, whole_start..whole_end);
            state.add_frames(self, &zone, whole_end..part.1);
        }
        // For the kernel, above all for writing back when programs have all the rest.
        state.reserve = (state.total / 32).clamp(64, 2048).min(state.total / 8);
        Ok(())
    }

    /// Where the frame's bytes are. Only its owner may use them.
    #[inline(always)]
    pub fn pointer(&self, frame: Frame) -> *mut u8 {
        ptr::with_exposed_provenance_mut((frame.start().0 as usize).wrapping_add(self.linear))
    }

    /// The frame that [`pointer`](Self::pointer) leads into.
    #[inline(always)]
    pub fn frame_of(&self, pointer: *const u8) -> Frame {
        PhysAddr((pointer as usize).wrapping_sub(self.linear) as u64).frame()
    }

    /// A frame with any contents.
    #[inline]
    pub fn alloc(&self, owner: Owner, urgency: Urgency) -> Result<Frame, OutOfFrames> {
        let mut state = self.state.lock();
        state.check(1, urgency)?;
        let mut head = match state.partial[owner.list()] {
            Some(head) => head,
            None => state.head_of_another(self, owner.list())?,
        };
        // SAFETY: in the list, so a block; `state` is locked.
        let block = unsafe { head.as_mut() };
        let frame = block.take_first();
        if block.is_used_up() {
            state.unlink(head);
        }
        state.give(owner, 1);
        self.descriptor(frame).set(owner);
        Ok(frame)
    }

    /// `1 << order` frames, the first at a multiple of their size, with any contents.
    pub fn alloc_run(
        &self,
        owner: Owner,
        urgency: Urgency,
        order: u32,
    ) -> Result<Frame, OutOfFrames> {
        let count = 1 << order;
        let mut state = self.state.lock();
        state.check(count, urgency)?;
        let first = if order <= BLOCK_ORDER {
            match state.take_run(owner.list(), order) {
                Some(first) => first,
                None => {
                    let list = match state.split_block(self, owner.list()) {
                        Ok(()) => owner.list(),
                        Err(OutOfFrames) => LISTS - 1 - owner.list(),
                    };
                    state.take_run(list, order).ok_or(OutOfFrames)?
                }
            }
        } else {
            self.take_blocks(&mut state, order)?
        };
        state.give(owner, count);
        for frame in first.0..first.0 + count {
            self.descriptor(Frame(frame)).set(owner);
        }
        Ok(first)
    }

    /// Gives one frame back.
    ///
    /// # Panics
    /// Where `owner` does not own it.
    #[inline]
    pub fn free(&self, frame: Frame, owner: Owner) {
        self.free_run(frame, 1, owner);
    }

    /// Gives `count` frames back, that were had together or not.
    ///
    /// # Panics
    /// Where `owner` does not own one of them.
    pub fn free_run(&self, first: Frame, count: u64, owner: Owner) {
        self.give_back_run(first, count, |zone, frame| {
            zone.descriptor(frame).release(frame, owner);
            true
        });
    }

    /// Takes one sharer from each of `count` frames of anonymous memory; those that had no other are free.
    ///
    /// # Panics
    /// Where one of them is not anonymous memory.
    pub fn unshare_run(&self, first: Frame, count: u64) {
        self.give_back_run(first, count, |zone, frame| {
            let descriptor = zone.descriptor(frame);
            let is_shared = descriptor.state.load(Ordering::Relaxed) & COUNT_MASK > 0;
            if is_shared {
                descriptor.state.fetch_sub(1, Ordering::Relaxed);
            } else {
                descriptor.release(frame, Owner::Anonymous);
            }
            !is_shared
        });
    }

    /// Gives those frames back that `release` says yes to, and has made free.
    #[inline(always)]
    fn give_back_run(&self, first: Frame, count: u64, release: impl Fn(&Zone, Frame) -> bool) {
        let mut state = self.state.lock();
        let end = first.0 + count;
        let mut frame = first.0;
        while frame < end {
            let zone = self.zone(Frame(frame));
            // Up to the end of the word: its bits are set together.
            let word_end = end.min((frame & !63) + 64);
            let owner = zone.descriptor(Frame(frame)).owner();
            let mut mask = 0;
            let word = frame;
            while frame < word_end {
                mask |= u64::from(release(zone, Frame(frame))) << (frame % 64);
                frame += 1;
            }
            let freed = u64::from(mask.count_ones());
            state.owned[owner as usize] -= freed;
            state.free += freed;
            if mask != 0 {
                state.release_word(self, zone.block(Frame(word)), word, mask);
            }
        }
    }

    /// Whose the frame is.
    pub fn owner(&self, frame: Frame) -> Owner {
        let is_ours = self.zones().any(|zone| zone.contains(frame));
        if is_ours && !self.is_with_buddy(frame) {
            self.descriptor(frame).owner()
        } else {
            Owner::Free
        }
    }

    /// The count its owner keeps; zero when it was just allocated.
    #[inline(always)]
    pub fn count(&self, frame: Frame) -> u32 {
        self.descriptor(frame).state.load(Ordering::Relaxed) & COUNT_MASK
    }

    /// Where the count is, in its lower 24 bits: for an owner who changes it often.
    pub fn counter(&self, frame: Frame) -> &AtomicU32 {
        &self.descriptor(frame).state
    }

    /// Adds `n` to the count, and returns it.
    #[inline(always)]
    pub fn add_to_count(&self, frame: Frame, n: u32) -> u32 {
        let before = self.descriptor(frame).state.fetch_add(n, Ordering::Relaxed) & COUNT_MASK;
        debug_assert!(before + n <= COUNT_MASK);
        before + n
    }

    /// Subtracts `n` from the count, and returns it.
    ///
    /// # Panics
    /// Where the count is less.
    #[inline(always)]
    pub fn subtract_from_count(&self, frame: Frame, n: u32) -> u32 {
        let before = self.descriptor(frame).state.fetch_sub(n, Ordering::Relaxed) & COUNT_MASK;
        assert!(before >= n, "{frame:?} has a count of {before}, not {n}");
        before - n
    }

    /// A number the owner may keep with the frame.
    #[inline(always)]
    pub fn data(&self, frame: Frame) -> &AtomicU32 {
        &self.descriptor(frame).data
    }

    /// How many there are, and whose.
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        let owned = |owner| state.owned[owner as usize];
        Counts {
            total: state.total,
            free: state.free,
            reserve: state.reserve,
            metadata: state.metadata,
            page_table: owned(Owner::PageTable),
            cache: owned(Owner::Cache),
            anonymous: owned(Owner::Anonymous),
            kernel: owned(Owner::Kernel),
        }
    }

    /// From now on, requests with these numbers are refused; returns how many there were since this was last said.
    #[cfg(feature = "refusal")]
    pub fn refuse(&self, refused: Range<u64>) -> u64 {
        let refusal = Refusal { asked: 0, refused };
        core::mem::replace(&mut self.state.lock().refusal, refusal).asked
    }

    /// Whether `count` frames can be had now.
    pub fn has(&self, count: u64, urgency: Urgency) -> bool {
        self.state.lock().check(count, urgency).is_ok()
    }

    fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter().map_while(Once::get)
    }

    #[inline(always)]
    fn zone(&self, frame: Frame) -> &Zone {
        self.zones()
            .find(|zone| zone.contains(frame))
            .unwrap_or_else(|| panic!("{frame:?} is not RAM"))
    }

    #[inline(always)]
    fn descriptor(&self, frame: Frame) -> &Descriptor {
        self.zone(frame).descriptor(frame)
    }

    fn is_with_buddy(&self, frame: Frame) -> bool {
        let _state = self.state.lock();
        // SAFETY: `state` is locked.
        unsafe { self.zone(frame).block(frame).as_ref().is_with_buddy }
    }

    /// Takes blocks from the buddy allocator; their descriptors are the caller's to set.
    fn take_blocks(&self, state: &mut State, order: u32) -> Result<Frame, OutOfFrames> {
        let pointer = state
            .buddy
            .alloc(buddy_layout(order))
            .map_err(|()| OutOfFrames)?;
        let first = self.frame_of(pointer.as_ptr());
        for frame in (first.0..first.0 + (1 << order)).step_by(BLOCK_FRAMES as usize) {
            // SAFETY: `state` is locked.
            let block = unsafe { self.zone(Frame(frame)).block(Frame(frame)).as_mut() };
            block.is_with_buddy = false;
        }
        Ok(first)
    }
}

/// Frames `range` without those that `reserved` touches, part by part.
fn free_parts(
    frames: (u64, u64),
    reserved: &[Range<PhysAddr>],
) -> impl Iterator<Item = (u64, u64)> {
    let mut start = frames.0;
    reserved
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| (range.start.frame().0, page_up(range.end)))
        .chain([(frames.1, frames.1)])
        .filter_map(move |(from, to)| {
            let part = (start, from.min(frames.1));
            start = start.max(to);
            (part.0 < part.1).then_some(part)
        })
}

fn page_up(address: PhysAddr) -> u64 {
    address.0.div_ceil(PAGE_SIZE as u64)
}

fn buddy_layout(order: u32) -> Layout {
    let size = PAGE_SIZE << order;
    match Layout::from_size_align(size, size) {
        Ok(layout) => layout,
        Err(_) => unreachable!("a power of two, far below the limit"),
    }
}

impl Descriptor {
    #[inline(always)]
    fn set(&self, owner: Owner) {
        self.state
            .store((owner as u32) << COUNT_BITS, Ordering::Relaxed);
    }

    fn owner(&self) -> Owner {
        match self.state.load(Ordering::Relaxed) >> COUNT_BITS {
            0 => Owner::Free,
            1 => Owner::PageTable,
            2 => Owner::Cache,
            3 => Owner::Anonymous,
            4 => Owner::Kernel,
            other => panic!("a frame descriptor names owner {other}"),
        }
    }

    #[inline(always)]
    fn release(&self, frame: Frame, owner: Owner) {
        let state = self.state.load(Ordering::Relaxed);
        if state >> COUNT_BITS != owner as u32 {
            panic!(
                "{frame:?} is freed as {owner:?}, but it is {:?}",
                self.owner()
            );
        }
        self.set(Owner::Free);
    }
}

#[cfg(test)]
mod tests;
