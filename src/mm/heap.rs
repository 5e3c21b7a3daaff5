//! The kernel heap: what `alloc` is made of.
//!
//! Sizes up to 2032 bytes come from slabs: a frame cut into objects of one size class, with its header in the last
//! 32 bytes, so that objects are as aligned as their size. Larger ones are runs of whole frames.
//!
//! ```text
//!  class 0 (16)  -> slab <-> slab           slabs with free objects, newest first
//!  class 1 (32)  -> slab                    slab: | object | free --> free --> ... | header |
//!  ...                                      full slabs stand in no list; an empty one goes back to the frames,
//!                                           unless it is the last of its class with free objects
//! ```
//!
//! Everything is O(1). Out of memory is a null pointer. The heap takes no more frames than leave half of the reserve,
//! but for what the kernel cannot do without ([`alloc_critical`](KernelHeap::alloc_critical)): small objects, and a few
//! larger ones, which come from a piece of memory that is kept for them. When memory is full of pages of files, there are
//! frames, but no two that follow each other.

use super::addr::{Frame, PAGE_SIZE};
use super::frame::{Frames, OutOfFrames, Owner, Urgency};
use crate::sync::SpinLock;
use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::{Range, RangeInclusive};
use core::ptr::{self, NonNull};

/// Object sizes. Multiples of 16; the largest of each number of objects that a frame has room for.
const CLASSES: [u16; 18] = [
    16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 672, 800, 1008, 1344, 2032,
];

const GRANULE: usize = 16;
const LARGEST: usize = CLASSES[CLASSES.len() - 1] as usize;

/// The class for each number of granules.
const CLASS_OF: [u8; LARGEST / GRANULE + 1] = {
    let mut table = [0; LARGEST / GRANULE + 1];
    let mut granules = 0;
    let mut class = 0;
    while granules < table.len() {
        if granules * GRANULE > CLASSES[class] as usize {
            class += 1;
        }
        table[granules] = class as u8;
        granules += 1;
    }
    table
};

/// At the end of a slab's frame.
#[repr(C)]
struct Header {
    next: Option<NonNull<Header>>,
    previous: Option<NonNull<Header>>,
    /// The first free object; each free object starts with a pointer to the next.
    free: *mut Object,
    /// Objects that were never given out begin here: they are in no list yet.
    fresh: u16,
    in_use: u16,
    class: u16,
}

struct Object {
    next: *mut Object,
}

const ROOM: usize = PAGE_SIZE - size_of::<Header>();

struct State {
    /// Slabs with free objects, by class.
    partial: [Option<NonNull<Header>>; CLASSES.len()],
    /// Objects of slabs that are in use.
    objects: u64,
}

// SAFETY: its pointers lead into frames that are the heap's.
unsafe impl Send for State {}

/// Frames kept for objects of several pages: a part of all, but no more and no less than these.
const KEPT: RangeInclusive<u64> = 8..=64;
const KEPT_PART: u64 = 256;

/// Memory kept for the kernel's objects of several pages.
struct Kept {
    free: Heap<32>,
    range: Range<usize>,
}

/// A heap over frames.
pub struct KernelHeap<'f> {
    frames: &'f Frames,
    state: SpinLock<State>,
    kept: SpinLock<Kept>,
}

impl<'f> KernelHeap<'f> {
    /// An empty heap that takes its memory from `frames`.
    pub const fn new(frames: &'f Frames) -> Self {
        Self {
            frames,
            state: SpinLock::new(State {
                partial: [None; CLASSES.len()],
                objects: 0,
            }),
            kept: SpinLock::new(Kept {
                free: Heap::empty(),
                range: 0..0,
            }),
        }
    }

    /// Puts memory aside for objects of several pages. To be called once, when there are frames.
    pub fn keep(&self) -> Result<(), OutOfFrames> {
        let count = self.frames.counts().total / KEPT_PART;
        let count = count.next_power_of_two().clamp(*KEPT.start(), *KEPT.end());
        let first =
            self.frames
                .alloc_run(Owner::Kernel, Urgency::Kernel, count.trailing_zeros())?;
        let start = self.frames.pointer(first).expose_provenance();
        let size = count as usize * PAGE_SIZE;
        let mut kept = self.kept.lock();
        // SAFETY: the frames are ours, follow each other, and are aligned to their size.
        unsafe { kept.free.init(start, size) };
        kept.range = start..start + size;
        Ok(())
    }

    /// How many objects of up to 2032 bytes are in use.
    pub fn objects(&self) -> u64 {
        self.state.lock().objects
    }

