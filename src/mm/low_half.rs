//! This machine's maps: the manager, what calls it from the vectors, and what a person sees of it.

use super::addr::{PAGE_SIZE, VirtAddr};
use super::describe::{What, write_maps};
use super::fault::{Access, Fault, FaultError, FaultKind, Histogram};
use super::frame::OutOfFrames;
use super::machine::{CACHE, FRAMES};
use super::manager::{MapError, MemoryMapManager};
use super::trace::{self, Kind};
use super::trap::Rest;
use crate::arch::aarch64::esr::{AbortKind, Attempt};
use crate::arch::aarch64::mmu::HardwareMmu;
use crate::arch::aarch64::page_table::PageTables;
use crate::arch::aarch64::{layout, mask_interrupts, pmu, timer, unmask_interrupts};
use crate::command::{COMMANDS, Command, SUCCESS, Status, USAGE};
use crate::console::Writer;
use crate::println;
use crate::sync::SpinLock;
use crate::thread::touch_program_stack;
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use linkme::distributed_slice;
use spin::Once;

/// The manager of this machine's maps.
pub type KernelMaps = MemoryMapManager<'static, PageTables<'static, HardwareMmu>>;

static MAPS: Once<KernelMaps> = Once::new();

/// Why the last fault that was not resolved was not, for its report.
static LAST_FAILURE: SpinLock<Option<(VirtAddr, FaultError)>> = SpinLock::new(None);

/// Who watches faults: [`TIMING`], [`TRACING`]. While nobody does, it is one branch for both.
static WATCHED: AtomicU8 = AtomicU8::new(0);
const TIMING: u8 = 1;
/// Faults are [events](super::trace).
pub(super) const TRACING: u8 = 2;
static TIMES: SpinLock<Histogram> = SpinLock::new(Histogram::EMPTY);

/// Gives the low half to the maps.
pub(super) fn init() -> Result<(), OutOfFrames> {
    let tables = PageTables::new(&FRAMES, HardwareMmu::new())?;
    // SAFETY: the root stays with the manager, which is never dropped.
    unsafe { HardwareMmu::install(tables.root()) };
    let holder = || crate::thread::with_current(|thread| thread.holder()).unwrap_or(0);
    let maps = MAPS.call_once(|| {
        MemoryMapManager::new(&FRAMES, tables, layout::MAPS)
            .with_holder(holder)
            .with_reclaim(|| CACHE.reclaim_or_write())
    });
    CACHE.set_aliases(maps);
    be_quick(true);
    Ok(())
}

/// The maps of this machine.
///
/// # Panics
/// Before there are any, early at boot.
pub fn maps() -> &'static KernelMaps {
    touch_program_stack();
    MAPS.get().expect("the maps are set up at boot")
}

/// Whether no lock is held that resolving a fault takes.
#[cold]
pub fn can_resolve_in_critical_section() -> bool {
    MAPS.get().is_some_and(|maps| !maps.is_locked()) && !FRAMES.is_locked()
}

/// The maps, for [`resolve_data_fault`]; nothing before there are any, and while faults are watched.
static QUICK: AtomicPtr<KernelMaps> = AtomicPtr::new(core::ptr::null_mut());

