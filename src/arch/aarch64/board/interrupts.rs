//! From the cells of an interrupt specifier to an interrupt.
//!
//! Sources: bindings `arm,gic`, `arm,gic-v3`, `brcm,bcm2836-l1-intc`, `brcm,bcm2835-armctrl-ic`; Devicetree Specification
//! v0.4, "Nexus Nodes and Specifier Mapping".

use crate::arch::aarch64::device_tree::node::Node;
use arrayvec::ArrayVec;
use core::fmt;

/// An interrupt source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// A GIC's, by INTID: 0 to 15 sent by software, 16 to 31 of each core, 32 and up shared.
    Gic(u32),
    /// Of a core of the Raspberry Pi 3, by its bit in the BCM2836's source register.
    Local(u32),
    /// Of a peripheral of the Raspberry Pi 3, by its number in the BCM2835's two banks of 32.
    Peripheral(u32),
}

/// What of a line makes an interrupt pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// That it is high.
    Level,
    /// That it becomes high.
    Edge,
}

/// An interrupt, and how its source signals it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    /// Which.
    pub interrupt: Interrupt,
    /// How.
    pub trigger: Trigger,
}

impl Line {
    /// One that is pending as long as its source says so.
    pub const fn level(interrupt: Interrupt) -> Self {
        Self {
            interrupt,
            trigger: Trigger::Level,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interrupt {
            Interrupt::Gic(id) => write!(f, "interrupt {id}"),
            Interrupt::Local(bit) => write!(f, "local interrupt {bit}"),
            Interrupt::Peripheral(number) => write!(f, "peripheral interrupt {number}"),
        }
    }
}

/// What kind of controller a specifier is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Gic,
    Local,
    Peripheral,
}

/// A controller that a specifier may refer to.
#[derive(Clone, Copy, Debug)]
struct Parent {
    kind: Kind,
    phandle: u32,
    /// Cells of a specifier.
    cells: usize,
    /// Cells of a unit address, in an interrupt map.
    address_cells: usize,
}

/// The controllers of a machine: a Raspberry Pi 3 has two.
#[derive(Clone, Default, Debug)]
pub(super) struct Parents(ArrayVec<Parent, 4>);

/// A value that holds interrupt specifiers, and who understands them.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Specifiers<'t> {
    pub(super) parent: u32,
    pub(super) value: &'t [u8],
}

impl Parents {
    /// Remembers the controller that `node` is; those after the fourth are not ours.
    pub(super) fn push(&mut self, kind: Kind, node: &Node<'_, '_>) {
        let least = if kind == Kind::Gic { 3 } else { 1 };
        let parent = Parent {
            kind,
            phandle: node.cell("phandle").unwrap_or(0),
            cells: node
                .cell("#interrupt-cells")
                .map_or(least, |cells| least.max(cells as usize)),
            address_cells: node.address_cells(),
        };
        if !self.0.is_full() {
            self.0.push(parent);
        }
    }

