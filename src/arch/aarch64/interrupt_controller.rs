//! Interrupt controllers behind one interface: GICv2, GICv3, and the Raspberry Pi 3's pair (BCM2836 local, BCM2835).
//!
//! Sources: Arm GIC Architecture Specification, IHI 0048 (GICv2) and IHI 0069 (GICv3); Broadcom "BCM2835 ARM
//! Peripherals", chapter 7; "QA7 ARM Quad A7 core" for the BCM2836's local controller.

use super::board::{Interrupt, Line, Trigger};
use crate::mm::addr::VirtAddr;
use core::arch::asm;
use core::fmt;

/// The machine's controller, with its registers mapped.
#[derive(Debug)]
pub enum InterruptController {
    /// Distributor and CPU interface in memory.
    GicV2 {
        /// GICD.
        distributor: VirtAddr,
        /// GICC.
        cpu: VirtAddr,
    },
    /// Distributor and this core's redistributor in memory, CPU interface in system registers.
    GicV3 {
        /// GICD.
        distributor: VirtAddr,
        /// This core's GICR: its RD frame, with the SGI frame 64 KiB above.
        redistributor: VirtAddr,
    },
    /// The Pi 3's.
    Bcm2836 {
        /// Local controller.
        local: VirtAddr,
        /// Peripheral controller.
        peripheral: VirtAddr,
    },
}

// Offsets in a GIC distributor; GICv3's SGI frame has the same for INTIDs below 32.
const GICD_CTLR: u64 = 0x000;
const GICD_TYPER: u64 = 0x004;
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
const ICFGR: u64 = 0xc00;
const GICC_CTLR: u64 = 0x00;
const GICC_PMR: u64 = 0x04;
const GICC_IAR: u64 = 0x0c;
const GICC_EOIR: u64 = 0x10;
/// Active priorities, for secure and for non-secure state: four registers each.
const GICC_APR: u64 = 0xd0;
const GICC_NSAPR: u64 = 0xe0;

const GICR_CTLR: u64 = 0x000;
const GICR_WAKER: u64 = 0x014;
const GICR_TYPER: u64 = 0x008;
const GICR_FRAME: u64 = 0x1_0000;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// A write to GICD_CTLR or an enable register has not reached all of the GIC yet.
const GICD_WRITE_PENDING: u32 = 1 << 31;
const GICR_WRITE_PENDING: u32 = 1 << 3;

/// The middle of the range: above the mask that lets everything through.
const PRIORITY: u32 = 0xa0a0_a0a0;

/// INTIDs from here on are none: they say that nothing is pending, or are GICv3's locality-specific ones, which are
/// never enabled.
const SPECIAL: u32 = 1020;

// Of core 0 in the BCM2836's local controller.
const LOCAL_PERIPHERAL_ROUTING: u64 = 0x0c;
const LOCAL_TIMER_CONTROL: u64 = 0x40;
const LOCAL_MAILBOX_CONTROL: u64 = 0x50;
const LOCAL_SOURCE: u64 = 0x60;
const LOCAL_MAILBOX_SET: u64 = 0x80;
const LOCAL_MAILBOX_CLEAR: u64 = 0xc0;
const LOCAL_TIMERS: u32 = 0xf;
const LOCAL_MAILBOX: u32 = 4;
const LOCAL_PERIPHERAL: u32 = 1 << 8;
const FIQ_CONTROL: u64 = 0x20c;
const BASIC_DISABLE: u64 = 0x224;
const PENDING: [u64; 2] = [0x204, 0x208];
const ENABLE: [u64; 2] = [0x210, 0x214];
const DISABLE: [u64; 2] = [0x21c, 0x220];

/// How often a state is looked at before it is given up.
const PATIENCE: u32 = 1_000_000;

/// Every address in the controller's variants is that of registers mapped for good: so says whoever constructs it
/// with [`InterruptController::init`].
fn read(base: VirtAddr, offset: u64) -> u32 {
    // SAFETY: as above; device registers of 32 bits, at a multiple of 4.
    unsafe { ((base.0 + offset) as *const u32).read_volatile() }
}

fn write(base: VirtAddr, offset: u64, value: u32) {
    // SAFETY: as for `read`.
    unsafe { ((base.0 + offset) as *mut u32).write_volatile(value) };
}

/// Why the controller does not work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitError {
    /// The distributor does not take what is written to it.
    Stuck,
    /// The redistributor does not say that it woke up.
    Asleep,
    /// No redistributor says that it is this core's.
    NoRedistributor,
    /// The registers could not be mapped.
    Unmapped,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stuck => "the distributor does not take what is written to it",
            Self::Asleep => "this core's redistributor does not wake up",
            Self::NoRedistributor => "no redistributor is this core's",
            Self::Unmapped => "its registers could not be mapped",
        })
    }
}

