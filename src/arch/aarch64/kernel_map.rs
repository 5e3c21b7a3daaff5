//! The high half: the image, RAM, devices and kernel stacks. Built once, then only added to; see `layout.rs`.
//!
//! ```text
//! boot tables   image in 2 MiB blocks, RWX
//!   | init        image page by page: text R-X, constants R--, variables RW-
//!   | switch      TTBR1 to nothing, TLB emptied, TTBR1 to the new tables, all from the identity map
//!   | map_ram     the linear map: all RAM but the image's, in the largest blocks that fit
//!   v map_device, KernelStack::new
//! ```
//!
//! An entry goes from invalid to valid and (stacks only) back; nothing valid ever becomes something else valid, so
//! break-before-make is asked for only where the tables as a whole are replaced.

use super::descriptor::{Attributes, ENTRIES, Entry, PAGE_LEVEL};
use super::layout::{self, Region};
use crate::mm;
use crate::mm::addr::{Frame, PAGE_SIZE, PhysAddr, VirtAddr};
use crate::sync::SpinLock;
use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ops::Range;

const PAGE: u64 = PAGE_SIZE as u64;

/// Level of the root: the high half has 39 bits.
const ROOT_LEVEL: u32 = 1;

/// Tables that exist before the frame allocator does: the root, three for the image, the rest for the device tree,
/// the first UART and the linear map.
const BOOT_TABLES: usize = 14;

#[repr(C, align(4096))]
struct Table([Entry; ENTRIES]);

struct Static<T>(UnsafeCell<T>);

// SAFETY: reached only with `MAP` locked.
unsafe impl<T> Sync for Static<T> {}

static TABLES: Static<[Table; BOOT_TABLES]> = Static(UnsafeCell::new(
    [const { Table([Entry::INVALID; ENTRIES]) }; BOOT_TABLES],
));

/// A table that maps nothing: what TTBR0 holds while there are no maps.
static EMPTY: Static<Table> = Static(UnsafeCell::new(Table([Entry::INVALID; ENTRIES])));

unsafe extern "C" {
    static __rodata_start: u8;
    static __data_start: u8;
    static __symbols_start: u8;
    static __symbols_end: u8;
    static __boot_stack_guard: u8;
    static __image_end: u8;

    /// Replaces the tables of the high half.
    fn replace_ttbr1(root: PhysAddr, empty: PhysAddr, there: PhysAddr);
    static replace_ttbr1_there: u8;
}

global_asm!(
    r#"
    .section .text.replace_ttbr1, "ax"
    .global replace_ttbr1, replace_ttbr1_there
    .type replace_ttbr1, %function
    // The image's old blocks and its new pages must not both be in the TLB, so there is a moment without either: it
    // is spent in the identity map.
replace_ttbr1:
    br      x2
replace_ttbr1_there:
    msr     TTBR1_EL1, x1
    isb                             // no walk finds the old tables
    tlbi    vmalle1
    dsb     nsh                     // and nothing is left of them
    isb
    msr     TTBR1_EL1, x0
    isb                             // the return is fetched through the new ones
    ret
    "#
);

struct KernelMap {
    image: PhysAddr,
    boot_tables_used: usize,
    next_device: VirtAddr,
    next_stack: VirtAddr,
    /// Slots of stacks that were given back; has room for all that are not.
    free_stacks: Vec<VirtAddr>,
    stacks_in_use: usize,
}

static MAP: SpinLock<KernelMap> = SpinLock::new(KernelMap {
    image: PhysAddr(0),
    boot_tables_used: 0,
    next_device: layout::DEVICES.start,
    next_stack: layout::STACKS.start,
    free_stacks: Vec::new(),
    stacks_in_use: 0,
});

/// Why something could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No frame for a table.
    OutOfFrames,
    /// The region of the address space for such things is full.
    OutOfAddresses,
}

