//! What `selftest` says first of a Raspberry Pi, or of any machine with an SD card: one screen that shows where a real
//! board differs from an emulator, and one line to paste into a report.

use super::sd;
use crate::arch::aarch64::{kernel_map, timer};
use crate::driver::mailbox::Mailbox;
use crate::driver::sd::disk::SdDisk;
use crate::driver::throttling::Throttling;
use crate::files::VFS;
use crate::fs::block::BlockDevice;
use crate::fs::blocking;
use crate::fs::vfs::LastLink;
use crate::fs::{Backing, FileKind, FsError};
use crate::mm::addr::VirtAddr;
use crate::{disk, kernel, println, selftest, thread};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

const MIB: usize = 1 << 20;

/// The most that is written to the scratch file, and after how long no more is.
const SPAN: u64 = 16 << 20;
const ENOUGH_US: u64 = 1_000_000;

/// The scratch file, in the root directory.
const NAME: &[u8] = b"selftest.tmp";

/// What belongs in every report.
pub(super) struct Summary(String);

impl Summary {
    /// One line, with the suite's result.
    pub(super) fn print(&self, passed: usize, failed: usize) {
        println!("# report: {}; {passed} passed, {failed} failed", self.0);
    }
}

/// Says what there is to say; `None` where the machine is neither a Pi, nor has a card.
pub(super) fn report() -> Option<Summary> {
    let (board, cards) = (kernel::board(), disk::cards());
    if board.raspberry_pi.is_none() && cards.is_empty() {
        return None;
    }
    let revision = kernel::mailbox().and_then(|mailbox| mailbox.lock().board_revision().ok());
    let machine = alloc::format!(
        "Pinfold {} on {}{}, {} MiB, EL{}",
        env!("CARGO_PKG_VERSION"),
        board.model,
        revision.map_or(String::new(), |revision| alloc::format!(
            " (revision {revision:#x})"
        )),
        board.ram.bytes() >> 20,
        kernel::entry_level(),
    );
    println!("# {machine}");
    if let Some(mailbox) = kernel::mailbox() {
        println!("# {}", chip(&mut mailbox.lock()));
    }
    let mut parts = Vec::from([machine]);
    for (name, card) in &cards {
        let mib = card.properties().capacity >> 20;
        let state = alloc::format!("{name}: {mib} MiB, {}", card.state());
        println!("# {state}");
        parts.push(state);
        println!("# {name}: {}", health(card));
    }
    let speed = match scratch() {
        Ok(speed) => alloc::format!("{speed}"),
        Err(why) => alloc::format!("speed not measured: {why}"),
    };
    println!("# {speed}");
    parts.push(speed);
    if let Some(percent) = timer_error() {
        println!("# timer: {percent} % off the system timer");
    }
    Some(Summary(parts.join("; ")))
}

/// What the VideoCore says of the chip.
#[inline(never)]
fn chip(mailbox: &mut Mailbox) -> String {
    let temperature = mailbox.temperature().map_or_else(
        |error| alloc::format!("temperature: {error}"),
        |millidegrees| alloc::format!("{} C", millidegrees / 1000),
    );
    let throttling = mailbox.throttled().map(Throttling).map_or_else(
        |error| alloc::format!("{error}"),
        |state| alloc::format!("{state}"),
    );
    alloc::format!("{temperature}, throttled: {throttling}")
}

/// Interrupts and caches.
#[inline(never)]
fn health(card: &SdDisk) -> String {
    let interrupts = match sd::interrupts_of_two_reads(card) {
        Some(count) if count > 0 => "interrupts come",
        Some(_) => "INTERRUPTS DO NOT COME",
        None => "no interrupts: polled",
    };
    let patterns = if sd::patterns_agree(card) {
        "patterns through DMA and processor agree"
    } else {
        "PATTERNS THROUGH DMA AND PROCESSOR DIFFER"
    };
    alloc::format!("{interrupts}, {patterns}")
}

/// How fast a scratch file was written and read.
struct Speed {
    bytes: u64,
    write_ns: u64,
    read_ns: u64,
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |ns: u64| {
            let tenths = u128::from(self.bytes) * 10_000 / u128::from(ns.max(1));
            (tenths / 10, tenths % 10)
        };
        let (write, read) = (rate(self.write_ns), rate(self.read_ns));
        write!(
            f,
            "written at {}.{} MB/s, read at {}.{} MB/s ({} MiB on /)",
            write.0,
            write.1,
            read.0,
            read.1,
            self.bytes >> 20
        )
    }
}

