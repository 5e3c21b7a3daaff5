//! The text of a line, and a cursor in it.

use alloc::string::String;

/// Bytes in a line at most.
pub(super) const MAX_LEN: usize = 4096;

/// Columns that `text` takes on a screen.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

/// Characters that go on top of the one before (Unicode's blocks of combining marks, and what has no width).
const MARKS: [(u32, u32); 7] = [
    (0x300, 0x36f),
    (0x483, 0x489),
    (0x200b, 0x200f),
    (0x20d0, 0x20ff),
    (0xfe00, 0xfe0f),
    (0xfe20, 0xfe2f),
    (0xe_0100, 0xe_01ef),
];

/// Characters that take two columns (Unicode Standard Annex 11, by block).
const WIDE: [(u32, u32); 10] = [
    (0x1100, 0x115f),
    (0x2e80, 0x303e),
    (0x3041, 0xa4cf),
    (0xac00, 0xd7a3),
    (0xf900, 0xfaff),
    (0xfe30, 0xfe6f),
    (0xff01, 0xff60),
    (0xffe0, 0xffe6),
    (0x1_f300, 0x1_faff),
    (0x2_0000, 0x3_fffd),
];

/// Columns that a character takes. Coarse, by block: crate `unicode-width` knows better, and has tables of 7 KiB.
pub(super) fn width_of(character: char) -> usize {
    let is_in = |blocks: &[(u32, u32)]| {
        let number = u32::from(character);
        blocks
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&number))
    };
    if character < '\u{300}' {
        1
    } else if is_in(&MARKS) {
        0
    } else if is_in(&WIDE) {
        2
    } else {
        1
    }
}

/// A line that is being edited. The cursor stands on a boundary: never between a character and its marks.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Line {
    text: String,
    cursor: usize,
}

/// What of the line is meant, seen from the cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Span {
    /// The character before it.
    Left,
    /// The character at it.
    Right,
    /// Back to the beginning of a word, as blanks separate them.
    WordLeft,
    /// On to the end of a word.
    WordRight,
    /// All before it.
    ToStart,
    /// All from it on.
    ToEnd,
}

impl Line {
    /// With the cursor at the end.
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            cursor: text.len(),
        }
    }

    /// All of it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Where the cursor stands, in bytes.
    pub(super) fn cursor(&self) -> usize {
        self.cursor
    }

    /// What is before the cursor.
    pub(super) fn before(&self) -> &str {
        &self.text[..self.cursor]
    }

    /// Puts a character in; `false` if there is no room.
    pub(super) fn insert(&mut self, character: char) -> bool {
        self.insert_text(character.encode_utf8(&mut [0; 4]))
    }

    /// Puts text in; `false` if there is no room.
    pub(super) fn insert_text(&mut self, text: &str) -> bool {
        let has_room = self.text.len() + text.len() <= MAX_LEN;
        if has_room {
            self.text.insert_str(self.cursor, text);
            self.cursor += text.len();
        }
        has_room
    }

    /// Puts `text` in the place of what is between byte `start` and the cursor; `false` if there is no room.
    pub(super) fn replace(&mut self, start: usize, text: &str) -> bool {
        let has_room = self.text.len() - (self.cursor - start) + text.len() <= MAX_LEN;
        if has_room {
            self.text.replace_range(start..self.cursor, text);
            self.cursor = start + text.len();
        }
        has_room
    }

    /// Where the other end of `span` is.
    pub(super) fn end_of(&self, span: Span) -> usize {
        let (before, after) = self.text.split_at(self.cursor);
        match span {
            Span::Left => {
                let base = before.char_indices().rfind(|(_, c)| width_of(*c) > 0);
                base.map_or(0, |(at, _)| at)
            }
            Span::Right => {
                let mut rest = after.char_indices().skip(1);
                let next = rest.find(|(_, c)| width_of(*c) > 0);
                next.map_or(self.text.len(), |(at, _)| self.cursor + at)
            }
            Span::WordLeft => {
                let word = before.trim_end();
                word.rfind(char::is_whitespace).map_or(0, |at| {
                    at + word[at..].chars().next().map_or(0, char::len_utf8)
                })
            }
            Span::WordRight => {
                let word = after.trim_start();
                let start = self.text.len() - word.len();
                start + word.find(char::is_whitespace).unwrap_or(word.len())
            }
            Span::ToStart => 0,
            Span::ToEnd => self.text.len(),
        }
    }

    /// Moves the cursor over `span`.
    pub(super) fn go(&mut self, span: Span) {
        self.cursor = self.end_of(span);
    }

    /// Takes `span` out.
    pub(super) fn cut(&mut self, span: Span) -> String {
        let end = self.end_of(span);
        let range = end.min(self.cursor)..end.max(self.cursor);
        self.cursor = range.start;
        self.text.drain(range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, Span, width};

    #[test]
    fn words_are_separated_by_blanks() {
        let mut line = Line::new("map -r  /a/b ");
        line.go(Span::WordLeft);
        assert_eq!(line.before(), "map -r  ");
        line.go(Span::WordLeft);
        assert_eq!(line.before(), "map ");
        line.go(Span::WordRight);
        assert_eq!(line.before(), "map -r");
        assert_eq!(line.cut(Span::WordRight), "  /a/b");
        assert_eq!(line.cut(Span::WordLeft), "-r");
        assert_eq!(line.text(), "map  ");
    }

    #[test]
    fn a_mark_goes_with_its_letter() {
        let mut line = Line::new("ae\u{301}b");
        line.go(Span::Left);
        line.go(Span::Left);
        assert_eq!(line.before(), "a");
        assert_eq!(line.cut(Span::Right), "e\u{301}");
        assert_eq!(line.text(), "ab");
    }

    #[test]
    fn letters_have_the_columns_that_terminals_give_them() {
        assert_eq!(width("aß漢e\u{301}"), 5);
    }

    #[test]
    fn a_full_line_takes_no_more() {
        let mut line = Line::new(&"x".repeat(super::MAX_LEN - 1));
        assert!(!line.insert('ä'));
        assert!(line.insert('a'));
        assert!(!line.insert('a'));
        assert!(!line.replace(0, &"y".repeat(super::MAX_LEN + 1)));
    }
}