/// Builds the tables that stay, with the image in them, and switches to them. The first thing after boot.
pub fn init(image: PhysAddr) {
    let mut map = MAP.lock();
    map.image = image;
    map.boot_tables_used = 1; // the root
    let at = |symbol: *const u8| VirtAddr(symbol as u64);
    let guard = at(&raw const __boot_stack_guard);
    let parts = [
        (layout::IMAGE, Attributes::KERNEL_TEXT),
        (at(&raw const __rodata_start), Attributes::KERNEL_CONSTANTS),
        (at(&raw const __data_start), Attributes::KERNEL_DATA),
        (at(&raw const __symbols_start), Attributes::KERNEL_CONSTANTS),
        (at(&raw const __symbols_end), Attributes::KERNEL_DATA),
    ];
    let ends = parts[1..].iter().map(|part| part.0).chain([guard]);
    for ((start, attributes), end) in parts.into_iter().zip(ends) {
        map.map_image(start..end, attributes);
    }
    map.map_image(
        VirtAddr(guard.0 + PAGE)..at(&raw const __image_end),
        Attributes::KERNEL_DATA,
    );
    let root = map.physical(TABLES.0.get().cast());
    let empty = map.physical(EMPTY.0.get().cast());
    let there = map.physical(&raw const replace_ttbr1_there);
    // SAFETY: the new tables are complete (barrier first) and map what runs here as the old ones do; TTBR0 still has
    // the identity map. After it nobody runs there any more.
    unsafe {
        asm!("dsb ishst", options(nostack));
        replace_ttbr1(root, empty, there);
        asm!(
            "msr TTBR0_EL1, {}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            in(reg) empty.0,
            options(nostack),
        );
    }
}

impl KernelMap {
    /// Where a variable of the image is in memory.
    fn physical(&self, pointer: *const u8) -> PhysAddr {
        PhysAddr(self.image.0 + (pointer as u64 - layout::IMAGE.0))
    }

    fn map_image(&mut self, range: Range<VirtAddr>, attributes: Attributes) {
        let physical = self.physical(range.start.0 as *const u8);
        self.map(range, physical, attributes, PAGE_LEVEL)
            .expect("the boot tables suffice for the image");
    }

    /// The table at `address`, as seen through the maps that exist.
    fn table(&self, address: PhysAddr) -> *mut Entry {
        let boot_tables = TABLES.0.get();
        let offset = address.0.wrapping_sub(self.physical(boot_tables.cast()).0);
        let is_boot_table = offset < size_of::<[Table; BOOT_TABLES]>() as u64;
        if is_boot_table {
            boot_tables.wrapping_byte_add(offset as usize).cast()
        } else {
            layout::linear(address).0 as *mut Entry
        }
    }

    fn new_table(&mut self) -> Result<PhysAddr, MapError> {
        if self.boot_tables_used < BOOT_TABLES {
            let index = self.boot_tables_used;
            self.boot_tables_used += 1;
            // SAFETY: in bounds; only an address is computed.
            let table = unsafe { TABLES.0.get().cast::<Table>().add(index) };
            return Ok(self.physical(table.cast()));
        }
        let frame = mm::alloc_table_frame().ok_or(MapError::OutOfFrames)?;
        let table = self.table(frame.start());
        // SAFETY: the frame was just given to us, and RAM is in the linear map.
        unsafe {
            table
                .cast::<Table>()
                .write(Table([Entry::INVALID; ENTRIES]))
        };
        Ok(frame.start())
    }

    /// The entry for `address` at `level` or above it where a block ends the walk, tables being added where there
    /// are none. The result's second part is its level.
    fn entry(&mut self, address: VirtAddr, level: u32) -> Result<(*mut Entry, u32), MapError> {
        let mut table = TABLES.0.get().cast::<Entry>();
        for at in ROOT_LEVEL.. {
            let index = address.0 as usize >> (12 + 9 * (PAGE_LEVEL - at)) & (ENTRIES - 1);
            // SAFETY: a table has `ENTRIES` entries.
            let entry = unsafe { table.add(index) };
            if at == level {
                return Ok((entry, at));
            }
            // SAFETY: in a table that only we, with `MAP` locked, change.
            let value = unsafe { entry.read() };
            if value.is_valid() && !value.is_table() {
                return Ok((entry, at));
            }
            if !value.is_valid() {
                let next = self.new_table()?;
                // SAFETY: as above. The new table's emptiness is seen before the entry that points to it.
                unsafe {
                    asm!("dsb ishst", options(nostack));
                    entry.write_volatile(Entry::table(next));
                }
                table = self.table(next);
            } else {
                table = self.table(value.address());
            }
        }
        unreachable!("the loop ends at `level`")
    }

