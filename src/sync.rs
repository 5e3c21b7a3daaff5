//! Locks.
//!
//! # Lock order
//!
//! A lock may be taken while one that stands further up is held, never the other way round.
//!
//! | Lock | Kind | Protects |
//! | --- | --- | --- |
//! | mounts | [`Mutex`] | what is mounted where, against other changes of that |
//! | console line | [`Mutex`] | lines of output against each other |
//! | pins of a slice | [`Mutex`] | which of its bytes stay in memory |
//! | a file's size | [`Mutex`] | it, against other changes; transfers and the file system are waited for with it held |
//! | ends of files | [`Mutex`] | that a cached file is closed once, and before its file system is unmounted |
//! | a volume | [`Mutex`] | a file system's metadata; transfers are waited for with it held |
//! | a wait's own lock | [`SpinLock`] | what a [`WaitQueue`] is about: an exit status, a mutex's bit, received bytes |
//! | foreground | [`SpinLock`] | which program Ctrl-C ends |
//! | a program | [`SpinLock`] | its status, its threads, what it has |
//! | table of files | [`SpinLock`] | which files are cached |
//! | maps | [`SpinLock`] | all maps and the low half's tables; a mapped file's lookup is called with it held |
//! | a cached file | [`SpinLock`] | its size, its pages and what they hold |
//! | ring of chunks | [`SpinLock`] | the order in which pages are evicted |
//! | pressure | [`SpinLock`] | whether the writer thread is to look at once |
//! | scheduler | [`SpinLock`] | ready threads, sleepers, all wait queues |
//! | kernel map | [`SpinLock`] | the tables of the high half |
//! | heap | [`SpinLock`] | the slabs; by a lock of its own, which no other is taken with, what is kept |
//! | frames | [`SpinLock`] | who owns which frame |
//!
//! # Kinds
//!
//! [`SpinLock`] protects what a handler or another core may touch: it masks interrupts while it is held, so a holder
//! is never preempted. Nothing waits, faults or does I/O under it. [`WaitQueue`] is where a thread sleeps until what
//! such a lock protects has changed; [`Mutex`] is made of the two and may be held over I/O.

use crate::arch;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

#[cfg(target_os = "none")]
use arch::aarch64 as machine;
#[cfg(not(target_os = "none"))]
use arch::host as machine;

#[cfg(target_os = "none")]
pub use crate::thread::WaitQueue;

#[cfg(not(target_os = "none"))]
pub use arch::host::WaitQueue;

/// A lock held for a few hundred instructions at most, with interrupts masked.
pub struct SpinLock<T>(spin::mutex::SpinMutex<T>);

/// Holds a [`SpinLock`].
#[must_use = "the lock opens when the guard drops"]
pub struct SpinLockGuard<'a, T> {
    // Dropped first: the lock must be open before an interrupt can come.
    inner: ManuallyDrop<spin::mutex::SpinMutexGuard<'a, T>>,
    lock: &'a SpinLock<T>,
    interrupts: machine::InterruptState,
}

impl<T> SpinLock<T> {
    /// An open lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(spin::mutex::SpinMutex::new(value))
    }

    /// Masks interrupts and takes the lock, waiting for another core if need be.
    #[inline]
    pub fn lock(&self) -> SpinLockGuard<'_, T> {
        let interrupts = machine::mask_interrupts();
        SpinLockGuard {
            inner: ManuallyDrop::new(self.0.lock()),
            lock: self,
            interrupts,
        }
    }

    /// As [`lock`](Self::lock), for those who run with interrupts masked and keep them so until the guard has dropped:
    /// handlers, and holders of another lock.
    #[inline(always)]
    pub fn lock_masked(&self) -> spin::mutex::SpinMutexGuard<'_, T> {
        debug_assert!(machine::interrupts_are_masked());
        self.0.lock()
    }

    /// Whether somebody holds it now; by the time the caller looks at the answer, it may be different.
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }

    /// As [`lock`](Self::lock), but `None` where it would wait. For the crash report, which must not hang.
    pub fn try_lock(&self) -> Option<SpinLockGuard<'_, T>> {
        let interrupts = machine::mask_interrupts();
        match self.0.try_lock() {
            Some(guard) => Some(SpinLockGuard {
                inner: ManuallyDrop::new(guard),
                lock: self,
                interrupts,
            }),
            None => {
                machine::restore_interrupts(interrupts);
                None
            }
        }
    }
}

