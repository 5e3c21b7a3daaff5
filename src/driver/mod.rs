//! Drivers: each gets its registers' address, and knows nothing of what board it is on.

pub mod sd_card;

#[cfg(target_os = "none")]
pub mod gpio;
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
pub mod sd_disk;
#[cfg(target_os = "none")]
pub mod sdhci;
#[cfg(target_os = "none")]
pub mod virtio_blk;
#[cfg(target_os = "none")]
pub mod virtio_rng;
