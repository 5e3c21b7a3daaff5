//! Arguments and environment: what `std::env` has, by the same names.
//!
//! The environment is one for all programs. It comes from the kernel command line, whose words `NAME=VALUE` in capital
//! letters, before the first command, are variables; `env` at the console shows and sets them.

use super::process;
use crate::command::{self, COMMANDS, Command, SUCCESS, Status, USAGE};
use crate::println;
use crate::sync::Mutex;
use crate::thread::Call;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::{self, Vec};
use core::fmt;
use linkme::distributed_slice;

/// In order of their names.
static VARIABLES: Mutex<Option<Arc<Variables>>> = Mutex::new(None);

type Variables = Vec<(String, String)>;

/// As they are now: to copy one takes memory, and a program that finds none ends, which it must not with the lock held.
fn variables() -> Arc<Variables> {
    VARIABLES.lock().clone().unwrap_or_default()
}

fn find(variables: &Variables, name: &str) -> Result<usize, usize> {
    variables.binary_search_by(|(other, _)| other.as_str().cmp(name))
}

/// Gives the variable `name` a value; an empty one removes it.
fn set(name: &str, value: &str) {
    let mut variables = VARIABLES.lock();
    let variables = Arc::make_mut(variables.get_or_insert_default());
    match find(variables, name) {
        Ok(at) if value.is_empty() => drop(variables.remove(at)),
        Ok(at) => variables[at].1 = value.to_string(),
        Err(_) if value.is_empty() => {}
        Err(at) => variables.insert(at, (name.to_string(), value.to_string())),
    }
}

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
    let variables = variables();
    let at = find(&variables, name).map_err(|_| VarError::NotPresent)?;
    Ok(variables[at].1.clone())
}

/// All variables with their values, by name.
pub fn vars() -> vec::IntoIter<(String, String)> {
    let _call = Call::enter();
    Arc::unwrap_or_clone(variables()).into_iter()
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
    set(name, value);
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
    arguments: "[NAME[=VALUE]...]",
    summary: "show the environment of programs, or set variables\n\n\
        A name without a value is removed.\n\
        Example: env NAME=value",
    run: env,
};

fn env(arguments: &[&str]) -> Status {
    for word in arguments {
        match word.split_once('=') {
            Some((name, value)) if is_name(name) => set(name, value),
            None if is_name(word) => set(word, ""),
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
