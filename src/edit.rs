//! Editing a line at a terminal: bytes that are typed go in; bytes for the screen, and lines, come out.
//!
//! It knows no device and no clock, so a PC tests it against the model of a terminal. The line has one row of the
//! screen: one that is longer scrolls sideways under the cursor, and the last column stays free, since terminals differ
//! in what they do once it is written. Crate `noline` is not used for its licence (MPL) and `editline` since it neither
//! completes nor searches.

mod history;
mod keys;
mod line;
#[cfg(test)]
mod tests;

use crate::command::{self, Quote};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use history::History;
use keys::{Key, Keys};
use line::{Line, MAX_LEN, Span, width, width_of};

/// Columns of the screen.
pub const COLUMNS: usize = 80;

/// Candidates that are listed at most.
const MAX_LISTED: usize = 200;

/// What the line has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was entered.
    Line(String),
    /// It was given up, with Ctrl-C.
    Abandoned,
    /// There will be no more, by Ctrl-D.
    End,
}

/// What a word may be completed to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The whole word.
    pub word: String,
    /// Whether it goes on, as a directory does.
    pub is_partial: bool,
}

/// Who knows what may be meant.
pub trait Complete {
    /// What `word` may become, each once and in order, all beginning with it; `words` come before it in its command.
    fn candidates(&mut self, words: &[String], word: &str) -> Vec<Candidate>;
}

/// A search through the history, backwards.
struct Search {
    text: String,
    /// The line that was found.
    at: Option<usize>,
    /// What was there before.
    line: Line,
}

/// The editor.
pub struct Editor {
    prompt: &'static str,
    keys: Keys,
    line: Line,
    /// The first byte of the line that is on the screen.
    first: usize,
    cut: String,
    history: History,
    /// The line of the history that is shown, and what was typed before that.
    recalled: Option<(usize, Line)>,
    search: Option<Search>,
    /// Something that was typed had no room: the line is not what was meant.
    is_cut: bool,
    last: Option<Key>,
}

