//! The PL011 UART (Arm PrimeCell UART Technical Reference Manual, DDI 0183).

use crate::arch::aarch64::timer;
use crate::mm::addr::VirtAddr;
use tock_registers::interfaces::{ReadWriteable, Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite, WriteOnly};
use tock_registers::{register_bitfields, register_structs};

register_bitfields! {u32,
    Data [
        BYTE OFFSET(0) NUMBITS(8) [],
        FRAMING_ERROR OFFSET(8) NUMBITS(1) [],
        PARITY_ERROR OFFSET(9) NUMBITS(1) [],
        BREAK OFFSET(10) NUMBITS(1) [],
        OVERRUN OFFSET(11) NUMBITS(1) []
    ],
    Flags [
        BUSY OFFSET(3) NUMBITS(1) [],
        RECEIVE_EMPTY OFFSET(4) NUMBITS(1) [],
        TRANSMIT_FULL OFFSET(5) NUMBITS(1) []
    ],
    LineControl [
        FIFO_ENABLE OFFSET(4) NUMBITS(1) [],
        WORD_LENGTH OFFSET(5) NUMBITS(2) [Eight = 3]
    ],
    Control [
        UART_ENABLE OFFSET(0) NUMBITS(1) [],
        LOOPBACK OFFSET(7) NUMBITS(1) [],
        TRANSMIT_ENABLE OFFSET(8) NUMBITS(1) [],
        RECEIVE_ENABLE OFFSET(9) NUMBITS(1) []
    ],
    Peripheral2 [
        REVISION OFFSET(4) NUMBITS(4) []
    ],
    Interrupts [
        RECEIVE OFFSET(4) NUMBITS(1) [],
        RECEIVE_TIMEOUT OFFSET(6) NUMBITS(1) [],
        ALL OFFSET(0) NUMBITS(11) []
    ]
}

register_structs! {
    Registers {
        (0x00 => data: ReadWrite<u32, Data::Register>),
        (0x04 => _reserved0),
        (0x18 => flags: ReadOnly<u32, Flags::Register>),
        (0x1c => _reserved1),
        (0x24 => integer_baud: ReadWrite<u32>),
        (0x28 => fractional_baud: ReadWrite<u32>),
        (0x2c => line_control: ReadWrite<u32, LineControl::Register>),
        (0x30 => control: ReadWrite<u32, Control::Register>),
        (0x34 => fifo_level: ReadWrite<u32>),
        (0x38 => interrupt_mask: ReadWrite<u32, Interrupts::Register>),
        (0x3c => _reserved2),
        (0x44 => interrupt_clear: WriteOnly<u32, Interrupts::Register>),
        (0x48 => _reserved3),
        (0xfe8 => peripheral2: ReadOnly<u32, Peripheral2::Register>),
        (0xfec => @END),
    }
}

/// Where what is sent goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loopback {
    /// Back to the receiver.
    On,
    /// Out.
    Off,
}

/// Bits a second on the line.
const BAUD: u64 = 115_200;

/// What a full FIFO takes to leave at 9600 bits a second, and more.
const DRAIN_US: u64 = 50_000;

/// The revision that QEMU's UART says it is, on every machine (`hw/char/pl011.c`); the Raspberry Pis have 2.
const QEMU_REVISION: u32 = 1;

/// Bytes that wait in either direction at most.
const FIFO_SIZE: usize = 32;

/// A PL011, 8 data bits, no parity, one stop bit.
pub struct Pl011 {
    registers: &'static Registers,
    /// What was received before the UART was set up, which empties the FIFO.
    early: [u8; FIFO_SIZE],
    early_len: usize,
    early_read: usize,
    errors: u64,
}

// SAFETY: the registers belong to whoever has the `Pl011`, on whatever core.
unsafe impl Send for Pl011 {}

