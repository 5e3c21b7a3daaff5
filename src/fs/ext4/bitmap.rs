//! Searching and changing bitmaps.

/// Whether `index` is set.
pub(super) fn is_set(bits: &[u8], index: u32) -> bool {
    bits[index as usize / 8] & 1 << (index % 8) != 0
}

/// Sets or clears `len` bits from `start` on, and says how many of them changed.
pub(super) fn assign(bits: &mut [u8], start: u32, len: u32, value: bool) -> u32 {
    let mut changed = 0;
    let mut index = start;
    while index < start + len {
        let whole = if value { 0xff } else { 0 };
        if index.is_multiple_of(8) && start + len - index >= 8 {
            let byte = &mut bits[index as usize / 8];
            changed += (*byte ^ whole).count_ones();
            *byte = whole;
            index += 8;
            continue;
        }
        changed += u32::from(is_set(bits, index) != value);
        let mask = 1 << (index % 8);
        let byte = &mut bits[index as usize / 8];
        *byte = if value { *byte | mask } else { *byte & !mask };
        index += 1;
    }
    changed
}

/// The first bit in `from..len` that is `value`, or `len`.
pub(super) fn next(bits: &[u8], mut from: u32, len: u32, value: bool) -> u32 {
    let skipped = if value { 0 } else { 0xff };
    while from < len {
        if from.is_multiple_of(8) && bits[from as usize / 8] == skipped {
            from += 8;
        } else if is_set(bits, from) == value {
            return from;
        } else {
            from += 1;
        }
    }
    len
}

/// The runs of clear bits in `from..len`: start and length.
pub(super) fn free_runs(bits: &[u8], from: u32, len: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    let mut at = from;
    core::iter::from_fn(move || {
        let start = next(bits, at, len, false);
        at = next(bits, start, len, true);
        (start < len).then(|| (start, at - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn runs_of_clear_bits_are_found_across_bytes() {
        let mut bits = [0; 8];
        assert_eq!(assign(&mut bits, 3, 20, true), 20);
        assert_eq!(assign(&mut bits, 20, 10, true), 7);
        let runs: Vec<_> = free_runs(&bits, 0, 60).collect();
        assert_eq!(runs, [(0, 3), (30, 30)]);
        assert_eq!(assign(&mut bits, 0, 64, false), 27);
        assert_eq!(free_runs(&bits, 5, 64).next(), Some((5, 59)));
    }
}