impl Editor {
    /// An editor that has seen nothing yet.
    pub fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            keys: Keys::default(),
            line: Line::default(),
            first: 0,
            cut: String::new(),
            history: History::default(),
            recalled: None,
            search: None,
            is_cut: false,
            last: None,
        }
    }

    /// Begins a line: the prompt is what it shows.
    pub fn begin(&mut self, screen: &mut String) {
        self.line = Line::default();
        self.first = 0;
        self.recalled = None;
        self.search = None;
        self.is_cut = false;
        self.last = None;
        screen.push_str(self.prompt);
    }

    /// Takes a byte that was typed; writes what is to be shown to `screen`.
    pub fn take(
        &mut self,
        byte: u8,
        screen: &mut String,
        complete: &mut dyn Complete,
    ) -> Option<Outcome> {
        let key = self.keys.take(byte)?;
        let outcome = if self.search.is_some() {
            self.search(key, screen)
        } else {
            self.edit(key, screen, complete)
        };
        self.last = Some(key);
        outcome
    }

    fn edit(
        &mut self,
        key: Key,
        screen: &mut String,
        complete: &mut dyn Complete,
    ) -> Option<Outcome> {
        match key {
            Key::Character(character) => return self.insert(character, screen),
            Key::Enter => return Some(self.enter(screen)),
            Key::Interrupt => {
                self.line.go(Span::ToEnd);
                self.draw(screen);
                screen.push_str("^C\n");
                return Some(Outcome::Abandoned);
            }
            Key::EndOfInput if self.line.text().is_empty() => {
                screen.push('\n');
                return Some(Outcome::End);
            }
            Key::Paste => {
                if !self.line.insert_text(&self.cut) {
                    bell(screen);
                }
            }
            Key::Up => self.recall(Direction::Back, screen),
            Key::Down => self.recall(Direction::On, screen),
            Key::Tab => self.complete(screen, complete),
            Key::Search => {
                self.search = Some(Search {
                    text: String::new(),
                    at: None,
                    line: self.line.clone(),
                });
            }
            Key::Clear => screen.push_str("\x1b[H\x1b[2J"),
            key => match (movement(key), removal(key)) {
                (Some(span), _) => self.line.go(span),
                (None, Some(span)) => self.remove(span),
                (None, None) => bell(screen),
            },
        }
        self.draw(screen);
        None
    }

    /// Takes `span` out; more than a character is kept, to be put back. Who takes something out has seen the line.
    fn remove(&mut self, span: Span) {
        self.is_cut = false;
        let removed = self.line.cut(span);
        if !matches!(span, Span::Left | Span::Right) {
            self.cut = removed;
        }
    }

    fn insert(&mut self, character: char, screen: &mut String) -> Option<Outcome> {
        let is_at_end = self.line.cursor() == self.line.text().len();
        if !self.line.insert(character) {
            self.is_cut = true;
            bell(screen);
        } else if is_at_end && width_of(character) == 1 && self.column() <= self.room() {
            // Nothing else on the screen changes.
            screen.push(character);
        } else {
            self.draw(screen);
        }
        None
    }

    fn enter(&mut self, screen: &mut String) -> Outcome {
        screen.push('\n');
        let line = String::from(self.line.text());
        self.history.add(&line);
        if self.is_cut {
            let _ = writeln!(
                screen,
                "pinfold: a line has {MAX_LEN} bytes at most; what there was of this one is not run"
            );
            return Outcome::Abandoned;
        }
        Outcome::Line(line)
    }

    /// Columns for text: all but the prompt's and the last.
    fn room(&self) -> usize {
        COLUMNS - width(self.prompt) - 1
    }

    /// Where the cursor stands, in columns behind the prompt.
    fn column(&self) -> usize {
        let before = self.line.before();
        width(before.get(self.first..).unwrap_or_default())
    }

    /// Draws the row anew.
    fn draw(&mut self, screen: &mut String) {
        if let Some(search) = &self.search {
            let state = match (search.at, search.text.is_empty()) {
                (None, false) => "nothing like",
                _ => "search",
            };
            let mut shown = alloc::format!("({state}) {}: ", search.text);
            let room = (COLUMNS - 1).saturating_sub(width(&shown));
            shown.push_str(beginning(self.line.text(), room));
            let _ = write!(screen, "\r{}\x1b[K", beginning(&shown, COLUMNS - 1));
            return;
        }
        self.scroll();
        let shown = beginning(&self.line.text()[self.first..], self.room());
        let column = width(self.prompt) + self.column();
        let _ = write!(screen, "\r{}{shown}\x1b[K\r\x1b[{column}C", self.prompt);
    }

    /// Chooses what is shown: the cursor, and something before it.
    fn scroll(&mut self) {
        let room = self.room();
        let before = self.line.before();
        let shown = before
            .get(self.first..)
            .filter(|shown| self.first == 0 || !shown.is_empty());
        if shown.is_some_and(|shown| width(shown) <= room) {
            return;
        }
        // Two thirds of a row before the cursor, so that there is some on either side; from the beginning, if it fits.
        let mut columns = 0;
        let start = before.char_indices().rfind(|(_, character)| {
            columns += width_of(*character);
            columns > room * 2 / 3
        });
        self.first = match start {
            Some((at, character)) if width(before) > room => at + character.len_utf8(),
            _ => 0,
        };
    }

    fn recall(&mut self, direction: Direction, screen: &mut String) {
        let at = self.recalled.as_ref().map(|(at, _)| *at);
        let next = match direction {
            Direction::Back => at.unwrap_or(self.history.len()).checked_sub(1),
            Direction::On => at.map(|at| at + 1),
        };
        let Some(next) = next else {
            return bell(screen);
        };
        let (_, draft) = self
            .recalled
            .take()
            .unwrap_or_else(|| (0, self.line.clone()));
        match self.history.get(next) {
            Some(line) => {
                self.line = Line::new(line);
                self.recalled = Some((next, draft));
            }
            None => self.line = draft,
        }
    }

    fn search(&mut self, key: Key, screen: &mut String) -> Option<Outcome> {
        let search = self.search.as_mut()?;
        let from = match key {
            // No line is longer.
            Key::Character(character) if search.text.len() + character.len_utf8() > MAX_LEN => {
                bell(screen);
                return None;
            }
            Key::Character(character) => {
                search.text.push(character);
                search.at.map_or(self.history.len(), |at| at + 1)
            }
            Key::Backspace => {
                search.text.pop();
                self.history.len()
            }
            Key::Search => search.at.unwrap_or(self.history.len()),
            Key::Cancel | Key::Interrupt => {
                let search = self.search.take()?;
                self.line = search.line;
                self.draw(screen);
                return None;
            }
            // Anything else goes on with what was found.
            key => {
                self.search = None;
                self.draw(screen);
                return match key {
                    Key::Enter => Some(self.enter(screen)),
                    Key::EndOfInput | Key::Tab | Key::Other => None,
                    key => self.edit(key, screen, &mut Nothing),
                };
            }
        };
        let found = if search.text.is_empty() {
            None
        } else {
            self.history.find(&search.text, from)
        };
        match found {
            Some(at) => {
                search.at = Some(at);
                let line = self.history.get(at).unwrap_or_default();
                self.line = Line::new(line);
            }
            None if key == Key::Search && search.at.is_some() => bell(screen),
            None => {
                search.at = None;
                self.line = search.line.clone();
            }
        }
        self.draw(screen);
        None
    }

    fn complete(&mut self, screen: &mut String, complete: &mut dyn Complete) {
        let Some(unfinished) = command::unfinished(self.line.before()) else {
            return bell(screen);
        };
        let candidates = complete.candidates(&unfinished.words, &unfinished.word);
        let common = common_prefix(&candidates);
        let typed = match &candidates[..] {
            [only] => {
                let mut typed = command::quoted(&only.word, unfinished.quote);
                if !only.is_partial {
                    match typed.chars().next() {
                        Some('\'') if unfinished.quote == Quote::Single => typed.push('\''),
                        Some('"') if unfinished.quote == Quote::Double => typed.push('"'),
                        _ => {}
                    }
                    typed.push(' ');
                }
                typed
            }
            [] => return bell(screen),
            _ if common.len() > unfinished.word.len() => command::quoted(common, unfinished.quote),
            candidates if self.last == Some(Key::Tab) => {
                screen.push('\n');
                return list(candidates, screen);
            }
            _ => return bell(screen),
        };
        if !self.line.replace(unfinished.start, &typed) {
            bell(screen);
        }
    }
}

