//! The commands about the machine itself.

use super::usage;
use crate::arch::aarch64::timer;
use crate::command::{self, COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::driver::mailbox::{Clock, Mailbox, MailboxError};
use crate::driver::throttling::Throttling;
use crate::size::unit;
use crate::{console, interrupt, kernel, mm, print, println, thread};
use linkme::distributed_slice;

#[distributed_slice(COMMANDS)]
static MEM: Command = Command {
    name: "mem",
    arguments: "[-b]",
    summary: "who has how much memory\n\n\
        -b  in bytes\n\
        Example: mem",
    run: mem,
};

#[distributed_slice(COMMANDS)]
static THREADS: Command = Command {
    name: "threads",
    arguments: "",
    summary: "the threads and what they do\n\n\
        Kernel threads, programs and what they wait for, with the time each has run.\n\
        Example: threads",
    run: threads,
};

#[distributed_slice(COMMANDS)]
static MACHINE: Command = Command {
    name: "machine",
    arguments: "",
    summary: "what this machine is and has\n\n\
        As its device tree tells: memory, interrupt controller, console. A Raspberry\n\
        Pi's firmware adds revision, clock rate and temperature.\n\
        Example: machine",
    run: machine,
};

#[distributed_slice(COMMANDS)]
static LOG: Command = Command {
    name: "log",
    arguments: "[LEVEL]",
    summary: "show or set the log level: off error warn info debug trace\n\n\
        The same can be said at the start, by log=LEVEL on the kernel command line.\n\
        Example: log debug",
    run: log,
};

#[distributed_slice(COMMANDS)]
static POWEROFF: Command = Command {
    name: "poweroff",
    arguments: "[STATUS]",
    summary: "write everything back and power off\n\n\
        STATUS, 0 unless said, is handed to an emulator as its exit status.\n\
        Example: poweroff 3",
    run: poweroff,
};

#[distributed_slice(COMMANDS)]
static REBOOT: Command = Command {
    name: "reboot",
    arguments: "",
    summary: "write everything back and start anew\n\n\
        Example: reboot",
    run: reboot,
};

fn mem(arguments: &[&str]) -> Status {
    let unit = match command::options(arguments, "b") {
        Ok((options, [])) => unit(&options),
        _ => return usage("mem"),
    };
    print!("{}", mm::Summary(unit));
    SUCCESS
}

fn threads(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return usage("threads");
    }
    println!(
        "{:>4}  {:7}  {:8} {:>12}  NAME",
        "ID", "ROLE", "STATE", "RUN TIME"
    );
    for thread in thread::list() {
        let (ms, us) = (thread.run_us / 1000, thread.run_us % 1000);
        let role = match thread.role {
            thread::Role::Kernel => "kernel",
            thread::Role::Program => "program",
            thread::Role::Test => "test",
        };
        println!(
            "{:>4}  {role:7}  {:8} {ms:>5}.{us:03} ms  {}",
            thread.id, thread.state, thread.name
        );
    }
    println!("{} switches since power-on", thread::switches());
    SUCCESS
}

fn machine(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return usage("machine");
    }
    print!("{}", kernel::board());
    let (taken, unclaimed) = interrupt::counts();
    println!("entered at      EL{}", kernel::entry_level());
    println!("interrupts      {taken} taken, {unclaimed} that nobody asked for");
    println!("input           {} errors", console::input_errors());
    println!(
        "since power-on  {} ms",
        timer::ns_from_ticks(timer::now()) / 1_000_000
    );
    println!("image           {} KiB", kernel::image_file_size() >> 10);
    match kernel::mailbox().map(|mailbox| raspberry_pi(&mut mailbox.lock())) {
        None | Some(Ok(())) => SUCCESS,
        Some(Err(error)) => {
            println!("machine: {error}");
            FAILURE
        }
    }
}

/// What only the VideoCore knows.
fn raspberry_pi(mailbox: &mut Mailbox) -> Result<(), MailboxError> {
    println!("board revision  {:#x}", mailbox.board_revision()?);
    let mhz = mailbox.clock_rate(Clock::Arm)? / 1_000_000;
    println!("ARM clock       {mhz} MHz");
    println!("temperature     {} C", mailbox.temperature()? / 1000);
    // Firmware of old does not know.
    if let Ok(state) = mailbox.throttled() {
        println!("throttled       {}", Throttling(state));
    }
    Ok(())
}

fn log(arguments: &[&str]) -> Status {
    match arguments {
        [] => println!("{}", ::log::max_level()),
        [level] => match level.parse() {
            Ok(level) => ::log::set_max_level(level),
            Err(_) => {
                println!("log: \"{level}\" is no level: off error warn info debug trace");
                return USAGE;
            }
        },
        _ => return usage("log"),
    }
    SUCCESS
}

fn poweroff(arguments: &[&str]) -> Status {
    match arguments {
        [] => kernel::shut_down(SUCCESS),
        [status] => match status.parse() {
            Ok(status) => kernel::shut_down(status),
            Err(_) => {
                println!("poweroff: \"{status}\" is no exit status: 0 to 255");
                USAGE
            }
        },
        _ => usage("poweroff"),
    }
}

fn reboot(arguments: &[&str]) -> Status {
    if arguments.is_empty() {
        kernel::restart()
    }
    usage("reboot")
}
