//! The mailbox through which a Raspberry Pi's ARM cores ask the VideoCore: property tags.
//!
//! Source: Raspberry Pi firmware wiki, "Mailboxes" and "Mailbox property interface". The VideoCore reads and writes
//! the buffer in memory, past our caches: it is cleaned before and invalidated after each call.

use crate::arch::aarch64::{cache, kernel_map, timer};
use crate::mm::addr::VirtAddr;
use crate::{kernel, selftest};
use core::fmt;

const READ: u64 = 0x00;
const READ_STATUS: u64 = 0x18;
const WRITE: u64 = 0x20;
const WRITE_STATUS: u64 = 0x38;
const FULL: u32 = 1 << 31;
const EMPTY: u32 = 1 << 30;

/// The channel of property tags.
const PROPERTIES: u32 = 8;

/// Physical address 0 as the VideoCore sees it past its own cache.
const UNCACHED_ALIAS: u32 = 0xc000_0000;

const TAG_BOARD_REVISION: u32 = 0x1_0002;
const TAG_ARM_MEMORY: u32 = 0x1_0005;
const TAG_CLOCK_RATE: u32 = 0x3_0002;
const TAG_TEMPERATURE: u32 = 0x3_0006;
const TAG_THROTTLED: u32 = 0x3_0046;
const TAG_SET_POWER: u32 = 0x2_8001;
const TAG_SET_FIRMWARE_PIN: u32 = 0x3_8041;
const TAG_DMA_CHANNELS: u32 = 0x6_0001;
const TAG_COMMAND_LINE: u32 = 0x5_0001;
const ANSWERED: u32 = 0x8000_0000;

/// Words before a tag's own.
const HEAD: usize = 5;

/// Words in the command line's buffer: the longest that firmware makes, and a head.
const LINE_WORDS: usize = 520;

/// Words in the buffer of all other tags.
const WORDS: usize = 16;

/// What the uncached alias shows of memory.
const REACH: u64 = 1 << 30;

/// What the VideoCore is given to answer; it takes milliseconds.
const TIME_LIMIT_US: u64 = 1_000_000;

/// Lines of the cache of its own, so that maintenance touches nothing else.
#[repr(C, align(64))]
struct Buffer<const N: usize>([u32; N]);

/// Lent to the one [`Mailbox`] there is.
static mut BUFFER: Buffer<WORDS> = Buffer([0; WORDS]);
static mut LINE_BUFFER: Buffer<LINE_WORDS> = Buffer([0; LINE_WORDS]);

/// A clock that the VideoCore sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// Of the Arasan SD host.
    Emmc = 1,
    /// Of the PL011.
    Uart = 2,
    /// Of the ARM cores.
    Arm = 3,
    /// Of the Raspberry Pi 4's second SD host.
    Emmc2 = 12,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailboxError {
    /// The VideoCore did not answer in time.
    NoAnswer,
    /// It does not know the tag, or the answer is damaged; its response code.
    Refused(u32),
    /// The answer is not as long as it should be, but this many bytes.
    Length(u32),
    /// The image lies where the VideoCore does not reach its buffer.
    OutOfReach,
}

impl fmt::Display for MailboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer => f.write_str("the VideoCore does not answer"),
            Self::Refused(code) => write!(f, "the VideoCore answers {code:#010x}"),
            Self::Length(len) => write!(f, "the answer is {len} bytes long"),
            Self::OutOfReach => {
                f.write_str("the image lies above 1 GiB, out of the VideoCore's reach")
            }
        }
    }
}

/// The mailbox.
pub struct Mailbox {
    base: VirtAddr,
    buffer: &'static mut [u32],
    /// Until the command line stays in it for good.
    line_buffer: Option<&'static mut [u32]>,
}

impl Mailbox {
    /// Bytes of registers.
    pub const SIZE: u64 = 0x40;

