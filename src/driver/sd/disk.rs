//! An SD card as a block device: a thread serves its requests, one after the other, as the bus wants it.
//!
//! ```text
//!  submit ---> queue ---> thread: command, sleep until the interrupt, next command ---> completed
//! ```
//!
//! Who submits a request goes on at once; a request fails only after all that `card.rs` tries.

use super::blocks::BLOCK_SIZE;
use super::card::{Card, CardError, Locked};
use super::register;
use crate::arch::aarch64::board::Line;
use crate::driver::led::Led;
use crate::driver::sdhci::port::Port;
use crate::driver::sdhci::{Method, Sdhci};
use crate::fs::block::{BlockDevice, BlockError, Operation, Properties, Refusal, Refused, Request};
use crate::interrupt::ListenError;
use crate::sync::{SpinLock, WaitQueue};
use crate::thread::{self, Role, SpawnError};
use alloc::string::String;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Requests that wait.
const QUEUE_SIZE: usize = 32;

/// Bytes of one request: an allocation unit of most cards. Longer ones would only keep the others waiting: at 20 MB/s
/// this one takes a fifth of a second already.
const MAX_REQUEST: usize = 4 << 20;

/// The most that one request erases: a card may take a quarter of a second for each few MiB.
const MAX_ERASE: u64 = 64 << 20;

/// How long the activity LED stays on after the last request.
const LED_US: u64 = 50_000;

/// A card that serves requests.
pub struct SdDisk {
    properties: Properties,
    queue: SpinLock<ArrayVec<Request, QUEUE_SIZE>>,
    has_work: WaitQueue,
    port: Arc<Port>,
    /// How blocks are moved, by its number.
    method: AtomicU8,
    served: AtomicU64,
    /// What there is to say of it: fixed when it was found.
    pub card: Description,
}

/// What there is to say of a card.
pub struct Description {
    name: [u8; 5],
    kind: &'static str,
    origin: (u8, u32, u32, u32),
    lines: u8,
    is_fast: bool,
    hz: u32,
    /// Why it is not written to.
    pub locked: Option<Locked>,
}

/// Why a card does not become a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SdDiskError {
    /// The card cannot be used.
    Card(CardError),
    /// There is no thread to serve it.
    Thread(SpawnError),
}

impl fmt::Display for SdDiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Card(error) => write!(f, "{error}"),
            Self::Thread(error) => write!(f, "{error}"),
        }
    }
}

/// As Linux and people write it: manufacturer in hexadecimal, and so on.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = core::str::from_utf8(&self.name).unwrap_or_default();
        let (manufacturer, serial, year, month) = self.origin;
        let speed = if self.is_fast { "high" } else { "default" };
        write!(
            f,
            "{name} ({}, manufacturer {manufacturer:#04x}, serial {serial:#010x}, {year}-{month:02}), {} bit{}, {speed} speed at {}.{} MHz",
            self.kind,
            self.lines,
            if self.lines == 1 { "" } else { "s" },
            self.hz / 1_000_000,
            self.hz / 100_000 % 10,
        )
    }
}

