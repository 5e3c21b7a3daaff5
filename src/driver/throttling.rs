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
        let [now, occurred] = [self.0, self.0 >> 16].map(|state| state & 0xf);
        match (now, occurred) {
            (0, 0) => f.write_str("never"),
            (_, 0) => list(f, "now: ", now),
            (0, _) => list(f, "has occurred: ", occurred),
            _ => {
                list(f, "now: ", now)?;
                list(f, "; has occurred: ", occurred)
            }
        }
    }
}

#[inline(never)]
fn list(f: &mut fmt::Formatter<'_>, head: &str, state: u32) -> fmt::Result {
    let mut before = head;
    for (bit, reason) in REASONS.iter().enumerate() {
        if state >> bit & 1 != 0 {
            f.write_str(before)?;
            f.write_str(reason)?;
            before = ", ";
        }
    }
    Ok(())
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
