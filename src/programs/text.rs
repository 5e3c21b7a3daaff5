//! Searching and counting in pieces of a text: what `grep` and `wc` do, so that several threads can share a file.
//!
//! A piece is any run of bytes. A line belongs to the piece that it begins in, a word to the one that its first byte is in.

use core::ops::Range;

/// What is looked for: bytes, not a regular expression. Searched as Horspool did: where the last byte of a window does not
/// fit, the window moves on to where it would (Software: Practice and Experience 10, 1980).
pub struct Pattern<'p> {
    bytes: &'p [u8],
    case: Case,
    /// How far the window moves on, by its last byte.
    skip: [u8; 256],
}

/// Whether `a` and `A` are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// No.
    Matters,
    /// Yes, in ASCII.
    Ignored,
}

impl<'p> Pattern<'p> {
    /// These bytes.
    pub fn new(bytes: &'p [u8], case: Case) -> Self {
        let far = |len: usize| len.clamp(1, 255) as u8;
        let mut skip = [far(bytes.len()); 256];
        if let Some((_, front)) = bytes.split_last() {
            for (at, byte) in front.iter().enumerate() {
                let distance = far(bytes.len() - 1 - at);
                skip[usize::from(*byte)] = distance;
                if case == Case::Ignored {
                    skip[usize::from(byte.to_ascii_lowercase())] = distance;
                    skip[usize::from(byte.to_ascii_uppercase())] = distance;
                }
            }
        }
        Self { bytes, case, skip }
    }

    /// Where it is found first in `text`.
    pub fn find(&self, text: &[u8]) -> Option<usize> {
        let Some(last) = self.bytes.len().checked_sub(1) else {
            return Some(0);
        };
        let mut at = 0;
        while let Some(window) = text.get(at..=at + last) {
            let is_here = match self.case {
                Case::Matters => window == self.bytes,
                Case::Ignored => window.eq_ignore_ascii_case(self.bytes),
            };
            if is_here {
                return Some(at);
            }
            at += usize::from(self.skip[usize::from(window[last])]);
        }
        None
    }
}

const LOW: u64 = 0x0101_0101_0101_0101;

/// The lowest bit of each byte that is a newline, and no other bit.
fn newline_bits(word: [u8; 8]) -> u64 {
    let other = u64::from_le_bytes(word) ^ (LOW * u64::from(b'\n'));
    // Any bit of a byte of `other` reaches its lowest: exact, without carries between bytes.
    let folded = other | ((other >> 4) & (LOW * 0x0f));
    let folded = folded | ((folded >> 2) & (LOW * 0x3f));
    let folded = folded | ((folded >> 1) & (LOW * 0x7f));
    !folded & LOW
}

/// Where the first newline is.
fn find_newline(text: &[u8]) -> Option<usize> {
    let (words, rest) = text.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let bits = newline_bits(*word);
        if bits != 0 {
            return Some(8 * i + bits.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|byte| *byte == b'\n')?;
    Some(text.len() - rest.len() + at)
}

/// The lines that begin in `piece` of `text`, which is not empty: from the beginning of the first to the end of the last, its newline included.
pub fn lines_of(text: &[u8], piece: Range<usize>) -> Range<usize> {
    // The first line that begins at or behind `at`, behind a newline that stands before `end`.
    let begin = |at: usize, end: usize| match at.checked_sub(1) {
        None => Some(0),
        Some(before) => find_newline(&text[before..end]).map(|len| at + len),
    };
    // In the midst of a long line none begins: no further than the piece is looked for one.
    let Some(first) = begin(piece.start, piece.end - 1) else {
        return piece.start..piece.start;
    };
    first..begin(piece.end, text.len()).unwrap_or(text.len())
}

/// The lines of `text[lines]` in which `pattern` is found, without their newlines, and how many newlines stand before each
/// in `lines` (only counted if `counts` says so).
pub fn matches<'t>(
    text: &'t [u8],
    lines: Range<usize>,
    pattern: &'t Pattern<'_>,
    counts: bool,
) -> impl Iterator<Item = (Range<usize>, u64)> + 't {
    let (mut at, mut number) = (lines.start, 0);
    core::iter::from_fn(move || {
        let rest = text.get(at..lines.end).filter(|rest| !rest.is_empty())?;
        let hit = at + pattern.find(rest)?;
        let start = text[at..hit]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(at, |newline| at + newline + 1);
        let end = find_newline(&text[hit..lines.end]).map_or(lines.end, |len| hit + len);
        if counts {
            number += newlines(&text[at..start]);
        }
        let before = number;
        number += 1;
        at = end + 1;
        Some((start..end, before))
    })
}

