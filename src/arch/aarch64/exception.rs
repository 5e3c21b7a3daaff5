//! The sixteen exception vectors, the trap frame, and who handles what.
//!
//! Programs run at EL1 with SPSel = 0, so their exceptions enter the "current EL with SP_EL0" vectors with SP_EL1 at
//! the top of the thread's kernel stack: always sound. Kernel code runs with SPSel = 1 and its exceptions enter the
//! "SP_ELx" vectors on the very stack it was using, which may be the reason for the exception. A kernel stack lies in
//! the upper half of a 64 KiB slot (layout.rs), so bit 15 of a sound SP is set; where it is not, the frame goes to the
//! emergency stack and the overflow is reported.
//!
//! ```text
//!            sync                irq           fiq, serror        from
//! SP_EL0     on_sync             on_irq        on_unexpected      a program
//! SP_ELx     on_sync             on_irq        on_unexpected      the kernel (else overflow: on_overflow)
//! EL0 64/32  on_unexpected       ..            ..                 nobody: nothing runs at EL0
//! ```
//!
//! Handlers run with interrupts masked. The image is built soft-float: vector registers stay as they are.

use super::esr::{Syndrome, data_fault};
use crate::mm::Verdict;
use core::arch::global_asm;
use core::fmt;
use core::mem::offset_of;

/// The state an exception interrupted, as the vectors lay it out on the stack.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct TrapFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer in use.
    pub sp: u64,
    /// Where the instruction is, or the next one.
    pub elr: u64,
    /// PSTATE.
    pub spsr: u64,
    /// The syndrome.
    pub esr: u64,
    /// The address of a failed access.
    pub far: u64,
    /// A frame record (x29, ELR), so that a backtrace walks on through the exception.
    record: [u64; 2],
}

const FRAME_SIZE: usize = size_of::<TrapFrame>();

const I_MASKED: u64 = 1 << 7;
const SP_ELX: u64 = 1;

impl TrapFrame {
    /// Decoded ESR_EL1.
    pub fn syndrome(&self) -> Syndrome {
        Syndrome::decode(self.esr)
    }

    /// Whether a program, running on its own stack, was interrupted.
    pub fn is_from_program(&self) -> bool {
        self.spsr & SP_ELX == 0
    }

    /// Whether what was interrupted had interrupts masked: a handler, or the holder of a spin lock.
    pub fn is_in_critical_section(&self) -> bool {
        self.spsr & I_MASKED != 0
    }
}

/// Which vector an exception nobody expects came through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Vector {
    /// A synchronous exception where there should be none.
    Synchronous = 0,
    /// An interrupt from EL0.
    Irq = 1,
    /// A fast interrupt: nothing is routed there.
    Fiq = 2,
    /// An asynchronous external abort.
    SError = 3,
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synchronous => "synchronous exception from EL0",
            Self::Irq => "interrupt from EL0",
            Self::Fiq => "FIQ, which nothing here uses",
            Self::SError => {
                "SError: a memory access failed after the fact (asynchronous external abort)"
            }
        })
    }
}

