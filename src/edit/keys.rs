//! Bytes from a terminal as keys.
//!
//! Sequences are those that xterm, and what takes after it, sends (`ctlseqs`, "PC-Style Function Keys"), and the Linux
//! console's for Home and End.

/// What was typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    /// A character to put into the line.
    Character(char),
    /// Enter.
    Enter,
    /// Tab.
    Tab,
    /// Backspace.
    Backspace,
    /// Delete.
    Delete,
    /// Cursor left, Ctrl-B.
    Left,
    /// Cursor right, Ctrl-F.
    Right,
    /// Ctrl-Left, Alt-B.
    WordLeft,
    /// Ctrl-Right, Alt-F.
    WordRight,
    /// Home, Ctrl-A.
    Home,
    /// End, Ctrl-E.
    End,
    /// Cursor up, Ctrl-P.
    Up,
    /// Cursor down, Ctrl-N.
    Down,
    /// Ctrl-K.
    CutToEnd,
    /// Ctrl-U.
    CutToStart,
    /// Ctrl-W.
    CutWordLeft,
    /// Alt-D.
    CutWordRight,
    /// Ctrl-Y.
    Paste,
    /// Ctrl-L.
    Clear,
    /// Ctrl-R.
    Search,
    /// Ctrl-G.
    Cancel,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D.
    EndOfInput,
    /// Anything else.
    Other,
}

/// Bytes of a sequence that are kept; what is longer is none that we know.
const MAX_PARAMETERS: usize = 8;

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Ground,
    /// CR has ended a line: an LF behind it does not end another.
    Return,
    Escape,
    /// ESC [ or, where there are no parameters, ESC O.
    Sequence {
        parameters: [u8; MAX_PARAMETERS],
        len: usize,
    },
    /// A character in UTF-8 of which `missing` bytes are to come.
    Character {
        bits: u32,
        missing: u8,
        least: u32,
    },
}

/// Takes bytes apart.
#[derive(Default)]
pub(super) struct Keys(State);

impl Keys {
    /// The key that `byte` completes, if it does.
    pub(super) fn take(&mut self, byte: u8) -> Option<Key> {
        match core::mem::take(&mut self.0) {
            State::Return if byte == b'\n' => None,
            State::Ground | State::Return => self.begin(byte),
            State::Escape => self.escape(byte),
            State::Sequence { parameters, len } => self.sequence(byte, parameters, len),
            State::Character {
                bits,
                missing,
                least,
            } => self.character(byte, bits, missing, least),
        }
    }

    fn begin(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            0x01 => Key::Home,
            0x02 => Key::Left,
            0x03 => Key::Interrupt,
            0x04 => Key::EndOfInput,
            0x05 => Key::End,
            0x06 => Key::Right,
            0x07 => Key::Cancel,
            0x08 | 0x7f => Key::Backspace,
            b'\t' => Key::Tab,
            b'\n' => Key::Enter,
            b'\r' => {
                self.0 = State::Return;
                Key::Enter
            }
            0x0b => Key::CutToEnd,
            0x0c => Key::Clear,
            0x0e => Key::Down,
            0x10 => Key::Up,
            0x12 => Key::Search,
            0x15 => Key::CutToStart,
            0x17 => Key::CutWordLeft,
            0x19 => Key::Paste,
            0x1b => {
                self.0 = State::Escape;
                return None;
            }
            b' '..=b'~' => Key::Character(char::from(byte)),
            0xc2..=0xf4 => {
                let (missing, least) = match byte {
                    0xc2..=0xdf => (1, 0x80),
                    0xe0..=0xef => (2, 0x800),
                    _ => (3, 0x1_0000),
                };
                let bits = u32::from(byte) & (0x3f >> missing);
                self.0 = State::Character {
                    bits,
                    missing,
                    least,
                };
                return None;
            }
            _ => Key::Other,
        })
    }

    /// What does not go on with the character is looked at by itself: the broken one is dropped.
    fn character(&mut self, byte: u8, bits: u32, missing: u8, least: u32) -> Option<Key> {
        if byte & 0xc0 != 0x80 {
            return self.begin(byte);
        }
        let bits = bits << 6 | u32::from(byte & 0x3f);
        if missing > 1 {
            self.0 = State::Character {
                bits,
                missing: missing - 1,
                least,
            };
            return None;
        }
        let character = char::from_u32(bits).filter(|c| bits >= least && !c.is_control());
        Some(character.map_or(Key::Other, Key::Character))
    }

    fn escape(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            b'[' | b'O' => {
                self.0 = State::Sequence {
                    parameters: [0; MAX_PARAMETERS],
                    len: 0,
                };
                return None;
            }
            b'b' | b'B' => Key::WordLeft,
            b'f' | b'F' => Key::WordRight,
            b'd' | b'D' => Key::CutWordRight,
            0x08 | 0x7f => Key::CutWordLeft,
            // Escape by itself, and then something else.
            0x00..=0x1f => return self.begin(byte),
            _ => Key::Other,
        })
    }

    fn sequence(
        &mut self,
        byte: u8,
        mut parameters: [u8; MAX_PARAMETERS],
        len: usize,
    ) -> Option<Key> {
        match byte {
            b' '..=b'?' => {
                if let Some(place) = parameters.get_mut(len) {
                    *place = byte;
                }
                // One more than there is room for stands for all that are.
                let len = (len + 1).min(MAX_PARAMETERS + 1);
                self.0 = State::Sequence { parameters, len };
                None
            }
            b'@'..=b'~' => Some(
                parameters
                    .get(..len)
                    .map_or(Key::Other, |parameters| meaning(parameters, byte)),
            ),
            // Broken off.
            _ => self.begin(byte),
        }
    }
}

