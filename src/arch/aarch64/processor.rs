//! What the core can be told in one or two instructions.

use crate::mm::addr::{PhysAddr, VirtAddr};
use aarch64_cpu::asm::wfi;
use aarch64_cpu::registers::{DAIF, PAR_EL1, Readable, SPSel, TPIDR_EL1, Writeable};
use core::arch::asm;

/// PSTATE.DAIF as it was before [`mask_interrupts`].
#[derive(Clone, Copy)]
pub struct InterruptState(u64);

impl InterruptState {
    /// Whether they were masked.
    pub fn are_masked(self) -> bool {
        self.0 & 1 << 7 != 0
    }
}

/// Whether a handler runs, or a spin lock is held.
pub fn interrupts_are_masked() -> bool {
    InterruptState(DAIF.get()).are_masked()
}

/// Keeps interrupts from coming.
#[inline(always)]
pub fn mask_interrupts() -> InterruptState {
    let before = DAIF.get();
    // SAFETY: masking breaks nothing; without `nomem`, the compiler moves no memory access out of what it protects.
    unsafe { asm!("msr DAIFSet, #2", options(nostack)) };
    InterruptState(before)
}

/// Lets them come if they could before.
#[inline(always)]
pub fn restore_interrupts(before: InterruptState) {
    // SAFETY: as for masking; the caller's section is over.
    unsafe { asm!("msr DAIF, {}", in(reg) before.0, options(nostack)) };
}

/// Lets interrupts come, and SErrors, which boot and every exception mask too: one that is never taken is an error that
/// nobody hears of.
#[inline(always)]
pub fn unmask_interrupts() {
    // SAFETY: the vectors are set from the start.
    unsafe { asm!("msr DAIFClr, #0b0110", options(nostack)) };
}

/// Whether touching memory there resolves no fault: it is in the high half, which is all there.
pub fn cannot_fault(pointer: *const u8) -> bool {
    (pointer.addr() as isize) < 0
}

/// Whether this runs on SP_EL0: as a program, or as kernel code that it called; not as a handler.
pub fn is_on_program_stack() -> bool {
    SPSel.get() & 1 == 0
}

/// The stack pointer.
#[inline(always)]
pub fn stack_pointer() -> u64 {
    let pointer;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, sp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// Stores to each page of the `depth` bytes below the stack pointer, a positive number of pages.
#[inline(never)]
pub extern "C" fn touch_stack(depth: u64) {
    // SAFETY: it stores below the stack pointer, where nothing lives: this target has no red zone, and a program's
    // interrupts use another stack.
    unsafe {
        asm!(
            "mov x16, sp",
            "sub x17, x16, {depth}",
            "2:",
            "sub x16, x16, #0x1000",
            "str xzr, [x16]",
            "cmp x16, x17",
            "b.hi 2b",
            depth = in(reg) depth,
            out("x16") _,
            out("x17") _,
        );
    }
}

/// Sleeps until an interrupt is pending, masked or not.
#[inline]
pub fn wait_for_interrupt() {
    wfi();
}

/// Stops this core for good.
pub fn halt() -> ! {
    mask_interrupts();
    loop {
        wfi();
    }
}

/// What [`set_core_pointer`] put there; null before.
#[inline(always)]
pub fn core_pointer<T>() -> *const T {
    TPIDR_EL1.get() as *const T
}

/// Sets what belongs to this core.
pub fn set_core_pointer<T>(core: &'static T) {
    TPIDR_EL1.set(core as *const T as u64);
}

/// Where a load from `address` would go now; `None` where it would fault.
pub fn translate(address: VirtAddr) -> Option<PhysAddr> {
    let interrupts = mask_interrupts();
    // SAFETY: an address translation touches nothing but PAR_EL1; the barrier orders reading it.
    unsafe { asm!("at S1E1R, {}", "isb", in(reg) address.0, options(nostack)) };
    let par = PAR_EL1.get();
    restore_interrupts(interrupts);
    (par & 1 == 0).then(|| PhysAddr(par & 0x000f_ffff_ffff_f000 | address.page_offset() as u64))
}
