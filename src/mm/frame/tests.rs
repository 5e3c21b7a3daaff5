//! Frames have one owner at a time, and come back as they were given.

extern crate std;

use super::{BLOCK_FRAMES, Frames, OutOfFrames, Owner, Urgency};
use crate::mm::addr::{Frame, PAGE_SIZE, PhysAddr};
use crate::sim::SimMemory;
use proptest::prelude::*;
use std::vec::Vec;

const MIB: u64 = 1 << 20;

fn frames(bytes: u64) -> SimMemory {
    SimMemory::new(bytes)
}

#[test]
fn a_frame_is_given_to_one_owner_at_a_time() {
    let memory = frames(4 * MIB);
    let mut seen = std::collections::HashSet::new();
    while let Ok(frame) = memory.frames().alloc(Owner::Kernel, Urgency::Critical) {
        assert!(seen.insert(frame), "{frame:?} was given twice");
        assert_eq!(memory.frames().owner(frame), Owner::Kernel);
    }
    let counts = memory.frames().counts();
    assert_eq!((counts.free, counts.kernel), (0, counts.total));
    assert_eq!(seen.len() as u64, counts.total);
}

#[test]
fn frames_come_in_ascending_order() {
    let memory = frames(4 * MIB);
    let mut last = memory.frames().alloc(Owner::Cache, Urgency::Data).unwrap();
    for _ in 0..100 {
        let next = memory.frames().alloc(Owner::Cache, Urgency::Data).unwrap();
        assert_eq!(next.0, last.0 + 1);
        last = next;
    }
}

#[test]
#[should_panic(expected = "is freed as Kernel, but it is Free")]
fn a_frame_freed_twice_is_named() {
    let memory = frames(4 * MIB);
    let frame = memory.frames().alloc(Owner::Kernel, Urgency::Data).unwrap();
    memory.frames().free(frame, Owner::Kernel);
    memory.frames().free(frame, Owner::Kernel);
}

#[test]
#[should_panic(expected = "is freed as Cache, but it is Kernel")]
fn a_frame_freed_by_the_wrong_owner_is_named() {
    let memory = frames(4 * MIB);
    let frame = memory.frames().alloc(Owner::Kernel, Urgency::Data).unwrap();
    memory.frames().free(frame, Owner::Cache);
}

#[test]
fn the_reserve_is_for_the_urgent() {
    let memory = frames(4 * MIB);
    let frames = memory.frames();
    while frames.alloc(Owner::Anonymous, Urgency::Data).is_ok() {}
    let counts = frames.counts();
    assert_eq!(counts.free, counts.reserve);
    assert!(frames.alloc(Owner::Kernel, Urgency::Kernel).is_ok());
    while frames.alloc(Owner::Kernel, Urgency::Kernel).is_ok() {}
    assert_eq!(frames.counts().free, counts.reserve / 2);
    while frames.alloc(Owner::PageTable, Urgency::Critical).is_ok() {}
    assert_eq!(frames.counts().free, 0);
}

#[test]
fn reserved_memory_is_never_given() {
    let memory = SimMemory::unused(8 * MIB);
    let base = memory.base().0;
    let at = |bytes| PhysAddr(base + bytes);
    let reserved = [at(0x800)..at(0x1800), at(3 * MIB)..at(5 * MIB + 1)];
    // SAFETY: the arena is the allocator's.
    unsafe { memory.frames().add_ram(at(0)..at(8 * MIB), &reserved) }.unwrap();
    while let Ok(frame) = memory.frames().alloc(Owner::Kernel, Urgency::Critical) {
        let start = frame.start();
        let end = PhysAddr(start.0 + PAGE_SIZE as u64);
        for range in &reserved {
            assert!(end <= range.start || start >= range.end, "{frame:?}");
        }
    }
}

#[test]
fn several_ranges_with_a_gap_are_all_used() {
    let memory = SimMemory::unused(8 * MIB);
    let at = |bytes| PhysAddr(memory.base().0 + bytes);
    for range in [at(0)..at(3 * MIB), at(5 * MIB)..at(8 * MIB)] {
        // SAFETY: the arena is the allocator's.
        unsafe { memory.frames().add_ram(range, &[]) }.unwrap();
    }
    let given: Vec<Frame> =
        std::iter::from_fn(|| memory.frames().alloc(Owner::Kernel, Urgency::Critical).ok())
            .collect();
    assert!(given.iter().any(|frame| frame.start() < at(3 * MIB)));
    assert!(given.iter().any(|frame| frame.start() >= at(5 * MIB)));
    assert!(
        given
            .iter()
            .all(|f| f.start() < at(3 * MIB) || f.start() >= at(5 * MIB))
    );
    given
        .into_iter()
        .for_each(|frame| memory.frames().free(frame, Owner::Kernel));
    assert_eq!(
        memory.frames().counts().free,
        memory.frames().counts().total
    );
}

