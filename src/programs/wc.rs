//! `wc`: how many lines, words and bytes files have.

use super::scan::{self, ScanError};
use super::text;
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::println;
use crate::program::options;
use alloc::format;
use alloc::string::String;

crate::program! {
    name: "wc",
    summary: "count lines, words and bytes of files: [-clw] FILE...",
    main: main,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    lines: u64,
    words: u64,
    bytes: u64,
}

fn main(arguments: &[String]) -> Status {
    let Ok((letters, paths @ [_, ..])) = options::letters(arguments, "clw") else {
        println!("usage: run wc [-c bytes] [-l lines] [-w words] FILE...");
        return USAGE;
    };
    let letters = if letters.is_empty() { "lwc" } else { &letters };
    let mut total = Counts::default();
    let mut status = SUCCESS;
    for path in paths {
        match count(path, letters) {
            Ok(counts) => {
                print(counts, letters, path);
                total.lines += counts.lines;
                total.words += counts.words;
                total.bytes += counts.bytes;
            }
            Err(error) => {
                println!("wc: {path}: {error}");
                status = FAILURE;
            }
        }
    }
    if paths.len() > 1 {
        print(total, letters, "total");
    }
    status
}

fn count(path: &str, letters: &str) -> Result<Counts, ScanError> {
    let map = scan::map(path)?;
    let mut counts = Counts {
        bytes: map.len() as u64,
        ..Counts::default()
    };
    if letters == "c" {
        return Ok(counts);
    }
    let has_words = letters.contains('w');
    let pieces = scan::pieces(&map, &|bytes, piece| {
        let words = if has_words {
            text::words(bytes, piece.clone())
        } else {
            0
        };
        (text::newlines(&bytes[piece]), words)
    })?;
    for (lines, words) in pieces {
        counts.lines += lines;
        counts.words += words;
    }
    Ok(counts)
}

fn print(counts: Counts, letters: &str, name: &str) {
    let mut line = String::new();
    for (letter, count) in [
        ('l', counts.lines),
        ('w', counts.words),
        ('c', counts.bytes),
    ] {
        if letters.contains(letter) {
            line += &format!("{count:>8} ");
        }
    }
    println!("{line}{name}");
}
