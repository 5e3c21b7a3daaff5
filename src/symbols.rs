//! Names for addresses of code, so that a backtrace can be read.
//!
//! `tools/` writes the table when it makes kernel8.img, and the image carries it. Names repeat each other (module paths,
//! types, closures), so they are stored as sequences of codes: a code below 256 is a byte; any other stands for two
//! lower codes. (Re-Pair: Larsson and Moffat, "Offline Dictionary-Based Compression", 1999.) All integers are
//! little-endian; a *number* takes seven bits a byte, lowest first, the top bit saying that more follow.
//!
//! ```text
//!  0  "PFS1"
//!  4  u32  length of the table
//!  8  u32  end of the code: offsets from here on have no name
//! 12  u32  functions
//! 16  u32  rules
//! 20  rules:      u16, u16               what code 256 + n stands for
//!     functions:  number                 start, counted from the one before
//!                 number, that many bytes   the name, each code a number
//! ```
//!
//! The reader trusts nothing: a damaged table gives wrong names or none, never a panic, since it is read in the middle of
//! a crash report.

#![forbid(unsafe_code)]

use core::fmt::{self, Write};

const MAGIC: &[u8; 4] = b"PFS1";
const HEADER: usize = 20;

/// Codes that may wait to be expanded. `tools/` makes no rule that needs more.
const MAX_PENDING: usize = 32;

/// Characters of a name that are shown.
const MAX_NAME: usize = 240;

/// The table of function names.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    rules: &'a [u8],
    functions: &'a [u8],
    count: u32,
    end: u32,
}

/// The function that an offset lies in.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// Its name; shown by `Display`.
    pub name: Name<'a>,
    /// How many bytes after the function's start the offset lies.
    pub offset: u32,
}

/// A function's name, expanded as it is shown: nothing is allocated.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    codes: &'a [u8],
    rules: &'a [u8],
}

impl<'a> Symbols<'a> {
    /// Reads the head of the table at the start of `bytes`. `None` where there is none, as in an image that `tools/`
    /// has not finished.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..4)? != MAGIC {
            return None;
        }
        let length = usize::try_from(u32_at(bytes, 4)?).ok()?;
        let rules = usize::try_from(u32_at(bytes, 16)?).ok()?;
        let (rules, functions) = bytes
            .get(HEADER..length)?
            .split_at_checked(rules.checked_mul(4)?)?;
        Some(Self {
            rules,
            functions,
            count: u32_at(bytes, 12)?,
            end: u32_at(bytes, 8)?,
        })
    }

    /// Bytes the table takes.
    pub fn size(&self) -> usize {
        HEADER + self.rules.len() + self.functions.len()
    }

    /// How many functions have a name.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Is no function named?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The function that holds `offset`, counted in bytes from the image's start. For a return address, ask for the
    /// instruction before it: a call may be a function's last instruction.
    pub fn find(&self, offset: u32) -> Option<Symbol<'a>> {
        if offset >= self.end {
            return None;
        }
        let mut found = None;
        let mut start = 0u32;
        let mut rest = self.functions;
        for _ in 0..self.count {
            let (distance, codes) = number(rest)?;
            let (length, codes) = number(codes)?;
            start = start.checked_add(distance)?;
            if start > offset {
                break;
            }
            let (codes, next) = codes.split_at_checked(usize::try_from(length).ok()?)?;
            found = Some((start, codes));
            rest = next;
        }
        found.map(|(start, codes)| Symbol {
            name: Name {
                codes,
                rules: self.rules,
            },
            offset: offset - start,
        })
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = MAX_NAME;
        let mut rest = self.codes;
        while let Some((code, next)) = number(rest) {
            rest = next;
            let mut pending = [0; MAX_PENDING];
            pending[0] = code;
            let mut waiting = 1;
            while waiting > 0 {
                waiting -= 1;
                let code = pending[waiting];
                if let Ok(byte) = u8::try_from(code) {
                    if left == 0 {
                        return out.write_char('…');
                    }
                    left -= 1;
                    out.write_char(printable(byte))?;
                    continue;
                }
                match (self.rule(code), pending.get_mut(waiting..waiting + 2)) {
                    (Some((first, second)), Some(free)) => free.copy_from_slice(&[second, first]),
                    _ => return out.write_char('?'), // damaged
                }
                waiting += 2;
            }
        }
        Ok(())
    }
}