/// Writes and reads a file in the root directory, past the page cache on the way back; it is gone afterwards.
fn scratch() -> Result<Speed, &'static str> {
    let failed = |_: FsError| "the file system fails";
    let root = VFS
        .resolve(b"/", LastLink::Follow)
        .map_err(|_| "nothing is mounted")?;
    let fs = &root.fs;
    let device = fs.device().ok_or("no such disk on /")?;
    if device.properties().is_read_only {
        return Err("the disk is read-only");
    }
    let free = fs.statistics().map_err(failed)?;
    let free = free.available_blocks * u64::from(free.block_size);
    let span = SPAN.min(free / 2) / MIB as u64 * MIB as u64;
    if span == 0 {
        return Err("no room for 1 MiB on /");
    }
    // Left behind by a machine that was cut short.
    let _ = fs.unlink(root.file, NAME);
    let file = fs
        .create(root.file, NAME, FileKind::File, 0o600)
        .map_err(|_| "/ cannot be written to")?;
    let piece = |offset: u64| sd::pattern(MIB, offset);
    let measure = || {
        let mut bytes = 0;
        let mut write_ns = 0;
        while bytes < span && write_ns < ENOUGH_US * 1000 {
            let part = piece(bytes);
            let start = timer::now();
            fs.write_at(file, bytes, &part).map_err(failed)?;
            fs.sync_file(file).map_err(failed)?;
            write_ns += timer::ns_from_ticks(timer::now() - start);
            bytes += MIB as u64;
        }
        let mut read_ns = 0;
        let mut expected = Vec::new();
        for extent in fs.map(file, 0, bytes).map_err(failed)? {
            let Backing::Written(place) = extent.backing else {
                return Err("the file has a hole");
            };
            let mut at = 0;
            while at < extent.len {
                let offset = extent.offset + at;
                let within = offset % MIB as u64;
                let len = (MIB as u64 - within)
                    .min(extent.len - at)
                    .min(bytes - offset);
                let start = timer::now();
                let part = blocking::read(&*device, place + at, len as usize);
                read_ns += timer::ns_from_ticks(timer::now() - start);
                if within == 0 || expected.is_empty() {
                    expected = piece(offset - within);
                }
                let wanted = &expected[within as usize..(within + len) as usize];
                if part.map_err(|_| "the disk fails")? != wanted {
                    return Err("THE FILE IS NOT READ AS IT WAS WRITTEN");
                }
                at += len;
            }
        }
        Ok(Speed {
            bytes,
            write_ns,
            read_ns,
        })
    };
    let result = measure();
    fs.unlink(root.file, NAME).map_err(failed)?;
    result
}

/// How much faster our timer is than the Pi's system timer, which counts microseconds: hundredths of a percent.
struct Percent(i64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let hundredths = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

fn timer_error() -> Option<Percent> {
    const COUNTER_LOW: u64 = 0x04;
    const SPAN_US: u64 = 100_000;
    let base = kernel::board().raspberry_pi?.system_timer?;
    let VirtAddr(base) = kernel_map::map_device(base, 0x20).ok()?;
    // SAFETY: the system timer's counter, just mapped; reading it changes nothing.
    let counter = || unsafe { ((base + COUNTER_LOW) as *const u32).read_volatile() };
    // Of several, the two that were read closest together: an emulator may be kept from running in between.
    let both = || {
        let pairs = (0..50).map(|_| {
            let (before, theirs) = (timer::now(), counter());
            (timer::now() - before, before, theirs)
        });
        let (_, ours, theirs) = pairs.min().unwrap_or_default();
        (ours, theirs)
    };
    let start = both();
    thread::sleep(SPAN_US);
    let end = both();
    let ours = timer::ns_from_ticks(end.0 - start.0) as i64;
    let theirs = i64::from(end.1.wrapping_sub(start.1)) * 1000;
    Some(Percent((ours - theirs) * 10_000 / theirs.max(1)))
}

selftest!(fn timers_agree() "timer: it runs as fast as a Raspberry Pi's system timer" {
    if let Some(Percent(hundredths)) = timer_error() {
        assert!(hundredths.abs() < 100, "{}", Percent(hundredths));
    }
});
