//! What a node's properties mean, and how a bus turns its children's addresses into ours.
//!
//! Source: Devicetree Specification v0.4, chapter 2, "The Devicetree".

use super::{double_word, word};
use crate::mm::addr::PhysAddr;
use fdt::node::FdtNode;

/// A node, and what its properties say when asked.
#[derive(Clone, Copy)]
pub struct Node<'b, 't> {
    /// With unit address: `memory@0`.
    pub name: &'t str,
    node: FdtNode<'b, 't>,
}

impl<'b, 't> Node<'b, 't> {
    pub(super) fn new(node: FdtNode<'b, 't>) -> Self {
        let name = node.name;
        Self { name, node }
    }

    /// The nodes in it.
    pub fn children(&self) -> impl Iterator<Item = Self> + use<'b, 't> {
        self.node.children().map(Self::new)
    }

    /// The value of a property; empty where there is none.
    pub fn value(&self, name: &str) -> &'t [u8] {
        self.node
            .property(name)
            .map_or(&[], |property| property.value)
    }

    /// The first of the strings in a property; empty where there is none that is text.
    pub fn text(&self, name: &str) -> &'t str {
        text(self.value(name))
    }

    /// The first cell of a property.
    pub fn cell(&self, name: &str) -> Option<u32> {
        word(self.value(name), 0)
    }

    /// The first `N` cells of a property.
    pub fn cells<const N: usize>(&self, name: &str) -> Option<[u32; N]> {
        let value = self.value(name);
        let mut cells = [0; N];
        for (i, cell) in cells.iter_mut().enumerate() {
            *cell = word(value, 4 * i)?;
        }
        Some(cells)
    }

    /// The number that a property is, in as many cells as it has.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.value(name);
        number(value, 0, value.len() / 4).filter(|_| !value.is_empty())
    }

    /// What it is, or can stand for: the strings of `compatible`, the most special first.
    pub fn names(&self) -> impl Iterator<Item = &'t [u8]> + use<'t> {
        self.value("compatible").split(|byte| *byte == 0)
    }

    /// Whether `status` lets us use it.
    pub fn is_on(&self) -> bool {
        let status = self.node.property("status");
        status.is_none_or(|status| is_okay(status.value))
    }

    /// Cells of its children's addresses, and of the unit address in an `interrupt-map` that points here.
    pub fn address_cells(&self) -> usize {
        self.cell("#address-cells")
            .map_or(Cells::DEFAULT.address, |cells| cells as usize)
    }

    fn size_cells(&self) -> usize {
        self.cell("#size-cells")
            .map_or(Cells::DEFAULT.size, |cells| cells as usize)
    }
}

#[derive(Clone, Copy)]
struct Cells {
    address: usize,
    size: usize,
}

impl Cells {
    const DEFAULT: Self = Self {
        address: 2,
        size: 1,
    };
}

/// The first of the strings in a value; the last one may lack its zero.
fn text(value: &[u8]) -> &str {
    let first = value.split(|byte| *byte == 0).next().unwrap_or_default();
    // Where firmware's bytes are no text, what comes before them is.
    core::str::from_utf8(first).unwrap_or_else(|error| {
        core::str::from_utf8(&first[..error.valid_up_to()]).unwrap_or_default()
    })
}

fn is_okay(status: &[u8]) -> bool {
    matches!(text(status), "okay" | "ok")
}

/// The number in `cells` cells from cell `at` on; the lower 64 bits of those that have more.
fn number(value: &[u8], at: usize, cells: usize) -> Option<u64> {
    match cells {
        0 => Some(0),
        1 => Some(u64::from(word(value, 4 * at)?)),
        _ => double_word(value, 4 * (at + cells - 2)),
    }
}

/// Memory as a device sees it: addresses from `bus` on are ours from `physical` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The device's address.
    pub bus: u64,
    /// Ours.
    pub physical: PhysAddr,
    /// Bytes.
    pub size: u64,
}

impl Window {
    /// Out of reach.
    const NOTHING: Self = Self {
        bus: 0,
        physical: PhysAddr(0),
        size: 0,
    };

    /// This window, whose addresses are such as `above` turns into ours; `None` where it does not begin within that.
    fn through(self, above: Self) -> Option<Self> {
        let offset = self.physical.0.checked_sub(above.bus)?;
        let room = above.size.checked_sub(offset).filter(|room| *room > 0)?;
        Some(Self {
            bus: self.bus,
            physical: above.physical.checked_add(offset)?,
            size: self.size.min(room),
        })
    }
}

/// A node whose children have addresses, and what the children have from it.
pub struct Bus<'p, 't> {
    parent: Option<&'p Bus<'p, 't>>,
    ranges: Option<&'t [u8]>,
    dma_ranges: Option<&'t [u8]>,
    cells: Cells,
    /// The node's name.
    pub name: &'t str,
    /// How deep its children lie: those of the root, 1.
    pub depth: usize,
    /// Whether it, and every bus above it, is in use.
    pub is_on: bool,
    /// Of children that do not say.
    pub interrupt_parent: u32,
}

