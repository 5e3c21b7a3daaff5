//! Threads: a small preemptive scheduler for one core.
//!
//! Ready threads take turns, a slice each; a thread that waits stands in one [`WaitQueue`], among the sleepers, or in
//! both (a wait with a time limit). All of that is protected by one lock, `SCHEDULER`, which is taken while other spin
//! locks are held; only the heap's and the frames' come after it.
//!
//! ```text
//!            spawn                      slice over, preempted
//!              |            .---------------------------------------.
//!              v            v                                       |
//!            Ready --- picked to run ---> Running --- exit ---> Dead, freed by who runs next
//!              ^                             |
//!              '--- woken, time is up --- Blocked (queue, sleepers or both)
//! ```
//!
//! The lock is held *across* a switch: the thread that goes on lets go of it. What is per core is reached through
//! TPIDR_EL1 (`Core`); a second core would bring its own `Core` and share the rest.
//!
//! A thread of a program may be told to end (`Thread::end_soon`): it does at its next return to program code. In a
//! [call](Call) of the kernel it goes on until that is over, since it may hold what others need; where it waits outside
//! of one, the wait ends, and with it the thread. Whoever tells it wakes it, and waits may end without reason.
//!
//! The timer is armed only for the next sleeper, or for the end of a slice while somebody else is ready.

use crate::arch::aarch64::fp::{self, FpRegisters};
use crate::arch::aarch64::kernel_map::KernelStack;
use crate::arch::aarch64::switch::{Context, switch_context};
use crate::arch::aarch64::timer;
use crate::arch::aarch64::{
    core_pointer, interrupts_are_masked, is_on_program_stack, layout, mask_interrupts,
    restore_interrupts, set_core_pointer, stack_pointer, touch_stack, unmask_interrupts,
    wait_for_interrupt,
};
use crate::program::process::{Process, ThreadStack};
use crate::sync::{SpinLock, SpinLockGuard};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::marker::PhantomData;
use core::mem;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What a crash of the thread means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Part of the machine: a crash stops it.
    Kernel,
    /// A program: a crash is reported and ends the thread.
    Program,
    /// A self-test: a crash ends the thread, and its report goes to whoever joins it.
    Test,
}

/// How a thread ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Its function returned.
    Returned,
    /// It crashed; the report.
    Crashed(String),
    /// Its program ended, and with it all its threads.
    Stopped,
}

/// Why no thread was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpawnError {
    /// No frames, or no room, for its stack.
    OutOfMemory,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for another thread's stack")
    }
}

/// One thread.
pub struct Thread {
    /// Its name, for people.
    pub name: String,
    /// Its number; never used again.
    pub id: u64,
    /// What its crash means.
    pub role: Role,
    /// The program it is part of.
    pub process: Option<Arc<Process>>,
    stack: Option<KernelStack>,
    /// What SP_EL0 points into, if it is a program; kept here because a crash never returns to whom it belongs.
    _program_stack: Option<ThreadStack>,
    /// It ends as soon as it is in no call of the kernel.
    must_end: AtomicBool,
    /// Calls of the kernel that it is in. Only the thread itself changes it, and handlers on top of it look.
    calls: AtomicU32,
    /// From where to where its program's stack is known to be present. As `calls`.
    touched: [AtomicU64; 2],
    context: UnsafeCell<Context>,
    fp: UnsafeCell<Option<Box<FpRegisters>>>,
    entry: UnsafeCell<Option<Box<dyn FnOnce() + Send>>>,
    /// The next thread of the list this one stands in.
    next: UnsafeCell<Option<Arc<Thread>>>,
    /// Where and until when it waits.
    wait: UnsafeCell<Wait>,
    exit: SpinLock<Option<Exit>>,
    exited: WaitQueue,
    ticks_run: AtomicU64,
}

// SAFETY: `context`, `next` and `wait` are reached only with `SCHEDULER` locked; `fp` and `entry` only by the thread
// itself, or with `SCHEDULER` locked while it does not run. Everything in them can move between threads.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

#[derive(Clone, Copy)]
struct Wait {
    queue: *const WaitQueue,
    deadline: Option<u64>,
    is_blocked: bool,
    has_timed_out: bool,
}

impl Wait {
    const NONE: Self = Self {
        queue: ptr::null(),
        deadline: None,
        is_blocked: false,
        has_timed_out: false,
    };
}

