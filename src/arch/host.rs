//! The PC in the place of the processor: no interrupts to mask, nobody else to run.

/// Stands for the interrupt mask before [`mask_interrupts`].
#[derive(Clone, Copy)]
pub struct InterruptState(());

/// Does nothing: a PC's test has no interrupts.
pub fn mask_interrupts() -> InterruptState {
    InterruptState(())
}

/// There are none.
pub fn interrupts_are_masked() -> bool {
    true
}

/// Does nothing.
pub fn restore_interrupts(_: InterruptState) {}

/// Threads that wait on a PC spin: every wait ends at once, as a spurious wake-up.
#[derive(Default)]
pub struct WaitQueue(());

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self(())
    }

    /// Lets go of `guard`, lets others run, and locks again.
    pub fn wait<'a, T>(
        &self,
        guard: crate::sync::SpinLockGuard<'a, T>,
    ) -> crate::sync::SpinLockGuard<'a, T> {
        let lock = guard.lock();
        drop(guard);
        core::hint::spin_loop();
        lock.lock()
    }

    /// Does nothing: whoever waits looks again by itself.
    pub fn wake_one(&self) {}

    /// Does nothing: whoever waits looks again by itself.
    pub fn wake_all(&self) {}
}

/// Whether touching memory there resolves no fault of ours: a PC's own kernel sees to it.
pub fn cannot_fault(_: *const u8) -> bool {
    true
}

/// Pages, zeroed and copied as a PC does it.
pub mod page {
    use crate::mm::addr::PAGE_SIZE;

    /// Zeroes `count` pages from `start` on.
    ///
    /// # Safety
    /// `start` is a multiple of the page, and what lies there is the caller's to write.
    pub unsafe fn zero(start: *mut u8, count: usize) {
        // SAFETY: as promised.
        unsafe { start.write_bytes(0, count * PAGE_SIZE) };
    }

    /// Copies one page.
    ///
    /// # Safety
    /// `from` can be read, and `to` is the caller's to write; both are multiples of the page.
    pub unsafe fn copy(to: *mut u8, from: *const u8) {
        // SAFETY: as promised; two pages do not overlap.
        unsafe { to.copy_from_nonoverlapping(from, PAGE_SIZE) };
    }
}

/// Checksums, which the PC leaves to whoever asks.
pub mod crc {
    /// It does not know how.
    pub fn crc32c(_: u32, _: &[u8]) -> Option<u32> {
        None
    }
}
