//! What depends on the processor: AArch64, and the PC that stands in for it in tests.

pub mod aarch64;
#[cfg(not(target_os = "none"))]
pub mod host;

#[cfg(target_os = "none")]
pub use aarch64::{cannot_fault, crc, page};
#[cfg(not(target_os = "none"))]
pub use host::{cannot_fault, crc, page};