/// What each core has of its own; TPIDR_EL1 points to it.
struct Core {
    current: Cell<*const Thread>,
    idle: Cell<*const Thread>,
    /// The running thread's slice is over, or somebody woke while the core was idle.
    must_switch: Cell<bool>,
    slice_end: Cell<u64>,
    running_since: Cell<u64>,
}

struct BootCore(Core);

// SAFETY: only the boot core refers to it.
unsafe impl Sync for BootCore {}

static BOOT_CORE: BootCore = BootCore(Core {
    current: Cell::new(ptr::null()),
    idle: Cell::new(ptr::null()),
    must_switch: Cell::new(false),
    slice_end: Cell::new(0),
    running_since: Cell::new(0),
});

fn core() -> Option<&'static Core> {
    // SAFETY: TPIDR_EL1 is zero until `init` sets it to a `Core` that lives for ever.
    unsafe { core_pointer::<Core>().as_ref() }
}

struct Scheduler {
    ready: List,
    /// By deadline in ticks, then by number.
    sleepers: BTreeMap<(u64, u64), Arc<Thread>>,
    all: Vec<Arc<Thread>>,
    /// The thread that exited last: its stack is freed by who runs next.
    dead: Option<Arc<Thread>>,
    next_id: u64,
    slice_ticks: u64,
    switches: u64,
}

static SCHEDULER: SpinLock<Scheduler> = SpinLock::new(Scheduler {
    ready: List::new(),
    sleepers: BTreeMap::new(),
    all: Vec::new(),
    dead: None,
    next_id: 0,
    slice_ticks: 0,
    switches: 0,
});

/// Length of a slice unless somebody asks for another.
const SLICE_US: u64 = 10_000;

/// Threads in the order they came, linked through themselves, so that waiting takes no memory.
struct List {
    first: Option<Arc<Thread>>,
    last: *const Thread,
}

// SAFETY: `last` points into the chain that `first` owns.
unsafe impl Send for List {}

impl List {
    const fn new() -> Self {
        Self {
            first: None,
            last: ptr::null(),
        }
    }

    fn push(&mut self, thread: Arc<Thread>) {
        let new: *const Thread = &raw const *thread;
        if self.first.is_none() {
            self.first = Some(thread);
        } else {
            // SAFETY: the list is not empty, so `last` is in it; `SCHEDULER` is locked, or we could not be here.
            unsafe { *(*self.last).next.get() = Some(thread) };
        }
        self.last = new;
    }

    fn pop(&mut self) -> Option<Arc<Thread>> {
        let first = self.first.take()?;
        // SAFETY: `SCHEDULER` is locked.
        self.first = unsafe { (*first.next.get()).take() };
        Some(first)
    }

    fn remove(&mut self, thread: &Thread) -> Option<Arc<Thread>> {
        let mut kept = List::new();
        let mut found = None;
        while let Some(other) = self.pop() {
            if ptr::eq(&*other, thread) {
                found = Some(other);
            } else {
                kept.push(other);
            }
        }
        *self = kept;
        found
    }
}

/// Where threads wait until something they look at under a spin lock has changed.
///
/// Waits may end without reason: whoever waits looks again.
pub struct WaitQueue(UnsafeCell<List>);