    /// Memory for the kernel, whose own lists and boxes grow where nothing can be undone: up to a page out of all of the
    /// reserve, more than that out of what is kept for it.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::alloc`].
    pub unsafe fn alloc_critical(&self, layout: Layout) -> *mut u8 {
        if layout.size() <= PAGE_SIZE {
            return self.alloc_for(layout, Urgency::Critical);
        }
        let kept = self.kept.lock().free.alloc(layout);
        kept.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    fn alloc_for(&self, layout: Layout, urgency: Urgency) -> *mut u8 {
        let Some(class) = class_for(layout) else {
            // Runs are as aligned as they are large; more than that nobody asks for below the size of a block.
            return match layout.align() <= layout.size().next_power_of_two().max(PAGE_SIZE) {
                true => self.alloc_pages(layout.size(), urgency),
                false => ptr::null_mut(),
            };
        };
        let mut state = self.state.lock();
        let partial = state.partial[class];
        let Some(mut slab) = partial.or_else(|| self.new_slab(&mut state, class, urgency)) else {
            return ptr::null_mut();
        };
        // SAFETY: in the list, so a slab's header; `state` is locked.
        unsafe { state.take_object(slab.as_mut()) }
    }

    fn new_slab(
        &self,
        state: &mut State,
        class: usize,
        urgency: Urgency,
    ) -> Option<NonNull<Header>> {
        let frame = self.frames.alloc(Owner::Kernel, urgency).ok()?;
        // SAFETY: the frame is ours, and the header lies within it.
        let header = unsafe { self.frames.pointer(frame).add(ROOM).cast::<Header>() };
        // SAFETY: as above, and aligned: `ROOM` is a multiple of eight.
        unsafe {
            header.write(Header {
                next: None,
                previous: None,
                free: ptr::null_mut(),
                fresh: 0,
                in_use: 0,
                class: class as u16,
            });
        }
        let header = NonNull::new(header)?;
        state.link(header, class);
        Some(header)
    }

    fn alloc_pages(&self, size: usize, urgency: Urgency) -> *mut u8 {
        let pages = size.div_ceil(PAGE_SIZE) as u64;
        let order = pages.next_power_of_two().trailing_zeros();
        let Ok(first) = self.frames.alloc_run(Owner::Kernel, urgency, order) else {
            return ptr::null_mut();
        };
        let spare = (1 << order) - pages;
        if spare > 0 {
            self.frames
                .free_run(Frame(first.0 + pages), spare, Owner::Kernel);
        }
        self.frames.pointer(first)
    }
}

fn class_for(layout: Layout) -> Option<usize> {
    if layout.size() > LARGEST {
        return None;
    }
    let smallest = usize::from(CLASS_OF[layout.size().div_ceil(GRANULE)]);
    if layout.align() <= GRANULE {
        return Some(smallest);
    }
    (smallest..CLASSES.len()).find(|class| usize::from(CLASSES[*class]) % layout.align() == 0)
}

fn header_of(object: *mut u8) -> *mut Header {
    object
        .map_addr(|address| (address & !(PAGE_SIZE - 1)) + ROOM)
        .cast()
}

// SAFETY: objects of a slab do not overlap (each is given out once until it is freed), slabs are frames that the heap
// owns, and sizes and alignments are those of the layout or more.
unsafe impl GlobalAlloc for KernelHeap<'_> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.alloc_for(layout, Urgency::Kernel)
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if class_for(layout).is_none() {
            let mut kept = self.kept.lock();
            if let Some(object) = NonNull::new(object)
                && kept.range.contains(&object.addr().get())
            {
                // SAFETY: it lies in what is kept, so that is where it came from.
                unsafe { kept.free.dealloc(object, layout) };
                return;
            }
            drop(kept);
            let pages = layout.size().div_ceil(PAGE_SIZE) as u64;
            let first = self.frames.frame_of(object);
            return self.frames.free_run(first, pages, Owner::Kernel);
        }
        let mut state = self.state.lock();
        // SAFETY: the caller promises that `alloc` gave it with this layout, so it lies in a slab.
        let empty = unsafe { state.put_object(&mut *header_of(object), object.cast()) };
        drop(state);
        if empty {
            self.frames
                .free(self.frames.frame_of(object), Owner::Kernel);
        }
    }
}

impl State {
    /// # Safety
    /// The slab is in its class's list, so it has free objects.
    unsafe fn take_object(&mut self, slab: &mut Header) -> *mut u8 {
        let class = usize::from(slab.class);
        let size = usize::from(CLASSES[class]);
        let object: *mut u8 = if slab.free.is_null() {
            let start = (&raw mut *slab)
                .cast::<u8>()
                .map_addr(|address| address & !(PAGE_SIZE - 1));
            let fresh = usize::from(slab.fresh);
            slab.fresh += size as u16;
            ptr::with_exposed_provenance_mut(start.expose_provenance() + fresh)
        } else {
            let object = slab.free;
            // SAFETY: a free object of the slab.
            slab.free = unsafe { (*object).next };
            object.cast()
        };
        slab.in_use += 1;
        self.objects += 1;
        let is_full = slab.free.is_null() && usize::from(slab.fresh) + size > ROOM;
        if is_full {
            self.unlink(NonNull::from(slab), class);
        }
        object
    }

