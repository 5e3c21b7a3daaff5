//! SD host controllers of the SDHCI family: Arasan's and EMMC2 of the Raspberry Pis, and those on PCI.
//!
//! ```text
//!  mod.rs           what it is, and how data can be moved
//!  host.rs          reset, clock, commands; blocks by the processor
//!  dma.rs           blocks by DMA: SDMA, ADMA2, or a DMA engine beside it
//!  port.rs          registers, and waiting for what they say, by interrupt
//!  adma.rs          pure: ADMA2's table
//!  capabilities.rs  pure: what a controller offers
//! ```
//!
//! Sources: SD Specifications, Part A2, SD Host Controller Simplified Specification 3.00; Broadcom "BCM2835 ARM
//! Peripherals", chapter 5, for the Arasan. Each quirk says where it comes from.

pub mod adma;
pub mod capabilities;

#[cfg(target_os = "none")]
mod dma;
#[cfg(target_os = "none")]
mod host;
#[cfg(target_os = "none")]
pub mod port;
#[cfg(target_os = "none")]
mod registers;

#[cfg(target_os = "none")]
pub use host::{Memory, Quirks, Sdhci};

use core::fmt;
use core::str::FromStr;

/// How blocks get from the controller to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Method {
    /// By the processor, word by word.
    Pio,
    /// By the controller, a run of memory at a time.
    Sdma,
    /// By the controller, by a table.
    Adma2,
    /// By a DMA engine beside the controller, by a table.
    Engine,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pio, Self::Sdma, Self::Adma2, Self::Engine];

    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pio => "pio",
            Self::Sdma => "sdma",
            Self::Adma2 => "adma2",
            Self::Engine => "dma",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pio => "PIO",
            Self::Sdma => "SDMA",
            Self::Adma2 => "ADMA2",
            Self::Engine => "DMA engine",
        })
    }
}

/// There is no method of that name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownMethod;

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        let mut all = Self::ALL.into_iter();
        all.find(|method| method.name() == name)
            .ok_or(UnknownMethod)
    }
}
