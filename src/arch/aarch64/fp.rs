//! Floating-point and vector registers, for the threads that use them.
//!
//! The image is built soft-float and never touches them. CPACR_EL1 denies them to every thread until its first use,
//! which traps; from then on they are saved and loaded when that thread is switched away from and back to.

use aarch64_cpu::registers::{CPACR_EL1, ReadWriteable};
use alloc::alloc::{Layout, alloc_zeroed};
use alloc::boxed::Box;
use core::arch::{asm, global_asm};

/// v0 to v31, FPSR and FPCR.
#[repr(C, align(16))]
pub struct FpRegisters {
    vectors: [u128; 32],
    status: u64,
    control: u64,
}

unsafe extern "C" {
    fn fp_save(to: *mut FpRegisters);
    fn fp_load(from: *const FpRegisters);
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .section .text.fp, "ax"
    .global fp_save, fp_load
    .type fp_save, %function
    .type fp_load, %function
fp_save:
    stp     q0, q1, [x0], #32
    stp     q2, q3, [x0], #32
    stp     q4, q5, [x0], #32
    stp     q6, q7, [x0], #32
    stp     q8, q9, [x0], #32
    stp     q10, q11, [x0], #32
    stp     q12, q13, [x0], #32
    stp     q14, q15, [x0], #32
    stp     q16, q17, [x0], #32
    stp     q18, q19, [x0], #32
    stp     q20, q21, [x0], #32
    stp     q22, q23, [x0], #32
    stp     q24, q25, [x0], #32
    stp     q26, q27, [x0], #32
    stp     q28, q29, [x0], #32
    stp     q30, q31, [x0], #32
    mrs     x1, FPSR
    mrs     x2, FPCR
    stp     x1, x2, [x0]
    ret
fp_load:
    ldp     q0, q1, [x0], #32
    ldp     q2, q3, [x0], #32
    ldp     q4, q5, [x0], #32
    ldp     q6, q7, [x0], #32
    ldp     q8, q9, [x0], #32
    ldp     q10, q11, [x0], #32
    ldp     q12, q13, [x0], #32
    ldp     q14, q15, [x0], #32
    ldp     q16, q17, [x0], #32
    ldp     q18, q19, [x0], #32
    ldp     q20, q21, [x0], #32
    ldp     q22, q23, [x0], #32
    ldp     q24, q25, [x0], #32
    ldp     q26, q27, [x0], #32
    ldp     q28, q29, [x0], #32
    ldp     q30, q31, [x0], #32
    ldp     x1, x2, [x0]
    msr     FPSR, x1
    msr     FPCR, x2
    ret
    .arch_extension nosimd
    .arch_extension nofp
    "#
);

fn set_allowed(is_allowed: bool) {
    CPACR_EL1.modify(if is_allowed {
        CPACR_EL1::FPEN::TrapNothing
    } else {
        CPACR_EL1::FPEN::TrapEl0El1
    });
    // SAFETY: a barrier changes no state: the next instruction sees the new CPACR_EL1.
    unsafe { asm!("isb", options(nostack, nomem)) };
}

/// Gives the running thread its registers, zeroed, if it has none yet: then the denied instruction can run again.
/// `false` if it has them (so the trap has another cause) or memory for them is out.
pub fn allow_to_current_thread() -> bool {
    let thread = crate::thread::current();
    thread.with_fp(|registers| {
        if registers.is_some() {
            return false;
        }
        let layout = Layout::new::<FpRegisters>();
        // SAFETY: the layout has a size.
        let zeroed = unsafe { alloc_zeroed(layout) }.cast::<FpRegisters>();
        if zeroed.is_null() {
            return false;
        }
        // SAFETY: just allocated by the global allocator with this layout; zero is a value of every field.
        let zeroed = unsafe { Box::from_raw(zeroed) };
        set_allowed(true);
        let zeroed = registers.insert(zeroed);
        // SAFETY: the registers are allowed and the pointer is to a whole `FpRegisters`.
        unsafe { fp_load(&raw const **zeroed) };
        true
    })
}

/// Puts the registers of the thread that stops running away, if it has any.
pub fn save(registers: &mut Option<Box<FpRegisters>>) {
    if let Some(registers) = registers {
        // SAFETY: they are allowed while their owner runs; the pointer is to a whole `FpRegisters`.
        unsafe { fp_save(&raw mut **registers) };
        set_allowed(false);
    }
}

/// Brings back the registers of the thread that is about to run, if it has any.
pub fn load(registers: &Option<Box<FpRegisters>>) {
    if let Some(registers) = registers {
        set_allowed(true);
        // SAFETY: as in `save`.
        unsafe { fp_load(&raw const **registers) };
    }
}
