//! The thread switch: what a thread keeps while another runs.

use core::arch::global_asm;
use core::mem::offset_of;

/// The registers a call preserves, both stack pointers, and which of them is in use.
///
/// A program thread may be switched away from while it runs on SP_EL0 or, inside a kernel call or a handler, on
/// SP_EL1; so both are kept.
#[repr(C)]
pub struct Context {
    /// x19 to x28.
    saved: [u64; 10],
    /// x29, x30.
    frame: u64,
    link: u64,
    sp_el1: u64,
    sp_el0: u64,
    /// SPSel: 1 for SP_EL1.
    sp_select: u64,
    /// TPIDR_EL0, which belongs to the program.
    tpidr_el0: u64,
}

impl Context {
    /// A thread that has not run: it starts in `entry` on `kernel_stack`, its upper end, with interrupts masked.
    pub fn new(entry: extern "C" fn() -> !, kernel_stack: u64) -> Self {
        Self {
            saved: [entry as usize as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            link: (start_context as *const ()) as u64,
            sp_el1: kernel_stack,
            ..Self::running()
        }
    }

    /// The context of whoever runs now, to be filled when it is switched away from.
    pub const fn running() -> Self {
        Self {
            saved: [0; 10],
            frame: 0,
            link: 0,
            sp_el1: 0,
            sp_el0: 0,
            sp_select: 1,
            tpidr_el0: 0,
        }
    }

    /// Where a backtrace of the thread, which is not running, begins: x29 and the return address.
    pub fn backtrace_start(&self) -> (u64, u64) {
        (self.frame, self.link)
    }
}

unsafe extern "C" {
    /// Saves what is running into `from` and goes on with `to`; returns when somebody switches back.
    ///
    /// # Safety
    /// Interrupts are masked; `to` was saved by this function or made by `Context::new`, and its stacks are mapped.
    pub fn switch_context(from: *mut Context, to: *const Context);

    fn start_context();
}

global_asm!(
    r#"
    .section .text.switch_context, "ax"
    .global switch_context, start_context
    .type switch_context, %function
    .type start_context, %function
switch_context:
    mrs     x9, SPSel
    msr     SPSel, #1
    mov     x10, sp
    mrs     x11, SP_EL0
    mrs     x12, TPIDR_EL0
    stp     x19, x20, [x0, #0]
    stp     x21, x22, [x0, #16]
    stp     x23, x24, [x0, #32]
    stp     x25, x26, [x0, #48]
    stp     x27, x28, [x0, #64]
    stp     x29, x30, [x0, #{frame}]
    stp     x10, x11, [x0, #{sp}]
    stp     x9, x12, [x0, #{select}]
    ldp     x19, x20, [x1, #0]
    ldp     x21, x22, [x1, #16]
    ldp     x23, x24, [x1, #32]
    ldp     x25, x26, [x1, #48]
    ldp     x27, x28, [x1, #64]
    ldp     x29, x30, [x1, #{frame}]
    ldp     x10, x11, [x1, #{sp}]
    ldp     x9, x12, [x1, #{select}]
    mov     sp, x10
    msr     SP_EL0, x11
    msr     TPIDR_EL0, x12
    msr     SPSel, x9
    ret

    // A new thread's first instructions: backtraces end here.
start_context:
    mov     x30, xzr
    br      x19
    "#,
    frame = const offset_of!(Context, frame),
    sp = const offset_of!(Context, sp_el1),
    select = const offset_of!(Context, sp_select),
);
