//! A card in a host: found out about, read, written and erased; and what is done when something goes wrong.
//!
//! ```text
//!  request --> transfer --ok--> done
//!     ^           | damaged: once more; then anew, at default speed
//!     |           | no answer, no end: the lines are free again (the host), the card is set up anew
//!     '-----------'
//!                 | nobody answers, the slot is empty, or another card answers: gone
//!                 v
//!               Gone: every request fails with `Removed`, until the same card is back
//! ```
//!
//! A write is complete once the card has programmed it. Cards have no cache that they would need to be told to empty,
//! but for those of version 6 that say so (performance enhancement function); that one is turned on, and flushed.
//!
//! Source: Physical Layer Simplified Specification, "SD Memory Card Functional Description", "Card Registers".

#[cfg(test)]
mod tests;

use super::blocks::{BLOCK_SIZE, Blocks};
use super::host::{Bus, BusError, Command, Host, Slot, Way};
use super::register::{self, Class, Extension, LongRegister, Protection, Response, Scr};
use crate::fs::block::{BlockError, Durability, Operation, Request};
use core::fmt;

/// How often a transfer is tried.
const ATTEMPTS: u32 = 4;

/// A card may take a second from its first question to its last answer about its voltage.
const START_LIMIT_US: u64 = 1_500_000;

/// A card programs for half a second at most, by the specification; real ones take longer.
const BUSY_LIMIT_US: u64 = 5_000_000;

/// What an erase of [`ERASE_PIECE`] may take.
const ERASE_LIMIT_US: u64 = 10_000_000;

/// Bytes erased at a time: an allocation unit of most cards.
const ERASE_PIECE: u64 = 4 << 20;

/// How often it is looked whether a card is back.
const LOOK_US: u64 = 500_000;

/// The default speed of all cards, and high speed.
const DEFAULT_HZ: u32 = 25_000_000;
const HIGH_SPEED_HZ: u32 = 50_000_000;

// Commands by their names in the specification.
const GO_IDLE_STATE: u8 = 0;
const ALL_SEND_CID: u8 = 2;
const SEND_RELATIVE_ADDR: u8 = 3;
const SWITCH_FUNC: u8 = 6;
const SET_BUS_WIDTH: u8 = 6;
const SELECT_CARD: u8 = 7;
const SEND_IF_COND: u8 = 8;
const SEND_CSD: u8 = 9;
const STOP_TRANSMISSION: u8 = 12;
const SEND_STATUS: u8 = 13;
const SET_BLOCKLEN: u8 = 16;
const ERASE_WR_BLK_START: u8 = 32;
const ERASE_WR_BLK_END: u8 = 33;
const ERASE: u8 = 38;
const SD_SEND_OP_COND: u8 = 41;
const READ_EXTR_SINGLE: u8 = 48;
const WRITE_EXTR_SINGLE: u8 = 49;
const SEND_SCR: u8 = 51;
const APP_CMD: u8 = 55;

/// What went wrong with a card.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CardError {
    /// Nothing answers: no card, or one that is none of ours.
    NoCard,
    /// It is not the card that was there before.
    OtherCard,
    /// Something on the bus went wrong.
    Bus(BusError),
    /// It does not run at 2.7 to 3.6 V.
    Voltage,
    /// It says of a command, by these bits, that it failed.
    Status(u32),
    /// It does not become ready in time.
    Slow,
    /// Its size has a form we do not know, or is more than commands can address.
    Capacity,
}

impl fmt::Display for CardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCard => f.write_str("no card"),
            Self::OtherCard => f.write_str("another card"),
            Self::Bus(error) => write!(f, "{error}"),
            Self::Voltage => f.write_str("the card does not take 3.3 V"),
            Self::Status(bits) => write!(f, "the card reports error bits {bits:#010x}"),
            Self::Slow => f.write_str("the card does not become ready"),
            Self::Capacity => {
                f.write_str("the card's size has an unknown form, or is beyond its addresses")
            }
        }
    }
}

impl From<BusError> for CardError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

