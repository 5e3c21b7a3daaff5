//! This machine's memory: its frames, its heap, and what the rest of the kernel asks of them.

use super::addr::{Frame, PAGE_SIZE, PhysAddr};
use super::cache::PageCache;
use super::frame::{AddError, Frames, Owner, Urgency};
use super::heap::KernelHeap;
use super::low_half;
use crate::arch::aarch64::board::Board;
use crate::arch::aarch64::kernel_map::MapError;
use crate::arch::aarch64::{interrupts_are_masked, kernel_map, layout, page};
use crate::size::{Size, Unit};
use crate::thread::{self, Call, touch_program_stack};
use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::ops::Range;

/// All frames of this machine.
pub static FRAMES: Frames = Frames::new(layout::LINEAR.0 as usize);

/// All pages of files that are in memory.
pub static CACHE: PageCache = PageCache::new(&FRAMES);

static HEAP: KernelHeap<'static> = KernelHeap::new(&FRAMES);

/// The heap, for whoever calls from whatever stack.
struct Heap;

#[global_allocator]
static GLOBAL: Heap = Heap;

// SAFETY: the kernel heap's.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        touch_program_stack();
        // SAFETY: as the caller promises.
        let memory = unsafe { HEAP.alloc(layout) };
        if !memory.is_null() {
            return memory;
        }
        let is_kernel = thread::is_in_kernel();
        if !interrupts_are_masked() {
            // Nobody here holds a lock that this takes. What can be read again makes room, all of it if need be: of several
            // pages that follow each other there are none as long as a few lie between. A program, which holds no lock of a
            // file system either, has what is dirty written for it. One that is to end does so afterwards.
            let _call = Call::enter();
            let wanted = layout.size().div_ceil(PAGE_SIZE) as u64;
            // More than all that could be had: nothing is evicted for that.
            while FRAMES.counts().free + FRAMES.counts().cache >= wanted {
                let has_freed =
                    CACHE.reclaim(wanted.max(64)) > 0 || !is_kernel && CACHE.reclaim_or_write();
                // Also where no frame of the cache was freed: what is kept about files comes from here.
                // SAFETY: as the caller promises.
                let memory = unsafe { HEAP.alloc(layout) };
                if !memory.is_null() {
                    return memory;
                }
                if !has_freed {
                    break;
                }
            }
        }
        match is_kernel {
            // A program can be told no, and ends. The kernel would end the machine, or leave its locks held.
            // SAFETY: as the caller promises.
            true => unsafe { HEAP.alloc_critical(layout) },
            false => memory,
        }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        touch_program_stack();
        // SAFETY: as the caller promises.
        unsafe { HEAP.dealloc(memory, layout) };
    }
}

/// Why there is no memory to work with.
pub enum InitError {
    /// RAM could not be mapped.
    Map(MapError),
    /// RAM could not be taken over.
    Add(AddError),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => write!(f, "RAM cannot be mapped: {error:?}"),
            Self::Add(error) => error.fmt(f),
        }
    }
}

/// Ranges that the image and whatever firmware left behind can make.
const RESERVED: usize = 40;

/// Takes over all RAM that nobody reserved.
pub fn init(board: &Board) -> Result<(), InitError> {
    page::init();
    let image = kernel_map::image();
    let mut reserved = [const { PhysAddr(0)..PhysAddr(0) }; RESERVED];
    let mut count = 0;
    for (place, range) in reserved
        .iter_mut()
        .zip(board.reserved.iter().chain([image]))
    {
        *place = range;
        count += 1;
    }
    let reserved = &mut reserved[..count];
    reserved.sort_unstable_by_key(|range| range.start);
    let mut outcome = Err(InitError::Add(AddError::TooSmall));
    for ram in board.ram.iter() {
        match add_ram(ram, reserved) {
            Ok(()) => outcome = Ok(()),
            // A sliver of RAM that nothing fits into is no reason to stop.
            Err(InitError::Add(AddError::TooSmall)) => {}
            Err(error) => return Err(error),
        }
    }
    outcome?;
    let too_small = |_| InitError::Add(AddError::TooSmall);
    HEAP.keep().map_err(too_small)?;
    low_half::init().map_err(too_small)
}

fn add_ram(ram: Range<PhysAddr>, reserved: &[Range<PhysAddr>]) -> Result<(), InitError> {
    kernel_map::map_ram(ram.clone()).map_err(InitError::Map)?;
    let end = PhysAddr(ram.end.0.min(layout::LINEAR_SIZE));
    // SAFETY: mapped above, and nobody's: what is somebody's is reserved.
    unsafe { FRAMES.add_ram(ram.start..end, reserved) }.map_err(InitError::Add)
}

/// A frame for the kernel's own use.
pub fn alloc_kernel_frame() -> Option<Frame> {
    FRAMES.alloc(Owner::Kernel, Urgency::Kernel).ok()
}

/// A frame for a table of the high half; it is kept.
pub fn alloc_table_frame() -> Option<Frame> {
    FRAMES.alloc(Owner::PageTable, Urgency::Kernel).ok()
}

/// Gives back what [`alloc_kernel_frame`] gave.
pub fn free_kernel_frame(frame: Frame) {
    FRAMES.free(frame, Owner::Kernel);
}

/// Frames that are free.
pub fn free_frames() -> u64 {
    touch_program_stack();
    FRAMES.counts().free
}

/// Objects of the kernel heap that are in use; what takes whole frames is not among them.
pub fn heap_objects() -> u64 {
    touch_program_stack();
    HEAP.objects()
}

/// Bytes in use: the image, with its variables, frames that are not free, and what is kept about frames.
pub fn used_bytes() -> u64 {
    touch_program_stack();
    let image = kernel_map::image();
    let counts = FRAMES.counts();
    let frames = counts.total - counts.free + counts.metadata;
    Frame(frames).start().0 + (image.end.0 - image.start.0)
}

/// What `mem` shows, in these units.
pub struct Summary(pub Unit);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = FRAMES.counts();
        let rows = [
            ("all frames", counts.total),
            ("free", counts.free),
            ("  of these in reserve", counts.reserve),
            ("kept about frames", counts.metadata),
            ("translation tables", counts.page_table),
            ("anonymous memory", counts.anonymous),
            ("page cache", counts.cache),
            ("kernel heap and stacks", counts.kernel),
        ];
        for (name, frames) in rows {
            writeln!(f, "{name:24} {:>14}", Size(Frame(frames).start().0, self.0))?;
        }
        Ok(())
    }
}
