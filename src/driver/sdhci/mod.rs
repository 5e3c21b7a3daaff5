//! An SD host controller of the SDHCI family: commands, and blocks by programmed I/O.
//!
//! The registers are only ever accessed 32 bits wide: the Raspberry Pis' controllers know nothing else.
//!
//! Sources: SD Specifications, Part A2, SD Host Controller Simplified Specification 3.00; Broadcom "BCM2835 ARM
//! Peripherals", chapter 5, for the Arasan. Each quirk says where it comes from.

use super::sd_card::{LongRegister, Response, divider};
use crate::arch::aarch64::timer;
use crate::mm::addr::VirtAddr;
use crate::thread;
use core::fmt;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

register_bitfields! {u32,
    Blocks [
        SIZE OFFSET(0) NUMBITS(12) [],
        COUNT OFFSET(16) NUMBITS(16) []
    ],
    Command [
        COUNT_BLOCKS OFFSET(1) NUMBITS(1) [],
        AUTO_STOP OFFSET(2) NUMBITS(1) [],
        IS_READ OFFSET(4) NUMBITS(1) [],
        IS_MULTIPLE OFFSET(5) NUMBITS(1) [],
        RESPONSE OFFSET(16) NUMBITS(2) [None = 0, Long = 1, Short = 2, ShortBusy = 3],
        CHECK_CRC OFFSET(19) NUMBITS(1) [],
        CHECK_INDEX OFFSET(20) NUMBITS(1) [],
        HAS_DATA OFFSET(21) NUMBITS(1) [],
        INDEX OFFSET(24) NUMBITS(6) []
    ],
    Present [
        COMMAND_INHIBIT OFFSET(0) NUMBITS(1) [],
        DATA_INHIBIT OFFSET(1) NUMBITS(1) []
    ],
    Control0 [
        FOUR_BITS OFFSET(1) NUMBITS(1) [],
        HIGH_SPEED OFFSET(2) NUMBITS(1) [],
        BUS_POWER OFFSET(8) NUMBITS(4) [On3V3 = 0xf]
    ],
    Control1 [
        INTERNAL_CLOCK OFFSET(0) NUMBITS(1) [],
        IS_STABLE OFFSET(1) NUMBITS(1) [],
        SD_CLOCK OFFSET(2) NUMBITS(1) [],
        DIVIDER_HIGH OFFSET(6) NUMBITS(2) [],
        DIVIDER_LOW OFFSET(8) NUMBITS(8) [],
        DATA_TIMEOUT OFFSET(16) NUMBITS(4) [Longest = 0xe],
        RESET_ALL OFFSET(24) NUMBITS(1) [],
        RESET_COMMAND OFFSET(25) NUMBITS(1) [],
        RESET_DATA OFFSET(26) NUMBITS(1) []
    ],
    Status [
        COMMAND_COMPLETE OFFSET(0) NUMBITS(1) [],
        TRANSFER_COMPLETE OFFSET(1) NUMBITS(1) [],
        WRITE_READY OFFSET(4) NUMBITS(1) [],
        READ_READY OFFSET(5) NUMBITS(1) [],
        ERROR OFFSET(15) NUMBITS(1) [],
        COMMAND_TIMEOUT OFFSET(16) NUMBITS(1) [],
        DATA_TIMEOUT OFFSET(20) NUMBITS(1) []
    ],
    Version [
        SPECIFICATION OFFSET(16) NUMBITS(8) []
    ]
}

register_structs! {
    Registers {
        (0x00 => _reserved0),
        (0x04 => blocks: ReadWrite<u32, Blocks::Register>),
        (0x08 => argument: ReadWrite<u32>),
        (0x0c => command: ReadWrite<u32, Command::Register>),
        (0x10 => response: [ReadOnly<u32>; 4]),
        (0x20 => data: ReadWrite<u32>),
        (0x24 => present: ReadOnly<u32, Present::Register>),
        (0x28 => control0: ReadWrite<u32, Control0::Register>),
        (0x2c => control1: ReadWrite<u32, Control1::Register>),
        (0x30 => status: ReadWrite<u32, Status::Register>),
        (0x34 => status_enable: ReadWrite<u32>),
        (0x38 => signal_enable: ReadWrite<u32>),
        (0x3c => _reserved1),
        (0xfc => version: ReadOnly<u32, Version::Register>),
        (0x100 => @END),
    }
}

