//! SD cards: every way to move their blocks moves the same, caches are maintained, interrupts come.

use crate::disk;
use crate::driver::sd::blocks::BLOCK_SIZE;
use crate::driver::sd::disk::SdDisk;
use crate::driver::sdhci::Method;
use crate::files::VFS;
use crate::fs::block::{
    BlockDevice, BlockError, Buffer, Completion, Durability, Operation, Refused, Request,
};
use crate::fs::vfs::LastLink;
use crate::fs::{Backing, FileKind, blocking};
use crate::selftest;
use crate::sync::{SpinLock, WaitQueue};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Bytes that begin somewhere in other memory, whose edges are not to change.
struct Shifted {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

/// What lies around a buffer.
const EDGE: u8 = 0xe7;

impl Shifted {
    fn new(shift: usize, own: &[u8]) -> Self {
        let len = own.len();
        let mut bytes = alloc::vec![EDGE; len + 8192];
        let start = bytes.as_ptr().align_offset(4096) + shift;
        bytes[start..start + len].copy_from_slice(own);
        Self { bytes, start, len }
    }
}

/// Bytes that are others for each seed, and in each place.
#[inline(never)]
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    };
    core::iter::repeat_with(&mut next).take(len).collect()
}

impl Buffer for Shifted {
    fn len(&self) -> usize {
        self.len
    }

