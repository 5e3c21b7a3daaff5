//! Runs commands: from the kernel command line, or typed at the console; and the commands about the machine itself.

use crate::arch::aarch64::timer;
use crate::command::{self, COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::driver::mailbox::{Clock, Mailbox, MailboxError};
use crate::{console, interrupt, kernel, mm, print, println, thread};
use alloc::string::String;
use alloc::vec::Vec;
use linkme::distributed_slice;

const INTERRUPT: u8 = 0x03; // Ctrl-C
const END: u8 = 0x04; // Ctrl-D
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

/// Bytes in a line at most; what is typed beyond is not taken.
const LINE_SIZE: usize = 1024;

/// Runs the commands of `line` one after the other; the status of the first that failed.
pub(crate) fn run_line(line: &str) -> Status {
    let commands = match command::parse(line) {
        Ok(commands) => commands,
        Err(error) => {
            println!("pinfold: {error}: {line}");
            return USAGE;
        }
    };
    let mut first_failure = SUCCESS;
    for words in commands {
        let status = run_words(&words);
        if first_failure == SUCCESS {
            first_failure = status;
        }
    }
    first_failure
}

pub(crate) fn run_words(words: &[String]) -> Status {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((name, arguments)) = words.split_first() else {
        return SUCCESS;
    };
    if let Some(command) = command::find(name) {
        return (command.run)(arguments);
    }
    match command::nearest(name) {
        Some(near) => println!("{name}: no such command; did you mean `{}`?", near.name),
        None => println!("{name}: no such command; `help` lists them"),
    }
    USAGE
}

/// Reads commands until Ctrl-D; the status of the last.
pub(crate) fn interactive() -> Status {
    println!("Type `help` for the commands, Ctrl-D to power off.");
    let mut status = SUCCESS;
    loop {
        print!("> ");
        match read_line() {
            Some(line) => status = run_line(&line),
            None => return status,
        }
    }
}

/// A line, echoed as it is typed; `None` for Ctrl-D at its start.
fn read_line() -> Option<String> {
    let mut line: Vec<u8> = Vec::new();
    loop {
        match console::read_byte() {
            b'\r' | b'\n' => {
                println!();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            END if line.is_empty() => {
                println!();
                return None;
            }
            INTERRUPT => {
                println!("^C");
                return Some(String::new());
            }
            BACKSPACE | DELETE => {
                // A character may be several bytes; on the screen it is one column.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                print!("\r\x1b[K> {}", String::from_utf8_lossy(&line));
            }
            byte if (byte >= b' ' || byte == b'\t') && line.len() < LINE_SIZE => {
                line.push(byte);
                console::echo(byte);
            }
            _ => {}
        }
    }
}

macro_rules! command {
    ($static:ident, $name:literal, $arguments:literal, $summary:literal, $run:path) => {
        #[distributed_slice(COMMANDS)]
        static $static: Command = Command {
            name: $name,
            arguments: $arguments,
            summary: $summary,
            run: $run,
        };
    };
}

command!(
    HELP,
    "help",
    "[COMMAND]",
    "list the commands, or tell about one",
    help
);
command!(MEM, "mem", "", "who has how much memory", mem);
command!(
    THREADS,
    "threads",
    "",
    "the threads and what they do",
    threads
);
command!(
    MACHINE,
    "machine",
    "",
    "what this machine is and has",
    machine
);
command!(
    LOG,
    "log",
    "[LEVEL]",
    "show or set the log level: off error warn info debug trace",
    log
);
command!(
    POWEROFF,
    "poweroff",
    "[STATUS]",
    "write everything back and power off",
    poweroff
);
command!(
    REBOOT,
    "reboot",
    "",
    "write everything back and start anew",
    reboot
);

fn help(arguments: &[&str]) -> Status {
    let mut commands: Vec<&Command> = match arguments {
        [] => COMMANDS.iter().collect(),
        [name] => COMMANDS.iter().filter(|c| c.name == *name).collect(),
        _ => return usage("help"),
    };
    if commands.is_empty() {
        println!("help: no command {}", arguments.join(" "));
        return FAILURE;
    }
    commands.sort_by_key(|command| command.name);
    for command in commands {
        let call = alloc::format!("{} {}", command.name, command.arguments);
        println!("{call:28} {}", command.summary);
    }
    if arguments.is_empty() {
        println!(
            "\nSeveral are separated by `;`, words with blanks are quoted. On the kernel command line"
        );
        println!("`log=LEVEL` and `root=DISK` may stand before the commands.");
    }
    SUCCESS
}

/// Says how a command is called.
pub(crate) fn usage(name: &str) -> Status {
    if let Some(command) = command::find(name) {
        println!("usage: {} {}", command.name, command.arguments);
    }
    USAGE
}

fn mem(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return usage("mem");
    }
    print!("{}", mm::Summary);
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
    if let Ok(state @ 1..) = mailbox.throttled() {
        println!("throttled       {state:#x}");
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
