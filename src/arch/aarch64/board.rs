//! What machine this is and where things are: data, read once from the device tree.
//!
//! A board is recognised by what its tree says, never chosen at build time: `reader` fills it from the tree. QEMU's
//! Raspberry Pis come without one; what theirs would say is in [`Board::built_in`]. It is known before there is a
//! heap, so lists have a fixed room.
//!
//! Sources for the built-in boards: `bcm283x.dtsi` and `bcm2711.dtsi` of Linux.

mod interrupts;
mod ranges;
mod reader;

#[cfg(test)]
mod tests;

pub use super::device_tree::node::Window;
pub use interrupts::{Interrupt, InterruptMap, Line, Trigger};
pub use ranges::{MAX_RANGES, Ranges};

use super::device_tree::{Tree, TreeError};
use crate::mm::addr::PhysAddr;
use arrayvec::ArrayVec;
use core::fmt;

/// Slots for virtio devices that are kept: QEMU's `virt` has as many.
pub const MAX_VIRTIO_SLOTS: usize = 32;

/// SD host controllers that are kept: a Raspberry Pi 4 has two.
pub const MAX_SD_HOSTS: usize = 4;

/// Regions of redistributors that are kept: QEMU's `virt` has two.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 4;

/// How firmware is called (PSCI).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciConduit {
    /// By `hvc`.
    Hvc,
    /// By `smc`.
    Smc,
}

/// A PL011.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Its registers.
    pub base: PhysAddr,
    /// What it divides to get its speed; `None` where nothing needs setting.
    pub clock_hz: Option<u64>,
    /// Its interrupt.
    pub interrupt: Option<Line>,
}

impl Uart {
    /// Bytes of registers.
    pub const SIZE: u64 = 0x1000;
}

/// Where the interrupt controller's registers are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Controller {
    /// Distributor (a page) and CPU interface (two).
    GicV2 {
        /// GICD.
        distributor: PhysAddr,
        /// GICC.
        cpu: PhysAddr,
    },
    /// Distributor (64 KiB) and redistributors.
    GicV3 {
        /// GICD.
        distributor: PhysAddr,
        /// GICR frames, in each region one after the other: start and bytes.
        redistributors: ArrayVec<(PhysAddr, u64), MAX_REDISTRIBUTOR_REGIONS>,
    },
    /// The Raspberry Pi 3's two, a page each.
    Bcm2836 {
        /// Of the cores.
        local: PhysAddr,
        /// Of the peripherals.
        peripheral: PhysAddr,
    },
}

/// What only the Raspberry Pis have; a page of registers each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RaspberryPi {
    /// GPIO, which decides what is on which pin.
    pub gpio: PhysAddr,
    /// The mailbox to the VideoCore.
    pub mailbox: PhysAddr,
    /// Watchdog and reset.
    pub watchdog: PhysAddr,
    /// The DMA engine, and the memory that it reaches.
    pub dma: Option<(PhysAddr, Option<Window>)>,
    /// The system timer, which counts microseconds.
    pub system_timer: Option<PhysAddr>,
    /// The LED that shows the card's activity.
    pub activity_led: Option<LedWiring>,
}

/// Where a LED is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LedWiring {
    /// Its pin.
    pub pin: LedPin,
    /// Whether it is lit when the pin is low.
    pub is_low_active: bool,
}

/// The pin of a LED.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LedPin {
    /// One of the chip's.
    Gpio(u32),
    /// One that only firmware reaches.
    Firmware(u32),
}

/// Which random number generator a Raspberry Pi has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PiRngKind {
    /// A Raspberry Pi 3's.
    Bcm2835,
    /// A Raspberry Pi 4's.
    Rng200,
}

/// Registers of a virtio device of whatever type, 0x200 bytes: QEMU has many with no device behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioSlot {
    /// Its registers.
    pub base: PhysAddr,
    /// Its interrupt.
    pub interrupt: Option<Line>,
}

/// Whose an SD host controller is: what peculiarities it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SdHostKind {
    /// The Raspberry Pis' first.
    Arasan,
    /// The Raspberry Pi 4's second.
    Emmc2,
}

/// An SD host controller of the SDHCI family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SdHost {
    /// Whose it is.
    pub kind: SdHostKind,
    /// Its registers, 0x100 bytes.
    pub base: PhysAddr,
    /// Its interrupt.
    pub interrupt: Option<Line>,
    /// The memory it reaches, where it is not all as it is.
    pub dma: Option<Window>,
}

