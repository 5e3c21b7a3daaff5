//! The address space in words, as `/proc/self/maps` shows it, with what is present of each map.

use super::addr::{PAGE_SIZE, VirtAddr};
use super::manager::MemoryMapManager;
use super::object::{Condition, MemoryMappedObject, Sharing};
use super::table::{Kind, PageTable, Protection};
use core::fmt;

/// Pages of a map that are present, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Residency {
    /// All but those of zeros.
    pub resident: u64,
    /// Its own, written: anonymous memory, or copies.
    pub dirty: u64,
    /// The shared page of zeros.
    pub zero: u64,
    /// In 64 KiB groups or 2 MiB blocks.
    pub huge: u64,
}

/// Writes a line for each map.
pub fn write_maps<T: PageTable>(
    manager: &MemoryMapManager<'_, T>,
    f: &mut dyn fmt::Write,
) -> fmt::Result {
    writeln!(
        f,
        "{:25} {:4} {:>9} {:>9} {:>9} {:>9} {:>9}  WHAT",
        "ADDRESSES", "MODE", "KiB", "RESIDENT", "DIRTY", "ZERO", "HUGE"
    )?;
    let mut at = VirtAddr(0);
    while let Some(object) = manager.next_map(at) {
        at = object.pages().end.start();
        write_map(manager, &object, f)?;
    }
    Ok(())
}

fn write_map<T: PageTable>(
    manager: &MemoryMapManager<'_, T>,
    object: &MemoryMappedObject,
    f: &mut dyn fmt::Write,
) -> fmt::Result {
    let pages = object.pages();
    let length = pages.end.start().0 - pages.start.start().0;
    let counts = residency(manager, pages.start.start(), length);
    let kib = |pages: u64| (pages * PAGE_SIZE as u64) >> 10;
    writeln!(
        f,
        "{:012x}-{:012x} {} {:>9} {:>9} {:>9} {:>9} {:>9}  {}",
        pages.start.start().0,
        pages.end.start().0,
        Mode(object),
        length >> 10,
        kib(counts.resident),
        kib(counts.dirty),
        kib(counts.zero),
        kib(counts.huge),
        What(object),
    )
}

/// What is present of a range.
pub fn residency<T: PageTable>(
    manager: &MemoryMapManager<'_, T>,
    base: VirtAddr,
    length: u64,
) -> Residency {
    let mut counts = Residency::default();
    // An error says that the range is none: nothing is present in it.
    let _ = manager.residency(base, length, |_, present| {
        match present.kind {
            Kind::Zero => counts.zero += 1,
            Kind::Own => {
                counts.resident += 1;
                counts.dirty += 1;
            }
            Kind::File => {
                counts.resident += 1;
                counts.dirty += u64::from(present.is_writable);
            }
        }
        counts.huge += u64::from(present.is_huge);
    });
    counts
}

/// `rw-p`: what is allowed, private or shared.
struct Mode<'a>(&'a MemoryMappedObject);

impl fmt::Display for Mode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protection = match self.0.condition {
            Condition::Live => self.0.protection(),
            Condition::Guard | Condition::Dying => Protection::NONE,
        };
        let is_shared = self
            .0
            .file()
            .is_some_and(|file| file.sharing == Sharing::Shared);
        write!(f, "{protection}{}", if is_shared { 's' } else { 'p' })
    }
}

/// What stands behind a map.
pub struct What<'a>(pub &'a MemoryMappedObject);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_locked = if self.0.is_locked { ", locked" } else { "" };
        match (self.0.condition, self.0.file()) {
            (Condition::Guard, _) => f.write_str("guard"),
            (Condition::Dying, _) => f.write_str("being removed"),
            (Condition::Live, None) => write!(f, "anonymous{is_locked}"),
            (Condition::Live, Some(file)) => write!(
                f,
                "{} + {:#x}{is_locked}",
                file.file.name(),
                file.first_block * PAGE_SIZE as u64
            ),
        }
    }
}
