//! A controller: reset, clock, commands, and blocks by the processor.

use super::Method;
use super::capabilities::{Capabilities, divided, divider};
use super::dma::Dma;
use super::port::{ERRORS, Port, pause};
use super::registers::{Blocks, Command, Control0, Control1, Present, Registers, Status, Version};
use crate::arch::aarch64::board::{Line, Window};
use crate::arch::aarch64::timer;
use crate::driver::bcm_dma::Channel;
use crate::driver::sd::blocks::{self, BLOCK_SIZE};
use crate::driver::sd::host::{self, Bus, BusError, Host, Slot, Way};
use crate::driver::sd::register::{LongRegister, Response, STATUS_ERRORS};
use crate::interrupt::ListenError;
use crate::mm::addr::{PhysAddr, VirtAddr};
use crate::thread;
use alloc::sync::Arc;
use tock_registers::interfaces::{Readable, Writeable};

/// The clock with which every card can be asked what it is.
const SLOWEST_HZ: u32 = 400_000;

/// A command has 64 bit times to be answered; a controller gets this long to say whether it was.
const COMMAND_LIMIT_US: u64 = 500_000;

/// Until data begins to move, and a card ends to be busy; of a transfer, as much more as [`BLOCK_LIMIT_US`] for a block.
const DATA_LIMIT_US: u64 = 5_000_000;
const BLOCK_LIMIT_US: u64 = 2_000;

/// Blocks of one command: the controller's counter has 16 bits.
const MAX_BLOCKS: usize = 65535;

// Commands that move blocks; those for many have the next numbers.
const READ_SINGLE_BLOCK: u8 = 17;
const WRITE_BLOCK: u8 = 24;

/// What the driver must know of a controller that its registers do not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quirks {
    /// The clock that it divides, in Hz, where the capabilities do not say it or are not to be believed (EMMC2).
    pub base_hz: Option<u32>,
    /// A second write to a register within two clocks of the card is lost (Arasan; Linux, `sdhci-iproc`).
    pub loses_writes: bool,
    /// The capabilities are missing, and there is no bit for high speed, which is had without it (Arasan; Linux,
    /// `sdhci-iproc`).
    pub has_no_capabilities: bool,
    /// It feeds the card only once it is told to (all but Arasan).
    pub switches_power: bool,
    /// Its slot says whether there is a card, and whether that is locked.
    pub has_detection: bool,
}

/// How a controller, or the engine beside it, gets at memory.
pub struct Memory {
    /// The memory that it reaches, where it is not all that has 32-bit addresses.
    pub window: Option<Window>,
    /// A DMA engine for a controller that has none, and the memory that the engine reaches.
    pub engine: Option<(Channel, Option<Window>)>,
    /// The controller's registers, for the engine.
    pub base: PhysAddr,
}

/// A controller.
pub struct Sdhci {
    pub(super) port: Arc<Port>,
    quirks: Quirks,
    capabilities: Capabilities,
    method: Method,
    bus: Bus,
    /// `None` where there is no memory for it, or none that is reached.
    pub(super) dma: Option<Dma>,
    has_engine: bool,
}

/// What a command moves.
pub(super) struct Shape {
    pub(super) size: u32,
    pub(super) count: u32,
    pub(super) way: Way,
    pub(super) uses_dma: bool,
}

impl Sdhci {
    /// Bytes of registers.
    pub const SIZE: u64 = 0x100;

    /// # Safety
    /// `base` is where a controller's registers are mapped, for good, and nobody else uses them. What is said of its
    /// memory is so.
    pub unsafe fn new(base: VirtAddr, quirks: Quirks, memory: Memory) -> Self {
        // SAFETY: as promised.
        let port = unsafe { Port::new(base) };
        let registers = port.registers();
        let version = registers.version.read(Version::SPECIFICATION);
        let capabilities = registers.capabilities.get();
        let mut capabilities = Capabilities::new(capabilities, version);
        if quirks.has_no_capabilities {
            capabilities = Capabilities {
                has_high_speed: true,
                has_adma2: false,
                has_sdma: false,
                ..capabilities
            };
        }
        let dma = Dma::new(memory);
        let has_engine = dma.as_ref().is_some_and(Dma::has_engine);
        let mut host = Self {
            port,
            quirks,
            capabilities,
            method: Method::Pio,
            bus: Bus::default(),
            dma,
            has_engine,
        };
        host.method = host.best_method();
        host
    }