/// How many newlines there are, eight bytes at a time.
pub fn newlines(text: &[u8]) -> u64 {
    let (words, rest) = text.as_chunks::<8>();
    let in_words = words.chunks(255).map(|words| {
        // Each byte of the sum counts the newlines at its place, 255 at most.
        let sums: u64 = words.iter().map(|word| newline_bits(*word)).sum();
        let sums = sums.to_le_bytes();
        sums.iter().map(|sum| u64::from(*sum)).sum::<u64>()
    });
    in_words.sum::<u64>() + rest.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The words that begin in `piece` of `text`: runs of bytes other than blanks, as `wc` has them.
pub fn words(text: &[u8], piece: Range<usize>) -> u64 {
    let is_blank = |byte: u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let before = piece.start.checked_sub(1).map_or(b' ', |at| text[at]);
    let mut was_blank = is_blank(before);
    let mut count = 0;
    for byte in &text[piece] {
        let blank = is_blank(*byte);
        count += u64::from(was_blank && !blank);
        was_blank = blank;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::{Case, Pattern, lines_of, matches, newlines, words};
    use alloc::string::String;
    use alloc::vec::Vec;
    use proptest::prelude::{prop_assert_eq, proptest};

    /// What the whole text has, piece by piece.
    fn found(text: &str, pattern: &str, case: Case, piece: usize) -> (Vec<(String, u64)>, u64) {
        let text = text.as_bytes();
        let pattern = Pattern::new(pattern.as_bytes(), case);
        let (mut all, mut before, mut word_count) = (Vec::new(), 0, 0);
        for start in (0..text.len()).step_by(piece) {
            let piece = start..(start + piece).min(text.len());
            let lines = lines_of(text, piece.clone());
            for (line, number) in matches(text, lines.clone(), &pattern, true) {
                all.push((
                    String::from_utf8_lossy(&text[line]).into_owned(),
                    before + number + 1,
                ));
            }
            before += newlines(&text[lines]);
            word_count += words(text, piece);
        }
        (all, word_count)
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_find_what_the_whole_has(
            text in "[ab \n]{0,80}", pattern in "[ab]{1,3}", piece in 1..40usize,
        ) {
            let lines = text.split_terminator('\n').zip(1..);
            let wanted: Vec<_> = lines
                .filter(|(line, _)| line.contains(&pattern))
                .map(|(line, number)| (line.into(), number))
                .collect();
            let (all, word_count) = found(&text, &pattern, Case::Matters, piece);
            prop_assert_eq!(all, wanted);
            prop_assert_eq!(word_count, text.split_whitespace().count() as u64);
        }

        #[test]
        fn newlines_are_counted(text in "[\n\u{b}\u{8a}a]{0,700}") {
            prop_assert_eq!(newlines(text.as_bytes()), text.matches('\n').count() as u64);
        }
    }

    #[test]
    fn letters_of_either_case_are_the_same_if_asked_for() {
        let text = "One\ntWO\nthree two\nTwenty\n";
        let lines = |case| {
            found(text, "Two", case, 5)
                .0
                .into_iter()
                .map(|(line, _)| line)
        };
        assert_eq!(
            lines(Case::Ignored).collect::<Vec<_>>(),
            ["tWO", "three two"]
        );
        assert_eq!(lines(Case::Matters).count(), 0);
        assert_eq!(newlines(&[b'\n'; 5000]), 5000);
    }
}
