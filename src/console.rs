//! The serial console: output of whole lines, interrupt-driven input, and the log.
//!
//! It is a terminal, where somebody sits, unless the kernel command line says `plain`: then nobody does. A terminal gets
//! CR LF, a pipe LF; colours, prompts and what is redrawn are for terminals. Ctrl-C interrupts what runs.
//!
//! Output is polled, a byte at a time, without a lock held for longer than one byte takes to enter the FIFO: a slow
//! line (11 520 bytes a second on a real board) must not keep interrupts masked. What keeps lines apart is a mutex,
//! taken only by threads that may wait; a handler, a lock holder or a crash report just writes. It is held while a piece
//! of memory of ours goes out, never while a program's is touched or its `Display` runs: those may fault, wait for a disk
//! whose driver has something to say, print themselves, or crash.

use crate::driver::pl011::{Loopback, Pl011};
use crate::sync::{Mutex, SpinLock, SpinLockGuard, WaitQueue};
use crate::thread::{self, Call};
use crate::{interrupt, selftest};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use log::{LevelFilter, Log, Metadata, Record};
use spin::Once;

static UART: SpinLock<Option<Pl011>> = SpinLock::new(None);
static LINE: Mutex<()> = Mutex::new(());

/// Whether somebody sits there.
static IS_TERMINAL: AtomicBool = AtomicBool::new(true);

/// Commands that run and that Ctrl-C is to interrupt.
static RUNNING: AtomicU64 = AtomicU64::new(0);

/// Ctrl-C was typed while a command ran.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whom else Ctrl-C is told.
static ON_CTRL_C: Once<fn()> = Once::new();

/// Bytes typed while a command ran that there was no room for.
static LOST: AtomicU64 = AtomicU64::new(0);

/// What was written last.
static LAST: AtomicU8 = AtomicU8::new(b'\n');

const CTRL_C: u8 = 0x03;

/// Received bytes that nobody has read.
const INPUT_SIZE: usize = 16 << 10;

struct Input {
    bytes: [u8; INPUT_SIZE],
    first: usize,
    len: usize,
    /// There is no room, and the UART was told to announce nothing.
    is_held: bool,
}

impl Input {
    /// Keeps `byte`; where there is no room, counts it as lost.
    fn push(&mut self, byte: u8) {
        if self.len == INPUT_SIZE {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.bytes[(self.first + self.len) % INPUT_SIZE] = byte;
        self.len += 1;
    }

    /// Where `byte` is among the bytes from number `from` on.
    fn position(&self, from: usize, byte: u8) -> Option<usize> {
        (from..self.len).find(|at| self.bytes[(self.first + at) % INPUT_SIZE] == byte)
    }

    /// Takes byte number `at` out.
    fn remove(&mut self, at: usize) {
        for i in at + 1..self.len {
            let from = (self.first + i) % INPUT_SIZE;
            self.bytes[(self.first + i - 1) % INPUT_SIZE] = self.bytes[from];
        }
        self.len -= 1;
    }
}

static INPUT: SpinLock<Input> = SpinLock::new(Input {
    bytes: [0; INPUT_SIZE],
    first: 0,
    len: 0,
    is_held: false,
});
static RECEIVED: WaitQueue = WaitQueue::new();

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}

/// Prints to the console, not in the middle of another thread's output. What an argument's own `fmt` prints comes before.
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut piece = Piece::EMPTY;
    // The only error is one that an argument's own `fmt` returned: what it printed so far stands.
    let _ = piece.write_fmt(arguments);
    piece.go_out();
}

/// Prints a line that says what went wrong.
pub fn complain(arguments: fmt::Arguments<'_>) {
    print(format_args!("{}\n", Styled(Style::Error, arguments)));
}

/// How something looks at a terminal. Colours are those that can be read on a light and on a dark ground.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// As it comes.
    Normal,
    /// A heading, a name.
    Strong,
    /// A folder.
    Directory,
    /// A symbolic link.
    Link,
    /// What went wrong.
    Error,
}

impl Style {
    /// The parameters of "Select Graphic Rendition" (ECMA-48).
    fn code(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::Strong => "1",
            Self::Directory => "1;34",
            Self::Link => "35",
            Self::Error => "31",
        }
    }
}

/// Something in a style, where the console is a terminal.
pub struct Styled<T>(pub Style, pub T);

impl<T: fmt::Display> fmt::Display for Styled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0.code();
        if code.is_empty() || !is_terminal() {
            return self.1.fmt(f);
        }
        write!(f, "\x1b[{code}m")?;
        self.1.fmt(f)?;
        f.write_str("\x1b[m")
    }
}

/// Whether somebody sits there: colours, prompts and what is redrawn are for them.
pub fn is_terminal() -> bool {
    IS_TERMINAL.load(Ordering::Relaxed)
}