impl InterruptController {
    /// Turns every interrupt off and lets those that are enabled later through to this core.
    ///
    /// # Safety
    /// The addresses are those of the controller's registers, mapped for good, and nobody else uses them.
    pub unsafe fn init(&mut self) -> Result<(), InitError> {
        match *self {
            Self::GicV2 { distributor, cpu } => {
                write(distributor, GICD_CTLR, 0);
                init_distributor(distributor, 0);
                // The first registers, of private interrupts, say which core reads them; a single core reads 0.
                let own = read(distributor, ITARGETSR) & 0xff;
                let own = if own == 0 { 1 } else { own };
                for first in (32..interrupts(distributor)).step_by(4) {
                    write(distributor, ITARGETSR + u64::from(first), own * 0x0101_0101);
                }
                // What firmware had begun to handle must not keep lower priorities out.
                for register in (0..16).step_by(4) {
                    write(cpu, GICC_APR + register, 0);
                    write(cpu, GICC_NSAPR + register, 0);
                }
                // Firmware of the Pi leaves all in group 1, which comes as an FIQ when group 0 may be used: group 0
                // it is. Where this is ignored (from non-secure state) they are ours as they are.
                write(distributor, GICD_CTLR, 1);
                write(cpu, GICC_PMR, 0xf0);
                write(cpu, GICC_CTLR, 1);
            }
            Self::GicV3 {
                distributor,
                redistributor,
            } => {
                const ARE_NS: u32 = 1 << 4;
                const ENABLE_GROUP1: u32 = 1 << 1;
                // The groups go off first: affinity routing may come on only while they are, and never goes off.
                let routing = read(distributor, GICD_CTLR) & ARE_NS;
                write(distributor, GICD_CTLR, routing);
                wait_for_distributor(distributor)?;
                write(distributor, GICD_CTLR, ARE_NS);
                wait_for_distributor(distributor)?;
                // Group 1: what non-secure state sees as IRQ.
                init_distributor(distributor, u32::MAX);
                wait_for_distributor(distributor)?;
                write(distributor, GICD_CTLR, ARE_NS | ENABLE_GROUP1);
                for id in 32..interrupts(distributor) {
                    // GICD_IROUTER: affinity 0.0.0.0, the boot core.
                    let router = 0x6000 + 8 * u64::from(id);
                    write(distributor, router, 0);
                    write(distributor, router + 4, 0);
                }
                let waker = read(redistributor, GICR_WAKER);
                write(redistributor, GICR_WAKER, waker & !PROCESSOR_SLEEP);
                if !wait_until(|| read(redistributor, GICR_WAKER) & CHILDREN_ASLEEP == 0) {
                    return Err(InitError::Asleep);
                }
                let own = VirtAddr(redistributor.0 + GICR_FRAME);
                write(own, ICENABLER, u32::MAX);
                write(own, ICPENDR, u32::MAX);
                write(own, ICACTIVER, u32::MAX);
                write(own, IGROUPR, u32::MAX);
                for first in (0..32).step_by(4) {
                    write(own, IPRIORITYR + first, PRIORITY);
                }
                // SAFETY: the CPU interface: system registers on, all priorities through, group 1 enabled.
                unsafe {
                    asm!(
                        "mrs {x}, S3_0_C12_C12_5", // ICC_SRE_EL1
                        "orr {x}, {x}, #1",
                        "msr S3_0_C12_C12_5, {x}",
                        "isb",
                        "mov {x}, #0xf0",
                        "msr S3_0_C4_C6_0, {x}",   // ICC_PMR_EL1
                        "msr S3_0_C12_C9_0, xzr",  // ICC_AP1R0_EL1: nothing is being handled
                        "msr S3_0_C12_C12_3, xzr", // ICC_BPR1_EL1
                        "msr S3_0_C12_C12_4, xzr", // ICC_CTLR_EL1: EOI drops priority and deactivates
                        "mov {x}, #1",
                        "msr S3_0_C12_C12_7, {x}", // ICC_IGRPEN1_EL1
                        "isb",
                        x = out(reg) _,
                        options(nostack),
                    );
                }
            }
            Self::Bcm2836 { local, peripheral } => {
                write(local, LOCAL_TIMER_CONTROL, 0);
                write(local, LOCAL_MAILBOX_CONTROL, 0);
                write(local, LOCAL_MAILBOX_CLEAR, u32::MAX);
                // To core 0, as IRQs.
                write(local, LOCAL_PERIPHERAL_ROUTING, 0);
                write(peripheral, FIQ_CONTROL, 0);
                write(peripheral, BASIC_DISABLE, u32::MAX);
                for bank in DISABLE {
                    write(peripheral, bank, u32::MAX);
                }
            }
        }
        Ok(())
    }

