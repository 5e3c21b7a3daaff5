//! The boot sequence, and how the machine ends.
//!
//! ```text
//! boot.rs       one core at EL1, MMU on, the image mapped
//! start         the tables that stay; what machine this is; its UART, its RAM; interrupts, time, threads
//! main          a thread: start-up lines, then the command line or the console
//! stop          what was printed leaves, then exit status or power off
//! ```

use crate::arch::aarch64::board::{Board, BoardError, Controller, Known, RaspberryPi, Uart};
use crate::arch::aarch64::device_tree::{self, TreeError};
use crate::arch::aarch64::interrupt_controller::{
    InitError, InterruptController, find_redistributor,
};
use crate::arch::aarch64::kernel_map::{self, MapError};
use crate::arch::aarch64::{halt, layout, pmu, power, timer};
use crate::command::{FAILURE, Status, USAGE};
use crate::driver::gpio;
use crate::driver::mailbox::Mailbox;
use crate::driver::pl011::Pl011;
use crate::mm::addr::PhysAddr;
use crate::options::Options;
use crate::shell;
use crate::symbols::{Symbol, Symbols};
use crate::sync::Mutex;
use crate::thread::{self, Role};
use crate::{console, disk, files, interrupt, mm, println, program};
use aarch64_cpu::registers::{MIDR_EL1, Readable};
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};
use log::LevelFilter;
use spin::Once;

static BOARD: Once<Board> = Once::new();

/// Exception level the image was entered at.
static ENTRY_LEVEL: AtomicU8 = AtomicU8::new(0);

/// The machine we run on.
///
/// # Panics
/// Before it is known.
pub fn board() -> &'static Board {
    BOARD.get().expect("the machine is known")
}

/// Exception level the image was entered at: 1, 2 or 3.
pub fn entry_level() -> u8 {
    ENTRY_LEVEL.load(Ordering::Relaxed)
}

/// What the boot code hands over: the device tree, or what was in x0 instead; where the image is; the exception level
/// it was entered at.
pub(crate) extern "C" fn start(tree: PhysAddr, image: PhysAddr, level: u64) -> ! {
    pmu::init();
    kernel_map::init(image);
    ENTRY_LEVEL.store(level as u8, Ordering::Relaxed);
    timer::init(None);
    let board = match find_board(tree) {
        Ok(board) => BOARD.call_once(|| board),
        Err(error) => fail(format_args!("device tree at {tree}: {error}")),
    };
    // Once: what was received by then is in the console.
    if !console::is_attached() {
        attach_console(&board.uart, board.raspberry_pi);
    }
    if let Err(error) = mm::init(board) {
        fail(format_args!("{error}"));
    }
    timer::init(board.timer_hz);
    thread::init();
    start_devices(board);
    if let Err(error) = thread::spawn("main", Role::Kernel, main) {
        fail(format_args!("{error}"));
    }
    thread::idle()
}

/// Without one of these the machine still runs, if worse; so each is only told.
fn start_devices(board: &Board) {
    match interrupt_controller(&board.controller) {
        Ok(controller) => interrupt::init(controller),
        Err(error) => println!("pinfold: {}: {error}", board.controller),
    }
    let timer = interrupt::listen(board.timer_interrupt, |_| thread::on_timer(), 0);
    if let Err(error) = timer {
        println!("pinfold: timer interrupt: {error}");
    }
    let listening = match board.uart.interrupt {
        Some(line) => interrupt::listen(line, |_| console::on_interrupt(), 0),
        None => return poll_console(&"the UART has none"),
    };
    match listening {
        Ok(()) => console::listen(),
        Err(error) => poll_console(&error),
    }
}

/// Without an interrupt somebody has to look whether something was typed.
fn poll_console(reason: &dyn fmt::Display) {
    println!("pinfold: UART interrupt: {reason}; the console is polled");
    if let Err(error) = thread::spawn("console", Role::Kernel, console::poll) {
        println!("pinfold: {error}; the console only speaks");
    }
}

fn main() {
    let line = board().command_line;
    let options = Options::parse(line, program::env::take_from);
    if options.is_plain {
        console::set_plain();
    }
    console::init_log(options.log.unwrap_or(LevelFilter::Info));
    console::on_ctrl_c(|| {
        program::interrupt();
    });
    disk::init(board(), options.sd);
    files::init(options.root);
    for word in &options.unknown {
        println!(
            "pinfold: \"{word}\" on the command line is no option: log=LEVEL, root=DISK, sd=METHOD, plain"
        );
    }
    let status = if options.commands.is_empty() {
        shell::interactive()
    } else {
        // Before a pipe comes nothing but what the commands print.
        if console::is_terminal() {
            println!("{}", Banner);
        }
        shell::run_line(options.commands)
    };
    shut_down(status)
}

struct Banner;

