//! From the first instruction to Rust with the MMU on.
//!
//! The image is entered at EL3, EL2 or EL1 with the MMU off, at any multiple of 2 MiB, with x0 holding the physical
//! address of a device tree, or not (Linux, "Booting AArch64 Linux"). `_start` runs at that physical address and is
//! position-independent. It parks every core but the first, goes down to EL1, and builds two small sets of tables in
//! 2 MiB blocks: the image where it is (TTBR0), so that the instruction after the one that turns the MMU on can be
//! fetched, and the image where it is linked (TTBR1). Then it jumps there. Nothing but the image is mapped yet;
//! [`super::kernel_map`] builds the tables that stay.

use core::arch::global_asm;

/// MAIR_EL1: attribute 0 Device-nGnRnE, 1 Device-nGnRE, 2 Normal write-back, 3 Normal non-cacheable.
const MAIR: u64 = super::descriptor::MAIR_VALUE;

/// TCR_EL1 without the physical address size: 48 bits below (T0SZ 16), 39 bits above (T1SZ 25), 4 KiB granules, walks
/// inner-shareable and write-back.
const TCR: u64 = 16 | 25 << 16
    | 0b01 << 8 | 0b01 << 10 | 0b11 << 12      // IRGN0 ORGN0 SH0
    | 0b01 << 24 | 0b01 << 26 | 0b11 << 28     // IRGN1 ORGN1 SH1
    | 0b10 << 30; // TG1: 4 KiB

/// SCTLR_EL1 with the MMU off: only the bits that read as one on ARMv8.0.
const SCTLR_OFF: u64 = 0x30d0_0800;

/// SCTLR_EL1 at run time: M, C, I (MMU and caches), SA and SA0 (stack alignment), and EL0's access to the counters of
/// cache geometry (UCT), `dc zva` (DZE) and `ic`/`dc` by address (UCI) as programs built for Linux expect. WXN stays
/// off: what is writable and executable is refused above, unless asked for by name.
const SCTLR_ON: u64 =
    SCTLR_OFF | 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 26;

/// A 2 MiB block of Normal write-back memory, inner-shareable, accessed, executable and writable: only for boot.
const BOOT_BLOCK: u64 = 0b01 | 2 << 2 | 0b11 << 8 | 1 << 10;