impl CardError {
    /// What a request that began at `offset` fails with.
    fn of_request(self, offset: u64) -> BlockError {
        match self {
            Self::NoCard | Self::OtherCard => BlockError::Removed,
            Self::Slow | Self::Bus(BusError::Stuck(_)) => BlockError::TimedOut { offset },
            Self::Bus(BusError::Damaged(_)) => BlockError::Garbled { offset },
            Self::Status(bits) if bits & register::WRITE_PROTECTED != 0 => BlockError::ReadOnly,
            _ => BlockError::Device { offset },
        }
    }
}

/// Why a card is not written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locked {
    /// By the switch on its side.
    Switch,
    /// By itself.
    Card(Protection),
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "its switch is on LOCK",
            Self::Card(Protection::Temporary) => "the card says that it is protected",
            Self::Card(Protection::Permanent) => "the card says that it is protected for good",
        })
    }
}

/// How fast a card is asked to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    Best,
    /// Where something was damaged at the best.
    Careful,
}

/// A card in a host.
pub struct Card<H> {
    /// What it is in.
    pub host: H,
    /// What it says of itself.
    pub cid: LongRegister,
    /// As above.
    pub csd: LongRegister,
    /// How it is connected.
    pub bus: Bus,
    /// Its clock.
    pub hz: u32,
    /// What the card calls itself on this bus.
    address: u32,
    /// Whether blocks are addressed by number, not by byte.
    has_block_addresses: bool,
    /// Where its cache is ruled, if it has one.
    cache: Option<Extension>,
    /// Whether that may hold what was written.
    has_unflushed: bool,
    /// Whether it was lost with the power, or by a reset. Which partitions it was of nobody knows, so no flush succeeds any
    /// more: the first might be another's.
    has_lost: bool,
    pace: Pace,
    /// When it was last looked for, since it is gone.
    gone_at: Option<u64>,
}

impl<H: Host> Card<H> {
    /// Finds out what card there is, if any.
    pub fn start(host: H) -> Result<Self, CardError> {
        let mut card = Self {
            host,
            cid: LongRegister([0; 4]),
            csd: LongRegister([0; 4]),
            bus: Bus::default(),
            hz: 0,
            address: 0,
            has_block_addresses: false,
            cache: None,
            has_unflushed: false,
            has_lost: false,
            pace: Pace::Best,
            gone_at: None,
        };
        card.cid = card.identify()?;
        card.configure()?;
        Ok(card)
    }

    /// Bytes it holds.
    pub fn capacity(&self) -> Result<u64, CardError> {
        // A command has 32 bits to say where.
        let unit = match self.has_block_addresses {
            true => BLOCK_SIZE as u64,
            false => 1,
        };
        register::capacity(self.csd)
            .filter(|bytes| bytes.div_ceil(unit) <= 1 << 32)
            .ok_or(CardError::Capacity)
    }

    /// Why it is not to be written to, if so.
    pub fn locked(&self) -> Option<Locked> {
        if self.host.is_locked() {
            return Some(Locked::Switch);
        }
        register::protection(self.csd).map(Locked::Card)
    }

    /// Whether it erases what it is told to, and no more.
    pub fn can_erase(&self) -> bool {
        register::has_class(self.csd, Class::Erase) && register::can_erase_blocks(self.csd)
    }

    /// Whether it has a cache that can be flushed.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Does what `request` asks for, and does not give up at once.
    pub fn serve(&mut self, request: &mut Request) -> Result<(), BlockError> {
        let outcome = self.serve_until_done(request);
        let is_flush = matches!(
            request.operation,
            Operation::Flush | Operation::Write(Durability::Durable)
        );
        if is_flush && self.has_lost {
            return outcome.and(Err(BlockError::Device {
                offset: request.offset,
            }));
        }
        outcome
    }

    fn serve_until_done(&mut self, request: &mut Request) -> Result<(), BlockError> {
        let offset = request.offset;
        if self.gone_at.is_some() {
            self.look_for_it()?;
        }
        for attempt in 1.. {
            let error = match self.try_to_serve(request) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error == CardError::NoCard {
                return Err(self.lose(error));
            }
            log::warn!("SD card, byte {offset}, attempt {attempt}: {error}");
            // Of what the card itself refuses, another attempt makes nothing else.
            if attempt >= ATTEMPTS || matches!(error, CardError::Status(_)) && attempt > 1 {
                return Err(error.of_request(offset));
            }
            match self.recover(error, attempt) {
                Ok(()) => {}
                Err(error @ (CardError::NoCard | CardError::OtherCard)) => {
                    return Err(self.lose(error));
                }
                Err(error) => {
                    log::warn!("SD card: {error}");
                    return Err(error.of_request(offset));
                }
            }
        }
        unreachable!("an attempt is the last")
    }