global_asm!(
    r#"
    // What a call may change, and the exception's registers: x0 is the syndrome, x1 the address, x2 PSTATE;
    // sp = &TrapFrame, x29 = its frame record. SAVE_OTHERS does the rest for those who want to see it all.
    .macro SAVE_CALLER_SAVED
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    str     x18, [sp, #144]
    stp     x29, x30, [sp, #232]
    mrs     x3, ELR_EL1
    mrs     x2, SPSR_EL1
    stp     x3, x2, [sp, #{elr}]
    stp     x29, x3, [sp, #{record}]
    add     x29, sp, #{record}
    mrs     x0, ESR_EL1
    mrs     x1, FAR_EL1
    stp     x0, x1, [sp, #{esr}]
    .endm

    // The stack pointer is in x3.
    .macro SAVE_OTHERS
    str     x19, [sp, #152]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    str     x28, [sp, #224]
    str     x3, [sp, #248]
    .endm

    // All of it; sp and x0 = &TrapFrame, x29 = its frame record.
    .macro SAVE_SP0
    sub     sp, sp, #{size}
    SAVE_CALLER_SAVED
    mrs     x3, SP_EL0
    SAVE_OTHERS
    mov     x0, sp
    .endm

    .macro SAVE_SPX
    SAVE_CALLER_SAVED
    add     x3, sp, #{size}
    SAVE_OTHERS
    mov     x0, sp
    .endm

    // To the vector's own code, with room for the frame, if bit 15 of sp is set; without a free register.
    .macro ENTER_SPX target
    sub     sp, sp, #{size}
    add     sp, sp, x0              // sp + x0
    sub     x0, sp, x0              // sp
    tbz     x0, #15, 1f
    sub     x0, sp, x0              // x0
    sub     sp, sp, x0              // sp
    b       \target
1:  msr     TPIDRRO_EL0, x0         // the stack pointer that is no good
    sub     x0, sp, x0
    msr     TPIDR_EL0, x0           // x0: whoever this is has no further use for TPIDR_EL0
    b       spx_overflow
    .endm

    .macro VECTOR name
    .balign 128
    b       \name
    .endm

    .macro VECTOR_SPX target
    .balign 128
    ENTER_SPX \target
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global exception_vectors
    .type exception_vectors, %function
    .type return_from_exception, %function
    .type return_from_call, %function
exception_vectors:
    VECTOR  sp0_sync
    VECTOR  sp0_irq
    VECTOR  sp0_fiq
    VECTOR  sp0_serror
    VECTOR_SPX spx_sync
    VECTOR_SPX spx_irq
    VECTOR_SPX spx_fiq
    VECTOR_SPX spx_serror
    .rept 2
    VECTOR  el0_sync
    VECTOR  el0_irq
    VECTOR  el0_fiq
    VECTOR  el0_serror
    .endr
    .balign 128

    // Most are faults that are resolved; the callee-saved registers stay where they are for those.
sp0_sync:
    sub     sp, sp, #{size}
    SAVE_CALLER_SAVED
    bl      {on_data_fault}
    cbz     x0, return_from_call
    mrs     x3, SP_EL0
    b       1f
spx_sync:
    SAVE_CALLER_SAVED
    bl      {on_data_fault}
    cbz     x0, return_from_call
    add     x3, sp, #{size}
1:  cmp     x0, #{later}
    b.eq    return_after_others
    SAVE_OTHERS
    mov     x1, x0
    mov     x0, sp
    bl      {on_sync}
    b       return_from_exception
sp0_irq:
    SAVE_SP0
    bl      {on_irq}
    b       return_from_exception
spx_irq:
    SAVE_SPX
    bl      {on_irq}
    b       return_from_exception

    // Loads back what SAVE stored. sp is the frame; SP_EL0 the thread switch takes care of.
return_from_exception:
    ldp     x0, x1, [sp, #{elr}]
    msr     ELR_EL1, x0
    msr     SPSR_EL1, x1
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    add     sp, sp, #{size}
    eret

    // Loads back what SAVE_CALLER_SAVED stored. ELR and SPSR are as they were, unless there were other exceptions.
return_after_others:
    ldp     x0, x1, [sp, #{elr}]
    msr     ELR_EL1, x0
    msr     SPSR_EL1, x1
return_from_call:
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldr     x18, [sp, #144]
    ldp     x29, x30, [sp, #232]
    ldp     x0, x1, [sp]
    add     sp, sp, #{size}
    eret

    .macro UNEXPECTED name, save, number
\name:
    \save
    mov     x1, #\number
    bl      {on_unexpected}
    .endm
    UNEXPECTED sp0_fiq, SAVE_SP0, 2
    UNEXPECTED sp0_serror, SAVE_SP0, 3
    UNEXPECTED spx_fiq, SAVE_SPX, 2
    UNEXPECTED spx_serror, SAVE_SPX, 3
    UNEXPECTED el0_sync, SAVE_SP0, 0
    UNEXPECTED el0_irq, SAVE_SP0, 1
    UNEXPECTED el0_fiq, SAVE_SP0, 2
    UNEXPECTED el0_serror, SAVE_SP0, 3

spx_overflow:
    ldr     x0, =__emergency_stack_end
    mov     sp, x0
    mrs     x0, TPIDR_EL0
    sub     sp, sp, #{size}
    SAVE_CALLER_SAVED
    mrs     x3, TPIDRRO_EL0
    add     x3, x3, #{size}         // as it was before the frame
    SAVE_OTHERS
    mov     x0, sp
    bl      {on_overflow}
    "#,
    size = const FRAME_SIZE,
    elr = const offset_of!(TrapFrame, elr),
    esr = const offset_of!(TrapFrame, esr),
    record = const offset_of!(TrapFrame, record),
    later = const Verdict::ResolvedLater as u64,
    on_data_fault = sym on_data_fault,
    on_sync = sym on_sync,
    on_irq = sym on_irq,
    on_unexpected = sym on_unexpected,
    on_overflow = sym on_overflow,
);

unsafe extern "C" {
    /// The `hlt` of a semihosting call; undefined where nobody emulates it.
    static semihosting_hlt: u8;
    /// Where such a call goes on when nobody does.
    static semihosting_absent: u8;
}

/// Looks at a synchronous exception first, with interrupts masked: `Untried` is for `on_sync`.
extern "C" fn on_data_fault(esr: u64, far: u64, spsr: u64) -> Verdict {
    match data_fault(esr) {
        // Who holds a spin lock has interrupts masked: `on_sync` says more.
        Some((attempt, _)) if spsr & I_MASKED == 0 => {
            let verdict = crate::mm::resolve_data_fault(attempt, far);
            // Meanwhile others may have run, and told a program to end.
            if verdict == Verdict::ResolvedLater && spsr & SP_ELX == 0 {
                crate::thread::end_if_told();
            }
            verdict
        }
        _ => Verdict::Untried,
    }
}

extern "C" fn on_sync(frame: &mut TrapFrame, verdict: Verdict) {
    // Who holds a spin lock must not touch maps: resolving the fault may take that very lock. But kernel code that a
    // program calls runs on the program's stack, which grows by fault: `touch_program_stack` sees to it that it holds
    // other locks then.
    let is_resolvable = verdict == Verdict::Untried
        && (!frame.is_in_critical_section()
            || frame.is_from_program() && crate::mm::can_resolve_in_critical_section());
    if is_resolvable
        && let Syndrome::Abort { attempt, kind, .. } = frame.syndrome()
        && crate::mm::resolve(attempt, kind, frame.far, frame.is_in_critical_section())
    {
        return end_if_told(frame);
    }
    match frame.syndrome() {
        Syndrome::FloatingPointDenied if super::fp::allow_to_current_thread() => {}
        Syndrome::Undefined if frame.elr == &raw const semihosting_hlt as u64 => {
            frame.elr = &raw const semihosting_absent as u64;
        }
        _ => crate::report::exception(frame),
    }
}

extern "C" fn on_irq(frame: &mut TrapFrame) {
    crate::interrupt::dispatch();
    crate::thread::preempt_if_due();
    end_if_told(frame);
}

/// A program that is to end does not go on. Every way back to program code that others may have run before looks for that,
/// and so does the end of a call.
#[inline(always)]
fn end_if_told(frame: &TrapFrame) {
    if frame.is_from_program() && !frame.is_in_critical_section() {
        crate::thread::end_if_told();
    }
}

extern "C" fn on_unexpected(frame: &mut TrapFrame, vector: Vector) -> ! {
    crate::report::unexpected(frame, vector)
}

extern "C" fn on_overflow(frame: &mut TrapFrame) -> ! {
    crate::report::stack_overflow(frame)
}
