//! Time: the generic timer's virtual counter, which starts at power-on, and its one deadline.
//!
//! Source: Arm Architecture Reference Manual, "The Generic Timer in AArch64 state".

use crate::{interrupt, selftest};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, Readable, Writeable,
};
use core::sync::atomic::{AtomicU64, Ordering};

/// Ticks a second; one until [`init`], so that nothing divides by zero.
static FREQUENCY: AtomicU64 = AtomicU64::new(1);

/// Learns the counter's frequency: from CNTFRQ_EL0, which firmware sets, else what the device tree says.
pub fn init(from_tree: Option<u32>) {
    let frequency = match CNTFRQ_EL0.get() {
        0 => u64::from(from_tree.unwrap_or(1).max(1)),
        frequency => frequency,
    };
    FREQUENCY.store(frequency, Ordering::Relaxed);
    disarm();
}

/// Ticks a second.
pub fn frequency() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}

/// Ticks since power-on.
#[inline(always)]
pub fn now() -> u64 {
    // Without the barrier the counter may be read before earlier instructions are done.
    barrier::isb(barrier::SY);
    CNTVCT_EL0.get()
}

/// Asks for the timer's interrupt once [`now`] has reached `deadline`.
#[inline]
pub fn arm(deadline: u64) {
    CNTV_CVAL_EL0.set(deadline);
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
    // The interrupt of the old deadline is gone before interrupts may be unmasked.
    barrier::isb(barrier::SY);
}

/// Asks for no interrupt.
#[inline]
pub fn disarm() {
    CNTV_CTL_EL0.set(0);
    barrier::isb(barrier::SY);
}

/// Nanoseconds in `ticks`, without overflow for centuries.
pub fn ns_from_ticks(ticks: u64) -> u64 {
    scale(ticks, 1_000_000_000, frequency())
}

/// Microseconds in `ticks`.
pub fn us_from_ticks(ticks: u64) -> u64 {
    scale(ticks, 1_000_000, frequency())
}

/// Ticks in `us` microseconds, rounded up: a wait is never too short. At most half of all there are, so that a deadline
/// that far from now is a number still.
pub fn ticks_from_us(us: u64) -> u64 {
    scale(us, frequency(), 1_000_000).min(u64::MAX / 2) + 1
}

fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(numerator) / u128::from(denominator);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

selftest!(fn counter_never_goes_back() "timer: the counter never goes back, and it goes on" {
    let start = now();
    let mut last = start;
    for _ in 0..10_000 {
        let next = now();
        assert!(next >= last, "{last} ticks, then {next}");
        last = next;
    }
    assert_ne!(last, start);
});

selftest!(fn deadline_is_kept() "timer: its interrupt comes at the deadline, not before" {
    let (before, _) = interrupt::counts();
    let state = super::mask_interrupts();
    let deadline = now() + ticks_from_us(2_000);
    arm(deadline);
    while CNTV_CTL_EL0.read(CNTV_CTL_EL0::ISTATUS) == 0 {}
    let met = now();
    // The scheduler finds its deadline replaced, and asks for its own again.
    super::restore_interrupts(state);
    let (after, _) = interrupt::counts();
    assert!(met >= deadline, "due at {deadline} ticks, met at {met}");
    assert!(after > before, "no interrupt was taken");
});

selftest!(fn conversions_do_not_overflow() "timer: a century of ticks is as many seconds, to the nanosecond" {
    const CENTURY: u64 = 100 * 365 * 24 * 3600;
    assert_eq!(ns_from_ticks(CENTURY * frequency()), CENTURY * 1_000_000_000);
    assert_eq!(us_from_ticks(CENTURY * frequency()), CENTURY * 1_000_000);
    for us in [0, 1, 999, 1_000_001, CENTURY * 1_000_000] {
        let ticks = ticks_from_us(us);
        assert!(us_from_ticks(ticks) >= us, "{us} us are more than {ticks} ticks");
    }
});