fn be_quick(is_quick: bool) {
    let maps = match MAPS.get() {
        Some(maps) if is_quick => core::ptr::from_ref(maps).cast_mut(),
        _ => core::ptr::null_mut(),
    };
    QUICK.store(maps, Ordering::Relaxed);
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Verdict {
    /// The instruction can run again, and nothing else has happened on this core meanwhile.
    Resolved = 0,
    /// The instruction can run again.
    ResolvedLater = 3,
    /// Nobody has tried to resolve it.
    Untried = 1,
    /// It cannot be resolved.
    Failed = 2,
}

/// Resolves a failed load or store: what [`resolve`] does, for most faults that there are. The caller is a handler that
/// has masked interrupts, which were not before; they are let in where there is something to wait for.
#[inline(always)]
pub fn resolve_data_fault(attempt: Attempt, far: u64) -> Verdict {
    // SAFETY: null, or the maps, which are never dropped, and were complete before there was a second thread to see it.
    let maps = unsafe { QUICK.load(Ordering::Relaxed).as_ref() };
    let (Some(maps), true) = (maps, far >> 48 == 0) else {
        return Verdict::Untried;
    };
    let access = match attempt {
        Attempt::Write => Access::Write,
        _ => Access::Read,
    };
    match maps.try_trap_masked(VirtAddr(far), access) {
        None => Verdict::Resolved,
        Some(rest) => finish(maps, VirtAddr(far), access, rest),
    }
}

const _: () = assert!(layout::MAPS.end.0 == 1 << 48);

#[cold]
fn finish(maps: &KernelMaps, address: VirtAddr, access: Access, rest: Rest) -> Verdict {
    unmask_interrupts();
    let outcome = maps.finish_trap(address, access, rest);
    mask_interrupts();
    match outcome {
        Ok(()) => Verdict::ResolvedLater,
        Err(error) => {
            *LAST_FAILURE.lock() = Some((address, error));
            Verdict::Failed
        }
    }
}

/// Resolves a failed access, if it is one that maps resolve. The caller, a handler whose state is saved, holds no lock
/// that this takes; interrupts are let in meanwhile if they were before.
pub fn resolve(attempt: Attempt, kind: AbortKind, far: u64, are_masked: bool) -> bool {
    let address = VirtAddr(far);
    let kind = match kind {
        AbortKind::Translation(level) => FaultKind::Translation(level),
        AbortKind::Permission(level) => FaultKind::Permission(level),
        AbortKind::AccessFlag(level) => FaultKind::AccessFlag(level),
        _ => return false,
    };
    let Some(maps) = MAPS.get() else { return false };
    if address >= layout::MAPS.end {
        return false;
    }
    let access = match attempt {
        Attempt::Read => Access::Read,
        Attempt::Write => Access::Write,
        Attempt::Execute => Access::Execute,
    };
    let fault = Fault {
        address,
        access,
        kind,
    };
    if !are_masked {
        unmask_interrupts();
    }
    let outcome = match WATCHED.load(Ordering::Relaxed) {
        0 => maps.handle_fault(fault),
        watched => handle_watched(maps, fault, watched),
    };
    mask_interrupts();
    match outcome {
        Ok(()) => true,
        Err(error) => {
            *LAST_FAILURE.lock() = Some((address, error));
            false
        }
    }
}

/// A program's stack: an anonymous map with a guard page below it, unmapped on drop.
#[derive(Debug)]
pub struct ProgramStack {
    end: VirtAddr,
    length: u64,
}

impl ProgramStack {
    /// One of `length` bytes, of which none is present.
    pub fn new(length: u64) -> Result<Self, MapError> {
        let end = maps().map_stack(length)?;
        Ok(Self { end, length })
    }

    /// Where it begins, above its highest byte.
    pub fn end(&self) -> VirtAddr {
        self.end
    }
}

impl Drop for ProgramStack {
    fn drop(&mut self) {
        let whole = self.length.next_multiple_of(PAGE_SIZE as u64) + PAGE_SIZE as u64;
        // It fails only for want of memory to split a map; then the stack stays, and a line says so.
        if let Err(error) = maps().remove(VirtAddr(self.end.0 - whole), whole) {
            log::warn!("the stack below {} stays mapped: {error:?}", self.end);
        }
    }
}

/// Instructions where the processor counts them, else nanoseconds.
fn moment() -> u64 {
    match pmu::has_instructions() {
        true => pmu::instructions(),
        false => timer::ns_from_ticks(timer::now()),
    }
}

#[cold]
fn handle_watched(maps: &KernelMaps, fault: Fault, watched: u8) -> Result<(), FaultError> {
    // Before: whoever waits may find another map there.
    let place = maps.place(fault.address);
    let before = maps.fault_counts();
    let start = moment();
    let outcome = maps.handle_fault(fault);
    let duration = moment().wrapping_sub(start);
    if watched & TIMING != 0 {
        TIMES.lock().add(duration);
    }
    if watched & TRACING != 0 {
        // That it returns what became of it would cost every fault some instructions.
        let kind = match (outcome, maps.fault_counts().the_one_since(&before)) {
            (Err(_), _) => Kind::Failed,
            (Ok(()), Some(outcome)) => Kind::of_fault(outcome),
            // Others had faults while this one waited: what such an access comes to.
            (Ok(()), None) => place.likely(fault.access),
        };
        trace::record(kind, place.file, place.page..place.page + 1);
    }
    outcome
}

/// Lets faults be watched by `who`, or not any more.
pub(super) fn watch(who: u8, is_on: bool) {
    if is_on {
        WATCHED.fetch_or(who, Ordering::Relaxed);
    } else {
        WATCHED.fetch_and(!who, Ordering::Relaxed);
    }
    be_quick(WATCHED.load(Ordering::Relaxed) == 0);
}

/// What the maps know about an address that a program crashed at.
pub struct Explanation(pub VirtAddr);

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever crashed may hold either lock.
        let failure = LAST_FAILURE.try_lock().and_then(|failure| *failure);
        if let Some((address, error)) = failure
            && address == self.0
        {
            write!(f, "\n    not resolved: {error}")?;
        }
        let object = MAPS.get().and_then(|maps| maps.try_find(self.0));
        if let Some(object) = object {
            let pages = object.pages();
            let offset = self.0.0 - pages.start.start().0;
            write!(
                f,
                "\n    the map from {} to {}, {},\n    {}, at {offset:#x} in it",
                pages.start.start(),
                pages.end.start(),
                object.protection(),
                What(&object),
            )?;
            if let Some(file) = object.file() {
                let in_file = (file.first_block + offset / PAGE_SIZE as u64) * PAGE_SIZE as u64;
                write!(
                    f,
                    "\n    byte {:#x} of the file",
                    in_file + offset % PAGE_SIZE as u64
                )?;
            }
        }
        Ok(())
    }
}