    /// Lets the interrupt of `line` come. One that this controller does not have stays away.
    pub fn enable(&mut self, line: Line) {
        self.configure(line);
        self.set(line.interrupt, true);
    }

    /// Tells a GIC how a shared interrupt is signalled; that of private ones, and of the BCM's, is fixed. The interrupt
    /// is off.
    fn configure(&mut self, line: Line) {
        if let (
            Self::GicV2 { distributor, .. } | Self::GicV3 { distributor, .. },
            Interrupt::Gic(id @ 32..SPECIAL),
        ) = (self, line.interrupt)
        {
            // Two bits each; the upper one says edge.
            let register = ICFGR + 4 * u64::from(id / 16);
            let edge = 0b10 << (2 * (id % 16));
            let others = read(*distributor, register) & !edge;
            let is_edge = line.trigger == Trigger::Edge;
            write(
                *distributor,
                register,
                others | if is_edge { edge } else { 0 },
            );
        }
    }

    /// The interrupt that [`raise`](Self::raise) makes pending: one that has no device. Of a GIC it is the last shared
    /// one; those that are meant to be sent by software cannot be switched off on every GICv2.
    pub fn software_interrupt(&self) -> Line {
        let interrupt = match self {
            Self::GicV2 { distributor, .. } | Self::GicV3 { distributor, .. } => {
                Interrupt::Gic(interrupts(*distributor) - 1)
            }
            Self::Bcm2836 { .. } => Interrupt::Local(LOCAL_MAILBOX),
        };
        Line {
            interrupt,
            trigger: Trigger::Edge,
        }
    }

    /// Makes the software interrupt pending, as a device would.
    pub fn raise(&mut self) {
        // SAFETY: what was written before is seen by whoever handles the interrupt.
        unsafe { asm!("dsb sy", options(nostack)) };
        match self {
            Self::GicV2 { distributor, .. } | Self::GicV3 { distributor, .. } => {
                let id = interrupts(*distributor) - 1;
                let register = ISPENDR + 4 * u64::from(id / 32);
                write(*distributor, register, 1 << (id % 32));
            }
            Self::Bcm2836 { local, .. } => write(*local, LOCAL_MAILBOX_SET, 1),
        }
    }

    /// Keeps `interrupt` from coming.
    pub fn disable(&mut self, interrupt: Interrupt) {
        self.set(interrupt, false);
    }

    fn set(&mut self, interrupt: Interrupt, is_on: bool) {
        match (self, interrupt) {
            (Self::GicV3 { redistributor, .. }, Interrupt::Gic(id @ 0..32)) => {
                let register = if is_on { ISENABLER } else { ICENABLER };
                let own = VirtAddr(redistributor.0 + GICR_FRAME);
                write(own, register, 1 << id);
                // Once it is off it does not come any more.
                wait_until(|| read(*redistributor, GICR_CTLR) & GICR_WRITE_PENDING == 0);
            }
            (
                Self::GicV2 { distributor, .. } | Self::GicV3 { distributor, .. },
                Interrupt::Gic(id @ 0..SPECIAL),
            ) => {
                let register = if is_on { ISENABLER } else { ICENABLER };
                write(
                    *distributor,
                    register + 4 * u64::from(id / 32),
                    1 << (id % 32),
                );
            }
            (Self::Bcm2836 { local, .. }, Interrupt::Local(bit @ 0..=LOCAL_MAILBOX)) => {
                let (register, bit) = match bit {
                    LOCAL_MAILBOX => (LOCAL_MAILBOX_CONTROL, 1),
                    timer => (LOCAL_TIMER_CONTROL, 1 << timer),
                };
                let others = read(*local, register) & !bit;
                write(*local, register, others | if is_on { bit } else { 0 });
            }
            (Self::Bcm2836 { peripheral, .. }, Interrupt::Peripheral(number @ 0..64)) => {
                let registers = if is_on { ENABLE } else { DISABLE };
                let bank = registers[number as usize / 32];
                write(*peripheral, bank, 1 << (number % 32));
            }
            _ => log::error!("{interrupt:?} is none of this machine's interrupts"),
        }
        // SAFETY: the store has reached the controller before what follows relies on it.
        unsafe { asm!("dsb sy", options(nostack)) };
    }

