//! What goes wrong is reported in the right words, and does not harm the rest.

use crate::arch::aarch64::{kernel_map, layout, timer};
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::selftest;
use crate::thread::{self, Exit, Role};
use alloc::string::String;
use core::arch::asm;

/// The report of a thread that runs `f`, which must crash.
fn report_of(f: fn()) -> String {
    let thread = thread::spawn("crash on purpose", Role::Test, f).expect("a thread");
    match thread.join() {
        Exit::Crashed(report) => report,
        exit => panic!("it did not crash: {exit:?}"),
    }
}

#[track_caller]
fn assert_says(report: &str, words: &[&str]) {
    for words in words {
        assert!(report.contains(words), "no \"{words}\" in:\n{report}");
    }
}

/// Stores one byte; out of line, so that the report can name it.
#[inline(never)]
extern "C" fn store_to(address: u64) {
    // SAFETY: the address faults; that is what the caller wants.
    unsafe { asm!("strb wzr, [{}]", in(reg) address, options(nostack)) };
}

selftest!(fn store_to_null() "exceptions: a store to address 0 is reported as one to the null guard" {
    let report = report_of(|| store_to(0));
    assert_says(&report, &[
        "store failed: translation fault",
        "store at 0x0000000000000000: the null guard",
        "in thread",
        "store_to",
        "backtrace:",
    ]);
});

selftest!(fn store_to_text() "exceptions: a store to the image's text is reported as read-only" {
    let report = report_of(|| store_to(layout::IMAGE.0 + 0x1000));
    assert_says(&report, &["store failed: permission fault", "the image's text, which is read-only"]);
});

selftest!(fn store_to_constants() "exceptions: a store to a constant is reported as read-only" {
    static CONSTANT: [u64; 2] = [1, 2];
    let report = report_of(|| store_to(CONSTANT.as_ptr() as u64));
    assert_says(&report, &["store failed: permission fault", "the image's constants, which is read-only"]);
});

selftest!(fn execute_data() "exceptions: executing a variable is reported as not executable" {
    static mut VARIABLE: [u32; 2] = [0xd65f_03c0; 2];
    let report = report_of(|| {
        // SAFETY: the call faults before anything runs.
        unsafe { asm!("blr {}", in(reg) &raw const VARIABLE, out("x30") _) };
    });
    assert_says(&report, &["instruction fetch failed: permission fault", "the image's variables, which is not executable"]);
});

selftest!(fn linear_map_is_not_executable() "exceptions: executing RAM through the linear map is reported" {
    let report = report_of(|| {
        let heap = alloc::boxed::Box::new([0xd65f_03c0_u32; 2]);
        // SAFETY: the call faults before anything runs.
        unsafe { asm!("blr {}", in(reg) heap.as_ptr(), out("x30") _) };
    });
    assert_says(&report, &["instruction fetch failed: permission fault", "the linear map of RAM"]);
});

/// Frames much smaller than the guard, one after the other, until it is hit.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let filler = core::hint::black_box([depth; 32]);
    if depth == u64::MAX {
        return filler[3];
    }
    core::hint::black_box(recurse(core::hint::black_box(depth + 1)) + filler[7])
}

selftest!(fn stack_overflow() "exceptions: a kernel stack that runs over is reported, with its backtrace" {
    let report = report_of(|| { core::hint::black_box(recurse(0)); });
    assert_says(&report, &["kernel stack overflow", "the guard under a kernel stack", "recurse"]);
});

selftest!(fn store_past_stack() "exceptions: a store past a stack's guard page is reported as one to the guard" {
    let report = report_of(|| {
        let stack = thread::current().stack().expect("a stack of its own");
        store_to(stack.start - 8);
    });
    assert_says(&report, &["store failed: translation fault", "the guard under a kernel stack"]);
});

selftest!(fn undefined_instruction() "exceptions: an undefined instruction is reported with its word" {
    let report = report_of(|| {
        // SAFETY: permanently undefined (`udf #7`): it traps.
        unsafe { asm!("udf #7", options(nostack)) };
    });
    assert_says(&report, &["undefined instruction", "the instruction is 0x00000007"]);
});

