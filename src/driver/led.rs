//! A LED of a Raspberry Pi.

use crate::arch::aarch64::board::{LedPin, LedWiring};
use crate::arch::aarch64::kernel_map;
use crate::driver::gpio;
use crate::kernel;
use crate::mm::addr::{PhysAddr, VirtAddr};

/// A LED that can be switched.
pub struct Led {
    wiring: LedWiring,
    gpio: VirtAddr,
    is_lit: bool,
    /// Firmware does not know the pin: it is not asked again.
    is_dead: bool,
}

impl Led {
    /// The LED that is wired so; `None` where the pins cannot be reached.
    pub fn new(wiring: LedWiring, gpio: PhysAddr) -> Option<Self> {
        let gpio = kernel_map::map_device(gpio, 0x1000).ok()?;
        if let LedPin::Gpio(pin) = wiring.pin {
            // SAFETY: just mapped; the tree says that the pin is the LED's, and nobody else changes it.
            unsafe { gpio::make_output(gpio, pin) };
        }
        let mut led = Self {
            wiring,
            gpio,
            is_lit: true,
            is_dead: false,
        };
        led.set(false);
        Some(led)
    }

    /// Whether it is on.
    pub fn is_lit(&self) -> bool {
        self.is_lit
    }

    /// Switches it.
    pub fn set(&mut self, is_lit: bool) {
        if self.is_lit == is_lit || self.is_dead {
            return;
        }
        self.is_lit = is_lit;
        let is_high = is_lit != self.wiring.is_low_active;
        match self.wiring.pin {
            // SAFETY: as in `new`.
            LedPin::Gpio(pin) => unsafe { gpio::set(self.gpio, pin, is_high) },
            LedPin::Firmware(pin) => {
                if let Some(mailbox) = kernel::mailbox()
                    && let Err(error) = mailbox.lock().set_firmware_pin(pin, is_high)
                {
                    log::debug!("LED: {error}");
                    self.is_dead = true;
                    self.is_lit = false;
                }
            }
        }
    }
}
