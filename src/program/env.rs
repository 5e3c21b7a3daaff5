//! Arguments and environment: what `std::env` has, by the same names.
//!
//! The environment is one for all programs. It comes from the kernel command line, whose words `NAME=VALUE` in capital
//! letters, before the first command, are variables; `env` at the console shows and sets them.

use super::process;
use crate::command::{self, COMMANDS, Command, SUCCESS, Status, USAGE};
use crate::println;
use crate::sync::Mutex;
use crate::thread::Call;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::{self, Vec};
use core::fmt;
use linkme::distributed_slice;

static VARIABLES: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// The program's name, then its arguments.
pub fn args() -> vec::IntoIter<String> {
    let _call = Call::enter();
    let mut all = Vec::new();
    if let Some(process) = process::current() {
        all.push(process.name.clone());
        all.extend(process.arguments.iter().cloned());
    }
    all.into_iter()
}

/// Why there is no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VarError {
    /// There is no variable of that name.
    NotPresent,
}

impl fmt::Display for VarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no such variable in the environment")
    }
}

impl core::error::Error for VarError {}

/// The value of the variable `name`.
pub fn var(name: &str) -> Result<String, VarError> {
    let _call = Call::enter();
    let variables = VARIABLES.lock();
    variables.get(name).cloned().ok_or(VarError::NotPresent)
}

/// All variables with their values, by name.
pub fn vars() -> vec::IntoIter<(String, String)> {
    let _call = Call::enter();
    let variables = VARIABLES.lock();
    let all: Vec<_> = variables.clone().into_iter().collect();
    all.into_iter()
}

/// Whether a word `name=…` sets a variable: capital letters, digits and `_`.
fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_');
    name.bytes().all(is_part) && name.starts_with(|first: char| !first.is_ascii_digit())
}

/// Sets the variable that `line` begins with, a word like `NAME="its value"`; how many bytes of `line` that is.
pub(crate) fn take_from(line: &str) -> Option<usize> {
    let len = word_len(line);
    let words = command::parse(&line[..len]).ok()?;
    let (name, value) = words.first()?.first()?.split_once('=')?;
    if !is_name(name) {
        return None;
    }
    VARIABLES.lock().insert(name.into(), value.into());
    Some(len)
}

/// Bytes of the first word of `line`, in the grammar of commands.
fn word_len(line: &str) -> usize {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, character) in line.char_indices() {
        match (quote, character) {
            _ if is_escaped => is_escaped = false,
            (None | Some('"'), '\\') => is_escaped = true,
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, _) if character.is_whitespace() || character == ';' => return at,
            _ => {}
        }
    }
    line.len()
}

#[distributed_slice(COMMANDS)]
static ENV: Command = Command {
    name: "env",
    arguments: "[NAME=VALUE...]",
    summary: "show the environment of programs, or set variables; without VALUE, remove them",
    run: env,
};

fn env(arguments: &[&str]) -> Status {
    for word in arguments {
        match word.split_once('=') {
            Some((name, "")) if is_name(name) => drop(VARIABLES.lock().remove(name)),
            Some((name, value)) if is_name(name) => {
                VARIABLES.lock().insert(name.to_string(), value.to_string());
            }
            _ => {
                println!("env: {word}: not NAME=VALUE, with a name of A to Z, 0 to 9 and _");
                return USAGE;
            }
        }
    }
    if arguments.is_empty() {
        for (name, value) in vars() {
            println!("{name}={value}");
        }
    }
    SUCCESS
}