// SAFETY: the list is reached only with `SCHEDULER` locked.
unsafe impl Sync for WaitQueue {}
// SAFETY: as above.
unsafe impl Send for WaitQueue {}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(List::new()))
    }

    /// Lets go of `guard`, sleeps until woken, and locks again. Nothing woken in between is missed.
    pub fn wait<'a, T>(&self, guard: SpinLockGuard<'a, T>) -> SpinLockGuard<'a, T> {
        self.wait_until(guard, None).0
    }

    /// As [`wait`](Self::wait), for `us` microseconds at most; `true` where the time ran out.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: SpinLockGuard<'a, T>,
        us: u64,
    ) -> (SpinLockGuard<'a, T>, bool) {
        self.wait_until(guard, Some(timer::now() + timer::ticks_from_us(us)))
    }

    #[inline(never)]
    fn wait_until<'a, T>(
        &self,
        guard: SpinLockGuard<'a, T>,
        deadline: Option<u64>,
    ) -> (SpinLockGuard<'a, T>, bool) {
        let lock = guard.lock();
        let mut scheduler = SCHEDULER.lock();
        // Looked at with SCHEDULER held: whoever tells us later finds us blocked, and wakes us.
        if must_end_now() {
            drop(scheduler);
            drop(guard);
            exit(Exit::Stopped)
        }
        // The order matters: only once we hold SCHEDULER can a waker no longer slip in between.
        let interrupts = guard.unlock_keeping_interrupts_masked();
        let thread = current();
        // SAFETY: `SCHEDULER` is locked.
        unsafe { (*self.0.get()).push(thread.clone()) };
        scheduler.block(&thread, self, deadline);
        switch_away(&mut scheduler);
        // SAFETY: `SCHEDULER` is locked.
        let has_timed_out = unsafe { (*thread.wait.get()).has_timed_out };
        // Before it can end: nobody would drop this count then.
        drop(thread);
        drop(scheduler);
        finish_switch();
        let guard = lock.relock(interrupts);
        if must_end_now() {
            drop(guard);
            exit(Exit::Stopped)
        }
        (guard, has_timed_out)
    }

    /// Wakes the thread that has waited longest.
    pub fn wake_one(&self) {
        let mut scheduler = SCHEDULER.lock();
        // SAFETY: `SCHEDULER` is locked.
        if let Some(thread) = unsafe { (*self.0.get()).pop() } {
            scheduler.make_ready(thread, false);
        }
    }

    /// Wakes all that wait.
    pub fn wake_all(&self) {
        let mut scheduler = SCHEDULER.lock();
        // SAFETY: `SCHEDULER` is locked.
        while let Some(thread) = unsafe { (*self.0.get()).pop() } {
            scheduler.make_ready(thread, false);
        }
    }
}

impl Scheduler {
    fn block(&mut self, thread: &Arc<Thread>, queue: *const WaitQueue, deadline: Option<u64>) {
        if let Some(deadline) = deadline {
            self.sleepers.insert((deadline, thread.id), thread.clone());
        }
        // SAFETY: `SCHEDULER` is locked.
        unsafe {
            *thread.wait.get() = Wait {
                queue,
                deadline,
                is_blocked: true,
                has_timed_out: false,
            };
        }
    }

    /// The thread has left its queue already.
    fn make_ready(&mut self, thread: Arc<Thread>, has_timed_out: bool) {
        // SAFETY: `SCHEDULER` is locked.
        let wait = unsafe { &mut *thread.wait.get() };
        if let Some(deadline) = wait.deadline {
            self.sleepers.remove(&(deadline, thread.id));
        }
        *wait = Wait {
            has_timed_out,
            ..Wait::NONE
        };
        self.ready.push(thread);
        if let Some(core) = core() {
            if core.current.get() == core.idle.get() {
                core.must_switch.set(true);
            }
            self.arm_timer(core);
        }
    }

    fn wake_sleepers(&mut self, now: u64) {
        while let Some(entry) = self.sleepers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let thread = entry.remove();
            // SAFETY: `SCHEDULER` is locked; a queue outlives those who wait in it.
            unsafe {
                let wait = &mut *thread.wait.get();
                wait.deadline = None;
                if let Some(queue) = wait.queue.as_ref() {
                    (*queue.0.get()).remove(&thread);
                }
            }
            self.make_ready(thread, true);
        }
    }

    fn arm_timer(&self, core: &Core) {
        let sleeper = self.sleepers.first_key_value().map(|(key, _)| key.0);
        let slice_end = (self.ready.first.is_some() && core.current.get() != core.idle.get())
            .then(|| core.slice_end.get());
        match sleeper.into_iter().chain(slice_end).min() {
            Some(deadline) => timer::arm(deadline),
            None => timer::disarm(),
        }
    }
}

