//! The registers of an SDHCI controller. They are only ever accessed 32 bits wide: the Raspberry Pis' controllers know
//! nothing else.

#![allow(
    missing_docs,
    reason = "names are the specification's, or say what a bit does"
)]

use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

register_bitfields! {u32,
    pub(super) Blocks [
        SIZE OFFSET(0) NUMBITS(12) [],
        SDMA_BOUNDARY OFFSET(12) NUMBITS(3) [Kib512 = 7],
        COUNT OFFSET(16) NUMBITS(16) []
    ],
    pub(super) Command [
        USES_DMA OFFSET(0) NUMBITS(1) [],
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
    pub(super) Present [
        COMMAND_INHIBIT OFFSET(0) NUMBITS(1) [],
        DATA_INHIBIT OFFSET(1) NUMBITS(1) [],
        IS_INSERTED OFFSET(16) NUMBITS(1) [],
        IS_STABLE OFFSET(17) NUMBITS(1) [],
        IS_WRITABLE OFFSET(19) NUMBITS(1) []
    ],
    pub(super) Control0 [
        FOUR_BITS OFFSET(1) NUMBITS(1) [],
        HIGH_SPEED OFFSET(2) NUMBITS(1) [],
        DMA OFFSET(3) NUMBITS(2) [Sdma = 0, Adma2 = 2],
        BUS_POWER OFFSET(8) NUMBITS(4) [On3V3 = 0xf]
    ],
    pub(super) Control1 [
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
    pub(super) Status [
        COMMAND_COMPLETE OFFSET(0) NUMBITS(1) [],
        TRANSFER_COMPLETE OFFSET(1) NUMBITS(1) [],
        SDMA_BOUNDARY OFFSET(3) NUMBITS(1) [],
        WRITE_READY OFFSET(4) NUMBITS(1) [],
        READ_READY OFFSET(5) NUMBITS(1) [],
        IS_IN OFFSET(6) NUMBITS(1) [],
        IS_OUT OFFSET(7) NUMBITS(1) [],
        ERROR OFFSET(15) NUMBITS(1) [],
        COMMAND_TIMEOUT OFFSET(16) NUMBITS(1) [],
        COMMAND_CRC OFFSET(17) NUMBITS(1) [],
        COMMAND_END OFFSET(18) NUMBITS(1) [],
        COMMAND_INDEX OFFSET(19) NUMBITS(1) [],
        DATA_TIMEOUT OFFSET(20) NUMBITS(1) [],
        DATA_CRC OFFSET(21) NUMBITS(1) [],
        DATA_END OFFSET(22) NUMBITS(1) [],
        ADMA OFFSET(25) NUMBITS(1) []
    ],
    pub(super) Version [
        SPECIFICATION OFFSET(16) NUMBITS(8) []
    ]
}

register_structs! {
    #[allow(missing_docs, reason = "they are named as in the specification")]
    pub(super) Registers {
        (0x00 => pub(super) sdma_address: ReadWrite<u32>),
        (0x04 => pub(super) blocks: ReadWrite<u32, Blocks::Register>),
        (0x08 => pub(super) argument: ReadWrite<u32>),
        (0x0c => pub(super) command: ReadWrite<u32, Command::Register>),
        (0x10 => pub(super) response: [ReadOnly<u32>; 4]),
        (0x20 => pub(super) data: ReadWrite<u32>),
        (0x24 => pub(super) present: ReadOnly<u32, Present::Register>),
        (0x28 => pub(super) control0: ReadWrite<u32, Control0::Register>),
        (0x2c => pub(super) control1: ReadWrite<u32, Control1::Register>),
        (0x30 => pub(super) status: ReadWrite<u32, Status::Register>),
        (0x34 => pub(super) status_enable: ReadWrite<u32>),
        (0x38 => pub(super) signal_enable: ReadWrite<u32>),
        (0x3c => _reserved1),
        (0x40 => pub(super) capabilities: ReadOnly<u32>),
        (0x44 => _reserved2),
        (0x54 => pub(super) adma_error: ReadOnly<u32>),
        (0x58 => pub(super) adma_address: ReadWrite<u32>),
        (0x5c => _reserved3),
        (0xfc => pub(super) version: ReadOnly<u32, Version::Register>),
        (0x100 => @END),
    }
}