impl Name<'_> {
    /// The two codes that `code` stands for. Were one of them `code` itself, expanding it would still end: with each
    /// step either a character is shown or one code more waits, and both have a limit.
    fn rule(&self, code: u32) -> Option<(u32, u32)> {
        let at = usize::try_from(code.checked_sub(256)?)
            .ok()?
            .checked_mul(4)?;
        let both = u32_at(self.rules, at)?;
        Some((both & 0xffff, both >> 16))
    }
}

fn printable(byte: u8) -> char {
    match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_le_bytes)
}

/// The number at the start of `bytes`, and what follows it.
fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((u32::try_from(value).ok()?, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Symbols;
    use std::string::{String, ToString};
    use std::vec::Vec;

    /// Code from 16 to 100: "ab" at 16, "abab!" at 24 by way of code 256 = "ab" and 257 = "abab".
    fn table() -> Vec<u8> {
        let mut bytes = Vec::from(*b"PFS1");
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(100u32.to_le_bytes());
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(2u32.to_le_bytes());
        for code in [u16::from(b'a'), u16::from(b'b'), 256, 256] {
            bytes.extend(code.to_le_bytes());
        }
        bytes.extend([16, 2, 0x80, 0x02]); // 0x80 0x02 is 256
        bytes.extend([8, 3, 0x81, 0x02, b'!']);
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn name(table: &[u8], offset: u32) -> Option<(String, u32)> {
        let symbol = Symbols::new(table)?.find(offset)?;
        Some((symbol.name.to_string(), symbol.offset))
    }

    #[test]
    fn an_offset_belongs_to_the_function_that_starts_at_or_before_it() {
        let table = table();
        assert_eq!(name(&table, 15), None);
        assert_eq!(name(&table, 16), Some(("ab".into(), 0)));
        assert_eq!(name(&table, 23), Some(("ab".into(), 7)));
        assert_eq!(name(&table, 24), Some(("abab!".into(), 0)));
        assert_eq!(name(&table, 99), Some(("abab!".into(), 75)));
        assert_eq!(name(&table, 100), None);
    }

    #[test]
    fn bytes_after_the_table_do_not_matter() {
        let mut table = table();
        table.extend([0xff; 50]);
        assert_eq!(name(&table, 30), Some(("abab!".into(), 6)));
    }

    #[test]
    fn memory_without_a_table_has_no_symbols() {
        assert!(Symbols::new(&[]).is_none());
        assert!(Symbols::new(&[0; 64]).is_none());
        assert!(Symbols::new(&table()[..28]).is_none());
    }

    #[test]
    fn a_rule_that_refers_to_itself_ends() {
        let refer_to_itself = |at: usize| {
            let mut table = table();
            table[at..at + 2].copy_from_slice(&257u16.to_le_bytes());
            name(&table, 24).unwrap().0
        };
        assert_eq!(refer_to_itself(24), "?");
        assert_eq!(refer_to_itself(26), "ab".repeat(120) + "…");
    }

    #[test]
    fn what_is_not_printable_is_not_printed() {
        let mut table = table();
        table[20] = 0x1b; // the first byte of rule 256, which was 'a'
        assert_eq!(name(&table, 16), Some(("?b".into(), 0)));
    }

    #[test]
    fn a_long_name_is_cut() {
        let mut table = table();
        let codes = [b'x'; 120];
        let at = table.len() - 5;
        table.truncate(at);
        table.extend([8, 0xff, 0x01]); // 255 codes
        table.extend(codes.iter().chain(&codes).chain(&codes[..15]));
        let length = u32::try_from(table.len()).unwrap();
        table[4..8].copy_from_slice(&length.to_le_bytes());
        let (name, _) = name(&table, 24).unwrap();
        assert_eq!(name, "x".repeat(240) + "…");
    }

    #[test]
    fn no_single_damaged_byte_makes_the_reader_panic() {
        let intact = table();
        for at in 0..intact.len() {
            for value in (0..=255).step_by(if cfg!(miri) { 51 } else { 1 }) {
                let mut damaged = intact.clone();
                damaged[at] = value;
                for offset in [0, 16, 24, 99, u32::MAX] {
                    let _ = name(&damaged, offset);
                }
            }
        }
    }
}
