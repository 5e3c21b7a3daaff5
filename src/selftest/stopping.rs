//! Programs that are ended from outside, or by themselves in the middle: they end soon, and leave nothing behind.

use crate::command::Status;
use crate::file::{File, OpenOptions};
use crate::files::VFS;
use crate::fs::vfs::{LastLink, Node};
use crate::mmap::{Mmap, MmapMut};
use crate::program::process::{self, CRASHED, INTERRUPTED, Running};
use crate::program::{self, Program, fs, thread};
use crate::sync::{Mutex, SpinLock, WaitQueue};
use crate::thread as kernel;
use crate::{print, println, selftest};
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::{black_box, spin_loop};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Programs and their threads that have begun what they are to be stopped in.
static BEGUN: AtomicU32 = AtomicU32::new(0);

fn begin() {
    BEGUN.fetch_add(1, Ordering::Relaxed);
}

fn spin() -> ! {
    begin();
    loop {
        spin_loop()
    }
}

macro_rules! program_under_test {
    ($main:expr) => {{
        static PROGRAM: Program = Program {
            name: "program under test",
            summary: "",
            main: $main,
        };
        &PROGRAM
    }};
}

/// Starts it, and returns when so many of its threads have begun.
fn start(program: &'static Program, threads: u32) -> Running {
    BEGUN.store(0, Ordering::Relaxed);
    let running = process::start(program, Vec::new()).expect("a thread and a stack");
    while BEGUN.load(Ordering::Relaxed) < threads {
        kernel::sleep(1_000);
    }
    running
}

/// The status of a program that is ended once so many of its threads have begun.
fn stopped(program: &'static Program, threads: u32) -> Status {
    let running = start(program, threads);
    running.interrupt();
    running.wait()
}

selftest!(fn computing() "stopping: a program that computes for ever ends" {
    let program = program_under_test!(|_| spin());
    for _ in 0..20 { assert_eq!(stopped(program, 1), INTERRUPTED) }
});

selftest!(fn not_begun() "stopping: a program that has not begun ends before it does" {
    let program = program_under_test!(|_| spin());
    assert_eq!(stopped(program, 0), INTERRUPTED);
});

selftest!(fn resting() "stopping: a program that is asleep for a year ends at once" {
    let program = program_under_test!(|_| {
        begin();
        thread::sleep(Duration::from_secs(365 * 86_400));
        0
    });
    assert_eq!(stopped(program, 1), INTERRUPTED);
});

selftest!(fn waiting() "stopping: a program that waits for what never comes ends" {
    static NEVER: (SpinLock<()>, WaitQueue) = (SpinLock::new(()), WaitQueue::new());
    let program = program_under_test!(|_| {
        let mut guard = NEVER.0.lock();
        begin();
        loop { guard = NEVER.1.wait(guard) }
    });
    assert_eq!(stopped(program, 1), INTERRUPTED);
    assert!(!NEVER.0.is_locked());
});

selftest!(fn threads_of_all_kinds() "stopping: all threads of a program end, whatever they do" {
    let program = program_under_test!(|_| {
        let lock = Mutex::new(());
        let _held = lock.lock();
        thread::scope(|scope| {
            let handle = scope.spawn(|| { spin(); });
            let _ = scope.spawn(|| { begin(); thread::sleep(Duration::from_secs(1_000_000)) });
            let _ = scope.spawn(|| { begin(); drop(lock.lock()) });
            let _ = scope.spawn(|| { begin(); loop { drop(black_box(alloc::vec![1u8; 5000])) } });
            let _ = scope.spawn(|| { begin(); loop { print!("") } });
            begin();
            handle.expect("a thread").join();
        });
        0
    });
    for _ in 0..5 { assert_eq!(stopped(program, 6), INTERRUPTED) }
    println!("# and the console is nobody's");
});

selftest!(fn foreground() "stopping: interrupt() ends who is in the foreground, and says whether anybody was" {
    let program = program_under_test!(|_| spin());
    let waiter = kernel::spawn("waiter", kernel::Role::Test, || {
        let running = process::start(program, Vec::new()).expect("a thread and a stack");
        assert_eq!(running.wait_in_foreground(), INTERRUPTED);
    });
    BEGUN.store(0, Ordering::Relaxed);
    let waiter = waiter.expect("a thread");
    while BEGUN.load(Ordering::Relaxed) == 0 { kernel::sleep(1_000) }
    assert!(program::interrupt());
    assert_eq!(waiter.join(), kernel::Exit::Returned);
});

selftest!(fn exit_in_a_thread() "stopping: exit() in any thread, and in the middle of a line, ends the program with its status" {
    use core::fmt;
    struct Exit;
    impl fmt::Display for Exit {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result { process::exit(33) }
    }
    let program = program_under_test!(|_| {
        let _ = thread::spawn(|| println!("{Exit}"));
        spin()
    });
    assert_eq!(start(program, 0).wait(), 33);
    println!("# others still print");
});

selftest!(fn main_returns() "stopping: when main returns, the other threads end, and its status stands" {
    let program = program_under_test!(|_| {
        let _ = thread::spawn(|| { spin(); });
        let _ = thread::spawn(|| thread::sleep(Duration::from_secs(1_000_000)));
        7
    });
    assert_eq!(start(program, 0).wait(), 7);
});