/// Over what a key moves the cursor.
fn movement(key: Key) -> Option<Span> {
    Some(match key {
        Key::Left => Span::Left,
        Key::Right => Span::Right,
        Key::WordLeft => Span::WordLeft,
        Key::WordRight => Span::WordRight,
        Key::Home => Span::ToStart,
        Key::End => Span::ToEnd,
        _ => return None,
    })
}

/// What a key takes out.
fn removal(key: Key) -> Option<Span> {
    Some(match key {
        Key::Backspace => Span::Left,
        Key::Delete | Key::EndOfInput => Span::Right,
        Key::CutWordLeft => Span::WordLeft,
        Key::CutWordRight => Span::WordRight,
        Key::CutToStart => Span::ToStart,
        Key::CutToEnd => Span::ToEnd,
        _ => return None,
    })
}

enum Direction {
    Back,
    On,
}

/// Knows of nothing.
struct Nothing;

impl Complete for Nothing {
    fn candidates(&mut self, _: &[String], _: &str) -> Vec<Candidate> {
        Vec::new()
    }
}

fn bell(screen: &mut String) {
    screen.push('\x07');
}

/// As much of `text` as has room in so many columns.
fn beginning(text: &str, room: usize) -> &str {
    let mut columns = 0;
    let end = text.char_indices().find(|(_, character)| {
        columns += width_of(*character);
        columns > room
    });
    end.map_or(text, |(at, _)| &text[..at])
}

fn common_prefix(candidates: &[Candidate]) -> &str {
    let Some((first, rest)) = candidates.split_first() else {
        return "";
    };
    rest.iter().fold(&first.word, |common, candidate| {
        let mut pairs = common.char_indices().zip(candidate.word.chars());
        let differs = pairs.find(|((_, a), b)| a != b).map(|((at, _), _)| at);
        let end = differs.unwrap_or(common.len().min(candidate.word.len()));
        &common[..end]
    })
}

/// Lists candidates in columns, without the folder they are in.
fn list(candidates: &[Candidate], screen: &mut String) {
    let names: Vec<&str> = candidates
        .iter()
        .take(MAX_LISTED)
        .map(|candidate| {
            let word = candidate.word.as_str();
            let folder = word.trim_end_matches('/').rfind('/');
            folder.map_or(word, |at| &word[at + 1..])
        })
        .collect();
    let cell = names.iter().map(|name| width(name)).max().unwrap_or(0) + 2;
    let columns = ((COLUMNS - 1) / cell).max(1);
    let rows = names.len().div_ceil(columns);
    for row in 0..rows {
        for (i, name) in names[row..].iter().step_by(rows).enumerate() {
            let is_last = row + (i + 1) * rows >= names.len();
            let name = beginning(name, COLUMNS - 1);
            screen.push_str(name);
            if !is_last {
                (width(name)..cell).for_each(|_| screen.push(' '));
            }
        }
        screen.push('\n');
    }
    if let Some(more @ 1..) = candidates.len().checked_sub(MAX_LISTED) {
        let _ = writeln!(screen, "and {more} more");
    }
}

const _: () = assert!(MAX_LEN > COLUMNS);