    /// The interrupt that specifier number `index` names, if its controller is one of ours.
    pub(super) fn line(&self, specifiers: Specifiers<'_>, index: usize) -> Option<Line> {
        let parent = self
            .0
            .iter()
            .find(|parent| parent.phandle == specifiers.parent)?;
        let specifier = specifiers.value.chunks_exact(4 * parent.cells).nth(index)?;
        line(parent.kind, specifier)
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let bytes = bytes.get(4 * index..4 * index + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn line(kind: Kind, specifier: &[u8]) -> Option<Line> {
    let first = word(specifier, 0)?;
    match kind {
        Kind::Gic => {
            const EDGES: u32 = 0b11;
            let number = word(specifier, 1)?;
            let id = match (first, number) {
                (0, 0..988) => 32 + number,
                (1, 0..16) => 16 + number,
                _ => return None,
            };
            let trigger = if word(specifier, 2)? & EDGES != 0 {
                Trigger::Edge
            } else {
                Trigger::Level
            };
            Some(Line {
                interrupt: Interrupt::Gic(id),
                trigger,
            })
        }
        Kind::Local => (first < 32).then_some(Line::level(Interrupt::Local(first))),
        // Bank 0 is what the controller itself has; 1 and 2 are the peripherals'.
        Kind::Peripheral => {
            let number = word(specifier, 1).filter(|number| *number < 32)?;
            let bank = first.checked_sub(1).filter(|bank| *bank < 2)?;
            Some(Line::level(Interrupt::Peripheral(32 * bank + number)))
        }
    }
}

/// Which interrupts the slots of a PCI host have.
#[derive(Clone, Debug)]
pub struct InterruptMap<'t> {
    map: &'t [u8],
    mask: &'t [u8],
    parents: Parents,
}

impl<'t> InterruptMap<'t> {
    pub(super) fn new(map: &'t [u8], mask: &'t [u8], parents: &Parents) -> Self {
        let parents = parents.clone();
        Self { map, mask, parents }
    }

    /// The interrupt of a function's `pin` (1 to 4, for INTA# to INTD#). `address` is the function's, as in `phys.hi`:
    /// bus in bits 16 to 23, device 11 to 15, function 8 to 10.
    pub fn line(&self, address: u32, pin: u32) -> Option<Line> {
        // A function's address has three cells, its pin one.
        const UNIT: usize = 4;
        let wanted = [address, 0, 0, pin];
        let mask = |i| word(self.mask, i).unwrap_or(u32::MAX);
        let mut rest = self.map;
        loop {
            let phandle = word(rest, UNIT)?;
            let parent = self.parents.0.iter().find(|p| p.phandle == phandle)?;
            let specifier = UNIT + 1 + parent.address_cells;
            let is_it = (0..UNIT).all(|i| word(rest, i) == Some(wanted[i] & mask(i)));
            if is_it {
                return line(parent.kind, rest.get(4 * specifier..)?);
            }
            rest = rest.get(4 * (specifier + parent.cells)..)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Interrupt, InterruptMap, Kind, Line, Parent, Parents, Specifiers, Trigger};
    use alloc::vec::Vec;
    use arrayvec::ArrayVec;

    fn cells(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }

    fn parents(kind: Kind, cells: usize) -> Parents {
        let parent = Parent {
            kind,
            phandle: 7,
            cells,
            address_cells: 2,
        };
        Parents(ArrayVec::from_iter([parent]))
    }

    fn nth(kind: Kind, count: usize, value: &[u32], index: usize) -> Option<Line> {
        let value = cells(value);
        let specifiers = Specifiers {
            parent: 7,
            value: &value,
        };
        parents(kind, count).line(specifiers, index)
    }

    #[test]
    fn a_gic_has_private_interrupts_from_16_and_shared_ones_from_32() {
        let shared = nth(Kind::Gic, 3, &[0, 1, 4], 0);
        assert_eq!(shared, Some(Line::level(Interrupt::Gic(33))));
        let third = nth(Kind::Gic, 3, &[1, 13, 8, 1, 14, 8, 1, 11, 0xf08], 2);
        assert_eq!(third, Some(Line::level(Interrupt::Gic(27))));
        assert_eq!(nth(Kind::Gic, 3, &[0, 988, 4], 0), None);
        assert_eq!(nth(Kind::Gic, 3, &[1, 16, 4], 0), None);
        assert_eq!(nth(Kind::Gic, 3, &[2, 0, 4], 0), None);
        assert_eq!(nth(Kind::Gic, 3, &[0, 1], 0), None);
    }

    #[test]
    fn an_edge_is_told_from_a_level() {
        let line = nth(Kind::Gic, 3, &[0, 16, 1], 0).unwrap();
        assert_eq!(line.trigger, Trigger::Edge);
        let line = nth(Kind::Gic, 3, &[0, 16, 4], 0).unwrap();
        assert_eq!(line.trigger, Trigger::Level);
    }

    #[test]
    fn the_pis_peripherals_count_from_bank_1() {
        let line = |bank, number| nth(Kind::Peripheral, 2, &[bank, number], 0);
        let is = |n| Some(Line::level(Interrupt::Peripheral(n)));
        assert_eq!(line(2, 25), is(57));
        assert_eq!(line(1, 29), is(29));
        assert_eq!(line(0, 1), None);
        assert_eq!(line(3, 0), None);
        assert_eq!(line(1, 32), None);
    }

    #[test]
    fn a_controller_of_another_kind_gives_no_interrupt() {
        let value = cells(&[0, 1, 4]);
        let specifiers = Specifiers {
            parent: 8,
            value: &value,
        };
        assert_eq!(parents(Kind::Gic, 3).line(specifiers, 0), None);
    }

    #[test]
    fn an_interrupt_map_is_read_under_its_mask() {
        // As QEMU's virt has it: slots differ in bits 11 and 12.
        let entry = |slot: u32, pin: u32, number| [slot << 11, 0, 0, pin, 7, 0, 0, 0, number, 4];
        let map: Vec<u8> = [entry(0, 1, 3), entry(0, 2, 4), entry(1, 1, 4)]
            .iter()
            .flat_map(|entry| cells(entry))
            .collect();
        let mask = cells(&[0x1800, 0, 0, 7]);
        let map = InterruptMap::new(&map, &mask, &parents(Kind::Gic, 3));
        let is = |id| Some(Line::level(Interrupt::Gic(id)));
        assert_eq!(map.line(0, 1), is(35));
        assert_eq!(map.line(0, 2), is(36));
        assert_eq!(map.line(1 << 11, 1), is(36));
        assert_eq!(map.line(5 << 11 | 3 << 8, 1), is(36), "slot 5 is like 1");
        assert_eq!(map.line(1 << 11, 2), None);
    }
}
