//! Why a Raspberry Pi is slowed down, or was: what the VideoCore's tag 0x30046 means.
//!
//! Source: Raspberry Pi documentation, "vcgencmd", "get_throttled".

use core::fmt;

/// The VideoCore's word: what is so now from bit 0 on, what has been since power-on from bit 16 on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Throttling(pub u32);

const REASONS: [&str; 4] = [
    "under-voltage",
    "frequency capped",
    "throttled",
    "near the temperature limit",
];

impl fmt::Display for Throttling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut is_first = true;
        for (when, shift) in [("now", 0), ("has occurred", 16)] {
            let mut separator = if is_first { "" } else { "; " };
            let mut head = when;
            for (bit, reason) in REASONS.iter().enumerate() {
                if self.0 >> (shift + bit) & 1 != 0 {
                    let colon = if head.is_empty() { "" } else { ": " };
                    write!(f, "{separator}{head}{colon}{reason}")?;
                    (separator, head, is_first) = (", ", "", false);
                }
            }
        }
        if is_first {
            f.write_str("never")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Throttling;

    #[test]
    fn what_is_and_what_was_is_told_in_words() {
        let words = |state| alloc::format!("{}", Throttling(state));
        assert_eq!(words(0), "never");
        assert_eq!(words(1), "now: under-voltage");
        assert_eq!(words(0x5_0000), "has occurred: under-voltage, throttled");
        // The documentation's example.
        assert_eq!(
            words(0x5_0005),
            "now: under-voltage, throttled; has occurred: under-voltage, throttled"
        );
        assert_eq!(words(0x8_0000), "has occurred: near the temperature limit");
    }
}
