//! The PL031: a clock that counts seconds since 1970, and goes on while the machine is off.
//!
//! Source: Arm PrimeCell Real Time Clock (PL031) Technical Reference Manual, "Data register, RTCDR".

use crate::mm::addr::VirtAddr;

/// Bytes of registers.
pub const SIZE: u64 = 0x1000;

/// Seconds since 1970.
///
/// # Safety
/// `registers` are those of a PL031, mapped.
pub unsafe fn seconds(registers: VirtAddr) -> u64 {
    // SAFETY: RTCDR, the first register; reading it changes nothing.
    u64::from(unsafe { (registers.0 as *const u32).read_volatile() })
}
