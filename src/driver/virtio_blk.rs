//! virtio-blk: a disk of an emulator, with many requests in flight and completion by interrupt.
//!
//! Crate `virtio-drivers` has transports and queues; its own disk driver serves one contiguous buffer at a time, so this
//! one is ours. A request is one chain of descriptors: a header the device reads, the request's buffers, a status byte
//! the device writes. Descriptors are taken from the ring itself, never allocated: write-back runs when memory is out.
//!
//! ```text
//!  submit ---> chain in the ring, Flight in `flights[token]` ---> notify
//!                                                                   |
//!  interrupt or poll: token popped, Flight taken, lock open, request completed
//!                      '--- a durable write goes round again, as a flush
//! ```
//!
//! Source: Virtual I/O Device (VIRTIO) 1.2, section "Block Device".

use crate::arch::aarch64::{layout, timer, translate};
use crate::fs::block::{
    BlockDevice, BlockError, Durability, Operation, Properties, Refusal, Refused, Request,
    SECTOR_SIZE,
};
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::sync::SpinLock;
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// Descriptors in the ring: as many as QEMU offers by default on every transport, and enough for a 1 MiB request of
/// single frames with a quarter left.
const QUEUE_SIZE: usize = 256;

/// Buffers of one request: what QEMU takes in a chain of that ring, without header and status.
const MAX_SEGMENTS: usize = 254;

/// Bytes of one request.
const MAX_REQUEST: usize = 1 << 20;

/// How often a device is asked in one interrupt whether it has more to tell.
const ROUNDS: u32 = 100;

/// Looks at a device that owes an answer, [`WATCH_US`] apart and each [`LOOK_US`] long, before it is taken for dead.
const PATIENCE: u32 = 30;

/// How often [`VirtioBlk::watch`] is to be called.
pub const WATCH_US: u64 = 1_000_000;

/// How long one look lasts. The core is busy meanwhile: an emulator that counts instructions lets no time pass for the
/// device while the core sleeps, and the limit must not be reached in no time.
const LOOK_US: u64 = 50_000;

// Feature bits.
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const VERSION_1: u64 = 1 << 32;

// Request types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_CACHE: u32 = 4;
const DISCARD_SECTORS: u32 = 11;
const ZERO_SECTORS: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
/// Not one of the device's: what stands there before it answers.
const STATUS_NONE: u8 = 0xff;

/// Offsets in the device's configuration.
const CONFIG_CAPACITY: usize = 0;
const CONFIG_MAX_DISCARD: usize = 36;
const CONFIG_MAX_ZEROES: usize = 48;

/// DMA memory from the heap: it lies in the linear map, and virtio devices of emulators see our caches.
pub struct Memory;

// SAFETY: `dma_alloc` gives fresh, zeroed, page-aligned heap memory; the rest only computes addresses.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout has a size.
        let memory = dma_layout(pages).map(|layout| unsafe { alloc_zeroed(layout) });
        match memory.and_then(NonNull::new) {
            Some(memory) => (physical(memory), memory),
            // The crate's way to hear that there is none.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        let Some(layout) = dma_layout(pages) else {
            return -1;
        };
        // SAFETY: it came from `dma_alloc` with as many pages.
        unsafe { dealloc(memory.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        let address = crate::mm::addr::PhysAddr(address);
        let mapped = crate::arch::aarch64::kernel_map::map_device(address, size as u64);
        let mapped = mapped.expect("there are tables for a device's registers");
        NonNull::new(mapped.0 as *mut u8).expect("devices are not mapped at 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        physical(buffer.cast())
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn dma_layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

pub(super) fn physical(memory: NonNull<u8>) -> PhysAddr {
    let address = memory.as_ptr() as u64;
    if (layout::LINEAR.0..layout::LINEAR.0 + layout::LINEAR_SIZE).contains(&address) {
        return address - layout::LINEAR.0;
    }
    let physical = translate(VirtAddr(address)).expect("DMA memory is mapped");
    physical.0
}

/// What the device reads and writes beside the buffers, one for each descriptor that can begin a chain.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Head {
    kind: u32,
    reserved: u32,
    sector: u64,
    /// Of discard and write-zeroes.
    range: Sectors,
    status: u8,
}

/// What to discard or to fill with zeros.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Sectors {
    first: u64,
    count: u32,
    flags: u32,
}

/// Bytes of `kind`, `reserved` and `sector`; and of `range`.
const HEADER_SIZE: usize = 16;
const RANGE_SIZE: usize = size_of::<Sectors>();

/// A request on its way.
struct Flight {
    request: Request,
    head: usize,
    is_flushing: bool,
}

struct Ring<T> {
    transport: T,
    /// On the heap: by value, moved from one owner to the next, it would fill a kernel stack.
    queue: Box<VirtQueue<Memory, QUEUE_SIZE>>,
    flights: Box<[Option<Flight>]>,
    heads: Box<[Head]>,
    free_heads: Vec<usize>,
    chain: Chain,
    /// Requests the device has answered, and how often it was looked at in vain since.
    answered: u64,
    looks: u32,
    is_dead: bool,
}

/// A virtio disk.
pub struct VirtioBlk<T> {
    properties: Properties,
    ring: SpinLock<Ring<T>>,
}

/// Why a virtio disk cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitError {
    /// It speaks only the interface from before VIRTIO 1.0.
    Legacy,
    /// What `virtio-drivers` says of its queue or configuration.
    Device(virtio_drivers::Error),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Legacy => f.write_str(
                "it speaks only legacy virtio (QEMU: -global virtio-mmio.force-legacy=false)",
            ),
            Self::Device(error) => write!(f, "{error}"),
        }
    }
}

