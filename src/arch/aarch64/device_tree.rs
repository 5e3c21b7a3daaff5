//! Makes sure of a flattened device tree before anything reads it.
//!
//! Crate `fdt` (0.1.5) expects a well-formed tree without NOP tokens and panics on others; QEMU puts NOPs where it takes
//! nodes out. [`Tree::new`] walks the whole tree once, refuses what cannot be with a [`TreeError`] that names the offset,
//! and takes the NOPs out. What it lets pass, `fdt` reads without a panic, as far as [`node`] uses it: nodes, their
//! children and properties. [`node`] gives the properties their meaning.
//!
//! Source: Devicetree Specification v0.4, chapter 5, "Flattened Devicetree (DTB) Format".

pub mod node;

#[cfg(test)]
pub mod build;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;
use fdt::Fdt;
use node::Node;

const MAGIC: u32 = 0xd00d_feed;
const HEADER_SIZE: usize = 40;
const VERSION: u32 = 17;

/// No real tree has nodes in nodes to this depth.
const MAX_DEPTH: usize = 16;

/// Cells that children's addresses, sizes or interrupts have.
const MAX_CELLS: u32 = 4;

/// Trees are tens of kilobytes; QEMU pads to 1 MiB. More is taken for damage.
pub const MAX_SIZE: usize = 2 << 20;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// What is wrong with a tree. Offsets are in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TreeError {
    /// It does not begin with 0xd00dfeed but with this.
    Magic(u32),
    /// A version this code does not know.
    Version(u32),
    /// It says it is this long, which is shorter than a header, longer than what there is, or beyond all measure.
    Size(u32),
    /// A block that lies outside the tree, by name.
    Block(&'static str),
    /// A token that is none, or is in the wrong place.
    Token {
        /// Where.
        at: usize,
        /// What stands there.
        token: u32,
    },
    /// A name that does not end, or is not printable ASCII.
    Name {
        /// Where.
        at: usize,
    },
    /// A property that is longer than the tree, or one whose length or value does not fit its meaning.
    Property {
        /// Where.
        at: usize,
    },
    /// Nodes in nodes, deeper than any real tree.
    TooDeep {
        /// Where.
        at: usize,
    },
    /// The structure block ends within a node.
    Unfinished,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "it begins with {found:#010x}, not {MAGIC:#010x}"),
            Self::Version(version) => write!(f, "version {version} is not known"),
            Self::Size(size) => write!(f, "a size of {size} bytes cannot be"),
            Self::Block(name) => write!(f, "the {name} block lies outside the tree"),
            Self::Token { at, token } => write!(f, "token {token:#x} at offset {at:#x} cannot be"),
            Self::Name { at } => write!(f, "the name at offset {at:#x} is damaged"),
            Self::Property { at } => write!(f, "the property at offset {at:#x} is damaged"),
            Self::TooDeep { at } => write!(f, "nodes are nested too deep at offset {at:#x}"),
            Self::Unfinished => f.write_str("it ends within a node"),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn double_word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The length a tree that begins with `header` says it has.
pub fn size(header: &[u8]) -> Result<usize, TreeError> {
    let magic = word(header, 0).unwrap_or(0);
    if magic != MAGIC {
        return Err(TreeError::Magic(magic));
    }
    let size = word(header, 4).unwrap_or(0);
    if (size as usize) < HEADER_SIZE || size as usize > MAX_SIZE {
        return Err(TreeError::Size(size));
    }
    Ok(size as usize)
}

/// A tree that has been looked at from its first byte to its last.
pub struct Tree<'t> {
    nodes: Fdt<'t>,
    reservations: &'t [u8],
    used: usize,
}

