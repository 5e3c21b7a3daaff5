//! The editor before the model of a terminal.

use super::{COLUMNS, Candidate, Complete, Editor, MAX_LEN, Outcome, line::width, line::width_of};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

/// Rows of characters, as a terminal would show them. What the editor may not do, it panics at.
struct Terminal {
    rows: Vec<Vec<char>>,
    column: usize,
}

/// The right half of a wide character.
const HALF: char = '\0';

impl Terminal {
    fn new() -> Self {
        Self {
            rows: alloc::vec![Vec::new()],
            column: 0,
        }
    }

    fn show(&mut self, text: &str) {
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                '\r' => self.column = 0,
                '\n' => {
                    self.rows.push(Vec::new());
                    self.column = 0;
                }
                '\x07' => {}
                '\x1b' => {
                    assert_eq!(characters.next(), Some('['));
                    let mut number = String::new();
                    let last = loop {
                        match characters.next().expect("a whole sequence") {
                            digit @ '0'..='9' => number.push(digit),
                            last => break last,
                        }
                    };
                    self.obey(last, number.parse().ok());
                }
                character => self.put(character),
            }
        }
    }

    fn obey(&mut self, last: char, number: Option<usize>) {
        match (last, number) {
            ('K', None) => {
                let column = self.column;
                self.row().truncate(column);
            }
            ('C', Some(columns)) => self.column = (self.column + columns.max(1)).min(COLUMNS - 1),
            ('H', None) => {
                self.rows = alloc::vec![Vec::new()];
                self.column = 0;
            }
            ('J', Some(2)) => {}
            other => panic!("a terminal may not know {other:?}"),
        }
    }

    fn row(&mut self) -> &mut Vec<char> {
        self.rows.last_mut().expect("there is a row")
    }

    fn put(&mut self, character: char) {
        assert!(!character.is_control(), "{character:?}");
        let cells = width_of(character);
        if cells == 0 {
            // On top of the one before.
            return;
        }
        let column = self.column;
        assert!(column + cells < COLUMNS, "the last column is written");
        let row = self.row();
        row.resize(row.len().max(column + cells), ' ');
        row[column] = character;
        row[column + 1..column + cells].fill(HALF);
        self.column += cells;
    }

    fn text(&self, row: usize) -> String {
        self.rows[row].iter().filter(|c| **c != HALF).collect()
    }

    fn last(&self) -> String {
        self.text(self.rows.len() - 1)
    }
}

/// Files and folders of a disk that never was.
struct Disk;

impl Complete for Disk {
    fn candidates(&mut self, words: &[String], word: &str) -> Vec<Candidate> {
        let all = match words {
            [] => &["cat", "cp", "map", "mapsum"][..],
            _ => &[
                "/it's",
                "/my files/",
                "/my films",
                "/notes",
                "/nothing",
                "/über",
                "/ümlaut",
            ],
        };
        let fit = all.iter().filter(|name| name.starts_with(word));
        fit.map(|name| Candidate {
            word: name.to_string(),
            is_partial: name.ends_with('/'),
        })
        .collect()
    }
}

struct Session {
    editor: Editor,
    terminal: Terminal,
    outcomes: Vec<Outcome>,
}

impl Session {
    fn new() -> Self {
        let mut session = Self {
            editor: Editor::new("> "),
            terminal: Terminal::new(),
            outcomes: Vec::new(),
        };
        session.begin();
        session
    }

    fn begin(&mut self) {
        let mut screen = String::new();
        self.editor.begin(&mut screen);
        self.terminal.show(&screen);
    }

    fn type_in(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        for byte in bytes.as_ref() {
            let mut screen = String::new();
            let outcome = self.editor.take(*byte, &mut screen, &mut Disk);
            self.terminal.show(&screen);
            if let Some(outcome) = outcome {
                self.outcomes.push(outcome);
                self.begin();
            }
        }
        self
    }

    #[track_caller]
    fn shows(&mut self, row: &str) -> &mut Self {
        assert_eq!(self.terminal.last(), row);
        self
    }

    /// The cursor's place: the row up to it.
    #[track_caller]
    fn stands_behind(&mut self, text: &str) -> &mut Self {
        assert_eq!(self.terminal.column, width(text));
        assert!(self.terminal.last().starts_with(text));
        self
    }
}

