//! Disks: what the machine has, by name.
//!
//! A disk is called as Linux calls it, `vda` for the first virtio disk, and its partitions `vda1` and so on; the first SD
//! card is `mmcblk0`, and its first partition `mmcblk0p1`.

mod bench;

use crate::arch::aarch64::board::{
    Board, Controller, Line, PciHost, RaspberryPi, SdHost, SdHostKind, Window,
};
use crate::arch::aarch64::kernel_map;
use crate::command::{self, COMMANDS, Command, SUCCESS, Status};
use crate::driver::bcm_dma::{self, Channel};
use crate::driver::gpio;
use crate::driver::led::Led;
use crate::driver::mailbox::Clock;
use crate::driver::pci;
use crate::driver::sd::card::CardError;
use crate::driver::sd::disk::{SdDisk, SdDiskError};
use crate::driver::sdhci::{Memory, Method, Quirks, Sdhci};
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

/// SD cards, by their names.
static CARDS: SpinLock<Vec<(String, Arc<SdDisk>)>> = SpinLock::new(Vec::new());

/// The SD cards, with their names.
pub fn cards() -> Vec<(String, Arc<SdDisk>)> {
    CARDS.lock().clone()
}

static DISKS: SpinLock<Vec<Disk>> = SpinLock::new(Vec::new());

type Virtio = VirtioBlk<SomeTransport<'static>>;

/// Virtio disks, for their interrupts: the handler gets the index.
static VIRTIO: SpinLock<Vec<Arc<Virtio>>> = SpinLock::new(Vec::new());

/// Bytes of registers of a virtio slot.
const SLOT_SIZE: u64 = 0x200;

/// Finds the machine's disks and their partitions. What cannot be used is told. Blocks of SD cards are moved by `method`,
/// where one is said.
pub fn init(board: &Board, method: Option<Method>) {
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
        add_pci(host, method);
    }
    // A Pi 4's card is on its second host; QEMU has it on the first.
    for host in board.sd_hosts.iter().rev() {
        if let Err(error) = add_pi_card(board, host, method) {
            println!("pinfold: the SD host at {}: {error}", host.base);
        }
    }
    if !VIRTIO.lock().is_empty()
        && let Err(error) = thread::spawn("disk watch", Role::Kernel, watch)
    {
        println!("pinfold: disks are not watched: {error}");
    }
}

/// The virtio disks and SD cards on a PCI bus.
fn add_pci(host: &PciHost, method: Option<Method>) {
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
    for found in bus.sd_hosts() {
        let fail =
            |error: &dyn fmt::Display| println!("pinfold: PCI device {}: {error}", found.place);
        let quirks = Quirks {
            base_hz: None,
            loses_writes: false,
            has_no_capabilities: false,
            switches_power: true,
            has_detection: true,
        };
        let base = match found.base {
            Ok(base) => base,
            Err(error) => {
                fail(&error);
                continue;
            }
        };
        let memory = Memory {
            window: None,
            engine: None,
            base,
        };
        let added = kernel_map::map_device(base, Sdhci::SIZE)
            .map_err(|_| SdHostError::Unmapped)
            .and_then(|registers| {
                // SAFETY: just mapped, for good, and nobody else uses them. PCI devices see memory as it is.
                let host = unsafe { Sdhci::new(registers, quirks, memory) };
                add_card(host, found.interrupt, None, method)
            });
        if let Err(error) = added {
            fail(&error);
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

/// Why an SD host is not used.
#[derive(Debug)]
enum SdHostError {
    /// Its registers cannot be mapped.
    Unmapped,
    /// Nobody knows the clock that it divides.
    NoClock,
    /// Its card makes no disk.
    Disk(SdDiskError),
}

impl fmt::Display for SdHostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmapped => f.write_str("it cannot be reached"),
            Self::NoClock => f.write_str("its clock is not known"),
            Self::Disk(error) => write!(f, "{error}"),
        }
    }
}