/// Lets another thread run; returns when this one is picked again. Who called has put the current thread where it
/// will be found, or nowhere if it is dead.
fn switch_away(scheduler: &mut SpinLockGuard<'_, Scheduler>) {
    let core = core().expect("threads were started");
    let previous = core.current.get();
    let idle = core.idle.get();
    let next = match scheduler.ready.pop() {
        Some(thread) => Arc::into_raw(thread),
        None => idle,
    };
    let now = timer::now();
    core.must_switch.set(false);
    core.slice_end.set(now + scheduler.slice_ticks);
    core.current.set(next);
    scheduler.arm_timer(core);
    if next == previous {
        if next != idle {
            // SAFETY: `into_raw` above made this count, and `core.current` has one of this thread already.
            drop(unsafe { Arc::from_raw(next) });
        }
        return;
    }
    scheduler.switches += 1;
    // SAFETY: `core.current` held a count of the previous thread, so it is alive; and `next` is counted by us.
    unsafe {
        (*previous)
            .ticks_run
            .fetch_add(now - core.running_since.get(), Ordering::Relaxed);
        core.running_since.set(now);
        fp::save(&mut *(*previous).fp.get());
        fp::load(&*(*next).fp.get());
        let (from, to) = ((*previous).context.get(), (*next).context.get());
        if previous != idle {
            // The count that `core.current` held goes to `dead`, or away: others hold counts of a thread that lives.
            let previous = Arc::from_raw(previous);
            if previous.exit.try_lock().is_some_and(|exit| exit.is_some()) {
                scheduler.dead = Some(previous);
            }
        }
        switch_context(from, to);
    }
}

/// What every thread does once it runs again and has let go of the lock.
fn finish_switch() {
    // To give back its stacks is not to be left half done.
    let _call = Call::enter();
    let dead = SCHEDULER.lock().dead.take();
    drop(dead);
}

/// Turns the boot context into the idle thread, and lets threads be spawned.
///
/// # Panics
/// When called twice.
pub fn init() {
    assert!(core().is_none(), "threads are started once");
    let mut scheduler = SCHEDULER.lock();
    scheduler.slice_ticks = timer::ticks_from_us(SLICE_US);
    let idle = Arc::new(Thread::new(&mut scheduler, "idle", Role::Kernel, None));
    scheduler.all.push(idle.clone());
    let core = &BOOT_CORE.0;
    let idle = Arc::into_raw(idle);
    core.idle.set(idle);
    core.current.set(idle);
    core.running_since.set(timer::now());
    set_core_pointer(core);
}

/// What the boot context does from then on: sleeps until an interrupt makes somebody ready.
pub fn idle() -> ! {
    loop {
        let interrupts = mask_interrupts();
        let mut scheduler = SCHEDULER.lock();
        if scheduler.ready.first.is_some() {
            switch_away(&mut scheduler);
            drop(scheduler);
            finish_switch();
        } else {
            drop(scheduler);
            // Interrupts are masked, so none is missed: WFI ends when one is pending, and it is taken on unmasking.
            wait_for_interrupt();
        }
        restore_interrupts(interrupts);
        unmask_interrupts();
    }
}

impl Thread {
    fn new(scheduler: &mut Scheduler, name: &str, role: Role, stack: Option<KernelStack>) -> Self {
        let context = match &stack {
            Some(stack) => Context::new(thread_start, stack.range().end.0),
            None => Context::running(),
        };
        scheduler.next_id += 1;
        Self {
            name: name.into(),
            id: scheduler.next_id - 1,
            role,
            process: None,
            stack,
            _program_stack: None,
            must_end: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            touched: [const { AtomicU64::new(0) }; 2],
            context: UnsafeCell::new(context),
            fp: UnsafeCell::new(None),
            entry: UnsafeCell::new(None),
            next: UnsafeCell::new(None),
            wait: UnsafeCell::new(Wait::NONE),
            exit: SpinLock::new(None),
            exited: WaitQueue::new(),
            ticks_run: AtomicU64::new(0),
        }
    }

    /// Waits until the thread has ended, and says how.
    #[inline(never)]
    pub fn join(&self) -> Exit {
        let mut exit = self.exit.lock();
        loop {
            if let Some(exit) = &*exit {
                return exit.clone();
            }
            exit = self.exited.wait(exit);
        }
    }

    /// As [`join`](Self::join), for `us` microseconds at most.
    #[inline(never)]
    pub fn join_timeout(&self, us: u64) -> Option<Exit> {
        touch_program_stack(); // as in `sleep`
        let deadline = timer::now() + timer::ticks_from_us(us);
        let mut exit = self.exit.lock();
        loop {
            if let Some(exit) = &*exit {
                return Some(exit.clone());
            }
            let (guard, has_timed_out) = self.exited.wait_until(exit, Some(deadline));
            if has_timed_out && guard.is_none() {
                return None;
            }
            exit = guard;
        }
    }

    /// Its kernel stack; the boot context's lies in the image.
    pub fn stack(&self) -> Option<Range<u64>> {
        self.stack.as_ref().map(|stack| {
            let range = stack.range();
            range.start.0..range.end.0
        })
    }

