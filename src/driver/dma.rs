//! From the buffers of a request to what a device with DMA is told: pure functions of addresses.
//!
//! A device reaches memory under numbers of its own (`dma-ranges`), perhaps not all of it, and does not see our caches.
//! Memory that it does not reach, or that shares a cache line with something else, is *bounced*: copied to or from
//! memory that is fit for it.

use crate::arch::aarch64::board::Window;
use crate::driver::sd::blocks::{BLOCK_SIZE, Blocks};
use crate::mm::addr::PhysAddr;
use alloc::vec::Vec;

/// No part of a cache line of a buffer may be somebody else's: what is longer than the lines of all our processors.
pub const ALIGNMENT: usize = 64;

/// What the device calls `len` bytes from `physical` on: all of memory that has 32-bit addresses, or what is in `window`.
pub fn bus_address(window: Option<Window>, physical: PhysAddr, len: u64) -> Option<u32> {
    let bus = match window {
        None => physical.0,
        Some(window) => {
            let offset = physical.0.checked_sub(window.physical.0)?;
            if offset.checked_add(len)? > window.size {
                return None;
            }
            window.bus.checked_add(offset)?
        }
    };
    let last = bus.checked_add(len.max(1) - 1)?;
    u32::try_from(last).ok()?;
    u32::try_from(bus).ok()
}

/// Memory that a device transfers from or to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its address for the device.
    pub bus: u32,
    /// And for us.
    pub address: usize,
    /// Bytes.
    pub len: usize,
}

/// A copy between a buffer and the bounce memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Index of the buffer.
    pub buffer: usize,
    /// Where in the buffer.
    pub at: usize,
    /// Where in the bounce memory.
    pub bounce: usize,
    /// Bytes.
    pub len: usize,
}

/// What goes into one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Segments that there is room for.
    pub segments: usize,
    /// The most bytes of each, a number of whole blocks.
    pub segment_len: usize,
    /// The most blocks.
    pub blocks: usize,
}

/// Segments of one command. The room for them is taken once: write-back runs when memory is out.
pub struct Gathered {
    /// In the order of the transfer.
    pub segments: Vec<Segment>,
    /// What has to be copied before a write, or after a read.
    pub copies: Vec<Copy>,
}

/// The most segments of one command.
pub const MAX_SEGMENTS: usize = 256;

impl Gathered {
    /// None yet.
    pub fn new() -> Self {
        Self {
            segments: Vec::with_capacity(MAX_SEGMENTS),
            copies: Vec::with_capacity(MAX_SEGMENTS),
        }
    }

    /// Collects as much as goes into one command of what is left of `blocks`, and says how many blocks that is.
    ///
    /// `reach` is what the device calls memory of ours, if it reaches it; `bounce` is reached.
    pub fn fill(
        &mut self,
        blocks: &Blocks<'_>,
        limits: Limits,
        bounce: Segment,
        reach: impl Fn(usize, usize) -> Option<u32>,
    ) -> usize {
        self.segments.clear();
        self.copies.clear();
        let most = limits.blocks * BLOCK_SIZE;
        let (mut total, mut bounced) = (0, 0);
        for part in blocks.parts() {
            let mut at = 0;
            while at < part.len {
                let len = (part.len - at).min(limits.segment_len).min(most - total);
                let address = part.address + at;
                let is_fit = address.is_multiple_of(ALIGNMENT) && len.is_multiple_of(ALIGNMENT);
                let direct = reach(address, len).filter(|_| is_fit);
                let segment = match direct {
                    Some(bus) => Segment { bus, address, len },
                    None => Segment {
                        bus: bounce.bus + bounced as u32,
                        address: bounce.address + bounced,
                        len: len.min(bounce.len - bounced),
                    },
                };
                if segment.len == 0 || !self.push(segment, limits) {
                    return total / BLOCK_SIZE;
                }
                if direct.is_none() {
                    self.copies.push(Copy {
                        buffer: part.buffer,
                        at: part.at + at,
                        bounce: bounced,
                        len: segment.len,
                    });
                    bounced += segment.len;
                }
                total += segment.len;
                at += segment.len;
            }
        }
        total / BLOCK_SIZE
    }

