//! The processor's own CRC-32C (FEAT_CRC32), which every core of the boards here has.
//!
//! Source: Arm Architecture Reference Manual, CRC32C, ID_AA64ISAR0_EL1.

use core::arch::asm;

const CRC32_SHIFT: u32 = 16;

/// Continues a CRC-32C over `bytes`, the register being neither inverted before nor after; `None` where the processor
/// does not know how.
#[inline]
pub fn crc32c(register: u32, bytes: &[u8]) -> Option<u32> {
    let features: u64;
    // SAFETY: reads what the processor can do.
    unsafe { asm!("mrs {}, ID_AA64ISAR0_EL1", out(reg) features, options(pure, nomem, nostack)) };
    if features >> CRC32_SHIFT & 0xf == 0 {
        return None;
    }
    let mut crc = register;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        // Loaded here: for this target the compiler takes eight loads where a word may lie at any address.
        // SAFETY: loads eight bytes and computes; the processor has the instruction.
        unsafe {
            asm!(
                ".arch_extension crc",
                "ldr {loaded}, [{word}]",
                "crc32cx {crc:w}, {crc:w}, {loaded}",
                crc = inout(reg) crc,
                word = in(reg) word,
                loaded = out(reg) _,
                options(pure, readonly, nostack),
            );
        }
    }
    for byte in rest {
        // SAFETY: as above.
        unsafe {
            asm!(
                ".arch_extension crc",
                "crc32cb {crc:w}, {crc:w}, {byte:w}",
                crc = inout(reg) crc,
                byte = in(reg) u32::from(*byte),
                options(pure, nomem, nostack),
            );
        }
    }
    Some(crc)
}

crate::selftest!(fn the_processors_crc_is_the_published_one() "crc: the processor's CRC-32C has the published check values" {
    // RFC 3720, appendix B.4; and nine bytes, of which one is left over.
    let inverted = |bytes| crc32c(!0, bytes).map(|crc| !crc);
    if let Some(crc) = inverted(&[0; 32]) {
        assert_eq!(crc, 0x8a91_36aa);
        assert_eq!(inverted(b"123456789"), Some(0xe306_9283));
    }
});
