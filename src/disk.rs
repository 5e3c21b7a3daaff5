//! Disks: what the machine has, by name.
//!
//! A disk is called as Linux calls it, `vda` for the first virtio disk, and its partitions `vda1` and so on; the first SD
//! card is `mmcblk0`, and its first partition `mmcblk0p1`.

mod bench;

use crate::arch::aarch64::board::{Board, Controller, Line, PciHost, SdHost, SdHostKind};
use crate::arch::aarch64::kernel_map;
use crate::command::{self, COMMANDS, Command, SUCCESS, Status};
use crate::driver::gpio;
use crate::driver::mailbox::Clock;
use crate::driver::pci;
use crate::driver::sd_disk::{CardError, SdDisk, SdDiskError};
use crate::driver::sdhci::{Quirks, Sdhci};
use crate::driver::virtio_blk::{VirtioBlk, WATCH_US};
use crate::fs::block::{BlockDevice, BlockError, Properties};
use crate::fs::blocking;
use crate::fs::ext4::SuperblockInfo;
use crate::fs::partition::{self, Partition};
use crate::size::{self, Size};
use crate::sync::SpinLock;
use crate::thread::{self, Role};
use crate::{interrupt, kernel, println, selftest, shell};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use linkme::distributed_slice;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

/// A disk or a partition.
#[derive(Clone)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// What it is on, where it is a partition.
    pub parent: Option<String>,
    /// The name and the UUID that the partition table gives it; empty for a whole disk.
    pub part_label: String,
    /// As above.
    pub part_uuid: String,
    /// Where its bytes are.
    pub device: Arc<dyn BlockDevice>,
}

impl Disk {
    /// Whether it is a whole SD card.
    fn is_card(&self) -> bool {
        self.parent.is_none() && self.name.starts_with("mmcblk")
    }
}

static DISKS: SpinLock<Vec<Disk>> = SpinLock::new(Vec::new());

type Virtio = VirtioBlk<SomeTransport<'static>>;

/// Virtio disks, for their interrupts: the handler gets the index.
static VIRTIO: SpinLock<Vec<Arc<Virtio>>> = SpinLock::new(Vec::new());

/// Bytes of registers of a virtio slot.
const SLOT_SIZE: u64 = 0x200;

/// Finds the machine's disks and their partitions. What cannot be used is told.
pub fn init(board: &Board) {
    // QEMU gives the first disk the last slot.
    for slot in board.virtio_slots.iter().rev() {
        let Ok(base) = kernel_map::map_device(slot.base, SLOT_SIZE) else {
            println!(
                "pinfold: the virtio registers at {} cannot be mapped",
                slot.base
            );
            continue;
        };
        let Some(header) = NonNull::new(base.0 as *mut VirtIOHeader) else {
            continue;
        };
        // SAFETY: a virtio slot's registers, mapped for good; nobody else uses them.
        let transport = unsafe { MmioTransport::new(header, SLOT_SIZE as usize) };
        // Most slots are empty.
        let Ok(transport) = transport else { continue };
        if transport.device_type() != DeviceType::Block {
            continue;
        }
        match VirtioBlk::new(transport.into()) {
            Ok(disk) => add_virtio(Arc::new(disk), slot.interrupt),
            Err(error) => println!("pinfold: the virtio disk at {}: {error}", slot.base),
        }
    }
    if let Some(host) = &board.pci {
        add_pci(host);
    }
    // A Pi 4's card is on its second host; QEMU has it on the first.
    for host in board.sd_hosts.iter().rev() {
        add_card(board, host);
    }
    if !VIRTIO.lock().is_empty()
        && let Err(error) = thread::spawn("disk watch", Role::Kernel, watch)
    {
        println!("pinfold: disks are not watched: {error}");
    }
}

/// The virtio disks on a PCI bus.
fn add_pci(host: &PciHost) {
    let Some(mut bus) = pci::Bus::new(host) else {
        println!("pinfold: the PCI bus at {} cannot be reached", host.ecam);
        return;
    };
    for found in bus.disks() {
        let fail =
            |error: &dyn fmt::Display| println!("pinfold: PCI device {}: {error}", found.place);
        match found
            .transport
            .map(|transport| VirtioBlk::new(transport.into()))
        {
            Ok(Ok(disk)) => add_virtio(Arc::new(disk), found.interrupt),
            Ok(Err(error)) => fail(&error),
            Err(error) => fail(&error),
        }
    }
}

