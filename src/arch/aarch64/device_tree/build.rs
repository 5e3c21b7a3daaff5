//! Writes flattened device trees, for tests.

use super::{BEGIN_NODE, END, END_NODE, HEADER_SIZE, MAGIC, NOP, PROPERTY, VERSION};
use alloc::vec::Vec;

/// A tree in the making: nodes are opened and closed, properties belong to the one opened last.
#[derive(Default)]
pub struct Builder {
    structure: Vec<u8>,
    strings: Vec<u8>,
    reservations: Vec<u8>,
    has_nops: bool,
}

impl Builder {
    /// One whose structure block has a NOP before every token, as trees that were edited in place have.
    pub fn with_nops() -> Self {
        Self {
            has_nops: true,
            ..Self::default()
        }
    }

    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    /// A token of any value.
    pub fn token(&mut self, token: u32) -> &mut Self {
        if self.has_nops && !self.structure.is_empty() {
            self.word(NOP);
        }
        self.word(token);
        self
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.structure.extend(bytes);
        let len = self.structure.len().next_multiple_of(4);
        self.structure.resize(len, 0);
    }

    /// Opens a node.
    pub fn begin(&mut self, name: &str) -> &mut Self {
        self.token(BEGIN_NODE);
        self.padded(&[name.as_bytes(), &[0]].concat());
        self
    }

    /// Closes it.
    pub fn end(&mut self) -> &mut Self {
        self.token(END_NODE)
    }

    /// A property of any bytes.
    pub fn bytes(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.token(PROPERTY);
        self.word(value.len() as u32);
        self.word(self.strings.len() as u32);
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.padded(value);
        self
    }

    /// A property that is a list of cells.
    pub fn cells(&mut self, name: &str, cells: &[u32]) -> &mut Self {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &value)
    }

    /// A property that is a string, or several with zeros between them.
    pub fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.bytes(name, &[text.as_bytes(), &[0]].concat())
    }

    /// An entry of the header's list of reserved memory.
    pub fn reserve(&mut self, start: u64, size: u64) -> &mut Self {
        self.reservations.extend(start.to_be_bytes());
        self.reservations.extend(size.to_be_bytes());
        self
    }

    /// The tree's bytes.
    pub fn finish(&mut self) -> Vec<u8> {
        self.token(END);
        let mut list = self.reservations.clone();
        list.extend([0; 16]);
        let structure_at = HEADER_SIZE + list.len();
        let strings_at = structure_at + self.structure.len();
        let size = strings_at + self.strings.len();
        let header = [
            MAGIC,
            size as u32,
            structure_at as u32,
            strings_at as u32,
            HEADER_SIZE as u32,
            VERSION,
            VERSION - 1,
            0,
            self.strings.len() as u32,
            self.structure.len() as u32,
        ];
        let header = header.iter().flat_map(|word| word.to_be_bytes());
        let mut tree: Vec<u8> = header.collect();
        tree.extend(list);
        tree.extend(&self.structure);
        tree.extend(&self.strings);
        tree
    }
}
