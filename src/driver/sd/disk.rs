//! An SD card as a block device: a thread serves its requests, one after the other.
//!
//! ```text
//!  submit ---> queue ---> thread: blocks to and from the buffers, by programmed I/O ---> completed
//!                           '--- an error: three attempts, the card set up anew before the last
//! ```
//!
//! A write is complete once the card has programmed it. Cards have no cache that they would need to be told to empty, nor
//! a command for it: completion is all that can be known.
//!
//! Source: SD Specifications, Part 1, Physical Layer Simplified Specification, "SD Memory Card Functional Description".

use super::sd_card::{self, LongRegister, Response};
use super::sdhci::{BLOCK_SIZE, BusError, Data, Sdhci};
use crate::arch::aarch64::timer;
use crate::fs::block::{
    BlockDevice, BlockError, Buffer, Operation, Properties, Refusal, Refused, Request,
};
use crate::sync::{SpinLock, WaitQueue};
use crate::thread::{self, Role, SpawnError};
use alloc::boxed::Box;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::fmt;

/// Requests that wait.
const QUEUE_SIZE: usize = 32;

/// Bytes of one request: 2048 blocks.
const MAX_REQUEST: usize = 1 << 20;

/// How often a transfer is tried.
const ATTEMPTS: u32 = 3;

/// A card may take a second from its first question to its last answer about its voltage.
const START_LIMIT_US: u64 = 1_500_000;

/// The default speed of all cards.
const TRANSFER_HZ: u32 = 25_000_000;

// Commands by their names in the specification.
const GO_IDLE_STATE: u8 = 0;
const ALL_SEND_CID: u8 = 2;
const SEND_RELATIVE_ADDR: u8 = 3;
const SET_BUS_WIDTH: u8 = 6;
const SELECT_CARD: u8 = 7;
const SEND_IF_COND: u8 = 8;
const SEND_CSD: u8 = 9;
const SEND_STATUS: u8 = 13;
const SET_BLOCKLEN: u8 = 16;
const READ_SINGLE_BLOCK: u8 = 17;
const WRITE_BLOCK: u8 = 24;
const SD_SEND_OP_COND: u8 = 41;
const APP_CMD: u8 = 55;

/// Why there is no card to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CardError {
    /// Nothing answers: no card, or one that is none of ours.
    NoCard,
    /// Something on the bus went wrong.
    Bus(BusError),
    /// It does not run at 2.7 to 3.6 V.
    Voltage,
    /// It says of a command, by these bits, that it failed.
    Status(u32),
    /// It does not become ready in time.
    Slow,
    /// Its size has a form we do not know.
    Capacity,
}

impl fmt::Display for CardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCard => f.write_str("no card"),
            Self::Bus(error) => write!(f, "{error}"),
            Self::Voltage => f.write_str("the card does not take 3.3 V"),
            Self::Status(bits) => write!(f, "the card reports error bits {bits:#010x}"),
            Self::Slow => f.write_str("the card does not become ready"),
            Self::Capacity => f.write_str("the card's size has an unknown form"),
        }
    }
}

impl From<BusError> for CardError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

/// A card in a host.
struct Card {
    host: Sdhci,
    /// What the card calls itself on this bus.
    address: u32,
    /// Whether blocks are addressed by number, not by byte.
    has_block_addresses: bool,
    csd: LongRegister,
    cid: LongRegister,
}

impl Card {
    /// Finds out what card there is, if any.
    fn start(host: Sdhci) -> Result<Self, CardError> {
        let mut card = Self {
            host,
            address: 0,
            has_block_addresses: false,
            csd: LongRegister([0; 4]),
            cid: LongRegister([0; 4]),
        };
        card.set_up()?;
        Ok(card)
    }

