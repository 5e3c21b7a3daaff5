//! Translation table entries as values: stage 1, 4 KiB granule, one translation regime (EL1), no EL0 access.
//!
//! ```text
//!  63      59 58    55 54  53  52 51 50 47          12 11 10 9   8 7    6    5  4      2 1     0
//! | ignored  | software|UXN|PXN|Ct|..|..| output address|nG|AF| SH |AP[2:1]|NS|AttrIndx|table|valid|
//! ```
//!
//! Source: Arm Architecture Reference Manual, "VMSAv8-64 Block descriptor and Page descriptor", "Memory attribute
//! fields in the VMSAv8-64 Block and Page descriptors", MAIR_EL1.
//!
//! | Entry | Bit 1 | Bit 0 | Meaning |
//! | --- | --- | --- | --- |
//! | empty | 0 | 0 | nothing; all other bits are zero |
//! | held | 1 | 0 | hardware sees nothing; software keeps a frame here that no access may reach |
//! | block | 0 | 1 | levels 1 and 2: 1 GiB, 2 MiB |
//! | table, page | 1 | 1 | levels 0 to 2: the next table; level 3: a page |

use crate::mm::addr::{PAGE_SIZE, PhysAddr};

/// MAIR_EL1: 0 Device-nGnRnE, 1 Device-nGnRE, 2 Normal write-back, 3 Normal non-cacheable.
pub const MAIR_VALUE: u64 = 0x44 << 24 | 0xff << 16 | 0x04 << 8;

/// The level whose entries are pages.
pub const PAGE_LEVEL: u32 = 3;

/// Entries in a table.
pub const ENTRIES: usize = 512;

/// Pages that one contiguous-bit group of level 3 covers: 64 KiB.
pub const GROUP: usize = 16;

const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;
const ATTRIBUTE_INDEX: u32 = 2;
const READ_ONLY: u64 = 1 << 7; // AP[2]
const INNER_SHAREABLE: u64 = 0b11 << 8;
const AF: u64 = 1 << 10;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const CONTIGUOUS: u64 = 1 << 52;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const MAY_STORE: u64 = 1 << 55; // software: the map allows stores, whatever AP[2] says
const OWNED: u64 = 1 << 56; // software: the frame counts this entry among its owners
const FILE: u64 = 1 << 57; // software: the frame is the page cache's, pinned by this entry

const DEVICE_NGNRE: u64 = 1 << ATTRIBUTE_INDEX;
const NORMAL: u64 = 2 << ATTRIBUTE_INDEX | INNER_SHAREABLE | AF | UXN;

/// What a leaf says beside its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Attributes(u64);

impl Attributes {
    /// R-X.
    pub const KERNEL_TEXT: Self = Self(NORMAL | READ_ONLY);
    /// R--.
    pub const KERNEL_CONSTANTS: Self = Self(NORMAL | READ_ONLY | PXN);
    /// RW-.
    pub const KERNEL_DATA: Self = Self(NORMAL | PXN);
    /// Registers.
    pub const DEVICE: Self = Self(DEVICE_NGNRE | AF | UXN | PXN);
    /// A page of a map: readable, nothing else.
    pub const MAP: Self = Self(NORMAL | READ_ONLY | PXN);

    /// Stores reach the frame.
    #[inline(always)]
    pub const fn writable(self) -> Self {
        Self(self.0 & !READ_ONLY)
    }

    /// Instructions may be fetched.
    #[inline(always)]
    pub const fn executable(self) -> Self {
        Self(self.0 & !PXN)
    }

    /// The map allows stores, which fault nevertheless unless it is [`writable`](Self::writable).
    #[inline(always)]
    pub const fn may_store(self) -> Self {
        Self(self.0 | MAY_STORE)
    }

    /// The frame counts the entry among its owners.
    #[inline(always)]
    pub const fn owned(self) -> Self {
        Self(self.0 | OWNED)
    }

    /// The frame is the page cache's.
    #[inline(always)]
    pub const fn file(self) -> Self {
        Self(self.0 | FILE)
    }

    /// One of [`GROUP`] entries that the TLB may hold as one.
    #[inline(always)]
    pub const fn contiguous(self) -> Self {
        Self(self.0 | CONTIGUOUS)
    }
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// Nothing.
    pub const INVALID: Self = Self(0);

    /// The next table.
    #[inline(always)]
    pub const fn table(address: PhysAddr) -> Self {
        Self(address.0 | TABLE | VALID)
    }

    /// A page at [`PAGE_LEVEL`], above it a block.
    #[inline(always)]
    pub const fn leaf(address: PhysAddr, attributes: Attributes, level: u32) -> Self {
        let kind = if level == PAGE_LEVEL { TABLE } else { 0 };
        Self(address.0 | attributes.0 | kind | VALID)
    }

    /// The same for the page that follows.
    #[inline(always)]
    pub const fn next(self) -> Self {
        Self(self.0 + PAGE_SIZE as u64)
    }

    /// The entry of these bits.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether hardware uses it.
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether it says nothing, to hardware or to us.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// A table, or at the last level a page.
    #[inline(always)]
    pub const fn is_table(self) -> bool {
        self.0 & (TABLE | VALID) == TABLE | VALID
    }

    /// A block, at a level that has them.
    #[inline(always)]
    pub const fn is_block(self) -> bool {
        self.0 & (TABLE | VALID) == VALID
    }

    /// Whether it keeps a frame out of everyone's reach.
    #[inline(always)]
    pub const fn is_held(self) -> bool {
        self.0 & (TABLE | VALID) == TABLE
    }

