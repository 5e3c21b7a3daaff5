//! A program that runs: its threads, what it has, and how it ends.
//!
//! A program ends in one of four ways: its status is set, once, and all its threads are told to end, by whoever ends it or,
//! where `main` returns, by whoever waits for it.
//!
//! ```text
//! exit(status) ──.
//! a crash ───────┼──> stop(status): status set, each thread told ──> every thread ends at its next return to
//! interrupt() ───'        and woken                                  program code, outside of kernel calls
//! main returns ──> status set ──> finish(): the other threads told        │
//!                                           what it had is given back <── all joined
//! ```
//!
//! A thread in the middle of a call of the kernel ([`Call`]) finishes it first: it may hold what others need. Nothing is
//! unwound: destructors of what the threads had do not run. So what the kernel keeps for a program is known here as well:
//! open files and holds of pinned bytes as `Resource`s, maps by their holder, stacks. Memory from the heap is not: a
//! program that is stopped, not one that returns, loses what it had allocated.

use super::{PROGRAMS, Program, on_program_stack};
use crate::command::Status;
use crate::mm::{self, ProgramStack};
use crate::println;
use crate::sync::SpinLock;
use crate::thread::{self, Call, Exit, Role, SpawnError, Thread};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;

/// Exit status of a program that crashed, as a shell says of one that signal 11 ended.
pub const CRASHED: Status = 128 + 11;

/// Exit status of a program that [`interrupt`] ended, as a shell says of one that signal 2 ended.
pub const INTERRUPTED: Status = 128 + 2;

/// Bytes of a thread's stack at most: it is a map, and takes the memory of what has been touched.
const STACK_SIZE: u64 = 8 << 20;

/// What a program has of the kernel's, and gives back when it ends, whatever became of its destructors.
pub(crate) trait Resource: Send + Sync {
    /// Gives it back; the second time does nothing.
    fn release(&self);
}

/// A program that runs.
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its number, among those of threads: its maps belong to it.
    pub id: u64,
    /// The words after its name.
    pub arguments: Vec<String>,
    state: SpinLock<State>,
}

struct State {
    /// Set once it is to end.
    status: Option<Status>,
    threads: Vec<Arc<Thread>>,
    /// Open files and the like.
    /// By address. Not in one piece of memory: that grows with the lock held.
    resources: BTreeMap<usize, Arc<dyn Resource>>,
    /// Stacks of threads that ended while others ran on, which may be in a call with a pointer to them.
    stacks: Vec<ProgramStack>,
    /// Nothing of it runs any more.
    is_over: bool,
}

/// The program that Ctrl-C ends.
static FOREGROUND: SpinLock<Option<Arc<Process>>> = SpinLock::new(None);

/// Ends the program that runs in the foreground, with all its threads: whether there was one. It ends soon, not yet when
/// this returns. May be called by a handler.
pub fn interrupt() -> bool {
    match &*FOREGROUND.lock() {
        Some(process) => {
            process.stop(INTERRUPTED);
            true
        }
        None => false,
    }
}

/// Ends the running program, with all its threads.
pub fn exit(status: Status) -> ! {
    if let Some(process) = current() {
        process.stop(status);
    }
    thread::exit(Exit::Stopped)
}

/// The program that the running thread is part of.
pub(crate) fn current() -> Option<Arc<Process>> {
    thread::with_current(|thread| thread.process.clone()).flatten()
}

/// A program that was started.
pub struct Running {
    main: Arc<Thread>,
    process: Arc<Process>,
}

/// Starts `program` with `arguments`.
pub fn start(program: &'static Program, arguments: Vec<String>) -> Result<Running, SpawnError> {
    let _call = Call::enter();
    let process = Arc::new(Process {
        name: program.name.into(),
        id: thread::new_id(),
        arguments,
        state: SpinLock::new(State {
            status: None,
            threads: Vec::new(),
            resources: BTreeMap::new(),
            stacks: Vec::new(),
            is_over: false,
        }),
    });
    let main = process.spawn(program.name, {
        let process = process.clone();
        Box::new(move || {
            let status = (program.main)(&process.arguments);
            let _call = Call::enter();
            // Not `stop`, which tells this thread to end as well: at the end of this call, without dropping what it has.
            // Whoever waits for the program tells the others.
            process.state.lock().status.get_or_insert(status);
        })
    })?;
    Ok(Running { main, process })
}

impl Running {
    /// Waits for its end; its exit status.
    pub fn wait(self) -> Status {
        self.main.join();
        // A program that waits may be told to end, but not in the middle of this.
        let _call = Call::enter();
        self.process.finish()
    }

