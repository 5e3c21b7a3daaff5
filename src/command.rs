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

/// Ctrl-C ended the command, as a shell says of what SIGINT ended.
pub const INTERRUPTED: Status = 128 + 2;

/// A word that can be typed.
pub struct Command {
    /// The word.
    pub name: &'static str,
    /// Its arguments, as `help` shows them.
    pub arguments: &'static str,
    /// What it does, in one line; what follows a blank line, `help COMMAND` shows: options, and last an example.
    pub summary: &'static str,
    /// Does it, with the words after its name.
    pub run: fn(&[&str]) -> Status,
}

impl Command {
    /// The line that `help` shows of it.
    pub fn line(&self) -> &'static str {
        self.summary
            .split_once("\n\n")
            .map_or(self.summary, |(line, _)| line)
    }

    /// What there is to say beyond that line.
    pub fn details(&self) -> &'static str {
        self.summary
            .split_once("\n\n")
            .map_or("", |(_, details)| details)
    }
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
    let mut scan = scan(line);
    match scan.open {
        Open::Nothing => {}
        Open::Escape => return Err(ParseError::NothingEscaped),
        Open::Single(at) | Open::Double(at) | Open::DoubleEscape(at) => {
            return Err(ParseError::UnclosedQuote(at));
        }
    }
    scan.end_command();
    Ok(scan.commands)
}

/// The last word of a line that is being typed, and what it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// The words before it of the same command.
    pub words: Vec<String>,
    /// It, empty after a blank.
    pub word: String,
    /// Where it begins, in bytes.
    pub start: usize,
    /// What it is quoted by.
    pub quote: Quote,
}

/// What keeps the blanks in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quote {
    /// `\` before each.
    Backslash,
    /// `'…'`.
    Single,
    /// `"…"`.
    Double,
}

/// The word at the end of `line`; `None` in a comment, or behind a backslash.
pub fn unfinished(line: &str) -> Option<Unfinished> {
    let scan = scan(line);
    let quote = match scan.open {
        Open::Nothing => Quote::Backslash,
        Open::Single(_) => Quote::Single,
        Open::Double(_) => Quote::Double,
        Open::Escape | Open::DoubleEscape(_) => return None,
    };
    let (start, word) = scan.word.unwrap_or((line.len(), String::new()));
    (!scan.is_comment).then_some(Unfinished {
        words: scan.words,
        word,
        start,
        quote,
    })
}

/// `word` as it is typed: with its quote open, or where that cannot hold it, with backslashes.
pub fn quoted(word: &str, quote: Quote) -> String {
    let (begin, special): (&str, fn(char) -> bool) = match quote {
        Quote::Single if !word.contains('\'') => ("'", |_| false),
        Quote::Double => ("\"", |c| matches!(c, '"' | '\\')),
        _ => ("", |c| {
            c.is_whitespace() || matches!(c, ';' | '\'' | '"' | '\\' | '#')
        }),
    };
    let mut typed = String::from(begin);
    for character in word.chars() {
        if special(character) {
            typed.push('\\');
        }
        typed.push(character);
    }
    typed
}

/// What is open at the end of a line, and where it was opened.
#[derive(Clone, Copy)]
enum Open {
    Nothing,
    Escape,
    Single(usize),
    Double(usize),
    DoubleEscape(usize),
}

struct Scan {
    commands: Vec<Vec<String>>,
    /// Of the last command.
    words: Vec<String>,
    /// The last word and where it begins, unless a blank follows.
    word: Option<(usize, String)>,
    open: Open,
    is_comment: bool,
}

impl Scan {
    fn push(&mut self, at: usize, character: char) {
        self.word_at(at).push(character);
    }

    fn word_at(&mut self, at: usize) -> &mut String {
        &mut self.word.get_or_insert_with(|| (at, String::new())).1
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take().map(|(_, word)| word));
    }

    fn end_command(&mut self) {
        self.end_word();
        if !self.words.is_empty() {
            self.commands.push(core::mem::take(&mut self.words));
        }
    }
}

fn scan(line: &str) -> Scan {
    let mut scan = Scan {
        commands: Vec::new(),
        words: Vec::new(),
        word: None,
        open: Open::Nothing,
        is_comment: false,
    };
    for (at, character) in line.char_indices() {
        scan.open = match (scan.open, character) {
            (Open::Nothing, '\'' | '"') => {
                scan.word_at(at);
                if character == '"' {
                    Open::Double(at)
                } else {
                    Open::Single(at)
                }
            }
            (Open::Nothing, '\\') => {
                scan.word_at(at);
                Open::Escape
            }
            (Open::Nothing, '#') if scan.word.is_none() => {
                scan.is_comment = true;
                break;
            }
            (Open::Nothing, ';') => {
                scan.end_command();
                Open::Nothing
            }
            (Open::Nothing, c) if c.is_whitespace() => {
                scan.end_word();
                Open::Nothing
            }
            (Open::Single(_), '\'') | (Open::Double(_), '"') => Open::Nothing,
            (Open::Double(start), '\\') => Open::DoubleEscape(start),
            (Open::DoubleEscape(start), c) => {
                if !matches!(c, '"' | '\\') {
                    scan.push(at, '\\');
                }
                scan.push(at, c);
                Open::Double(start)
            }
            (open, c) => {
                scan.push(at, c);
                match open {
                    Open::Escape => Open::Nothing,
                    open => open,
                }
            }
        };
    }
    scan
}