    /// From whatever state to the transfer state.
    fn set_up(&mut self) -> Result<(), CardError> {
        self.host.reset()?;
        self.address = 0;
        self.host.command(GO_IDLE_STATE, 0, Response::None, None)?;
        self.negotiate_voltage()?;
        self.cid = self.host.command(ALL_SEND_CID, 0, Response::Long, None)?;
        let answer = self.short(SEND_RELATIVE_ADDR, 0)?;
        self.address = answer & 0xffff_0000;
        self.csd = self
            .host
            .command(SEND_CSD, self.address, Response::Long, None)?;
        self.host
            .command(SELECT_CARD, self.address, Response::ShortBusy, None)?;
        self.host.set_clock(TRANSFER_HZ)?;
        const FOUR_LINES: u32 = 0b10;
        self.application_command(SET_BUS_WIDTH, FOUR_LINES, Response::Short)?;
        self.host.use_four_bits();
        if !self.has_block_addresses {
            self.checked(SET_BLOCKLEN, BLOCK_SIZE as u32)?;
        }
        Ok(())
    }

    fn negotiate_voltage(&mut self) -> Result<(), CardError> {
        /// 2.7 to 3.6 V, and a pattern that comes back.
        const CONDITION: u32 = 0x1aa;
        const VOLTAGES: u32 = 0x00ff_8000;
        const HIGH_CAPACITY: u32 = 1 << 30;
        const IS_READY: u32 = 1 << 31;
        let is_version_2 = match self.short(SEND_IF_COND, CONDITION) {
            Ok(answer) if answer & 0xfff == CONDITION => true,
            Ok(_) => return Err(CardError::Voltage),
            // Cards of version 1 do not know the command.
            Err(CardError::Bus(BusError::NoAnswer(_))) => false,
            Err(error) => return Err(error),
        };
        let wanted = VOLTAGES | if is_version_2 { HIGH_CAPACITY } else { 0 };
        let limit = timer::now() + timer::ticks_from_us(START_LIMIT_US);
        loop {
            let answer = self.application_command(SD_SEND_OP_COND, wanted, Response::Plain);
            let conditions = match answer {
                Ok(LongRegister([conditions, ..])) => conditions,
                Err(CardError::Bus(BusError::NoAnswer(_))) => return Err(CardError::NoCard),
                Err(error) => return Err(error),
            };
            if conditions & IS_READY != 0 {
                self.has_block_addresses = conditions & HIGH_CAPACITY != 0;
                return Ok(());
            }
            if timer::now() > limit {
                return Err(CardError::Slow);
            }
            thread::sleep(1_000);
        }
    }

    /// A command with a short answer.
    fn short(&mut self, index: u8, argument: u32) -> Result<u32, CardError> {
        let LongRegister([answer, ..]) =
            self.host.command(index, argument, Response::Short, None)?;
        Ok(answer)
    }

    /// A command that the card answers with its status.
    fn checked(&mut self, index: u8, argument: u32) -> Result<u32, CardError> {
        let status = self.short(index, argument)?;
        match status & sd_card::STATUS_ERRORS {
            0 => Ok(status),
            errors => Err(CardError::Status(errors)),
        }
    }

    fn application_command(
        &mut self,
        index: u8,
        argument: u32,
        response: Response,
    ) -> Result<LongRegister, CardError> {
        // Its status may still tell of an unknown command before: what counts is the answer to the next.
        self.short(APP_CMD, self.address)?;
        Ok(self.host.command(index, argument, response, None)?)
    }

    /// Transfers blocks from `offset` on, and waits until the card is done with them.
    fn transfer(&mut self, offset: u64, data: Data<'_>) -> Result<(), CardError> {
        let block = (offset / BLOCK_SIZE as u64) as u32;
        let argument = if self.has_block_addresses {
            block
        } else {
            offset as u32
        };
        let (single, count) = match data {
            Data::Read(_, count) => (READ_SINGLE_BLOCK, count),
            Data::Write(_, count) => (WRITE_BLOCK, count),
        };
        // The commands for many blocks have the next numbers.
        let index = single + u8::from(count > 1);
        let LongRegister([status, ..]) =
            self.host
                .command(index, argument, Response::Short, Some(data))?;
        if status & sd_card::STATUS_ERRORS != 0 {
            return Err(CardError::Status(status & sd_card::STATUS_ERRORS));
        }
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<(), CardError> {
        let limit = timer::now() + timer::ticks_from_us(START_LIMIT_US);
        loop {
            let now = timer::now();
            if sd_card::is_ready(self.checked(SEND_STATUS, self.address)?) {
                return Ok(());
            }
            if now > limit {
                return Err(CardError::Slow);
            }
            thread::yield_now();
        }
    }

    /// Does what `request` asks for.
    fn serve(&mut self, request: &mut Request) -> Result<(), CardError> {
        let count = (request.len() / BLOCK_SIZE as u64) as u16;
        let mut place = Place::default();
        match request.operation {
            _ if count == 0 => Ok(()),
            Operation::Read => {
                let buffers = &mut request.buffers;
                let mut take = |block: &[u8; BLOCK_SIZE]| {
                    if let Some((buffer, at)) = place.next(buffers) {
                        buffer.copy_in(at, block);
                    }
                };
                self.transfer(request.offset, Data::Read(&mut take, count))
            }
            Operation::Write(_) => {
                let buffers = &mut request.buffers;
                let mut give = |block: &mut [u8; BLOCK_SIZE]| {
                    if let Some((buffer, at)) = place.next(buffers) {
                        buffer.copy_out(at, block);
                    }
                };
                self.transfer(request.offset, Data::Write(&mut give, count))
            }
            // `check` lets no others pass.
            Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. } => Ok(()),
        }
    }

