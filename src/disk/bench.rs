//! How fast the first disk is by itself, and files on it through the file system.
//!
//! Rows of `mmapbench`'s section `raw`; a file written, read from the disk and read from the page cache, 1 MiB at a time;
//! and what the device takes and gives of the same file directly.

use super::list;
use crate::arch::aarch64::{pmu, timer};
use crate::bench::{BENCHES, Bench, REPETITIONS};
use crate::files::VFS;
use crate::fs::block::{BlockDevice, Buffer, Completion, Durability, Operation, Refused, Request};
use crate::fs::blocking;
use crate::fs::vfs::LastLink;
use crate::fs::{Backing, FileKind, FsError};
use crate::mm::CACHE;
use crate::println;
use crate::sync::{SpinLock, WaitQueue};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use linkme::distributed_slice;

#[distributed_slice(BENCHES)]
static RAW: Bench = Bench {
    name: "raw",
    run: raw,
};

#[distributed_slice(BENCHES)]
static FILE: Bench = Bench {
    name: "file",
    run: file,
};

const MIB: usize = 1 << 20;

/// Bytes read from the start of the disk, and written to a file.
const SPAN: u64 = 256 << 20;

/// Median of some spans of time, in nanoseconds.
fn median_ns(f: impl FnMut() -> Result<(), &'static str>) -> Result<u64, &'static str> {
    median_ns_after(|| {}, f)
}

/// The same, with something to be done before each, which does not count.
fn median_ns_after(
    mut before: impl FnMut(),
    mut f: impl FnMut() -> Result<(), &'static str>,
) -> Result<u64, &'static str> {
    let mut spans = Vec::new();
    for _ in 0..REPETITIONS {
        before();
        let start = timer::now();
        pmu::mark_begin();
        let result = f();
        pmu::mark_end();
        result?;
        spans.push(timer::ns_from_ticks(timer::now() - start).max(1));
    }
    spans.sort_unstable();
    Ok(spans[REPETITIONS / 2])
}

fn print_rate(name: &str, bytes: u64, ns: u64) {
    let tenths = u128::from(bytes) * 10_000 / u128::from(ns);
    println!("{name} {}.{} MB/s", tenths / 10, tenths % 10);
}

/// Reads into the same memory again and again.
struct Reader {
    device: Arc<dyn BlockDevice>,
    buffers: Vec<Box<dyn Buffer>>,
}

impl Reader {
    fn new(device: Arc<dyn BlockDevice>, len: usize) -> Self {
        let buffer: Box<dyn Buffer> = Box::new(alloc::vec![0u8; len]);
        Self {
            device,
            buffers: Vec::from([buffer]),
        }
    }

    fn read(&mut self, offset: u64) -> Result<(), &'static str> {
        let arrived = Arc::new((SpinLock::new(None::<Completion>), WaitQueue::new()));
        let place = arrived.clone();
        let request = Request {
            operation: Operation::Read,
            offset,
            buffers: core::mem::take(&mut self.buffers),
            on_completion: Box::new(move |completion| {
                *place.0.lock() = Some(completion);
                place.1.wake_all();
            }),
        };
        if let Err(Refused { request, .. }) = self.device.submit(request) {
            self.buffers = request.buffers;
            return Err("the disk refuses a request");
        }
        let mut guard = arrived.0.lock();
        loop {
            if let Some(completion) = guard.take() {
                self.buffers = completion.buffers;
                return completion.result.map_err(|_| "the disk fails");
            }
            guard = arrived.1.wait(guard);
        }
    }
}