impl<T: Transport> VirtioBlk<T> {
    /// Takes the disk into use.
    pub fn new(mut transport: T) -> Result<Self, InitError> {
        // Acknowledge, driver, features: VIRTIO 1.2, "Device Initialization".
        transport.set_status(DeviceStatus::empty());
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let offered = transport.read_device_features();
        let features = offered & (READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES | VERSION_1);
        if features & VERSION_1 == 0 {
            transport.set_status(DeviceStatus::FAILED);
            return Err(InitError::Legacy);
        }
        transport.write_driver_features(features);
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        transport.set_status(status);
        let config = |offset| {
            transport
                .read_config_space::<u32>(offset)
                .map_err(InitError::Device)
        };
        let sectors =
            u64::from(config(CONFIG_CAPACITY)?) | u64::from(config(CONFIG_CAPACITY + 4)?) << 32;
        let most = |feature, offset| match features & feature {
            0 => Ok(0),
            _ => config(offset).map(|sectors| u64::from(sectors) * SECTOR_SIZE),
        };
        let max_discard = most(DISCARD, CONFIG_MAX_DISCARD)?;
        let max_write_zeroes = most(WRITE_ZEROES, CONFIG_MAX_ZEROES)?;
        let queue = new_queue(&mut transport).map_err(InitError::Device)?;
        transport.set_status(status | DeviceStatus::DRIVER_OK);
        let head = Head {
            kind: 0,
            reserved: 0,
            sector: 0,
            range: Sectors::default(),
            status: STATUS_NONE,
        };
        Ok(Self {
            properties: Properties {
                capacity: sectors.saturating_mul(SECTOR_SIZE),
                sector_size: SECTOR_SIZE as u32,
                max_request: MAX_REQUEST.min(MAX_SEGMENTS * PAGE_SIZE),
                is_read_only: features & READ_ONLY != 0,
                has_flush: features & FLUSH != 0,
                max_discard,
                max_write_zeroes,
            },
            ring: SpinLock::new(Ring {
                transport,
                queue,
                flights: (0..QUEUE_SIZE).map(|_| None).collect(),
                heads: alloc::vec![head; QUEUE_SIZE / 2].into_boxed_slice(),
                free_heads: (0..QUEUE_SIZE / 2).rev().collect(),
                chain: Chain::new(),
                answered: 0,
                looks: 0,
                is_dead: false,
            }),
        })
    }

    /// Completes what the device has finished; its interrupt handler.
    pub fn on_interrupt(&self) {
        // Until the device has nothing more to tell: where it sets its status while it is being told that the last one was
        // seen, its line stays up, and whoever waits for an edge (QEMU's device tree says so) never sees one again. QEMU
        // does that when a thread of its own serves the disk. A device that is gone says all ones, for ever.
        for _ in 0..ROUNDS {
            let status = self.ring.lock().transport.ack_interrupt();
            self.complete_finished();
            if status.is_empty() {
                return;
            }
        }
    }

    fn complete_finished(&self) {
        loop {
            let mut ring = self.ring.lock();
            let Some((flight, result)) = ring.take_finished() else {
                return;
            };
            let must_flush = result.is_ok()
                && !flight.is_flushing
                && self.properties.has_flush
                && flight.request.operation == Operation::Write(Durability::Durable);
            if !must_flush {
                drop(ring);
                flight.request.complete(result);
            } else if let Err(request) = ring.launch(flight.request, true) {
                drop(ring);
                let offset = request.offset;
                request.complete(Err(BlockError::Device { offset }));
            }
        }
    }