selftest!(fn crash_in_a_thread() "stopping: a crash of one thread ends its program" {
    let program = program_under_test!(|_| {
        let crash = thread::spawn(|| -> u8 {
            // SAFETY: it faults, as it should.
            unsafe { black_box(0x20 as *const u8).read_volatile() }
        });
        crash.expect("a thread").join()
    });
    assert_eq!(start(program, 0).wait(), CRASHED);
});

selftest!(fn threads_share() "stopping: threads borrow, return and are waited for" {
    let program = program_under_test!(|_| {
        let numbers: Vec<u64> = (0..1000).collect();
        let sum = thread::scope(|scope| {
            let halves = numbers.chunks(500).map(|half| scope.spawn(|| half.iter().sum::<u64>()));
            let halves: Vec<_> = halves.collect();
            halves.into_iter().map(|half| half.expect("a thread").join()).sum::<u64>()
        });
        let squared = thread::spawn(move || sum * sum).expect("a thread").join();
        u8::from(squared == 499_500 * 499_500)
    });
    assert_eq!(start(program, 0).wait(), 1);
});

selftest!(fn memory_comes_back() "stopping: maps, stacks and threads of what was stopped are given back" {
    let program = program_under_test!(|_| {
        let mut map = MmapMut::map_anon(64 << 10).expect("mapped");
        map.fill(1);
        let _ = thread::spawn(|| { spin(); });
        let _ = thread::spawn(|| { begin(); thread::sleep(Duration::from_secs(1_000_000)) });
        spin()
    });
    // The first ones fill caches, as in the test of threads that return.
    for _ in 0..5 { stopped(program, 3); }
    kernel::sleep(1_000);
    let (frames, maps) = (crate::mm::free_frames(), crate::mm::maps().len());
    for _ in 0..30 { stopped(program, 3); }
    kernel::sleep(1_000);
    let after = crate::mm::free_frames();
    // One stack may still be there.
    assert!(frames.abs_diff(after) <= 40, "{frames} frames were free, now {after}");
    assert_eq!(crate::mm::maps().len(), maps);
});

const PATH: &str = "/selftest-stop.tmp";

/// The root, where there is one to write to.
fn root() -> Option<Node> {
    let root = VFS.resolve(b"/", LastLink::Follow).ok();
    let root = root.filter(|root| root.fs.read_only().is_none());
    if root.is_none() {
        println!("# skipped: there is no disk to write to");
    }
    root
}

fn new_file() -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .open(PATH)
        .expect("a file")
}

selftest!(fn large_write() "stopping: a program in the middle of a large write ends, and the file is sound" {
    let Some(root) = root() else { return };
    let program = program_under_test!(|_| {
        let zeros = MmapMut::map_anon(6 << 20).expect("mapped");
        let file = new_file();
        begin();
        loop {
            if file.write_all_at(&zeros, 0).is_err() {
                // The disk may be small.
                let _ = file.write_all_at(&zeros[..1 << 20], 0);
            }
        }
    });
    let before = root.fs.statistics().expect("known").free_inodes;
    for _ in 0..3 {
        assert_eq!(stopped(program, 1), INTERRUPTED);
        let bytes = fs::read(PATH).expect("readable");
        assert!(bytes.iter().all(|byte| *byte == 0));
        fs::remove_file(PATH).expect("removed");
    }
    root.fs.sync().expect("durable");
    crate::mm::CACHE.tidy().expect("closed");
    assert_eq!(root.fs.statistics().expect("known").free_inodes, before, "a file is still open");
});

selftest!(fn faults() "stopping: a program in the middle of a fault that reads ends after it, and the page is there for others" {
    if root().is_none() { return };
    const LEN: usize = 600_000;
    let program = program_under_test!(|_: &[String]| {
        let file = new_file();
        // SAFETY: nobody changes it.
        let map = unsafe { Mmap::map(&file) }.expect("mapped");
        map.advise(crate::mmap::Advice::Random).expect("taken");
        begin();
        loop {
            for page in map.chunks(4096) { black_box(page[0]); }
            let _call = kernel::Call::enter();
            crate::mm::CACHE.drop_clean();
        }
    });
    fs::write(PATH, alloc::vec![7; LEN]).expect("written");
    new_file().sync_all().expect("durable");
    for round in 0..30 {
        crate::mm::CACHE.drop_clean();
        let running = start(program, 1);
        kernel::sleep(round * 97);
        running.interrupt();
        assert_eq!(running.wait(), INTERRUPTED);
        assert!(fs::read(PATH).expect("readable").iter().all(|byte| *byte == 7));
    }
    fs::remove_file(PATH).expect("removed");
});

selftest!(fn files_come_back() "stopping: open files, mapped files and pinned bytes of what was stopped are given back" {
    let Some(root) = root() else { return };
    let program = program_under_test!(|_: &[String]| {
        let file = new_file();
        file.set_len(100_000).expect("grown");
        // SAFETY: nobody cuts it before this program has ended.
        let map = unsafe { Mmap::map(&file) }.expect("mapped");
        let pinned = map.pin(..).expect("pinned");
        black_box(pinned.len());
        spin()
    });
    let before = root.fs.statistics().expect("known").free_inodes;
    for _ in 0..3 {
        assert_eq!(stopped(program, 1), INTERRUPTED);
        // Pinned bytes would keep it from being cut, an open file from being removed.
        new_file().set_len(0).expect("cut");
        fs::remove_file(PATH).expect("removed");
    }
    root.fs.sync().expect("durable");
    crate::mm::CACHE.tidy().expect("closed");
    assert_eq!(root.fs.statistics().expect("known").free_inodes, before, "a file is still open");
});
