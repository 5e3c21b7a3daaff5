//! PCI devices on the first bus behind a host bridge with memory-mapped configuration space.
//!
//! Crate `virtio-drivers` reads and writes configuration space; what firmware does elsewhere, giving each device
//! addresses for its registers, is done here. Devices behind bridges are not looked for: an emulator has none there.
//!
//! Sources: PCI Express Base Specification, "PCI Express Enhanced Configuration Access Mechanism"; PCI Local Bus
//! Specification 3.0, "Configuration Space".

use super::virtio_blk::Memory;
use crate::arch::aarch64::board::{Line, PciHost, Window};
use crate::arch::aarch64::kernel_map;
use crate::mm::addr::PhysAddr;
use core::fmt;
use core::ptr::with_exposed_provenance;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, Command, DeviceFunction, MemoryBarType, MmioCam, PciError, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError, virtio_device_type};

/// Bytes of configuration space of one bus.
const BUS_SIZE: u64 = 1 << 20;

/// Interrupt line and pin; the pin is in the second byte.
const INTERRUPT: u32 = 0x3c;

/// Of an SD host: how many slots it has, and where the first one's registers are.
const SLOT_INFORMATION: u32 = 0x40;

/// Class and sub-class of SD hosts.
const SD_HOST: (u8, u8) = (0x08, 0x05);

/// Registers a function can ask addresses for.
const BARS: u8 = 6;

/// Why a device cannot be used.
#[derive(Debug)]
pub enum DeviceError {
    /// Configuration space says what cannot be.
    Pci(PciError),
    /// There are no addresses for its registers.
    NoAddresses,
    /// What `virtio-drivers` says of it.
    Virtio(VirtioPciError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(error) => write!(f, "{error}"),
            Self::NoAddresses => f.write_str("the bridge has no addresses left for its registers"),
            Self::Virtio(error) => write!(f, "{error}"),
        }
    }
}

/// Addresses of one kind that no device has yet.
struct Addresses {
    next: u64,
    end: u64,
}

impl Addresses {
    /// What a bridge gives to devices, if they are the same numbers on both of its sides: the transport takes the one
    /// for the other.
    fn new(window: Option<Window>) -> Self {
        match window {
            Some(window) if window.bus == window.physical.0 => Self {
                next: window.bus,
                end: window.bus.saturating_add(window.size),
            },
            _ => Self { next: 0, end: 0 },
        }
    }

    /// `size` bytes, a power of two, at a multiple of it.
    fn take(&mut self, size: u64) -> Option<u64> {
        // Nobody lives at 0: it means that there are none.
        let start = self.next.max(1).checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

/// The first bus behind a bridge.
pub struct Bus<'b> {
    host: &'b PciHost,
    ecam: *const u8,
    root: PciRoot<MmioCam<'static>>,
    memory_32: Addresses,
    memory_64: Addresses,
}

/// A virtio disk that was found.
pub struct Disk {
    /// Where, as `lspci` writes it.
    pub place: DeviceFunction,
    /// How it is spoken to, or why it cannot be.
    pub transport: Result<PciTransport, DeviceError>,
    /// Its interrupt.
    pub interrupt: Option<Line>,
}

/// An SD host controller that was found.
pub struct SdHost {
    /// Where, as `lspci` writes it.
    pub place: DeviceFunction,
    /// The registers of its first slot.
    pub base: Result<PhysAddr, DeviceError>,
    /// Its interrupt.
    pub interrupt: Option<Line>,
}

impl<'b> Bus<'b> {
    /// The bus behind `host`; `None` where its configuration space cannot be mapped.
    pub fn new(host: &'b PciHost) -> Option<Self> {
        let size = host.ecam_size.min(BUS_SIZE);
        if size < BUS_SIZE {
            return None;
        }
        let ecam = kernel_map::map_device(host.ecam, size).ok()?;
        let ecam = with_exposed_provenance::<u8>(ecam.0 as usize);
        // SAFETY: configuration space of one bus, mapped for good; only `self` writes to it.
        let access = unsafe { MmioCam::new(ecam.cast_mut(), Cam::Ecam) };
        Some(Self {
            host,
            ecam,
            root: PciRoot::new(access),
            memory_32: Addresses::new(host.memory_32),
            memory_64: Addresses::new(host.memory_64),
        })
    }

