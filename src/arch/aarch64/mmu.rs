//! The MMU, told what changed: stores to tables, barriers, TLB and instruction cache maintenance.
//!
//! Source: Arm Architecture Reference Manual, "TLB maintenance instructions", "A64 Cache maintenance instructions",
//! CTR_EL0. All of it is inner-shareable: other cores may translate the same addresses.

use super::descriptor::Entry;
use super::page_table::{Mmu, Scope};
use crate::mm::addr::{Frame, PAGE_SIZE, Page};
use core::arch::asm;
use core::ptr::NonNull;

/// This machine's.
pub struct HardwareMmu(());

impl HardwareMmu {
    /// Sets what translates the low half; what it held before must have been empty.
    ///
    /// # Safety
    /// `root` is a level-0 table that stays.
    pub unsafe fn install(root: Frame) {
        // SAFETY: the table is complete (barrier first); the old one had no entries, so no TLB has any.
        unsafe {
            asm!("dsb ishst", "msr TTBR0_EL1, {}", "isb", in(reg) root.start().0, options(nostack));
        }
    }

    /// The machine's MMU.
    pub fn new() -> Self {
        Self(())
    }
}

impl Default for HardwareMmu {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! barrier {
    ($($instruction:literal),+) => {
        // SAFETY: orders; changes nothing.
        unsafe { asm!($($instruction),+, options(nostack, preserves_flags)) }
    };
}

impl Mmu for HardwareMmu {
    #[inline(always)]
    unsafe fn store(&mut self, entry: NonNull<Entry>, value: Entry, _: Page, _: u32) {
        // SAFETY: the caller's promise.
        unsafe { entry.write_volatile(value) };
    }

    #[inline(always)]
    fn order(&mut self) {
        barrier!("dmb ishst");
    }

    #[inline(always)]
    fn publish(&mut self) {
        barrier!("dsb ishst", "isb");
    }

    #[inline(always)]
    fn complete_stores(&mut self) {
        barrier!("dsb ishst");
    }

    #[inline(always)]
    fn forget(&mut self, page: Page, scope: Scope) {
        // The operand: the page number in bits 43 to 0; no hint of the level above it.
        let operand = page.0;
        // SAFETY: forgetting changes no translation.
        unsafe {
            match scope {
                Scope::Leaf => asm!("tlbi vaale1is, {}", in(reg) operand, options(nostack)),
                Scope::Walk => asm!("tlbi vaae1is, {}", in(reg) operand, options(nostack)),
            }
        }
    }

    #[inline(always)]
    fn forget_all(&mut self) {
        barrier!("tlbi vmalle1is");
    }

    #[inline(always)]
    fn complete_maintenance(&mut self) {
        barrier!("dsb ish", "isb");
    }

    unsafe fn synchronize_instructions(&mut self, start: *const u8) {
        let geometry: u64;
        // SAFETY: reads CTR_EL0.
        unsafe { asm!("mrs {}, CTR_EL0", out(reg) geometry, options(nomem, nostack)) };
        let data_line = 4 << (geometry >> 16 & 0xf);
        let instruction_line = 4 << (geometry & 0xf);
        let end = start as usize + PAGE_SIZE;
        for line in (start as usize..end).step_by(data_line) {
            // SAFETY: cleaning to the point of unification changes no byte; the page is mapped.
            unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack)) };
        }
        barrier!("dsb ish"); // cleaned before instructions are fetched anew
        // L1Ip: only a physically tagged cache forgets by an address other than the one it will be fetched through.
        const PIPT: u64 = 0b11;
        if geometry >> 14 & 0b11 == PIPT {
            for line in (start as usize..end).step_by(instruction_line) {
                // SAFETY: what the cache forgets it fetches again.
                unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack)) };
            }
        } else {
            barrier!("ic ialluis");
        }
        barrier!("dsb ish", "isb"); // and forgotten before they are executed
    }
}