/// Bytes in a block.
pub const BLOCK_SIZE: usize = 512;

/// The specification's number of version 3.00.
const VERSION_3: u32 = 2;

/// The clock with which every card can be asked what it is.
const SLOWEST_HZ: u32 = 400_000;

/// A command has 64 bit times to be answered; what follows it may take a slow card this long.
const COMMAND_LIMIT_US: u64 = 100_000;

/// Reading may take a card 100 ms, writing 500 ms, by the specification; real ones take longer.
const DATA_LIMIT_US: u64 = 2_000_000;

/// How long the core is kept before others may run while the controller works.
const SPIN_US: u64 = 50;

/// What goes wrong on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusError {
    /// The card does not answer this command.
    NoAnswer(u8),
    /// The controller reports these error bits (upper half of its status) for this command.
    Failed(u8, u16),
    /// The controller does not finish this command, or its data.
    Stuck(u8),
    /// The controller does not come out of reset, or its clock does not settle.
    Dead,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(index) => write!(f, "no answer to CMD{index}"),
            Self::Failed(index, bits) => write!(f, "CMD{index} failed with error bits {bits:#06x}"),
            Self::Stuck(index) => write!(f, "CMD{index} does not end"),
            Self::Dead => f.write_str("the controller does not start"),
        }
    }
}

/// The blocks that go with a command.
pub enum Data<'a> {
    /// From the card, each handed over as it comes.
    Read(&'a mut dyn FnMut(&[u8; BLOCK_SIZE]), u16),
    /// To the card, each asked for when it is due.
    Write(&'a mut dyn FnMut(&mut [u8; BLOCK_SIZE]), u16),
}

/// What the driver must know of a controller that its registers do not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quirks {
    /// The clock that it divides, in Hz.
    pub base_hz: u32,
    /// A second write to a register within two clocks of the card is lost (Arasan; Linux, `sdhci-iproc`).
    pub loses_writes: bool,
    /// It feeds the card only once it is told to (EMMC2).
    pub switches_power: bool,
}

/// A controller.
pub struct Sdhci {
    registers: &'static Registers,
    quirks: Quirks,
    /// What has to pass between two writes.
    gap_us: u64,
}

// SAFETY: the registers belong to whoever has the `Sdhci`, on whatever core.
unsafe impl Send for Sdhci {}

impl Sdhci {
    /// Bytes of registers.
    pub const SIZE: u64 = 0x100;

    /// # Safety
    /// `base` is where a controller's registers are mapped, for good, and nobody else uses them.
    pub unsafe fn new(base: VirtAddr, quirks: Quirks) -> Self {
        Self {
            // SAFETY: as promised.
            registers: unsafe { &*(base.0 as *const Registers) },
            quirks,
            gap_us: 0,
        }
    }

    /// Brings the controller to where it can talk to a card that has just been switched on.
    pub fn reset(&mut self) -> Result<(), BusError> {
        self.set_gap(SLOWEST_HZ);
        self.set_control1(Control1::RESET_ALL::SET.value)?;
        if self.quirks.switches_power {
            self.registers.control0.write(Control0::BUS_POWER::On3V3);
        } else {
            self.write(|registers| registers.control0.set(0));
        }
        self.set_clock(SLOWEST_HZ)?;
        // All is shown in the status, nothing signalled: the driver looks.
        self.write(|registers| registers.signal_enable.set(0));
        self.write(|registers| registers.status_enable.set(u32::MAX));
        self.write(|registers| registers.status.set(u32::MAX));
        // A card wants 74 clocks and a millisecond from power-on.
        pause(1_000);
        Ok(())
    }