fn add_virtio(disk: Arc<Virtio>, line: Option<Line>) {
    let index = {
        let mut disks = VIRTIO.lock();
        disks.push(disk.clone());
        disks.len() - 1
    };
    let name = name("vd", index);
    let listening = line.map(|line| interrupt::listen(line, on_interrupt, index));
    match listening {
        Some(Ok(())) => add(name, disk),
        // Nobody would ever hear of a completion.
        Some(Err(error)) => println!("pinfold: {name}: {error}; the disk is left out"),
        None => println!("pinfold: {name} has no interrupt; the disk is left out"),
    }
}

/// The card in `host`, if there is one.
fn add_card(board: &Board, host: &SdHost) {
    let fail = |error: &dyn fmt::Display| {
        println!("pinfold: the SD host at {}: {error}", host.base);
    };
    let (Ok(registers), Some(pi)) = (
        kernel_map::map_device(host.base, Sdhci::SIZE),
        board.raspberry_pi,
    ) else {
        return fail(&"it cannot be reached");
    };
    let is_arasan = host.kind == SdHostKind::Arasan;
    if is_arasan
        && matches!(board.controller, Controller::Bcm2836 { .. })
        && let Ok(gpio) = kernel_map::map_device(pi.gpio, 0x1000)
    {
        // SAFETY: just mapped, and nobody else decides about these pins.
        unsafe { gpio::select_card_on_arasan(gpio) };
    }
    let clock = if is_arasan { Clock::Emmc } else { Clock::Emmc2 };
    let Some(Ok(base_hz)) = kernel::mailbox().map(|mailbox| mailbox.lock().clock_rate(clock))
    else {
        return fail(&"its clock is not known");
    };
    let quirks = Quirks {
        base_hz,
        loses_writes: is_arasan,
        switches_power: !is_arasan,
    };
    // SAFETY: just mapped, for good, and nobody else uses them.
    match SdDisk::new(unsafe { Sdhci::new(registers, quirks) }) {
        Ok(disk) => {
            let number = list().iter().filter(|disk| disk.is_card()).count();
            log::debug!("mmcblk{number} calls itself {}", disk.name());
            add(alloc::format!("mmcblk{number}"), disk);
        }
        Err(SdDiskError::Card(CardError::NoCard)) => {}
        Err(error) => fail(&error),
    }
}

fn on_interrupt(index: usize) {
    let disk = VIRTIO.lock().get(index).cloned();
    if let Some(disk) = disk {
        disk.on_interrupt();
    }
}

fn watch() {
    loop {
        thread::sleep(WATCH_US);
        let disks = VIRTIO.lock().clone();
        disks.iter().for_each(|disk| disk.watch());
    }
}

/// `vda` to `vdz`, `vdaa` and on, as Linux counts.
fn name(prefix: &str, index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    let mut name = String::from(prefix);
    if index >= 26 {
        name.push(letter(index / 26 - 1));
    }
    name.push(letter(index));
    name
}

/// Adds a disk and its partitions.
fn add(name: String, device: Arc<dyn BlockDevice>) {
    let partitions = partition::find(&*device).unwrap_or_else(|error| {
        println!("pinfold: {name}: its partitions cannot be read: {error:?}");
        Vec::new()
    });
    let separator = if name.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    let mut disks = DISKS.lock();
    disks.push(Disk {
        name: name.clone(),
        parent: None,
        part_label: String::new(),
        part_uuid: String::new(),
        device: device.clone(),
    });
    for entry in partitions {
        disks.push(Disk {
            name: alloc::format!("{name}{separator}{}", entry.number),
            parent: Some(name.clone()),
            device: Arc::new(Partition::new(device.clone(), &entry)),
            part_label: entry.name,
            part_uuid: entry.uuid,
        });
    }
}

/// Why a disk was not found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FindError {
    /// There is none.
    None,
    /// There are several, with these names.
    Several(String),
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no such disk or partition; `disks` lists them"),
            Self::Several(names) => write!(f, "more than one: {names}"),
        }
    }
}