    /// # Safety
    /// `base` is where the mailbox's registers are mapped, and there never is another `Mailbox`.
    pub unsafe fn new(base: VirtAddr) -> Self {
        let (buffer, line_buffer) = (&raw mut BUFFER, &raw mut LINE_BUFFER);
        // SAFETY: these are the only references, as promised.
        let (Buffer(buffer), Buffer(line_buffer)) = unsafe { (&mut *buffer, &mut *line_buffer) };
        Self {
            base,
            buffer,
            line_buffer: Some(line_buffer),
        }
    }

    /// The RAM that belongs to the ARM cores: start and size in bytes.
    pub fn arm_memory(&mut self) -> Result<(u64, u64), MailboxError> {
        let [start, size] = self.ask(TAG_ARM_MEMORY, [0; 2])?;
        Ok((u64::from(start), u64::from(size)))
    }

    /// What board it is, as Raspberry Pi codes it ("Raspberry Pi revision codes").
    #[inline(never)]
    pub fn board_revision(&mut self) -> Result<u32, MailboxError> {
        let [revision] = self.ask(TAG_BOARD_REVISION, [0])?;
        Ok(revision)
    }

    /// How fast a clock runs, in Hz.
    #[inline(never)]
    pub fn clock_rate(&mut self, clock: Clock) -> Result<u32, MailboxError> {
        let [_clock, hz] = self.ask(TAG_CLOCK_RATE, [clock as u32, 0])?;
        Ok(hz)
    }

    /// How hot the chip is, in thousandths of a degree Celsius.
    #[inline(never)]
    pub fn temperature(&mut self) -> Result<u32, MailboxError> {
        let [_sensor, millidegrees] = self.ask(TAG_TEMPERATURE, [0, 0])?;
        Ok(millidegrees)
    }

    /// Why the chip is slowed down, or was: bit 0 too little voltage, 1 frequency capped, 2 throttled, 3 near the limit
    /// of temperature; the same from bit 16 on since power-on.
    #[inline(never)]
    pub fn throttled(&mut self) -> Result<u32, MailboxError> {
        let [state] = self.ask(TAG_THROTTLED, [0])?;
        Ok(state)
    }

    /// Switches the card slot's power on, and waits until it is; whether the VideoCore knows that it is.
    pub fn power_card_on(&mut self) -> Result<bool, MailboxError> {
        const SD_CARD: u32 = 0;
        const ON_AND_WAIT: u32 = 0b11;
        const IS_ON: u32 = 1 << 0;
        const IS_UNKNOWN: u32 = 1 << 1;
        let [_device, state] = self.ask(TAG_SET_POWER, [SD_CARD, ON_AND_WAIT])?;
        Ok(state & (IS_ON | IS_UNKNOWN) == IS_ON)
    }

    /// The DMA channels that are not firmware's: a bit each.
    pub fn dma_channels(&mut self) -> Result<u32, MailboxError> {
        let [mask] = self.ask(TAG_DMA_CHANNELS, [0])?;
        Ok(mask)
    }

    /// Sets the level of a pin that only the VideoCore reaches (the expander of a Raspberry Pi 3).
    #[inline(never)]
    pub fn set_firmware_pin(&mut self, pin: u32, is_high: bool) -> Result<(), MailboxError> {
        const FIRST: u32 = 128;
        let _ = self.ask(TAG_SET_FIRMWARE_PIN, [FIRST + pin, u32::from(is_high)])?;
        Ok(())
    }

