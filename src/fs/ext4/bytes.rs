//! Numbers at fixed places in byte slices. Callers have checked the slice's length; a place past it is our own mistake.

macro_rules! number {
    ($get:ident, $put:ident, $type:ty, $from:ident, $to:ident) => {
        pub(super) fn $get(bytes: &[u8], at: usize) -> $type {
            let mut number = [0; size_of::<$type>()];
            number.copy_from_slice(&bytes[at..at + size_of::<$type>()]);
            <$type>::$from(number)
        }

        pub(super) fn $put(bytes: &mut [u8], at: usize, value: $type) {
            bytes[at..at + size_of::<$type>()].copy_from_slice(&value.$to());
        }
    };
}

number!(le16, put_le16, u16, from_le_bytes, to_le_bytes);
number!(le32, put_le32, u32, from_le_bytes, to_le_bytes);
number!(be16, put_be16, u16, from_be_bytes, to_be_bytes);
number!(be32, put_be32, u32, from_be_bytes, to_be_bytes);
number!(be64, put_be64, u64, from_be_bytes, to_be_bytes);

/// A number whose halves of 16 bits lie apart.
pub(super) fn halves16(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// A number whose halves of 32 bits lie apart.
pub(super) fn halves32(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
