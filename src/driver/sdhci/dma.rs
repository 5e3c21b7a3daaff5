//! Blocks by DMA: from and to the buffers of a request, without a copy where they are fit for it.
//!
//! ```text
//!  write                               read
//!  copy what must be bounced           invalidate: no dirty line may fall on what arrives
//!  clean: what we wrote is in memory   table, clean
//!  table, clean                        addresses, command, end
//!  addresses, command, end             invalidate: nothing that was loaded meanwhile is believed
//!                                      copy what was bounced
//! ```
//!
//! Each `clean` and `invalidate` ends with a `dsb`: all of it is in memory before the register is written that starts the
//! device (Arm Architecture Reference Manual, "Ordering of memory accesses to Device memory": a store to a register may
//! otherwise be seen before one to memory).

use super::Method;
use super::adma;
use super::host::{Memory, Sdhci, Shape, block_command, limit_us, max_blocks};
use super::registers::Status;
use crate::arch::aarch64::board::Window;
use crate::arch::aarch64::cache;
use crate::driver::bcm_dma::{self, Channel, DREQ_EMMC};
use crate::driver::dma::{Gathered, Limits, MAX_SEGMENTS, Segment, bus_address};
use crate::driver::sd::blocks::{BLOCK_SIZE, Blocks};
use crate::driver::sd::host::{BusError, Way};
use crate::driver::sd::register::LongRegister;
use crate::driver::virtio_blk::physical;
use crate::mm::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use alloc::alloc::{Layout, alloc_zeroed};
use core::ptr::NonNull;
use core::slice;
use tock_registers::interfaces::Writeable;

/// Bytes that can be bounced in one command.
const BOUNCE_SIZE: usize = 32 << 10;

/// Words of the table: of both kinds, the larger.
const TABLE_WORDS: usize = MAX_SEGMENTS * bcm_dma::WORDS;

/// SDMA stops at each multiple of this, and is told the next address.
const SDMA_BOUNDARY: u32 = 512 << 10;

/// The controller's data port.
const DATA_PORT: u64 = 0x20;

/// What DMA needs beside the controller.
pub(super) struct Dma {
    window: Option<Window>,
    engine: Option<Channel>,
    /// The data port, for the engine.
    port: u32,
    table: &'static mut [u32],
    table_bus: u32,
    bounce: Segment,
    gathered: Gathered,
}

impl Dma {
    /// `None` where there is no memory for table and bounces that is reached.
    pub(super) fn new(memory: Memory) -> Option<Self> {
        let (engine, window) = match memory.engine {
            Some((channel, window)) => (Some(channel), window),
            None => (None, memory.window),
        };
        let table = room(4 * TABLE_WORDS, window)?;
        let bounce = room(BOUNCE_SIZE, window)?;
        // SAFETY: zeroed memory of that size, aligned to a page, and never given back.
        let words = unsafe { slice::from_raw_parts_mut(table.address as *mut u32, TABLE_WORDS) };
        Some(Self {
            window,
            engine,
            port: bcm_dma::peripheral_address(PhysAddr(memory.base.0 + DATA_PORT)),
            table: words,
            table_bus: table.bus,
            bounce,
            gathered: Gathered::new(),
        })
    }

    pub(super) fn has_engine(&self) -> bool {
        self.engine.is_some()
    }

    /// The engine touches no memory any more.
    pub(super) fn stop_engine(&self) {
        if let Some(engine) = &self.engine {
            engine.stop();
        }
    }

    /// Collects what goes into one command; says how many blocks that is.
    fn gather(&mut self, method: Method, blocks: &Blocks<'_>) -> usize {
        let (segments, segment_len) = match method {
            Method::Adma2 => (MAX_SEGMENTS, adma::SEGMENT_LEN),
            Method::Engine => (MAX_SEGMENTS, bcm_dma::SEGMENT_LEN),
            // One run of memory; PIO has none.
            Method::Sdma | Method::Pio => (1, max_blocks() * BLOCK_SIZE),
        };
        let limits = Limits {
            segments,
            segment_len,
            blocks: max_blocks(),
        };
        let window = self.window;
        self.gathered
            .fill(blocks, limits, self.bounce, |address, len| {
                let address = NonNull::new(address as *mut u8)?;
                bus_address(window, PhysAddr(physical(address)), len as u64)
            })
    }

    /// Hands all segments to `maintain`, and says how many bytes of lines it had to do with.
    fn maintain(&self, maintain: fn(VirtAddr, u64) -> u64) -> u64 {
        let segments = self.gathered.segments.iter();
        segments
            .map(|segment| maintain(VirtAddr(segment.address as u64), segment.len as u64))
            .sum()
    }

    /// Copies what is bounced, there or back.
    fn copy(&mut self, way: Way, blocks: &mut Blocks<'_>) {
        let address = self.bounce.address as *mut u8;
        // SAFETY: the bounce memory is ours for good, and no device is at work on it.
        let bounce = unsafe { slice::from_raw_parts_mut(address, self.bounce.len) };
        for copy in &self.gathered.copies {
            let bytes = &mut bounce[copy.bounce..copy.bounce + copy.len];
            match way {
                Way::Read => blocks.buffer(copy.buffer).copy_in(copy.at, bytes),
                Way::Write => blocks.buffer(copy.buffer).copy_out(copy.at, bytes),
            }
        }
    }

