//! The blocks of a request, and which of them come next.

use crate::fs::block::Buffer;
use alloc::boxed::Box;

/// Bytes in a block.
pub const BLOCK_SIZE: usize = 512;

/// The buffers of a request, and how much of them is done. Each is a whole number of blocks.
pub struct Blocks<'a> {
    buffers: &'a mut [Box<dyn Buffer>],
    buffer: usize,
    at: usize,
    done: u64,
}

/// A part of a buffer that has not been moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Index of the buffer.
    pub buffer: usize,
    /// Where in the buffer.
    pub at: usize,
    /// Where in memory.
    pub address: usize,
    /// Bytes, up to the buffer's end.
    pub len: usize,
}

impl<'a> Blocks<'a> {
    /// All of them are still to be moved.
    pub fn new(buffers: &'a mut [Box<dyn Buffer>]) -> Self {
        Self {
            buffers,
            buffer: 0,
            at: 0,
            done: 0,
        }
    }

    /// Bytes that were moved.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Blocks that are left.
    pub fn left(&self) -> u64 {
        let left: usize = self.parts().map(|part| part.len).sum();
        (left / BLOCK_SIZE) as u64
    }

    /// What is left, buffer by buffer.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let rest = self.buffers.iter().enumerate().skip(self.buffer);
        rest.filter_map(|(buffer, memory)| {
            let at = if buffer == self.buffer { self.at } else { 0 };
            let len = memory.len().checked_sub(at).filter(|len| *len > 0)?;
            Some(Part {
                buffer,
                at,
                address: memory.address() as usize + at,
                len,
            })
        })
    }

    /// The next `count` blocks are done.
    pub fn advance(&mut self, count: u64) {
        let mut left = count as usize * BLOCK_SIZE;
        self.done += left as u64;
        while let Some(buffer) = self.buffers.get(self.buffer)
            && left > 0
        {
            let step = left.min(buffer.len() - self.at);
            self.at += step;
            left -= step;
            if self.at == buffer.len() {
                self.buffer += 1;
                self.at = 0;
            }
        }
    }

    /// A buffer by its index.
    pub fn buffer(&mut self, index: usize) -> &mut dyn Buffer {
        self.buffers[index].as_mut()
    }

    /// Hands the next blocks, one after the other, to `f` with their places.
    pub fn each<E>(
        &mut self,
        count: u64,
        mut f: impl FnMut(&mut dyn Buffer, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        for _ in 0..count {
            let Some(Part { buffer, at, .. }) = self.parts().next() else {
                break;
            };
            f(self.buffer(buffer), at)?;
            self.advance(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_SIZE, Blocks};
    use crate::fs::block::Buffer;
    use alloc::boxed::Box;
    use alloc::vec::Vec;

    fn buffers(blocks: &[usize]) -> Vec<Box<dyn Buffer>> {
        let buffer = |n: &usize| Box::new(alloc::vec![0u8; n * BLOCK_SIZE]) as Box<dyn Buffer>;
        blocks.iter().map(buffer).collect()
    }

    #[test]
    fn every_block_comes_once_and_in_order() {
        let mut memory = buffers(&[1, 0, 3, 2]);
        let mut blocks = Blocks::new(&mut memory);
        assert_eq!(blocks.left(), 6);
        let mut number = 0u8;
        let all: Result<(), ()> = blocks.each(9, |buffer, at| {
            number += 1;
            buffer.copy_in(at, &[number; BLOCK_SIZE]);
            Ok(())
        });
        assert_eq!(
            (all, number, blocks.left(), blocks.done()),
            (Ok(()), 6, 0, 6 * 512)
        );
        let bytes: Vec<u8> = memory
            .into_iter()
            .flat_map(|b| b.into_bytes().unwrap())
            .step_by(BLOCK_SIZE)
            .collect();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_left_begins_in_the_middle_of_a_buffer() {
        let mut memory = buffers(&[2, 3]);
        let start = memory[1].address() as usize;
        let mut blocks = Blocks::new(&mut memory);
        blocks.advance(3);
        let parts: Vec<_> = blocks.parts().collect();
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].buffer, parts[0].at, parts[0].len), (1, 512, 1024));
        assert_eq!(parts[0].address, start + 512);
    }
}