    /// Whether the slab is empty now and stands in no list any more.
    ///
    /// # Safety
    /// The object is one of the slab's, and in use.
    unsafe fn put_object(&mut self, slab: &mut Header, object: *mut Object) -> bool {
        let class = usize::from(slab.class);
        let size = usize::from(CLASSES[class]);
        let was_full = slab.free.is_null() && usize::from(slab.fresh) + size > ROOM;
        // SAFETY: the object is not used any more, and large enough.
        unsafe { object.write(Object { next: slab.free }) };
        slab.free = object;
        slab.in_use -= 1;
        self.objects -= 1;
        let is_empty = slab.in_use == 0;
        let is_only = slab.next.is_none() && slab.previous.is_none();
        let place = NonNull::from(slab);
        if was_full {
            self.link(place, class);
            return false;
        }
        if is_empty && !is_only {
            self.unlink(place, class);
            return true;
        }
        false
    }

    fn link(&mut self, mut slab: NonNull<Header>, class: usize) {
        let first = self.partial[class].replace(slab);
        // SAFETY: headers of slabs, two different ones; `self` is locked.
        unsafe {
            slab.as_mut().previous = None;
            slab.as_mut().next = first;
            if let Some(mut first) = first {
                first.as_mut().previous = Some(slab);
            }
        }
    }

    fn unlink(&mut self, mut slab: NonNull<Header>, class: usize) {
        // SAFETY: headers of slabs in the list, different ones; `self` is locked.
        unsafe {
            let (previous, next) = (slab.as_mut().previous.take(), slab.as_mut().next.take());
            match previous {
                Some(mut previous) => previous.as_mut().next = next,
                None => self.partial[class] = next,
            }
            if let Some(mut next) = next {
                next.as_mut().previous = previous;
            }
        }
    }
}

