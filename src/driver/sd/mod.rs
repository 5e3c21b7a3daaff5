//! SD cards: what they say, how they are spoken to, and the disk they make.
//!
//! ```text
//!  disk.rs       a thread that serves requests, one after the other
//!  card.rs       the card: identified, read, written, erased, lost and found; on any host
//!  host.rs       what a host controller does for it (`../sdhci`; on a PC, a simulated one)
//!  register.rs   pure: what the card's registers mean
//! ```
//!
//! Source: SD Specifications, Part 1, Physical Layer Simplified Specification; headings are named where they matter.

pub mod blocks;
pub mod card;
pub mod host;
pub mod register;

#[cfg(target_os = "none")]
pub mod disk;
