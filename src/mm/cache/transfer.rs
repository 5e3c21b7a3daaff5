//! Pages to and from the device: runs of blocks become few large requests, straight to and from the frames.
//!
//! A *unit* is a run of pages whose every byte is in its requests; it is done when they all are. Where the file lies in
//! one piece a unit is one request; where a page is in several pieces, as with blocks smaller than a page, it has several.

use super::add;
use super::file::CachedFile;
use crate::fs::block::{
    BlockDevice, Buffer, Completion, Durability, MAX_BUFFERS, Operation, Refusal, Refused, Request,
};
use crate::fs::{Backing, Extent, FsError};
use crate::mm::addr::{Frame, PAGE_SIZE};
use crate::sync::{SpinLock, WaitQueue};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

const PAGE: u64 = PAGE_SIZE as u64;

/// Blocks from `first` on, and their frames.
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) frames: Vec<Frame>,
}

impl Run {
    pub(super) fn blocks(&self) -> Range<u64> {
        self.first..self.first + self.frames.len() as u64
    }

    pub(super) fn bytes(&self) -> Range<u64> {
        self.first * PAGE..self.blocks().end * PAGE
    }

    /// The frame of one of its blocks.
    pub(super) fn frame(&self, block: u64) -> Frame {
        self.frames[(block - self.first) as usize]
    }
}

/// Part of the memory of frames that follow each other.
struct FrameBuffer {
    start: *mut u8,
    len: usize,
}

// SAFETY: the frames are busy or being written, and stay until the request is completed, wherever that is.
unsafe impl Send for FrameBuffer {}

impl Buffer for FrameBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn address(&self) -> *const u8 {
        self.start
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: within the frames, which are in the linear map. A program may store to a page that is being written;
        // then the page is dirty again, and any bytes will do.
        unsafe {
            bytes
                .as_mut_ptr()
                .copy_from_nonoverlapping(self.start.add(at), bytes.len())
        };
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: as above; a page that is being filled is nobody's yet.
        unsafe {
            self.start
                .add(at)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }
}

/// What becomes of a unit when it is done.
pub(super) enum Then {
    /// Its pages are published.
    Publish,
    /// Somebody waits for it, and for others.
    Tell(Arc<Batch>),
}

/// Units somebody waits for.
pub(super) struct Batch {
    state: SpinLock<BatchState>,
    done: WaitQueue,
}

struct BatchState {
    left: usize,
    error: Option<FsError>,
}

impl Batch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: SpinLock::new(BatchState {
                left: 0,
                error: None,
            }),
            done: WaitQueue::new(),
        })
    }

    fn begin(&self) {
        self.state.lock().left += 1;
    }

    fn end(&self, result: Result<(), FsError>) {
        let mut state = self.state.lock();
        state.left -= 1;
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        drop(state);
        self.done.wake_all();
    }

    /// Waits until all is done; the first error.
    pub(super) fn wait(&self, device: &dyn BlockDevice) -> Result<(), FsError> {
        loop {
            device.poll();
            let mut state = self.state.lock();
            if state.left > 0 {
                state = self.done.wait(state);
            }
            if state.left == 0 {
                return state.error.map_or(Ok(()), Err);
            }
        }
    }
}

/// A unit on its way.
struct Flight {
    file: Arc<CachedFile>,
    blocks: Range<u64>,
    left: AtomicUsize,
    error: SpinLock<Option<FsError>>,
    then: Then,
}

impl Flight {
    fn end_one(&self, result: Result<(), FsError>) {
        if let Err(error) = result {
            self.error.lock().get_or_insert(error);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let result = self.error.lock().map_or(Ok(()), Err);
        match &self.then {
            Then::Publish => self.file.end_read(self.blocks.clone(), result),
            Then::Tell(batch) => batch.end(result),
        }
    }
}

/// A request in the making.
struct Part {
    device: Range<u64>,
    buffers: Vec<(*mut u8, usize)>,
}

/// Collects pieces of pages, in the order of the file, into units.
pub(super) struct Units<'a> {
    file: &'a Arc<CachedFile>,
    operation: Operation,
    batch: Option<Arc<Batch>>,
    most: u64,
    blocks: Range<u64>,
    parts: Vec<Part>,
}

impl<'a> Units<'a> {
    /// Reads into pages that are busy, and publishes them.
    pub(super) fn read(file: &'a Arc<CachedFile>) -> Self {
        Self::new(file, Operation::Read, None)
    }

    /// Writes pages that are marked so; `batch` is told.
    pub(super) fn write(file: &'a Arc<CachedFile>, batch: Arc<Batch>) -> Self {
        Self::new(file, Operation::Write(Durability::Cached), Some(batch))
    }

    fn new(file: &'a Arc<CachedFile>, operation: Operation, batch: Option<Arc<Batch>>) -> Self {
        Self {
            file,
            operation,
            batch,
            most: file.device().properties().max_request as u64,
            blocks: 0..0,
            parts: Vec::new(),
        }
    }

