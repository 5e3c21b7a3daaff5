//! The performance monitors: how many instructions were retired (PMUv3, event INST_RETIRED).

use aarch64_cpu::registers::{ID_AA64DFR0_EL1, Readable};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

static IS_COUNTING: AtomicBool = AtomicBool::new(false);

const INST_RETIRED: u64 = 8;

/// Starts counting, where the processor can; QEMU can only with `-icount`.
pub fn init() {
    let version = ID_AA64DFR0_EL1.get() >> 8 & 0xf;
    if version == 0 || version == 0xf {
        return;
    }
    let (events, control): (u64, u64);
    // SAFETY: reads which events and counters there are.
    unsafe {
        asm!("mrs {}, PMCEID0_EL0", "mrs {}, PMCR_EL0", out(reg) events, out(reg) control, options(nomem, nostack))
    };
    let counters = control >> 11 & 0x1f;
    if events & 1 << INST_RETIRED == 0 || counters == 0 {
        return;
    }
    // SAFETY: counter 0 counts retired instructions at EL1 and EL0; nobody else uses it.
    unsafe {
        asm!(
            "msr PMEVTYPER0_EL0, {event}",
            "msr PMCNTENSET_EL0, {one}",
            "msr PMCR_EL0, {control}",
            "isb",
            event = in(reg) INST_RETIRED,
            one = in(reg) 1u64,
            control = in(reg) control | 1,
            options(nomem, nostack),
        );
    }
    IS_COUNTING.store(true, Ordering::Relaxed);
}

/// Whether [`instructions`] counts.
pub fn has_instructions() -> bool {
    IS_COUNTING.load(Ordering::Relaxed)
}

/// Instructions retired on this core, modulo 2^32; zero where it does not count.
#[inline(always)]
pub fn instructions() -> u64 {
    if !has_instructions() {
        return 0;
    }
    let count: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {}, PMEVCNTR0_EL0", out(reg) count, options(nomem, nostack)) };
    count
}

/// Says to whoever watches from outside that something is measured from here on: a hint that processors ignore, which a
/// QEMU plugin counts instructions from (`bench/`).
#[inline(always)]
pub fn mark_begin() {
    // SAFETY: does nothing.
    unsafe { asm!("hint #0x6c", options(nostack)) };
}

/// And that it ends here.
#[inline(always)]
pub fn mark_end() {
    // SAFETY: as above.
    unsafe { asm!("hint #0x6d", options(nostack)) };
}