    /// Waits by interrupt from now on.
    pub fn listen(&self, line: Line) -> Result<(), ListenError> {
        self.port.listen(line)
    }

    /// The registers, and who waits for them.
    pub fn port(&self) -> Arc<Port> {
        self.port.clone()
    }

    /// How blocks are moved.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The way that asks least of the processor.
    pub fn best_method(&self) -> Method {
        match self.dma {
            Some(_) => self.capabilities.best(self.has_engine),
            None => Method::Pio,
        }
    }

    /// Moves blocks in this way from now on, if it can be.
    pub fn set_method(&mut self, method: Method) -> bool {
        let has_memory = method == Method::Pio || self.dma.is_some();
        let can = has_memory && self.capabilities.allow(method, self.has_engine);
        if can && method != self.method {
            self.method = method;
            self.update_control0();
        }
        can
    }

    /// Its clock, undivided.
    fn base_hz(&self) -> u32 {
        let known = self.quirks.base_hz.or(self.capabilities.base_hz);
        known.unwrap_or(50_000_000)
    }

    #[inline(never)]
    fn update_control0(&self) {
        let mut value = match self.method {
            Method::Adma2 => Control0::DMA::Adma2,
            _ => Control0::DMA::Sdma,
        };
        if self.bus.has_four_lines {
            value += Control0::FOUR_BITS::SET;
        }
        if self.bus.is_fast && !self.quirks.has_no_capabilities {
            value += Control0::HIGH_SPEED::SET;
        }
        if self.quirks.switches_power {
            value += Control0::BUS_POWER::On3V3;
        }
        self.write(|registers| registers.control0.set(value.value));
    }

    /// Sends a command, begins to move its data, and returns its answer.
    #[inline(never)]
    pub(super) fn begin(
        &mut self,
        command: host::Command,
        shape: Option<&Shape>,
    ) -> Result<LongRegister, BusError> {
        let host::Command {
            index,
            argument,
            response,
        } = command;
        let is_busy_after = response == Response::ShortBusy || shape.is_some();
        self.wait_until_free(is_busy_after)
            .ok_or(BusError::Stuck(index))?;
        self.write(|registers| registers.status.set(u32::MAX));
        let mut word = Command::INDEX.val(u32::from(index)) + expected(response);
        if let Some(shape) = shape {
            // One word: the halves are not to be written apart (Broadcom).
            self.write(|registers| {
                let blocks = Blocks::SIZE.val(shape.size) + Blocks::COUNT.val(shape.count);
                registers
                    .blocks
                    .write(blocks + Blocks::SDMA_BOUNDARY::Kib512);
            });
            word += Command::HAS_DATA::SET + Command::COUNT_BLOCKS::SET;
            if shape.way == Way::Read {
                word += Command::IS_READ::SET;
            }
            if shape.uses_dma {
                word += Command::USES_DMA::SET;
            }
            if shape.count > 1 {
                word += Command::IS_MULTIPLE::SET + Command::AUTO_STOP::SET;
            }
        }
        self.write(|registers| registers.argument.set(argument));
        self.write(|registers| registers.command.write(word));
        self.wait_for(index, Status::COMMAND_COMPLETE::SET.value, COMMAND_LIMIT_US)?;
        let registers = self.port.registers();
        Ok(LongRegister(
            [0, 1, 2, 3].map(|i| registers.response[i].get()),
        ))
    }

    /// Until a command, and data where it has some, can be sent.
    fn wait_until_free(&self, is_for_data: bool) -> Option<()> {
        let registers = self.port.registers();
        wait(DATA_LIMIT_US, &|| {
            let present = &registers.present;
            let is_busy = is_for_data && present.is_set(Present::DATA_INHIBIT);
            !is_busy && !present.is_set(Present::COMMAND_INHIBIT)
        })
    }