    /// Adds what of `run` the extent has a place for.
    pub(super) fn add(&mut self, run: &Run, extent: &Extent, place: u64) {
        let bytes = run.bytes();
        let mut at = extent.offset.max(bytes.start);
        let end = (extent.offset + extent.len).min(bytes.end);
        while at < end {
            let len = (PAGE - at % PAGE).min(end - at);
            let start = self.file.pointer(run.frame(at / PAGE));
            // SAFETY: within the frame.
            let start = unsafe { start.add((at % PAGE) as usize) };
            self.add_piece(at / PAGE, start, len, place + (at - extent.offset));
            at += len;
        }
    }

    fn add_piece(&mut self, block: u64, start: *mut u8, len: u64, place: u64) {
        if let Some(part) = self.parts.last_mut()
            && part.device.end == place
            && self.blocks.end >= block
            && part.device.end - part.device.start + len <= self.most
        {
            let is_next = part
                .buffers
                .last()
                .is_some_and(|(at, len)| at.wrapping_add(*len) == start);
            if is_next || part.buffers.len() < MAX_BUFFERS {
                match part.buffers.last_mut() {
                    Some((_, all)) if is_next => *all += len as usize,
                    _ => part.buffers.push((start, len as usize)),
                }
                part.device.end += len;
                self.blocks.end = block + 1;
                return;
            }
        }
        if block >= self.blocks.end {
            self.launch();
            self.blocks = block..block + 1;
        }
        self.parts.push(Part {
            device: place..place + len,
            buffers: Vec::from([(start, len as usize)]),
        });
    }

    /// Submits what was collected.
    pub(super) fn launch(&mut self) {
        let parts = core::mem::take(&mut self.parts);
        if parts.is_empty() {
            return;
        }
        let then = match &self.batch {
            Some(batch) => {
                batch.begin();
                Then::Tell(batch.clone())
            }
            None => Then::Publish,
        };
        let flight = Arc::new(Flight {
            file: self.file.clone(),
            blocks: self.blocks.clone(),
            left: AtomicUsize::new(parts.len()),
            error: SpinLock::new(None),
            then,
        });
        for part in parts {
            let to_tell = flight.clone();
            let request = Request {
                operation: self.operation,
                offset: part.device.start,
                buffers: part
                    .buffers
                    .into_iter()
                    .map(|(start, len)| Box::new(FrameBuffer { start, len }) as Box<dyn Buffer>)
                    .collect(),
                on_completion: Box::new(move |completion: Completion| {
                    to_tell.end_one(completion.result.map_err(FsError::Block));
                }),
            };
            if let Err(error) = submit(self.file.device(), request) {
                flight.end_one(Err(error));
            }
        }
    }
}

/// Submits a request, waiting for room in the queue.
fn submit(device: &dyn BlockDevice, mut request: Request) -> Result<(), FsError> {
    loop {
        match device.submit(request) {
            Ok(()) => return Ok(()),
            Err(Refused {
                reason: Refusal::Invalid(error),
                ..
            }) => return Err(error.into()),
            Err(refused) => {
                device.poll();
                request = refused.request;
            }
        }
    }
}

impl CachedFile {
    /// Reads a run whose pages are busy: they are published, or become holes, or fail.
    pub(super) fn read_run(self: &Arc<Self>, run: &Run) {
        let bytes = run.bytes();
        let extents = match self
            .fs()
            .map(self.id(), bytes.start, bytes.end - bytes.start)
        {
            Ok(extents) => extents,
            Err(error) => return self.end_read(run.blocks(), Err(error)),
        };
        let mut written = Vec::new();
        for extent in &extents {
            if let Backing::Written(place) = extent.backing {
                written.push((extent, place));
            }
        }
        self.settle_holes(run, written.iter().map(|(extent, _)| *extent));
        let mut units = Units::read(self);
        for (extent, place) in written {
            units.add(run, extent, place);
        }
        units.launch();
        add(&self.cache().counts.read, run.frames.len() as u64);
    }

    /// Of a run that is to be read: makes holes of pages that are nowhere written, and zeroes those that are in part.
    fn settle_holes<'e>(&self, run: &Run, mut written: impl Iterator<Item = &'e Extent>) {
        let mut extent = written.next();
        let mut holes = Vec::new();
        for block in run.blocks() {
            let (start, end) = (block * PAGE, (block + 1) * PAGE);
            let mut covered = 0;
            while let Some(e) = extent {
                let (from, to) = (e.offset.max(start), (e.offset + e.len).min(end));
                covered += to.saturating_sub(from);
                if e.offset + e.len > end {
                    break;
                }
                extent = written.next();
            }
            match covered {
                0 => holes.push(block),
                PAGE => self.note_backed(block),
                // SAFETY: the frame is being filled, and nobody else's.
                _ => unsafe { self.pointer(run.frame(block)).write_bytes(0, PAGE_SIZE) },
            }
        }
        self.become_holes(&holes);
    }
}
