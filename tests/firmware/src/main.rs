//! What a Raspberry Pi's firmware leaves behind, for tests: all cores start here, at address 0 and in EL3, and the first
//! hands over to the kernel at 0x200000. QEMU's own `-kernel` starts in EL2 and skips this.
//!
//! The test writes two words (`-device loader,addr=...,data=...`): at 0x1000 the address of the device tree, and at 0x1008
//! how to hand over: 0 in EL3, 1 in EL2 as the firmware of real boards does it. Of that firmware's state this copies what
//! a kernel can trip over: SCTLR_EL2 as it is left, SMC undefined, all interrupts in group 1, the other cores waiting at
//! 0xd8 for an address to jump to. Registers that are unknown at reset hold what does most harm.

#![no_std]
#![no_main]

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.start, "ax"
    .global _start
_start:
    mrs     x6, MPIDR_EL1
    and     x6, x6, #3
    mov     x4, #0x1000
    ldp     x0, x5, [x4]            // device tree, level
    mov     x4, #0x200000           // the kernel
    mov     x1, #0x5a8              // no pointer
    msr     TPIDR_EL1, x1
    mov     x1, #3 << 20            // vector registers are allowed
    msr     CPACR_EL1, x1
    mov     x1, #1 << 6             // performance monitors trap to EL3
    msr     MDCR_EL3, x1
    cbz     x5, enter

    mrs     x1, MIDR_EL1            // a Pi 4 (Cortex-A72) has a GIC
    ubfx    x1, x1, #4, #12
    mov     x2, #0xd08
    cmp     x1, x2
    b.ne    2f
    ldr     x1, =0xff841080         // GICD_IGROUPR0 and on
    mov     w2, #-1
    mov     x3, #8
1:  str     w2, [x1], #4
    subs    x3, x3, #1
    b.ne    1b
    ldr     x1, =0xff842000         // GICC_PMR: non-secure interrupts pass
    mov     w2, #0xff
    str     w2, [x1, #4]

2:  mov     x1, #0x5b1              // SCR_EL3: RW HCE SMD NS and two bits that read as one
    msr     SCR_EL3, x1
    msr     CPTR_EL3, xzr
    msr     MDCR_EL3, xzr
    ldr     x1, =0x30c50830
    msr     SCTLR_EL2, x1
    mov     x1, #0x3c9              // EL2h, all masked
    msr     SPSR_EL3, x1
    adr     x1, enter
    msr     ELR_EL3, x1
    eret

    .org    0xd8
    .quad   0, 0, 0, 0              // where the cores are told to go

enter:
    cbnz    x6, 3f
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    br      x4
3:  mov     x5, #0xd8
4:  wfe
    ldr     x4, [x5, x6, lsl #3]
    cbz     x4, 4b
    br      x4
    "#
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