    /// Sets the card's clock, to `hz` at most.
    pub fn set_clock(&mut self, hz: u32) -> Result<(), BusError> {
        let is_version_3 = self.registers.version.read(Version::SPECIFICATION) >= VERSION_3;
        let divider = divider(self.quirks.base_hz, hz, is_version_3);
        self.write(|registers| registers.control1.set(0));
        let settings = Control1::DIVIDER_LOW.val(divider & 0xff)
            + Control1::DIVIDER_HIGH.val(divider >> 8)
            + Control1::DATA_TIMEOUT::Longest
            + Control1::INTERNAL_CLOCK::SET;
        self.write(|registers| registers.control1.write(settings));
        wait(COMMAND_LIMIT_US, || {
            self.registers.control1.is_set(Control1::IS_STABLE)
        })
        .ok_or(BusError::Dead)?;
        self.write(|registers| {
            let settings = settings + Control1::SD_CLOCK::SET;
            registers.control1.write(settings);
        });
        self.set_gap(hz);
        Ok(())
    }

    fn set_gap(&mut self, hz: u32) {
        if self.quirks.loses_writes {
            self.gap_us = 2_000_000u64.div_ceil(u64::from(hz)) + 1;
        }
    }

    /// Uses four data lines.
    pub fn use_four_bits(&mut self) {
        let others = self.registers.control0.get();
        self.write(|registers| {
            registers
                .control0
                .set(others | Control0::FOUR_BITS::SET.value);
        });
    }

    /// Sends a command, transfers its data, and returns its answer.
    pub fn command(
        &mut self,
        index: u8,
        argument: u32,
        response: Response,
        data: Option<Data<'_>>,
    ) -> Result<LongRegister, BusError> {
        let outcome = self.try_command(index, argument, response, data);
        if outcome.is_err() {
            self.recover()?;
        }
        outcome
    }

    fn try_command(
        &mut self,
        index: u8,
        argument: u32,
        response: Response,
        data: Option<Data<'_>>,
    ) -> Result<LongRegister, BusError> {
        let is_busy_after = response == Response::ShortBusy || data.is_some();
        wait(DATA_LIMIT_US, || {
            let present = &self.registers.present;
            let is_busy = is_busy_after && present.is_set(Present::DATA_INHIBIT);
            !is_busy && !present.is_set(Present::COMMAND_INHIBIT)
        })
        .ok_or(BusError::Stuck(index))?;
        self.write(|registers| registers.status.set(u32::MAX));
        let mut command = Command::INDEX.val(u32::from(index))
            + match response {
                Response::None => Command::RESPONSE::None,
                Response::Plain => Command::RESPONSE::Short,
                Response::Long => Command::RESPONSE::Long + Command::CHECK_CRC::SET,
                Response::Short => {
                    Command::RESPONSE::Short + Command::CHECK_CRC::SET + Command::CHECK_INDEX::SET
                }
                Response::ShortBusy => {
                    Command::RESPONSE::ShortBusy
                        + Command::CHECK_CRC::SET
                        + Command::CHECK_INDEX::SET
                }
            };
        if let Some(data) = &data {
            let (count, is_read) = match data {
                Data::Read(_, count) => (*count, true),
                Data::Write(_, count) => (*count, false),
            };
            // One word: the halves are not to be written apart (Broadcom).
            self.write(|registers| {
                registers.blocks.write(
                    Blocks::SIZE.val(BLOCK_SIZE as u32) + Blocks::COUNT.val(u32::from(count)),
                );
            });
            command += Command::HAS_DATA::SET + Command::COUNT_BLOCKS::SET;
            if is_read {
                command += Command::IS_READ::SET;
            }
            if count > 1 {
                command += Command::IS_MULTIPLE::SET + Command::AUTO_STOP::SET;
            }
        }
        self.write(|registers| registers.argument.set(argument));
        self.write(|registers| registers.command.write(command));
        self.wait_for(index, Status::COMMAND_COMPLETE::SET.value, COMMAND_LIMIT_US)?;
        let answer = LongRegister([0, 1, 2, 3].map(|i| self.registers.response[i].get()));
        match data {
            Some(data) => self.transfer(index, data)?,
            None if response == Response::ShortBusy => {
                self.wait_for(index, Status::TRANSFER_COMPLETE::SET.value, DATA_LIMIT_US)?;
            }
            None => {}
        }
        Ok(answer)
    }

