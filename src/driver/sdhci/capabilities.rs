//! What an SDHCI controller offers, and what its clock can be divided by: pure functions of its registers.
//!
//! Source: SD Host Controller Simplified Specification 3.00, "Capabilities Register" and "Clock Control Register".

use super::Method;

/// The specification's number of version 3.00 in the version register.
const VERSION_3: u32 = 2;

/// What a controller offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The clock that it divides, where it says so.
    pub base_hz: Option<u32>,
    /// Its dividers are numbers up to 1023, not powers of two.
    pub is_version_3: bool,
    /// 50 MHz.
    pub has_high_speed: bool,
    /// A table of memory to transfer.
    pub has_adma2: bool,
    /// A run of memory to transfer.
    pub has_sdma: bool,
}

impl Capabilities {
    /// From the lower half of the capabilities, and the version, of the register at 0xfe.
    pub fn new(register: u32, version: u32) -> Self {
        let is_version_3 = version >= VERSION_3;
        let mhz = register >> 8 & if is_version_3 { 0xff } else { 0x3f };
        Self {
            base_hz: (mhz > 0).then_some(mhz * 1_000_000),
            is_version_3,
            has_adma2: register >> 19 & 1 != 0,
            has_high_speed: register >> 21 & 1 != 0,
            has_sdma: register >> 22 & 1 != 0,
        }
    }

    /// The best way to move data; `has_engine` is that there is a DMA engine beside the controller.
    pub fn best(&self, has_engine: bool) -> Method {
        match (self.has_adma2, self.has_sdma, has_engine) {
            (true, ..) => Method::Adma2,
            (_, true, _) => Method::Sdma,
            (_, _, true) => Method::Engine,
            _ => Method::Pio,
        }
    }

    /// Whether data can be moved in this way.
    pub fn allow(&self, method: Method, has_engine: bool) -> bool {
        match method {
            Method::Pio => true,
            Method::Sdma => self.has_sdma,
            Method::Adma2 => self.has_adma2,
            Method::Engine => has_engine,
        }
    }
}

/// The divider with which a controller's `base` clock is at most `wanted`, both in Hz: the clock is the base, or the base
/// divided by twice the divider. Version 3 controllers count to 1023; older ones know powers of two up to 128.
pub fn divider(base: u32, wanted: u32, is_version_3: bool) -> u32 {
    let (base, wanted) = (base.max(1), wanted.max(1));
    if base <= wanted {
        return 0;
    }
    let exact = base.div_ceil(wanted).div_ceil(2);
    if is_version_3 {
        exact.min(1023)
    } else {
        exact.next_power_of_two().min(128)
    }
}

/// What `divider` makes of the clock.
pub fn divided(base: u32, divider: u32) -> u32 {
    if divider == 0 {
        base
    } else {
        base / (2 * divider)
    }
}

#[cfg(test)]
mod tests {
    use super::{Capabilities, divided, divider};
    use crate::driver::sdhci::Method;

    #[test]
    fn qemus_controllers_are_read_as_what_they_are() {
        // On PCI: 52 MHz, ADMA2, SDMA, high speed. The Raspberry Pis': none of the DMAs.
        let pci = Capabilities::new(0x0578_34b4, 1);
        assert_eq!(pci.base_hz, Some(52_000_000));
        assert!(pci.has_adma2 && pci.has_sdma && pci.has_high_speed && !pci.is_version_3);
        let pi = Capabilities::new(0x0521_34b4, 2);
        assert!(!pi.has_adma2 && !pi.has_sdma && pi.has_high_speed && pi.is_version_3);
    }

    #[test]
    fn a_version_3_controller_has_two_bits_more_for_its_clock() {
        assert_eq!(Capabilities::new(0xc8 << 8, 2).base_hz, Some(200_000_000));
        assert_eq!(Capabilities::new(0xc8 << 8, 1).base_hz, Some(8_000_000));
        assert_eq!(Capabilities::new(0, 2).base_hz, None);
    }

    #[test]
    fn the_best_method_is_the_one_that_asks_least_of_the_processor() {
        let with = |bits| Capabilities::new(bits, 2);
        assert_eq!(with(1 << 19 | 1 << 22).best(true), Method::Adma2);
        assert_eq!(with(1 << 22).best(true), Method::Sdma);
        assert_eq!(with(0).best(true), Method::Engine);
        assert_eq!(with(0).best(false), Method::Pio);
        assert!(!with(0).allow(Method::Adma2, true) && with(0).allow(Method::Engine, true));
    }

    #[test]
    fn the_clock_is_never_faster_than_wanted() {
        assert_eq!(divider(50_000_000, 50_000_000, true), 0);
        for base in [1, 26_000_000, 52_000_000, 100_000_000, 250_000_000] {
            for wanted in [400_000, 25_000_000, 50_000_000] {
                for is_version_3 in [true, false] {
                    let limit = if is_version_3 { 1023 } else { 128 };
                    let divider = divider(base, wanted, is_version_3);
                    let clock = divided(base, divider);
                    assert!(
                        clock <= wanted || divider == limit,
                        "{base} / {wanted}: {clock}"
                    );
                }
            }
        }
    }
}