    /// Looks whether the device still answers. One that does not for `PATIENCE` looks is given up: it is reset, so
    /// that it touches no memory any more, and every request fails. To be called every [`WATCH_US`].
    pub fn watch(&self) {
        let Some(answered) = self.ring.lock().answered_if_waiting() else {
            return;
        };
        let end = timer::now() + timer::ticks_from_us(LOOK_US);
        while timer::now() < end {
            self.on_interrupt();
            if self.ring.lock().answered_if_waiting() != Some(answered) {
                return;
            }
        }
        let mut ring = self.ring.lock();
        ring.looks += 1;
        if ring.looks < PATIENCE {
            return;
        }
        ring.is_dead = true;
        ring.transport.set_status(DeviceStatus::empty());
        let lost: Vec<Flight> = ring.flights.iter_mut().filter_map(Option::take).collect();
        drop(ring);
        for flight in lost {
            let offset = flight.request.offset;
            flight
                .request
                .complete(Err(BlockError::TimedOut { offset }));
        }
    }
}

impl<T: Transport + Send> BlockDevice for VirtioBlk<T> {
    fn properties(&self) -> Properties {
        self.properties
    }

    fn submit(&self, request: Request) -> Result<(), Refused> {
        let is_too_long = request.buffers.len() > MAX_SEGMENTS
            || request.len() > MAX_REQUEST as u64 && !request.buffers.is_empty();
        let checked = request.check(&self.properties);
        let checked = checked.and(if is_too_long {
            Err(BlockError::Unsupported)
        } else {
            Ok(())
        });
        if let Err(error) = checked {
            let reason = Refusal::Invalid(error);
            return Err(Refused { request, reason });
        }
        // Nothing to do, and a chain without buffers would be no request.
        let is_flush = request.operation == Operation::Flush;
        if request.is_empty() && !is_flush || is_flush && !self.properties.has_flush {
            request.complete(Ok(()));
            return Ok(());
        }
        let mut ring = self.ring.lock();
        if ring.is_dead {
            let reason = Refusal::Invalid(BlockError::Removed);
            return Err(Refused { request, reason });
        }
        ring.launch(request, is_flush).map_err(|request| Refused {
            request,
            reason: Refusal::QueueFull,
        })
    }

    fn poll(&self) {
        self.complete_finished();
    }
}

/// Never inlined, so that its frame is gone before the next begins.
#[inline(never)]
fn new_queue(
    transport: &mut impl Transport,
) -> virtio_drivers::Result<Box<VirtQueue<Memory, QUEUE_SIZE>>> {
    VirtQueue::new(transport, 0, false, false).map(Box::new)
}

impl<T: Transport> Ring<T> {
    /// Puts the request into the ring, or gives it back where there is no room.
    fn launch(&mut self, request: Request, is_flushing: bool) -> Result<(), Request> {
        let Some(head) = self.free_heads.pop() else {
            return Err(request);
        };
        let sector = request.offset / SECTOR_SIZE;
        // No more than the device's own limit, which has 32 bits.
        let sectors = |len: u64| Sectors {
            first: sector,
            count: (len / SECTOR_SIZE) as u32,
            flags: 0,
        };
        let (kind, range) = match request.operation {
            _ if is_flushing => (FLUSH_CACHE, Sectors::default()),
            Operation::Read => (IN, Sectors::default()),
            Operation::Write(_) => (OUT, Sectors::default()),
            Operation::Flush => (FLUSH_CACHE, Sectors::default()),
            Operation::Discard { len } => (DISCARD_SECTORS, sectors(len)),
            Operation::WriteZeroes { len } => (ZERO_SECTORS, sectors(len)),
        };
        let has_sector = kind == IN || kind == OUT;
        self.heads[head] = Head {
            kind,
            reserved: 0,
            sector: if has_sector { sector } else { 0 },
            range,
            status: STATUS_NONE,
        };
        let flight = Flight {
            request,
            head,
            is_flushing,
        };
        self.chain.fill(&mut self.heads[head], &flight);
        // SAFETY: just filled; head and buffers stay where they are, untouched, until the token is popped: the flight
        // owns them.
        let added = unsafe {
            let (inputs, outputs) = self.chain.parts();
            self.queue.add(inputs, outputs)
        };
        match added {
            Ok(token) => {
                self.flights[usize::from(token)] = Some(flight);
                // What was added is seen before it is asked whether the device wants to hear of it: virtio 1.2, 2.7.13.4.1.
                fence(Ordering::SeqCst);
                if self.queue.should_notify() {
                    self.transport.notify(0);
                }
                Ok(())
            }
            // The only error of a chain that is neither empty nor too long.
            Err(_) => {
                self.free_heads.push(head);
                Err(flight.request)
            }
        }
    }

