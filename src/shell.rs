//! Runs commands: from the kernel command line, typed at a terminal, or out of a pipe.

mod complete;
mod demo;
mod greeting;
mod help;
mod machine;

use crate::command::{self, FAILURE, INTERRUPTED, SUCCESS, Status, USAGE};
use crate::edit::{Editor, Outcome};
use crate::program::process;
use crate::{console, print, println};
use alloc::string::String;
use alloc::vec::Vec;
use complete::Words;
pub(crate) use help::usage;

/// Bytes in a line from a pipe at most.
const LINE_SIZE: usize = 64 << 10;

/// Runs the commands of `line` one after the other; the status of the first that failed. Ctrl-C ends one, and those
/// behind it do not run.
pub(crate) fn run_line(line: &str) -> Status {
    let commands = match command::parse(line) {
        Ok(commands) => commands,
        Err(error) => {
            console::complain(format_args!("pinfold: {error}: {line}"));
            return USAGE;
        }
    };
    console::run(|| {
        let mut first_failure = SUCCESS;
        for words in commands {
            let status = run_words(&words);
            if first_failure == SUCCESS {
                first_failure = status;
            }
            if console::is_interrupted() {
                return INTERRUPTED;
            }
        }
        first_failure
    })
}

pub(crate) fn run_words(words: &[String]) -> Status {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((name, arguments)) = words.split_first() else {
        return SUCCESS;
    };
    if let Some(command) = command::find(name) {
        return (command.run)(arguments);
    }
    if process::find(name).is_some() {
        console::complain(format_args!(
            "{name}: no command, but a program; did you mean `run {name}`?"
        ));
        return USAGE;
    }
    match command::nearest(name) {
        Some(near) => console::complain(format_args!(
            "{name}: no such command; did you mean `{}`?",
            near.name
        )),
        None => console::complain(format_args!("{name}: no such command; `help` lists them")),
    }
    USAGE
}

/// Says that Ctrl-C ended `command`.
pub(crate) fn interrupted(command: &str) -> Status {
    console::complain(format_args!("{command}: interrupted"));
    INTERRUPTED
}

/// Reads commands until Ctrl-D. At a terminal the status is that of the last, as somebody has seen the others; from a
/// pipe it is that of the first that failed.
pub(crate) fn interactive() -> Status {
    if console::is_terminal() {
        at_terminal()
    } else {
        from_pipe()
    }
}

fn at_terminal() -> Status {
    print!("{}", greeting::Greeting);
    let mut editor = Editor::new("> ");
    let mut status = SUCCESS;
    loop {
        match console::take_lost() {
            0 => {}
            lost => println!("pinfold: {lost} bytes typed ahead had no room and are lost"),
        }
        console::end_row();
        match read_line(&mut editor) {
            Outcome::Line(line) if line.trim().is_empty() => {}
            Outcome::Line(line) => status = run_typed(&line),
            Outcome::Abandoned => {}
            Outcome::End => return status,
        }
    }
}

/// Runs a line from the console. What an earlier one left running and Ctrl-C ended does not end this one.
fn run_typed(line: &str) -> Status {
    console::forget_interrupt();
    run_line(line)
}

fn read_line(editor: &mut Editor) -> Outcome {
    let mut screen = String::new();
    editor.begin(&mut screen);
    loop {
        print!("{screen}");
        screen.clear();
        if let Some(outcome) = editor.take(console::read_byte(), &mut screen, &mut Words) {
            print!("{screen}");
            return outcome;
        }
    }
}

fn from_pipe() -> Status {
    const END: u8 = 0x04; // Ctrl-D: a serial line has no end of file
    let mut first_failure = SUCCESS;
    let mut line = Vec::new();
    loop {
        let byte = console::read_byte();
        match byte {
            b'\n' | b'\r' => {}
            END if line.is_empty() => return first_failure,
            byte if line.len() <= LINE_SIZE => {
                line.push(byte);
                continue;
            }
            _ => continue,
        }
        let status = if line.len() > LINE_SIZE {
            println!("pinfold: a line has more than {LINE_SIZE} bytes and is not run");
            FAILURE
        } else {
            run_typed(&String::from_utf8_lossy(&line))
        };
        if first_failure == SUCCESS {
            first_failure = status;
        }
        line.clear();
    }
}
