//! Ways to end: an emulator's exit status, power off, restart.

use super::board::{Board, PsciConduit};
use super::kernel_map;
use crate::mm::addr::PhysAddr;
use core::arch::{asm, global_asm};

/// Ends an emulator that offers semihosting, with `status`; returns where there is none.
///
/// Source: Arm "Semihosting for AArch32 and AArch64", SYS_EXIT_EXTENDED.
pub fn exit(status: u8) {
    const SYS_EXIT_EXTENDED: u64 = 0x20;
    const APPLICATION_EXIT: u64 = 0x20026;
    let block = [APPLICATION_EXIT, u64::from(status)];
    // SAFETY: the call reads the block and ends; if it returns, nobody listens.
    unsafe { semihosting_call(SYS_EXIT_EXTENDED, block.as_ptr()) };
}

unsafe extern "C" {
    /// Asks the debugger or emulator for `operation`; all ones where there is none.
    fn semihosting_call(operation: u64, block: *const u64) -> u64;
}

global_asm!(
    r#"
    .section .text.semihosting_call, "ax"
    .type semihosting_call, %function
    .global semihosting_call, semihosting_hlt, semihosting_absent
semihosting_call:
semihosting_hlt:
    hlt     #0xf000
    ret
semihosting_absent:                 // exception.rs comes here when the `hlt` is undefined
    mov     x0, #-1
    ret
    "#
);

const PSCI_SYSTEM_OFF: u32 = 0x8400_0008;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;

/// Powers the machine off; returns where it cannot.
pub fn off(board: &Board) {
    psci(board, PSCI_SYSTEM_OFF);
    if let Some(pi) = board.raspberry_pi {
        bcm_reset(pi.watchdog, AfterReset::Halt);
    }
}

/// Starts the machine anew; returns where it cannot.
pub fn restart(board: &Board) {
    psci(board, PSCI_SYSTEM_RESET);
    if let Some(pi) = board.raspberry_pi {
        bcm_reset(pi.watchdog, AfterReset::Boot);
    }
}

/// Power State Coordination Interface (Arm DEN 0022), the calls without arguments.
fn psci(board: &Board, function: u32) {
    // SAFETY: the device tree says that firmware answers this call; these two do not return, or return an error. Before
    // version 1.1 of the calling convention (Arm DEN 0028) x4 to x17 are not kept.
    unsafe {
        match board.psci {
            Some(PsciConduit::Hvc) => {
                asm!("hvc #0", inout("x0") u64::from(function) => _, clobber_abi("C"));
            }
            Some(PsciConduit::Smc) => {
                asm!("smc #0", inout("x0") u64::from(function) => _, clobber_abi("C"));
            }
            None => {}
        }
    }
}

enum AfterReset {
    Boot,
    Halt,
}

/// The BCM283x's watchdog (registers: `bcm2835-pm` device tree binding; values: Linux, tried under QEMU): writes
/// need the password; it fires after ten ticks of 16 us. Firmware that finds partition 63 in RSTS halts.
fn bcm_reset(watchdog: PhysAddr, after: AfterReset) {
    const PASSWORD: u32 = 0x5a00_0000;
    const RSTC: u64 = 0x1c;
    const RSTS: u64 = 0x20;
    const WDOG: u64 = 0x24;
    const HALT_PARTITION: u32 = 0x555;
    const FULL_RESET: u32 = 0x20;
    let Ok(base) = kernel_map::map_device(watchdog, 0x28) else {
        return;
    };
    // SAFETY: the registers were just mapped; nobody else uses them.
    unsafe {
        let register = |offset| (base.0 + offset) as *mut u32;
        if matches!(after, AfterReset::Halt) {
            let status = register(RSTS).read_volatile();
            register(RSTS).write_volatile(PASSWORD | status | HALT_PARTITION);
        }
        register(WDOG).write_volatile(PASSWORD | 10);
        let control = register(RSTC).read_volatile();
        register(RSTC).write_volatile(PASSWORD | control & !0x30 | FULL_RESET);
    }
    // Ten ticks are 160 us; a machine that still runs after a hundred times that was not reset.
    let deadline = super::timer::now() + super::timer::ticks_from_us(16_000);
    while super::timer::now() < deadline {
        core::hint::spin_loop();
    }
}
