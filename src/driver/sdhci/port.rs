//! A controller's registers, and waiting for what they say.
//!
//! ```text
//!  thread                            handler
//!  lock; status? no: signal on  .--> lock; our bits? no: somebody else's interrupt
//!  sleep (lock open) -----------'    signal off; lock open; wake
//!  status again
//! ```
//!
//! The line is level-triggered and may be shared: a handler that leaves the signal on would be called for ever. Where no
//! interrupts come although the status says that they should, the thread looks by itself from then on.

use super::registers::{Registers, Status};
use crate::arch::aarch64::board::Line;
use crate::arch::aarch64::timer;
use crate::interrupt::{self, ListenError};
use crate::mm::addr::VirtAddr;
use crate::sync::{SpinLock, WaitQueue};
use crate::thread;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use tock_registers::interfaces::{Readable, Writeable};

/// How long the core is kept before others may run while the controller works.
const SPIN_US: u64 = 20;

/// How long an interrupt is believed to be on its way.
const BELIEF_US: u64 = 50_000;

/// So often a bit came without its interrupt before nobody waits for one any more.
const MAX_MISSED: u32 = 3;

/// All ports, for their interrupts: the handler gets the index.
static PORTS: SpinLock<Vec<Arc<Port>>> = SpinLock::new(Vec::new());

/// Registers, and who waits for them.
pub struct Port {
    registers: &'static Registers,
    has_interrupt: AtomicBool,
    interrupts: AtomicU64,
    missed: AtomicU32,
    /// Bytes of cache lines.
    cleaned: AtomicU64,
    invalidated: AtomicU64,
    /// What has to pass between two writes, in microseconds.
    gap_us: AtomicU64,
    /// The self-test's wish: an interrupt is waited for even where the status says enough.
    always_sleeps: AtomicBool,
    waiting: SpinLock<()>,
    has_changed: WaitQueue,
}

// SAFETY: of the registers, those that the handler uses are reached with `waiting` locked; the rest by whoever has the
// controller.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

impl Port {
    /// # Safety
    /// `base` is where a controller's registers are mapped, for good, and nobody else uses them.
    pub(super) unsafe fn new(base: VirtAddr) -> Arc<Self> {
        Arc::new(Self {
            // SAFETY: as promised.
            registers: unsafe { &*(base.0 as *const Registers) },
            has_interrupt: AtomicBool::new(false),
            interrupts: AtomicU64::new(0),
            missed: AtomicU32::new(0),
            cleaned: AtomicU64::new(0),
            invalidated: AtomicU64::new(0),
            gap_us: AtomicU64::new(0),
            always_sleeps: AtomicBool::new(false),
            waiting: SpinLock::new(()),
            has_changed: WaitQueue::new(),
        })
    }

    pub(super) fn registers(&self) -> &'static Registers {
        self.registers
    }

    /// Waits by interrupt from now on.
    pub(super) fn listen(self: &Arc<Self>, line: Line) -> Result<(), ListenError> {
        let index = {
            let mut ports = PORTS.lock();
            ports.push(self.clone());
            ports.len() - 1
        };
        interrupt::listen(line, on_interrupt, index)?;
        self.has_interrupt.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Interrupts that came.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Bytes of cache lines that were cleaned, and invalidated, for transfers.
    pub fn maintained(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.cleaned), load(&self.invalidated))
    }

    pub(super) fn count_maintenance(&self, cleaned: u64, invalidated: u64) {
        self.cleaned.fetch_add(cleaned, Ordering::Relaxed);
        self.invalidated.fetch_add(invalidated, Ordering::Relaxed);
    }

    /// Whether completion is told by interrupt.
    pub fn has_interrupt(&self) -> bool {
        self.has_interrupt.load(Ordering::Relaxed)
    }

    /// Whether an interrupt is waited for even where the status says enough.
    pub fn set_always_sleeps(&self, always: bool) {
        self.always_sleeps.store(always, Ordering::Relaxed);
    }

    pub(super) fn set_gap(&self, us: u64) {
        self.gap_us.store(us, Ordering::Relaxed);
    }

    /// Writes, and waits until the next write is not lost.
    pub(super) fn write(&self, write: impl FnOnce(&Registers)) {
        write(self.registers);
        self.keep_gap();
    }

    #[inline(never)]
    fn keep_gap(&self) {
        let gap_us = self.gap_us.load(Ordering::Relaxed);
        if gap_us > 0 {
            pause(gap_us);
        }
    }

    /// Waits for one of `bits` in the status, for so long; what of them is there.
    #[inline(never)]
    pub(super) fn wait_for(&self, bits: u32, limit_us: u64) -> Option<u32> {
        let start = timer::now();
        let limit = start + timer::ticks_from_us(limit_us);
        let patience = start + timer::ticks_from_us(SPIN_US);
        if self.always_sleeps.load(Ordering::Relaxed) && self.has_interrupt() && thread::may_wait()
        {
            self.sleep(bits, limit_us);
        }
        loop {
            // Looked at after the clock: whoever was away for long is not late for that.
            let now = timer::now();
            match self.registers.status.get() & bits {
                0 => {}
                found => return Some(found),
            }
            if now > limit {
                return None;
            }
            if now > patience && thread::may_wait() {
                if self.has_interrupt() {
                    self.sleep(bits, limit_us);
                } else {
                    thread::yield_now();
                }
            }
        }
    }

    #[inline(never)]
    fn sleep(&self, bits: u32, limit_us: u64) {
        let before = self.interrupts();
        let guard = self.waiting.lock();
        self.write(|registers| registers.signal_enable.set(bits));
        let (guard, has_timed_out) = self
            .has_changed
            .wait_timeout(guard, limit_us.min(BELIEF_US));
        self.write(|registers| registers.signal_enable.set(0));
        drop(guard);
        let is_there = self.registers.status.get() & bits != 0;
        if has_timed_out
            && is_there
            && before == self.interrupts()
            && self.missed.fetch_add(1, Ordering::Relaxed) + 1 == MAX_MISSED
        {
            log::warn!("SD host: its interrupts do not come; it is looked at instead");
            self.has_interrupt.store(false, Ordering::Relaxed);
        }
    }

    fn on_interrupt(&self) {
        let guard = self.waiting.lock();
        let signals = self.registers.signal_enable.get();
        if self.registers.status.get() & signals == 0 {
            return;
        }
        self.write(|registers| registers.signal_enable.set(0));
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        drop(guard);
        self.has_changed.wake_all();
    }
}

fn on_interrupt(index: usize) {
    let port = PORTS.lock().get(index).cloned();
    if let Some(port) = port {
        port.on_interrupt();
    }
}

/// Keeps the core for so long.
pub(super) fn pause(us: u64) {
    let deadline = timer::now() + timer::ticks_from_us(us);
    while timer::now() < deadline {
        core::hint::spin_loop();
    }
}

/// All bits that tell of an error.
pub(super) const ERRORS: u32 = 0xffff_0000 | Status::ERROR::SET.value;