    /// The kernel command line that firmware made. It is asked for once; after that it is empty.
    pub fn command_line(&mut self) -> Result<&'static str, MailboxError> {
        let Some(buffer) = self.line_buffer.take() else {
            return Ok("");
        };
        let room = LINE_WORDS - HEAD - 1;
        let len = self.exchange(buffer, TAG_COMMAND_LINE, room)?;
        // SAFETY: `len` bytes, `room` words at most, after the head; nobody writes to this buffer any more.
        let bytes: &'static [u8] =
            unsafe { core::slice::from_raw_parts(buffer.as_ptr().add(HEAD).cast(), len) };
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        // Where firmware's bytes are no text, what comes before them is.
        Ok(match core::str::from_utf8(&bytes[..end]) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        })
    }

    /// What the VideoCore makes of `tag` with these values.
    fn ask<const N: usize>(
        &mut self,
        tag: u32,
        mut values: [u32; N],
    ) -> Result<[u32; N], MailboxError> {
        const { assert!(HEAD + N < WORDS) };
        let mut buffer = core::mem::take(&mut self.buffer);
        buffer.fill(0);
        buffer[HEAD..HEAD + N].copy_from_slice(&values);
        let len = self.exchange(buffer, tag, N);
        values.copy_from_slice(&buffer[HEAD..HEAD + N]);
        core::mem::swap(&mut self.buffer, &mut buffer);
        match len? {
            len if len == 4 * N => Ok(values),
            len => Err(MailboxError::Length(len as u32)),
        }
    }

    /// Sends a buffer with `tag` and the `room` words after its head; says how many bytes were answered there.
    #[inline(never)]
    fn exchange(&self, buffer: &mut [u32], tag: u32, room: usize) -> Result<usize, MailboxError> {
        let head = [4 * buffer.len() as u32, 0, tag, 4 * room as u32, 0];
        buffer[..HEAD].copy_from_slice(&head);
        self.call(buffer)?;
        let (code, len) = (buffer[1], buffer[4]);
        if code != ANSWERED || len & ANSWERED == 0 {
            return Err(MailboxError::Refused(code));
        }
        let len = len & !ANSWERED;
        if len as usize > 4 * room {
            return Err(MailboxError::Length(len));
        }
        Ok(len as usize)
    }

    fn call(&self, buffer: &mut [u32]) -> Result<(), MailboxError> {
        let range = VirtAddr(buffer.as_mut_ptr() as u64);
        let len = size_of_val(buffer) as u64;
        let address = kernel_map::physical_of_image(range.0 as *const u8);
        if address.0 + len > REACH {
            return Err(MailboxError::OutOfReach);
        }
        let message = address.0 as u32 | UNCACHED_ALIAS | PROPERTIES;
        cache::clean(range, len);
        self.wait_while(WRITE_STATUS, FULL)?;
        self.write(WRITE, message);
        loop {
            self.wait_while(READ_STATUS, EMPTY)?;
            if self.read(READ) == message {
                break;
            }
        }
        cache::invalidate(range, len);
        Ok(())
    }

    fn wait_while(&self, status: u64, state: u32) -> Result<(), MailboxError> {
        let deadline = timer::now() + timer::ticks_from_us(TIME_LIMIT_US);
        while self.read(status) & state != 0 {
            if timer::now() > deadline {
                return Err(MailboxError::NoAnswer);
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: registers of 32 bits, mapped, as `new` was promised.
        unsafe { ((self.base.0 + offset) as *const u32).read_volatile() }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: as for `read`.
        unsafe { ((self.base.0 + offset) as *mut u32).write_volatile(value) };
    }
}

selftest!(fn videocore_answers() "mailbox: the VideoCore of a Raspberry Pi tells what the board says" {
    let Some(mailbox) = kernel::mailbox() else {
        // No other machine has one.
        assert!(kernel::board().raspberry_pi.is_none());
        return;
    };
    let mut mailbox = mailbox.lock();
    let (start, size) = mailbox.arm_memory().expect("an answer");
    let ram = &kernel::board().ram;
    assert!(ram.iter().any(|range| range.start.0 == start && range.end.0 >= start + size));
    assert_ne!(mailbox.board_revision(), Ok(0));
    assert!(mailbox.clock_rate(Clock::Emmc).expect("an answer") > 0);
    assert!(mailbox.temperature().expect("an answer") < 120_000);
    assert!(mailbox.ask(0x7fff_0000, [0]).is_err(), "there is no such tag");
});
