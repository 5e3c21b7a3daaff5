//! Where things lie in the address space.
//!
//! ```text
//! 0xffff_ffff_c000_0000  IMAGE    kernel8.img: text R-X, rodata R--, data and BSS RW-
//! 0xffff_ffe0_0000_0000  STACKS   kernel stacks, one a slot, the lower half of each slot a guard
//! 0xffff_ffc0_0000_0000  DEVICES  registers, mapped as Device-nGnRE when a driver asks
//! 0xffff_ff80_0000_0000  LINEAR   all RAM but the image's own, RW-, at LINEAR + physical address
//! ------------------------------  the high half (TTBR1, 39 bits) is the machine and never faults
//! 0x0000_ffff_ffff_ffff  end of the maps
//! 0x0000_0000_0001_0000  start of the maps; below is the null guard, never mapped
//! ------------------------------  the low half (TTBR0, 48 bits) is the maps, demand-paged
//! ```

use crate::mm::addr::{PhysAddr, VirtAddr};
use core::fmt;
use core::ops::Range;

/// Addresses a map may cover: the low half without the null guard.
pub const MAPS: Range<VirtAddr> = VirtAddr(0x1_0000)..VirtAddr(1 << 48);

/// Start of the high half.
pub const HIGH: VirtAddr = VirtAddr(0xffff_ff80_0000_0000);

/// Where physical address 0 appears in the linear map.
pub const LINEAR: VirtAddr = HIGH;

/// Bytes of physical address space that the linear map can show.
pub const LINEAR_SIZE: u64 = 256 << 30;

/// Where device registers are mapped.
pub const DEVICES: Range<VirtAddr> =
    VirtAddr(0xffff_ffc0_0000_0000)..VirtAddr(0xffff_ffe0_0000_0000);

/// Where kernel stacks are mapped.
pub const STACKS: Range<VirtAddr> =
    VirtAddr(0xffff_ffe0_0000_0000)..VirtAddr(0xffff_fff0_0000_0000);

/// Where the image is linked; `linker.ld` says the same.
pub const IMAGE: VirtAddr = VirtAddr(0xffff_ffff_c000_0000);

/// The address through which the kernel sees physical memory.
pub const fn linear(address: PhysAddr) -> VirtAddr {
    VirtAddr(LINEAR.0 + address.0)
}

/// A kernel stack and the guard below it.
pub const STACK_SLOT: u64 = 64 << 10;

/// The upper half of a slot. `exception.rs` relies on bit 15 of a sound stack pointer being set.
pub const STACK_SIZE: u64 = 32 << 10;

/// What an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Region {
    /// Below the first map.
    NullGuard,
    /// Where maps may be.
    Maps,
    /// Addresses that the translation tables do not reach.
    Unreachable,
    /// The linear map of RAM.
    Linear,
    /// Device registers.
    Devices,
    /// A kernel stack.
    Stack,
    /// The guard under a kernel stack.
    StackGuard,
    /// The image's instructions.
    Text,
    /// The image's constants.
    ReadOnlyData,
    /// The image's variables.
    Data,
    /// The high half where nothing is ever mapped.
    Nothing,
}

/// The region `address` lies in, as far as addresses alone tell: the image is [`Region::Text`] as a whole here;
/// `region` knows its parts.
pub const fn region_by_address(address: VirtAddr) -> Region {
    let a = address.0;
    if a < MAPS.start.0 {
        Region::NullGuard
    } else if a < MAPS.end.0 {
        Region::Maps
    } else if a < HIGH.0 {
        Region::Unreachable
    } else if a < LINEAR.0 + LINEAR_SIZE {
        Region::Linear
    } else if a < DEVICES.end.0 {
        Region::Devices
    } else if a < STACKS.end.0 {
        if a % STACK_SLOT < STACK_SLOT - STACK_SIZE {
            Region::StackGuard
        } else {
            Region::Stack
        }
    } else if a < IMAGE.0 {
        Region::Nothing
    } else {
        Region::Text
    }
}

/// The region `address` lies in.
#[cfg(target_os = "none")]
pub fn region(address: VirtAddr) -> Region {
    match region_by_address(address) {
        Region::Text => super::kernel_map::image_region(address),
        region => region,
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NullGuard => "the null guard: nothing is ever mapped below 0x10000",
            Self::Maps => "the low half, where maps are",
            Self::Unreachable => "no address: between the halves",
            Self::Linear => "the linear map of RAM",
            Self::Devices => "device registers",
            Self::Stack => "a kernel stack",
            Self::StackGuard => "the guard under a kernel stack",
            Self::Text => "the image's text",
            Self::ReadOnlyData => "the image's constants",
            Self::Data => "the image's variables",
            Self::Nothing => "the high half where nothing is mapped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{IMAGE, LINEAR, Region, STACKS, region_by_address};
    use crate::mm::addr::VirtAddr;

    #[test]
    fn every_part_of_the_address_space_has_its_region() {
        let region = |address| region_by_address(VirtAddr(address));
        assert_eq!(region(0), Region::NullGuard);
        assert_eq!(region(0xffff), Region::NullGuard);
        assert_eq!(region(0x1_0000), Region::Maps);
        assert_eq!(region(0xffff_ffff_ffff), Region::Maps);
        assert_eq!(region(1 << 48), Region::Unreachable);
        assert_eq!(region(LINEAR.0), Region::Linear);
        assert_eq!(region(0xffff_ffc0_0000_0000), Region::Devices);
        assert_eq!(region(0xffff_fff0_0000_0000), Region::Nothing);
        assert_eq!(region(IMAGE.0), Region::Text);
        assert_eq!(region(u64::MAX), Region::Text);
    }

    #[test]
    fn the_lower_half_of_a_stack_slot_is_its_guard() {
        let region = |offset| region_by_address(VirtAddr(STACKS.start.0 + offset));
        assert_eq!(region(0), Region::StackGuard);
        assert_eq!(region(0x7fff), Region::StackGuard);
        assert_eq!(region(0x8000), Region::Stack);
        assert_eq!(region(0xffff), Region::Stack);
        assert_eq!(region(0x1_0000), Region::StackGuard);
    }
}
