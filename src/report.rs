//! What a person reads when something went wrong, and what happens then.
//!
//! Who crashed decides: a program or a self-test is stopped and the rest goes on; the kernel, or anybody inside a
//! critical section, stops the machine with a failing status. Nothing here takes a lock that the crash may hold, and
//! memory is read only where a translation exists, so that a report never faults.

use crate::arch::aarch64::esr::{AbortKind, Attempt, Syndrome};
use crate::arch::aarch64::exception::{TrapFrame, Vector};
use crate::arch::aarch64::layout::{self, Region};
use crate::arch::aarch64::{halt, mask_interrupts, power, translate};
use crate::console::{self, Writer};
use crate::mm::addr::VirtAddr;
use crate::thread::{self, Exit, Role};
use alloc::string::String;
use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

/// Status of a machine that a bug of ours stopped.
const CRASHED: u8 = 101;

/// Calls that a backtrace shows at most.
const BACKTRACE_DEPTH: usize = 32;

/// An exception that nobody resolves.
pub(crate) fn exception(frame: &TrapFrame) -> ! {
    crash(
        &Report {
            what: &What::Exception(frame.syndrome(), frame.far),
            frame: Some(frame),
            start: (frame.x[29], frame.elr),
        },
        frame.is_in_critical_section(),
    )
}

/// An exception that came through a vector nothing should come through.
pub(crate) fn unexpected(frame: &TrapFrame, vector: Vector) -> ! {
    crash(
        &Report {
            what: &What::Unexpected(vector),
            frame: Some(frame),
            start: (frame.x[29], frame.elr),
        },
        true,
    )
}

/// A kernel stack that ran over; we are on the emergency stack.
pub(crate) fn stack_overflow(frame: &TrapFrame) -> ! {
    crash(
        &Report {
            what: &What::StackOverflow(frame.sp),
            frame: Some(frame),
            start: (frame.x[29], frame.elr),
        },
        frame.is_in_critical_section(),
    )
}

/// A panic.
pub(crate) fn panic(info: &PanicInfo<'_>) -> ! {
    let interrupts = mask_interrupts();
    crash(
        &Report {
            what: &What::Panic(info),
            frame: None,
            start: frame_pointer(),
        },
        interrupts.are_masked(),
    )
}

/// The backtrace of a thread that does not run.
pub(crate) fn stuck(thread: &thread::Thread) -> impl fmt::Display {
    Backtrace(thread.backtrace_start())
}

fn crash(report: &Report<'_>, is_critical: bool) -> ! {
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    mask_interrupts();
    if is_critical {
        // SAFETY: the machine stops below, whatever happens.
        unsafe { console::seize() };
    }
    crate::kernel::find_console();
    // A crash while a crash is reported: say so in few words, once.
    match DEPTH.fetch_add(1, Ordering::Relaxed) {
        0 => {}
        1 => {
            let _ = writeln!(
                Writer,
                "\n*** crashed again while reporting: {}",
                report.what
            );
            crate::kernel::stop(CRASHED)
        }
        // Perhaps it is the console that fails: in no words at all.
        _ => {
            power::exit(CRASHED);
            halt()
        }
    }
    let thread = thread::try_current();
    match thread {
        Some(thread) if thread.role != Role::Kernel && !is_critical => {
            // Printed before it is kept: for that there may be no memory.
            if thread.role == Role::Program {
                let _ = write!(Writer, "{report}");
            }
            let mut text = Text(String::new());
            let _ = write!(text, "{report}");
            let Text(text) = text;
            DEPTH.store(0, Ordering::Relaxed);
            // `exit` does not return: a count kept here would keep the thread and its stack for ever.
            drop(thread);
            thread::exit(Exit::Crashed(text))
        }
        _ => {
            let _ = write!(Writer, "\n{report}");
            let _ = writeln!(Writer, "*** the machine stops");
            crate::kernel::stop(CRASHED)
        }
    }
}

/// Text in memory, as far as there is memory for it.
struct Text(String);

impl Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.0.try_reserve(part.len()).map_err(|_| fmt::Error)?;
        self.0.push_str(part);
        Ok(())
    }
}

enum What<'a> {
    Exception(Syndrome, u64),
    Unexpected(Vector),
    StackOverflow(u64),
    Panic(&'a PanicInfo<'a>),
}

