//! What a host controller does for a card.

use super::blocks::Blocks;
use super::register::{LongRegister, Response};
use core::fmt;

/// What goes wrong on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusError {
    /// The card does not answer this command.
    NoAnswer(u8),
    /// The answer to this command, or its data, was damaged on the way.
    Damaged(u8),
    /// The controller reports these error bits (upper half of its status) for this command.
    Failed(u8, u16),
    /// DMA for this command stopped: the ADMA error register, or the status of the DMA engine.
    Dma(u8, u32),
    /// The controller does not finish this command, or its data.
    Stuck(u8),
    /// The controller does not come out of reset, or its clock does not settle.
    Dead,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(index) => write!(f, "no answer to CMD{index}"),
            Self::Damaged(index) => write!(f, "CMD{index}: wrong checksum"),
            Self::Failed(index, bits) => write!(f, "CMD{index} failed with error bits {bits:#06x}"),
            Self::Dma(index, state) => write!(f, "CMD{index}: DMA stopped in state {state:#x}"),
            Self::Stuck(index) => write!(f, "CMD{index} does not end"),
            Self::Dead => f.write_str("the controller does not start"),
        }
    }
}

/// A command without data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// Its number.
    pub index: u8,
    /// Its argument.
    pub argument: u32,
    /// What is answered.
    pub response: Response,
}

impl Command {
    /// One that is answered by R1, R6 or R7.
    pub const fn short(index: u8, argument: u32) -> Self {
        Self {
            index,
            argument,
            response: Response::Short,
        }
    }
}

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the card.
    Read,
    /// To the card.
    Write,
}

/// What the slot says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// There is a card.
    Card,
    /// There is none.
    Empty,
    /// It cannot say: only whether something answers.
    Unknown,
}

/// How the lines are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bus {
    /// Four data lines, not one.
    pub has_four_lines: bool,
    /// The timing of high speed.
    pub is_fast: bool,
}

/// A host controller, with at most one card.
pub trait Host {
    /// Brings the controller to where it can talk to a card that has just been switched on.
    fn reset(&mut self) -> Result<(), BusError>;

    /// Sets the card's clock, to `hz` at most; says what it became.
    fn set_clock(&mut self, hz: u32) -> Result<u32, BusError>;

    /// Sets how the lines are used.
    fn set_bus(&mut self, bus: Bus);

    /// Whether 50 MHz are to be had.
    fn has_high_speed(&self) -> bool;

    /// Whether there is a card.
    fn slot(&self) -> Slot;

    /// Whether the switch on the card says that it is not to be written.
    fn is_locked(&self) -> bool;

    /// Sends a command, and returns its answer. After an error, command and data lines are ready for the next.
    fn command(&mut self, command: Command) -> Result<LongRegister, BusError>;

    /// As `command`, with a register of the card that comes in one block of at most 512 bytes.
    fn read_register(&mut self, command: Command, bytes: &mut [u8]) -> Result<u32, BusError>;

    /// As `command`, with a block that goes to a register.
    fn write_register(&mut self, command: Command, bytes: &[u8; 512]) -> Result<u32, BusError>;

    /// Moves as many of the next blocks as go with one command, from or to `argument` on, and advances. The command is
    /// that for one block or for many, which is stopped at the end. Returns the card's status as it began.
    fn transfer(
        &mut self,
        way: Way,
        argument: u32,
        blocks: &mut Blocks<'_>,
    ) -> Result<u32, BusError>;

    /// Microseconds since some time.
    fn now_us(&self) -> u64;

    /// Lets so many pass; others may run.
    fn pause_us(&mut self, us: u64);
}