fn entered(line: &str) -> Outcome {
    Outcome::Line(line.into())
}

#[test]
fn a_line_is_edited_in_its_middle() {
    let mut session = Session::new();
    session
        .type_in("lß /x\x01\x06\x7fc\x1b[Fyz\x1b[D\x02\x1b[3~")
        .shows("> cß /xz");
    session
        .type_in("\x01\x0b\x19\x19")
        .shows("> cß /xzcß /xz")
        .type_in("\x17")
        .shows("> cß /xzcß ");
    assert_eq!(session.type_in("\r").outcomes, [entered("cß /xzcß ")]);
}

#[test]
fn ctrl_c_gives_a_line_up_and_ctrl_d_ends_only_an_empty_one() {
    let mut session = Session::new();
    session.type_in("ab\x01\x04\x04\x04");
    assert_eq!(session.outcomes, [Outcome::End]);
    session.type_in("ls\x01\x03").shows("> ");
    assert_eq!(session.terminal.text(1), "> ls^C");
    assert_eq!(session.outcomes[1], Outcome::Abandoned);
}

#[test]
fn old_lines_come_back_and_what_was_being_typed_too() {
    let mut session = Session::new();
    session.type_in("one\rtwo\rone\r\rdraft");
    session
        .type_in("\x1b[A")
        .shows("> one")
        .type_in("\x1b[A")
        .shows("> two");
    session
        .type_in("\x1b[A")
        .shows("> two")
        .type_in("\x1b[B\x1b[B")
        .shows("> draft");
    assert_eq!(
        session.type_in("\x10\x10!\r").outcomes.last(),
        Some(&entered("two!"))
    );
}

#[test]
fn ctrl_r_searches_backwards() {
    let mut session = Session::new();
    session.type_in("map /one\rsum /one\rmap /two\rx");
    session.type_in("\x12ma").shows("(search) ma: map /two");
    session.type_in("\x12").shows("(search) ma: map /one");
    session.type_in("q").shows("(nothing like) maq: x");
    session
        .type_in("\x7f\x7f\x7fsu\x01")
        .shows("> sum /one")
        .stands_behind("> ");
    session.type_in("\x12map\x07").shows("> sum /one");
    session.type_in("\x12two\r");
    assert_eq!(session.outcomes.last(), Some(&entered("map /two")));
}

#[test]
#[cfg_attr(miri, ignore = "takes an hour")]
fn what_is_searched_for_is_no_longer_than_a_line() {
    let mut session = Session::new();
    session.type_in("\x12");
    session.type_in("x".repeat(MAX_LEN + 9));
    // As many are taken back.
    let taken_back = session.type_in("\x7f".repeat(MAX_LEN));
    taken_back.shows("(search) : ");
}

#[test]
fn tab_completes_what_is_clear_and_lists_what_is_not() {
    let mut session = Session::new();
    session
        .type_in("ca\t")
        .shows("> cat ")
        .type_in("/n\t")
        .shows("> cat /not");
    session.type_in("\t\t");
    assert_eq!(session.terminal.text(1), "notes    nothing");
    session
        .shows("> cat /not")
        .type_in("e\t")
        .shows("> cat /notes ");
    session
        .type_in("/my\t")
        .shows("> cat /notes /my\\ fil")
        .type_in("e\t")
        .shows("> cat /notes /my\\ files/");
    session
        .type_in("\x15cat \"/my\tm\t")
        .shows("> cat \"/my films\" ");
    session
        .type_in("'/i\t")
        .shows("> cat \"/my films\" /it\\'s ");
    session
        .type_in("/\u{fc}b\t")
        .shows("> cat \"/my films\" /it\\'s /über ");
}

#[test]
fn a_line_that_was_cut_is_not_run() {
    let mut session = Session::new();
    session
        .type_in("x".repeat(super::MAX_LEN + 1))
        .type_in("\r");
    assert_eq!(session.outcomes, [Outcome::Abandoned]);
    session.type_in("ls\r");
    assert_eq!(session.outcomes.last(), Some(&entered("ls")));
    // Shortened, it is what somebody wants.
    session
        .type_in("y".repeat(super::MAX_LEN + 1))
        .type_in("\x7f\r");
    let line = "y".repeat(super::MAX_LEN - 1);
    assert_eq!(session.outcomes.last(), Some(&entered(&line)));
}