    /// The same frame, out of reach.
    #[inline(always)]
    pub const fn hold(self) -> Self {
        Self(self.0 & !(VALID | CONTIGUOUS) | TABLE)
    }

    /// Where it points.
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.0 & ADDRESS)
    }

    /// What it says beside its address; of a block, a page or a held entry.
    #[inline(always)]
    pub const fn attributes(self) -> Attributes {
        Attributes(self.0 & !(ADDRESS | TABLE | VALID))
    }

    /// Whether stores succeed.
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & (READ_ONLY | VALID) == VALID
    }

    /// Whether it lets no store through, or would not if it were not held.
    #[inline(always)]
    pub const fn is_read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }

    /// Whether instructions may be fetched.
    #[inline(always)]
    pub const fn is_executable(self) -> bool {
        self.0 & (PXN | VALID) == VALID
    }

    /// Whether the map allows stores.
    #[inline(always)]
    pub const fn may_store(self) -> bool {
        self.0 & MAY_STORE != 0
    }

    /// Whether the frame counts this entry among its owners.
    #[inline(always)]
    pub const fn is_owned(self) -> bool {
        self.0 & OWNED != 0
    }

    /// Whether the frame is the page cache's.
    #[inline(always)]
    pub const fn is_file(self) -> bool {
        self.0 & FILE != 0
    }

    /// Whether it is one of a contiguous group.
    #[inline(always)]
    pub const fn is_contiguous(self) -> bool {
        self.0 & CONTIGUOUS != 0
    }

    /// Whether the access flag is set.
    #[inline(always)]
    pub const fn is_accessed(self) -> bool {
        self.0 & AF != 0
    }

    /// The same with the access flag set.
    #[inline(always)]
    pub const fn accessed(self) -> Self {
        Self(self.0 | AF)
    }

    /// The same outside of a contiguous group.
    #[inline(always)]
    pub const fn single(self) -> Self {
        Self(self.0 & !CONTIGUOUS)
    }

    /// The same, read-only to hardware.
    #[inline(always)]
    pub const fn write_protected(self) -> Self {
        Self(self.0 | READ_ONLY)
    }
}

#[cfg(test)]
mod tests {
    use super::{Attributes, Entry, MAIR_VALUE, PAGE_LEVEL};
    use crate::mm::addr::PhysAddr;

    #[test]
    fn memory_types_are_where_the_manual_puts_them() {
        // MAIR_EL1.Attr<n>: 0x00 Device-nGnRnE, 0x04 Device-nGnRE, 0xff Normal write-back, 0x44 Normal non-cacheable.
        assert_eq!(MAIR_VALUE.to_le_bytes()[..4], [0x00, 0x04, 0xff, 0x44]);
    }

    #[test]
    fn a_page_of_kernel_data_has_the_manuals_bits() {
        // UXN, PXN; AF, inner-shareable, AP = 00, AttrIndx = 2, page.
        let entry = Entry::leaf(PhysAddr(0x4020_3000), Attributes::KERNEL_DATA, PAGE_LEVEL);
        assert_eq!(entry.bits(), 0x0060_0000_4020_370b);
    }

    #[test]
    fn text_is_read_only_and_executable_at_el1_alone() {
        // UXN; AP[2]: read-only.
        let entry = Entry::leaf(PhysAddr(0x4020_0000), Attributes::KERNEL_TEXT, 2);
        assert_eq!(entry.bits(), 0x0040_0000_4020_0789);
        assert!(entry.is_block() && entry.is_executable() && !entry.is_writable());
    }

    #[test]
    fn registers_are_device_memory_and_never_executed() {
        let entry = Entry::leaf(PhysAddr(0x0900_0000), Attributes::DEVICE, PAGE_LEVEL);
        assert_eq!(entry.bits(), 0x0060_0000_0900_0407);
    }

    #[test]
    fn a_table_is_an_address_and_two_bits() {
        let entry = Entry::table(PhysAddr(0x1_2345_6000));
        assert_eq!(entry.bits(), 0x1_2345_6003);
        assert!(entry.is_valid() && entry.is_table() && !entry.is_block());
        assert_eq!(entry.address(), PhysAddr(0x1_2345_6000));
    }

    #[test]
    fn a_held_entry_is_invalid_and_comes_back_as_it_was() {
        let attributes = Attributes::MAP.may_store().owned();
        let page = Entry::leaf(PhysAddr(0x5000), attributes, PAGE_LEVEL);
        let held = page.hold();
        assert!(held.is_held() && !held.is_valid() && !held.is_empty());
        assert!(held.is_owned() && held.may_store());
        assert_eq!(held.address(), PhysAddr(0x5000));
        let back = Entry::leaf(held.address(), held.attributes(), PAGE_LEVEL);
        assert_eq!(back, page);
    }

    #[test]
    fn no_attribute_opens_a_page_to_el0() {
        const AP_EL0: u64 = 1 << 6;
        let all = Attributes::MAP
            .writable()
            .executable()
            .may_store()
            .owned()
            .file();
        assert_eq!(all.0 & AP_EL0, 0);
        assert_ne!(all.0 & super::UXN, 0);
    }

    #[test]
    fn the_contiguous_bit_is_bit_52() {
        let page = Entry::leaf(PhysAddr(0), Attributes::MAP.contiguous(), PAGE_LEVEL);
        assert_eq!(page.bits() ^ page.single().bits(), 1 << 52);
    }
}
