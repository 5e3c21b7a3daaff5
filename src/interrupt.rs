//! Interrupts: who is called for which.

use crate::arch::aarch64;
use crate::arch::aarch64::board::{Interrupt, Line};
use crate::arch::aarch64::interrupt_controller::InterruptController;
use crate::sync::SpinLock;
use crate::{selftest, thread};
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Sources this image listens to at most; there are a timer, a UART, and the disks.
const MAX_HANDLERS: usize = 48;

#[derive(Clone, Copy)]
struct Handler {
    interrupt: Interrupt,
    call: fn(usize),
    argument: usize,
}

struct State {
    controller: Option<InterruptController>,
    handlers: [Option<Handler>; MAX_HANDLERS],
}

impl State {
    /// The first handler of `interrupt` from place `from` on.
    fn handler(&self, interrupt: Interrupt, from: usize) -> Option<(usize, Handler)> {
        let mut places = self.handlers.iter().enumerate().skip(from);
        places.find_map(|(at, place)| {
            place
                .filter(|handler| handler.interrupt == interrupt)
                .map(|handler| (at, handler))
        })
    }
}

static STATE: SpinLock<State> = SpinLock::new(State {
    controller: None,
    handlers: [None; MAX_HANDLERS],
});

static TAKEN: AtomicU64 = AtomicU64::new(0);
static UNCLAIMED: AtomicU64 = AtomicU64::new(0);

/// Why an interrupt could not be listened to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenError {
    /// The machine's interrupt controller is not one we know.
    NoController,
    /// All places for handlers are taken.
    TooMany,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoController => "there is no interrupt controller",
            Self::TooMany => "too many handlers",
        })
    }
}

/// Takes the machine's controller into use, with every interrupt off.
pub fn init(controller: InterruptController) {
    STATE.lock().controller = Some(controller);
}

/// Calls `call(argument)` for each interrupt of `line` from now on, in a handler: it does not wait.
pub fn listen(line: Line, call: fn(usize), argument: usize) -> Result<(), ListenError> {
    let mut state = STATE.lock();
    let state = &mut *state;
    let controller = state.controller.as_mut().ok_or(ListenError::NoController)?;
    let place = state.handlers.iter_mut().find(|place| place.is_none());
    *place.ok_or(ListenError::TooMany)? = Some(Handler {
        interrupt: line.interrupt,
        call,
        argument,
    });
    controller.enable(line);
    Ok(())
}

/// Stops listening to `interrupt`.
pub fn ignore(interrupt: Interrupt) {
    let mut state = STATE.lock();
    if let Some(controller) = &mut state.controller {
        controller.disable(interrupt);
    }
    for place in &mut state.handlers {
        if place.is_some_and(|handler| handler.interrupt == interrupt) {
            *place = None;
        }
    }
}

/// The interrupt that [`raise`] makes pending.
pub fn software_interrupt() -> Option<Line> {
    let state = STATE.lock();
    Some(state.controller.as_ref()?.software_interrupt())
}

/// Makes the software interrupt pending, as a device would.
pub fn raise() {
    if let Some(controller) = &mut STATE.lock().controller {
        controller.raise();
    }
}

/// Handles what is pending. Called by the vector, with interrupts masked.
pub fn dispatch() {
    loop {
        let mut state = STATE.lock();
        let Some(interrupt) = state.controller.as_mut().and_then(|c| c.acknowledge()) else {
            return;
        };
        TAKEN.fetch_add(1, Ordering::Relaxed);
        let mut is_claimed = false;
        let mut from = 0;
        while let Some((at, handler)) = state.handler(interrupt, from) {
            // Open while it is handled: handlers listen to others, or no longer.
            drop(state);
            (handler.call)(handler.argument);
            is_claimed = true;
            from = at + 1;
            state = STATE.lock();
        }
        if let Some(controller) = &mut state.controller {
            if !is_claimed {
                // Left on, a level-triggered one would come again for ever.
                UNCLAIMED.fetch_add(1, Ordering::Relaxed);
                controller.disable(interrupt);
            }
            controller.end(interrupt);
        }
    }
}

/// Interrupts taken since power-on, and how many of them nobody listened to.
pub fn counts() -> (u64, u64) {
    (
        TAKEN.load(Ordering::Relaxed),
        UNCLAIMED.load(Ordering::Relaxed),
    )
}

/// Calls of the tests' handlers: one for each interrupt, and what they were told.
static CALLS: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicUsize = AtomicUsize::new(0);

fn count(argument: usize) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    TOLD.store(argument, Ordering::Relaxed);
}

/// The software interrupt, with nobody listening to it, nor one on its way.
fn quiet_line() -> Line {
    let line = software_interrupt().expect("an interrupt controller");
    listen(line, |_| (), 0).expect("a place for a handler");
    ignore(line.interrupt);
    CALLS.store(0, Ordering::Relaxed);
    TOLD.store(0, Ordering::Relaxed);
    line
}

/// Calls so far, once there are `expected`, or have not been for a while.
fn calls(expected: u64) -> u64 {
    for _ in 0..1_000_000 {
        if CALLS.load(Ordering::Relaxed) == expected {
            break;
        }
        core::hint::spin_loop();
    }
    CALLS.load(Ordering::Relaxed)
}

selftest!(fn raised_interrupt_is_delivered() "interrupts: one that is raised reaches its listener once, with its argument" {
    let line = quiet_line();
    listen(line, count, 42).expect("a place for a handler");
    for round in 1..=100 {
        raise();
        assert_eq!(calls(round), round);
        assert_eq!(TOLD.load(Ordering::Relaxed), 42);
    }
    ignore(line.interrupt);
});

selftest!(fn shared_interrupt_reaches_all() "interrupts: all who listen to one are called" {
    let line = quiet_line();
    listen(line, count, 1).expect("a place for a handler");
    listen(line, count, 2).expect("a place for a handler");
    raise();
    assert_eq!(calls(2), 2);
    ignore(line.interrupt);
});

selftest!(fn ignored_interrupt_stays_away() "interrupts: one that is ignored waits until somebody listens again" {
    let line = quiet_line();
    listen(line, count, 1).expect("a place for a handler");
    ignore(line.interrupt);
    raise();
    thread::sleep(1_000);
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    listen(line, count, 2).expect("a place for a handler");
    assert_eq!(calls(1), 1);
    assert_eq!(TOLD.load(Ordering::Relaxed), 2);
    ignore(line.interrupt);
});

selftest!(fn masked_interrupt_waits() "interrupts: none comes while they are masked, and none is lost" {
    let line = quiet_line();
    listen(line, count, 0).expect("a place for a handler");
    let state = aarch64::mask_interrupts();
    raise();
    for _ in 0..10_000 {
        core::hint::spin_loop();
    }
    let while_masked = CALLS.load(Ordering::Relaxed);
    aarch64::restore_interrupts(state);
    assert_eq!((while_masked, calls(1)), (0, 1));
    ignore(line.interrupt);
});