const _: () = assert!(CLASSES.len() <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{CLASS_OF, CLASSES, KernelHeap};
    use crate::mm::addr::PAGE_SIZE;
    use crate::mm::frame::{Owner, Urgency};
    use crate::sim::SimMemory;
    use core::alloc::{GlobalAlloc, Layout};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        for size in 1..=2032usize {
            let class = usize::from(CLASS_OF[size.div_ceil(16)]);
            assert!(usize::from(CLASSES[class]) >= size);
            assert!(class == 0 || usize::from(CLASSES[class - 1]) < size);
        }
    }

    #[test]
    fn out_of_memory_is_null_and_the_heap_goes_on() {
        let memory = SimMemory::new(4 << 20);
        let heap = KernelHeap::new(memory.frames());
        let page = layout(PAGE_SIZE, 8);
        let mut all = Vec::new();
        loop {
            // SAFETY: the layout has a size.
            let pointer = unsafe { heap.alloc(page) };
            if pointer.is_null() {
                break;
            }
            all.push(pointer);
        }
        // SAFETY: as above.
        assert!(unsafe { heap.alloc(layout(64, 8)) }.is_null());
        for pointer in all {
            // SAFETY: had from `alloc` with this layout.
            unsafe { heap.dealloc(pointer, page) };
        }
        // SAFETY: as above.
        assert!(!unsafe { heap.alloc(layout(64, 8)) }.is_null());
    }

    #[test]
    fn empty_slabs_go_back_to_the_frames() {
        let memory = SimMemory::new(4 << 20);
        let heap = KernelHeap::new(memory.frames());
        let object = layout(100, 4);
        // SAFETY: the layout has a size.
        let all: Vec<*mut u8> = (0..2000).map(|_| unsafe { heap.alloc(object) }).collect();
        assert!(memory.frames().counts().kernel >= 60);
        for pointer in all {
            // SAFETY: had from `alloc` with this layout.
            unsafe { heap.dealloc(pointer, object) };
        }
        assert_eq!(memory.frames().counts().kernel, 1);
    }

    #[test]
    fn a_large_size_takes_its_pages_and_no_more() {
        let memory = SimMemory::new(4 << 20);
        let heap = KernelHeap::new(memory.frames());
        let five = layout(5 * PAGE_SIZE, 16);
        // SAFETY: the layout has a size.
        let pointer = unsafe { heap.alloc(five) };
        assert_eq!(memory.frames().counts().kernel, 5);
        // SAFETY: had from `alloc` with this layout.
        unsafe { heap.dealloc(pointer, five) };
        assert_eq!(memory.frames().counts().kernel, 0);
    }

    #[test]
    fn the_heap_leaves_the_reserve_alone() {
        let memory = SimMemory::new(4 << 20);
        let heap = KernelHeap::new(memory.frames());
        // SAFETY: the layout has a size.
        while !unsafe { heap.alloc(layout(PAGE_SIZE, 8)) }.is_null() {}
        assert!(
            memory
                .frames()
                .alloc(Owner::PageTable, Urgency::Critical)
                .is_ok()
        );
    }

    #[test]
    fn small_objects_of_the_kernel_come_from_the_reserve() {
        let memory = SimMemory::new(4 << 20);
        let heap = KernelHeap::new(memory.frames());
        let (small, page) = (layout(64, 8), layout(PAGE_SIZE, 8));
        // SAFETY: the layouts have sizes.
        unsafe {
            while !heap.alloc(page).is_null() {}
            assert!(heap.alloc(small).is_null());
            assert!(!heap.alloc_critical(small).is_null());
            assert!(!heap.alloc_critical(page).is_null());
            // Nothing was put aside.
            assert!(heap.alloc_critical(layout(2 * PAGE_SIZE, 8)).is_null());
            while !heap.alloc_critical(page).is_null() {}
        }
        assert_eq!(memory.frames().counts().free, 0);
    }

    #[test]
    fn the_kernel_has_several_pages_although_no_two_frames_follow_each_other() {
        let memory = SimMemory::new(8 << 20);
        let frames = memory.frames();
        let heap = KernelHeap::new(frames);
        heap.keep().unwrap();
        let mut all = std::vec::Vec::new();
        while let Ok(frame) = frames.alloc(Owner::Cache, Urgency::Critical) {
            all.push(frame);
        }
        for frame in all.iter().filter(|frame| frame.0 % 2 == 0) {
            frames.free(*frame, Owner::Cache);
        }
        let (large, larger) = (layout(8208, 8), layout(17 * PAGE_SIZE, 8));
        for _ in 0..3 {
            // SAFETY: the layouts have sizes, and each object is given back once.
            unsafe {
                assert!(heap.alloc(large).is_null());
                let objects = [heap.alloc_critical(large), heap.alloc_critical(large)];
                assert!(objects.iter().all(|object| !object.is_null()));
                assert!(objects[0].addr().abs_diff(objects[1].addr()) >= 8208);
                for object in objects {
                    object.write_bytes(1, 8208);
                }
                assert!(heap.alloc_critical(larger).is_null());
                for object in objects {
                    heap.dealloc(object, large);
                }
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    struct Object {
        pointer: *mut u8,
        layout: Layout,
        fill: u8,
    }

    impl Object {
        fn is_intact(&self) -> bool {
            // SAFETY: in use, and filled when it was had.
            let bytes = unsafe { core::slice::from_raw_parts(self.pointer, self.layout.size()) };
            // An interpreter looks at some bytes, which is slow enough.
            let step = if cfg!(miri) { 501 } else { 1 };
            bytes.iter().step_by(step).all(|byte| *byte == self.fill)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn objects_keep_their_bytes_and_their_alignment(
            operations in prop::collection::vec(
                (0u8..3, prop_oneof![8 => 1usize..300, 3 => 300usize..5000, 1 => 5000usize..60_000], 0u32..8, any::<prop::sample::Index>()),
                1..if cfg!(miri) { 40 } else { 500 },
            )
        ) {
            let memory = SimMemory::new(4 << 20);
            let heap = KernelHeap::new(memory.frames());
            let mut objects: Vec<Object> = Vec::new();
            for (kind, size, align, index) in operations {
                if kind > 0 || objects.is_empty() {
                    let layout = layout(size, 1 << align);
                    // SAFETY: the layout has a size.
                    let pointer = unsafe { heap.alloc(layout) };
                    if pointer.is_null() {
                        continue;
                    }
                    prop_assert_eq!(pointer as usize % layout.align(), 0);
                    let fill = objects.len() as u8;
                    // SAFETY: just had.
                    unsafe { pointer.write_bytes(fill, size) };
                    objects.push(Object { pointer, layout, fill });
                } else {
                    let object = objects.swap_remove(index.index(objects.len()));
                    prop_assert!(object.is_intact());
                    // SAFETY: had from `alloc` with this layout.
                    unsafe { heap.dealloc(object.pointer, object.layout) };
                }
            }
            for object in objects {
                prop_assert!(object.is_intact());
                // SAFETY: as above.
                unsafe { heap.dealloc(object.pointer, object.layout) };
            }
            prop_assert!(memory.frames().counts().kernel <= CLASSES.len() as u64);
        }
    }
}