    /// As [`wait`](Self::wait); meanwhile it is the one that [`interrupt`] ends.
    pub fn wait_in_foreground(self) -> Status {
        let before = FOREGROUND.lock().replace(self.process.clone());
        let status = self.wait();
        let ours = mem::replace(&mut *FOREGROUND.lock(), before);
        drop(ours);
        status
    }

    /// Ends it, as [`interrupt`] does.
    pub fn interrupt(&self) {
        self.process.stop(INTERRUPTED);
    }
}

impl Process {
    /// Another thread of it, which runs `f` on SP_EL0.
    #[inline(never)]
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        f: Box<dyn FnOnce() + Send>,
    ) -> Result<Arc<Thread>, SpawnError> {
        let stack = ProgramStack::new(STACK_SIZE).map_err(|_| SpawnError::OutOfMemory)?;
        let end = stack.end().0;
        let stack = ThreadStack {
            stack: Some(stack),
            process: Some(self.clone()),
        };
        let process = Some(self.clone());
        thread::spawn_with(name, Role::Program, process, Some(stack), move || {
            on_program_stack(end, f)
        })
    }

    /// Sets its status, unless it has one, and tells all its threads to end.
    pub(crate) fn stop(&self, status: Status) {
        let mut state = self.state.lock();
        state.status.get_or_insert(status);
        state.threads.iter().for_each(Thread::end_soon);
    }

    /// A new thread, which does not run yet.
    pub(crate) fn add(&self, thread: &Arc<Thread>) {
        let mut state = self.state.lock();
        state.threads.push(thread.clone());
        if state.status.is_some() {
            thread.end_soon();
        }
    }

    /// A thread that ends.
    pub(crate) fn remove(&self, thread: &Arc<Thread>, how: &Exit) {
        if matches!(how, Exit::Crashed(_)) {
            self.stop(CRASHED);
        }
        let mut state = self.state.lock();
        let at = state.threads.iter().position(|t| Arc::ptr_eq(t, thread));
        let ours = at.map(|at| state.threads.swap_remove(at));
        drop(state);
        drop(ours);
    }

    /// Once main has ended: waits for the others, and gives back what all of them had.
    fn finish(&self) -> Status {
        self.stop(CRASHED); // main has ended without a status only if it crashed, and then it has one
        loop {
            let thread = self.state.lock().threads.first().cloned();
            let Some(thread) = thread else { break };
            thread.join();
            // It takes itself out before it wakes us.
        }
        let (resources, stacks) = {
            let mut state = self.state.lock();
            state.is_over = true;
            (
                mem::take(&mut state.resources),
                mem::take(&mut state.stacks),
            )
        };
        for resource in resources.into_values() {
            resource.release();
        }
        drop(stacks);
        if let Err(error) = mm::maps().remove_holder(self.id) {
            println!("run: {}: maps remain: {error}", self.name);
        }
        self.state.lock().status.unwrap_or(CRASHED)
    }
}

/// A thread's stack for SP_EL0, freed on drop; but not before all threads of its program have ended, if that is to end:
/// they may be in calls with pointers to each other's stacks.
pub(crate) struct ThreadStack {
    stack: Option<ProgramStack>,
    process: Option<Arc<Process>>,
}

impl ThreadStack {
    /// Of a thread that belongs to no program.
    pub(crate) fn new(stack: ProgramStack) -> Self {
        Self {
            stack: Some(stack),
            process: None,
        }
    }
}

impl Drop for ThreadStack {
    fn drop(&mut self) {
        if let Some(process) = &self.process
            && let Some(stack) = self.stack.take()
        {
            let mut state = process.state.lock();
            if state.status.is_some() && !state.is_over {
                state.stacks.push(stack);
            } else {
                drop(state);
                drop(stack);
            }
        }
    }
}

/// A resource of the running program, or of nobody's: released when this drops, or when the program ends.
pub(crate) struct Owned {
    resource: Arc<dyn Resource>,
    owner: Option<Weak<Process>>,
}

impl Owned {
    /// Keeps `resource` for the running program.
    pub(crate) fn new(resource: Arc<dyn Resource>) -> Self {
        let owner = current().map(|process| {
            let mut state = process.state.lock();
            state.resources.insert(address(&resource), resource.clone());
            drop(state);
            Arc::downgrade(&process)
        });
        Self { resource, owner }
    }
}

/// Of no other as long as it is there.
fn address(resource: &Arc<dyn Resource>) -> usize {
    Arc::as_ptr(resource).addr()
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _call = Call::enter();
        if let Some(process) = self.owner.as_ref().and_then(Weak::upgrade) {
            let mut state = process.state.lock();
            let ours = state.resources.remove(&address(&self.resource));
            drop(state);
            drop(ours);
        }
        self.resource.release();
    }
}

/// The program of that name.
pub fn find(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.name == name)
}