    /// Lends the place of its vector registers; for the thread itself, with interrupts masked.
    pub fn with_fp<R>(&self, f: impl FnOnce(&mut Option<Box<FpRegisters>>) -> R) -> R {
        // SAFETY: only the running thread calls this, in a handler, so no switch comes in between.
        f(unsafe { &mut *self.fp.get() })
    }

    /// Whom its maps belong to: its program, else itself.
    pub fn holder(&self) -> u64 {
        self.process.as_ref().map_or(self.id, |process| process.id)
    }

    /// Tells it to end at its next return to program code. May be called by a handler.
    pub(crate) fn end_soon(self: &Arc<Self>) {
        self.must_end.store(true, Ordering::Relaxed);
        let mut scheduler = SCHEDULER.lock();
        // SAFETY: `SCHEDULER` is locked; a queue outlives those who wait in it.
        unsafe {
            let wait = *self.wait.get();
            if !wait.is_blocked {
                return;
            }
            if let Some(queue) = wait.queue.as_ref() {
                (*queue.0.get()).remove(self);
            }
        }
        scheduler.make_ready(self.clone(), false);
    }

    /// x29 and the return address of a thread that does not run, for a backtrace.
    pub fn backtrace_start(&self) -> (u64, u64) {
        let _scheduler = SCHEDULER.lock();
        // SAFETY: `SCHEDULER` is locked.
        unsafe { (*self.context.get()).backtrace_start() }
    }
}

/// Starts a thread on a kernel stack of its own.
pub fn spawn(
    name: &str,
    role: Role,
    f: impl FnOnce() + Send + 'static,
) -> Result<Arc<Thread>, SpawnError> {
    spawn_with(name, role, None, None, f)
}

/// As [`spawn`], as a thread of `process`, and with a second stack that is freed when the thread is, however that ends.
pub(crate) fn spawn_with(
    name: &str,
    role: Role,
    process: Option<Arc<Process>>,
    program_stack: Option<ThreadStack>,
    f: impl FnOnce() + Send + 'static,
) -> Result<Arc<Thread>, SpawnError> {
    spawn_boxed(name, role, process, program_stack, Box::new(f))
}

#[inline(never)]
fn spawn_boxed(
    name: &str,
    role: Role,
    process: Option<Arc<Process>>,
    program_stack: Option<ThreadStack>,
    f: Box<dyn FnOnce() + Send>,
) -> Result<Arc<Thread>, SpawnError> {
    let stack = KernelStack::new().ok_or(SpawnError::OutOfMemory)?;
    let thread = Arc::new(Thread {
        process,
        _program_stack: program_stack,
        ..Thread::new(&mut SCHEDULER.lock(), name, role, Some(stack))
    });
    // SAFETY: nobody else has the thread yet.
    unsafe { *thread.entry.get() = Some(f) };
    // Before it runs, since its end takes it out again.
    if let Some(process) = &thread.process {
        process.add(&thread);
    }
    let mut scheduler = SCHEDULER.lock();
    scheduler.all.push(thread.clone());
    scheduler.make_ready(thread.clone(), false);
    Ok(thread)
}

extern "C" fn thread_start() -> ! {
    // SAFETY: whoever switched to this new thread holds the lock and left it for us to open.
    unsafe { SCHEDULER.force_unlock() };
    finish_switch();
    unmask_interrupts();
    // SAFETY: only the thread itself takes its entry.
    let entry = unsafe { (*current().entry.get()).take() };
    if let Some(entry) = entry {
        entry();
    }
    exit(Exit::Returned)
}

/// Ends the running thread.
#[cold]
#[inline(never)]
pub fn exit(how: Exit) -> ! {
    // What follows is not to be ended in its turn.
    with_current(|thread| thread.calls.fetch_add(1, Ordering::Relaxed));
    let thread = current();
    let dropped = thread.clone();
    if let Some(process) = &thread.process {
        process.remove(&thread, &how);
    }
    *thread.exit.lock() = Some(how);
    thread.exited.wake_all();
    drop(thread);
    let mut scheduler = SCHEDULER.lock();
    scheduler.all.retain(|other| !Arc::ptr_eq(other, &dropped));
    drop(dropped);
    switch_away(&mut scheduler);
    unreachable!("a dead thread was run");
}