impl<'t> Tree<'t> {
    /// The tree at the start of `bytes`, which lose their NOPs.
    pub fn new(bytes: &'t mut [u8]) -> Result<Self, TreeError> {
        let blocks = Blocks::of(bytes)?;
        if blocks.check(bytes)? == HasNops::Yes {
            let structure = bytes.get_mut(blocks.structure.clone());
            squeeze(structure.unwrap_or_default());
        }
        let tree = bytes.get(..blocks.size).unwrap_or_default();
        let ends = [
            blocks.structure.end,
            blocks.strings.end,
            blocks.reservations.end + RESERVATION_SIZE,
        ];
        Ok(Self {
            nodes: Fdt::new(tree).map_err(|_| TreeError::Size(blocks.size as u32))?,
            reservations: tree.get(blocks.reservations).unwrap_or_default(),
            used: ends.into_iter().max().unwrap_or(blocks.size),
        })
    }

    /// Bytes from the tree's start to the end of its last block: QEMU says 1 MiB and uses a hundredth.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Memory that the header reserves: start and size.
    pub fn reservations(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.reservations
            .chunks_exact(RESERVATION_SIZE)
            .filter_map(|entry| Some((double_word(entry, 0)?, double_word(entry, 8)?)))
    }

    /// The node that all others are in.
    pub fn root(&self) -> Option<Node<'_, 't>> {
        self.nodes.find_node("/").map(Node::new)
    }
}

/// Address and size, 64 bits each.
const RESERVATION_SIZE: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum HasNops {
    Yes,
    No,
}

/// Where in the tree its parts are: all of them inside it.
struct Blocks {
    size: usize,
    structure: Range<usize>,
    strings: Range<usize>,
    /// Without the entry of zeros that ends the list.
    reservations: Range<usize>,
}

impl Blocks {
    fn of(bytes: &[u8]) -> Result<Self, TreeError> {
        let size = size(bytes)?;
        let tree = bytes.get(..size).ok_or(TreeError::Size(size as u32))?;
        let field = |index: usize| word(tree, 4 * index).unwrap_or(0) as usize;
        let (version, compatible) = (field(5) as u32, field(6) as u32);
        if version < VERSION || compatible > VERSION {
            return Err(TreeError::Version(version));
        }
        let block = |name, start: usize, len: usize, alignment: usize| {
            let range = start..start.saturating_add(len);
            let is_inside = range.end <= size && start.is_multiple_of(alignment);
            is_inside.then_some(range).ok_or(TreeError::Block(name))
        };
        let list = block("reservation", field(4), 0, 8)?.start;
        let entries = tree
            .get(list..)
            .unwrap_or_default()
            .chunks_exact(RESERVATION_SIZE)
            .position(|entry| entry.iter().all(|byte| *byte == 0))
            .ok_or(TreeError::Block("reservation"))?;
        Ok(Self {
            size,
            structure: block("structure", field(2), field(9), 4)?,
            strings: block("strings", field(3), field(8), 1)?,
            reservations: list..list + RESERVATION_SIZE * entries,
        })
    }

    fn events<'t>(&self, tree: &'t [u8]) -> Events<'t> {
        Events {
            structure: tree.get(self.structure.clone()).unwrap_or_default(),
            structure_at: self.structure.start,
            strings: tree.get(self.strings.clone()).unwrap_or_default(),
            at: 0,
            depth: 0,
            is_after_child: false,
            has_nops: HasNops::No,
        }
    }

    /// Walks through the whole of it.
    fn check(&self, tree: &[u8]) -> Result<HasNops, TreeError> {
        let mut events = self.events(tree);
        loop {
            let at = events.here();
            match events.step()? {
                Event::Property(name, value) if is_cell_count(name) => {
                    let cells = word(value, 0).filter(|cells| *cells <= MAX_CELLS);
                    if cells.is_none() || value.len() != 4 {
                        return Err(TreeError::Property { at });
                    }
                }
                Event::End if events.depth == 0 => return events.finish(),
                _ => {}
            }
        }
    }
}

fn is_cell_count(name: &str) -> bool {
    matches!(name, "#address-cells" | "#size-cells" | "#interrupt-cells")
}

