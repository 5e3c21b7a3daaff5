//! Blocks of frames: which of each are free, and the lists of those that have some.

use super::{
    BLOCK_FRAMES, BLOCK_ORDER, Frames, KEPT, LISTS, OutOfFrames, Owner, State, Urgency, Zone,
    buddy_layout,
};
use crate::mm::addr::{Frame, PAGE_SIZE};
use core::ops::Range;
use core::ptr::NonNull;

/// Blocks with free frames that the search for a small run looks at.
const RUN_SEARCH: usize = 16;

const WORDS: usize = BLOCK_FRAMES as usize / 64;

/// Of 512 frames that start at a multiple of 2 MiB.
#[repr(C)]
pub(super) struct Block {
    /// A one for each free frame, unless the buddy allocator has them all.
    free: [u64; WORDS],
    next: Option<NonNull<Block>>,
    previous: Option<NonNull<Block>>,
    first: Frame,
    free_count: u32,
    /// The list it is in when it has free frames.
    list: u8,
    pub is_with_buddy: bool,
}

impl State {
    /// Whether `count` frames may go to one whose need is `urgency`.
    #[inline(always)]
    pub(super) fn check(&mut self, count: u64, urgency: Urgency) -> Result<(), OutOfFrames> {
        #[cfg(feature = "refusal")]
        self.refusal.take(urgency)?;
        let floor = match urgency {
            Urgency::Data => self.reserve,
            Urgency::Kernel => self.reserve / 2,
            Urgency::Critical => 0,
        };
        if self.free < floor + count {
            return Err(OutOfFrames);
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn give(&mut self, owner: Owner, count: u64) {
        self.free -= count;
        self.owned[owner as usize] += count;
    }

    /// New RAM: whole blocks.
    pub(super) fn add_blocks(&mut self, frames: &Frames, zone: &Zone, range: Range<u64>) {
        let count = range.end - range.start;
        self.total += count;
        self.free += count;
        for first in range.clone().step_by(BLOCK_FRAMES as usize) {
            // SAFETY: `self` is locked; the zone is new, so nobody else refers to its blocks.
            unsafe { zone.block(Frame(first)).as_mut() }.is_with_buddy = true;
        }
        let start = frames.pointer(Frame(range.start)) as usize;
        let end = start + count as usize * PAGE_SIZE;
        // SAFETY: the memory was given to us, and this part is in no other hand.
        unsafe { self.buddy.add_to_heap(start, end) };
    }

    /// New RAM: part of a block, or two.
    pub(super) fn add_frames(&mut self, frames: &Frames, zone: &Zone, range: Range<u64>) {
        let count = range.end - range.start;
        self.total += count;
        self.free += count;
        let mut frame = range.start;
        while frame < range.end {
            let part = range.end.min((frame & !63) + 64) - frame;
            for i in frame..frame + part {
                zone.descriptor(Frame(i)).set(Owner::Free);
            }
            let mask = (u64::MAX >> (64 - part)) << (frame % 64);
            self.release_word(frames, zone.block(Frame(frame)), frame, mask);
            frame += part;
        }
    }

    /// Moves a block from the buddy allocator to the list of those whose frames are given out one by one.
    pub(super) fn split_block(&mut self, frames: &Frames, list: usize) -> Result<(), OutOfFrames> {
        let first = frames.take_blocks(self, BLOCK_ORDER)?;
        let zone = frames.zone(first);
        for frame in first.0..first.0 + BLOCK_FRAMES {
            zone.descriptor(Frame(frame)).set(Owner::Free);
        }
        let mut place = zone.block(first);
        // SAFETY: `self` is locked.
        let block = unsafe { place.as_mut() };
        block.free = [u64::MAX; WORDS];
        block.free_count = BLOCK_FRAMES as u32;
        block.list = list as u8;
        self.link(place);
        Ok(())
    }

    /// A block with free frames, where `list` has none.
    #[cold]
    pub(super) fn head_of_another(
        &mut self,
        frames: &Frames,
        list: usize,
    ) -> Result<NonNull<Block>, OutOfFrames> {
        let head = match self.split_block(frames, list) {
            Ok(()) => self.partial[list],
            Err(OutOfFrames) => self.partial[LISTS - 1 - list],
        };
        head.ok_or(OutOfFrames)
    }

    /// Marks the frames of `mask`, in the word that `first` is in, free; a block that is free as a whole goes back to the
    /// buddy allocator, unless it is the only one of its list with free frames: it would soon be split again.
    #[inline(always)]
    pub(super) fn release_word(
        &mut self,
        frames: &Frames,
        mut place: NonNull<Block>,
        first: u64,
        mask: u64,
    ) {
        // SAFETY: `self` is locked.
        let block = unsafe { place.as_mut() };
        let word = (first % BLOCK_FRAMES / 64) as usize;
        let count = mask.count_ones();
        assert!(
            block.free[word] & mask == 0 && !block.is_with_buddy,
            "one of {count} frames in the word of Frame({first:#x}) is freed twice"
        );
        block.free[word] |= mask;
        block.free_count += count;
        let free_count = block.free_count;
        if free_count == count {
            self.link(place);
        }
        if free_count == BLOCK_FRAMES as u32 {
            self.give_back(frames, place);
        }
    }

    pub(super) fn give_back(&mut self, frames: &Frames, mut place: NonNull<Block>) {
        // SAFETY: `self` is locked.
        let block = unsafe { place.as_mut() };
        if block.next.is_none() && block.previous.is_none() {
            return;
        }
        self.unlink(place);
        // SAFETY: as above; `unlink` is done with it.
        let block = unsafe { place.as_mut() };
        block.free = [0; WORDS];
        block.free_count = 0;
        block.is_with_buddy = true;
        if let Some(start) = NonNull::new(frames.pointer(block.first)) {
            // SAFETY: all of it was had from the buddy allocator, as one block, and all of it is free: a block with a
            // reserved part never has all its frames free.
            unsafe { self.buddy.dealloc(start, buddy_layout(BLOCK_ORDER)) };
        }
    }

    pub(super) fn link(&mut self, mut place: NonNull<Block>) {
        // SAFETY: `self` is locked; the block is in no list.
        let block = unsafe { place.as_mut() };
        let first = &mut self.partial[usize::from(block.list)];
        block.previous = None;
        block.next = *first;
        if let Some(mut next) = first.replace(place) {
            // SAFETY: in the list, so a block, and another one.
            unsafe { next.as_mut() }.previous = Some(place);
        }
    }

    pub(super) fn unlink(&mut self, mut place: NonNull<Block>) {
        // SAFETY: `self` is locked.
        let block = unsafe { place.as_mut() };
        let (previous, next) = (block.previous.take(), block.next.take());
        match previous {
            // SAFETY: in the list, so a block, and another one.
            Some(mut previous) => unsafe { previous.as_mut() }.next = next,
            None => self.partial[usize::from(block.list)] = next,
        }
        if let Some(mut next) = next {
            // SAFETY: as above.
            unsafe { next.as_mut() }.previous = previous;
        }
    }

    /// A run from the blocks in a list, if one of the first few has it.
    pub(super) fn take_run(&mut self, list: usize, order: u32) -> Option<Frame> {
        let mut at = self.partial[list];
        for _ in 0..RUN_SEARCH {
            let mut place = at?;
            // SAFETY: in the list, so a block; `self` is locked.
            let block = unsafe { place.as_mut() };
            if let Some(index) = block.find_run(order) {
                block.take_run(index, order);
                let first = Frame(block.first.0 + index);
                let is_empty = block.free_count == 0;
                if is_empty {
                    self.unlink(place);
                }
                return Some(first);
            }
            at = block.next;
        }
        None
    }
}

impl Block {
    /// With no frame free.
    pub(super) const fn new(first: Frame) -> Self {
        Self {
            free: [0; WORDS],
            next: None,
            previous: None,
            first,
            free_count: 0,
            // Until it is split: part of it is reserved, so it is never whole.
            list: KEPT as u8,
            is_with_buddy: false,
        }
    }

    /// The first free frame is taken; the block is in a list, so there is one.
    #[inline(always)]
    pub(super) fn take_first(&mut self) -> Frame {
        let mut word = 0;
        while self.free[word] == 0 {
            word += 1;
        }
        let bit = self.free[word].trailing_zeros();
        self.free[word] &= self.free[word] - 1;
        self.free_count -= 1;
        Frame(self.first.0 + word as u64 * 64 + u64::from(bit))
    }

    #[inline(always)]
    pub(super) fn is_used_up(&self) -> bool {
        self.free_count == 0
    }

    /// The first free run of `1 << order` frames at a multiple of its size.
    fn find_run(&self, order: u32) -> Option<u64> {
        if self.free_count < 1 << order {
            return None;
        }
        if order < 6 {
            return (0..WORDS).find_map(|i| {
                let mut starts = self.free[i];
                for step in 0..order {
                    starts &= starts >> (1 << step);
                }
                starts &= aligned_bits(order);
                (starts != 0).then(|| i as u64 * 64 + u64::from(starts.trailing_zeros()))
            });
        }
        let words = 1 << (order - 6);
        self.free
            .chunks(words)
            .position(|chunk| chunk.iter().all(|word| *word == u64::MAX))
            .map(|i| (i * words) as u64 * 64)
    }

    fn take_run(&mut self, index: u64, order: u32) {
        let word = (index / 64) as usize;
        if order < 6 {
            let mask = (1u64 << (1 << order)) - 1;
            self.free[word] &= !(mask << (index % 64));
        } else {
            self.free[word..word + (1 << (order - 6))].fill(0);
        }
        self.free_count -= 1 << order;
    }
}

/// A one at each multiple of `1 << order`.
const fn aligned_bits(order: u32) -> u64 {
    u64::MAX / ((1 << (1 << order)) - 1)
}
