//! Drivers: each gets its registers' address, and knows nothing of what board it is on.

pub mod bcm_dma;
pub mod dma;
pub mod sd;
pub mod sdhci;
pub mod throttling;

#[cfg(target_os = "none")]
pub mod gpio;
#[cfg(target_os = "none")]
pub mod led;
#[cfg(target_os = "none")]
pub mod mailbox;
#[cfg(target_os = "none")]
pub mod pci;
#[cfg(target_os = "none")]
pub mod pi_rng;
#[cfg(target_os = "none")]
pub mod pl011;
#[cfg(target_os = "none")]
pub mod pl031;
#[cfg(target_os = "none")]
pub mod virtio_blk;
#[cfg(target_os = "none")]
pub mod virtio_rng;