/// Nobody does: bytes go out and come in as they are.
pub(crate) fn set_plain() {
    IS_TERMINAL.store(false, Ordering::Relaxed);
}

/// Prints bytes as they are, but at a terminal LF as CR LF.
pub fn write_bytes(bytes: &[u8]) {
    let _call = Call::enter();
    for part in bytes.chunks(PIECE) {
        if thread::is_to_end() {
            return; // nobody waits for the rest
        }
        let mut piece = Piece::EMPTY;
        piece.add(part);
        piece.go_out();
    }
}

/// Bytes that are not broken up by others' output.
const PIECE: usize = 256;

/// What is to go out next.
struct Piece {
    bytes: [u8; PIECE],
    len: usize,
}

impl Piece {
    const EMPTY: Self = Self {
        bytes: [0; PIECE],
        len: 0,
    };

    /// Adds `bytes`; what fills a piece goes out.
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.len == PIECE {
                self.go_out();
            }
            let (part, rest) = bytes.split_at(bytes.len().min(PIECE - self.len));
            self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
            self.len += part.len();
            bytes = rest;
        }
    }

    fn go_out(&mut self) {
        // Not around `fmt`, which may be a program's, and call: that call is one by itself.
        let _call = Call::enter();
        // Those who may not wait just write.
        let line = thread::may_wait().then(|| LINE.lock());
        self.bytes[..self.len]
            .iter()
            .for_each(|byte| put_text(*byte));
        drop(line);
        self.len = 0;
    }
}

impl Write for Piece {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}

fn put_text(byte: u8) {
    if byte == b'\n' && is_terminal() {
        put(b'\r');
    }
    put(byte);
}

/// Writes to the UART, at a terminal with CR before LF. For reports, which must not wait.
pub struct Writer;

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put_text);
        Ok(())
    }
}

/// Ends the row, if something stands on it.
pub(crate) fn end_row() {
    if LAST.load(Ordering::Relaxed) != b'\n' {
        print(format_args!("\n"));
    }
}

fn put(byte: u8) {
    LAST.store(byte, Ordering::Relaxed);
    loop {
        match &mut *UART.lock() {
            Some(uart) if !uart.try_write(byte) => {}
            _ => return,
        }
        core::hint::spin_loop();
    }
}

/// Takes the UART from whoever uses it.
///
/// # Safety
/// That was a crash's critical section: nobody else will run again.
pub(crate) unsafe fn seize() {
    // SAFETY: as promised, the guard will never be dropped.
    unsafe { UART.force_unlock() };
}

/// Takes the UART into use.
pub fn attach(uart: Pl011) {
    *UART.lock() = Some(uart);
}

/// Whether there is a UART to write to.
pub fn is_attached() -> bool {
    UART.lock().is_some()
}

/// An interrupt was for what was typed before.
pub(crate) fn forget_interrupt() {
    IS_INTERRUPTED.store(false, Ordering::Relaxed);
}

/// Runs `f`, which Ctrl-C interrupts: whoever takes long looks at [`is_interrupted`]. It may run others, beside it too:
/// an interrupt is for all of them.
pub(crate) fn run<R>(f: impl FnOnce() -> R) -> R {
    RUNNING.fetch_add(1, Ordering::Relaxed);
    if is_terminal() && core::mem::take(&mut INPUT.lock().is_held) {
        // Ctrl-C must come through, whatever has been typed ahead.
        listen();
    }
    let result = f();
    RUNNING.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Whether what runs is to end: somebody typed Ctrl-C.
pub fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::Relaxed)
}

/// Calls `f` when Ctrl-C is typed while a command runs, in a handler: it may not wait. The first one stays.
pub fn on_ctrl_c(f: fn()) {
    ON_CTRL_C.call_once(|| f);
}

/// Lets the UART announce received bytes by interrupt; its handler is [`on_interrupt`].
pub fn listen() {
    if let Some(uart) = &mut *UART.lock() {
        uart.enable_receive_interrupt();
    }
    // What came before is announced no more.
    on_interrupt();
}

/// Waits until everything written has left the UART.
pub fn flush() {
    while UART.lock().as_ref().is_some_and(Pl011::is_busy) {
        core::hint::spin_loop();
    }
}

/// The UART's interrupt: takes what has come.
pub fn on_interrupt() {
    let is_interrupted = receive();
    if is_interrupted {
        IS_INTERRUPTED.store(true, Ordering::Relaxed);
    }
    RECEIVED.wake_all();
    if is_interrupted && let Some(tell) = ON_CTRL_C.get() {
        tell();
    }
}