impl SdDisk {
    /// The card in `host`, with a thread that serves it.
    pub fn new(
        host: Sdhci,
        interrupt: Option<Line>,
        mut led: Option<Led>,
    ) -> Result<Arc<Self>, SdDiskError> {
        if let Some(Err(error @ (ListenError::NoController | ListenError::TooMany))) =
            interrupt.map(|line| host.listen(line))
        {
            log::warn!("SD host: {error}; it is looked at instead");
        }
        let port = host.port();
        let mut card = Card::start(host).map_err(SdDiskError::Card)?;
        let locked = card.locked();
        let disk = Arc::new(Self {
            properties: Properties {
                capacity: card.capacity().map_err(SdDiskError::Card)?,
                sector_size: BLOCK_SIZE as u32,
                max_request: MAX_REQUEST,
                is_read_only: locked.is_some(),
                has_flush: card.has_cache(),
                max_discard: if card.can_erase() { MAX_ERASE } else { 0 },
                max_write_zeroes: 0,
            },
            queue: SpinLock::new(ArrayVec::new()),
            has_work: WaitQueue::new(),
            port,
            method: AtomicU8::new(card.host.method() as u8),
            served: AtomicU64::new(0),
            card: Description {
                name: register::name(card.cid),
                kind: register::kind(card.csd),
                origin: register::origin(card.cid),
                lines: if card.bus.has_four_lines { 4 } else { 1 },
                is_fast: card.bus.is_fast,
                hz: card.hz,
                locked,
            },
        });
        let served = disk.clone();
        let serve = move || {
            loop {
                let mut request = served.next(&mut led);
                // The tests' wish; what cannot be was refused to them.
                card.host.set_method(served.method());
                let outcome = card.serve(&mut request);
                // Before whoever waits for it looks.
                served.served.fetch_add(1, Ordering::Relaxed);
                request.complete(outcome);
            }
        };
        thread::spawn("SD card", Role::Kernel, serve).map_err(SdDiskError::Thread)?;
        Ok(disk)
    }

    /// How blocks are moved.
    pub fn method(&self) -> Method {
        let number = self.method.load(Ordering::Relaxed);
        let mut all = Method::ALL.into_iter();
        all.find(|method| *method as u8 == number)
            .unwrap_or(Method::Pio)
    }

    /// From the next request on, moves blocks in this way, which must be the host's, or [`Method::Pio`].
    pub fn set_method(&self, method: Method) {
        self.method.store(method as u8, Ordering::Relaxed);
    }

    /// Interrupts of its host, where it has any.
    pub fn interrupts(&self) -> Option<u64> {
        self.port.has_interrupt().then(|| self.port.interrupts())
    }

    /// Whether every step waits for its interrupt, as a test may want it.
    pub fn set_always_sleeps(&self, always: bool) {
        self.port.set_always_sleeps(always);
    }

    /// Bytes of cache lines that were cleaned, and invalidated, for its transfers.
    pub fn maintained(&self) -> (u64, u64) {
        self.port.maintained()
    }

    /// Requests that were served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// The next request; the LED goes off where there is none for a while.
    fn next(&self, led: &mut Option<Led>) -> Request {
        let mut queue = self.queue.lock();
        while queue.is_empty() {
            let is_lit = led.as_ref().is_some_and(Led::is_lit);
            if !is_lit {
                queue = self.has_work.wait(queue);
                continue;
            }
            let (guard, has_timed_out) = self.has_work.wait_timeout(queue, LED_US);
            queue = guard;
            if has_timed_out && queue.is_empty() {
                drop(queue);
                if let Some(led) = led {
                    led.set(false);
                }
                queue = self.queue.lock();
            }
        }
        let request = queue.remove(0);
        drop(queue);
        if let Some(led) = led {
            led.set(true);
        }
        request
    }

    /// What its method and state are, in words.
    pub fn state(&self) -> String {
        let how = if self.port.has_interrupt() {
            "by interrupt"
        } else {
            "polled"
        };
        alloc::format!("{}, {}, {how}", self.card, self.method())
    }
}

impl BlockDevice for SdDisk {
    fn properties(&self) -> Properties {
        self.properties
    }

    fn submit(&self, request: Request) -> Result<(), Refused> {
        let refuse = |request, reason| Err(Refused { request, reason });
        if let Err(error) = request.check(&self.properties) {
            return refuse(request, Refusal::Invalid(error));
        }
        let moves = matches!(request.operation, Operation::Read | Operation::Write(_));
        if moves && request.len() > MAX_REQUEST as u64 {
            return refuse(request, Refusal::Invalid(BlockError::Unsupported));
        }
        let mut queue = self.queue.lock();
        match queue.try_push(request) {
            Ok(()) => {
                drop(queue);
                self.has_work.wake_one();
                Ok(())
            }
            Err(full) => {
                drop(queue);
                refuse(full.element(), Refusal::QueueFull)
            }
        }
    }

    fn poll(&self) {
        // The thread does all there is to do.
        thread::yield_now();
    }
}
