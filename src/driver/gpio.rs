//! What is on which pin of a Raspberry Pi (Broadcom "BCM2835 ARM Peripherals", chapter 6).

use crate::mm::addr::VirtAddr;
use core::ops::Range;

const GPFSEL1: u64 = 0x04;
const GPFSEL3: u64 = 0x0c;
const GPFSEL4: u64 = 0x10;
const GPFSEL5: u64 = 0x14;
const GPSET0: u64 = 0x1c;
const GPCLR0: u64 = 0x28;
const INPUT: u32 = 0b000;
const OUTPUT: u32 = 0b001;
const ALT0: u32 = 0b100;
const ALT3: u32 = 0b111;

/// Puts the PL011 on pins 14 and 15, where the header has its serial port: firmware may have put the mini UART there,
/// and the PL011 on pins 32 and 33, where boards with Bluetooth have its modem, whose line it must not hear as well.
///
/// # Safety
/// `base` is where the GPIO's registers are mapped, and nobody else changes the function of pins 10 to 19 and 30 to 39.
pub unsafe fn select_pl011(base: VirtAddr) {
    // SAFETY: as promised.
    unsafe {
        change(base, GPFSEL3, 2..4, |function| match function {
            ALT3 => INPUT,
            other => other,
        });
        change(base, GPFSEL1, 4..6, |_| ALT0);
    }
}

/// Puts a Raspberry Pi 3's card slot (pins 48 to 53) on the Arasan SD host: firmware may have left it to the other one.
/// The WLAN (pins 34 to 39), which is on the same host, goes off.
///
/// # Safety
/// `base` is where the GPIO's registers are mapped, and nobody else changes the function of pins 30 to 59.
pub unsafe fn select_card_on_arasan(base: VirtAddr) {
    // SAFETY: as promised.
    unsafe {
        change(base, GPFSEL3, 4..10, |_| INPUT);
        // QEMU lets go of the other host only when all six are inputs.
        for function in [INPUT, ALT3] {
            change(base, GPFSEL4, 8..10, |_| function);
            change(base, GPFSEL5, 0..4, |_| function);
        }
    }
}

/// Makes a pin an output.
///
/// # Safety
/// `base` is where the GPIO's registers are mapped, the pin is nobody else's, and nobody else changes the functions of the
/// nine others of its register meanwhile.
pub unsafe fn make_output(base: VirtAddr, pin: u32) {
    let of_ten = pin % 10;
    // SAFETY: as promised.
    unsafe {
        change(base, u64::from(pin / 10) * 4, of_ten..of_ten + 1, |_| {
            OUTPUT
        })
    };
}

/// Sets the level of a pin that is an output.
///
/// # Safety
/// `base` is where the GPIO's registers are mapped, and the pin is nobody else's.
pub unsafe fn set(base: VirtAddr, pin: u32, is_high: bool) {
    let register = if is_high { GPSET0 } else { GPCLR0 };
    let register = (base.0 + register + u64::from(pin / 32) * 4) as *mut u32;
    // SAFETY: as promised; zeros change nothing.
    unsafe { register.write_volatile(1 << (pin % 32)) };
}

/// Changes the functions of some of the ten pins that a register is for: three bits each, the first pin lowest.
///
/// # Safety
/// `base` is where the GPIO's registers are mapped, and nobody else changes the register.
unsafe fn change(base: VirtAddr, register: u64, pins: Range<u32>, new: impl Fn(u32) -> u32) {
    let register = (base.0 + register) as *mut u32;
    // SAFETY: as promised.
    let mut functions = unsafe { register.read_volatile() };
    for shift in pins.map(|pin| 3 * pin) {
        let function = new(functions >> shift & 0b111);
        functions = functions & !(0b111 << shift) | function << shift;
    }
    // SAFETY: as promised.
    unsafe { register.write_volatile(functions) };
}