    /// All SD host controllers on it, ready to be used: base class 08, sub-class 05.
    pub fn sd_hosts(&mut self) -> impl Iterator<Item = SdHost> + '_ {
        let found: alloc::vec::Vec<DeviceFunction> = self
            .root
            .enumerate_bus(0)
            .filter(|(_, info)| (info.class, info.subclass) == SD_HOST)
            .map(|(place, _)| place)
            .collect();
        found.into_iter().map(|place| SdHost {
            place,
            base: self
                .give_addresses(place)
                .and_then(|()| self.first_registers(place)),
            interrupt: self.interrupt(place),
        })
    }

    /// Where the registers of an SD host's first slot are.
    fn first_registers(&mut self, place: DeviceFunction) -> Result<PhysAddr, DeviceError> {
        // SD Host Controller specification, "Slot Information Register": the first slot's BAR.
        let bar = (self.read(place, SLOT_INFORMATION) & 0b111) as u8;
        match self.root.bar_info(place, bar).map_err(DeviceError::Pci)? {
            Some(BarInfo::Memory { address, .. }) => Ok(PhysAddr(address)),
            _ => Err(DeviceError::NoAddresses),
        }
    }

    /// All virtio disks on it, ready to be used.
    pub fn disks(&mut self) -> impl Iterator<Item = Disk> + '_ {
        let found: alloc::vec::Vec<DeviceFunction> = self
            .root
            .enumerate_bus(0)
            .filter(|(_, info)| virtio_device_type(info) == Some(DeviceType::Block))
            .map(|(place, _)| place)
            .collect();
        found.into_iter().map(|place| Disk {
            place,
            transport: self.give_addresses(place).and_then(|()| {
                PciTransport::new::<Memory, _>(&mut self.root, place).map_err(DeviceError::Virtio)
            }),
            interrupt: self.interrupt(place),
        })
    }

    /// Gives a function's registers addresses, and lets it be reached and reach memory.
    fn give_addresses(&mut self, place: DeviceFunction) -> Result<(), DeviceError> {
        let mut bar = 0;
        while bar < BARS {
            let info = self.root.bar_info(place, bar).map_err(DeviceError::Pci)?;
            let width = match &info {
                Some(info) if info.takes_two_entries() => 2,
                _ => 1,
            };
            if let Some(BarInfo::Memory {
                address_type, size, ..
            }) = info
                && size.is_power_of_two()
            {
                // Neighbours in one page would be mapped together.
                let size = size.max(4096);
                match address_type {
                    MemoryBarType::Width64 => {
                        let wide = self.memory_64.take(size);
                        let address = wide.or_else(|| self.memory_32.take(size));
                        let address = address.ok_or(DeviceError::NoAddresses)?;
                        self.root.set_bar_64(place, bar, address);
                    }
                    _ => {
                        let address = self.memory_32.take(size);
                        let address = address.and_then(|address| u32::try_from(address).ok());
                        let address = address.ok_or(DeviceError::NoAddresses)?;
                        self.root.set_bar_32(place, bar, address);
                    }
                }
            }
            bar += width;
        }
        self.root
            .set_command(place, Command::MEMORY_SPACE | Command::BUS_MASTER);
        Ok(())
    }

    /// A word of the function's configuration space.
    fn read(&self, place: DeviceFunction, register: u32) -> u32 {
        let offset = u32::from(place.device) << 15 | u32::from(place.function) << 12 | register;
        // SAFETY: within configuration space of the bus.
        unsafe { self.ecam.add(offset as usize).cast::<u32>().read_volatile() }
    }

    /// Where the function's interrupt pin leads.
    fn interrupt(&self, place: DeviceFunction) -> Option<Line> {
        let pin = self.read(place, INTERRUPT) >> 8 & 0xff;
        let address = u32::from(self.host.first_bus) << 16
            | u32::from(place.device) << 11
            | u32::from(place.function) << 8;
        (1..=4)
            .contains(&pin)
            .then(|| self.host.interrupts.line(address, pin))?
    }
}