global_asm!(
    r#"
    .section .text.boot, "ax"
    .global _start
    .type _start, %function
_start:
    b       1f                      // Linux Image header: code0
    .long   0                       //   code1
    .quad   0                       //   text_offset: loaded at a multiple of 2 MiB
    .quad   __image_size            //   what must be free there, BSS included
    .quad   0b1010                  //   little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0
1:
    msr     DAIFSet, #0xf
    mrs     x1, MPIDR_EL1
    tst     x1, #0xffffff           // affinity 0.0.0 is the boot core
    b.eq    3f
2:  wfi                             // the others sleep: WFE would keep QEMU's host busy
    b       2b

3:  mov     x20, x0                 // device tree, perhaps
    adrp    x21, _start             // where the image was loaded
    mrs     x22, CurrentEL          // told to Rust: EL << 2

    cmp     x22, #3 << 2
    b.lo    4f
    // EL3: EL2 and EL1 are non-secure and AArch64; HVC works; SMC is undefined, since nobody would answer it.
    mov     x1, #(1 << 10 | 1 << 8 | 1 << 7 | 0b11 << 4 | 1)
    msr     SCR_EL3, x1
    msr     CPTR_EL3, xzr
    msr     MDCR_EL3, xzr           // performance monitors do not trap
    adr     x1, 4f
    msr     ELR_EL3, x1
    mov     x1, #0x3c9              // EL2h, all masked
    msr     SPSR_EL3, x1
    isb
    eret

4:  mrs     x1, CurrentEL
    cmp     x1, #2 << 2
    b.ne    6f
    // EL2: give everything to EL1. Each of these is unknown at reset.
    mov     x1, #1 << 31            // HCR_EL2: EL1 is AArch64,
    orr     x1, x1, #0b11 << 40     //   pointer authentication does not trap
    msr     HCR_EL2, x1
    isb                             // E2H is clear: what follows means what it says here
    mov     x1, #0x33ff
    msr     CPTR_EL2, x1            // floating point does not trap
    msr     HSTR_EL2, xzr
    msr     VTTBR_EL2, xzr
    mov     x1, #0b11
    msr     CNTHCTL_EL2, x1         // EL1 may use the physical counter and timer
    msr     CNTVOFF_EL2, xzr        // and the virtual one is the same
    mrs     x1, MIDR_EL1
    msr     VPIDR_EL2, x1
    mrs     x1, MPIDR_EL1
    msr     VMPIDR_EL2, x1
    mrs     x1, ID_AA64DFR0_EL1     // PMUVer
    ubfx    x1, x1, #8, #4
    cmp     x1, #0
    ccmp    x1, #0xf, #4, ne
    mov     x1, xzr
    b.eq    5f
    mrs     x1, PMCR_EL0            // all event counters belong to EL1
    ubfx    x1, x1, #11, #5
5:  msr     MDCR_EL2, x1
    mrs     x1, ID_AA64PFR0_EL1     // GIC system registers?
    ubfx    x1, x1, #24, #4
    cbz     x1, 7f
    mrs     x1, S3_4_C12_C9_5       // ICC_SRE_EL2: EL1 may use them
    orr     x1, x1, #0b0001         //   SRE
    orr     x1, x1, #0b1000         //   Enable
    msr     S3_4_C12_C9_5, x1
    isb
7:  ldr     x1, ={sctlr_off}
    msr     SCTLR_EL1, x1
    adr     x1, 6f
    msr     ELR_EL2, x1
    mov     x1, #0x3c5              // EL1h, all masked
    msr     SPSR_EL2, x1
    isb
    eret

6:  msr     SPSel, #1
    ldr     x1, ={sctlr_off}
    msr     SCTLR_EL1, x1
    msr     CPACR_EL1, xzr          // vector registers are denied until a thread uses them (fp.rs)
    msr     TPIDR_EL1, xzr          // and there are no threads (thread.rs). Both are unknown at reset.
    isb

    // Five tables: 0 and 1 and 2 are levels 0 to 2 of the identity map, 3 and 4 levels 1 and 2 of the image's.
    adrp    x10, __boot_tables
    add     x11, x10, #5 * 4096
    mov     x1, x10
8:  stp     xzr, xzr, [x1], #16
    cmp     x1, x11
    b.lo    8b

    add     x1, x10, #0x1000        // level 0 -> 1
    orr     x1, x1, #0b11
    ubfx    x2, x21, #39, #9
    str     x1, [x10, x2, lsl #3]
    add     x3, x10, #0x1000        // level 1 -> 2
    add     x1, x10, #0x2000
    orr     x1, x1, #0b11
    ubfx    x2, x21, #30, #9
    str     x1, [x3, x2, lsl #3]
    add     x3, x10, #0x3000        // the image's level 1 -> 2: the last GiB of the high half
    add     x1, x10, #0x4000
    orr     x1, x1, #0b11
    str     x1, [x3, #511 * 8]

    ldr     x4, =__image_size
    add     x4, x4, #1 << 21
    sub     x4, x4, #1
    lsr     x4, x4, #21             // blocks
    ldr     x1, ={block}
    orr     x1, x1, x21
    ubfx    x2, x21, #21, #9
    add     x3, x10, #0x2000
    add     x3, x3, x2, lsl #3
    add     x5, x10, #0x4000
9:  str     x1, [x3], #8
    str     x1, [x5], #8
    add     x1, x1, #1 << 21
    subs    x4, x4, #1
    b.ne    9b

    // The tables were written past the caches: drop any old lines of them before the walker may hit one.
    dmb     sy
    mrs     x1, CTR_EL0
    ubfx    x1, x1, #16, #4
    mov     x2, #4
    lsl     x2, x2, x1              // DminLine, bytes
    mov     x1, x10
10: dc      ivac, x1
    add     x1, x1, x2
    cmp     x1, x11
    b.lo    10b
    dsb     sy                      // tables and invalidations done

    ldr     x1, ={mair}
    msr     MAIR_EL1, x1
    ldr     x1, ={tcr}
    mrs     x2, ID_AA64MMFR0_EL1    // PARange; 48 bits at most with this granule
    and     x2, x2, #0xf
    mov     x3, #5
    cmp     x2, x3
    csel    x2, x2, x3, lo
    bfi     x1, x2, #32, #3         // IPS
    msr     TCR_EL1, x1
    msr     TTBR0_EL1, x10
    add     x1, x10, #0x3000
    msr     TTBR1_EL1, x1
    tlbi    vmalle1
    ic      iallu
    dsb     nsh                     // no translation or instruction from before
    isb                             // MAIR, TCR and TTBR are in force before the MMU is
    ldr     x1, ={sctlr_on}
    msr     SCTLR_EL1, x1
    isb                             // the next fetch is translated
    ldr     x1, =boot_high
    br      x1

boot_high:
    ldr     x1, =__bss_start
    ldr     x2, =__bss_end
11: stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    11b
    ldr     x1, =__boot_stack_end
    mov     sp, x1
    ldr     x1, =exception_vectors
    msr     VBAR_EL1, x1
    isb                             // vectors in force before anything can fault
    mov     x29, xzr                // backtraces end here
    mov     x30, xzr
    mov     x0, x20
    mov     x1, x21
    lsr     x2, x22, #2
    b       {start}
    "#,
    sctlr_off = const SCTLR_OFF,
    sctlr_on = const SCTLR_ON,
    mair = const MAIR,
    tcr = const TCR,
    block = const BOOT_BLOCK,
    start = sym crate::kernel::start,
);
