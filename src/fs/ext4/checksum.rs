//! The two checksums of ext4: CRC-32C, chained from a seed and without the final inversion, and CRC-16.

use crate::arch;
use crc::{Algorithm, CRC_16_MODBUS, Crc};

/// CRC-32C as ext4 and JBD2 use it: the caller gives the register, nothing is inverted at the end.
const CASTAGNOLI: Algorithm<u32> = Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: 0,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
};

/// For processors that cannot: small in the image, fast on a PC.
#[cfg(target_os = "none")]
type Lookup = crc::Table<1>;
#[cfg(not(target_os = "none"))]
type Lookup = crc::Table<16>;

static CRC32C: Crc<u32, Lookup> = Crc::<u32, Lookup>::new(&CASTAGNOLI);

/// Where every chain begins that has no seed of its own.
pub(crate) const START: u32 = !0;

/// Continues a CRC-32C over `bytes`.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    if let Some(crc) = arch::crc::crc32c(seed, bytes) {
        return crc;
    }
    // The crate takes the register unreflected.
    let mut digest = CRC32C.digest_with_initial(seed.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// The CRC-16 of group descriptors without `metadata_csum`.
pub(super) fn crc16(parts: &[&[u8]]) -> u16 {
    let crc = Crc::<u16>::new(&CRC_16_MODBUS);
    let mut digest = crc.digest();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// The four bytes that, put between `before` and `after`, give their CRC-32C from [`START`] the value `wanted`.
///
/// CRC is linear, and four bytes set all 32 bits of its register: so one spare field keeps a checksum as it was.
pub(super) fn compensate(before: &[u8], after: &[u8], wanted: u32) -> [u8; 4] {
    let register = after
        .iter()
        .rev()
        .fold(wanted, |crc, &byte| undo(crc, byte));
    let needed = [0; 4].iter().fold(register, |crc, &byte| undo(crc, byte));
    (needed ^ crc32c(START, before)).to_le_bytes()
}

/// The register before `byte` went through it.
fn undo(mut crc: u32, byte: u8) -> u32 {
    const REFLECTED: u32 = CASTAGNOLI.poly.reverse_bits();
    for _ in 0..8 {
        crc = if crc & 1 << 31 != 0 {
            (crc ^ REFLECTED) << 1 | 1
        } else {
            crc << 1
        };
    }
    crc ^ u32::from(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_published_check_value() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(!crc32c(START, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(START, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn crc32c_can_be_chained() {
        assert_eq!(
            crc32c(crc32c(START, b"1234"), b"56789"),
            crc32c(START, b"123456789")
        );
    }

    #[test]
    fn four_bytes_in_the_middle_give_any_checksum() {
        let mut bytes = *b"some bytes, and then ???? and then the rest of them";
        let at = 21;
        let field = compensate(&bytes[..at], &bytes[at + 4..], 0x1234_5678);
        bytes[at..at + 4].copy_from_slice(&field);
        assert_eq!(crc32c(START, &bytes), 0x1234_5678);
    }
}