#[test]
fn metadata_takes_less_than_a_hundredth() {
    let memory = frames(12 * MIB);
    assert!(memory.frames().counts().total >= 12 * MIB / PAGE_SIZE as u64 * 99 / 100);
}

#[test]
fn runs_lie_at_multiples_of_their_size() {
    let memory = frames(8 * MIB);
    let single = memory.frames().alloc(Owner::Kernel, Urgency::Data).unwrap();
    for order in 0..=9 {
        let run = memory
            .frames()
            .alloc_run(Owner::Anonymous, Urgency::Data, order)
            .unwrap();
        assert_eq!(run.0 % (1 << order), 0, "order {order}");
        assert_eq!(
            memory.frames().owner(Frame(run.0 + (1 << order) - 1)),
            Owner::Anonymous
        );
    }
    memory.frames().free(single, Owner::Kernel);
}

#[test]
fn a_block_freed_frame_by_frame_can_be_had_as_a_block_again() {
    let memory = frames(8 * MIB);
    let frames = memory.frames();
    let mut given = Vec::new();
    while let Ok(frame) = frames.alloc(Owner::Anonymous, Urgency::Critical) {
        given.push(frame);
    }
    assert_eq!(
        frames.alloc_run(Owner::Anonymous, Urgency::Critical, 9),
        Err(OutOfFrames)
    );
    given
        .into_iter()
        .rev()
        .for_each(|frame| frames.free(frame, Owner::Anonymous));
    let blocks = std::iter::from_fn(|| {
        frames
            .alloc_run(Owner::Anonymous, Urgency::Critical, 9)
            .ok()
    });
    assert_eq!(blocks.count(), 3);
}

#[test]
fn what_the_kernel_keeps_does_not_lie_between_what_comes_back() {
    let memory = frames(64 * MIB);
    let frames = memory.frames();
    let mut cached = Vec::new();
    for i in 0..10_000 {
        cached.push(frames.alloc(Owner::Cache, Urgency::Data).unwrap());
        if i % 10 == 0 {
            frames.alloc(Owner::Kernel, Urgency::Kernel).unwrap();
        }
    }
    for frame in cached {
        frames.free(frame, Owner::Cache);
    }
    let run = || frames.alloc_run(Owner::Kernel, Urgency::Kernel, 9).ok();
    let blocks = std::iter::from_fn(run).count();
    assert!(
        blocks >= 27,
        "of 31 blocks the kernel's 1000 frames leave {blocks}"
    );
}

#[test]
fn runs_larger_than_a_block_come_back() {
    let memory = frames(16 * MIB);
    let frames = memory.frames();
    let before = frames.counts();
    let run = frames.alloc_run(Owner::Kernel, Urgency::Data, 10).unwrap();
    frames.free_run(run, 2 * BLOCK_FRAMES, Owner::Kernel);
    assert_eq!(frames.counts(), before);
    assert_eq!(frames.owner(run), Owner::Free);
}

#[test]
fn counts_go_up_and_down() {
    let memory = frames(4 * MIB);
    let frame = memory
        .frames()
        .alloc(Owner::Anonymous, Urgency::Data)
        .unwrap();
    assert_eq!(memory.frames().count(frame), 0);
    assert_eq!(memory.frames().add_to_count(frame, 2), 2);
    assert_eq!(memory.frames().subtract_from_count(frame, 1), 1);
    assert_eq!(memory.frames().owner(frame), Owner::Anonymous);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_is_in_two_runs_and_all_come_back(
        operations in prop::collection::vec((any::<bool>(), 0u32..11, any::<prop::sample::Index>()), 1..if cfg!(miri) { 40 } else { 600 })
    ) {
        let memory = frames(16 * MIB);
        let frames: &Frames = memory.frames();
        let before = frames.counts();
        let mut runs: Vec<(Frame, u32)> = Vec::new();
        for (is_alloc, order, index) in operations {
            if is_alloc || runs.is_empty() {
                if let Ok(run) = frames.alloc_run(Owner::Anonymous, Urgency::Data, order) {
                    for (other, other_order) in &runs {
                        prop_assert!(run.0 + (1 << order) <= other.0 || other.0 + (1 << other_order) <= run.0);
                    }
                    runs.push((run, order));
                }
            } else {
                let (run, order) = runs.swap_remove(index.index(runs.len()));
                frames.free_run(run, 1 << order, Owner::Anonymous);
            }
            let given: u64 = runs.iter().map(|(_, order)| 1 << order).sum();
            prop_assert_eq!(frames.counts().anonymous, given);
            prop_assert_eq!(frames.counts().free + given, before.total);
        }
        for (run, order) in runs {
            frames.free_run(run, 1 << order, Owner::Anonymous);
        }
        prop_assert_eq!(frames.counts(), before);
    }
}