impl<'t> Bus<'_, 't> {
    /// What the root's children are on.
    pub fn root(root: &Node<'_, 't>) -> Self {
        let here = Bus {
            parent: None,
            ranges: None,
            dma_ranges: None,
            cells: Cells::DEFAULT,
            name: "",
            depth: 0,
            is_on: true,
            interrupt_parent: 0,
        };
        Bus {
            parent: None,
            ..here.inside(root)
        }
    }

    /// What the children of `node`, itself on this bus, are on.
    pub fn inside<'a>(&'a self, node: &Node<'_, 't>) -> Bus<'a, 't> {
        let mut bus = Bus {
            parent: Some(self),
            ranges: None,
            dma_ranges: None,
            cells: Cells::DEFAULT,
            name: node.name,
            depth: self.depth + 1,
            is_on: self.is_on,
            interrupt_parent: self.interrupt_parent,
        };
        for property in node.node.properties() {
            let value = property.value;
            let cell = word(value, 0);
            match (property.name, cell) {
                ("#address-cells", Some(cells)) => bus.cells.address = cells as usize,
                ("#size-cells", Some(cells)) => bus.cells.size = cells as usize,
                ("interrupt-parent", Some(phandle)) => bus.interrupt_parent = phandle,
                ("ranges", _) => bus.ranges = Some(value),
                ("dma-ranges", _) => bus.dma_ranges = Some(value),
                ("status", _) => bus.is_on &= is_okay(value),
                _ => {}
            }
        }
        bus
    }

    /// An address on this bus as the core sees it; `None` where it is no memory address.
    fn translate(&self, address: u64) -> Option<u64> {
        let Some(parent) = self.parent else {
            return Some(address);
        };
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return parent.translate(address);
        }
        let Cells {
            address: here,
            size,
        } = self.cells;
        let up = parent.cells.address;
        ranges
            .chunks_exact((4 * (here + up + size)).max(4))
            .find_map(|range| {
                let offset = address.checked_sub(number(range, 0, here)?)?;
                if offset >= number(range, here + up, size)? {
                    return None;
                }
                parent.translate(number(range, here, up)?.checked_add(offset)?)
            })
    }

    /// The entries of `reg` of a child: address as the core sees it, and size.
    pub fn registers<'a>(
        &'a self,
        node: &Node<'_, 't>,
    ) -> impl Iterator<Item = (PhysAddr, u64)> + 'a {
        let Cells { address, size } = self.cells;
        node.value("reg")
            .chunks_exact((4 * (address + size)).max(4))
            .filter_map(move |entry| {
                let start = self.translate(number(entry, 0, address)?)?;
                Some((PhysAddr(start), number(entry, address, size)?))
            })
    }

    /// The memory that masters among the children reach, where it is not all memory as it is: the first window of
    /// `dma-ranges`, as far as it is in that of the bus above.
    pub fn dma_window(&self) -> Option<Window> {
        let parent = self.parent?;
        let above = parent.dma_window();
        let (here, up) = (self.cells.address, parent.cells.address);
        // Without a value, or without the property, the bus has the addresses of the one above.
        let Some(range) = self.dma_ranges.filter(|range| !range.is_empty()) else {
            return above;
        };
        let window = || {
            let window = Window {
                bus: number(range, 0, here)?,
                physical: PhysAddr(number(range, here, up)?),
                size: number(range, here + up, self.cells.size)?,
            };
            match above {
                Some(above) => window.through(above),
                None => Some(window),
            }
        };
        // What cannot be understood must not be taken for all memory.
        Some(window().unwrap_or(Window::NOTHING))
    }

    /// What a PCI host that is on this bus lets the core reach: kind of space (PCI Bus Binding, `phys.hi` bits 24 and
    /// 25) and window.
    pub fn pci_windows<'a>(
        &'a self,
        host: &Node<'_, 't>,
    ) -> impl Iterator<Item = (u32, Window)> + 'a {
        const PCI_CELLS: usize = 3;
        let up = self.cells.address;
        let size = host.size_cells();
        host.value("ranges")
            .chunks_exact(4 * (PCI_CELLS + up + size))
            .filter_map(move |range| {
                let window = Window {
                    bus: number(range, 1, 2)?,
                    physical: PhysAddr(self.translate(number(range, PCI_CELLS, up)?)?),
                    size: number(range, PCI_CELLS + up, size)?,
                };
                Some((word(range, 0)? >> 24 & 0b11, window))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn of_bytes_that_are_no_text_the_beginning_is_kept() {
        assert_eq!(text(b"log=debug \xff ls\0rest"), "log=debug ");
        assert_eq!(text(b"\xc3"), "");
        assert_eq!(text("größe\0".as_bytes()), "größe");
    }
}
