//! The options of programs: words like `-n` or `-ci`, and `name=value`.

use alloc::string::String;
use core::str::FromStr;

/// Takes one-letter options from the front of `words`: each of them must be in `allowed`. `--` ends them. What is left, and
/// the letters; or the word that has one that is not allowed.
pub fn letters<'a>(words: &'a [String], allowed: &str) -> Result<(String, &'a [String]), &'a str> {
    let mut found = String::new();
    let mut rest = words;
    while let [word, others @ ..] = rest {
        match word.strip_prefix('-') {
            Some("-") => return Ok((found, others)),
            Some("") | None => break,
            Some(letters) if letters.chars().all(|letter| allowed.contains(letter)) => {
                found.push_str(letters);
                rest = others;
            }
            Some(_) => return Err(word),
        }
    }
    Ok((found, rest))
}

/// The value of `name=value` among `words`; the value's text where it is none of its kind.
pub fn value<'a, T: FromStr>(words: &'a [String], name: &str) -> Result<Option<T>, &'a str> {
    let value = words.iter().find_map(|word| {
        let (found, value) = word.split_once('=')?;
        (found == name).then_some(value)
    });
    match value {
        Some(value) => value.parse().map(Some).map_err(|_| value),
        None => Ok(None),
    }
}

/// A number of bytes: `4096`, `4k`, `64M`, `1g`; the units are binary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let shift = match text.as_bytes().last() {
            Some(b'k' | b'K') => 10,
            Some(b'm' | b'M') => 20,
            Some(b'g' | b'G') => 30,
            _ => 0,
        };
        let digits = if shift == 0 {
            text
        } else {
            &text[..text.len() - 1]
        };
        let number: u64 = digits.parse().map_err(|_| ())?;
        number.checked_mul(1 << shift).map(Self).ok_or(())
    }
}
