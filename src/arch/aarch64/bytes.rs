//! `memcpy`, `memmove` and `memset` for the image, which has no vector registers and whose compiler's own ones take some
//! sixty instructions for what a struct of a few words needs.
//!
//! Short runs are two accesses that may overlap, one from each end, so that no length needs a loop below 128 bytes. All
//! memory here is normal memory, where unaligned accesses are allowed (SCTLR_EL1.A is zero); registers of devices are
//! never copied.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.bytes, "ax"
    .global memcpy
    .global memmove
    .global memset

    // x0 to, x1 from, x2 bytes. Everything up to 128 bytes is loaded before anything is stored, so that the two may
    // overlap: memmove begins here too.
memcpy:
memmove:
    add     x4, x1, x2              // ends
    add     x5, x0, x2
    cmp     x2, #16
    b.lo    10f
    cmp     x2, #32
    b.hi    20f
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x4, #-16]
    stp     x6, x7, [x0]
    stp     x8, x9, [x5, #-16]
    ret

10: tbz     x2, #3, 11f
    ldr     x6, [x1]
    ldr     x7, [x4, #-8]
    str     x6, [x0]
    str     x7, [x5, #-8]
    ret
11: tbz     x2, #2, 12f
    ldr     w6, [x1]
    ldr     w7, [x4, #-4]
    str     w6, [x0]
    str     w7, [x5, #-4]
    ret
12: cbz     x2, 13f
    ldrb    w6, [x1]                // 1 to 3 bytes: first, middle, last
    lsr     x8, x2, #1
    ldrb    w7, [x1, x8]
    ldrb    w9, [x4, #-1]
    strb    w6, [x0]
    strb    w7, [x0, x8]
    strb    w9, [x5, #-1]
13: ret

20: cmp     x2, #64
    b.hi    30f
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x1, #16]
    ldp     x10, x11, [x4, #-32]
    ldp     x12, x13, [x4, #-16]
    stp     x6, x7, [x0]
    stp     x8, x9, [x0, #16]
    stp     x10, x11, [x5, #-32]
    stp     x12, x13, [x5, #-16]
    ret

30: cmp     x2, #128
    b.hi    40f
    stp     x19, x20, [sp, #-32]!
    str     x21, [sp, #16]
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x1, #16]
    ldp     x10, x11, [x1, #32]
    ldp     x12, x13, [x1, #48]
    ldp     x14, x15, [x4, #-64]
    ldp     x16, x17, [x4, #-48]
    ldp     x19, x20, [x4, #-32]
    ldp     x21, x3, [x4, #-16]
    stp     x6, x7, [x0]
    stp     x8, x9, [x0, #16]
    stp     x10, x11, [x0, #32]
    stp     x12, x13, [x0, #48]
    stp     x14, x15, [x5, #-64]
    stp     x16, x17, [x5, #-48]
    stp     x19, x20, [x5, #-32]
    stp     x21, x3, [x5, #-16]
    ldr     x21, [sp, #16]
    ldp     x19, x20, [sp], #32
    ret

40: sub     x3, x0, x1
    cmp     x3, x2
    b.lo    50f                     // `to` begins within `from`: from the end
    // The last 64 bytes are kept until the end: the loop may store over where they come from.
    sub     x2, x5, #64             // the loop stops here or before
    mov     x3, x0
    stp     x19, x20, [sp, #-32]!
    str     x21, [sp, #16]
    ldp     x14, x15, [x4, #-64]
    ldp     x16, x17, [x4, #-48]
    ldp     x19, x20, [x4, #-32]
    ldp     x21, x4, [x4, #-16]
    sub     x6, x2, x3
    cmp     x6, #192
    b.lo    41f
    // 256 bytes a round, 64 at a time as below.
45:
    .irp at, 0, 64, 128, 192
    ldp     x6, x7, [x1, #\at]
    ldp     x8, x9, [x1, #\at + 16]
    ldp     x10, x11, [x1, #\at + 32]
    ldp     x12, x13, [x1, #\at + 48]
    stp     x6, x7, [x3, #\at]
    stp     x8, x9, [x3, #\at + 16]
    stp     x10, x11, [x3, #\at + 32]
    stp     x12, x13, [x3, #\at + 48]
    .endr
    add     x1, x1, #256
    add     x3, x3, #256
    sub     x6, x2, x3
    cmp     x6, #192
    b.ge    45b
    cmp     x3, x2
    b.hs    46f
41: ldp     x6, x7, [x1]
    ldp     x8, x9, [x1, #16]
    ldp     x10, x11, [x1, #32]
    ldp     x12, x13, [x1, #48]
    add     x1, x1, #64
    stp     x6, x7, [x3]
    stp     x8, x9, [x3, #16]
    stp     x10, x11, [x3, #32]
    stp     x12, x13, [x3, #48]
    add     x3, x3, #64
    cmp     x3, x2
    b.lo    41b
46: stp     x14, x15, [x5, #-64]
    stp     x16, x17, [x5, #-48]
    stp     x19, x20, [x5, #-32]
    stp     x21, x4, [x5, #-16]
    ldr     x21, [sp, #16]
    ldp     x19, x20, [sp], #32
    ret

    // The same from the end, the first 64 bytes being kept.
50: cbz     x3, 52f                 // onto itself
    add     x2, x0, #64
    stp     x19, x20, [sp, #-32]!
    str     x21, [sp, #16]
    ldp     x14, x15, [x1]
    ldp     x16, x17, [x1, #16]
    ldp     x19, x20, [x1, #32]
    ldp     x21, x3, [x1, #48]
51: ldp     x6, x7, [x4, #-16]
    ldp     x8, x9, [x4, #-32]
    ldp     x10, x11, [x4, #-48]
    ldp     x12, x13, [x4, #-64]
    sub     x4, x4, #64
    stp     x6, x7, [x5, #-16]
    stp     x8, x9, [x5, #-32]
    stp     x10, x11, [x5, #-48]
    stp     x12, x13, [x5, #-64]
    sub     x5, x5, #64
    cmp     x5, x2
    b.hi    51b
    stp     x14, x15, [x0]
    stp     x16, x17, [x0, #16]
    stp     x19, x20, [x0, #32]
    stp     x21, x3, [x0, #48]
    ldr     x21, [sp, #16]
    ldp     x19, x20, [sp], #32
52: ret

    // x0 to, w1 byte, x2 bytes.
memset:
    and     x1, x1, #0xff
    mov     x6, #0x0101010101010101
    mul     x6, x1, x6
    add     x5, x0, x2
    cmp     x2, #16
    b.lo    60f
    mov     x3, x0
    sub     x4, x5, #16             // the last 16 bytes are stored at the end
    b       63f
62: stp     x6, x6, [x3], #16
63: sub     x7, x4, x3
    cmp     x7, #64
    b.lt    64f
    stp     x6, x6, [x3]
    stp     x6, x6, [x3, #16]
    stp     x6, x6, [x3, #32]
    stp     x6, x6, [x3, #48]
    add     x3, x3, #64
    b       63b
64: cmp     x3, x4
    b.lo    62b
    stp     x6, x6, [x4]
    ret
60: tbz     x2, #3, 65f
    str     x6, [x0]
    str     x6, [x5, #-8]
    ret
65: tbz     x2, #2, 66f
    str     w6, [x0]
    str     w6, [x5, #-4]
    ret
66: cbz     x2, 67f
    strb    w6, [x0]
    strb    w6, [x5, #-1]
    lsr     x2, x2, #1
    strb    w6, [x0, x2]
67: ret
    "#
);

crate::selftest!(fn all_lengths() "bytes: copies and fills of every length and offset are exact, overlapping or not" {
    let pattern: [u8; 1200] = core::array::from_fn(|i| (i * 7 + i / 251) as u8);
    for len in (0..200).chain([255, 256, 257, 319, 320, 321, 383, 384, 447, 448, 449, 511, 512, 513, 575, 640, 768, 769, 900]) {
        for (from, to) in [(0, 0), (1, 0), (0, 1), (3, 90), (90, 3), (5, 5), (17, 120), (64, 0), (0, 64), (0, 200), (200, 7)] {
            let mut bytes = pattern;
            bytes.copy_within(from..from + len, to);
            for (i, byte) in bytes.iter().enumerate() {
                let is_copied = (to..to + len).contains(&i);
                let expected = if is_copied { pattern[from + i - to] } else { pattern[i] };
                assert_eq!(*byte, expected, "byte {i} of {len} from {from} to {to}");
            }
            let mut bytes = pattern;
            core::hint::black_box(&mut bytes[to..to + len]).fill(core::hint::black_box(0xa5));
            for (i, byte) in bytes.iter().enumerate() {
                let expected = if (to..to + len).contains(&i) { 0xa5 } else { pattern[i] };
                assert_eq!(*byte, expected, "byte {i} of {len} at {to}");
            }
        }
    }
});
