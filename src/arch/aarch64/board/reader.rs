//! Fills a [`Board`] from a device tree, in one pass: what refers to a node that may come later (an interrupt to its
//! controller, `stdout-path` to a UART) is kept and resolved at the end.
//!
//! Sources: Devicetree Specification v0.4; the bindings `arm,gic`, `arm,gic-v3`, `brcm,bcm2836-l1-intc`,
//! `brcm,bcm2835-armctrl-ic`, `arm,pl011`, `arm,psci`, `arm,armv7-timer`, `virtio,mmio`, `pci-host-ecam-generic`,
//! `brcm,bcm2835-pm`, `brcm,bcm2835-mbox`, `brcm,bcm2835-sdhci`, `brcm,bcm2835-dma`, `brcm,bcm2835-system-timer`,
//! `raspberrypi,firmware-gpio`, `gpio-leds`, `arm,pl031`, `brcm,bcm2835-rng`, `brcm,iproc-rng200`.

use super::interrupts::{Kind, Parents, Specifiers};
use super::{
    Board, BoardError, Controller, InterruptMap, LOCAL_VIRTUAL_TIMER, LedPin, LedWiring,
    MAX_REDISTRIBUTOR_REGIONS, MAX_SD_HOSTS, MAX_VIRTIO_SLOTS, PI_DMA_WINDOW, PI_SPIN_TABLE,
    PI_UART_HZ, PI3_PERIPHERALS, PciHost, PiRngKind, PsciConduit, Ranges, RaspberryPi, SdHost,
    SdHostKind, Uart, VIRTUAL_TIMER, VirtioSlot, Window,
};
use crate::arch::aarch64::device_tree::Tree;
use crate::arch::aarch64::device_tree::node::{Bus, Node};
use crate::mm::addr::PhysAddr;
use arrayvec::ArrayVec;

/// Nodes deeper than this hold nothing of ours: what we know is at most on a bus on a bus. It also bounds the stack.
const MAX_DEPTH: usize = 3;

/// Where `armctrl`'s registers begin in the page that Broadcom's manual describes.
const ARMCTRL_OFFSET: u64 = 0x200;

/// Place of the virtual timer among a timer node's interrupts: secure, non-secure, virtual, hypervisor.
const VIRTUAL: usize = 2;

type Text = &'static str;

/// The board that `tree`, which lies at `address`, describes.
pub(super) fn read(tree: &Tree<'static>, address: PhysAddr) -> Result<Board, BoardError> {
    let mut found = Found::default();
    for (start, size) in tree.reservations() {
        found.reserved.insert(PhysAddr(start), size)?;
    }
    found.reserved.insert(address, tree.used() as u64)?;
    let root = tree.root().ok_or(BoardError::Missing("root"))?;
    found.visit_children(&root, &Bus::root(&root))?;
    found.finish(&root)
}

/// What this system has a use for.
#[derive(Clone, Copy)]
enum Device {
    VirtioMmio,
    Pl011,
    GicV2,
    GicV3,
    Bcm2836Local,
    Bcm2836Peripheral,
    Timer,
    Psci,
    PiWatchdog,
    PiMailbox,
    PiGpio,
    PiSdHost(SdHostKind),
    PiDma,
    PiSystemTimer,
    PiFirmwarePins,
    PiRng(PiRngKind),
    Pl031,
    Pci,
}

impl Device {
    /// By one of the strings in `compatible`.
    fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"virtio,mmio" => Self::VirtioMmio,
            b"arm,pl011" => Self::Pl011,
            b"arm,cortex-a15-gic" | b"arm,gic-400" => Self::GicV2,
            b"arm,gic-v3" => Self::GicV3,
            b"brcm,bcm2836-l1-intc" => Self::Bcm2836Local,
            b"brcm,bcm2836-armctrl-ic" => Self::Bcm2836Peripheral,
            b"arm,armv8-timer" | b"arm,armv7-timer" => Self::Timer,
            b"arm,psci-1.0" | b"arm,psci-0.2" => Self::Psci,
            b"brcm,bcm2835-pm" | b"brcm,bcm2711-pm" => Self::PiWatchdog,
            b"brcm,bcm2835-mbox" => Self::PiMailbox,
            b"brcm,bcm2835-gpio" | b"brcm,bcm2711-gpio" => Self::PiGpio,
            b"brcm,bcm2835-sdhci" | b"brcm,bcm2835-mmc" => Self::PiSdHost(SdHostKind::Arasan),
            b"brcm,bcm2711-emmc2" => Self::PiSdHost(SdHostKind::Emmc2),
            b"brcm,bcm2835-dma" => Self::PiDma,
            b"brcm,bcm2835-system-timer" => Self::PiSystemTimer,
            b"raspberrypi,firmware-gpio" => Self::PiFirmwarePins,
            b"brcm,bcm2835-rng" => Self::PiRng(PiRngKind::Bcm2835),
            b"brcm,bcm2711-rng200" | b"brcm,iproc-rng200" => Self::PiRng(PiRngKind::Rng200),
            b"arm,pl031" => Self::Pl031,
            b"pci-host-ecam-generic" => Self::Pci,
            _ => return None,
        })
    }
}

