//! `grep`: the lines of files that hold a text.

use super::scan::{self, ScanError};
use super::text::{self, Case, Pattern};
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::console;
use crate::println;
use crate::program::options;
use alloc::string::String;
use core::fmt::Write;

crate::program! {
    name: "grep",
    summary: "lines of files that hold a text (no pattern): [-ciln] TEXT FILE...",
    main: main,
}

/// 0 if a line was found, 1 if none was, 2 if something went wrong.
fn main(arguments: &[String]) -> Status {
    let Ok((letters, [pattern, paths @ ..])) = options::letters(arguments, "ciln") else {
        println!(
            "usage: run grep [-c count] [-i ignore case] [-l names only] [-n numbers] TEXT FILE..."
        );
        return USAGE;
    };
    if paths.is_empty() {
        println!("grep: say which TEXT, and in which FILE");
        return USAGE;
    }
    if pattern.is_empty() {
        println!("grep: TEXT is empty, and no line is without that");
        return USAGE;
    }
    let case = if letters.contains('i') {
        Case::Ignored
    } else {
        Case::Matters
    };
    let search = Search {
        pattern: Pattern::new(pattern.as_bytes(), case),
        counts: letters.contains('c'),
        names: letters.contains('l'),
        numbers: letters.contains('n'),
        prefixes: paths.len() > 1,
    };
    let mut status = FAILURE;
    let mut has_failed = false;
    for path in paths {
        match search.file(path) {
            Ok(0) => {}
            Ok(_) => status = SUCCESS,
            Err(error) => {
                println!("grep: {path}: {error}");
                has_failed = true;
            }
        }
    }
    if has_failed { USAGE } else { status }
}

struct Search<'p> {
    pattern: Pattern<'p>,
    counts: bool,
    names: bool,
    numbers: bool,
    /// Whether each line says which file it is from.
    prefixes: bool,
}

impl Search<'_> {
    /// How many lines were found in the file.
    fn file(&self, path: &str) -> Result<usize, ScanError> {
        let map = scan::map(path)?;
        // How many lines each piece has, and how many newlines: to keep the lines takes too much memory.
        let found = scan::pieces(&map, &|bytes, piece| {
            let lines = text::lines_of(bytes, piece);
            let newlines = if self.numbers {
                text::newlines(&bytes[lines.clone()])
            } else {
                0
            };
            let count = text::matches(bytes, lines, &self.pattern, false).count();
            (count, newlines)
        })?;
        let count = found.iter().map(|(count, _)| count).sum();
        if self.names {
            if count > 0 {
                println!("{path}");
            }
        } else if self.counts {
            match self.prefixes {
                true => println!("{path}:{count}"),
                false => println!("{count}"),
            }
        } else {
            let mut before = 0;
            for (number, (count, newlines)) in found.into_iter().enumerate() {
                if count > 0 {
                    let lines = text::lines_of(&map, scan::piece(&map, number));
                    for (line, number) in text::matches(&map, lines, &self.pattern, self.numbers) {
                        self.print(path, &map[line], before + number + 1);
                    }
                }
                before += newlines;
            }
        }
        Ok(count)
    }

    fn print(&self, path: &str, line: &[u8], number: u64) {
        let mut prefix = String::new();
        if self.prefixes {
            let _ = write!(prefix, "{path}:");
        }
        if self.numbers {
            let _ = write!(prefix, "{number}:");
        }
        // Not put together first: a line may be as long as the file.
        for part in [prefix.as_bytes(), line, b"\n"] {
            console::write_bytes(part);
        }
    }
}