/// The running thread.
///
/// # Panics
/// Before [`init`].
pub fn current() -> Arc<Thread> {
    try_current().expect("threads were started")
}

/// The running thread, if threads have been started.
pub fn try_current() -> Option<Arc<Thread>> {
    let current = core()?.current.get();
    // SAFETY: `core.current` holds a count of the running thread, which is the one that asks.
    unsafe {
        Arc::increment_strong_count(current);
        Some(Arc::from_raw(current))
    }
}

/// Asks the running thread, if threads have been started, without counting it.
#[inline(always)]
pub fn with_current<R>(f: impl FnOnce(&Thread) -> R) -> Option<R> {
    let current = core()?.current.get();
    // SAFETY: `core.current` holds a count of the running thread: the one that asks, which lives until it has the answer.
    Some(f(unsafe { &*current }))
}

/// A program is in the kernel: its thread, if told to end meanwhile, does when this drops. Calls may lie in calls.
///
/// Whatever programs call begins with one, unless it leaves nothing half done wherever it is left.
#[must_use = "the call is over when this drops"]
pub struct Call(
    // It counts for the thread that made it.
    PhantomData<*const ()>,
);

impl Call {
    /// Begins a call.
    #[inline(never)]
    pub fn enter() -> Self {
        if is_on_program_stack() && !interrupts_are_masked() {
            touch_at_least(match is_in_call() {
                false => CALL_DEPTH,
                true => DEPTH,
            });
        }
        with_current(|thread| thread.calls.fetch_add(1, Ordering::Relaxed));
        Self(PhantomData)
    }
}

impl Drop for Call {
    #[inline(never)]
    fn drop(&mut self) {
        with_current(|thread| thread.calls.fetch_sub(1, Ordering::Relaxed));
        if must_end_now() {
            exit(Exit::Stopped)
        }
    }
}

/// What [`touch_program_stack`] sees to.
const DEPTH: u64 = 16 << 10;

/// What a call finds present: as much as a kernel thread has, and at its end, what is touched there.
const CALL_DEPTH: u64 = layout::STACK_SIZE + DEPTH;

/// Makes the next 16 KiB of the stack present, where it is a program's and so may not be: to be called before a lock is
/// taken that resolving the stack's own fault would need, the maps' or the frames'. Where the stack ends before, the
/// guard page's fault ends the program, while it holds nothing. In a critical section it is too late, and done before.
///
/// In a [`Call`] they are present: it may hold the locks of a file system, and a fault that finds no frame has files
/// written back, which takes them.
#[inline(always)]
pub fn touch_program_stack() {
    if is_on_program_stack() && !interrupts_are_masked() {
        touch_at_least(DEPTH);
    }
}

#[inline(never)]
fn touch_at_least(depth: u64) {
    let end = stack_pointer();
    let start = end - depth;
    let touched = |thread: &Thread| {
        let [start, end] = &thread.touched;
        start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)
    };
    let touched = with_current(touched).unwrap_or(0..0);
    if touched.start <= start && end <= touched.end {
        return;
    }
    touch_stack(depth);
    // What lies between two ranges is a local variable's, and may be absent.
    let whole = match start <= touched.end && touched.start <= end {
        true => start.min(touched.start)..end.max(touched.end),
        false => start..end,
    };
    with_current(|thread| {
        thread.touched[0].store(whole.start, Ordering::Relaxed);
        thread.touched[1].store(whole.end, Ordering::Relaxed);
    });
}

fn is_in_call() -> bool {
    with_current(|thread| thread.calls.load(Ordering::Relaxed) > 0).unwrap_or(true)
}

/// Whether it is the kernel that runs: in a thread of its own, in a handler, in a critical section, or called by a program.
pub fn is_in_kernel() -> bool {
    interrupts_are_masked() || !is_on_program_stack() || is_in_call()
}

/// Whether the running thread is told to end, and may: it is in no call, nor in a handler, which a fault that waits for the
/// disk is.
fn must_end_now() -> bool {
    is_told_to_end() && is_on_program_stack()
}

#[inline(always)]
fn is_told_to_end() -> bool {
    with_current(|thread| {
        thread.must_end.load(Ordering::Relaxed) && thread.calls.load(Ordering::Relaxed) == 0
    })
    .unwrap_or(false)
}

