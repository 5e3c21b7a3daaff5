//! ADMA2's table: a pure function of the segments.
//!
//! Source: SD Host Controller Simplified Specification 3.00, "Advanced DMA", "Descriptor Table" (32-bit addresses).

use crate::driver::dma::Segment;

/// Words of a descriptor.
pub const WORDS: usize = 2;

/// Bytes of one segment. A length has 16 bits; half of that lets nobody wonder what a length of 0 means.
pub const SEGMENT_LEN: usize = 32 << 10;

const VALID: u32 = 1 << 0;
const END: u32 = 1 << 1;
const TRANSFER: u32 = 0b10 << 4;

/// Writes the table for `segments`, of [`SEGMENT_LEN`] bytes at most each; says how many words it has.
pub fn describe(segments: &[Segment], table: &mut [u32]) -> usize {
    let mut words = 0;
    for (i, segment) in segments.iter().enumerate() {
        let end = if i + 1 == segments.len() { END } else { 0 };
        table[words] = (segment.len as u32) << 16 | TRANSFER | end | VALID;
        table[words + 1] = segment.bus;
        words += WORDS;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::driver::dma::Segment;

    #[test]
    fn the_last_descriptor_ends_the_table() {
        let segment = |bus, len| Segment {
            bus,
            address: 0,
            len,
        };
        let mut table = [0xffff_ffff; 6];
        let words = describe(
            &[segment(0x8000, 0x1000), segment(0x1_0000, 0x200)],
            &mut table,
        );
        assert_eq!(words, 4);
        // Valid, transfer; the last one ends.
        assert_eq!(table[..4], [0x1000_0021, 0x8000, 0x0200_0023, 0x1_0000]);
        assert_eq!(table[4], 0xffff_ffff, "no word more");
    }
}
