//! A simulated host with a simulated card: the states, answers and refusals that the specification gives it, and errors on
//! request.

use crate::driver::sd::blocks::{BLOCK_SIZE, Blocks};
use crate::driver::sd::host::{Bus, BusError, Command, Host, Slot, Way};
use crate::driver::sd::register::{LongRegister, Response};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Before version 1.10: no CMD8, no high speed, one line.
    Version1,
    /// Bytes are addressed.
    Standard,
    /// Blocks are.
    HighCapacity,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    Damaged,
    Stuck,
    NoAnswer,
    /// The card does nothing, and says this.
    Status(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle = 0,
    Ready = 1,
    Identification = 2,
    Standby = 3,
    Transfer = 4,
    Receiving = 6,
    Programming = 7,
}

#[derive(Clone)]
pub(super) struct SimCard {
    kind: Kind,
    cid: u128,
    csd: u128,
    scr: [u8; 8],
    state: State,
    takes_application_command: bool,
    /// How often it is asked for its conditions before it is ready.
    pub(super) busy_polls: usize,
    /// How long it programs after a write.
    pub(super) programs_us: u64,
    ready_at: u64,
    errors: u32,
    blocks: BTreeMap<u32, [u8; BLOCK_SIZE]>,
    cache: Option<BTreeMap<u32, [u8; BLOCK_SIZE]>>,
    is_cache_on: bool,
    /// The next answer to a write to a register is lost, the write is not.
    pub(super) loses_answer: bool,
    erase: (u32, u32),
}

const ADDRESS: u32 = 0x4567_0000;
const ILLEGAL_COMMAND: u32 = 1 << 22;

impl SimCard {
    pub(super) fn new(kind: Kind, capacity: u64) -> Self {
        let set = |fields: &[(u32, u64)]| {
            let fields = fields.iter();
            fields.fold(0u128, |all, &(low, value)| all | u128::from(value) << low)
        };
        // CCC: classes 0, 2, 4, 5, 7, 8 and, but for the oldest, 10.
        let classes = 0x1b5 | if kind == Kind::Version1 { 0 } else { 1 << 10 };
        let csd = if kind == Kind::HighCapacity {
            set(&[(126, 1), (84, classes), (48, capacity / (512 << 10) - 1)])
        } else {
            // Blocks of 512 bytes, groups of 512 of them.
            let size = capacity / (512 * 512) - 1;
            set(&[(84, classes), (80, 9), (62, size), (47, 7), (46, 1)])
        };
        Self {
            kind,
            cid: set(&[(120, 3), (24, 77)]),
            csd,
            scr: match kind {
                Kind::Version1 => [0, 0x01, 0, 0, 0, 0, 0, 0],
                _ => [0x02, 0x35, 0, 0, 0, 0, 0, 0],
            },
            state: State::Idle,
            takes_application_command: false,
            busy_polls: 3,
            programs_us: 300,
            ready_at: 0,
            errors: 0,
            blocks: BTreeMap::new(),
            cache: None,
            is_cache_on: false,
            loses_answer: false,
            erase: (0, 0),
        }
    }

    pub(super) fn set_csd(&mut self, low: u32, value: u128) {
        self.csd |= value << low;
    }

    pub(super) fn set_cid(&mut self, low: u32, value: u128) {
        self.cid ^= value << low;
    }

    /// Makes it a card of version 6 with a cache.
    pub(super) fn give_cache(&mut self) {
        self.scr[3] |= 1 << 2;
        self.cache = Some(BTreeMap::new());
    }

