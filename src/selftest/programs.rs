//! Programs: on SP_EL0, on a stack of their own, and what becomes of them when they crash.

use crate::arch::aarch64::{layout, stack_pointer, translate};
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::sync::SpinLock;
use crate::thread::{self, Call, Exit, Role, Thread};
use crate::{print, println, program, selftest};
use alloc::string::String;
use alloc::sync::Arc;
use core::arch::asm;
use core::fmt;
use core::hint::{black_box, spin_loop};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

fn start(f: impl FnOnce() + Send + 'static) -> Arc<Thread> {
    program::spawn("program under test", Role::Test, f).expect("a thread and a stack")
}

fn report_of(f: fn()) -> String {
    match start(f).join() {
        Exit::Crashed(report) => report,
        exit => panic!("it did not crash: {exit:?}"),
    }
}

fn stack_select() -> u64 {
    let select: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, SPSel", out(reg) select, options(nomem, nostack)) };
    select
}

selftest!(fn own_stack() "programs: one runs on SP_EL0, and whoever started it on SP_EL1" {
    let seen = Arc::new(SpinLock::new(None));
    let place = seen.clone();
    let exit = start(move || *place.lock() = Some(stack_select())).join();
    assert_eq!((exit, *seen.lock()), (Exit::Returned, Some(0)));
    assert_eq!(stack_select(), 1);
});

selftest!(fn waiting() "programs: one may wait, sleep and be preempted on SP_EL0" {
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    let spinner = start(move || {
        while !seen.load(Ordering::Relaxed) { spin_loop() }
        assert_eq!(stack_select(), 0);
    });
    let sleeper = start(|| {
        for _ in 0..5 { thread::sleep(1_000) }
        assert_eq!(stack_select(), 0);
        assert_eq!(start(thread::yield_now).join(), Exit::Returned);
        assert_eq!(stack_select(), 0);
    });
    assert_eq!(sleeper.join(), Exit::Returned);
    done.store(true, Ordering::Relaxed);
    assert_eq!(spinner.join(), Exit::Returned);
});

selftest!(fn crash() "programs: one that crashes is reported, with the way to the crash" {
    let report = report_of(|| {
        // SAFETY: it faults, as it should.
        unsafe { black_box(0x10 as *mut u8).write_volatile(1) };
    });
    for words in ["store failed", "the null guard", "program under test", "on_sp_el0"] {
        assert!(report.contains(words), "no \"{words}\" in:\n{report}");
    }
});

selftest!(fn crash_while_printing() "programs: one that crashes while it prints leaves the console to others" {
    struct Crash;
    impl fmt::Display for Crash {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result { panic!("on purpose") }
    }
    report_of(|| println!("{Crash}"));
    let other = start(|| print!("{}", ""));
    assert_eq!(other.join_timeout(30_000_000), Some(Exit::Returned));
});

/// Frames much smaller than the guard, one after the other, until it is hit.
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let filler = black_box([depth; 32]);
    if depth == u64::MAX {
        return filler[3];
    }
    black_box(recurse(black_box(depth + 1)) + filler[7])
}

selftest!(fn overflow() "programs: a stack that runs over hits its guard, and the kernel's stack is untouched" {
    let report = report_of(|| { black_box(recurse(0)); });
    for words in ["store failed: translation fault", "guard", "recurse"] {
        assert!(report.contains(words), "no \"{words}\" in:\n{report}");
    }
});

selftest!(fn lost_stack() "programs: a stack pointer that points nowhere harms nobody else" {
    let report = report_of(|| {
        // SAFETY: the first access through it faults, and the program ends there.
        unsafe { asm!("mov x9, #0", "mov sp, x9", "str xzr, [sp, #-16]!", options(noreturn)) };
    });
    assert!(report.contains("store failed"), "{report}");
});

selftest!(fn crashes_leave_nothing() "programs: a hundred that crash leave their stacks behind for others" {
    let crash = || assert!(matches!(start(|| panic!("on purpose")).join(), Exit::Crashed(_)));
    // The first ones fill caches, as in the test of threads that return.
    for _ in 0..10 { crash() }
    thread::sleep(1_000);
    let before = crate::mm::free_frames();
    for _ in 0..100 { crash() }
    thread::sleep(1_000);
    let after = crate::mm::free_frames();
    // One stack may still be there.
    assert!(before.abs_diff(after) <= 32, "{before} frames were free, now {after}");
});

/// Calls the kernel at every depth of the stack, 16 bytes apart, so that each of its pages is met by each call.
#[inline(never)]
fn call_at_every_depth(depth: u64) -> u64 {
    let filler = black_box([depth; 24]);
    match depth % 4 {
        0 => drop(black_box(alloc::vec![depth as u8; 300])),
        1 => drop(black_box(crate::mm::free_frames())),
        2 => thread::yield_now(),
        _ => drop(black_box(crate::mm::maps().len())),
    }
    if depth == 0 {
        return filler[5];
    }
    black_box(call_at_every_depth(black_box(depth - 1)) + filler[9])
}

/// Whether as much as a kernel thread's stack is present, `below` the stack pointer.
#[inline(never)]
fn has_a_whole_stack(below: u64) -> bool {
    let end = stack_pointer() - below;
    let mut pages = (end - layout::STACK_SIZE..end).step_by(PAGE_SIZE);
    pages.all(|address| translate(VirtAddr(address)).is_some())
}

/// A call from below a local variable that is never touched.
#[inline(never)]
fn call_far_below() -> bool {
    let far = [const { MaybeUninit::<u8>::uninit() }; 1 << 20];
    black_box(&far);
    let _call = Call::enter();
    has_a_whole_stack(0)
}

selftest!(fn calls_find_their_stack() "programs: a call finds as much stack as a kernel thread has, wherever the last one was" {
    let exit = start(|| {
        assert!(!has_a_whole_stack(64 << 10), "the stack is present before it is touched");
        for _ in 0..2 {
            assert!(call_far_below());
            let _call = Call::enter();
            assert!(has_a_whole_stack(0));
        }
    });
    assert_eq!(exit.join(), Exit::Returned);
});

selftest!(fn growing_stack() "programs: a stack grows by fault, also under kernel code that holds locks" {
    for depth in [400, 401, 402, 403] {
        assert_eq!(start(move || { black_box(call_at_every_depth(depth)); }).join(), Exit::Returned);
    }
});
