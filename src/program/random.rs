//! Random numbers, fit for keys.
//!
//! A ChaCha20 generator (crate `chacha20`) is seeded, when somebody first asks, with all that the machine has: the seed that
//! firmware or an emulator puts into the device tree, a virtio-rng, a Raspberry Pi's generator. Where there is none of them
//! there are no random numbers, and every function says so.
//!
//! ```no_run
//! use pinfold::program::random::{self, rand_core::Rng};
//!
//! # fn main() -> Result<(), random::NoEntropy> {
//! let mut generator = random::generator()?;
//! let dice = generator.next_u32() % 6 + 1;
//! # let _ = dice; Ok(()) }
//! ```

pub use chacha20::ChaCha20Rng;
pub use rand_core;

use crate::arch::aarch64::kernel_map::{self, MapError};
use crate::arch::aarch64::timer;
use crate::driver::{pi_rng, virtio_rng};
use crate::kernel;
use crate::mm::addr::{PhysAddr, VirtAddr};
use crate::sync::Mutex;
use crate::thread::Call;
use alloc::collections::BTreeMap;
use core::fmt;
use core::ptr::NonNull;
use rand_core::{Rng, SeedableRng, TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};

/// The machine has no source of randomness that we know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoEntropy;

impl fmt::Display for NoEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this machine has no source of randomness: no seed in its device tree, no virtio-rng",
        )
    }
}

impl core::error::Error for NoEntropy {}

/// The machine's generator, once it was asked for.
static GENERATOR: Mutex<Option<Result<ChaCha20Rng, NoEntropy>>> = Mutex::new(None);

/// Where registers are mapped, by their addresses: for good.
static MAPPED: Mutex<BTreeMap<u64, VirtAddr>> = Mutex::new(BTreeMap::new());

/// Fills `bytes`.
pub fn fill(bytes: &mut [u8]) -> Result<(), NoEntropy> {
    generator()?.fill_bytes(bytes);
    Ok(())
}

/// A generator of one's own, seeded from the machine's.
pub fn generator() -> Result<ChaCha20Rng, NoEntropy> {
    let _call = Call::enter();
    let mut machine = GENERATOR.lock();
    let machine = match &mut *machine {
        Some(known) => known,
        None => {
            // Where memory was short it is asked again.
            let seed = gather().map_err(|_| NoEntropy)?;
            machine.insert(seed.map(ChaCha20Rng::from_seed))
        }
    };
    let machine = machine.as_mut().map_err(|none| *none)?;
    let mut seed = [0; 32];
    machine.fill_bytes(&mut seed);
    Ok(ChaCha20Rng::from_seed(seed))
}

/// The machine's randomness, by the traits of crate `rand_core`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SysRng;

impl TryRng for SysRng {
    type Error = NoEntropy;

    fn try_next_u32(&mut self) -> Result<u32, NoEntropy> {
        Ok(generator()?.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, NoEntropy> {
        Ok(generator()?.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), NoEntropy> {
        fill(bytes)
    }
}

impl TryCryptoRng for SysRng {}

/// Bytes that make a seed: fewer can be tried one by one.
const ENOUGH: usize = 16;

/// All that the sources give, hashed together. An error says that one could not be asked.
fn gather() -> Result<Result<[u8; 32], NoEntropy>, MapError> {
    let board = kernel::board();
    let mut hash = Sha256::new();
    let mut best = board.seed.len();
    let mut not_asked = None;
    hash.update(board.seed);
    for slot in &board.virtio_slots {
        match from_virtio(slot.base) {
            Ok(Some((bytes, len))) => {
                best = best.max(len);
                hash.update(bytes);
            }
            Ok(None) => {}
            Err(error) => not_asked = Some(error),
        }
    }
    if let Some((kind, base)) = board.pi_rng {
        match registers_at(base, pi_rng::SIZE) {
            Ok(registers) => {
                // SAFETY: mapped for good, and `GENERATOR` is locked: nobody else uses them.
                let rng = unsafe { pi_rng::PiRng::new(registers, kind) };
                let words = core::iter::from_fn(|| rng.word()).take(8);
                let count = words.map(|word| hash.update(word.to_le_bytes())).count();
                best = best.max(4 * count);
            }
            Err(error) => not_asked = Some(error),
        }
    }
    // Adds little, and takes nothing away.
    hash.update(timer::now().to_le_bytes());
    match (best >= ENOUGH, not_asked) {
        (true, _) => Ok(Ok(hash.finalize().into())),
        (false, Some(error)) => Err(error),
        (false, None) => Ok(Err(NoEntropy)),
    }
}

/// Registers, mapped when they are first asked for.
fn registers_at(base: PhysAddr, size: u64) -> Result<VirtAddr, MapError> {
    let mut mapped = MAPPED.lock();
    if let Some(registers) = mapped.get(&base.0) {
        return Ok(*registers);
    }
    let registers = kernel_map::map_device(base, size)?;
    mapped.insert(base.0, registers);
    Ok(registers)
}

/// What the virtio device with registers at `base` gives, if it is one that gives random bytes.
fn from_virtio(base: PhysAddr) -> Result<Option<([u8; virtio_rng::BYTES], usize)>, MapError> {
    const SIZE: u64 = 0x200;
    const DEVICE_ID: u64 = 8;
    const ENTROPY: u32 = 4;
    let registers = registers_at(base, SIZE)?;
    // SAFETY: mapped for good, and reading the register changes nothing. A transport would reset what may be a disk.
    let id = unsafe { ((registers.0 + DEVICE_ID) as *const u32).read_volatile() };
    if id != ENTROPY {
        return Ok(None);
    }
    let Some(header) = NonNull::new(registers.0 as *mut VirtIOHeader) else {
        return Ok(None);
    };
    // SAFETY: mapped for good; `GENERATOR` is locked: nobody else uses them.
    let transport = unsafe { MmioTransport::new(header, SIZE as usize) };
    Ok(transport.ok().and_then(virtio_rng::read))
}