    /// Whether nothing that was written has left its cache.
    pub(super) fn is_blank(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn in_cache(&self) -> usize {
        self.cache.as_ref().map_or(0, BTreeMap::len)
    }

    fn status(&mut self, now: u64) -> u32 {
        if self.state == State::Programming && now >= self.ready_at {
            self.state = State::Transfer;
        }
        let ready = if self.state == State::Programming {
            0
        } else {
            1 << 8
        };
        core::mem::take(&mut self.errors) | (self.state as u32) << 9 | ready
    }

    fn block_number(&self, argument: u32) -> u32 {
        match self.kind {
            Kind::HighCapacity => argument,
            _ => argument / BLOCK_SIZE as u32,
        }
    }

    /// Its answer; `None` where it gives none.
    fn answer(&mut self, command: Command, now: u64) -> Option<LongRegister> {
        let Command {
            index, argument, ..
        } = command;
        let is_application = core::mem::take(&mut self.takes_application_command);
        let long = |value: u128| {
            let value = value >> 8;
            Some(LongRegister(
                [0, 32, 64, 96].map(|shift| (value >> shift) as u32),
            ))
        };
        let short = |value: u32| Some(LongRegister([value, 0, 0, 0]));
        let was = self.state;
        match (index, was) {
            (0, _) => {
                self.state = State::Idle;
                short(0)
            }
            (8, State::Idle) if self.kind != Kind::Version1 => short(argument & 0xfff),
            (55, _) if argument == 0 || argument == ADDRESS => {
                self.takes_application_command = true;
                let status = self.status(now);
                short(status | 1 << 5)
            }
            (41, State::Idle) if is_application => {
                if self.busy_polls > 0 {
                    self.busy_polls -= 1;
                    return short(0x00ff_8000);
                }
                self.state = State::Ready;
                let high = self.kind == Kind::HighCapacity && argument >> 30 & 1 != 0;
                short(1 << 31 | 0x00ff_8000 | u32::from(high) << 30)
            }
            (2, State::Ready) => {
                self.state = State::Identification;
                long(self.cid)
            }
            (3, State::Identification) => {
                self.state = State::Standby;
                short(ADDRESS | 3 << 9)
            }
            (9, State::Standby) if argument == ADDRESS => long(self.csd),
            (7, State::Standby) if argument == ADDRESS => {
                self.state = State::Transfer;
                short(3 << 9 | 1 << 8)
            }
            (13, State::Transfer | State::Programming | State::Receiving)
                if argument == ADDRESS =>
            {
                let status = self.status(now);
                short(status)
            }
            (12, State::Receiving) => {
                self.state = State::Transfer;
                short(6 << 9)
            }
            (6, State::Transfer) if is_application => short(4 << 9 | 1 << 8),
            (16, State::Transfer) => short(4 << 9 | 1 << 8),
            (32, State::Transfer) => {
                self.erase.0 = self.block_number(argument);
                short(4 << 9 | 1 << 8)
            }
            (33, State::Transfer) => {
                self.erase.1 = self.block_number(argument);
                short(4 << 9 | 1 << 8)
            }
            (38, State::Transfer) => {
                for block in self.erase.0..=self.erase.1 {
                    self.blocks.remove(&block);
                }
                self.program(now);
                short(4 << 9 | 1 << 8)
            }
            _ => {
                self.errors |= ILLEGAL_COMMAND;
                None
            }
        }
    }

    fn program(&mut self, now: u64) {
        self.state = State::Programming;
        self.ready_at = now.saturating_add(self.programs_us);
    }

    /// The block that a command for a register is answered with.
    fn register(&mut self, command: Command, len: usize) -> Option<Vec<u8>> {
        let is_application = core::mem::take(&mut self.takes_application_command);
        let mut bytes = alloc::vec![0; len];
        match (command.index, len) {
            (51, 8) if is_application => bytes.copy_from_slice(&self.scr),
            (6, 64) if self.kind != Kind::Version1 => {
                bytes[13] = 0b11;
                bytes[16] = (command.argument & 0xf) as u8;
            }
            (48, 512) if self.cache.is_some() => match command.argument {
                // General information, then the performance enhancement function on function 1, page 2.
                511 => {
                    bytes[4] = 1;
                    bytes[16] = 2;
                    bytes[16 + 42] = 1;
                    let address = 1u32 << 18 | 2 << 9;
                    bytes[16 + 44..16 + 48].copy_from_slice(&address.to_le_bytes());
                }
                argument if argument == (1 << 27 | 2 << 18 | 511) => {
                    bytes[4] = 1;
                    bytes[260] = self.is_cache_on.into();
                }
                _ => bytes[0] = 0,
            },
            _ => return None,
        }
        Some(bytes)
    }
}

/// A host.
#[derive(Clone)]
pub(super) struct SimHost {
    card: Option<SimCard>,
    pub(super) slot: Slot,
    pub(super) has_high_speed: bool,
    pub(super) is_locked: bool,
    pub(super) is_dead: bool,
    pub(super) now: Rc<Cell<u64>>,
    /// What was sent.
    pub(super) commands: Rc<RefCell<Vec<(u8, u32)>>>,
    /// Of the next transfers.
    faults: VecDeque<Fault>,
    /// Of a command to come.
    later: Option<(usize, Fault)>,
    bus: Bus,
}

impl SimHost {
    pub(super) fn with(card: SimCard) -> Self {
        Self {
            card: Some(card),
            slot: Slot::Unknown,
            has_high_speed: true,
            is_locked: false,
            is_dead: false,
            now: Rc::default(),
            commands: Rc::default(),
            faults: VecDeque::new(),
            later: None,
            bus: Bus::default(),
        }
    }

    pub(super) fn empty() -> Self {
        let mut host = Self::with(SimCard::new(Kind::Standard, 1 << 20));
        host.card = None;
        host
    }

    pub(super) fn card(&mut self) -> &mut SimCard {
        self.card.as_mut().expect("a card is in")
    }

    /// The next `count` transfers fail.
    pub(super) fn fail(&mut self, fault: Fault, count: usize) {
        self.faults.extend(core::iter::repeat_n(fault, count));
    }

    /// The command after `count` others fails, whatever it is.
    pub(super) fn fail_later(&mut self, fault: Fault, count: usize) {
        self.later = Some((count, fault));
    }

    pub(super) fn take_out(&mut self) -> SimCard {
        if self.slot == Slot::Card {
            self.slot = Slot::Empty;
        }
        let mut card = self.card.take().expect("a card is in");
        card.state = State::Idle;
        card.busy_polls = 1;
        card
    }

