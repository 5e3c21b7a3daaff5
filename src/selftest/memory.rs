//! `memcpy`, `memmove` and `memset` against byte-by-byte loops.

use crate::selftest;
use alloc::vec::Vec;
use core::hint::black_box;

/// Every length up to where each path has been taken, at every alignment.
const LENGTHS: core::ops::Range<usize> = 0..420;
const ROOM: usize = 512;

fn pattern(seed: usize) -> Vec<u8> {
    (0..ROOM)
        .map(|i| (i * 7 + seed * 13 + i / 251) as u8)
        .collect()
}

selftest!(fn copies() "memory: memcpy copies every length at every alignment, and nothing else" {
    let source = pattern(1);
    for len in LENGTHS {
        for (from, to) in [(0, 0), (1, 0), (0, 1), (7, 3), (8, 15), (15, 8), (16, 33), (5, 64)] {
            let mut target = pattern(2);
            let mut wanted = target.clone();
            for i in 0..len { wanted[to + i] = black_box(source[from + i]); }
            let len = black_box(len);
            target[to..to + len].copy_from_slice(&source[from..from + len]);
            assert_eq!(target, wanted, "{len} bytes from {from} to {to}");
        }
    }
});

selftest!(fn moves() "memory: memmove copies between ranges that overlap, either way" {
    for len in LENGTHS {
        for (from, to) in [(0, 1), (1, 0), (0, 16), (16, 0), (3, 50), (50, 3), (0, 64), (20, 20)] {
            let mut bytes = pattern(3);
            let original = bytes.clone();
            let mut wanted = bytes.clone();
            for i in 0..len { wanted[to + i] = black_box(original[from + i]); }
            let len = black_box(len);
            bytes.copy_within(from..from + len, to);
            assert_eq!(bytes, wanted, "{len} bytes from {from} to {to}");
        }
    }
});

selftest!(fn fills() "memory: memset fills every length at every alignment, and nothing else" {
    for len in LENGTHS {
        for start in [0, 1, 7, 8, 15, 16, 17, 63, 64] {
            for value in [0, 0xa5] {
                let mut bytes = pattern(4);
                let mut wanted = bytes.clone();
                for i in 0..len { wanted[start + i] = value; }
                let len = black_box(len);
                bytes[start..start + len].fill(value);
                assert_eq!(bytes, wanted, "{len} bytes of {value} at {start}");
            }
        }
    }
});
