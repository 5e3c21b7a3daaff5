//! What an SD card says about itself: pure functions of its registers.
//!
//! Source: SD Specifications, Part 1, Physical Layer Simplified Specification, "Card Registers" and "Responses".

/// A register of 128 bits as the host controller gives it: bits 8 to 127, lowest word first. Bits keep the numbers that
/// the specification gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongRegister(pub [u32; 4]);

impl LongRegister {
    /// `len` bits from `low` on, at most 32.
    fn bits(self, low: u32, len: u32) -> u32 {
        let whole = self
            .0
            .iter()
            .rev()
            .fold(0, |whole: u128, word| whole << 32 | u128::from(*word));
        // The controller leaves the checksum, bits 0 to 7, out.
        (whole >> (low - 8)) as u32 & ((1u64 << len) - 1) as u32
    }
}

/// Bytes that a card holds by its CSD; `None` for a layout we do not know.
pub fn capacity(csd: LongRegister) -> Option<u64> {
    let capacity = match csd.bits(126, 2) {
        0 => {
            let block_len_log2 = csd.bits(80, 4);
            let multiplier_log2 = csd.bits(47, 3) + 2;
            let blocks = u64::from(csd.bits(62, 12) + 1) << multiplier_log2;
            blocks << block_len_log2
        }
        1 => u64::from(csd.bits(48, 22) + 1) * (512 << 10),
        // SDUC: 28 bits of the same unit.
        2 => u64::from(csd.bits(48, 28) + 1) * (512 << 10),
        _ => return None,
    };
    Some(capacity)
}

/// Whether the card lets nobody write, for good or for now, by its CSD.
pub fn is_write_protected(csd: LongRegister) -> bool {
    csd.bits(12, 2) != 0
}

/// What a card calls itself, by its CID: five characters.
pub fn name(cid: LongRegister) -> [u8; 5] {
    [96, 88, 80, 72, 64].map(|low| match cid.bits(low, 8) as u8 {
        printable @ b' '..=b'~' => printable,
        _ => b'?',
    })
}

/// What kind of answer a command has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Response {
    /// None.
    None,
    /// R1, R6 and R7: 32 bits with checksum and the command's number.
    Short,
    /// R1b: as R1, and the card may be busy after it.
    ShortBusy,
    /// R3: 32 bits without checksum.
    Plain,
    /// R2: 128 bits.
    Long,
}

/// Bits in an R1 that say that something went wrong. OUT_OF_RANGE (31) is not among them: cards say it, too, when they
/// read ahead past their end, and nothing past it is ever asked for.
pub const STATUS_ERRORS: u32 = 0x7df9_0008;

/// Whether a card's status (R1) says that it waits for the next transfer, and takes data.
pub fn is_ready(status: u32) -> bool {
    const TRANSFER: u32 = 4;
    const READY_FOR_DATA: u32 = 1 << 8;
    status & READY_FOR_DATA != 0 && status >> 9 & 0xf == TRANSFER
}

/// The divider with which a controller's `base` clock is at most `wanted`, both in Hz: the clock is the base, or the base
/// divided by twice the divider. Version 3 controllers count to 1023; older ones know powers of two up to 128.
pub fn divider(base: u32, wanted: u32, is_version_3: bool) -> u32 {
    let (base, wanted) = (base.max(1), wanted.max(1));
    if base <= wanted {
        return 0;
    }
    let exact = base.div_ceil(wanted).div_ceil(2);
    if is_version_3 {
        exact.min(1023)
    } else {
        exact.next_power_of_two().min(128)
    }
}

#[cfg(test)]
mod tests {
    use super::{LongRegister, capacity, divider, is_ready, is_write_protected, name};

    /// A register made of (lowest bit, value) pairs.
    fn register(fields: &[(u32, u32)]) -> LongRegister {
        let whole = fields.iter().fold(0u128, |whole, &(low, value)| {
            whole | u128::from(value) << (low - 8)
        });
        LongRegister([0, 32, 64, 96].map(|shift| (whole >> shift) as u32))
    }

    #[test]
    fn the_capacity_of_a_standard_card_is_blocks_times_length() {
        // The specification's largest: 2 GiB with blocks of 1024 bytes.
        let csd = register(&[(126, 0), (80, 10), (62, 4095), (47, 7)]);
        assert_eq!(capacity(csd), Some(2 << 30));
        let csd = register(&[(80, 9), (62, 3), (47, 0)]);
        assert_eq!(capacity(csd), Some(4 * 4 * 512));
    }

    #[test]
    fn the_capacity_of_a_high_capacity_card_is_in_units_of_512_kib() {
        let csd = register(&[(126, 1), (48, 8191)]);
        assert_eq!(capacity(csd), Some(4 << 30));
        let csd = register(&[(126, 1), (48, 0x3f_ffff)]);
        assert_eq!(capacity(csd), Some(2 << 40));
        assert_eq!(capacity(register(&[(126, 3)])), None);
    }

    #[test]
    fn either_bit_protects_a_card_from_writes() {
        assert!(!is_write_protected(register(&[])));
        assert!(is_write_protected(register(&[(12, 1)])));
        assert!(is_write_protected(register(&[(13, 1)])));
    }

    #[test]
    fn a_name_is_five_printable_characters() {
        let cid = register(&[(96, 0x51), (88, 0x45), (80, 0x4d), (72, 0x55), (64, 0x07)]);
        assert_eq!(&name(cid), b"QEMU?");
    }

    #[test]
    fn a_card_is_ready_in_the_transfer_state_when_it_takes_data() {
        assert!(is_ready(4 << 9 | 1 << 8));
        assert!(!is_ready(7 << 9 | 1 << 8), "it programs");
        assert!(!is_ready(4 << 9));
    }

    #[test]
    fn the_clock_is_never_faster_than_wanted() {
        assert_eq!(divider(50_000_000, 50_000_000, true), 0);
        for base in [1, 26_000_000, 52_000_000, 100_000_000, 250_000_000] {
            for wanted in [400_000, 25_000_000, 50_000_000] {
                for is_version_3 in [true, false] {
                    let limit = if is_version_3 { 1023 } else { 128 };
                    let divider = divider(base, wanted, is_version_3);
                    let clock = if divider == 0 {
                        base
                    } else {
                        base / (2 * divider)
                    };
                    assert!(
                        clock <= wanted || divider == limit,
                        "{base} / {wanted}: {clock}"
                    );
                }
            }
        }
    }
}