impl fmt::Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let board = board();
        writeln!(
            f,
            "Pinfold {} on {}, {} core{} (1 in use), {} MiB of RAM, entered at EL{}",
            env!("CARGO_PKG_VERSION"),
            board.model,
            board.cores,
            if board.cores == 1 { "" } else { "s" },
            board.ram.bytes() >> 20,
            entry_level(),
        )?;
        write!(f, "{}", start_cost(timer::now()))
    }
}

/// Time since power-on at `ticks`, memory in use, size of the image: one line.
pub fn start_cost(ticks: u64) -> impl fmt::Display {
    struct Cost(u64);
    impl fmt::Display for Cost {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(
                f,
                "{} us since power-on, {} KiB of RAM in use, image {} KiB",
                timer::ns_from_ticks(self.0) / 1000,
                mm::used_bytes() >> 10,
                image_file_size() >> 10,
            )?;
            if pmu::has_instructions() {
                write!(f, ", {} instructions", pmu::instructions())?;
            }
            Ok(())
        }
    }
    Cost(ticks)
}

/// Bytes in `kernel8.img`: up to the end of the symbols.
pub fn image_file_size() -> u64 {
    let (start, blob) = symbols_place();
    start - layout::IMAGE.0 + Symbols::new(blob).map_or(0, |symbols| symbols.size() as u64)
}

fn symbols_place() -> (u64, &'static [u8]) {
    unsafe extern "C" {
        static __symbols_start: u8;
        static __symbols_end: u8;
    }
    let start = &raw const __symbols_start;
    let len = &raw const __symbols_end as usize - start as usize;
    // SAFETY: the linker keeps this room, mapped read-only, for the table.
    (start as u64, unsafe {
        core::slice::from_raw_parts(start, len)
    })
}

/// The function that `address` lies in.
pub fn symbol(address: u64) -> Option<Symbol<'static>> {
    let offset = address.checked_sub(layout::IMAGE.0)?;
    Symbols::new(symbols_place().1)?.find(u32::try_from(offset).ok()?)
}

/// The board, by its tree; a Raspberry Pi may have none.
///
/// Like `assume`, not inlined: a `Board` is large for the boot stack, and there is to be only one on it at a time.
#[inline(never)]
fn find_board(tree: PhysAddr) -> Result<Board, BoardError> {
    // QEMU puts virt's tree there when it starts something that is no Linux image.
    const FALLBACK: PhysAddr = PhysAddr(0x4000_0000);
    let (bytes, at) = match (firmware_tree(tree), guess()) {
        (Ok(bytes), _) => (bytes, tree),
        // There is one, and it is not to be trusted: nor is anything else then.
        (Err(error), _) if !matches!(error, TreeError::Magic(_)) => {
            return Err(BoardError::Tree(error));
        }
        (Err(error), Some(Known::Virt)) => match firmware_tree(FALLBACK) {
            Ok(bytes) => (bytes, FALLBACK),
            Err(_) => return Err(BoardError::Tree(error)),
        },
        (Err(error), Some(known)) => return assume(known, tree, error),
        (Err(_), None) => return Err(BoardError::Unknown(part_number())),
    };
    Board::from_tree(bytes, at)
}

/// A Raspberry Pi without a tree: its memory and its command line come by mailbox.
#[inline(never)]
fn assume(known: Known, tree: PhysAddr, error: TreeError) -> Result<Board, BoardError> {
    let mut board = Board::built_in(known).ok_or(BoardError::Unknown(part_number()))?;
    if let Some(mailbox) = board.raspberry_pi.and_then(open_mailbox) {
        let mut mailbox = mailbox.lock();
        attach_console(&board.uart, board.raspberry_pi);
        if is_plausible(tree) {
            println!("pinfold: no device tree at {tree} ({error}); this board's own is assumed");
        }
        match mailbox.arm_memory() {
            Ok((start, size)) => board.set_ram(PhysAddr(start), size),
            Err(error) => println!("pinfold: no memory size from the mailbox: {error}"),
        }
        match mailbox.command_line() {
            Ok(line) => board.command_line = line,
            Err(error) => println!("pinfold: no command line from the mailbox: {error}"),
        }
    }
    Ok(board)
}

/// The mailbox to a Raspberry Pi's VideoCore.
pub fn mailbox() -> Option<&'static Mutex<Mailbox>> {
    board().raspberry_pi.and_then(open_mailbox)
}

fn open_mailbox(pi: RaspberryPi) -> Option<&'static Mutex<Mailbox>> {
    static MAILBOX: Once<Mutex<Mailbox>> = Once::new();
    let open = || -> Result<_, MapError> {
        let registers = kernel_map::map_device(pi.mailbox, Mailbox::SIZE)?;
        // SAFETY: just mapped, and `MAILBOX` holds the only one.
        Ok(Mutex::new(unsafe { Mailbox::new(registers) }))
    };
    MAILBOX.try_call_once(open).ok()
}