    /// Makes the card ready for another attempt.
    #[inline(never)]
    fn recover(&mut self, error: CardError, attempt: u32) -> Result<(), CardError> {
        match error {
            CardError::Bus(BusError::Damaged(_)) if attempt == 1 => return self.settle(),
            CardError::Bus(BusError::Damaged(_)) => self.pace = Pace::Careful,
            CardError::Status(_) => return self.settle(),
            _ => {}
        }
        self.return_to_work()
    }

    /// Sets the card up anew, if it is the one that it was.
    #[inline(never)]
    fn return_to_work(&mut self) -> Result<(), CardError> {
        if core::mem::take(&mut self.has_unflushed) {
            self.has_lost = true;
            log::error!(
                "the SD card was reset with writes in its cache: they are lost; no flush succeeds until a reboot"
            );
        }
        let cid = self.identify().map_err(|error| match error {
            CardError::Bus(BusError::NoAnswer(_)) => CardError::NoCard,
            other => other,
        })?;
        if cid != self.cid {
            return Err(CardError::OtherCard);
        }
        self.configure()
    }

    /// Told once: the card is gone.
    #[inline(never)]
    fn lose(&mut self, error: CardError) -> BlockError {
        if self.gone_at.is_none() {
            log::error!("the SD card is gone ({error}); what needs it fails until it is back");
        }
        self.gone_at = Some(self.host.now_us());
        BlockError::Removed
    }

    /// Of a card that is gone: whether it is back.
    fn look_for_it(&mut self) -> Result<(), BlockError> {
        let is_due = self
            .gone_at
            .is_none_or(|at| self.host.now_us() >= at + LOOK_US);
        if !is_due {
            return Err(BlockError::Removed);
        }
        match self.return_to_work() {
            Ok(()) => {
                log::error!("the SD card is back");
                self.gone_at = None;
                Ok(())
            }
            Err(error) => Err(self.lose(error)),
        }
    }

    /// From whatever state to where it has an address: says who it is.
    #[inline(never)]
    fn identify(&mut self) -> Result<LongRegister, CardError> {
        if self.host.slot() == Slot::Empty {
            return Err(CardError::NoCard);
        }
        self.host.reset()?;
        self.address = 0;
        self.bus = Bus::default();
        self.plain(GO_IDLE_STATE, 0, Response::None)?;
        self.negotiate_voltage()?;
        let cid = self.plain(ALL_SEND_CID, 0, Response::Long)?;
        self.address = self.short(SEND_RELATIVE_ADDR, 0)? & 0xffff_0000;
        Ok(cid)
    }

    /// From there to the transfer state, with as many lines and as fast as card and host can.
    #[inline(never)]
    fn configure(&mut self) -> Result<(), CardError> {
        self.csd = self.plain(SEND_CSD, self.address, Response::Long)?;
        self.plain(SELECT_CARD, self.address, Response::ShortBusy)?;
        self.hz = self.host.set_clock(DEFAULT_HZ)?;
        if !self.has_block_addresses {
            self.checked(SET_BLOCKLEN, BLOCK_SIZE as u32)?;
        }
        let mut scr = Scr::default();
        self.announce_application_command()?;
        self.host
            .read_register(Command::short(SEND_SCR, 0), &mut scr.0)?;
        if scr.has_four_lines() {
            const FOUR_LINES: u32 = 0b10;
            self.application_command(SET_BUS_WIDTH, FOUR_LINES, Response::Short)?;
            self.bus.has_four_lines = true;
            self.host.set_bus(self.bus);
        }
        if self.pace == Pace::Best && self.host.has_high_speed() && scr.is_version_1_10() {
            self.speed_up()?;
        }
        self.cache = if scr.has_extensions() {
            self.turn_cache_on()
        } else {
            None
        };
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
        let limit = self.host.now_us() + START_LIMIT_US;
        loop {
            let now = self.host.now_us();
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
            if now > limit {
                return Err(CardError::Slow);
            }
            self.host.pause_us(1_000);
        }
    }