/// A PCI Express host bridge with memory-mapped configuration space (ECAM).
#[derive(Clone, Debug)]
pub struct PciHost {
    /// Configuration space of the first bus.
    pub ecam: PhysAddr,
    /// Its bytes: 1 MiB a bus.
    pub ecam_size: u64,
    /// Number of the first bus.
    pub first_bus: u8,
    /// Memory for 32-bit registers.
    pub memory_32: Option<Window>,
    /// Memory for 64-bit registers.
    pub memory_64: Option<Window>,
    /// Interrupts of the slots.
    pub interrupts: InterruptMap<'static>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Board {
    /// What it calls itself.
    pub model: &'static str,
    /// Whether a device tree told us.
    pub has_tree: bool,
    /// Cores in use by firmware's word.
    pub cores: u32,
    /// All RAM.
    pub ram: Ranges,
    /// What in it is not ours: firmware's, the tree's, an initrd's.
    pub reserved: Ranges,
    /// The console.
    pub uart: Uart,
    /// The interrupt controller.
    pub controller: Controller,
    /// The virtual timer's interrupt.
    pub timer_interrupt: Line,
    /// The counter's frequency where CNTFRQ_EL0 does not tell it.
    pub timer_hz: Option<u32>,
    /// How to call firmware; `None` where there is none to call.
    pub psci: Option<PsciConduit>,
    /// Set on a Raspberry Pi.
    pub raspberry_pi: Option<RaspberryPi>,
    /// In the order of the tree. QEMU fills them from the highest address down.
    pub virtio_slots: ArrayVec<VirtioSlot, MAX_VIRTIO_SLOTS>,
    /// PCI, for virtio and SD hosts that are on it.
    pub pci: Option<PciHost>,
    /// In the order of the tree.
    pub sd_hosts: ArrayVec<SdHost, MAX_SD_HOSTS>,
    /// The kernel command line that the tree brings.
    pub command_line: &'static str,
    /// A PL031, which tells the time of day.
    pub clock: Option<PhysAddr>,
    /// A Raspberry Pi's random number generator.
    pub pi_rng: Option<(PiRngKind, PhysAddr)>,
    /// Random bytes that the tree brings: `rng-seed`, else `kaslr-seed`.
    pub seed: &'static [u8],
}

/// Why no board could be made of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BoardError {
    /// The tree itself is damaged.
    Tree(TreeError),
    /// No node for this, which nothing runs without.
    Missing(&'static str),
    /// More ranges of RAM or of reservations than we keep.
    TooManyRanges,
    /// There is no tree, and the core (MIDR_EL1 part number) is of no board we know.
    Unknown(u64),
}

impl fmt::Display for BoardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => write!(f, "the device tree is damaged: {error}"),
            Self::Missing(what) => write!(f, "the device tree names no {what}"),
            Self::TooManyRanges => {
                write!(
                    f,
                    "the device tree has more than {MAX_RANGES} ranges of memory"
                )
            }
            Self::Unknown(part) => write!(
                f,
                "there is no device tree, and a core of part number {part:#x} belongs to no known board"
            ),
        }
    }
}

/// Boards that can be known without a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// QEMU's `virt`, but only its UART is always at the same place.
    Virt,
    /// A Raspberry Pi with a BCM2837: 3A+, 3B, 3B+, CM3, Zero 2 W.
    Pi3,
    /// One with a BCM2711: 4B, 400, CM4.
    Pi4,
}

impl Known {
    /// By where the image was loaded and the core's part number.
    pub fn guess(image: PhysAddr, part: u64) -> Option<Self> {
        match part {
            _ if image.0 >= 0x4000_0000 => Some(Self::Virt),
            0xd03 => Some(Self::Pi3),
            0xd08 => Some(Self::Pi4),
            _ => None,
        }
    }

    /// Its UART, for a message when nothing else is known.
    pub fn uart(self) -> Uart {
        let (base, clock_hz, interrupt) = match self {
            Self::Virt => (0x900_0000, None, Interrupt::Gic(33)),
            Self::Pi3 => (0x3f20_1000, Some(PI_UART_HZ), Interrupt::Peripheral(57)),
            Self::Pi4 => (0xfe20_1000, Some(PI_UART_HZ), Interrupt::Gic(32 + 121)),
        };
        Uart {
            base: PhysAddr(base),
            clock_hz,
            interrupt: Some(Line::level(interrupt)),
        }
    }
}

/// What the Pi's firmware sets the PL011's clock to.
const PI_UART_HZ: u64 = 48_000_000;

/// INTID of the virtual timer on every GIC (private peripheral interrupt 11).
const VIRTUAL_TIMER: Line = Line::level(Interrupt::Gic(27));

/// The virtual timer of core 0 in the BCM2836's local controller.
const LOCAL_VIRTUAL_TIMER: Line = Line::level(Interrupt::Local(3));

/// Where a Pi 3's peripherals begin; what a tree calls RAM from here on is none.
const PI3_PERIPHERALS: PhysAddr = PhysAddr(0x3f00_0000);

/// What the Pis' DMA engine, and a Pi 4's second SD host, see of memory where no tree says it: all below the
/// peripherals of a Pi 3, past the VideoCore's cache.
const PI_DMA_WINDOW: Window = Window {
    bus: 0xc000_0000,
    physical: PhysAddr(0),
    size: 0x3f00_0000,
};

/// Where firmware of a Pi keeps the other cores: its tree says so only in newer versions.
const PI_SPIN_TABLE: (PhysAddr, u64) = (PhysAddr(0), 0x1000);