/// At the end of a handler, which goes back to program code: ends the thread, if it is told to.
#[inline(always)]
pub fn end_if_told() {
    if is_told_to_end() {
        exit(Exit::Stopped)
    }
}

/// Whether the running thread was told to end: what takes long, and can be left, is left then.
pub fn is_to_end() -> bool {
    with_current(|thread| thread.must_end.load(Ordering::Relaxed)).unwrap_or(false)
}

/// Whether who runs may wait: a thread, not a handler or the holder of a spin lock, and not the idle thread.
pub fn may_wait() -> bool {
    !interrupts_are_masked() && core().is_some_and(|core| core.current.get() != core.idle.get())
}

/// Lets the others run first.
#[inline(never)]
pub fn yield_now() {
    let mut scheduler = SCHEDULER.lock();
    scheduler.ready.push(current());
    switch_away(&mut scheduler);
    drop(scheduler);
    // Ends the thread, if it is to end: there is a call in it.
    finish_switch();
}

/// Sleeps for `us` microseconds at least.
#[inline(never)]
pub fn sleep(us: u64) {
    touch_program_stack(); // the list of sleepers takes memory, under the scheduler's lock
    let deadline = timer::now() + timer::ticks_from_us(us);
    loop {
        let mut scheduler = SCHEDULER.lock();
        if must_end_now() {
            drop(scheduler);
            exit(Exit::Stopped)
        }
        scheduler.block(&current(), ptr::null(), Some(deadline));
        switch_away(&mut scheduler);
        drop(scheduler);
        finish_switch();
        if timer::now() >= deadline {
            return;
        }
    }
}

/// A number that no thread has or will have.
pub(crate) fn new_id() -> u64 {
    let mut scheduler = SCHEDULER.lock();
    scheduler.next_id += 1;
    scheduler.next_id - 1
}

/// The timer's interrupt: wakes who is due, and sees whether the slice is over.
pub fn on_timer() {
    let Some(core) = core() else { return };
    let mut scheduler = SCHEDULER.lock();
    let now = timer::now();
    scheduler.wake_sleepers(now);
    if now >= core.slice_end.get() && scheduler.ready.first.is_some() {
        core.must_switch.set(true);
        core.slice_end.set(now + scheduler.slice_ticks);
    }
    scheduler.arm_timer(core);
}

/// At the end of an interrupt: lets another thread run if the slice is over or the core was idle.
pub fn preempt_if_due() {
    let Some(core) = core() else { return };
    if !core.must_switch.get() {
        return;
    }
    let mut scheduler = SCHEDULER.lock();
    if core.current.get() != core.idle.get() {
        scheduler.ready.push(current());
    }
    switch_away(&mut scheduler);
    drop(scheduler);
    finish_switch();
}

/// Runs `f` with slices of `us` microseconds.
pub fn with_slice<R>(us: u64, f: impl FnOnce() -> R) -> R {
    let new = timer::ticks_from_us(us);
    let old = mem::replace(&mut SCHEDULER.lock().slice_ticks, new);
    let result = f();
    SCHEDULER.lock().slice_ticks = old;
    result
}

/// Switches from thread to thread since power-on.
pub fn switches() -> u64 {
    SCHEDULER.lock().switches
}

/// What `threads` shows of one.
pub struct Info {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// What its crash means.
    pub role: Role,
    /// `running`, `ready`, `waiting` or `asleep`.
    pub state: &'static str,
    /// How long it has run, in microseconds.
    pub run_us: u64,
}

/// All threads, by number.
pub fn list() -> Vec<Info> {
    let threads = SCHEDULER.lock().all.clone();
    let running = try_current();
    threads
        .iter()
        .map(|thread| {
            let is_running = running.as_ref().is_some_and(|r| Arc::ptr_eq(r, thread));
            let scheduler = SCHEDULER.lock();
            // SAFETY: `SCHEDULER` is locked.
            let wait = unsafe { *thread.wait.get() };
            drop(scheduler);
            Info {
                id: thread.id,
                name: thread.name.clone(),
                role: thread.role,
                state: match (is_running, wait.is_blocked, wait.queue.is_null()) {
                    (true, ..) => "running",
                    (_, false, _) => "ready",
                    (_, true, false) => "waiting",
                    (_, true, true) => "asleep",
                },
                run_us: timer::us_from_ticks(thread.ticks_run.load(Ordering::Relaxed)),
            }
        })
        .collect()
}