    /// Maps `range` to what starts at `physical`, both multiples of the page, in blocks no larger than `level` has.
    /// What is mapped already stays.
    fn map(
        &mut self,
        range: Range<VirtAddr>,
        physical: PhysAddr,
        attributes: Attributes,
        largest: u32,
    ) -> Result<(), MapError> {
        let mut address = range.start;
        while address < range.end {
            let target = PhysAddr(physical.0 + (address.0 - range.start.0));
            let level = (largest..=PAGE_LEVEL)
                .find(|level| {
                    let size = PAGE << (9 * (PAGE_LEVEL - level));
                    address.is_aligned(size)
                        && target.is_aligned(size)
                        && range.end.0 - address.0 >= size
                })
                .unwrap_or(PAGE_LEVEL);
            let (entry, found) = self.entry(address, level)?;
            // SAFETY: in a table that only we, with `MAP` locked, change.
            let value = unsafe { entry.read() };
            let size = PAGE << (9 * (PAGE_LEVEL - found));
            if !value.is_valid() {
                let leaf = Entry::leaf(target, attributes, found);
                // SAFETY: as above.
                unsafe { entry.write_volatile(leaf) };
            } else if value.is_table() && found < PAGE_LEVEL {
                // Something smaller is mapped inside: fill in around it.
                let inside = address..VirtAddr(address.0 + size);
                self.map(inside, target, attributes, found + 1)?;
            }
            address = VirtAddr((address.0 & !(size - 1)).wrapping_add(size));
            if address.0 == 0 {
                break;
            }
        }
        // SAFETY: orders the stores before what follows uses the addresses; no state changes.
        unsafe { asm!("dsb ishst", "isb", options(nostack)) };
        Ok(())
    }
}

/// Adds RAM to the linear map, but for the image's own, page by page at its edges.
pub fn map_ram(ram: Range<PhysAddr>) -> Result<(), MapError> {
    let mut map = MAP.lock();
    let image = image();
    let end = PhysAddr(ram.end.0.min(layout::LINEAR_SIZE));
    for part in [
        ram.start..PhysAddr(end.0.min(image.start.0)),
        PhysAddr(ram.start.0.max(image.end.0))..end,
    ] {
        if part.start < part.end {
            let range = layout::linear(part.start)..layout::linear(part.end);
            map.map(range, part.start, Attributes::KERNEL_DATA, ROOT_LEVEL)?;
        }
    }
    Ok(())
}

/// Adds what firmware left in RAM to the linear map, before it is known what RAM there is.
pub fn map_firmware(address: PhysAddr, len: u64) -> Result<VirtAddr, MapError> {
    let start = PhysAddr(address.0 & !(PAGE - 1));
    let end = PhysAddr((address.0 + len).next_multiple_of(PAGE));
    let range = layout::linear(start)..layout::linear(end);
    MAP.lock()
        .map(range, start, Attributes::KERNEL_DATA, PAGE_LEVEL)?;
    Ok(layout::linear(address))
}

/// Maps `len` bytes of registers. They stay mapped.
pub fn map_device(address: PhysAddr, len: u64) -> Result<VirtAddr, MapError> {
    let mut map = MAP.lock();
    let start = PhysAddr(address.0 & !(PAGE - 1));
    let size = (address.0 + len).next_multiple_of(PAGE) - start.0;
    let at = map.next_device;
    let end = at.checked_add(size).ok_or(MapError::OutOfAddresses)?;
    if end > layout::DEVICES.end {
        return Err(MapError::OutOfAddresses);
    }
    map.map(at..end, start, Attributes::DEVICE, PAGE_LEVEL)?;
    map.next_device = end;
    Ok(VirtAddr(at.0 + (address.0 - start.0)))
}

/// Where a variable of the image is in memory.
pub fn physical_of_image(pointer: *const u8) -> PhysAddr {
    MAP.lock().physical(pointer)
}