    fn address(&self) -> *const u8 {
        self.bytes[self.start..].as_ptr()
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        let from = self.start + at;
        bytes.copy_from_slice(&self.bytes[from..from + bytes.len()]);
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let from = self.start + at;
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// The bytes; edges that were changed are a failure.
    fn into_bytes(self: Box<Self>) -> Option<Vec<u8>> {
        let mut bytes = self.bytes;
        let rest = bytes.split_off(self.start + self.len);
        let own = bytes.split_off(self.start);
        let is_whole = bytes.iter().chain(&rest).all(|byte| *byte == EDGE);
        is_whole.then_some(own)
    }
}

/// Does `operation` at a block, with `buffers`, and gives them back.
#[inline(never)]
fn transfer(
    device: &dyn BlockDevice,
    operation: Operation,
    block: u64,
    buffers: Vec<Box<dyn Buffer>>,
) -> Result<Vec<Box<dyn Buffer>>, BlockError> {
    let arrived = Arc::new((SpinLock::new(None::<Completion>), WaitQueue::new()));
    let place = arrived.clone();
    let mut request = Request {
        operation,
        offset: block * BLOCK_SIZE as u64,
        buffers,
        on_completion: Box::new(move |completion| {
            *place.0.lock() = Some(completion);
            place.1.wake_all();
        }),
    };
    while let Err(Refused { request: back, .. }) = device.submit(request) {
        request = back;
        device.poll();
    }
    let mut guard = arrived.0.lock();
    loop {
        if let Some(completion) = guard.take() {
            completion.result?;
            return Ok(completion.buffers);
        }
        guard = arrived.1.wait(guard);
    }
}

/// Reads into memory that lies as `parts` say (shift from a page's start, blocks), full of a pattern before.
#[inline(never)]
fn read(card: &SdDisk, block: u64, parts: &[(usize, usize)], seed: u64) -> Vec<u8> {
    let buffer = |&(shift, blocks): &(usize, usize)| {
        let before = pattern(blocks * BLOCK_SIZE, seed);
        Box::new(Shifted::new(shift, &before)) as Box<dyn Buffer>
    };
    let buffers = parts.iter().map(buffer).collect();
    let buffers = transfer(card, Operation::Read, block, buffers).expect("a read");
    let bytes = buffers.into_iter();
    bytes
        .flat_map(|buffer| buffer.into_bytes().expect("edges are as they were"))
        .collect()
}

/// Runs `f` with the card's blocks moved by `method`.
fn with_method<R>(card: &SdDisk, method: Method, f: impl FnOnce() -> R) -> R {
    let usual = card.method();
    card.set_method(method);
    let result = f();
    card.set_method(usual);
    result
}

/// Whether DMA and the processor agree on the first and the last blocks of the card, with patterns of the processor's in
/// memory before, in whole pages, in parts of cache lines, and in many pieces.
#[inline(never)]
pub(super) fn patterns_agree(card: &SdDisk) -> bool {
    const LAYOUTS: [&[(usize, usize)]; 4] = [
        &[(0, 64)],
        &[(16, 64)],
        &[(0, 8), (64, 1), (4032, 3), (8, 20), (0, 32)],
        &[(48, 1), (0, 63)],
    ];
    let last = card.properties().capacity / BLOCK_SIZE as u64 - 64;
    [0, last].iter().all(|block| {
        let expected = with_method(card, Method::Pio, || read(card, *block, &[(0, 64)], 0));
        (0..3).all(|round| {
            let mut layouts = LAYOUTS.iter();
            layouts.all(|parts| read(card, *block, parts, round + 1) == expected)
        })
    })
}

/// Interrupts that came for two transfers whose every step waits for one; `None` where it is polled.
pub(super) fn interrupts_of_two_reads(card: &SdDisk) -> Option<u64> {
    let before = card.interrupts()?;
    card.set_always_sleeps(true);
    for _ in 0..2 {
        read(card, 0, &[(0, 8)], 0);
    }
    card.set_always_sleeps(false);
    Some(card.interrupts()? - before)
}

selftest!(fn methods_agree() "SD card: DMA and the processor read the same, whatever was in memory" {
    for (name, card) in disk::cards() {
        assert!(patterns_agree(&card), "{name}, {}", card.method());
    }
});

selftest!(fn interrupts_come() "SD card: its interrupts come" {
    for (name, card) in disk::cards() {
        let came = interrupts_of_two_reads(&card).expect("it is not polled");
        // Of each: the command, its data, whether the card is ready.
        assert!(came >= 6, "{name}: {came}");
    }
});

/// What moving one block costs in maintenance, if nothing is forgotten: bytes cleaned, and invalidated.
fn maintenance(method: Method, is_read: bool) -> (u64, u64) {
    const LEN: u64 = BLOCK_SIZE as u64;
    // One descriptor, or control block, is in one line.
    let table = match method {
        Method::Pio => return (0, 0),
        Method::Sdma => 0,
        Method::Adma2 | Method::Engine => 64,
    };
    if is_read {
        (table, 2 * LEN)
    } else {
        (LEN + table, 0)
    }
}

/// Whether moving the second block costs that. It is nobody's that runs, and is written as it was.
#[inline(never)]
fn is_maintained(card: &SdDisk, method: Method, is_read: bool, shift: usize) -> bool {
    let old = read(card, 1, &[(0, 1)], 0);
    let operation = if is_read {
        Operation::Read
    } else {
        Operation::Write(Durability::Cached)
    };
    // Somebody else may use the card meanwhile.
    (0..20).any(|_| {
        let (served, before) = (card.served(), card.maintained());
        let buffer = Shifted::new(shift, &old);
        let buffers: Vec<Box<dyn Buffer>> = Vec::from([Box::new(buffer) as _]);
        let done = with_method(card, method, || transfer(card, operation, 1, buffers));
        let after = card.maintained();
        let maintained = (after.0 - before.0, after.1 - before.1);
        done.is_ok() && card.served() == served + 1 && maintained == maintenance(method, is_read)
    })
}

selftest!(fn maintenance_is_complete() "SD card: caches are maintained around every transfer" {
    for (name, card) in disk::cards() {
        let can_write = !card.properties().is_read_only;
        for method in [card.method(), Method::Pio] {
            for (shift, is_read) in [(0, true), (16, true), (0, false), (16, false)] {
                if is_read || can_write {
                    let is_right = is_maintained(&card, method, is_read, shift);
                    assert!(is_right, "{name}: {method}, shift {shift}, reading {is_read}");
                }
            }
        }
    }
});

selftest!(fn discard_spares_neighbours() "SD card: what is beside what is discarded stays" {
    const NAME: &[u8] = b"discard.tmp";
    const LEN: usize = 8 * BLOCK_SIZE;
    // A file on / lends the blocks; the card must be there, and written to.
    let Ok(root) = VFS.resolve(b"/", LastLink::Follow) else { return };
    let fs = &root.fs;
    let Some(device) = fs.device().filter(|device| device.properties().max_discard > 0) else { return };
    if device.properties().is_read_only || disk::cards().is_empty() {
        return;
    }
    let bytes = pattern(LEN, 7);
    let _ = fs.unlink(root.file, NAME);
    let file = fs.create(root.file, NAME, FileKind::File, 0o600).expect("a file");
    fs.write_at(file, 0, &bytes).expect("a write");
    fs.sync_file(file).expect("a sync");
    let extents = fs.map(file, 0, LEN as u64).expect("extents");
    let place = match extents[0].backing {
        Backing::Written(place) if extents[0].len >= LEN as u64 => place,
        _ => panic!("the file is in pieces"),
    };
    let operation = Operation::Discard { len: 2 * BLOCK_SIZE as u64 };
    let done = transfer(&*device, operation, place / BLOCK_SIZE as u64 + 3, Vec::new());
    let after = blocking::read(&*device, place, LEN);
    fs.unlink(root.file, NAME).expect("it is gone");
    assert!(done.is_ok());
    let after = after.expect("a read");
    assert!(after[..3 * BLOCK_SIZE] == bytes[..3 * BLOCK_SIZE]);
    assert!(after[5 * BLOCK_SIZE..] == bytes[5 * BLOCK_SIZE..]);
});