    /// Waits for one of some bits of the status, or an error; clears and returns what there is of them.
    #[inline(never)]
    pub(super) fn wait_for(
        &mut self,
        index: u8,
        bits: u32,
        limit_us: u64,
    ) -> Result<u32, BusError> {
        let found = self.port.wait_for(bits | ERRORS, limit_us);
        let found = found.ok_or(BusError::Stuck(index))?;
        if found & ERRORS != 0 {
            return Err(self.error(index));
        }
        self.write(|registers| registers.status.set(found));
        Ok(found)
    }

    #[inline(never)]
    fn error(&self, index: u8) -> BusError {
        let registers = self.port.registers();
        let status = registers.status.extract();
        let crc = [
            Status::COMMAND_CRC,
            Status::COMMAND_END,
            Status::COMMAND_INDEX,
        ]
        .into_iter()
        .chain([Status::DATA_CRC, Status::DATA_END]);
        if status.is_set(Status::COMMAND_TIMEOUT) && !status.is_set(Status::COMMAND_CRC) {
            BusError::NoAnswer(index)
        } else if crc.into_iter().any(|bit| status.is_set(bit)) {
            BusError::Damaged(index)
        } else if status.is_set(Status::DATA_TIMEOUT) {
            BusError::Stuck(index)
        } else if status.is_set(Status::ADMA) {
            BusError::Dma(index, registers.adma_error.get())
        } else {
            BusError::Failed(index, (status.get() >> 16) as u16)
        }
    }

    /// Lets go of a command that failed, and of its data: nothing of ours is touched any more.
    #[inline(never)]
    fn recover(&mut self) -> Result<(), BusError> {
        if let Some(dma) = &self.dma {
            dma.stop_engine();
        }
        let lines = Control1::RESET_COMMAND::SET.value | Control1::RESET_DATA::SET.value;
        let settings = self.port.registers().control1.get();
        let outcome = self.set_control1(settings | lines);
        // Nothing is left for a new SDMA address to go on with.
        self.write(|registers| registers.blocks.set(0));
        self.write(|registers| registers.status.set(u32::MAX));
        outcome.or_else(|_| self.reset())
    }