/// Where the image is in memory, with its variables; whole pages.
pub fn image() -> Range<PhysAddr> {
    // `MAP` may be locked by the caller; the address never changes once `init` is done.
    let size = &raw const __image_end as u64 - layout::IMAGE.0;
    let start = image_start();
    start..PhysAddr(start.0 + size.next_multiple_of(PAGE))
}

fn image_start() -> PhysAddr {
    match super::translate(layout::IMAGE) {
        Some(address) => address,
        None => unreachable!("the image is mapped"),
    }
}

/// The part of the image that `address` lies in.
pub fn image_region(address: VirtAddr) -> Region {
    let at = |symbol: *const u8| VirtAddr(symbol as u64);
    let symbols = at(&raw const __symbols_start)..at(&raw const __symbols_end);
    if address < at(&raw const __rodata_start) {
        Region::Text
    } else if address < at(&raw const __data_start) || symbols.contains(&address) {
        Region::ReadOnlyData
    } else if address < at(&raw const __image_end) {
        Region::Data
    } else {
        Region::Nothing
    }
}

/// What `tlbi` takes for the page at `address`: bits 55 to 12 alone. Above them is TTL, where the rest of an address of
/// the high half would say that it is mapped by a 64 KiB granule, and nothing would be removed (FEAT_TTL).
fn tlbi_operand(address: u64) -> u64 {
    address >> 12 & ((1 << 44) - 1)
}

/// A stack in the upper half of a slot of its own, with nothing in the lower half; unmapped and freed on drop.
pub struct KernelStack(VirtAddr);

impl KernelStack {
    /// `None` where frames are out.
    pub fn new() -> Option<Self> {
        crate::thread::touch_program_stack();
        let mut map = MAP.lock();
        let in_use = map.stacks_in_use;
        map.free_stacks.try_reserve(in_use + 1).ok()?;
        let slot = match map.free_stacks.pop() {
            Some(slot) => slot,
            None if map.next_stack < layout::STACKS.end => {
                let slot = map.next_stack;
                map.next_stack = VirtAddr(slot.0 + layout::STACK_SLOT);
                slot
            }
            None => return None,
        };
        map.stacks_in_use += 1;
        drop(map);
        // From here on, dropping it gives back whatever it has.
        let stack = Self(slot);
        let range = stack.range();
        for page in (range.start.0..range.end.0).step_by(PAGE_SIZE) {
            let frame = mm::alloc_kernel_frame()?;
            let page = VirtAddr(page)..VirtAddr(page + PAGE);
            let mapped = MAP
                .lock()
                .map(page, frame.start(), Attributes::KERNEL_DATA, PAGE_LEVEL);
            if mapped.is_err() {
                mm::free_kernel_frame(frame);
                return None;
            }
        }
        Some(stack)
    }

    /// From its lowest byte to where it begins.
    pub fn range(&self) -> Range<VirtAddr> {
        let end = self.0.0 + layout::STACK_SLOT;
        VirtAddr(end - layout::STACK_SIZE)..VirtAddr(end)
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        crate::thread::touch_program_stack();
        let range = self.range();
        let mut frames: [Option<Frame>; (layout::STACK_SIZE / PAGE) as usize] = Default::default();
        let mut map = MAP.lock();
        for (i, page) in (range.start.0..range.end.0).step_by(PAGE_SIZE).enumerate() {
            // Without a table there, one that `new` could not get, there is nothing to undo.
            let Ok((entry, PAGE_LEVEL)) = map.entry(VirtAddr(page), PAGE_LEVEL) else {
                continue;
            };
            // SAFETY: in a table that only we, with `MAP` locked, change; nobody runs on the stack any more.
            unsafe {
                let value = entry.read();
                if value.is_valid() {
                    frames[i] = Some(value.address().frame());
                    entry.write_volatile(Entry::INVALID);
                    // The walker sees the entry gone before the TLB forgets it.
                    asm!("dsb ishst", "tlbi vaae1is, {}", in(reg) tlbi_operand(page), options(nostack));
                }
            }
        }
        // SAFETY: waits until no core has a translation left; only then are the frames free.
        unsafe { asm!("dsb ish", "isb", options(nostack)) };
        map.free_stacks.push(self.0);
        map.stacks_in_use -= 1;
        drop(map);
        frames.into_iter().flatten().for_each(mm::free_kernel_frame);
    }
}