    fn transfer(&mut self, index: u8, data: Data<'_>) -> Result<(), BusError> {
        let mut block = [0; BLOCK_SIZE];
        match data {
            Data::Read(take, count) => {
                for _ in 0..count {
                    self.wait_for(index, Status::READ_READY::SET.value, DATA_LIMIT_US)?;
                    for word in block.as_chunks_mut::<4>().0 {
                        *word = self.registers.data.get().to_le_bytes();
                    }
                    take(&block);
                }
            }
            Data::Write(give, count) => {
                for _ in 0..count {
                    give(&mut block);
                    self.wait_for(index, Status::WRITE_READY::SET.value, DATA_LIMIT_US)?;
                    for word in block.as_chunks::<4>().0 {
                        // The data port loses nothing: no gap (Linux, `sdhci-iproc`).
                        self.registers.data.set(u32::from_le_bytes(*word));
                    }
                }
            }
        }
        self.wait_for(index, Status::TRANSFER_COMPLETE::SET.value, DATA_LIMIT_US)
    }

    /// Waits for a bit of the status, or an error, and clears the bit.
    fn wait_for(&mut self, index: u8, bit: u32, limit_us: u64) -> Result<(), BusError> {
        let status = &self.registers.status;
        wait(limit_us, || {
            status.get() & (bit | Status::ERROR::SET.value) != 0
        })
        .ok_or(BusError::Stuck(index))?;
        if status.is_set(Status::ERROR) {
            return Err(if status.is_set(Status::COMMAND_TIMEOUT) {
                BusError::NoAnswer(index)
            } else {
                BusError::Failed(index, (status.get() >> 16) as u16)
            });
        }
        self.write(|registers| registers.status.set(bit));
        Ok(())
    }

    /// Lets go of a command that failed, and of its data.
    fn recover(&mut self) -> Result<(), BusError> {
        let lines = Control1::RESET_COMMAND::SET.value | Control1::RESET_DATA::SET.value;
        let settings = self.registers.control1.get();
        self.set_control1(settings | lines)?;
        self.write(|registers| registers.status.set(u32::MAX));
        Ok(())
    }

    /// Writes the register with bits of a reset, and waits until they are gone.
    fn set_control1(&mut self, value: u32) -> Result<(), BusError> {
        let resets = Control1::RESET_ALL::SET.value
            | Control1::RESET_COMMAND::SET.value
            | Control1::RESET_DATA::SET.value;
        self.write(|registers| registers.control1.set(value));
        wait(COMMAND_LIMIT_US, || {
            self.registers.control1.get() & resets == 0
        })
        .ok_or(BusError::Dead)
    }

    fn write(&self, write: impl FnOnce(&Registers)) {
        write(self.registers);
        if self.gap_us > 0 {
            pause(self.gap_us);
        }
    }
}

fn pause(us: u64) {
    let deadline = timer::now() + timer::ticks_from_us(us);
    while timer::now() < deadline {
        core::hint::spin_loop();
    }
}

/// Waits for `condition`, which others do not have to wait for; `None` where it does not come.
fn wait(limit_us: u64, condition: impl Fn() -> bool) -> Option<()> {
    let start = timer::now();
    let [patience, limit] = [SPIN_US, limit_us].map(|us| start + timer::ticks_from_us(us));
    loop {
        // Looked at after the clock: whoever was away for long is not late for that.
        let now = timer::now();
        if condition() {
            return Some(());
        }
        if now > limit {
            return None;
        }
        if now > patience && thread::may_wait() {
            thread::yield_now();
        }
    }
}