/// The tree's bytes, mapped for good; its length is all that is known to be sound.
fn firmware_tree(tree: PhysAddr) -> Result<&'static mut [u8], TreeError> {
    if !is_plausible(tree) {
        return Err(TreeError::Magic(0));
    }
    let map = |len| kernel_map::map_firmware(tree, len).map_err(|_| TreeError::Size(len as u32));
    let header = map(8)?;
    // SAFETY: firmware says that there is a tree here; whatever there is, it is mapped.
    let header = unsafe { core::slice::from_raw_parts(header.0 as *const u8, 8) };
    let len = device_tree::size(header)?;
    let bytes = map(len as u64)?;
    // SAFETY: as above; the range will be reserved, and this is the one time that it is asked for with success.
    Ok(unsafe { core::slice::from_raw_parts_mut(bytes.0 as *mut u8, len) })
}

/// Whether firmware may have meant a tree: QEMU gives a Raspberry Pi without one 0x100.
fn is_plausible(tree: PhysAddr) -> bool {
    tree.0 >= 0x1000 && tree.0 < layout::LINEAR_SIZE && tree.is_aligned(8)
}

fn guess() -> Option<Known> {
    Known::guess(kernel_map::image().start, part_number())
}

fn part_number() -> u64 {
    MIDR_EL1.read(MIDR_EL1::PartNum)
}

fn attach_console(uart: &Uart, pi: Option<RaspberryPi>) {
    let Ok(base) = kernel_map::map_device(uart.base, 0x1000) else {
        return;
    };
    if let Some(pi) = pi
        && let Ok(gpio) = kernel_map::map_device(pi.gpio, 0x1000)
    {
        // SAFETY: just mapped, and nobody else decides about these pins.
        unsafe { gpio::select_pl011(gpio) };
    }
    // SAFETY: just mapped, for good; the console is its only user.
    console::attach(unsafe { Pl011::new(base, uart.clock_hz) });
}

fn interrupt_controller(controller: &Controller) -> Result<InterruptController, InitError> {
    let map = |address, len| kernel_map::map_device(address, len).map_err(|_| InitError::Unmapped);
    let mut controller = match *controller {
        Controller::GicV2 { distributor, cpu } => InterruptController::GicV2 {
            distributor: map(distributor, 0x1000)?,
            cpu: map(cpu, 0x1000)?,
        },
        Controller::GicV3 {
            distributor,
            ref redistributors,
        } => {
            let mut own = None;
            for &(first, len) in redistributors {
                // A page table for each 2 MiB: not for the hundreds of cores there might be.
                let len = len.min(u64::from(board().cores) * 0x4_0000);
                let first = map(first, len)?;
                // SAFETY: just mapped.
                own = own.or(unsafe { find_redistributor(first, len, 0) });
            }
            InterruptController::GicV3 {
                distributor: map(distributor, 0x1_0000)?,
                redistributor: own.ok_or(InitError::NoRedistributor)?,
            }
        }
        Controller::Bcm2836 { local, peripheral } => InterruptController::Bcm2836 {
            local: map(local, 0x1000)?,
            peripheral: map(peripheral, 0x1000)?,
        },
    };
    // SAFETY: just mapped, for good, and this is their only user.
    unsafe { controller.init()? };
    Ok(controller)
}

/// Where there is no console yet, takes the UART of the board that this probably is.
pub(crate) fn find_console() {
    if !console::is_attached()
        && let Some(known) = guess()
    {
        attach_console(
            &known.uart(),
            Board::built_in(known).and_then(|b| b.raspberry_pi),
        );
    }
}

/// A machine that cannot go on, before there is anybody to tell but who watches the UART.
fn fail(reason: fmt::Arguments<'_>) -> ! {
    find_console();
    println!("pinfold: {reason}; the machine stops");
    stop(USAGE)
}

/// Ends the machine as it should end: what is mounted is made durable first.
pub fn shut_down(status: Status) -> ! {
    let is_durable = files::shut_down();
    stop(if is_durable {
        status
    } else {
        status.max(FAILURE)
    })
}

/// Ends the machine: with `status` where an emulator takes it, else by powering off.
pub fn stop(status: Status) -> ! {
    console::flush();
    power::exit(status);
    if let Some(board) = BOARD.get() {
        power::off(board);
    }
    println!("pinfold: this machine cannot be powered off; it rests");
    halt()
}

/// Starts the machine anew, with what is mounted made durable first.
pub fn restart() -> ! {
    files::shut_down();
    console::flush();
    if let Some(board) = BOARD.get() {
        power::restart(board);
    }
    println!("pinfold: this machine cannot be restarted; it rests");
    halt()
}