/// The card in a Raspberry Pi's host, if there is one.
fn add_pi_card(board: &Board, host: &SdHost, method: Option<Method>) -> Result<(), SdHostError> {
    let registers =
        kernel_map::map_device(host.base, Sdhci::SIZE).map_err(|_| SdHostError::Unmapped)?;
    let pi = board.raspberry_pi.ok_or(SdHostError::Unmapped)?;
    let is_arasan = host.kind == SdHostKind::Arasan;
    if is_arasan
        && matches!(board.controller, Controller::Bcm2836 { .. })
        && let Ok(gpio) = kernel_map::map_device(pi.gpio, 0x1000)
    {
        // SAFETY: just mapped, and nobody else decides about these pins.
        unsafe { gpio::select_card_on_arasan(gpio) };
    }
    let mailbox = kernel::mailbox().ok_or(SdHostError::NoClock)?;
    let clock = if is_arasan { Clock::Emmc } else { Clock::Emmc2 };
    let base_hz = mailbox.lock().clock_rate(clock);
    // Firmware that does not know a clock may say that it stands still.
    let base_hz = base_hz.ok().filter(|hz| *hz > 0);
    let base_hz = base_hz.ok_or(SdHostError::NoClock)?;
    match mailbox.lock().power_card_on() {
        Ok(true) => {}
        // Where firmware does not rule it, it is on.
        answer => log::debug!("power of the card: {answer:?}"),
    }
    let quirks = Quirks {
        base_hz: Some(base_hz),
        loses_writes: is_arasan,
        has_no_capabilities: is_arasan,
        switches_power: !is_arasan,
        // `broken-cd` in the trees of all Pis.
        has_detection: false,
    };
    let memory = Memory {
        window: host.dma,
        engine: if is_arasan { engine(&pi) } else { None },
        base: host.base,
    };
    let led = pi.activity_led.and_then(|wiring| Led::new(wiring, pi.gpio));
    // SAFETY: just mapped, for good, and nobody else uses them. The tree says what is reached of memory.
    let host_controller = unsafe { Sdhci::new(registers, quirks, memory) };
    add_card(host_controller, host.interrupt, led, method)
}

/// A channel of the DMA engine, and the memory that it reaches.
fn engine(pi: &RaspberryPi) -> Option<(Channel, Option<Window>)> {
    let (base, window) = pi.dma?;
    let channels = kernel::mailbox()?.lock().dma_channels();
    let channels = channels.inspect_err(|error| log::debug!("DMA channels: {error}"));
    let engine = kernel_map::map_device(base, Channel::SIZE).ok()?;
    // SAFETY: just mapped, for good; firmware leaves these channels to us, and nobody else has asked.
    let channel = unsafe { Channel::new(engine, channels.ok()? & bcm_dma::FULL_CHANNELS) };
    Some((channel?, window))
}

/// The card in `host`, if there is one.
fn add_card(
    mut host: Sdhci,
    interrupt: Option<Line>,
    led: Option<Led>,
    method: Option<Method>,
) -> Result<(), SdHostError> {
    if let Some(method) = method
        && !host.set_method(method)
    {
        let best = host.best_method();
        println!("pinfold: an SD host offers no {method}; {best} it is");
    }
    let card = match SdDisk::new(host, interrupt, led) {
        Ok(card) => card,
        Err(SdDiskError::Card(CardError::NoCard)) => return Ok(()),
        Err(error) => return Err(SdHostError::Disk(error)),
    };
    let name = {
        let mut cards = CARDS.lock();
        let name = alloc::format!("mmcblk{}", cards.len());
        cards.push((name.clone(), card.clone()));
        name
    };
    log::debug!("{name} is {}", card.state());
    if let Some(why) = card.card.locked {
        println!("pinfold: {name} is read-only: {why}");
    }
    add(name, card);
    Ok(())
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
        println!("pinfold: {name}: its partitions cannot be read: {error}");
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

/// The disk or partition that is called `what`: its name, with `/dev/` or without, or as in Linux's `root=` one of `LABEL=`
/// and `UUID=` of the ext4 file system on it, `PARTLABEL=` and `PARTUUID=` of the partition.
pub fn find(what: &str) -> Result<Disk, FindError> {
    let (key, value) = what.split_once('=').unwrap_or(("", what));
    let is_meant = |disk: &Disk| match key {
        "" => disk.name == value.strip_prefix("/dev/").unwrap_or(value),
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
            max_discard,
            max_write_zeroes,
            ..
        } = disk.device.properties();
        let indent = if disk.parent.is_some() { "  " } else { "" };
        let words = [
            (is_read_only, "read-only"),
            (
                !has_flush && !is_read_only,
                "without flush: nothing is known to be durable",
            ),
            (max_discard > 0, "discard"),
            (max_write_zeroes > 0, "write-zeroes"),
        ];
        let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
        let label = alloc::format!("{indent}{}", disk.name);
        println!(
            "{label:12} {:>9}  {}",
            Size(capacity, unit),
            words.join(", ")
        );
        if let Some((_, card)) = cards().iter().find(|(name, _)| *name == disk.name) {
            println!("{:12} {}", "", card.state());
            if let Some(why) = card.card.locked {
                println!("{:12} read-only, since {why}", "");
            }
        }
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
