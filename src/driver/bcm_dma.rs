//! The Raspberry Pis' DMA engine, for a device that has none of its own.
//!
//! Source: Broadcom "BCM2835 ARM Peripherals", chapter 4, "DMA Controller".

use crate::driver::dma::Segment;
use crate::driver::sd::host::Way;
use crate::mm::addr::PhysAddr;

/// Words of a control block; it lies at a multiple of its size.
pub const WORDS: usize = 8;

/// Bytes of one segment: of a full channel's 30 bits as much as is ever asked for.
pub const SEGMENT_LEN: usize = 1 << 24;

/// Channels that are no "lite" ones, which could move 64 KiB at most.
pub const FULL_CHANNELS: u32 = 0x7f;

/// The Arasan's requests for data ("Peripheral DREQ Signals").
pub const DREQ_EMMC: u32 = 11;

// Transfer information.
const WAIT_RESPONSE: u32 = 1 << 3;
const DESTINATION_INCREMENT: u32 = 1 << 4;
const DESTINATION_DREQ: u32 = 1 << 6;
const SOURCE_INCREMENT: u32 = 1 << 8;
const SOURCE_DREQ: u32 = 1 << 10;
const PERIPHERAL_SHIFT: u32 = 16;

/// What the engine calls a register of a peripheral ("ARM physical addresses": all of them appear from 0x7e000000 on).
pub fn peripheral_address(physical: PhysAddr) -> u32 {
    0x7e00_0000 | physical.0 as u32 & 0x00ff_ffff
}

/// Writes control blocks between `port` of a device and `segments`, for a table that the engine sees at `bus`; says how
/// many words there are.
pub fn describe(
    segments: &[Segment],
    way: Way,
    port: u32,
    dreq: u32,
    bus: u32,
    table: &mut [u32],
) -> usize {
    let mut words = 0;
    for (i, segment) in segments.iter().enumerate() {
        let (information, source, destination) = match way {
            Way::Read => (SOURCE_DREQ | DESTINATION_INCREMENT, port, segment.bus),
            Way::Write => (DESTINATION_DREQ | SOURCE_INCREMENT, segment.bus, port),
        };
        let next = if i + 1 == segments.len() {
            0
        } else {
            bus + 4 * (words + WORDS) as u32
        };
        table[words..words + WORDS].copy_from_slice(&[
            information | WAIT_RESPONSE | dreq << PERIPHERAL_SHIFT,
            source,
            destination,
            segment.len as u32,
            0,
            next,
            0,
            0,
        ]);
        words += WORDS;
    }
    words
}

#[cfg(target_os = "none")]
pub use channel::Channel;

#[cfg(target_os = "none")]
mod channel {
    use crate::arch::aarch64::timer;
    use crate::mm::addr::VirtAddr;

    const CONTROL: u64 = 0x00;
    const CONTROL_BLOCK: u64 = 0x04;
    const DEBUG: u64 = 0x20;
    const ENABLE: u64 = 0xff0;

    // Control and status.
    const ACTIVE: u32 = 1 << 0;
    const END: u32 = 1 << 1;
    const INTERRUPT: u32 = 1 << 2;
    const WRITES_ON_THEIR_WAY: u32 = 1 << 6;
    const ERROR: u32 = 1 << 8;
    const PRIORITY: u32 = 8 << 16;
    const PANIC_PRIORITY: u32 = 15 << 20;
    const WAIT_FOR_WRITES: u32 = 1 << 28;
    const RESET: u32 = 1 << 31;
    /// Of the debug register: the errors that a one clears.
    const ERRORS: u32 = 0b111;

    /// Until the last words are in memory.
    const END_LIMIT_US: u64 = 100_000;

    /// One channel of the engine.
    pub struct Channel {
        engine: VirtAddr,
        number: u32,
    }

    impl Channel {
        /// Bytes of the engine's registers.
        pub const SIZE: u64 = 0x1000;

        /// The highest of the channels in `mask`: firmware uses the low ones first.
        ///
        /// # Safety
        /// `engine` is where the engine's registers are mapped, for good, and nobody else uses the channels in `mask`.
        pub unsafe fn new(engine: VirtAddr, mask: u32) -> Option<Self> {
            let number = mask.checked_ilog2()?;
            let channel = Self { engine, number };
            // SAFETY: as promised.
            unsafe {
                let enable = (engine.0 + ENABLE) as *mut u32;
                enable.write_volatile(enable.read_volatile() | 1 << number);
            }
            channel.stop();
            Some(channel)
        }