fn meaning(parameters: &[u8], last: u8) -> Key {
    let by_word = matches!(parameters, b"1;5" | b"1;3" | b"5" | b"3");
    match (last, parameters) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', _) if by_word => Key::WordRight,
        (b'C', _) => Key::Right,
        (b'D', _) if by_word => Key::WordLeft,
        (b'D', _) => Key::Left,
        (b'H', _) | (b'~', b"1" | b"7") => Key::Home,
        (b'F', _) | (b'~', b"4" | b"8") => Key::End,
        (b'~', b"3") => Key::Delete,
        (b'~', b"3;5" | b"3;3") => Key::CutWordRight,
        _ => Key::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Keys};
    use alloc::string::String;
    use alloc::vec::Vec;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        bytes.iter().filter_map(|byte| keys.take(*byte)).collect()
    }

    #[test]
    fn sequences_are_keys() {
        assert_eq!(
            keys(b"\x1b[A\x1bOB\x1b[1;5C\x1b[D\x1b[3~\x1b[1~\x1bOF\x1bb\x1b\x7f"),
            [
                Key::Up,
                Key::Down,
                Key::WordRight,
                Key::Left,
                Key::Delete,
                Key::Home,
                Key::End,
                Key::WordLeft,
                Key::CutWordLeft
            ]
        );
    }

    #[test]
    fn a_line_ends_once_by_cr_lf() {
        assert_eq!(keys(b"\r\n\n\r\r"), [Key::Enter; 4]);
    }

    #[test]
    fn an_unknown_sequence_is_one_key_however_long() {
        assert_eq!(
            keys(b"\x1b[38;2;255;255;255mx"),
            [Key::Other, Key::Character('x')]
        );
        assert_eq!(keys(b"\x1b[12\rx"), [Key::Enter, Key::Character('x')]);
    }

    #[test]
    fn a_broken_character_is_dropped_and_the_next_one_taken() {
        assert_eq!(keys(b"\xc3a\xe2\x82\x1b[A"), [Key::Character('a'), Key::Up]);
        // Too long an encoding of a slash, half a surrogate, and a control character of Latin-1.
        assert_eq!(keys(b"\xe0\x80\xaf\xed\xa0\x80\xc2\x85"), [Key::Other; 3]);
    }

    proptest! {
        #[test]
        fn text_is_its_characters(text in "[^\\p{Cc}]{0,40}") {
            let typed: String = keys(text.as_bytes()).into_iter().map(|key| match key {
                Key::Character(c) => c,
                other => panic!("{other:?}"),
            }).collect();
            prop_assert_eq!(typed, text);
        }

        /// Whatever came before, a sound line behind it arrives, but for what a broken sequence may swallow.
        #[test]
        fn no_bytes_confuse_it_for_long(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut keys = Keys::default();
            for byte in bytes {
                keys.take(byte);
            }
            keys.take(b'\r');
            prop_assert_eq!(keys.take(b'x'), Some(Key::Character('x')));
        }
    }
}