selftest!(fn breakpoint() "exceptions: a breakpoint nobody set is reported with its number" {
    let report = report_of(|| {
        // SAFETY: it traps.
        unsafe { asm!("brk #42", options(nostack)) };
    });
    assert_says(&report, &["brk #42"]);
});

selftest!(fn unaligned_device_access() "exceptions: an unaligned access to a device is reported as such" {
    let report = report_of(|| {
        let registers = crate::kernel::board().uart.base;
        let base = kernel_map::map_device(registers, PAGE_SIZE as u64).expect("a mapping");
        // An exclusive load across 16 bytes: QEMU with one core lets others pass, as no processor does.
        // SAFETY: the access faults: device memory is never accessed unaligned.
        unsafe { asm!("ldxr {}, [{}]", out(reg) _, in(reg) base.0 + 13, options(nostack)) };
    });
    assert_says(&report, &["alignment fault", "device registers"]);
});

selftest!(fn no_memory_there() "exceptions: an address between the halves is reported" {
    let report = report_of(|| store_to(1 << 50));
    assert_says(&report, &["store failed", "between the halves"]);
});

selftest!(fn panic_is_reported() "exceptions: a panic ends its thread with message and place" {
    let report = report_of(|| panic!("on purpose: {}", 6 * 7));
    assert_says(&report, &["panic: on purpose: 42", "exceptions.rs", "backtrace:"]);
});

selftest!(fn serror_is_unmasked() "exceptions: an SError would be taken in every thread" {
    const A_MASKED: u64 = 1 << 8;
    fn is_masked() -> bool {
        let daif: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, DAIF", out(reg) daif, options(nomem, nostack)) };
        daif & A_MASKED != 0
    }
    assert!(!is_masked());
    // While we do not wait, a new thread begins in the timer's handler; once we do, in our wait.
    for busy_us in [40_000, 0] {
        let thread = thread::spawn("helper", Role::Test, || assert!(!is_masked())).expect("a thread");
        let start = timer::now();
        while timer::now() - start < timer::ticks_from_us(busy_us) {}
        assert_eq!(thread.join(), Exit::Returned);
    }
});

selftest!(fn registers_survive() "exceptions: every register survives an exception that is resolved" {
    // The first use of a vector register traps and is resolved; x0 to x28 must be as they were.
    let thread = thread::spawn("registers", Role::Test, || {
        let mut differences: u64;
        // SAFETY: all registers it changes are named; x19 and x29 are saved by hand.
        unsafe {
            asm!(
                ".arch_extension fp",
                "stp x19, x29, [sp, #-16]!",
                ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28",
                "mov x\\n, #(0x5a00 + \\n)",
                ".endr",
                "mov x29, #0",
                "fmov d0, x1",
                "mov x0, #0",
                ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28",
                "mov x30, #(0x5a00 + \\n)",
                "eor x30, x30, x\\n",
                "orr x0, x0, x30",
                ".endr",
                "fmov x30, d0",
                "eor x30, x30, x1",
                "orr x0, x0, x30",
                "ldp x19, x29, [sp], #16",
                ".arch_extension nofp",
                out("x0") differences,
                out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _,
                out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
                out("x15") _, out("x16") _, out("x17") _, out("x18") _, out("x20") _, out("x21") _, out("x22") _,
                out("x23") _, out("x24") _, out("x25") _, out("x26") _, out("x27") _, out("x28") _, out("x30") _,
            );
        }
        assert_eq!(differences, 0);
    });
    assert_eq!(thread.expect("a thread").join(), Exit::Returned);
});

selftest!(fn unmapped_addresses_do_not_translate() "exceptions: a report reads only what is mapped" {
    assert!(crate::arch::aarch64::translate(VirtAddr(0)).is_none());
    assert!(crate::arch::aarch64::translate(layout::IMAGE).is_some());
});