    pub(super) fn put_in(&mut self, card: SimCard) {
        if self.slot == Slot::Empty {
            self.slot = Slot::Card;
        }
        self.card = Some(card);
    }

    /// Counts and remembers a command; the error that it is to have.
    fn note(&mut self, index: u8, argument: u32) -> Result<(), BusError> {
        self.now.set(self.now.get() + 10);
        self.commands.borrow_mut().push((index, argument));
        match &mut self.later {
            Some((0, fault)) => {
                let fault = *fault;
                self.later = None;
                Err(error(fault, index))
            }
            Some((count, _)) => {
                *count -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn error(fault: Fault, index: u8) -> BusError {
    match fault {
        Fault::Damaged => BusError::Damaged(index),
        Fault::Stuck => BusError::Stuck(index),
        Fault::NoAnswer | Fault::Status(_) => BusError::NoAnswer(index),
    }
}

impl Host for SimHost {
    fn reset(&mut self) -> Result<(), BusError> {
        self.bus = Bus::default();
        if self.is_dead {
            Err(BusError::Dead)
        } else {
            Ok(())
        }
    }

    fn set_clock(&mut self, hz: u32) -> Result<u32, BusError> {
        assert!(
            hz <= 25_000_000 || self.bus.is_fast,
            "too fast for the timing"
        );
        Ok(hz)
    }

    fn set_bus(&mut self, bus: Bus) {
        self.bus = bus;
    }

    fn has_high_speed(&self) -> bool {
        self.has_high_speed
    }

    fn slot(&self) -> Slot {
        self.slot
    }

    fn is_locked(&self) -> bool {
        self.is_locked
    }

    fn command(&mut self, command: Command) -> Result<LongRegister, BusError> {
        self.note(command.index, command.argument)?;
        let now = self.now.get();
        let none = BusError::NoAnswer(command.index);
        let answer = self
            .card
            .as_mut()
            .and_then(|card| card.answer(command, now));
        match (command.response, answer) {
            (Response::None, _) => Ok(LongRegister([0; 4])),
            (_, answer) => answer.ok_or(none),
        }
    }

    fn read_register(&mut self, command: Command, bytes: &mut [u8]) -> Result<u32, BusError> {
        self.note(command.index, command.argument)?;
        let len = bytes.len();
        let card = self
            .card
            .as_mut()
            .filter(|card| card.state == State::Transfer);
        let register = card.and_then(|card| card.register(command, len));
        bytes.copy_from_slice(&register.ok_or(BusError::NoAnswer(command.index))?);
        Ok(4 << 9 | 1 << 8)
    }

    fn write_register(&mut self, command: Command, bytes: &[u8; 512]) -> Result<u32, BusError> {
        self.note(command.index, command.argument)?;
        let now = self.now.get();
        let card = self
            .card
            .as_mut()
            .filter(|card| card.state == State::Transfer);
        let card = card.ok_or(BusError::NoAnswer(command.index))?;
        assert_eq!((command.index, bytes[0]), (49, 1));
        match command.argument >> 9 & 0x1ff {
            260 => card.is_cache_on = true,
            261 => {
                if let Some(cache) = &mut card.cache {
                    card.blocks.append(cache);
                }
            }
            other => panic!("register {other} was written"),
        }
        card.program(now);
        match core::mem::take(&mut card.loses_answer) {
            true => Err(BusError::NoAnswer(command.index)),
            false => Ok(4 << 9 | 1 << 8),
        }
    }

    fn transfer(
        &mut self,
        way: Way,
        argument: u32,
        blocks: &mut Blocks<'_>,
    ) -> Result<u32, BusError> {
        let count = blocks.left();
        let single = if way == Way::Read { 17 } else { 24 };
        let index = single + u8::from(count > 1);
        self.note(index, argument)?;
        let now = self.now.get();
        let card = self
            .card
            .as_mut()
            .filter(|card| card.state == State::Transfer);
        let card = card.ok_or(BusError::NoAnswer(index))?;
        match self.faults.pop_front() {
            None => {}
            Some(Fault::Status(bits)) => return Ok(bits),
            Some(fault) => {
                // It waits for the rest, until it is stopped.
                card.state = State::Receiving;
                return Err(error(fault, index));
            }
        }
        let mut number = card.block_number(argument);
        blocks.each(count, |buffer, at| {
            let mut block = [0; BLOCK_SIZE];
            let cached = card.cache.as_ref().and_then(|cache| cache.get(&number));
            if way == Way::Read {
                if let Some(found) = cached.or(card.blocks.get(&number)) {
                    block = *found;
                }
                buffer.copy_in(at, &block);
            } else {
                buffer.copy_out(at, &mut block);
                match &mut card.cache {
                    Some(cache) if card.is_cache_on => cache.insert(number, block),
                    _ => card.blocks.insert(number, block),
                };
            }
            number += 1;
            Ok(())
        })?;
        if way == Way::Write {
            card.program(now);
        }
        Ok(4 << 9 | 1 << 8)
    }

    fn now_us(&self) -> u64 {
        self.now.get()
    }

    fn pause_us(&mut self, us: u64) {
        self.now.set(self.now.get() + us);
    }
}