/// Moves everything but NOPs together. `structure` has been checked.
fn squeeze(structure: &mut [u8]) {
    let (mut from, mut to) = (0, 0);
    while let Some(token) = word(structure, from) {
        let operands = from + 4;
        let len = match token {
            BEGIN_NODE => string(structure, operands).map_or(0, |name| name.len() + 1),
            PROPERTY => 8 + word(structure, operands).unwrap_or(0) as usize,
            _ => 0,
        };
        let end = (operands + len).next_multiple_of(4).min(structure.len());
        if token != NOP {
            structure.copy_within(from..end, to);
            to += end - from;
        }
        from = end;
        if token == END {
            return;
        }
    }
}

/// A step through a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event<'t> {
    /// A node of this name begins; its properties come before its children.
    Begin(&'t str),
    /// A property of the node that began last.
    Property(&'t str, &'t [u8]),
    /// The node that began last and has not ended yet does.
    End,
}

/// Where one is in a tree.
struct Events<'t> {
    structure: &'t [u8],
    structure_at: usize,
    strings: &'t [u8],
    at: usize,
    depth: usize,
    /// Whether a child has ended in the node we are in: then no property may follow.
    is_after_child: bool,
    has_nops: HasNops,
}

impl<'t> Events<'t> {
    /// The next step. The root begins first; an `End` comes for each `Begin`, or an error does.
    fn step(&mut self) -> Result<Event<'t>, TreeError> {
        loop {
            let here = self.here();
            let token = self.token()?;
            match token {
                NOP => self.has_nops = HasNops::Yes,
                BEGIN_NODE if self.depth > 0 || !self.is_after_child => return self.begin(here),
                END_NODE if self.depth > 0 => {
                    self.depth -= 1;
                    self.is_after_child = true;
                    return Ok(Event::End);
                }
                PROPERTY if self.depth > 0 && !self.is_after_child => return self.property(here),
                _ => return Err(TreeError::Token { at: here, token }),
            }
        }
    }

    /// Checks that nothing follows the root; says whether there were NOPs.
    fn finish(mut self) -> Result<HasNops, TreeError> {
        loop {
            let here = self.here();
            match self.token()? {
                NOP => self.has_nops = HasNops::Yes,
                END => return Ok(self.has_nops),
                token => return Err(TreeError::Token { at: here, token }),
            }
        }
    }

    /// Offset in the tree.
    fn here(&self) -> usize {
        self.structure_at + self.at
    }

    fn token(&mut self) -> Result<u32, TreeError> {
        let token = word(self.structure, self.at).ok_or(TreeError::Unfinished)?;
        self.at += 4;
        Ok(token)
    }

    fn begin(&mut self, here: usize) -> Result<Event<'t>, TreeError> {
        if self.depth == MAX_DEPTH {
            return Err(TreeError::TooDeep { at: here });
        }
        let name = string(self.structure, self.at).ok_or(TreeError::Name { at: here })?;
        self.at += (name.len() + 1).next_multiple_of(4);
        self.depth += 1;
        self.is_after_child = false;
        Ok(Event::Begin(name))
    }

    fn property(&mut self, here: usize) -> Result<Event<'t>, TreeError> {
        let error = TreeError::Property { at: here };
        let len = word(self.structure, self.at).ok_or(error)? as usize;
        let name_at = word(self.structure, self.at + 4).ok_or(error)? as usize;
        let start = self.at + 8;
        let value = self
            .structure
            .get(start..start.saturating_add(len))
            .ok_or(error)?;
        let name = string(self.strings, name_at).ok_or(TreeError::Name { at: here })?;
        self.at = (start + len).next_multiple_of(4);
        Ok(Event::Property(name, value))
    }
}

/// The string at `at`, if it ends, and is printable ASCII.
fn string(bytes: &[u8], at: usize) -> Option<&str> {
    let bytes = bytes.get(at..)?;
    let end = bytes.iter().position(|byte| !(0x20..0x7f).contains(byte))?;
    let is_ended = bytes.get(end) == Some(&0);
    core::str::from_utf8(bytes.get(..end)?)
        .ok()
        .filter(|_| is_ended)
}
