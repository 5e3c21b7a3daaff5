//! What there is to type.

use crate::command::{self, COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::console::{Style, Styled, complain};
use crate::edit::COLUMNS;
use crate::program::process;
use crate::{print, println};
use alloc::vec::Vec;
use core::fmt;
use linkme::distributed_slice;

#[distributed_slice(COMMANDS)]
static HELP: Command = Command {
    name: "help",
    arguments: "[COMMAND]",
    summary: "list the commands, or tell about one\n\n\
        Example: help map",
    run: help,
};

/// The order in which `help` lists what it knows; the rest follows.
const TOPICS: [(&str, &[&str]); 5] = [
    ("Begin", &["demo", "help", "run", "env"]),
    (
        "Files",
        &[
            "ls", "cat", "stat", "sum", "write", "cp", "mv", "rm", "ln", "mkdir", "rmdir",
            "truncate",
        ],
    ),
    (
        "Files as memory",
        &[
            "map",
            "unmap",
            "peek",
            "poke",
            "flush",
            "advise",
            "residency",
            "mapsum",
            "maps",
            "faults",
            "cache",
            "drop-caches",
            "trace",
            "watch",
        ],
    ),
    (
        "Disks",
        &[
            "disks",
            "df",
            "mount",
            "umount",
            "sync",
            "trim",
            "fsck-info",
        ],
    ),
    (
        "Machine",
        &[
            "machine", "mem", "threads", "log", "selftest", "bench", "reboot", "poweroff",
        ],
    ),
];

fn help(arguments: &[&str]) -> Status {
    match arguments {
        [] => list(),
        [name] => return about(name),
        _ => return usage("help"),
    }
    SUCCESS
}

fn list() {
    let mut rest = command::by_name(COMMANDS.iter().map(|command| command.name), |name| name);
    for (topic, names) in TOPICS {
        let of_topic = names.iter().filter(|name| rest.contains(name));
        list_topic(topic, &of_topic.copied().collect::<Vec<_>>());
        rest.retain(|name| !names.contains(name));
    }
    if !rest.is_empty() {
        list_topic("More", &rest);
    }
    println!("\n`help COMMAND` tells more. `;` separates commands; quote words with blanks.");
}

/// The names, as many as have room in a row, behind the topic.
fn list_topic(topic: &str, names: &[&str]) {
    const INDENT: usize = 17;
    print!("{}", Styled(Style::Strong, format_args!("{topic:INDENT$}")));
    let mut column = INDENT;
    for (i, name) in names.iter().enumerate() {
        if column + name.len() > COLUMNS - 1 {
            print!("\n{:INDENT$}", "");
            column = INDENT;
        } else if i > 0 {
            print!("  ");
        }
        print!("{name}");
        column += name.len() + 2;
    }
    println!();
}

fn about(name: &str) -> Status {
    let Some(command) = command::find(name) else {
        if process::find(name).is_some() {
            complain(format_args!(
                "help: {name} is a program: `run {name}`; `run` alone lists them"
            ));
            return FAILURE;
        }
        match command::nearest(name) {
            Some(near) => complain(format_args!(
                "help: no command {name}; did you mean `{}`?",
                near.name
            )),
            None => complain(format_args!("help: no command {name}; `help` lists them")),
        }
        return FAILURE;
    };
    println!("{}", Styled(Style::Strong, Call(command)));
    println!("    {}", command.line());
    if !command.details().is_empty() {
        println!();
    }
    for line in command.details().lines() {
        println!("    {line}");
    }
    SUCCESS
}

/// How a command is called.
struct Call(&'static Command);

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)?;
        match self.0.arguments {
            "" => Ok(()),
            arguments => write!(f, " {arguments}"),
        }
    }
}

/// Says how a command is called.
pub(crate) fn usage(name: &str) -> Status {
    if let Some(command) = command::find(name) {
        complain(format_args!("usage: {}", Call(command)));
    }
    USAGE
}
