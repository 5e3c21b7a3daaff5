//! Block transfers that wait: what the file systems' own metadata uses.

use super::block::{
    BlockDevice, BlockError, Buffer, Completion, Durability, MAX_BUFFERS, Operation, Refusal,
    Refused, Request,
};
use crate::sync::{SpinLock, WaitQueue};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Reads `len` bytes at `offset`.
pub fn read(device: &dyn BlockDevice, offset: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let mut bytes = Vec::with_capacity(len);
    let piece = device.properties().max_request.max(1);
    while bytes.len() < len {
        let part = alloc::vec![0u8; piece.min(len - bytes.len())];
        let at = offset + bytes.len() as u64;
        let completion = transfer(device, Operation::Read, at, Some(part))?;
        let buffers = completion.buffers.into_iter();
        let part = buffers.filter_map(Buffer::into_bytes).next();
        let part = part.ok_or(BlockError::Device { offset: at })?;
        if bytes.is_empty() {
            bytes = part;
        } else {
            bytes.extend_from_slice(&part);
        }
    }
    Ok(bytes)
}

/// Writes `bytes` at `offset`. [`Durability::Durable`] holds also on a device without a forced write: it is flushed.
pub fn write(
    device: &dyn BlockDevice,
    offset: u64,
    bytes: Vec<u8>,
    durability: Durability,
) -> Result<(), BlockError> {
    let piece = device.properties().max_request.max(1);
    if bytes.len() <= piece {
        transfer(device, Operation::Write(durability), offset, Some(bytes))?;
        return Ok(());
    }
    let mut at = offset;
    for part in bytes.chunks(piece) {
        transfer(
            device,
            Operation::Write(durability),
            at,
            Some(part.to_vec()),
        )?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Makes every write that has completed durable, as far as the device can.
pub fn flush(device: &dyn BlockDevice) -> Result<(), BlockError> {
    if !device.properties().has_flush {
        return Ok(());
    }
    transfer(device, Operation::Flush, 0, None).map(drop)
}

/// Writes many places with all of them in flight, and waits for all; neighbours that follow each other go together. The
/// first error is returned, after the last transfer has ended.
pub fn write_all(device: &dyn BlockDevice, writes: Vec<(u64, Vec<u8>)>) -> Result<(), BlockError> {
    let most = device.properties().max_request.max(1);
    let waiter = Waiter::new();
    let mut submitted = 0;
    let mut refused = Ok(());
    let mut writes = writes.into_iter().peekable();
    while let Some((offset, first)) = writes.next() {
        let mut len = first.len();
        let mut parts = Vec::from([first]);
        while len < most
            && parts.len() < MAX_BUFFERS
            && let Some((_, next)) = writes
                .next_if(|(next, bytes)| *next == offset + len as u64 && len + bytes.len() <= most)
        {
            len += next.len();
            parts.push(next);
        }
        if len > most {
            // One that is too long alone.
            parts = parts[0].chunks(most).map(<[u8]>::to_vec).collect();
        }
        let write = Operation::Write(Durability::Cached);
        let is_one = len <= most;
        let mut at = offset;
        let mut rest = parts.into_iter();
        while let Some(part) = rest.next() {
            let mut buffers = Vec::from([part]);
            if is_one {
                buffers.extend(rest.by_ref());
            }
            let len: usize = buffers.iter().map(Vec::len).sum();
            if let Err(error) = waiter.submit(device, write, at, buffers) {
                refused = refused.and(Err(error));
                break;
            }
            submitted += 1;
            at += len as u64;
        }
        if refused.is_err() {
            break;
        }
    }
    let completions = waiter.wait_for(device, submitted);
    refused?;
    completions
        .into_iter()
        .try_for_each(|completion| completion.result)
}

/// Discards runs of bytes, given by where they begin and how long they are, many at a time. Says how many bytes.
pub fn discard_all(
    device: &dyn BlockDevice,
    runs: impl Iterator<Item = (u64, u64)>,
) -> Result<u64, BlockError> {
    const AT_A_TIME: usize = 64;
    let most = device.properties().max_discard;
    if most == 0 {
        return Err(BlockError::Unsupported);
    }
    let pieces = |(start, len): (u64, u64)| {
        let starts = (start..start + len).step_by(most as usize);
        starts.map(move |at| (at, most.min(start + len - at)))
    };
    let mut pieces = runs.flat_map(pieces).peekable();
    let mut discarded = 0;
    while pieces.peek().is_some() {
        let waiter = Waiter::new();
        let (mut submitted, mut refused) = (0, Ok(()));
        for (at, len) in pieces.by_ref().take(AT_A_TIME) {
            refused = waiter.submit(device, Operation::Discard { len }, at, Vec::new());
            if refused.is_err() {
                break;
            }
            submitted += 1;
            discarded += len;
        }
        // All of them, whatever became of one: who gets the bytes next must not lose them to a late discard.
        let completions = waiter.wait_for(device, submitted);
        refused?;
        completions
            .into_iter()
            .try_for_each(|completion| completion.result)?;
    }
    Ok(discarded)
}

fn transfer(
    device: &dyn BlockDevice,
    operation: Operation,
    offset: u64,
    bytes: Option<Vec<u8>>,
) -> Result<Completion, BlockError> {
    let waiter = Waiter::new();
    waiter.submit(device, operation, offset, bytes.into_iter().collect())?;
    let completion = waiter.wait_for(device, 1).pop();
    let completion = completion.ok_or(BlockError::Device { offset })?;
    completion.result?;
    Ok(completion)
}

/// Where completions arrive and a thread sleeps until they have.
struct Waiter(Arc<(SpinLock<Vec<Completion>>, WaitQueue)>);

impl Waiter {
    fn new() -> Self {
        Self(Arc::new((SpinLock::new(Vec::new()), WaitQueue::new())))
    }

    fn submit(
        &self,
        device: &dyn BlockDevice,
        operation: Operation,
        offset: u64,
        buffers: Vec<Vec<u8>>,
    ) -> Result<(), BlockError> {
        let arrived = self.0.clone();
        let mut request = Request {
            operation,
            offset,
            buffers: buffers
                .into_iter()
                .map(|b| Box::new(b) as Box<dyn Buffer>)
                .collect(),
            on_completion: Box::new(move |completion| {
                arrived.0.lock().push(completion);
                arrived.1.wake_all();
            }),
        };
        loop {
            match device.submit(request) {
                Ok(()) => return Ok(()),
                Err(Refused {
                    reason: Refusal::Invalid(error),
                    ..
                }) => return Err(error),
                Err(refused) => {
                    device.poll();
                    request = refused.request;
                }
            }
        }
    }

    fn wait_for(&self, device: &dyn BlockDevice, count: usize) -> Vec<Completion> {
        loop {
            device.poll();
            let mut arrived = self.0.0.lock();
            if arrived.len() < count {
                arrived = self.0.1.wait(arrived);
            }
            if arrived.len() >= count {
                return core::mem::take(&mut *arrived);
            }
        }
    }
}
