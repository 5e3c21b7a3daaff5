//! A program's threads: what `std::thread` has, by the same names.
//!
//! A crash of any thread ends the program, so a thread that was waited for has always returned: [`JoinHandle::join`] gives
//! what, not a `Result`.
//!
//! ```no_run
//! use pinfold::program::thread;
//!
//! # fn main() -> Result<(), thread::SpawnError> {
//! let words = ["a", "few", "words"];
//! let len = thread::scope(|scope| {
//!     let first = scope.spawn(|| words[0].len())?;
//!     let rest = scope.spawn(|| words[1..].iter().map(|word| word.len()).sum::<usize>())?;
//!     Ok::<_, thread::SpawnError>(first.join() + rest.join())
//! })?;
//! assert_eq!(len, 9);
//! # Ok(()) }
//! ```

pub use crate::thread::{SpawnError, yield_now};

use super::process;
use crate::sync::{SpinLock, WaitQueue};
use crate::thread::{self as kernel, Call};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::mem;
use core::time::Duration;

/// Lets the thread sleep at least so long.
pub fn sleep(duration: Duration) {
    kernel::sleep(duration.as_micros().try_into().unwrap_or(u64::MAX / 1000));
}

/// Where a thread leaves its result. The thread itself is not held: a handle that is lost costs nothing but this.
struct Packet<T> {
    result: SpinLock<Option<T>>,
    done: WaitQueue,
}

impl<T> Packet<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            result: SpinLock::new(None),
            done: WaitQueue::new(),
        })
    }

    fn put(&self, result: T) {
        *self.result.lock() = Some(result);
        self.done.wake_all();
    }

    fn wait(&self) -> T {
        let mut result = self.result.lock();
        loop {
            match result.take() {
                Some(value) => return value,
                // Where the other thread crashes, ours ends in this wait.
                None => result = self.done.wait(result),
            }
        }
    }
}

/// A thread that was started.
pub struct JoinHandle<T>(Arc<Packet<T>>);

impl<T> JoinHandle<T> {
    /// Waits until the thread has ended; what it returned.
    pub fn join(self) -> T {
        self.0.wait()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.result.lock().is_some()
    }
}

/// Starts a thread that runs `f`.
///
/// # Errors
/// There is no memory for its stacks.
///
/// # Panics
/// Where no program runs: the kernel has threads of its own.
pub fn spawn<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, SpawnError> {
    let _call = Call::enter();
    let packet = Packet::new();
    let ours = packet.clone();
    start(Box::new(move || ours.put(f())))?;
    Ok(JoinHandle(packet))
}

fn start(f: Box<dyn FnOnce() + Send>) -> Result<(), SpawnError> {
    let process = process::current().expect("a program runs");
    process.spawn(&process.name, f).map(drop)
}

/// Where threads may borrow from the one that starts them: they end before it goes on.
pub struct Scope<'scope, 'env: 'scope> {
    running: Arc<Count>,
    _scope: PhantomData<&'scope mut &'scope ()>,
    _env: PhantomData<&'env mut &'env ()>,
}

struct Count {
    threads: SpinLock<usize>,
    changed: WaitQueue,
}

/// Lets `f` start threads that borrow, and waits for all of them.
pub fn scope<'env, T>(f: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
    let scope = Scope {
        running: Arc::new(Count {
            threads: SpinLock::new(0),
            changed: WaitQueue::new(),
        }),
        _scope: PhantomData,
        _env: PhantomData,
    };
    let result = f(&scope);
    let mut threads = scope.running.threads.lock();
    while *threads > 0 {
        threads = scope.running.changed.wait(threads);
    }
    drop(threads);
    result
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a thread that runs `f`.
    ///
    /// # Errors
    /// There is no memory for its stacks.
    pub fn spawn<T: Send + 'scope>(
        &'scope self,
        f: impl FnOnce() -> T + Send + 'scope,
    ) -> Result<ScopedJoinHandle<'scope, T>, SpawnError> {
        let _call = Call::enter();
        let packet = Packet::new();
        let (ours, running) = (packet.clone(), self.running.clone());
        let body: Box<dyn FnOnce() + Send + 'scope> = Box::new(move || {
            ours.put(f());
            drop(ours);
            *running.threads.lock() -= 1;
            running.changed.wake_all();
        });
        // SAFETY: nothing of 'scope is used once `scope` has returned: it waits until the count is zero, which the thread
        // lowers after `f` and all it borrows are gone. Where the program ends meanwhile, `scope` never returns, and stacks
        // stay until every thread has ended.
        let body: Box<dyn FnOnce() + Send> = unsafe { mem::transmute(body) };
        *self.running.threads.lock() += 1;
        if let Err(error) = start(body) {
            *self.running.threads.lock() -= 1;
            return Err(error);
        }
        Ok(ScopedJoinHandle(packet, PhantomData))
    }
}

/// A thread of a [`Scope`].
pub struct ScopedJoinHandle<'scope, T>(Arc<Packet<T>>, PhantomData<&'scope ()>);

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits until the thread has ended; what it returned.
    pub fn join(self) -> T {
        self.0.wait()
    }
}