    /// The interrupt that is pending now; the controller then waits for [`end`](Self::end).
    pub fn acknowledge(&mut self) -> Option<Interrupt> {
        match self {
            Self::GicV2 { cpu, .. } => gic(read(*cpu, GICC_IAR) & 0x3ff),
            Self::GicV3 { .. } => {
                let id: u64;
                // SAFETY: reads ICC_IAR1_EL1, which acknowledges; the barrier orders it before what the handler does.
                unsafe { asm!("mrs {}, S3_0_C12_C12_0", "dsb sy", out(reg) id, options(nostack)) };
                gic(id as u32 & 0xff_ffff)
            }
            Self::Bcm2836 { local, peripheral } => {
                let source = read(*local, LOCAL_SOURCE);
                if source & LOCAL_TIMERS != 0 {
                    return Some(Interrupt::Local((source & LOCAL_TIMERS).trailing_zeros()));
                }
                if source & 1 << LOCAL_MAILBOX != 0 {
                    write(*local, LOCAL_MAILBOX_CLEAR, u32::MAX);
                    return Some(Interrupt::Local(LOCAL_MAILBOX));
                }
                if source & LOCAL_PERIPHERAL == 0 {
                    return None;
                }
                (0..2).find_map(|bank| {
                    let pending = read(*peripheral, PENDING[bank]);
                    (pending != 0)
                        .then(|| Interrupt::Peripheral(32 * bank as u32 + pending.trailing_zeros()))
                })
            }
        }
    }

    /// The interrupt was handled.
    pub fn end(&mut self, interrupt: Interrupt) {
        match (self, interrupt) {
            (Self::GicV2 { cpu, .. }, Interrupt::Gic(id)) => {
                // SAFETY: what the handler told the device has arrived before the interrupt may come again.
                unsafe { asm!("dsb sy", options(nostack)) };
                write(*cpu, GICC_EOIR, id);
            }
            (Self::GicV3 { .. }, Interrupt::Gic(id)) => {
                // SAFETY: ICC_EOIR1_EL1; what the handler did is done before the interrupt may come again.
                unsafe {
                    asm!("dsb sy", "msr S3_0_C12_C12_1, {}", "isb", in(reg) u64::from(id), options(nostack))
                };
            }
            // The BCM's are pending as long as their source is.
            _ => {}
        }
    }
}

fn gic(id: u32) -> Option<Interrupt> {
    (id < SPECIAL).then_some(Interrupt::Gic(id))
}

/// How many INTIDs there are.
fn interrupts(distributor: VirtAddr) -> u32 {
    (32 * ((read(distributor, GICD_TYPER) & 0x1f) + 1)).min(SPECIAL)
}

fn wait_for_distributor(distributor: VirtAddr) -> Result<(), InitError> {
    let is_done = wait_until(|| read(distributor, GICD_CTLR) & GICD_WRITE_PENDING == 0);
    is_done.then_some(()).ok_or(InitError::Stuck)
}

fn init_distributor(distributor: VirtAddr, groups: u32) {
    for first in (0..interrupts(distributor)).step_by(32) {
        let offset = u64::from(first / 8);
        write(distributor, ICENABLER + offset, u32::MAX);
        write(distributor, ICPENDR + offset, u32::MAX);
        write(distributor, ICACTIVER + offset, u32::MAX);
        write(distributor, IGROUPR + offset, groups);
    }
    for first in (0..interrupts(distributor)).step_by(4) {
        write(distributor, IPRIORITYR + u64::from(first), PRIORITY);
    }
}

fn wait_until(condition: impl Fn() -> bool) -> bool {
    (0..PATIENCE).any(|_| condition())
}

/// The redistributor of the core with this affinity (MPIDR_EL1 as GICR_TYPER has it: 3.2.1.0), among those whose
/// frames lie one after the other from `first` on.
///
/// # Safety
/// `len` bytes of redistributors are mapped at `first`.
pub unsafe fn find_redistributor(first: VirtAddr, len: u64, affinity: u32) -> Option<VirtAddr> {
    const VIRTUAL_LPIS: u32 = 1 << 1;
    const LAST: u32 = 1 << 4;
    let mut at = first;
    while at.0 + 2 * GICR_FRAME <= first.0 + len {
        if read(at, GICR_TYPER + 4) == affinity {
            return Some(at);
        }
        let kind = read(at, GICR_TYPER);
        if kind & LAST != 0 {
            return None;
        }
        // GICv4 has two more frames for each core.
        let frames = if kind & VIRTUAL_LPIS != 0 { 4 } else { 2 };
        at = VirtAddr(at.0 + frames * GICR_FRAME);
    }
    None
}
