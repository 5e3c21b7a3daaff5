//! Name hashes of hashed directories.
//!
//! Facts: kernel.org, "ext4 Data Structures and Algorithms", "Hash Tree Directories"; MD4 as in RFC 1320 (its rounds
//! over half a block), TEA as published by Wheeler and Needham. Results compared with `debugfs dx_hash`.

use super::superblock::Superblock;

/// A kind of hash, by its number in the tree's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashKind {
    function: Function,
    is_unsigned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Legacy,
    HalfMd4,
    Tea,
}

impl HashKind {
    /// The hash that `code` means on this file system. Whether bytes are signed depended on who made it.
    pub(super) fn decode(code: u8, superblock: &Superblock) -> Option<Self> {
        let function = match code {
            0 | 3 => Function::Legacy,
            1 | 4 => Function::HalfMd4,
            2 | 5 => Function::Tea,
            _ => return None,
        };
        Some(Self {
            function,
            is_unsigned: code >= 3 || superblock.is_hash_unsigned,
        })
    }

    /// The hash of `name`. Bit 0 is always clear: a tree uses it for itself.
    pub(super) fn hash(self, name: &[u8], seed: [u32; 4]) -> u32 {
        let mut state = if seed == [0; 4] {
            [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
        } else {
            seed
        };
        let hash = match self.function {
            Function::Legacy => self.legacy(name),
            Function::HalfMd4 => {
                for rest in tails(name, 32) {
                    half_md4(&mut state, &self.words::<8>(rest));
                }
                state[1]
            }
            Function::Tea => {
                for rest in tails(name, 16) {
                    tea(&mut state, &self.words::<4>(rest));
                }
                state[0]
            }
        };
        // The largest value stands for the end of a directory.
        match hash & !1 {
            0xffff_fffe => 0xffff_fffc,
            hash => hash,
        }
    }

    fn byte(self, byte: u8) -> u32 {
        if self.is_unsigned {
            byte.into()
        } else {
            byte as i8 as u32
        }
    }

    fn legacy(self, name: &[u8]) -> u32 {
        let (mut hash, mut before) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
        for &byte in name {
            let mut next = before.wrapping_add(hash ^ self.byte(byte).wrapping_mul(7_152_373));
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(0x7fff_ffff);
            }
            (before, hash) = (hash, next);
        }
        hash << 1
    }

    /// The first bytes of `rest` as big-endian words, filled up with its length.
    fn words<const N: usize>(self, rest: &[u8]) -> [u32; N] {
        let pad = (rest.len() as u32 & 0xff) * 0x0101_0101;
        let mut words = [pad; N];
        for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
            let fold = |value: u32, &byte: &u8| (value << 8).wrapping_add(self.byte(byte));
            *word = bytes.iter().fold(pad, fold);
        }
        words
    }
}

/// `name`, then `name` without its first `step` bytes, and so on while something is left.
fn tails(name: &[u8], step: usize) -> impl Iterator<Item = &[u8]> {
    (0..name.len()).step_by(step).map(|at| &name[at..])
}

fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (
            |x, y, z| z ^ (x & (y ^ z)),
            0,
            [0, 1, 2, 3, 4, 5, 6, 7],
            [3, 7, 11, 19],
        ),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (
            |x, y, z| x ^ y ^ z,
            0x6ed9_eba1,
            [3, 7, 2, 6, 1, 5, 0, 4],
            [3, 9, 11, 15],
        ),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in rounds {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(words[word])
                .wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let (mut x, mut y, mut sum) = (state[0], state[1], 0u32);
    let mix = |v: u32, sum: u32, k: u32, l: u32| {
        (v << 4).wrapping_add(k) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(l)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(mix(y, sum, key[0], key[1]));
        y = y.wrapping_add(mix(x, sum, key[2], key[3]));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&[u8]; 3] = [
        b"a",
        b"hello.txt",
        b"a-rather-long-name-that-needs-more-than-one-round-of-hashing",
    ];

    fn hashes(function: Function) -> [u32; 3] {
        NAMES.map(|name| {
            HashKind {
                function,
                is_unsigned: false,
            }
            .hash(name, [0; 4])
        })
    }

    #[test]
    fn hashes_are_those_of_debugfs() {
        // `debugfs -R "dx_hash -h KIND NAME"`, with its hash seed of zeros.
        assert_eq!(
            hashes(Function::Legacy),
            [0xe74b_53e2, 0x65a0_5776, 0x885b_2968]
        );
        assert_eq!(
            hashes(Function::HalfMd4),
            [0xd5fa_7d7a, 0xa26e_1d86, 0x0221_834c]
        );
        assert_eq!(
            hashes(Function::Tea),
            [0x6d0e_a4c0, 0x5107_c3f2, 0xf1e6_7692]
        );
    }
}