    /// Switches to high speed, where the card offers it. One that does not want to stays at default speed.
    fn speed_up(&mut self) -> Result<(), CardError> {
        /// All groups but the first as they are.
        const GROUP_1: u32 = 0x00ff_fff0;
        const SWITCH: u32 = 1 << 31;
        if !register::has_class(self.csd, Class::Switch) {
            return Ok(());
        }
        let mut status = [0; register::SWITCH_STATUS_SIZE];
        let check = Command::short(SWITCH_FUNC, GROUP_1 | register::HIGH_SPEED);
        self.host.read_register(check, &mut status)?;
        if !register::offers_high_speed(&status) {
            return Ok(());
        }
        let switch = Command::short(SWITCH_FUNC, SWITCH | check.argument);
        self.host.read_register(switch, &mut status)?;
        if register::is_high_speed(&status) {
            // Eight clocks after the answer, which the change of the clock takes in any case.
            self.bus.is_fast = true;
            self.host.set_bus(self.bus);
            self.hz = self.host.set_clock(HIGH_SPEED_HZ)?;
        }
        Ok(())
    }

    /// Turns the cache on that a card of version 6 may have. One that fails in this has none for us, if it says so: the
    /// answer alone may have been lost. Of one that says nothing it is believed to be on, so that its flushes fail.
    fn turn_cache_on(&mut self) -> Option<Extension> {
        let mut page = [0; 512];
        let general = Extension::GENERAL.argument(0, 512);
        let read = |host: &mut H, argument, page: &mut [u8; 512]| {
            host.read_register(Command::short(READ_EXTR_SINGLE, argument), page)
        };
        read(&mut self.host, general, &mut page).ok()?;
        let extension = Extension::performance(&page)?;
        read(&mut self.host, extension.argument(0, 512), &mut page).ok()?;
        if page[register::PERFORMANCE_CACHE] & 1 == 0 {
            return None;
        }
        let written = self.write_extension(extension, register::PERFORMANCE_CACHE_ON);
        if written.is_err() {
            // What it may be in the midst of; where that fails, so does what comes next.
            let _ = self.settle();
            let known = read(&mut self.host, extension.argument(0, 512), &mut page);
            if known.is_ok() && page[register::PERFORMANCE_CACHE_ON as usize] & 1 == 0 {
                return None;
            }
        }
        Some(extension)
    }

    /// Writes a one to a byte of an extension register.
    fn write_extension(&mut self, extension: Extension, at: u32) -> Result<(), CardError> {
        let mut block = [0; 512];
        block[0] = 1;
        let command = Command::short(WRITE_EXTR_SINGLE, extension.argument(at, 1));
        self.host.write_register(command, &block)?;
        self.wait_until_ready(BUSY_LIMIT_US)
    }

    fn try_to_serve(&mut self, request: &mut Request) -> Result<(), CardError> {
        if self.host.slot() == Slot::Empty {
            return Err(CardError::NoCard);
        }
        let offset = request.offset;
        match request.operation {
            Operation::Read => self.transfer(Way::Read, offset, Blocks::new(&mut request.buffers)),
            Operation::Write(durability) => {
                self.transfer(Way::Write, offset, Blocks::new(&mut request.buffers))?;
                self.has_unflushed = self.cache.is_some();
                match durability {
                    Durability::Durable => self.flush(),
                    Durability::Cached => Ok(()),
                }
            }
            Operation::Flush => self.flush(),
            Operation::Discard { len } => self.erase(offset, len),
            Operation::WriteZeroes { .. } => unreachable!("`max_write_zeroes` is none"),
        }
    }

    /// What a command has to say for the block at byte `offset`.
    fn place(&self, offset: u64) -> u32 {
        if self.has_block_addresses {
            (offset / BLOCK_SIZE as u64) as u32
        } else {
            offset as u32
        }
    }