    /// Adds a segment, or makes the last one longer where this one follows it; false where there is no room.
    fn push(&mut self, segment: Segment, limits: Limits) -> bool {
        if self.copies.len() == MAX_SEGMENTS {
            return false;
        }
        if let Some(last) = self.segments.last_mut()
            && last.address + last.len == segment.address
            && u64::from(last.bus) + last.len as u64 == u64::from(segment.bus)
            && last.len + segment.len <= limits.segment_len
        {
            last.len += segment.len;
            return true;
        }
        let has_room = self.segments.len() < limits.segments.min(MAX_SEGMENTS);
        if has_room {
            self.segments.push(segment);
        }
        has_room
    }
}

impl Default for Gathered {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Copy, Gathered, Limits, Segment, bus_address};
    use crate::arch::aarch64::board::Window;
    use crate::driver::sd::blocks::Blocks;
    use crate::fs::block::Buffer;
    use crate::mm::addr::PhysAddr;
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    /// A buffer that is somewhere, and has no bytes.
    struct At(usize, usize);

    impl Buffer for At {
        fn len(&self) -> usize {
            self.1
        }
        fn address(&self) -> *const u8 {
            self.0 as *const u8
        }
        fn copy_out(&self, _: usize, _: &mut [u8]) {}
        fn copy_in(&mut self, _: usize, _: &[u8]) {}
    }

    const BOUNCE: Segment = Segment {
        bus: 0xb000,
        address: 0xf000_b000,
        len: 4096,
    };
    const LIMITS: Limits = Limits {
        segments: 8,
        segment_len: 32 << 10,
        blocks: 65535,
    };

    fn buffers(places: &[(usize, usize)]) -> Vec<Box<dyn Buffer>> {
        let buffer = |&(at, len): &(usize, usize)| Box::new(At(at, len)) as Box<dyn Buffer>;
        places.iter().map(buffer).collect()
    }

    /// Reaches what lies below 16 MiB, at the same numbers.
    fn low(address: usize, len: usize) -> Option<u32> {
        (address + len <= 16 << 20).then_some(address as u32)
    }

    fn gather(places: &[(usize, usize)], limits: Limits) -> (usize, Gathered) {
        let mut memory = buffers(places);
        let mut gathered = Gathered::new();
        let count = gathered.fill(&Blocks::new(&mut memory), limits, BOUNCE, low);
        (count, gathered)
    }

    fn places(gathered: &Gathered) -> Vec<(u32, usize)> {
        gathered.segments.iter().map(|s| (s.bus, s.len)).collect()
    }

    #[test]
    fn a_pi_3_sees_memory_from_its_uncached_alias_on() {
        // `dma-ranges` of bcm2837: 0xc0000000 is physical 0, up to the peripherals.
        let window = Some(Window {
            bus: 0xc000_0000,
            physical: PhysAddr(0),
            size: 0x3f00_0000,
        });
        assert_eq!(bus_address(window, PhysAddr(0x1234), 4), Some(0xc000_1234));
        assert_eq!(
            bus_address(window, PhysAddr(0x3eff_f000), 4096),
            Some(0xfeff_f000)
        );
        assert_eq!(bus_address(window, PhysAddr(0x3eff_f000), 4097), None);
    }

    #[test]
    fn without_a_window_32_bits_are_reached() {
        assert_eq!(
            bus_address(None, PhysAddr(0xffff_f000), 4096),
            Some(0xffff_f000)
        );
        assert_eq!(bus_address(None, PhysAddr(0xffff_f000), 4097), None);
        assert_eq!(bus_address(None, PhysAddr(1 << 32), 4), None);
        assert_eq!(bus_address(None, PhysAddr(u64::MAX), 4), None);
    }

    #[test]
    fn frames_that_follow_each_other_are_one_segment() {
        let (count, gathered) = gather(&[(0x1000, 4096), (0x2000, 4096), (0x8000, 512)], LIMITS);
        assert_eq!(count, 17);
        assert_eq!(places(&gathered), [(0x1000, 8192), (0x8000, 512)]);
        assert!(gathered.copies.is_empty());
    }

    #[test]
    fn a_segment_ends_where_it_would_be_too_long() {
        let limits = Limits {
            segment_len: 8192,
            ..LIMITS
        };
        let (_, gathered) = gather(&[(0x1000, 20480)], limits);
        assert_eq!(
            places(&gathered),
            [(0x1000, 8192), (0x3000, 8192), (0x5000, 4096)]
        );
    }

    #[test]
    fn what_is_not_aligned_or_not_reached_is_bounced() {
        let (count, gathered) = gather(&[(0x1010, 1024), (0x4000, 512), (16 << 20, 512)], LIMITS);
        assert_eq!(count, 4);
        assert_eq!(
            places(&gathered),
            [(0xb000, 1024), (0x4000, 512), (0xb400, 512)]
        );
        let copy = |buffer, bounce, len| Copy {
            buffer,
            at: 0,
            bounce,
            len,
        };
        assert_eq!(gathered.copies, [copy(0, 0, 1024), copy(2, 1024, 512)]);
    }

    #[test]
    fn a_command_takes_what_it_has_room_for() {
        let scattered: Vec<_> = (0..9).map(|i| (0x2000 * (i + 1), 4096)).collect();
        assert_eq!(gather(&scattered, LIMITS).0, 64, "eight segments");
        assert_eq!(gather(&[(0x1010, 8192)], LIMITS).0, 8, "bounce memory");
        let limits = Limits {
            blocks: 3,
            ..LIMITS
        };
        assert_eq!(gather(&[(0x1000, 4096)], limits).0, 3);
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_commands_of_a_request_move_every_block_once(
            parts in prop::collection::vec((0usize..(20 << 20), 1usize..40), 1..20),
            segments in 1usize..20, most in 1usize..70,
        ) {
            // Heap memory is aligned to 16 bytes at least; the rest is as it comes.
            let parts: Vec<_> = parts.iter().map(|(at, n)| (at & !15, n * 512)).collect();
            let mut memory = buffers(&parts);
            let mut blocks = Blocks::new(&mut memory);
            let mut gathered = Gathered::new();
            let limits = Limits { segments, segment_len: 8192, blocks: most };
            let all = blocks.left();
            let mut moved = 0;
            while blocks.left() > 0 {
                let count = gathered.fill(&blocks, limits, BOUNCE, low);
                prop_assert!(count > 0 && count <= most);
                prop_assert!(gathered.segments.len() <= segments);
                let len: usize = gathered.segments.iter().map(|s| s.len).sum();
                prop_assert_eq!(len, count * 512);
                let mut expected: Vec<usize> = Vec::new();
                let each: Result<(), ()> = blocks.each(count as u64, |b, at| { expected.push(b.address() as usize + at); Ok(()) });
                prop_assert_eq!(each, Ok(()));
                // Each block is where its segment says, or is copied there.
                let mut got = Vec::new();
                for segment in &gathered.segments {
                    prop_assert!(segment.len <= 8192 && segment.address % 64 == 0);
                    for at in (0..segment.len).step_by(512) {
                        let address = segment.address + at;
                        let source = gathered.copies.iter().find_map(|c| {
                            let within = address.checked_sub(BOUNCE.address + c.bounce).filter(|w| *w < c.len)?;
                            Some(parts[c.buffer].0 + c.at + within)
                        });
                        got.push(source.unwrap_or(address));
                    }
                }
                prop_assert_eq!(got, expected);
                moved += count as u64;
            }
            prop_assert_eq!(moved, all);
        }
    }
}