impl<T> SpinLock<T> {
    /// Locks again after [`SpinLockGuard::unlock_keeping_interrupts_masked`], whose result it takes.
    #[cfg(target_os = "none")]
    pub(crate) fn relock(&self, interrupts: machine::InterruptState) -> SpinLockGuard<'_, T> {
        SpinLockGuard {
            inner: ManuallyDrop::new(self.0.lock()),
            lock: self,
            interrupts,
        }
    }

    /// Opens the lock without its guard.
    ///
    /// # Safety
    /// The guard was left to this core by another thread, and will never be dropped.
    #[cfg(target_os = "none")]
    pub(crate) unsafe fn force_unlock(&self) {
        // SAFETY: as promised.
        unsafe { self.0.force_unlock() };
    }
}

impl<'a, T> SpinLockGuard<'a, T> {
    /// The lock this guard holds.
    pub fn lock(&self) -> &'a SpinLock<T> {
        self.lock
    }

    /// Opens the lock, but leaves interrupts masked; returns how they were before.
    #[cfg(target_os = "none")]
    pub(crate) fn unlock_keeping_interrupts_masked(self) -> machine::InterruptState {
        let mut guard = ManuallyDrop::new(self);
        // SAFETY: `inner` is not used again: the guard itself is never dropped.
        unsafe { ManuallyDrop::drop(&mut guard.inner) };
        guard.interrupts
    }
}

impl<T> Deref for SpinLockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for SpinLockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Drop for SpinLockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `inner` is not used again.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
        machine::restore_interrupts(self.interrupts);
    }
}

/// A lock that a thread may hold while it waits for a device. Never taken by a handler.
pub struct Mutex<T> {
    is_locked: SpinLock<bool>,
    unlocked: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: `is_locked` lets one guard exist at a time, so the value is only ever reached by one thread.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above; sharing the mutex hands the value from thread to thread, hence `T: Send`.
unsafe impl<T: Send> Sync for Mutex<T> {}

/// Holds a [`Mutex`].
#[must_use = "the mutex opens when the guard drops"]
pub struct MutexGuard<'a, T>(
    &'a Mutex<T>,
    // It may be shared and sent as the `&mut T` it stands for, not as the mutex.
    PhantomData<&'a mut T>,
);

impl<T> Mutex<T> {
    /// An open mutex around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            is_locked: SpinLock::new(false),
            unlocked: WaitQueue::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the mutex; the thread sleeps while another holds it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let mut is_locked = self.is_locked.lock();
        while *is_locked {
            is_locked = self.unlocked.wait(is_locked);
        }
        *is_locked = true;
        MutexGuard(self, PhantomData)
    }

    /// Takes the mutex if nobody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let mut is_locked = self.is_locked.lock();
        if *is_locked {
            return None;
        }
        *is_locked = true;
        Some(MutexGuard(self, PhantomData))
    }

    fn unlock(&self) {
        *self.is_locked.lock() = false;
        self.unlocked.wake_one();
    }

    /// The value, which nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard holds the mutex, so nothing else refers to the value.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the mutex, so nothing else refers to the value.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::{Mutex, SpinLock};

    #[test]
    fn a_held_spin_lock_is_not_taken_twice() {
        let lock = SpinLock::new(1);
        let guard = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert_eq!(*lock.lock(), 1);
    }

    #[test]
    fn a_mutex_lets_one_thread_in_at_a_time() {
        extern crate std;
        let counter = std::sync::Arc::new(Mutex::new(0));
        let threads = [(); 4].map(|()| {
            let counter = counter.clone();
            std::thread::spawn(move || {
                for _ in 0..if cfg!(miri) { 20 } else { 5000 } {
                    *counter.lock() += 1;
                }
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*counter.lock(), if cfg!(miri) { 80 } else { 20000 });
    }
}
