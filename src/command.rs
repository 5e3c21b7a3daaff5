//! Commands: words typed at the console, or given on the kernel command line.
//!
//! One grammar serves both: commands are separated by `;`, their words by blanks. `'…'` keeps everything in it as it
//! is; `"…"` too, but for `\"` and `\\`; outside quotes `\` keeps the next character. `#` at the start of a word
//! makes the rest of the line a comment.
//!
//! A command stands beside the feature it shows and registers itself in [`COMMANDS`].

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use linkme::distributed_slice;

/// What a command leaves behind: 0 for success.
pub type Status = u8;

/// The command did what it should.
pub const SUCCESS: Status = 0;
/// The command failed; it has said why.
pub const FAILURE: Status = 1;
/// The command was called wrongly, or there is no such command.
pub const USAGE: Status = 2;

/// A word that can be typed.
pub struct Command {
    /// The word.
    pub name: &'static str,
    /// Its arguments, as `help` shows them.
    pub arguments: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Does it, with the words after its name.
    pub run: fn(&[&str]) -> Status,
}

/// All commands, in no order.
#[distributed_slice]
pub static COMMANDS: [Command];

/// Why a line could not be taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// A quote was opened at this byte of the line and not closed.
    UnclosedQuote(usize),
    /// The line ends in a backslash.
    NothingEscaped,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnclosedQuote(at) => write!(f, "the quote at column {} is not closed", at + 1),
            Self::NothingEscaped => f.write_str("nothing follows the backslash at the end"),
        }
    }
}

/// Takes `line` apart into commands, each a non-empty list of words.
pub fn parse(line: &str) -> Result<Vec<Vec<String>>, ParseError> {
    let mut commands = Vec::new();
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        None => return Err(ParseError::UnclosedQuote(at)),
                        Some((_, c)) if c == character => break,
                        Some((_, '\\')) if character == '"' => match characters.next() {
                            None => return Err(ParseError::UnclosedQuote(at)),
                            Some((_, c @ ('"' | '\\'))) => word.push(c),
                            Some((_, c)) => word.extend(['\\', c]),
                        },
                        Some((_, c)) => word.push(c),
                    }
                }
            }
            '\\' => match characters.next() {
                None => return Err(ParseError::NothingEscaped),
                Some((_, c)) => word.get_or_insert_default().push(c),
            },
            '#' if word.is_none() => break,
            ';' => {
                words.extend(word.take());
                if !words.is_empty() {
                    commands.push(core::mem::take(&mut words));
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if !words.is_empty() {
        commands.push(words);
    }
    Ok(commands)
}

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The command whose name is nearest to `name`, if any is near: one slip of the finger, or two in a longer word.
pub fn nearest(name: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .map(|command| (distance(command.name, name), command))
        .filter(|(distance, command)| *distance <= if command.name.len() < 6 { 1 } else { 2 })
        .min_by_key(|(distance, command)| (*distance, command.name))
        .map(|(_, command)| command)
}

/// How many letters must be put in, left out, replaced or swapped with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = [Vec::new(), Vec::new(), (0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        rows.rotate_left(1);
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i);
        for j in 1..=b.len() {
            let replaced = rows[1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[0][j - 2] + 1);
            }
            row.push(best);
        }
        rows[2] = row;
    }
    rows[2][b.len()]
}

#[cfg(test)]
mod tests {
    use super::{ParseError, distance, parse};
    use alloc::vec::Vec;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn words(line: &str) -> Vec<Vec<alloc::string::String>> {
        parse(line).unwrap()
    }

    #[test]
    fn blanks_separate_words_and_semicolons_commands() {
        assert_eq!(words(" ls  /a ;; sum\t/b; "), [["ls", "/a"], ["sum", "/b"]]);
        assert!(words("  ; ").is_empty());
    }

    #[test]
    fn quotes_keep_blanks_semicolons_and_empty_words() {
        assert_eq!(
            words(r#"write 'a; b' "" c"d e"f"#),
            [["write", "a; b", "", "cd ef"]]
        );
        assert_eq!(words(r#""a\"b\\c\n" '\'"#), [[r#"a"b\c\n"#, r"\"]]);
        assert_eq!(words(r"a\ b\;c"), [["a b;c"]]);
    }

    #[test]
    fn a_hash_begins_a_comment_only_at_the_start_of_a_word() {
        assert_eq!(words("a#b #c; d"), [["a#b"]]);
    }

    #[test]
    fn what_is_not_closed_is_an_error_that_says_where() {
        assert_eq!(parse("ls 'a"), Err(ParseError::UnclosedQuote(3)));
        assert_eq!(parse("\"a\\"), Err(ParseError::UnclosedQuote(0)));
        assert_eq!(parse("a\\"), Err(ParseError::NothingEscaped));
    }

    #[test]
    fn a_swap_is_one_slip() {
        assert_eq!(distance("selftest", "selftset"), 1);
        assert_eq!(distance("help", "hlep"), 1);
        assert_eq!(distance("mem", "men"), 1);
        assert_eq!(distance("", "ls"), 2);
    }

    proptest! {
        #[test]
        fn any_word_survives_quoting(word in any::<alloc::string::String>()) {
            let quoted = word.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(words(&alloc::format!("x \"{quoted}\"")), [["x", word.as_str()]]);
        }

        #[test]
        fn any_line_is_parsed_or_refused(line in any::<alloc::string::String>()) {
            let _ = parse(&line);
        }
    }
}