struct FoundUart {
    node: Text,
    base: PhysAddr,
    interrupt: Specifiers<'static>,
}

struct FoundSdHost {
    kind: SdHostKind,
    base: PhysAddr,
    interrupt: Specifiers<'static>,
    dma: Option<Window>,
}

struct FoundPci {
    ecam: (PhysAddr, u64),
    first_bus: u8,
    memory_32: Option<Window>,
    memory_64: Option<Window>,
    map: &'static [u8],
    mask: &'static [u8],
}

/// What has been found on the way through the tree.
#[derive(Default)]
struct Found {
    ram: Ranges,
    reserved: Ranges,
    cores: u32,
    uarts: ArrayVec<FoundUart, 4>,
    parents: Parents,
    gic: Option<Controller>,
    local: Option<PhysAddr>,
    peripheral: Option<PhysAddr>,
    timer: Specifiers<'static>,
    timer_hz: Option<u32>,
    psci: Option<PsciConduit>,
    gpio: Option<PhysAddr>,
    mailbox: Option<PhysAddr>,
    watchdog: Option<PhysAddr>,
    dma: Option<(PhysAddr, Option<Window>)>,
    system_timer: Option<PhysAddr>,
    /// The phandles of those who have pins: the chip, and firmware.
    gpio_phandle: Option<u32>,
    firmware_pins: Option<u32>,
    /// Whose pin the activity LED has, which, and its flags.
    activity_led: Option<[u32; 3]>,
    virtio: ArrayVec<(PhysAddr, Specifiers<'static>), MAX_VIRTIO_SLOTS>,
    pci: Option<FoundPci>,
    sd_hosts: ArrayVec<FoundSdHost, MAX_SD_HOSTS>,
    clock: Option<PhysAddr>,
    pi_rng: Option<(PiRngKind, PhysAddr)>,
    command_line: Text,
    stdout_path: Text,
    rng_seed: &'static [u8],
    kaslr_seed: &'static [u8],
}

impl Found {
    fn visit_children(
        &mut self,
        parent: &Node<'_, 'static>,
        bus: &Bus<'_, 'static>,
    ) -> Result<(), BoardError> {
        if bus.depth > MAX_DEPTH {
            return Ok(());
        }
        for node in parent.children() {
            if bus.is_on && node.is_on() {
                self.look_at(&node, bus)?;
                self.visit_children(&node, &bus.inside(&node))?;
            }
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        node: &Node<'_, 'static>,
        bus: &Bus<'_, 'static>,
    ) -> Result<(), BoardError> {
        match (bus.depth, bus.name) {
            (1, _) if node.name == "chosen" => return self.look_at_chosen(node),
            (1, _) if node.text("device_type") == "memory" || node.name.starts_with("memory@") => {
                return insert_all(&mut self.ram, bus, node);
            }
            (2, "reserved-memory") => return insert_all(&mut self.reserved, bus, node),
            (2, "leds") if node.text("label") == "ACT" || node.name.contains("act") => {
                self.activity_led = node.cells("gpios");
            }
            (2, "cpus") if node.text("device_type") == "cpu" => self.cores += 1,
            _ => {}
        }
        self.look_at_device(node, bus);
        Ok(())
    }

    fn look_at_chosen(&mut self, node: &Node<'_, 'static>) -> Result<(), BoardError> {
        self.command_line = node.text("bootargs");
        self.stdout_path = node.text("stdout-path");
        self.rng_seed = node.value("rng-seed");
        self.kaslr_seed = node.value("kaslr-seed");
        let initrd = ["linux,initrd-start", "linux,initrd-end"].map(|name| node.number(name));
        if let [Some(start), Some(end)] = initrd {
            self.reserved
                .insert(PhysAddr(start), end.saturating_sub(start))?;
        }
        Ok(())
    }

    fn look_at_device(&mut self, node: &Node<'_, 'static>, bus: &Bus<'_, 'static>) {
        // The first name that we know is the most special one.
        let Some(device) = node.names().find_map(Device::named) else {
            return;
        };
        let mut registers = bus.registers(node);
        let first = registers.next();
        let base = first.map(|(address, _)| address);
        let interrupt = Specifiers {
            parent: node
                .cell("interrupt-parent")
                .unwrap_or(bus.interrupt_parent),
            value: node.value("interrupts"),
        };
        let sd_host = |kind| {
            move |base| FoundSdHost {
                kind,
                base,
                interrupt,
                dma: bus.dma_window(),
            }
        };
        match device {
            Device::VirtioMmio => push(&mut self.virtio, base.map(|base| (base, interrupt))),
            Device::Pl011 => {
                let uart = base.map(|base| FoundUart {
                    node: node.name,
                    base,
                    interrupt,
                });
                push(&mut self.uarts, uart);
            }
            Device::GicV2 => {
                if let (Some(distributor), Some((cpu, _))) = (base, registers.next()) {
                    self.gic = Some(Controller::GicV2 { distributor, cpu });
                    self.parents.push(Kind::Gic, node);
                }
            }
            Device::GicV3 => {
                if let Some(distributor) = base {
                    let regions = node.cell("#redistributor-regions").unwrap_or(1) as usize;
                    let regions = regions.min(MAX_REDISTRIBUTOR_REGIONS);
                    self.gic = Some(Controller::GicV3 {
                        distributor,
                        redistributors: registers.take(regions).collect(),
                    });
                    self.parents.push(Kind::Gic, node);
                }
            }
            Device::Bcm2836Local => {
                self.local = base;
                self.parents.push(Kind::Local, node);
            }
            Device::Bcm2836Peripheral => {
                self.peripheral = base.map(|base| PhysAddr(base.0.saturating_sub(ARMCTRL_OFFSET)));
                self.parents.push(Kind::Peripheral, node);
            }
            Device::Timer => {
                self.timer = interrupt;
                self.timer_hz = node.cell("clock-frequency");
            }
            Device::Psci => {
                self.psci = match node.text("method") {
                    "hvc" => Some(PsciConduit::Hvc),
                    "smc" => Some(PsciConduit::Smc),
                    _ => None,
                };
            }
            Device::PiWatchdog => self.watchdog = base,
            Device::PiMailbox => self.mailbox = base,
            Device::PiGpio => {
                self.gpio = base;
                self.gpio_phandle = node.cell("phandle");
            }
            Device::PiDma => self.dma = base.map(|base| (base, bus.dma_window())),
            Device::PiSystemTimer => self.system_timer = base,
            Device::PiFirmwarePins => self.firmware_pins = node.cell("phandle"),
            Device::Pl031 => self.clock = base,
            Device::PiRng(kind) => self.pi_rng = base.map(|base| (kind, base)),
            Device::PiSdHost(kind) => push(&mut self.sd_hosts, base.map(sd_host(kind))),
            Device::Pci => self.pci = first.map(|ecam| pci(node, bus, ecam)),
        }
    }

    fn finish(&mut self, root: &Node<'_, 'static>) -> Result<Board, BoardError> {
        let controller = match (self.gic.take(), self.local, self.peripheral) {
            (Some(gic), ..) => gic,
            (None, Some(local), Some(peripheral)) => Controller::Bcm2836 { local, peripheral },
            _ => return Err(BoardError::Missing("interrupt controller")),
        };
        let is_pi3 = matches!(controller, Controller::Bcm2836 { .. });
        let is_pi = root
            .names()
            .any(|name| matches!(name, b"brcm,bcm2837" | b"brcm,bcm2710" | b"brcm,bcm2711"));
        if is_pi3 {
            self.ram.cut(PI3_PERIPHERALS);
        }
        if is_pi {
            self.reserved.insert(PI_SPIN_TABLE.0, PI_SPIN_TABLE.1)?;
        }
        if self.ram.is_empty() {
            return Err(BoardError::Missing("memory"));
        }
        let uart = self.uart().ok_or(BoardError::Missing("PL011 UART"))?;
        let timer_interrupt = self.parents.line(self.timer, VIRTUAL);
        Ok(Board {
            model: match root.text("model") {
                "" => "a machine without a name",
                model => model,
            },
            has_tree: true,
            cores: self.cores.max(1),
            uart: Uart {
                base: uart.base,
                clock_hz: is_pi.then_some(PI_UART_HZ),
                interrupt: self.parents.line(uart.interrupt, 0),
            },
            controller,
            timer_interrupt: timer_interrupt.unwrap_or(if is_pi3 {
                LOCAL_VIRTUAL_TIMER
            } else {
                VIRTUAL_TIMER
            }),
            timer_hz: self.timer_hz,
            psci: self.psci,
            raspberry_pi: if is_pi { self.raspberry_pi() } else { None },
            virtio_slots: self.virtio_slots(),
            pci: self.pci(),
            sd_hosts: self.sd_hosts(is_pi),
            command_line: self.command_line,
            clock: self.clock,
            pi_rng: self.pi_rng,
            seed: if self.rng_seed.is_empty() {
                self.kaslr_seed
            } else {
                self.rng_seed
            },
            ram: core::mem::take(&mut self.ram),
            reserved: core::mem::take(&mut self.reserved),
        })
    }

    /// The console: the PL011 that `stdout-path` names by its path, else the first. Trees of the Pi name the mini UART
    /// there, by an alias, which is on other pins; QEMU shows the PL011.
    fn uart(&self) -> Option<&FoundUart> {
        let path = self.stdout_path.split(':').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let named = self.uarts.iter().find(|uart| uart.node == name);
        named.or(self.uarts.first())
    }

    fn raspberry_pi(&self) -> Option<RaspberryPi> {
        Some(RaspberryPi {
            gpio: self.gpio?,
            mailbox: self.mailbox?,
            watchdog: self.watchdog?,
            dma: self
                .dma
                .map(|(base, window)| (base, window.or(Some(PI_DMA_WINDOW)))),
            system_timer: self.system_timer,
            activity_led: self.activity_led(),
        })
    }

    fn activity_led(&self) -> Option<LedWiring> {
        const LOW_ACTIVE: u32 = 1 << 0;
        let [whose, pin, flags] = self.activity_led?;
        let pin = match Some(whose) {
            owner if owner == self.gpio_phandle && pin < 58 => LedPin::Gpio(pin),
            owner if owner == self.firmware_pins && pin < 8 => LedPin::Firmware(pin),
            _ => return None,
        };
        Some(LedWiring {
            pin,
            is_low_active: flags & LOW_ACTIVE != 0,
        })
    }

    fn virtio_slots(&self) -> ArrayVec<VirtioSlot, MAX_VIRTIO_SLOTS> {
        let slot = |&(base, interrupt): &(PhysAddr, Specifiers<'static>)| VirtioSlot {
            base,
            interrupt: self.parents.line(interrupt, 0),
        };
        self.virtio.iter().map(slot).collect()
    }

    fn sd_hosts(&self, is_pi: bool) -> ArrayVec<SdHost, MAX_SD_HOSTS> {
        let host = |found: &FoundSdHost| SdHost {
            kind: found.kind,
            base: found.base,
            interrupt: self.parents.line(found.interrupt, 0),
            dma: found.dma.or(is_pi.then_some(PI_DMA_WINDOW)),
        };
        self.sd_hosts.iter().map(host).collect()
    }

    fn pci(&self) -> Option<PciHost> {
        let found = self.pci.as_ref()?;
        Some(PciHost {
            ecam: found.ecam.0,
            ecam_size: found.ecam.1,
            first_bus: found.first_bus,
            memory_32: found.memory_32,
            memory_64: found.memory_64,
            interrupts: InterruptMap::new(found.map, found.mask, &self.parents),
        })
    }
}

/// Those that come after the last that has a place are not ours.
fn push<T, const N: usize>(list: &mut ArrayVec<T, N>, item: Option<T>) {
    if let (Some(item), false) = (item, list.is_full()) {
        list.push(item);
    }
}

fn insert_all(
    ranges: &mut Ranges,
    bus: &Bus<'_, 'static>,
    node: &Node<'_, 'static>,
) -> Result<(), BoardError> {
    for (start, size) in bus.registers(node) {
        ranges.insert(start, size)?;
    }
    Ok(())
}

fn pci(node: &Node<'_, 'static>, bus: &Bus<'_, 'static>, ecam: (PhysAddr, u64)) -> FoundPci {
    const MEMORY_32: u32 = 0b10;
    const MEMORY_64: u32 = 0b11;
    let window = |wanted| {
        bus.pci_windows(node)
            .find_map(|(kind, window)| (kind == wanted).then_some(window))
    };
    FoundPci {
        ecam,
        // Two cells, the first bus and the last.
        first_bus: node.value("bus-range").get(3).copied().unwrap_or(0),
        memory_32: window(MEMORY_32),
        memory_64: window(MEMORY_64),
        map: node.value("interrupt-map"),
        mask: node.value("interrupt-map-mask"),
    }
}