    pub(super) fn guarded<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T, BusError>,
    ) -> Result<T, BusError> {
        let outcome = f(self);
        if outcome.is_err() {
            self.recover()?;
        }
        outcome
    }

    fn transfer_by_processor(
        &mut self,
        way: Way,
        argument: u32,
        blocks: &mut blocks::Blocks<'_>,
    ) -> Result<u32, BusError> {
        let count = blocks.left().min(MAX_BLOCKS as u64);
        let command = block_command(way, argument, count as usize);
        let shape = Shape {
            size: BLOCK_SIZE as u32,
            count: count as u32,
            way,
            uses_dma: false,
        };
        let LongRegister([status, ..]) = self.begin(command, Some(&shape))?;
        let mut block = [0; BLOCK_SIZE];
        blocks.each(count, |buffer, at| {
            if way == Way::Read {
                self.take_block(command.index, &mut block)?;
                buffer.copy_in(at, &block);
            } else {
                buffer.copy_out(at, &mut block);
                self.give_block(command.index, &block)?;
            }
            Ok(())
        })?;
        self.wait_for_end(command.index)?;
        Ok(status | self.status_at_stop(&shape))
    }

    #[inline(never)]
    fn take_block(&mut self, index: u8, block: &mut [u8]) -> Result<(), BusError> {
        self.wait_for(index, Status::READ_READY::SET.value, DATA_LIMIT_US)?;
        for word in block.chunks_mut(4) {
            let value = self.port.registers().data.get().to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
        Ok(())
    }

    #[inline(never)]
    fn give_block(&mut self, index: u8, block: &[u8; BLOCK_SIZE]) -> Result<(), BusError> {
        self.wait_for(index, Status::WRITE_READY::SET.value, DATA_LIMIT_US)?;
        for word in block.as_chunks::<4>().0 {
            // The data port loses nothing: no gap (Linux, `sdhci-iproc`).
            let value = u32::from_le_bytes(*word);
            self.port.registers().data.set(value);
        }
        Ok(())
    }

    /// Errors of the blocks themselves, which a card tells in its answer to the command that stops a transfer, and only
    /// there: the controller sends that command by itself, and keeps the answer in the last of the registers.
    #[inline(never)]
    pub(super) fn status_at_stop(&self, shape: &Shape) -> u32 {
        if shape.count > 1 && shape.way == Way::Write {
            self.port.registers().response[3].get() & STATUS_ERRORS
        } else {
            0
        }
    }

    fn wait_for_end(&mut self, index: u8) -> Result<(), BusError> {
        self.wait_for(index, Status::TRANSFER_COMPLETE::SET.value, DATA_LIMIT_US)?;
        Ok(())
    }

    /// Writes the register with bits of a reset, and waits until they are gone.
    #[inline(never)]
    fn set_control1(&mut self, value: u32) -> Result<(), BusError> {
        let resets = Control1::RESET_ALL::SET.value
            | Control1::RESET_COMMAND::SET.value
            | Control1::RESET_DATA::SET.value;
        self.write(|registers| registers.control1.set(value));
        let registers = self.port.registers();
        wait(COMMAND_LIMIT_US, &|| registers.control1.get() & resets == 0).ok_or(BusError::Dead)
    }

    fn set_gap(&self, hz: u32) {
        if self.quirks.loses_writes {
            let gap_us = 2_000_000u64.div_ceil(u64::from(hz)) + 1;
            self.port.set_gap(gap_us);
        }
    }

    pub(super) fn write(&self, write: impl FnOnce(&Registers)) {
        self.port.write(write);
    }
}

impl Host for Sdhci {
    fn reset(&mut self) -> Result<(), BusError> {
        self.set_gap(SLOWEST_HZ);
        self.set_control1(Control1::RESET_ALL::SET.value)?;
        self.bus = Bus::default();
        self.update_control0();
        self.set_clock(SLOWEST_HZ)?;
        // All is shown in the status; signalled is what somebody waits for.
        self.write(|registers| registers.signal_enable.set(0));
        self.write(|registers| registers.status_enable.set(u32::MAX));
        self.write(|registers| registers.status.set(u32::MAX));
        // A card wants 74 clocks and a millisecond from power-on.
        pause(1_000);
        Ok(())
    }

    fn set_clock(&mut self, hz: u32) -> Result<u32, BusError> {
        let base_hz = self.base_hz();
        let divider = divider(base_hz, hz, self.capabilities.is_version_3);
        self.write(|registers| registers.control1.set(0));
        let settings = Control1::DIVIDER_LOW.val(divider & 0xff)
            + Control1::DIVIDER_HIGH.val(divider >> 8)
            + Control1::DATA_TIMEOUT::Longest
            + Control1::INTERNAL_CLOCK::SET;
        self.write(|registers| registers.control1.write(settings));
        let registers = self.port.registers();
        wait(COMMAND_LIMIT_US, &|| {
            registers.control1.is_set(Control1::IS_STABLE)
        })
        .ok_or(BusError::Dead)?;
        self.write(|registers| {
            let settings = settings + Control1::SD_CLOCK::SET;
            registers.control1.write(settings);
        });
        self.set_gap(hz);
        Ok(divided(base_hz, divider))
    }

    fn set_bus(&mut self, bus: Bus) {
        self.bus = bus;
        self.update_control0();
    }

    fn has_high_speed(&self) -> bool {
        self.capabilities.has_high_speed
    }

    fn slot(&self) -> Slot {
        if !self.quirks.has_detection {
            return Slot::Unknown;
        }
        let present = &self.port.registers().present;
        // While a card goes in or out the contact bounces; that ends.
        wait(COMMAND_LIMIT_US, &|| present.is_set(Present::IS_STABLE));
        if present.is_set(Present::IS_INSERTED) {
            return Slot::Card;
        }
        // QEMU sees no card come before it was said that the last one is known to be gone.
        let seen = Status::IS_IN::SET + Status::IS_OUT::SET;
        self.write(|registers| registers.status.write(seen));
        Slot::Empty
    }

