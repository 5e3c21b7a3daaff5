//! The random number generators of the Raspberry Pis.
//!
//! Sources: the device tree bindings `brcm,bcm2835-rng` and `brcm,iproc-rng200`; registers as in Linux's `bcm2835-rng.c` and
//! `iproc-rng200.c`.

use crate::arch::aarch64::board::PiRngKind;
use crate::arch::aarch64::timer;
use crate::mm::addr::VirtAddr;
use core::hint::spin_loop;

/// Bytes of registers.
pub const SIZE: u64 = 0x28;

/// How long a word may take to come.
const PATIENCE_US: u64 = 20_000;

// BCM2835.
const CONTROL: u64 = 0x00;
const STATUS: u64 = 0x04;
const DATA: u64 = 0x08;
const ENABLE: u32 = 1;
/// Numbers that the generator throws away at first.
const WARM_UP: u32 = 0x4_0000;

// RNG200.
const RNG200_ENABLE: u32 = 0x1fff;
const RNG200_DIVIDER: u32 = 3 << 13;
const FIFO_DATA: u64 = 0x20;
const FIFO_COUNT: u64 = 0x24;

/// A generator.
pub struct PiRng {
    base: VirtAddr,
    kind: PiRngKind,
}

impl PiRng {
    /// Switches it on.
    ///
    /// # Safety
    /// Its registers are mapped at `base`, and nobody else uses them.
    pub unsafe fn new(base: VirtAddr, kind: PiRngKind) -> Self {
        let rng = Self { base, kind };
        match kind {
            PiRngKind::Bcm2835 if rng.read(CONTROL) & ENABLE == 0 => {
                rng.write(STATUS, WARM_UP);
                rng.write(CONTROL, ENABLE);
            }
            PiRngKind::Rng200 if rng.read(CONTROL) & RNG200_ENABLE == 0 => {
                rng.write(CONTROL, RNG200_DIVIDER | RNG200_ENABLE);
            }
            _ => {}
        }
        rng
    }

    /// A random word; `None` if none comes in time.
    pub fn word(&self) -> Option<u32> {
        let deadline = timer::now() + timer::ticks_from_us(PATIENCE_US);
        loop {
            let (count, data) = match self.kind {
                PiRngKind::Bcm2835 => (self.read(STATUS) >> 24, DATA),
                PiRngKind::Rng200 => (self.read(FIFO_COUNT) & 0xff, FIFO_DATA),
            };
            if count > 0 {
                return Some(self.read(data));
            }
            if timer::now() > deadline {
                return None;
            }
            spin_loop();
        }
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: a register of the device, mapped as `new` was promised.
        unsafe { ((self.base.0 + register) as *const u32).read_volatile() }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as above.
        unsafe { ((self.base.0 + register) as *mut u32).write_volatile(value) }
    }
}