impl Pl011 {
    /// Sets the UART up. `clock_hz` is what it divides; `None` leaves the speed as firmware or emulator set it.
    ///
    /// # Safety
    /// `base` is where a PL011's registers are mapped, for good, and nobody else uses them.
    pub unsafe fn new(base: VirtAddr, clock_hz: Option<u64>) -> Self {
        // SAFETY: as promised.
        let registers = unsafe { &*(base.0 as *const Registers) };
        let mut uart = Self {
            registers,
            early: [0; FIFO_SIZE],
            early_len: 0,
            early_read: 0,
            errors: 0,
        };
        while uart.early_len < FIFO_SIZE
            && let Some(byte) = uart.receive()
        {
            uart.early[uart.early_len] = byte;
            uart.early_len += 1;
        }
        if let Some(clock_hz) = clock_hz {
            // What firmware still sends goes out whole, unless it left a FIFO that no transmitter empties: that is busy
            // for ever. Then nothing moves while the speed changes.
            let deadline = timer::now() + timer::ticks_from_us(DRAIN_US);
            while registers.flags.is_set(Flags::BUSY) && timer::now() < deadline {
                core::hint::spin_loop();
            }
            registers.control.set(0);
            // The divisor in 64ths, rounded: clock / (16 * baud) * 64.
            let divisor = (clock_hz * 8 / BAUD).div_ceil(2) as u32;
            registers.integer_baud.set(divisor >> 6);
            registers.fractional_baud.set(divisor & 0x3f);
            // Takes over the divisor, too. Enabling the FIFO empties it: an emulator, which receives at any time, would
            // lose the start of what comes from a pipe. It keeps what it has; it makes its sender wait.
            let is_emulated = registers.peripheral2.read(Peripheral2::REVISION) == QEMU_REVISION;
            registers.line_control.write(if is_emulated {
                LineControl::WORD_LENGTH::Eight
                    + LineControl::FIFO_ENABLE
                        .val(registers.line_control.read(LineControl::FIFO_ENABLE))
            } else {
                LineControl::WORD_LENGTH::Eight + LineControl::FIFO_ENABLE::SET
            });
        }
        registers.interrupt_mask.set(0);
        registers.interrupt_clear.write(Interrupts::ALL.val(0x7ff));
        registers.control.write(
            Control::UART_ENABLE::SET
                + Control::TRANSMIT_ENABLE::SET
                + Control::RECEIVE_ENABLE::SET,
        );
        uart
    }

    /// Sends a byte, unless the FIFO is full.
    pub fn try_write(&self, byte: u8) -> bool {
        if self.registers.flags.is_set(Flags::TRANSMIT_FULL) {
            return false;
        }
        self.registers.data.set(u32::from(byte));
        true
    }

    /// Receives, for a test, what is sent, or again what others send.
    pub fn set_loopback(&mut self, loopback: Loopback) {
        let control = &self.registers.control;
        control.modify(match loopback {
            Loopback::On => Control::LOOPBACK::SET,
            Loopback::Off => Control::LOOPBACK::CLEAR,
        });
    }

    /// Whether something is still on its way out.
    pub fn is_busy(&self) -> bool {
        self.registers.flags.is_set(Flags::BUSY)
    }

    /// A received byte, if there is one. One that came with an error is counted, and dropped unless it is whole.
    pub fn try_read(&mut self) -> Option<u8> {
        if self.early_read < self.early_len {
            self.early_read += 1;
            return Some(self.early[self.early_read - 1]);
        }
        self.receive()
    }

    fn receive(&mut self) -> Option<u8> {
        while !self.registers.flags.is_set(Flags::RECEIVE_EMPTY) {
            let data = self.registers.data.extract();
            let is_broken = data.is_set(Data::FRAMING_ERROR)
                || data.is_set(Data::PARITY_ERROR)
                || data.is_set(Data::BREAK);
            if is_broken || data.is_set(Data::OVERRUN) {
                self.errors += 1;
            }
            if !is_broken {
                return Some(data.read(Data::BYTE) as u8);
            }
        }
        None
    }

    /// Announces received bytes by interrupt: when the FIFO is half full, or 32 bit times after the last byte.
    pub fn enable_receive_interrupt(&mut self) {
        self.registers
            .interrupt_mask
            .write(Interrupts::RECEIVE::SET + Interrupts::RECEIVE_TIMEOUT::SET);
    }

    /// Announces nothing.
    pub fn disable_receive_interrupt(&mut self) {
        self.registers.interrupt_mask.set(0);
    }

    /// Ends the announcement of bytes that have been read.
    pub fn acknowledge_receive(&mut self) {
        self.registers
            .interrupt_clear
            .write(Interrupts::RECEIVE::SET + Interrupts::RECEIVE_TIMEOUT::SET);
    }

    /// Framing, parity and overrun errors, and breaks, so far.
    pub fn errors(&self) -> u64 {
        self.errors
    }
}