    fn is_locked(&self) -> bool {
        self.quirks.has_detection && !self.port.registers().present.is_set(Present::IS_WRITABLE)
    }

    #[inline(never)]
    fn command(&mut self, command: host::Command) -> Result<LongRegister, BusError> {
        self.guarded(|host| {
            let answer = host.begin(command, None)?;
            if command.response == Response::ShortBusy {
                host.wait_for_end(command.index)?;
            }
            Ok(answer)
        })
    }

    #[inline(never)]
    fn read_register(&mut self, command: host::Command, bytes: &mut [u8]) -> Result<u32, BusError> {
        let shape = Shape {
            size: bytes.len() as u32,
            count: 1,
            way: Way::Read,
            uses_dma: false,
        };
        self.guarded(|host| {
            let LongRegister([status, ..]) = host.begin(command, Some(&shape))?;
            host.take_block(command.index, bytes)?;
            host.wait_for_end(command.index)?;
            Ok(status)
        })
    }

    fn write_register(
        &mut self,
        command: host::Command,
        bytes: &[u8; 512],
    ) -> Result<u32, BusError> {
        let shape = Shape {
            size: BLOCK_SIZE as u32,
            count: 1,
            way: Way::Write,
            uses_dma: false,
        };
        self.guarded(|host| {
            let LongRegister([status, ..]) = host.begin(command, Some(&shape))?;
            host.give_block(command.index, bytes)?;
            host.wait_for_end(command.index)?;
            Ok(status)
        })
    }

    fn transfer(
        &mut self,
        way: Way,
        argument: u32,
        blocks: &mut blocks::Blocks<'_>,
    ) -> Result<u32, BusError> {
        self.guarded(|host| match host.method {
            Method::Pio => host.transfer_by_processor(way, argument, blocks),
            method => host.transfer_by_dma(method, way, argument, blocks),
        })
    }

    fn now_us(&self) -> u64 {
        timer::us_from_ticks(timer::now())
    }

    fn pause_us(&mut self, us: u64) {
        match us {
            0 => {}
            1..200 => pause(us),
            _ if thread::may_wait() => thread::sleep(us),
            _ => pause(us),
        }
    }
}

/// Bits of the command that say what is answered.
fn expected(response: Response) -> tock_registers::fields::FieldValue<u32, Command::Register> {
    let checks = Command::CHECK_CRC::SET + Command::CHECK_INDEX::SET;
    match response {
        Response::None => Command::RESPONSE::None,
        Response::Plain => Command::RESPONSE::Short,
        Response::Long => Command::RESPONSE::Long + Command::CHECK_CRC::SET,
        Response::Short => Command::RESPONSE::Short + checks,
        Response::ShortBusy => Command::RESPONSE::ShortBusy + checks,
    }
}

/// The command that moves so many blocks.
pub(super) fn block_command(way: Way, argument: u32, count: usize) -> host::Command {
    let single = match way {
        Way::Read => READ_SINGLE_BLOCK,
        Way::Write => WRITE_BLOCK,
    };
    host::Command::short(single + u8::from(count > 1), argument)
}

/// What a transfer of so many blocks may take.
pub(super) fn limit_us(count: usize) -> u64 {
    DATA_LIMIT_US + count as u64 * BLOCK_LIMIT_US
}

/// The most blocks of one command.
pub(super) const fn max_blocks() -> usize {
    MAX_BLOCKS
}

/// Waits for `condition`, which no interrupt tells; `None` where it does not come.
#[inline(never)]
fn wait(limit_us: u64, condition: &dyn Fn() -> bool) -> Option<()> {
    const PATIENCE_US: u64 = 50;
    let start = timer::now();
    let [patience, limit] = [PATIENCE_US, limit_us].map(|us| start + timer::ticks_from_us(us));
    loop {
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