impl Board {
    /// A Raspberry Pi that came without a tree, with as much RAM as the ARM cores have by default.
    ///
    /// `None` for `Virt`, which always has a tree.
    pub fn built_in(known: Known) -> Option<Self> {
        let mut ram = Ranges::default();
        let mut reserved = Ranges::default();
        ram.insert(PhysAddr(0), 0x3c00_0000).ok()?;
        reserved.insert(PI_SPIN_TABLE.0, PI_SPIN_TABLE.1).ok()?;
        let (model, controller, timer_interrupt, peripherals, sd_interrupt, pin) = match known {
            Known::Virt => return None,
            Known::Pi3 => (
                "Raspberry Pi 3",
                Controller::Bcm2836 {
                    local: PhysAddr(0x4000_0000),
                    peripheral: PhysAddr(0x3f00_b000),
                },
                LOCAL_VIRTUAL_TIMER,
                PI3_PERIPHERALS,
                Interrupt::Peripheral(62),
                LedPin::Firmware(2),
            ),
            Known::Pi4 => (
                "Raspberry Pi 4",
                Controller::GicV2 {
                    distributor: PhysAddr(0xff84_1000),
                    cpu: PhysAddr(0xff84_2000),
                },
                VIRTUAL_TIMER,
                PhysAddr(0xfe00_0000),
                Interrupt::Gic(32 + 126),
                LedPin::Gpio(42),
            ),
        };
        let led = LedWiring {
            pin,
            is_low_active: false,
        };
        let at = |offset| PhysAddr(peripherals.0 + offset);
        let dma = Some(PI_DMA_WINDOW);
        let sd_host = |kind, offset| SdHost {
            kind,
            base: at(offset),
            interrupt: Some(Line::level(sd_interrupt)),
            dma,
        };
        let mut sd_hosts = ArrayVec::new();
        sd_hosts.push(sd_host(SdHostKind::Arasan, 0x30_0000));
        if known == Known::Pi4 {
            sd_hosts.push(sd_host(SdHostKind::Emmc2, 0x34_0000));
        }
        Some(Self {
            model,
            has_tree: false,
            cores: 4,
            ram,
            reserved,
            uart: known.uart(),
            controller,
            timer_interrupt,
            timer_hz: None,
            psci: None,
            raspberry_pi: Some(RaspberryPi {
                gpio: at(0x20_0000),
                mailbox: at(0xb880),
                watchdog: at(0x10_0000),
                dma: Some((at(0x7000), dma)),
                system_timer: Some(at(0x3000)),
                activity_led: Some(led),
            }),
            virtio_slots: ArrayVec::new(),
            pci: None,
            sd_hosts,
            command_line: "",
            clock: None,
            // Boards without a tree are QEMU's, whose Raspberry Pi 4 has this one, too.
            pi_rng: Some((PiRngKind::Bcm2835, at(0x10_4000))),
            seed: &[],
        })
    }

    /// Replaces the RAM by what the board says it has.
    pub fn set_ram(&mut self, start: PhysAddr, size: u64) {
        let mut ram = Ranges::default();
        if ram.insert(start, size).is_ok() && !ram.is_empty() {
            self.ram = ram;
        }
    }

    /// The board that the tree in `bytes`, which lies at `address`, describes. The tree is changed: it loses its NOPs.
    pub fn from_tree(bytes: &'static mut [u8], address: PhysAddr) -> Result<Self, BoardError> {
        let tree = Tree::new(bytes).map_err(BoardError::Tree)?;
        reader::read(&tree, address)
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = if self.has_tree {
            "device tree"
        } else {
            "built in"
        };
        writeln!(f, "model           {} ({source})", self.model)?;
        writeln!(f, "cores           {}", self.cores)?;
        for range in self.ram.iter() {
            writeln!(f, "RAM             {} to {}", range.start, range.end)?;
        }
        for range in self.reserved.iter() {
            writeln!(f, "reserved        {} to {}", range.start, range.end)?;
        }
        write!(f, "console         PL011 at {}", self.uart.base)?;
        match self.uart.interrupt {
            Some(line) => writeln!(f, ", {line}")?,
            None => writeln!(f, ", polled")?,
        }
        writeln!(f, "interrupts      {}", self.controller)?;
        match self.psci {
            Some(conduit) => writeln!(f, "firmware calls  PSCI by {conduit:?}")?,
            None => writeln!(f, "firmware calls  none")?,
        }
        if !self.virtio_slots.is_empty() {
            writeln!(f, "virtio          {} slots", self.virtio_slots.len())?;
        }
        if let Some(host) = &self.pci {
            writeln!(f, "PCI             configuration space at {}", host.ecam)?;
        }
        for host in &self.sd_hosts {
            writeln!(f, "SD host         {:?} at {}", host.kind, host.base)?;
        }
        writeln!(f, "command line    {}", self.command_line)
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GicV2 { distributor, cpu } => {
                write!(f, "GICv2, distributor {distributor}, CPU {cpu}")
            }
            Self::GicV3 {
                distributor,
                redistributors,
            } => {
                write!(f, "GICv3, distributor {distributor}, redistributors")?;
                for (start, _) in redistributors {
                    write!(f, " {start}")?;
                }
                Ok(())
            }
            Self::Bcm2836 { local, peripheral } => {
                write!(f, "BCM2836, local {local}, peripherals {peripheral}")
            }
        }
    }
}
