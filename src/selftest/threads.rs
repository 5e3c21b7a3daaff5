//! Threads, time and locks.

use crate::arch::aarch64::timer;
use crate::selftest;
use crate::sync::{Mutex, SpinLock, WaitQueue};
use crate::thread::{self, Exit, Role, Thread};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::hint::{black_box, spin_loop};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn spawn(f: impl FnOnce() + Send + 'static) -> Arc<Thread> {
    thread::spawn("helper", Role::Test, f).expect("a thread")
}

#[track_caller]
fn join_all(threads: Vec<Arc<Thread>>) {
    for thread in threads {
        assert_eq!(thread.join(), Exit::Returned);
    }
}

selftest!(fn preemption() "threads: one that never waits does not keep the others from running" {
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    let spinner = spawn(move || while !seen.load(Ordering::Relaxed) { spin_loop() });
    thread::sleep(30_000);
    done.store(true, Ordering::Relaxed);
    join_all(alloc::vec![spinner]);
});

selftest!(fn sleeping() "threads: a sleep lasts at least as long as asked, and wakes in order" {
    let deadlines = Arc::new(SpinLock::new(Vec::new()));
    // No thread is preempted between its waking and its entry in the list, however busy the host is.
    thread::with_slice(10_000_000, || {
        join_all([30_000, 10_000, 20_000].map(|us| {
            let deadlines = deadlines.clone();
            spawn(move || {
                let deadline = timer::now() + timer::ticks_from_us(us);
                thread::sleep(us);
                assert!(timer::now() >= deadline);
                deadlines.lock().push(deadline);
            })
        }).into());
    });
    // Not compared under the lock: a failure is this test's, not the machine's.
    let deadlines = deadlines.lock().clone();
    assert_eq!(deadlines.len(), 3);
    assert!(deadlines.is_sorted(), "{deadlines:?}");
});

selftest!(fn mutual_exclusion() "threads: a mutex lets one in at a time, under a slice of 1 ms" {
    let shared = Arc::new(Mutex::new((0u64, 0u64)));
    thread::with_slice(1_000, || {
        join_all((0..4).map(|_| {
            let shared = shared.clone();
            spawn(move || for _ in 0..2_000 {
                let mut pair = shared.lock();
                pair.0 += 1;
                black_box(&mut *pair);
                pair.1 += 1;
                assert_eq!(pair.0, pair.1);
            })
        }).collect());
    });
    assert_eq!(*shared.lock(), (8_000, 8_000));
});

selftest!(fn no_lost_wake_up() "threads: two that hand a token to each other ten thousand times lose none" {
    struct Table { token: SpinLock<u64>, changed: WaitQueue }
    let table = Arc::new(Table { token: SpinLock::new(0), changed: WaitQueue::new() });
    thread::with_slice(1_000, || {
        join_all((0..2).map(|side| {
            let table = table.clone();
            spawn(move || for _ in 0..5_000 {
                let mut token = table.token.lock();
                while *token % 2 != side {
                    token = table.changed.wait(token);
                }
                *token += 1;
                drop(token);
                table.changed.wake_all();
            })
        }).collect());
    });
    assert_eq!(*table.token.lock(), 10_000);
});

selftest!(fn time_limit() "threads: a wait with a time limit ends, and says that time ran out" {
    let lock = SpinLock::new(());
    let queue = WaitQueue::new();
    let (guard, has_timed_out) = queue.wait_timeout(lock.lock(), 5_000);
    drop(guard);
    assert!(has_timed_out);
});

selftest!(fn stacks_are_given_back() "threads: a thousand, one after the other, leave no frame behind" {
    // The first ones fill caches: the heap's, the tables of the region where stacks lie.
    for _ in 0..10 {
        join_all(alloc::vec![spawn(|| ())]);
    }
    thread::sleep(1_000);
    let before = crate::mm::free_frames();
    for _ in 0..1_000 {
        join_all(alloc::vec![spawn(|| ())]);
    }
    thread::sleep(1_000);
    let after = crate::mm::free_frames();
    assert!(before.abs_diff(after) <= 8, "{before} frames were free, now {after}");
});

selftest!(fn many_at_once() "threads: two hundred at once have a stack each" {
    join_all((0..200).map(|_| spawn(|| thread::sleep(20_000))).collect());
});

selftest!(fn vector_registers_are_each_threads_own() "threads: vector registers are each thread's own" {
    let wrong = Arc::new(AtomicU64::new(0));
    thread::with_slice(1_000, || {
        join_all((1..4u64).map(|value| {
            let wrong = wrong.clone();
            spawn(move || for round in 0..200 {
                let out: u64;
                // SAFETY: only registers that soft-float code never uses, and x9.
                unsafe {
                    asm!(
                        ".arch_extension fp",
                        "fmov d31, {value}",
                        "mov {count}, #2000",
                        "2: subs {count}, {count}, #1",
                        "b.ne 2b",
                        "fmov {out}, d31",
                        ".arch_extension nofp",
                        value = in(reg) value << 32 | round,
                        count = out(reg) _,
                        out = out(reg) out,
                        options(nostack),
                    );
                }
                if out != value << 32 | round {
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
                if round % 16 == 0 {
                    thread::yield_now();
                }
            })
        }).collect());
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
});