    /// How many requests were answered, if another is waited for.
    fn answered_if_waiting(&self) -> Option<u64> {
        let is_waiting = !self.is_dead && self.flights.iter().any(Option::is_some);
        is_waiting.then_some(self.answered)
    }

    fn take_finished(&mut self) -> Option<(Flight, Result<(), BlockError>)> {
        if self.is_dead {
            // What it still owes has failed.
            let flight = self.flights.iter_mut().find_map(Option::take)?;
            let offset = flight.request.offset;
            return Some((flight, Err(BlockError::Device { offset })));
        }
        // Up to where answers were taken, which says from where on the device interrupts, is seen before it is looked for
        // one more: virtio 1.2, 2.7.14.
        fence(Ordering::SeqCst);
        let token = self.queue.peek_used()?;
        // A token the device made up belongs to no flight; then nothing it says can be believed.
        let Some(flight) = self
            .flights
            .get_mut(usize::from(token))
            .and_then(Option::take)
        else {
            log::error!("virtio disk: completion {token} of no request; the disk is given up");
            self.is_dead = true;
            self.transport.set_status(DeviceStatus::empty());
            return self.take_finished();
        };
        self.chain.fill(&mut self.heads[flight.head], &flight);
        // SAFETY: just filled, from the same head and buffers as when the chain was added.
        let popped = unsafe {
            let (inputs, outputs) = self.chain.parts();
            self.queue.pop_used(token, inputs, outputs)
        };
        self.free_heads.push(flight.head);
        self.answered += 1;
        self.looks = 0;
        // SAFETY: the device has written it; volatile, since the compiler does not know.
        let status = unsafe { (&raw const self.heads[flight.head].status).read_volatile() };
        let offset = flight.request.offset;
        let result = match (popped, status) {
            (Ok(_), STATUS_OK) => Ok(()),
            (Ok(_), STATUS_UNSUPPORTED) => Err(BlockError::Unsupported),
            _ => Err(BlockError::Device { offset }),
        };
        Some((flight, result))
    }
}

/// Room for the parts of one chain; in the ring, since a handler's stack is small.
struct Chain {
    parts: Box<[NonNull<[u8]>]>,
    /// How many the device reads, which come first, and how many it writes.
    read: usize,
    written: usize,
}

// SAFETY: the pointers mean something only while `fill` and what follows it run, with the ring locked.
unsafe impl Send for Chain {}

impl Chain {
    fn new() -> Self {
        let nothing = NonNull::slice_from_raw_parts(NonNull::dangling(), 0);
        Self {
            parts: alloc::vec![nothing; MAX_SEGMENTS + 2].into_boxed_slice(),
            read: 0,
            written: 0,
        }
    }

    fn push(&mut self, address: *const u8, len: usize) {
        // Nothing that is transferred lies at address 0.
        if let Some(address) = NonNull::new(address.cast_mut()) {
            self.parts[self.read + self.written] = NonNull::slice_from_raw_parts(address, len);
        }
    }

    fn push_read(&mut self, address: *const u8, len: usize) {
        self.push(address, len);
        self.read += 1;
    }

    fn push_written(&mut self, address: *const u8, len: usize) {
        self.push(address, len);
        self.written += 1;
    }

    /// Header, the request's buffers, status.
    fn fill(&mut self, head: &mut Head, flight: &Flight) {
        (self.read, self.written) = (0, 0);
        let buffers = flight.request.buffers.iter().filter(|b| !b.is_empty());
        self.push_read((&raw const *head).cast(), HEADER_SIZE);
        match flight.request.operation {
            _ if flight.is_flushing => {}
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                self.push_read((&raw const head.range).cast(), RANGE_SIZE);
            }
            Operation::Flush => {}
            Operation::Read => buffers.for_each(|b| self.push_written(b.address(), b.len())),
            Operation::Write(_) => buffers.for_each(|b| self.push_read(b.address(), b.len())),
        }
        self.push_written(&raw const head.status, 1);
    }

    /// The chain as the queue wants it.
    ///
    /// # Safety
    /// It was filled, and what it was filled from is still there and nobody else's.
    unsafe fn parts(&mut self) -> (&[&[u8]], &mut [&mut [u8]]) {
        let (read, written) = self.parts[..self.read + self.written].split_at_mut(self.read);
        // SAFETY: a `NonNull<[u8]>` is laid out as a reference is, and points to memory that lives long enough.
        unsafe {
            (
                slice::from_raw_parts(read.as_ptr().cast(), read.len()),
                slice::from_raw_parts_mut(written.as_mut_ptr().cast(), written.len()),
            )
        }
    }
}