/// The disk or partition that is called `what`: its name, or as in Linux's `root=` one of `LABEL=` and `UUID=` of the
/// ext4 file system on it, `PARTLABEL=` and `PARTUUID=` of the partition.
pub fn find(what: &str) -> Result<Disk, FindError> {
    let (key, value) = what.split_once('=').unwrap_or(("", what));
    let is_meant = |disk: &Disk| match key {
        "" => disk.name == value,
        "PARTLABEL" => disk.parent.is_some() && disk.part_label == value,
        "PARTUUID" => disk.parent.is_some() && disk.part_uuid.eq_ignore_ascii_case(value),
        _ => match (key, SuperblockInfo::read(&*disk.device)) {
            ("LABEL", Ok(fs)) => fs.label() == value.as_bytes(),
            ("UUID", Ok(fs)) => alloc::format!("{}", fs.uuid()).eq_ignore_ascii_case(value),
            _ => false,
        },
    };
    let mut found: Vec<Disk> = list().into_iter().filter(is_meant).collect();
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(FindError::None),
        (Some(disk), true) => Ok(disk),
        (Some(last), false) => {
            found.push(last);
            let names: Vec<&str> = found.iter().map(|disk| disk.name.as_str()).collect();
            Err(FindError::Several(names.join(", ")))
        }
    }
}

/// All disks and partitions, in the order they were found.
pub fn list() -> Vec<Disk> {
    DISKS.lock().clone()
}

#[distributed_slice(COMMANDS)]
static COMMAND: Command = Command {
    name: "disks",
    arguments: "[-b]",
    summary: "the disks, their partitions, and what they can do\n\n\
        Names and labels are what `mount` and root= take.\n\
        -b  sizes in bytes\n\
        Example: disks",
    run: disks,
};

fn disks(arguments: &[&str]) -> Status {
    let unit = match command::options(arguments, "b") {
        Ok((options, [])) => size::unit(&options),
        _ => return shell::usage("disks"),
    };
    for disk in list() {
        let Properties {
            capacity,
            is_read_only,
            has_flush,
            has_discard,
            has_write_zeroes,
            ..
        } = disk.device.properties();
        let indent = if disk.parent.is_some() { "  " } else { "" };
        let words = [
            (is_read_only, "read-only"),
            (
                !has_flush && !is_read_only,
                "without flush: nothing is known to be durable",
            ),
            (has_discard, "discard"),
            (has_write_zeroes, "write-zeroes"),
        ];
        let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
        let label = alloc::format!("{indent}{}", disk.name);
        println!(
            "{label:12} {:>9}  {}",
            Size(capacity, unit),
            words.join(", ")
        );
        let call = |key: &str, value: &dyn fmt::Display| println!("{:14}{key}={value}", "");
        if let Ok(fs) = SuperblockInfo::read(&*disk.device) {
            if !fs.label().is_empty() {
                call("LABEL", &fs.label().escape_ascii());
            }
            call("UUID", &fs.uuid());
        }
        if !disk.part_label.is_empty() {
            call("PARTLABEL", &disk.part_label);
        }
        if disk.parent.is_some() {
            call("PARTUUID", &disk.part_uuid);
        }
    }
    SUCCESS
}

selftest!(fn runs_are_what_their_sectors_are() "disks: a long run reads as its sectors do one by one, up to the last" {
    const RUN: u64 = 64;
    for Disk { name, device, .. } in list() {
        let Properties { capacity, sector_size, .. } = device.properties();
        let sector = u64::from(sector_size);
        let len = capacity.min(RUN * sector);
        for start in [0, capacity - len] {
            let run = blocking::read(&*device, start, len as usize).expect("a run");
            for (i, part) in run.chunks(sector as usize).enumerate() {
                let at = start + i as u64 * sector;
                let alone = blocking::read(&*device, at, part.len()).expect("a sector");
                assert!(alone == part, "{name}: byte {at} on");
            }
        }
        let beyond = blocking::read(&*device, capacity, sector as usize);
        assert!(matches!(beyond, Err(BlockError::OutOfRange { .. })), "{name}: {beyond:?}");
    }
});