    /// As `serve`, but does not give up at once.
    fn serve_with_patience(&mut self, request: &mut Request) -> Result<(), CardError> {
        let mut outcome = Ok(());
        for attempt in 1..=ATTEMPTS {
            outcome = if attempt == ATTEMPTS {
                self.set_up()
            } else {
                Ok(())
            };
            outcome = outcome.and_then(|()| self.serve(request));
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) => log::warn!(
                    "SD card, byte {}, attempt {attempt}: {error}",
                    request.offset
                ),
            }
        }
        outcome
    }
}

/// Where in a request's buffers the next block goes or comes from.
#[derive(Default)]
struct Place {
    buffer: usize,
    at: usize,
}

impl Place {
    fn next<'a>(
        &mut self,
        buffers: &'a mut [Box<dyn Buffer>],
    ) -> Option<(&'a mut dyn Buffer, usize)> {
        while buffers.get(self.buffer)?.len() <= self.at {
            self.buffer += 1;
            self.at = 0;
        }
        let at = self.at;
        self.at += BLOCK_SIZE;
        Some((buffers.get_mut(self.buffer)?.as_mut(), at))
    }
}

/// A card that serves requests.
pub struct SdDisk {
    properties: Properties,
    queue: SpinLock<ArrayVec<Request, QUEUE_SIZE>>,
    has_work: WaitQueue,
    name: [u8; 5],
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

impl SdDisk {
    /// The card in `host`, with a thread that serves it.
    pub fn new(host: Sdhci) -> Result<Arc<Self>, SdDiskError> {
        let mut card = Card::start(host).map_err(SdDiskError::Card)?;
        let capacity = sd_card::capacity(card.csd).ok_or(SdDiskError::Card(CardError::Capacity))?;
        let disk = Arc::new(Self {
            properties: Properties {
                capacity,
                sector_size: BLOCK_SIZE as u32,
                max_request: MAX_REQUEST,
                is_read_only: sd_card::is_write_protected(card.csd),
                has_flush: false,
                has_discard: false,
                has_write_zeroes: false,
            },
            queue: SpinLock::new(ArrayVec::new()),
            has_work: WaitQueue::new(),
            name: sd_card::name(card.cid),
        });
        let served = disk.clone();
        let serve = move || {
            loop {
                let mut request = served.next();
                let outcome = card.serve_with_patience(&mut request);
                let offset = request.offset;
                request.complete(outcome.map_err(|error| match error {
                    CardError::Slow | CardError::Bus(BusError::Stuck(_)) => {
                        BlockError::TimedOut { offset }
                    }
                    CardError::NoCard => BlockError::Removed,
                    _ => BlockError::Device { offset },
                }));
            }
        };
        thread::spawn("SD card", Role::Kernel, serve).map_err(SdDiskError::Thread)?;
        Ok(disk)
    }

    /// What the card calls itself.
    pub fn name(&self) -> &str {
        core::str::from_utf8(&self.name).unwrap_or_default()
    }

    fn next(&self) -> Request {
        let mut queue = self.queue.lock();
        while queue.is_empty() {
            queue = self.has_work.wait(queue);
        }
        queue.remove(0)
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
        if request.len() > MAX_REQUEST as u64 {
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
