//! Addresses in bytes, and the page-sized units they fall into.

use core::fmt;

/// Bytes in a page and in a frame: the 4 KiB translation granule.
pub const PAGE_SIZE: usize = 4096;

const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $unit:ident, $to_unit:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            #[doc = concat!("The ", stringify!($unit), " this address lies in.")]
            pub const fn $to_unit(self) -> $unit {
                $unit(self.0 >> PAGE_SHIFT)
            }

            /// Bytes from the start of the page.
            pub const fn page_offset(self) -> usize {
                (self.0 % PAGE_SIZE as u64) as usize
            }

            /// Whether the address is a multiple of `alignment`, a power of two.
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }

            /// `self + bytes`, unless that is past the end of the 64-bit space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#018x}", self.0)
            }
        }
    };
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address of its first byte.
            pub const fn start(self) -> $address {
                $address(self.0 << PAGE_SHIFT)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address!(
    /// A virtual address, in bytes.
    VirtAddr, Page, page
);
address!(
    /// A physical address, in bytes.
    PhysAddr, Frame, frame
);
unit!(
    /// A page of virtual memory, by number: the address divided by [`PAGE_SIZE`].
    Page, VirtAddr
);
unit!(
    /// A frame of physical memory, by number: the address divided by [`PAGE_SIZE`].
    Frame, PhysAddr
);

#[cfg(test)]
mod tests {
    use super::{Frame, PAGE_SIZE, Page, PhysAddr, VirtAddr};

    #[test]
    fn an_address_falls_into_the_page_below_it() {
        assert_eq!(VirtAddr(0x5000_1234).page(), Page(0x50001));
        assert_eq!(VirtAddr(0x5000_1234).page_offset(), 0x234);
        assert_eq!(PhysAddr(PAGE_SIZE as u64 - 1).frame(), Frame(0));
        assert_eq!(Frame(3).start(), PhysAddr(0x3000));
    }

    #[test]
    fn addition_past_the_end_is_none() {
        assert_eq!(VirtAddr(u64::MAX).checked_add(1), None);
        assert_eq!(VirtAddr(1).checked_add(2), Some(VirtAddr(3)));
    }
}