/// Takes the options off: letters of `known`, together or apart, before anything else; `--bytes` is `-b`.
///
/// # Errors
/// The word that is no option.
pub fn options<'a, 'b>(
    arguments: &'b [&'a str],
    known: &str,
) -> Result<(String, &'b [&'a str]), &'a str> {
    let mut letters = String::new();
    let mut rest = arguments;
    while let [word, more @ ..] = rest {
        let found = match *word {
            "--bytes" => "b",
            "--" => return Ok((letters, more)),
            word => match word.strip_prefix('-') {
                Some("") | None => break,
                Some(found) => found,
            },
        };
        if !found.chars().all(|letter| known.contains(letter)) {
            return Err(word);
        }
        letters.push_str(found);
        rest = more;
    }
    Ok((letters, rest))
}

/// Items in the order of their names. They are few: nothing faster is worth the 5 KiB that a sort takes for each type.
pub fn by_name<T>(items: impl Iterator<Item = T>, name: impl Fn(&T) -> &str) -> Vec<T> {
    let mut ordered: Vec<T> = Vec::new();
    for item in items {
        let at = ordered.partition_point(|other| name(other) < name(&item));
        ordered.insert(at, item);
    }
    ordered
}

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// What others call some commands.
const ELSEWHERE: [(&str, &str); 11] = [
    ("exit", "poweroff"),
    ("free", "mem"),
    ("fsck", "fsck-info"),
    ("halt", "poweroff"),
    ("hexdump", "peek"),
    ("lsblk", "disks"),
    ("man", "help"),
    ("ps", "threads"),
    ("quit", "poweroff"),
    ("shutdown", "poweroff"),
    ("touch", "truncate"),
];

/// The command that is called `name` elsewhere, or whose name is nearest to it, if any is near: one slip of the finger, two
/// in a longer word, none in one of two letters.
pub fn nearest(name: &str) -> Option<&'static Command> {
    if let Some((_, here)) = ELSEWHERE.iter().find(|(there, _)| *there == name) {
        return find(here);
    }
    COMMANDS
        .iter()
        .map(|command| (distance(command.name, name), command))
        .filter(|(distance, command)| *distance <= slips(name.len().min(command.name.len())))
        .min_by_key(|(distance, command)| (*distance, command.name))
        .map(|(_, command)| command)
}

/// Slips of the finger that a word of so many letters may have.
fn slips(letters: usize) -> usize {
    match letters {
        0..=2 => 0,
        3..=5 => 1,
        _ => 2,
    }
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
    use super::{ParseError, Quote, Unfinished, distance, options, parse, quoted, unfinished};
    use alloc::string::String;
    use alloc::vec::Vec;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

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
    fn the_word_at_the_end_is_found_with_its_quote() {
        let found =
            |line: &str| unfinished(line).map(|u| (u.words.len(), u.word, u.start, u.quote));
        let word = |s: &str| String::from(s);
        assert_eq!(
            found("ls; cat /a"),
            Some((1, word("/a"), 8, Quote::Backslash))
        );
        assert_eq!(found("cat "), Some((1, word(""), 4, Quote::Backslash)));
        assert_eq!(
            found("cat x\"a b"),
            Some((1, word("xa b"), 4, Quote::Double))
        );
        assert_eq!(
            found("cat 'a\" ;"),
            Some((1, word("a\" ;"), 4, Quote::Single))
        );
        assert_eq!(found("cat # a"), None);
        assert_eq!(found("cat a\\"), None);
    }

    #[test]
    fn options_are_letters_before_the_rest() {
        let options = |words: &[&'static str]| {
            options(words, "lb").map(|(letters, rest)| (letters, rest.len()))
        };
        assert_eq!(options(&["-lb", "/", "-l"]), Ok((String::from("lb"), 2)));
        assert_eq!(options(&["-l", "--bytes"]), Ok((String::from("lb"), 0)));
        assert_eq!(options(&["--", "-l"]), Ok((String::new(), 1)));
        assert_eq!(options(&["-"]), Ok((String::new(), 1)));
        assert_eq!(options(&["-lx"]), Err("-lx"));
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
        fn what_is_completed_is_the_word_that_was_meant(
            word in any::<String>(),
            quote in prop::sample::select(&[Quote::Backslash, Quote::Single, Quote::Double]),
        ) {
            proptest::prop_assume!(!word.is_empty());
            let line = alloc::format!("x {}", quoted(&word, quote));
            let expected = Unfinished { words: alloc::vec![String::from("x")], word, start: 2, quote };
            let found = unfinished(&line).unwrap();
            // Single quotes cannot hold one of their own.
            let found = Unfinished { quote, ..found };
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_line_is_parsed_or_refused(line in any::<alloc::string::String>()) {
            let _ = parse(&line);
        }
    }
}