#[test]
fn what_stands_behind_the_cursor_stays_when_a_word_is_completed() {
    let mut session = Session::new();
    session
        .type_in("ca x\x1b[D\x1b[D\t")
        .shows("> cat  x")
        .stands_behind("> cat ");
}

#[derive(Clone, Debug)]
enum Move {
    Type(char),
    Bytes(&'static [u8]),
}

/// What a key does to a line, in the simplest words.
fn model(characters: &mut Vec<char>, cursor: &mut usize, made: &Move) {
    let word_left = |characters: &[char], mut at: usize| {
        while at > 0 && characters[at - 1] == ' ' {
            at -= 1;
        }
        while at > 0 && characters[at - 1] != ' ' {
            at -= 1;
        }
        at
    };
    match made {
        Move::Type(character) => {
            characters.insert(*cursor, *character);
            *cursor += 1;
        }
        Move::Bytes(b"\x7f") if *cursor > 0 => {
            *cursor -= 1;
            characters.remove(*cursor);
        }
        Move::Bytes(b"\x1b[3~") if *cursor < characters.len() => drop(characters.remove(*cursor)),
        Move::Bytes(b"\x1b[D") => *cursor = cursor.saturating_sub(1),
        Move::Bytes(b"\x1b[C") => *cursor = characters.len().min(*cursor + 1),
        Move::Bytes(b"\x01") => *cursor = 0,
        Move::Bytes(b"\x05") => *cursor = characters.len(),
        Move::Bytes(b"\x0b") => characters.truncate(*cursor),
        Move::Bytes(b"\x1bb") => *cursor = word_left(characters, *cursor),
        Move::Bytes(b"\x17") => {
            let start = word_left(characters, *cursor);
            characters.drain(start..*cursor);
            *cursor = start;
        }
        Move::Bytes(_) => {}
    }
}

fn any_move() -> impl Strategy<Value = Move> {
    let keys: &[&[u8]] = &[
        b"\x7f", b"\x1b[3~", b"\x1b[D", b"\x1b[D", b"\x1b[C", b"\x01", b"\x05", b"\x0b", b"\x1bb",
        b"\x17", b"\x0c",
    ];
    prop_oneof![
        12 => prop::sample::select(&['a', 'b', ' ', 'ß', '漢', '€', '\'']).prop_map(Move::Type),
        4 => prop::sample::select(keys).prop_map(Move::Bytes),
        1 => Just(Move::Bytes(b"\x1b[99~")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 400 }))]

    /// After each key the line is what the model says; the row shows a part of it with the cursor in its place.
    #[test]
    fn the_screen_shows_the_line_and_the_cursor_in_it(moves in prop::collection::vec(any_move(), 0..if cfg!(miri) { 30 } else { 300 })) {
        let mut session = Session::new();
        let (mut characters, mut cursor) = (Vec::new(), 0);
        for made in &moves {
            match made {
                Move::Type(character) => session.type_in(character.to_string()),
                Move::Bytes(bytes) => session.type_in(bytes),
            };
            model(&mut characters, &mut cursor, made);
            let text: String = characters.iter().collect();
            prop_assert_eq!(session.editor.line.text(), &text);
            let row = session.terminal.last();
            let shown = row.strip_prefix("> ").expect("the prompt is there");
            let is_right = |first: usize| {
                let rest: String = characters[first..].iter().collect();
                let before: String = characters[first..cursor].iter().collect();
                let is_whole = width(&rest) == width(shown) || width(shown) + 2 >= COLUMNS - 2;
                rest.starts_with(shown) && is_whole && session.terminal.column == 2 + width(&before)
            };
            prop_assert!((0..=cursor).any(is_right), "{text:?} at {cursor} is shown as {row:?}");
        }
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(prop_oneof![
        prop::sample::select(b"\x1b[ABCD~1;5\t\x12\x03\x04\r\n\x7f ab'\"\\".as_slice()),
        0u8..=255,
    ], 0..200)) {
        let mut session = Session::new();
        session.type_in(bytes);
    }
}
