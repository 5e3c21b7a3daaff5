//! Pages and bytes, filled and copied without vector registers: the image is soft-float.
//!
//! Source: Arm Architecture Reference Manual, "DC ZVA", DCZID_EL0.

use crate::mm::addr::PAGE_SIZE;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, Ordering};

/// Whether `dc zva` zeroes 64 bytes at a time here; else zeroing is by stores.
static HAS_ZVA_64: AtomicBool = AtomicBool::new(false);

/// Finds out what this core can do. Until then zeroing is slow, but right.
pub fn init() {
    const DZP: u64 = 1 << 4;
    const BYTES_64: u64 = 4; // log2 of words
    let geometry: u64;
    // SAFETY: reads DCZID_EL0.
    unsafe { asm!("mrs {}, DCZID_EL0", out(reg) geometry, options(nomem, nostack)) };
    let is_usable = geometry & DZP == 0 && geometry & 0xf == BYTES_64;
    HAS_ZVA_64.store(is_usable, Ordering::Relaxed);
}

/// Zeroes `count` pages from `start` on.
///
/// # Safety
/// `start` is a multiple of the page, and what lies there is normal memory and the caller's to write.
#[inline]
pub unsafe fn zero(start: *mut u8, count: usize) {
    if HAS_ZVA_64.load(Ordering::Relaxed) {
        // SAFETY: as promised; the loop ends after `count` pages.
        unsafe { pages_zero_by_line(start, count) };
    } else {
        // SAFETY: as promised.
        unsafe { pages_zero_by_store(start, count) };
    }
}

/// Copies one page.
///
/// # Safety
/// Both are multiples of the page and normal memory; `from` can be read, and `to` is the caller's to write.
#[inline]
pub unsafe fn copy(to: *mut u8, from: *const u8) {
    // SAFETY: as promised.
    unsafe { page_copy(to, from) };
}

unsafe extern "C" {
    fn pages_zero_by_line(start: *mut u8, count: usize);
    fn pages_zero_by_store(start: *mut u8, count: usize);
    fn page_copy(to: *mut u8, from: *const u8);
}

global_asm!(
    r#"
    .section .text.page, "ax"
    .global pages_zero_by_line, pages_zero_by_store, page_copy
    // `dc zva` takes no offset, so each needs its own address; 16 lines a round.
pages_zero_by_line:
    add     x1, x0, x1, lsl #12
1:
    .rept 16
    dc      zva, x0
    add     x0, x0, #64
    .endr
    cmp     x0, x1
    b.lo    1b
    ret

pages_zero_by_store:
    add     x1, x0, x1, lsl #12
2:
    .irp offset, 0, 16, 32, 48, 64, 80, 96, 112
    stp     xzr, xzr, [x0, #\offset]
    .endr
    add     x0, x0, #128
    cmp     x0, x1
    b.lo    2b
    ret

    // Eight registers in flight; 512 bytes a round, as far as the offsets of `ldp` reach.
page_copy:
    add     x2, x1, #{page}
3:
    .irp half, 0, 64, 128, 192, 256, 320, 384, 448
    ldp     x3, x4, [x1, #\half]
    ldp     x5, x6, [x1, #\half + 16]
    ldp     x7, x8, [x1, #\half + 32]
    ldp     x9, x10, [x1, #\half + 48]
    stp     x3, x4, [x0, #\half]
    stp     x5, x6, [x0, #\half + 16]
    stp     x7, x8, [x0, #\half + 32]
    stp     x9, x10, [x0, #\half + 48]
    .endr
    add     x1, x1, #512
    add     x0, x0, #512
    cmp     x1, x2
    b.lo    3b
    ret
    "#,
    page = const PAGE_SIZE,
);
