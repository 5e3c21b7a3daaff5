//! Data cache maintenance by address, for devices that do not see our caches.
//!
//! Source: Arm Architecture Reference Manual, "A64 Cache maintenance instructions".

use crate::mm::addr::VirtAddr;
use core::arch::asm;

/// Bytes in the smallest data cache line of all caches on the way to memory.
fn line_size() -> u64 {
    let geometry: u64;
    // SAFETY: reads CTR_EL0: DminLine is the log2 of its size in words.
    unsafe { asm!("mrs {}, CTR_EL0", out(reg) geometry, options(nomem, nostack)) };
    4 << (geometry >> 16 & 0xf)
}

macro_rules! maintain {
    ($(#[$doc:meta])* $name:ident, $operation:literal) => {
        $(#[$doc])*
        #[inline(never)]
        pub fn $name(start: VirtAddr, len: u64) -> u64 {
            let line = line_size();
            let first = start.0 & !(line - 1);
            let mut address = first;
            while address < start.0 + len {
                // SAFETY: what is dirty in the line is written back or, with `invalidate`, the caller's to lose.
                unsafe { asm!(concat!("dc ", $operation, ", {}"), in(reg) address, options(nostack)) };
                address += line;
            }
            // SAFETY: the device is told only after the maintenance is complete.
            unsafe { asm!("dsb sy", options(nostack)) };
            address - first
        }
    };
}

maintain!(
    /// Brings what we wrote to memory, where a device can read it. Returns the bytes of the lines.
    clean, "cvac"
);
maintain!(
    /// Brings what we wrote to memory and forgets it, so that the next load sees what a device wrote. Lines at the edges
    /// may hold other things: they are written back, not lost. Returns the bytes of the lines.
    invalidate, "civac"
);
