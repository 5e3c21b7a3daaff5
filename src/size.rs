//! Sizes as people write and read them.

use alloc::string::String;
use core::fmt;

/// How a size is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// In the largest unit of which there is one.
    Human,
    /// In bytes, and nothing but the number.
    Bytes,
}

/// A number of bytes, to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64, pub Unit);

/// A number of bytes in the largest unit of which there is one: `640 KiB`.
pub fn human(bytes: u64) -> Size {
    Size(bytes, Unit::Human)
}

/// What the options of a command ask for: `-b`, bytes.
pub fn unit(options: &str) -> Unit {
    match options.contains('b') {
        true => Unit::Bytes,
        false => Unit::Human,
    }
}

/// How many there are of what this is one: `1 page`, `2 pages`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count(pub u64, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, what) = self;
        write!(f, "{count} {what}{}", if *count == 1 { "" } else { "s" })
    }
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes, Unit::Human) = *self else {
            return f.pad_integral(true, "", &alloc::format!("{}", self.0));
        };
        // Three digits, or four without a point; what would be 1024 of a unit once rounded is one of the next.
        let tenths = |unit: u32| {
            let whole = 1u128 << (10 * unit);
            (u128::from(bytes) * 10 + whole / 2) / whole
        };
        let is_largest = |unit: &u32| *unit as usize == UNITS.len() - 1 || tenths(*unit) < 10_235;
        let unit = (0..).find(is_largest).unwrap_or_default();
        let (tenths, name) = (tenths(unit), UNITS[unit as usize]);
        let is_whole = bytes.trailing_zeros() >= 10 * unit;
        let text: String = if is_whole || tenths >= 1000 {
            alloc::format!("{} {name}", (tenths + 5) / 10)
        } else {
            alloc::format!("{}.{} {name}", tenths / 10, tenths % 10)
        };
        f.pad(&text)
    }
}

/// A number as it is typed: hexadecimal after `0x`, or decimal, perhaps with a binary unit: `4096`, `64K`, `2M`, `1GiB`.
pub fn parse(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let shift = match unit {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{Count, Size, Unit, human, parse};
    use alloc::format;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    #[test]
    fn sizes_are_shown_in_the_largest_unit_they_fill() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            ((64 << 20) + 1, "64.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (1023 << 20, "1023 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(format!("{}", human(bytes)), text);
        }
        assert_eq!(format!("[{:>9}]", human(1024)), "[    1 KiB]");
        assert_eq!(format!("[{:>6}]", Size(1024, Unit::Bytes)), "[  1024]");
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse("0x1000"), Some(4096));
        assert_eq!(parse("4k"), Some(4096));
        assert_eq!(parse("2GiB"), Some(2 << 30));
        for wrong in ["", "K", "-1", "1.5M", "4kb", "0x", "99999999999T", "1 K"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(format!("{}", Count(1, "page")), "1 page");
        assert_eq!(format!("{}", Count(0, "page")), "0 pages");
    }

    proptest! {
        #[test]
        fn no_size_needs_more_than_eight_columns(bytes in any::<u64>()) {
            let shown = format!("{}", human(bytes));
            prop_assert!(shown.len() <= 8);
        }

        #[test]
        fn exact_sizes_are_read_again(bytes in any::<u64>()) {
            prop_assert_eq!(parse(&format!("{}", Size(bytes, Unit::Bytes))), Some(bytes));
        }
    }
}
