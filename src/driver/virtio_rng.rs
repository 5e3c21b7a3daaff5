//! virtio-rng: an emulator's source of random bytes.
//!
//! Crate `virtio-drivers` has a driver, which waits for ever; this one waits for a while.
//!
//! Source: Virtual I/O Device (VIRTIO) 1.2, section "Entropy Device".

use super::virtio_blk::Memory;
use crate::arch::aarch64::timer;
use alloc::boxed::Box;
use core::hint::spin_loop;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

const VERSION_1: u64 = 1 << 32;
const QUEUE: u16 = 0;
const QUEUE_SIZE: usize = 2;
const PATIENCE_US: u64 = 1_000_000;

/// Bytes asked for at once.
pub const BYTES: usize = 32;

/// Random bytes from the device behind `transport`; as many as it gave, `None` if it does not answer.
pub fn read(mut transport: impl Transport) -> Option<([u8; BYTES], usize)> {
    // Acknowledge, driver, features: VIRTIO 1.2, "Device Initialization".
    transport.set_status(DeviceStatus::empty());
    transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
    if transport.read_device_features() & VERSION_1 == 0 {
        transport.set_status(DeviceStatus::FAILED);
        return None;
    }
    transport.write_driver_features(VERSION_1);
    let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
    transport.set_status(status);
    let mut queue =
        VirtQueue::<Memory, QUEUE_SIZE>::new(&mut transport, QUEUE, false, false).ok()?;
    transport.set_status(status | DeviceStatus::DRIVER_OK);
    let mut bytes = Box::new([0; BYTES]);
    // SAFETY: the buffer lives until it has been popped, or the device has been reset.
    let token = unsafe { queue.add(&[], &mut [&mut bytes[..]]) }.ok()?;
    if queue.should_notify() {
        transport.notify(QUEUE);
    }
    let deadline = timer::now() + timer::ticks_from_us(PATIENCE_US);
    while !queue.can_pop() && timer::now() < deadline {
        spin_loop();
    }
    // SAFETY: the buffer that was added, if it has come back.
    let len = unsafe { queue.pop_used(token, &[], &mut [&mut bytes[..]]) };
    // Reset: it writes there no more.
    transport.set_status(DeviceStatus::empty());
    let len = (len.ok()? as usize).min(BYTES);
    Some((*bytes, len))
}