struct Report<'a> {
    what: &'a What<'a>,
    frame: Option<&'a TrapFrame>,
    start: (u64, u64),
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(syndrome, far) => {
                write!(f, "{syndrome}")?;
                if let Syndrome::Abort {
                    attempt,
                    kind,
                    is_address_known: true,
                } = syndrome
                {
                    write!(f, "\n    {}", Access(*far, *attempt, *kind))?;
                    write!(f, "{}", crate::mm::Explanation(VirtAddr(*far)))?;
                }
                Ok(())
            }
            Self::Unexpected(vector) => write!(f, "{vector}"),
            Self::StackOverflow(sp) => write!(
                f,
                "kernel stack overflow\n    the stack pointer {sp:#018x} lies in {}",
                layout::region(VirtAddr(*sp))
            ),
            Self::Panic(info) => {
                write!(f, "panic: {}", info.message())?;
                match info.location() {
                    Some(location) => write!(f, "\n    at {location}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// An access and the address it failed at, in words.
struct Access(u64, Attempt, AbortKind);

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address, attempt, kind) = *self;
        let region = layout::region(VirtAddr(address));
        write!(f, "{attempt} at {address:#018x}: {region}")?;
        match (kind, region, attempt) {
            (AbortKind::Alignment, Region::Devices, _) => {
                f.write_str("; registers are accessed at multiples of their size only")
            }
            (AbortKind::Permission(_), Region::Text | Region::ReadOnlyData, Attempt::Write) => {
                f.write_str(", which is read-only")
            }
            (AbortKind::Permission(_), _, Attempt::Execute) => {
                f.write_str(", which is not executable")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*** {}", self.what)?;
        if let Some(thread) = thread::try_current() {
            writeln!(f, "    in thread {} \"{}\"", thread.id, thread.name)?;
        }
        if let Some(frame) = self.frame {
            if let (Syndrome::Undefined, Some(word)) = (frame.syndrome(), read(frame.elr, 4)) {
                writeln!(f, "    the instruction is {word:#010x}")?;
            }
            writeln!(
                f,
                "    ELR {:#018x}  {}\n    ESR {:#018x}  {}\n    FAR {:#018x}  SPSR {:#010x}  SP {:#018x}",
                frame.elr,
                Function(frame.elr),
                frame.esr,
                frame.syndrome(),
                frame.far,
                frame.spsr,
                frame.sp,
            )?;
            for (i, row) in frame.x.chunks(3).enumerate() {
                for (j, x) in row.iter().enumerate() {
                    let number = 3 * i + j;
                    let blank = if number < 10 { " " } else { "" };
                    write!(f, "    {blank}x{number} {x:#018x}")?;
                }
                writeln!(f)?;
            }
        }
        write!(f, "{}", Backtrace(self.start))
    }
}

/// x29 and where it was: the chain of frame records (AAPCS64, "The Frame Pointer") from there on.
struct Backtrace((u64, u64));

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut record, mut address) = self.0;
        writeln!(f, "    backtrace:")?;
        let mut function = Function(address);
        for _ in 0..BACKTRACE_DEPTH {
            writeln!(f, "      {address:#018x}  {function}")?;
            if record == 0 {
                return Ok(());
            }
            let (Some(next), Some(link)) = (read(record, 8), read(record.wrapping_add(8), 8))
            else {
                return writeln!(
                    f,
                    "      (the frame record at {record:#018x} cannot be read)"
                );
            };
            // The last record of a thread has no return address.
            if link == 0 {
                return Ok(());
            }
            (record, address) = (next, link);
            // A return address: the call is the instruction before, perhaps the last of its function.
            function = Function(link.wrapping_sub(4));
        }
        writeln!(f, "      (and more)")
    }
}

struct Function(u64);

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::kernel::symbol(self.0) {
            Some(symbol) => write!(f, "{} + {:#x}", symbol.name, symbol.offset),
            None => write!(f, "in {}", layout::region(VirtAddr(self.0))),
        }
    }
}

/// `size` bytes (4 or 8) at `address`, where memory that may be read is mapped.
fn read(address: u64, size: u64) -> Option<u64> {
    let is_memory = !matches!(layout::region(VirtAddr(address)), Region::Devices);
    if !address.is_multiple_of(size) || !is_memory || translate(VirtAddr(address)).is_none() {
        return None;
    }
    // SAFETY: aligned, translated just now, and not a device register.
    unsafe {
        match size {
            4 => Some(u64::from((address as *const u32).read_volatile())),
            8 => Some((address as *const u64).read_volatile()),
            _ => None,
        }
    }
}

/// x29 and the address of an instruction of the function this is called in.
#[inline(always)]
fn frame_pointer() -> (u64, u64) {
    let (frame, here): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        asm!("mov {}, x29", "adr {}, .", out(reg) frame, out(reg) here, options(nomem, nostack));
    }
    (frame, here)
}

#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    panic(info)
}