#[distributed_slice(COMMANDS)]
static MAPS_COMMAND: Command = Command {
    name: "maps",
    arguments: "",
    summary: "show the address space, map by map\n\n\
        Addresses, protection, s for shared or p for private, and what is present.\n\
        Example: maps",
    run: show_maps,
};

fn show_maps(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return crate::shell::usage("maps");
    }
    match write_maps(maps(), &mut Writer) {
        Ok(()) => SUCCESS,
        Err(fmt::Error) => crate::command::FAILURE,
    }
}

#[distributed_slice(COMMANDS)]
static FAULTS_COMMAND: Command = Command {
    name: "faults",
    arguments: "[time|stop]",
    summary: "count faults by how they ended, and time them\n\n\
        time  begin to time each fault, from nothing\n\
        stop  end that\n\
        Example: faults",
    run: show_faults,
};

fn show_faults(arguments: &[&str]) -> Status {
    match arguments {
        [] => {}
        ["time"] => {
            *TIMES.lock() = Histogram::EMPTY;
            watch(TIMING, true);
            return SUCCESS;
        }
        ["stop"] => {
            watch(TIMING, false);
            return SUCCESS;
        }
        _ => {
            crate::shell::usage("faults");
            return USAGE;
        }
    }
    println!("{}", maps().fault_counts());
    let unit = if pmu::has_instructions() {
        "insn"
    } else {
        "ns"
    };
    let times = *TIMES.lock();
    match times.write(&mut Writer, unit) {
        Ok(()) => SUCCESS,
        Err(fmt::Error) => crate::command::FAILURE,
    }
}