    fn transfer(&mut self, way: Way, offset: u64, mut blocks: Blocks<'_>) -> Result<(), CardError> {
        while blocks.left() > 0 {
            let argument = self.place(offset + blocks.done());
            let status = self.host.transfer(way, argument, &mut blocks)?;
            check(status)?;
            self.wait_until_ready(BUSY_LIMIT_US)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn erase(&mut self, offset: u64, len: u64) -> Result<(), CardError> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            // Up to the next allocation unit.
            let next = ((at / ERASE_PIECE + 1) * ERASE_PIECE).min(end);
            self.checked(ERASE_WR_BLK_START, self.place(at))?;
            self.checked(ERASE_WR_BLK_END, self.place(next - BLOCK_SIZE as u64))?;
            // It is busy after its answer, for longer than controllers wait: asked instead.
            self.checked(ERASE, 0)?;
            self.wait_until_ready(ERASE_LIMIT_US)?;
            at = next;
        }
        Ok(())
    }

    /// Empties the cache, if there is one.
    #[inline(never)]
    fn flush(&mut self) -> Result<(), CardError> {
        let Some(extension) = self.cache else {
            return Ok(());
        };
        self.write_extension(extension, register::PERFORMANCE_FLUSH)?;
        let limit = self.host.now_us() + BUSY_LIMIT_US;
        loop {
            let now = self.host.now_us();
            let argument = extension.argument(register::PERFORMANCE_FLUSH, 1);
            let mut page = [0; 512];
            self.host
                .read_register(Command::short(READ_EXTR_SINGLE, argument), &mut page)?;
            if page[0] & 1 == 0 {
                self.has_unflushed = false;
                return Ok(());
            }
            if now > limit {
                return Err(CardError::Slow);
            }
            self.host.pause_us(1_000);
        }
    }

    /// Ends what a command that failed may have begun. Errors it left in the status are read, and so forgotten.
    #[inline(never)]
    fn settle(&mut self) -> Result<(), CardError> {
        // A card that sends nothing does not know what is to be stopped.
        let _ = self.plain(STOP_TRANSMISSION, 0, Response::ShortBusy);
        let _ = self.plain(SEND_STATUS, self.address, Response::Short);
        self.wait_until_ready(BUSY_LIMIT_US)
    }

    #[inline(never)]
    fn wait_until_ready(&mut self, limit_us: u64) -> Result<(), CardError> {
        let limit = self.host.now_us() + limit_us;
        let mut pause_us = 0;
        loop {
            let now = self.host.now_us();
            if register::is_ready(self.checked(SEND_STATUS, self.address)?) {
                return Ok(());
            }
            if now > limit {
                return Err(CardError::Slow);
            }
            self.host.pause_us(pause_us);
            pause_us = (2 * pause_us + 10).min(1_000);
        }
    }

    #[inline(never)]
    fn plain(
        &mut self,
        index: u8,
        argument: u32,
        response: Response,
    ) -> Result<LongRegister, CardError> {
        Ok(self.host.command(Command {
            index,
            argument,
            response,
        })?)
    }

    /// A command with a short answer.
    #[inline(never)]
    fn short(&mut self, index: u8, argument: u32) -> Result<u32, CardError> {
        let LongRegister([answer, ..]) = self.plain(index, argument, Response::Short)?;
        Ok(answer)
    }

    /// A command that the card answers with its status.
    #[inline(never)]
    fn checked(&mut self, index: u8, argument: u32) -> Result<u32, CardError> {
        let status = self.short(index, argument)?;
        check(status)?;
        Ok(status)
    }

    /// The next command is an application command.
    #[inline(never)]
    fn announce_application_command(&mut self) -> Result<(), CardError> {
        // Its status may still tell of an unknown command before: what counts is the answer to the next.
        self.short(APP_CMD, self.address)?;
        Ok(())
    }

    fn application_command(
        &mut self,
        index: u8,
        argument: u32,
        response: Response,
    ) -> Result<LongRegister, CardError> {
        self.announce_application_command()?;
        self.plain(index, argument, response)
    }
}

fn check(status: u32) -> Result<(), CardError> {
    match status & register::STATUS_ERRORS {
        0 => Ok(()),
        errors => Err(CardError::Status(errors)),
    }
}