        /// Begins with the control block at `bus`, which is in memory.
        pub fn start(&self, bus: u32) {
            self.write(DEBUG, ERRORS);
            self.write(CONTROL_BLOCK, bus);
            let clear = END | INTERRUPT;
            self.write(
                CONTROL,
                ACTIVE | clear | PRIORITY | PANIC_PRIORITY | WAIT_FOR_WRITES,
            );
        }

        /// Waits until everything is moved, which the device at the other end has said already; an error is the engine's
        /// status.
        pub fn finish(&self) -> Result<(), u32> {
            let limit = timer::now() + timer::ticks_from_us(END_LIMIT_US);
            loop {
                let now = timer::now();
                let status = self.read(CONTROL);
                if status & ERROR != 0 {
                    return Err(status);
                }
                if status & ACTIVE == 0 {
                    self.write(CONTROL, END | INTERRUPT);
                    return Ok(());
                }
                if now > limit {
                    return Err(status);
                }
                core::hint::spin_loop();
            }
        }

        /// Stops, whatever it does: it touches no memory any more.
        #[inline(never)]
        pub fn stop(&self) {
            // Paused first: a reset forgets writes that are still on their way to memory, and does not keep them from it.
            self.write(CONTROL, 0);
            self.wait_while(WRITES_ON_THEIR_WAY);
            self.write(CONTROL, RESET);
            self.wait_while(ACTIVE);
        }

        fn wait_while(&self, status: u32) {
            let limit = timer::now() + timer::ticks_from_us(END_LIMIT_US);
            while self.read(CONTROL) & status != 0 && timer::now() < limit {
                core::hint::spin_loop();
            }
        }

        fn register(&self, offset: u64) -> *mut u32 {
            (self.engine.0 + u64::from(self.number) * 0x100 + offset) as *mut u32
        }

        fn read(&self, offset: u64) -> u32 {
            // SAFETY: a register of a channel that is ours, as `new` was promised.
            unsafe { self.register(offset).read_volatile() }
        }

        fn write(&self, offset: u64, value: u32) {
            // SAFETY: as for `read`.
            unsafe { self.register(offset).write_volatile(value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DREQ_EMMC, describe, peripheral_address};
    use crate::driver::dma::Segment;
    use crate::driver::sd::host::Way;
    use crate::mm::addr::PhysAddr;

    const SEGMENTS: [Segment; 2] = [
        Segment {
            bus: 0xc000_1000,
            address: 0,
            len: 4096,
        },
        Segment {
            bus: 0xc000_9000,
            address: 0,
            len: 512,
        },
    ];

    #[test]
    fn peripherals_have_the_same_bus_addresses_on_every_pi() {
        assert_eq!(peripheral_address(PhysAddr(0x3f30_0020)), 0x7e30_0020);
        assert_eq!(peripheral_address(PhysAddr(0xfe30_0020)), 0x7e30_0020);
    }

    #[test]
    fn a_read_goes_from_the_port_to_memory_when_the_port_has_data() {
        let mut table = [0; 16];
        let words = describe(
            &SEGMENTS,
            Way::Read,
            0x7e30_0020,
            DREQ_EMMC,
            0xc010_0000,
            &mut table,
        );
        assert_eq!(words, 16);
        // PERMAP 11, S_DREQ, D_INC, WAIT_RESP.
        let information = 0x000b_0418;
        assert_eq!(
            table[..8],
            [
                information,
                0x7e30_0020,
                0xc000_1000,
                4096,
                0,
                0xc010_0020,
                0,
                0
            ]
        );
        assert_eq!(
            table[8..],
            [information, 0x7e30_0020, 0xc000_9000, 512, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_write_goes_from_memory_to_the_port_when_the_port_has_room() {
        let mut table = [0; 8];
        describe(
            &SEGMENTS[..1],
            Way::Write,
            0x7e30_0020,
            DREQ_EMMC,
            0,
            &mut table,
        );
        // PERMAP 11, S_INC, D_DREQ, WAIT_RESP.
        assert_eq!(
            table,
            [0x000b_0148, 0xc000_1000, 0x7e30_0020, 4096, 0, 0, 0, 0]
        );
    }
}