    /// Writes the table for the device, and brings it to memory; says how many bytes of lines that is.
    fn describe(&mut self, method: Method, way: Way) -> u64 {
        let segments = &self.gathered.segments;
        let words = match method {
            Method::Adma2 => adma::describe(segments, self.table),
            Method::Engine => {
                let (port, bus) = (self.port, self.table_bus);
                bcm_dma::describe(segments, way, port, DREQ_EMMC, bus, self.table)
            }
            Method::Sdma | Method::Pio => return 0,
        };
        cache::clean(VirtAddr(self.table.as_ptr() as u64), 4 * words as u64)
    }
}

/// Zeroed memory that the device reaches, for good.
fn room(size: usize, window: Option<Window>) -> Option<Segment> {
    let layout = Layout::from_size_align(size, PAGE_SIZE).ok()?;
    // SAFETY: the layout has a size.
    let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    let bus = bus_address(window, PhysAddr(physical(memory)), size as u64)?;
    Some(Segment {
        bus,
        address: memory.as_ptr() as usize,
        len: size,
    })
}

impl Sdhci {
    pub(super) fn transfer_by_dma(
        &mut self,
        method: Method,
        way: Way,
        argument: u32,
        blocks: &mut Blocks<'_>,
    ) -> Result<u32, BusError> {
        let count = self.prepare(method, way, blocks);
        let command = block_command(way, argument, count);
        let shape = Shape {
            size: BLOCK_SIZE as u32,
            count: count as u32,
            way,
            // The engine takes words from the data port, as the processor would.
            uses_dma: method != Method::Engine,
        };
        let LongRegister([status, ..]) = self.begin(command, Some(&shape))?;
        self.start_engine(method);
        self.wait_for_dma(method, command.index, limit_us(count))?;
        self.finish(method, way, command.index, blocks)?;
        blocks.advance(count as u64);
        Ok(status | self.status_at_stop(&shape))
    }

    /// Gets memory, table and the controller's addresses ready; says for how many blocks.
    fn prepare(&mut self, method: Method, way: Way, blocks: &mut Blocks<'_>) -> usize {
        let Some(dma) = &mut self.dma else { return 0 };
        let count = dma.gather(method, blocks);
        let (cleaned, invalidated) = match way {
            Way::Write => {
                dma.copy(way, blocks);
                (dma.maintain(cache::clean), 0)
            }
            Way::Read => (0, dma.maintain(cache::invalidate)),
        };
        let cleaned = cleaned + dma.describe(method, way);
        self.port.count_maintenance(cleaned, invalidated);
        let (table, first) = (dma.table_bus, dma.gathered.segments.first());
        let first = first.map_or(0, |segment| segment.bus);
        match method {
            // Before the blocks' number: QEMU begins to move when the address is written after it.
            Method::Sdma => self.write(|registers| registers.sdma_address.set(first)),
            Method::Adma2 => self.write(|registers| registers.adma_address.set(table)),
            Method::Engine | Method::Pio => {}
        }
        count
    }

    fn start_engine(&self, method: Method) {
        if method == Method::Engine
            && let Some(dma) = &self.dma
            && let Some(engine) = &dma.engine
        {
            engine.start(dma.table_bus);
        }
    }

    /// Waits for the end of the transfer; SDMA is sent on at each boundary.
    fn wait_for_dma(&mut self, method: Method, index: u8, limit_us: u64) -> Result<(), BusError> {
        let (end, boundary) = (
            Status::TRANSFER_COMPLETE::SET.value,
            Status::SDMA_BOUNDARY::SET.value,
        );
        if method != Method::Sdma {
            self.wait_for(index, end, limit_us)?;
            return Ok(());
        }
        let first = self
            .dma
            .as_ref()
            .and_then(|dma| dma.gathered.segments.first());
        let mut at = first.map_or(0, |segment| segment.bus);
        while self.wait_for(index, end | boundary, limit_us)? & end == 0 {
            at = (at / SDMA_BOUNDARY + 1).wrapping_mul(SDMA_BOUNDARY);
            self.write(|registers| registers.sdma_address.set(at));
        }
        Ok(())
    }

    /// Brings what was moved to where it belongs.
    fn finish(
        &mut self,
        method: Method,
        way: Way,
        index: u8,
        blocks: &mut Blocks<'_>,
    ) -> Result<(), BusError> {
        let Some(dma) = &mut self.dma else {
            return Ok(());
        };
        if method == Method::Engine
            && let Some(engine) = &dma.engine
        {
            // The controller has given its last word; the engine may still have it.
            engine
                .finish()
                .map_err(|state| BusError::Dma(index, state))?;
        }
        if way == Way::Read {
            let invalidated = dma.maintain(cache::invalidate);
            self.port.count_maintenance(0, invalidated);
            dma.copy(way, blocks);
        }
        Ok(())
    }
}