fn raw() -> Result<(), &'static str> {
    let Some(disk) = list().into_iter().next() else {
        println!("# there is no disk");
        return Ok(());
    };
    let span = SPAN.min(disk.device.properties().capacity) / MIB as u64 * MIB as u64;
    if span == 0 {
        return Err("the disk is smaller than 1 MiB");
    }
    // A request is at most as long as the disk takes it.
    for (name, len, span) in [
        ("raw_seq_direct_1024k", MIB, span),
        ("raw_seq_direct_128k", 128 << 10, span),
        ("raw_seq_direct_64k", 64 << 10, span),
        ("raw_seq_direct_4k", 4 << 10, span / 8),
    ] {
        let len = len.min(disk.device.properties().max_request);
        let mut reader = Reader::new(disk.device.clone(), len);
        let requests = span / len as u64;
        let ns = median_ns(|| (0..requests).try_for_each(|i| reader.read(i * len as u64)))?;
        print_rate(name, requests * len as u64, ns);
    }
    const RANDOM_READS: u64 = 4096;
    let mut reader = Reader::new(disk.device.clone(), 4096);
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let ns = median_ns(|| {
        (0..RANDOM_READS).try_for_each(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            reader.read(state % (span / 4096) * 4096)
        })
    })?;
    let hundredths = ns / 10 / RANDOM_READS;
    println!(
        "raw_rand_direct_4k {}.{:02} us",
        hundredths / 100,
        hundredths % 100
    );
    Ok(())
}

fn file() -> Result<(), &'static str> {
    const NAME: &[u8] = b"bench.tmp";
    let Ok(root) = VFS.resolve(b"/", LastLink::Follow) else {
        println!("# nothing is mounted");
        return Ok(());
    };
    let fs = &root.fs;
    let free = fs.statistics().map_err(|_| "the file system fails")?;
    let free = free.available_blocks * u64::from(free.block_size);
    let span = SPAN.min(free / 2) / MIB as u64 * MIB as u64;
    if span == 0 {
        return Err("the file system has no room for a file of 1 MiB");
    }
    let failed = |_: FsError| "the file system fails";
    let file = fs
        .create(root.file, NAME, FileKind::File, 0o600)
        .map_err(|_| "/bench.tmp cannot be made")?;
    let device = fs.device().ok_or("the file system has no device")?;
    let mut bytes = alloc::vec![0x5au8; MIB];
    let mut reader = Reader::new(device.clone(), MIB);
    let mut measure = || {
        let written = median_ns(|| {
            fs.set_len(file, 0).map_err(failed)?;
            for offset in (0..span).step_by(MIB) {
                fs.write_at(file, offset, &bytes).map_err(failed)?;
            }
            fs.sync_file(file).map_err(failed)
        })?;
        print_rate("file_write", span, written);
        // What the device takes, in the same place: whole extents, without file system or cache.
        let extents = fs.map(file, 0, span).map_err(failed)?;
        let direct = median_ns(|| {
            for extent in &extents {
                let Backing::Written(place) = extent.backing else {
                    return Err("the file has a hole");
                };
                for at in (0..extent.len).step_by(MIB) {
                    let len = (extent.len - at).min(MIB as u64) as usize;
                    let piece = bytes[..len].to_vec();
                    blocking::write(&*device, place + at, piece, Durability::Cached)
                        .map_err(|_| "the disk fails")?;
                }
            }
            blocking::flush(&*device).map_err(|_| "the disk fails")
        })?;
        print_rate("file_write_direct_1024k", span, direct);
        let mut read = || {
            for offset in (0..span).step_by(MIB) {
                if fs.read_at(file, offset, &mut bytes).map_err(failed)? != MIB {
                    return Err("a read is short");
                }
            }
            Ok(())
        };
        let cold = median_ns_after(|| CACHE.drop_clean(), &mut read)?;
        let cached = median_ns(&mut read)?;
        print_rate("file_read_cold", span, cold);
        let mut bytes_read = 0;
        let direct = median_ns(|| {
            bytes_read = 0;
            for extent in &extents {
                let Backing::Written(place) = extent.backing else {
                    return Err("the file has a hole");
                };
                // The rest of an extent is too short for the reader.
                for at in (0..extent.len / MIB as u64).map(|i| i * MIB as u64) {
                    reader.read(place + at)?;
                    bytes_read += MIB as u64;
                }
            }
            Ok(())
        })?;
        print_rate("file_read_direct_1024k", bytes_read, direct);
        print_rate("file_read", span, cached);
        Ok(())
    };
    let result = measure();
    result.and(fs.unlink(root.file, NAME).map(drop).map_err(failed))
}