/// Takes what has come; whether Ctrl-C was there for what runs.
fn receive() -> bool {
    let mut uart = UART.lock();
    let Some(uart) = uart.as_mut() else {
        return false;
    };
    let mut input = INPUT.lock();
    // First: a byte that comes after the last read must announce itself again.
    uart.acknowledge_receive();
    let is_running = RUNNING.load(Ordering::Relaxed) > 0;
    // A pipe waits; who types goes on typing, and Ctrl-C must come through.
    let must_take = is_running && is_terminal();
    let mut is_interrupted = false;
    while input.len < INPUT_SIZE || must_take {
        match uart.try_read() {
            None => break,
            Some(CTRL_C) if is_running => {
                is_interrupted = true;
                if must_take {
                    // As at every terminal, what was typed before it is forgotten, too.
                    input.len = 0;
                }
            }
            Some(byte) => input.push(byte),
        }
    }
    if input.len == INPUT_SIZE && !must_take {
        // What does not fit stays in the FIFO, and a sender who can wait, such as an emulator's pipe, does.
        uart.disable_receive_interrupt();
        input.is_held = true;
    }
    is_interrupted
}

/// Looks for what has come, again and again, on a machine whose UART does not say so.
pub(crate) fn poll() {
    const PERIOD_US: u64 = 10_000;
    loop {
        on_interrupt();
        thread::sleep(PERIOD_US);
    }
}

/// The next byte typed; waits for it.
pub fn read_byte() -> u8 {
    loop {
        if let Some(byte) = read_byte_unless(|| false) {
            return byte;
        }
    }
}

/// The next byte typed; waits for it, or for Ctrl-C to interrupt the command that waits.
pub fn read_byte_unless_interrupted() -> Option<u8> {
    read_byte_unless(is_interrupted)
}

fn read_byte_unless(ends: impl Fn() -> bool) -> Option<u8> {
    let mut input = INPUT.lock();
    while input.len == 0 {
        if ends() {
            return None;
        }
        input = RECEIVED.wait(input);
    }
    Some(take(input))
}

/// The next byte typed; `None` where none comes within about `us` microseconds.
pub fn read_byte_within(us: u64) -> Option<u8> {
    let mut input = INPUT.lock();
    if input.len == 0 {
        (input, _) = RECEIVED.wait_timeout(input, us);
    }
    (input.len > 0).then(|| take(input))
}

/// The next byte of those that have come.
fn take(mut input: SpinLockGuard<'_, Input>) -> u8 {
    let byte = input.bytes[input.first];
    input.first = (input.first + 1) % INPUT_SIZE;
    input.len -= 1;
    let has_room_again = input.is_held && input.len <= INPUT_SIZE / 2;
    if has_room_again {
        input.is_held = false;
        drop(input);
        listen();
    }
    byte
}

/// Bytes typed while a command ran that there was no room for, since this was asked last.
pub(crate) fn take_lost() -> u64 {
    LOST.swap(0, Ordering::Relaxed)
}

/// Errors on the line, and overruns: times that bytes came which nobody had room for.
pub fn input_errors() -> u64 {
    UART.lock().as_ref().map_or(0, Pl011::errors)
}

struct ConsoleLog;

impl Log for ConsoleLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let (level, target) = (record.level(), record.target());
            println!("[{level} {target}] {}", record.args());
        }
    }

    fn flush(&self) {
        flush();
    }
}

/// Sends the `log` crate's records here, from `level` up.
pub fn init_log(level: LevelFilter) {
    static LOG: ConsoleLog = ConsoleLog;
    // An error means that it was done before: then only the level changes.
    let _ = log::set_logger(&LOG);
    log::set_max_level(level);
}

/// Sends `byte` to ourselves through the UART's loopback; whether it comes back by interrupt.
fn comes_back(byte: u8) -> bool {
    let set_loopback = |loopback| {
        if let Some(uart) = &mut *UART.lock() {
            uart.set_loopback(loopback);
        }
    };
    flush();
    let before = INPUT.lock().len;
    set_loopback(Loopback::On);
    put(byte);
    let mut input = INPUT.lock();
    let mut has_timed_out = false;
    while input.position(before, byte).is_none() && !has_timed_out {
        (input, has_timed_out) = RECEIVED.wait_timeout(input, 1_000_000);
    }
    let at = input.position(before, byte);
    if let Some(at) = at {
        input.remove(at);
    }
    drop(input);
    set_loopback(Loopback::Off);
    at.is_some()
}

selftest!(fn input_comes_by_interrupt() "console: what the UART sends to itself comes in by interrupt" {
    // It is sent to the line as well: a comment in the test's output.
    const SENT: &[u8] = b"# Sent, and received: 0123456789 abcdefghijklmnopqrstuvwxyz ~!@$%^&*\r\n";
    let (before, _) = interrupt::counts();
    // Nobody prints meanwhile: it would come back, too.
    let line = LINE.lock();
    let lost = SENT.iter().find(|byte| !comes_back(**byte));
    drop(line);
    let (after, _) = interrupt::counts();
    assert_eq!(lost, None);
    assert!(after - before >= SENT.len() as u64, "only {} interrupts were taken", after - before);
});
