//! Faults from the access to the frame and back, with files whose reads a test can hold open.
//!
//! A race is not left to threads: the other party runs inside [`SimFile::during_next_read`], at the one moment that
//! matters. Were a lock held during I/O, it would wait for itself there.

#![cfg(not(target_os = "none"))]

use pinfold::arch::aarch64::page_table::PageTables;
use pinfold::mm::addr::{Frame, PAGE_SIZE, VirtAddr};
use pinfold::mm::fault::{Access, Fault, FaultError, FaultKind, Outcome};
use pinfold::mm::frame::{Owner, Urgency};
use pinfold::mm::manager::{Advice, MapError, MemoryMapManager, Placement, Remap};
use pinfold::mm::object::{
    Aliases, BATCH, Dirtied, FileKey, IoError, Lookup, MappableFile, Pattern, Pinned, Sharing,
    SyncMode,
};
use pinfold::mm::table::Protection;
use pinfold::sim::{SimMemory, SimMmu};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

const PAGE: u64 = PAGE_SIZE as u64;
const RW: Protection = Protection::READ_WRITE;

type Manager = MemoryMapManager<'static, PageTables<'static, SimMmu<'static>>>;

/// A machine that lives as long as the test's process: files and maps may refer to it as they like.
struct Machine {
    manager: Manager,
    mmu: SimMmu<'static>,
    memory: &'static SimMemory,
}

fn machine() -> &'static Machine {
    let memory: &'static SimMemory = Box::leak(Box::new(SimMemory::new(8 << 20)));
    let mmu = SimMmu::new(memory);
    let tables = PageTables::new(memory.frames(), mmu.clone()).unwrap();
    mmu.install(tables.root());
    let limits = VirtAddr(0x1_0000)..VirtAddr(1 << 48);
    Box::leak(Box::new(Machine {
        manager: MemoryMapManager::new(memory.frames(), tables, limits),
        mmu,
        memory,
    }))
}

impl Machine {
    /// An access as a processor makes it: until it succeeds, or cannot.
    fn access(&self, address: VirtAddr, access: Access) -> Result<*mut u8, FaultError> {
        for _ in 0..4 {
            match self.mmu.translate(address, access) {
                Ok(pointer) => return Ok(pointer),
                Err(_) => self.manager.trap(address, access)?,
            }
            self.manager.check();
            self.mmu.check();
        }
        panic!("{access:?} at {address} goes on faulting");
    }

    fn load(&self, address: VirtAddr) -> Result<u8, FaultError> {
        // SAFETY: translated just now.
        Ok(unsafe { self.access(address, Access::Read)?.read() })
    }

    fn store(&self, address: VirtAddr, value: u8) -> Result<(), FaultError> {
        // SAFETY: as above.
        unsafe { self.access(address, Access::Write)?.write(value) };
        Ok(())
    }

    fn anon(&self, pages: u64) -> VirtAddr {
        self.manager
            .map_anon(Placement::Anywhere, pages * PAGE, RW)
            .unwrap()
    }

    fn map(
        &self,
        file: &Arc<SimFile>,
        pages: u64,
        protection: Protection,
        sharing: Sharing,
    ) -> VirtAddr {
        self.manager
            .map_file(
                file.clone(),
                Placement::Anywhere,
                pages * PAGE,
                protection,
                0,
                sharing,
            )
            .unwrap()
    }
}

/// A file in a cache of its own: byte `i` of block `b` is `b + 1`, until somebody writes.
struct SimFile {
    machine: &'static Machine,
    blocks: u64,
    state: Mutex<FileState>,
}

#[derive(Default)]
struct FileState {
    resident: BTreeMap<u64, (Frame, u32)>,
    dirty: BTreeSet<u64>,
    during_next_read: Option<Box<dyn FnOnce() + Send>>,
    next_read_fails: Option<IoError>,
    dirtying_fails: Option<IoError>,
    reads: u32,
    synced: Vec<Range<u64>>,
}

impl SimFile {
    fn new(machine: &'static Machine, blocks: u64) -> Arc<Self> {
        Arc::new(Self {
            machine,
            blocks,
            state: Mutex::default(),
        })
    }

    fn during_next_read(&self, f: impl FnOnce() + Send + 'static) {
        self.state.lock().unwrap().during_next_read = Some(Box::new(f));
    }

    fn pins(&self, block: u64) -> u32 {
        self.state
            .lock()
            .unwrap()
            .resident
            .get(&block)
            .map_or(0, |slot| slot.1)
    }

    fn byte(&self, block: u64) -> u8 {
        let frame = self.state.lock().unwrap().resident[&block].0;
        // SAFETY: a frame of the file's.
        unsafe { self.machine.memory.frames().pointer(frame).read() }
    }
}

impl MappableFile for SimFile {
    fn name(&self) -> &str {
        "sim.dat"
    }

    fn pin_block(&self, block: u64) -> Lookup {
        if block >= self.blocks {
            return Lookup::PastEnd;
        }
        match self.state.lock().unwrap().resident.get_mut(&block) {
            Some((frame, pins)) => {
                *pins += 1;
                Lookup::Resident(*frame)
            }
            None => Lookup::Absent,
        }
    }

    fn pin_resident(
        &self,
        first: u64,
        wanted: u64,
        frames: &mut [Frame; BATCH as usize],
    ) -> Pinned {
        let mut state = self.state.lock().unwrap();
        let mut pinned = Pinned::default();
        for i in (0..BATCH).filter(|i| wanted >> i & 1 != 0) {
            if let Some((frame, pins)) = state.resident.get_mut(&(first + i)) {
                *pins += 1;
                frames[i as usize] = *frame;
                pinned.blocks |= 1 << i;
            }
        }
        pinned
    }

    fn unpin(&self, first: u64, count: u64) {
        let mut state = self.state.lock().unwrap();
        for block in first..first + count {
            let slot = state.resident.get_mut(&block).unwrap();
            slot.1 = slot
                .1
                .checked_sub(1)
                .expect("unpinned more often than pinned");
        }
    }

    fn dirty_block(&self, block: u64) -> Result<Dirtied, IoError> {
        let mut state = self.state.lock().unwrap();
        if let Some(error) = state.dirtying_fails {
            return Err(error);
        }
        assert!(state.resident[&block].1 > 0, "made dirty without a pin");
        state.dirty.insert(block);
        Ok(Dirtied::Done)
    }

    fn make_room(&self, _: u64) -> Result<(), IoError> {
        unreachable!("there is always room")
    }

    fn read_ahead(&self, _: u64) {}

    fn will_need(&self, blocks: Range<u64>) {
        for block in blocks {
            let _ = self.prime(block, Pattern::Normal);
        }
    }

    fn dont_need(&self, _: Range<u64>) {}

    fn prime(&self, block: u64, _: Pattern) -> Result<(), IoError> {
        let mut state = self.state.lock().unwrap();
        state.reads += 1;
        if let Some(error) = state.next_read_fails.take() {
            return Err(error);
        }
        let other = state.during_next_read.take();
        drop(state);
        if let Some(other) = other {
            other();
        }
        let mut state = self.state.lock().unwrap();
        if state.resident.contains_key(&block) {
            return Ok(());
        }
        let frames = self.machine.memory.frames();
        let frame = frames.alloc(Owner::Cache, Urgency::Critical).unwrap();
        // SAFETY: the frame is ours.
        unsafe {
            frames
                .pointer(frame)
                .write_bytes(block as u8 + 1, PAGE_SIZE)
        };
        state.resident.insert(block, (frame, 0));
        Ok(())
    }

    fn sync(&self, blocks: Range<u64>, _: SyncMode) -> Result<(), IoError> {
        let aliases = &self.machine.manager;
        aliases.write_protect(FileKey::of(self), blocks.clone());
        let mut state = self.state.lock().unwrap();
        state.dirty.retain(|block| !blocks.contains(block));
        state.synced.push(blocks);
        Ok(())
    }
}

#[test]
fn untouched_memory_costs_no_frame() {
    let m = machine();
    let before = m.memory.frames().counts();
    let base = m
        .manager
        .map_anon(Placement::Anywhere, 64 << 30, RW)
        .unwrap();
    assert_eq!(m.memory.frames().counts(), before);
    m.manager.unmap(base).unwrap();
    assert_eq!(m.memory.frames().counts(), before);
}

#[test]
fn memory_that_is_only_read_costs_no_data_frame() {
    let m = machine();
    let base = m.anon(2048);
    for page in 0..2048 {
        assert_eq!(m.load(VirtAddr(base.0 + page * PAGE)), Ok(0));
    }
    assert_eq!(m.memory.frames().counts().anonymous, 0);
}

#[test]
fn a_fault_that_somebody_else_resolved_is_a_success() {
    let m = machine();
    let base = m.anon(1);
    let fault = Fault {
        address: base,
        access: Access::Write,
        kind: FaultKind::Translation(3),
    };
    assert_eq!(m.manager.handle_fault(fault), Ok(()));
    assert_eq!(m.manager.handle_fault(fault), Ok(()));
    assert_eq!(m.manager.fault_counts().of(Outcome::Spurious), 1);
    assert_eq!(m.memory.frames().counts().anonymous, 1);
}

#[test]
fn out_of_frames_is_an_error_and_memory_comes_back() {
    let m = machine();
    let before = m.memory.frames().counts();
    let base = m.anon(4096);
    let failed = (0..4096).find_map(|page| m.store(VirtAddr(base.0 + page * PAGE), 1).err());
    assert_eq!(failed, Some(FaultError::OutOfFrames));
    // Data stops at the reserve; tables may draw on it.
    assert!(m.memory.frames().counts().free <= before.reserve);
    assert!(m.memory.frames().counts().free > 0);
    m.manager.unmap(base).unwrap();
    m.mmu.check();
    assert_eq!(m.memory.frames().counts().anonymous, 0);
}

#[test]
fn the_last_owner_of_a_shared_page_stores_to_it_without_a_copy() {
    let m = machine();
    let base = m.anon(1);
    m.store(base, 7).unwrap();
    let copy = m
        .manager
        .clone_range(base, PAGE, Placement::Anywhere)
        .unwrap();
    m.manager.unmap(base).unwrap();
    m.store(copy, 8).unwrap();
    let counts = m.manager.fault_counts();
    assert_eq!(
        (counts.of(Outcome::Reused), counts.of(Outcome::Copied)),
        (1, 0)
    );
    assert_eq!(m.memory.frames().counts().anonymous, 1);
}

#[test]
fn a_map_grows_where_it_is_or_moves_with_its_contents() {
    let m = machine();
    let base = m.anon(4);
    m.store(base, 1).unwrap();
    assert_eq!(
        m.manager.remap(base, 4 * PAGE, 8 * PAGE, Remap::InPlace),
        Ok(base)
    );
    m.store(VirtAddr(base.0 + 7 * PAGE), 2).unwrap();
    let behind = VirtAddr(base.0 + 8 * PAGE);
    m.manager
        .map_anon(Placement::FixedNoReplace(behind), PAGE, Protection::READ)
        .unwrap();
    assert_eq!(
        m.manager.remap(base, 8 * PAGE, 9 * PAGE, Remap::InPlace),
        Err(MapError::Occupied)
    );
    let moved = m
        .manager
        .remap(base, 8 * PAGE, 9 * PAGE, Remap::MayMove)
        .unwrap();
    assert_ne!(moved, base);
    assert_eq!(m.load(moved), Ok(1));
    assert_eq!(m.load(VirtAddr(moved.0 + 7 * PAGE)), Ok(2));
    assert_eq!(m.load(VirtAddr(moved.0 + 8 * PAGE)), Ok(0));
    assert_eq!(m.load(base), Err(FaultError::NoMapping));
    assert_eq!(
        m.manager.remap(moved, 9 * PAGE, PAGE, Remap::InPlace),
        Ok(moved)
    );
    assert_eq!(m.memory.frames().counts().anonymous, 1);
}

#[test]
fn neighbours_that_are_alike_become_one_map() {
    let m = machine();
    let base = m.anon(3);
    let middle = VirtAddr(base.0 + PAGE);
    m.manager
        .set_permissions(middle, PAGE, Protection::READ)
        .unwrap();
    assert_eq!(m.manager.len(), 3);
    m.manager.set_permissions(middle, PAGE, RW).unwrap();
    assert_eq!(m.manager.len(), 1);
}

#[test]
fn locked_pages_are_present_and_stay() {
    let m = machine();
    let base = m.anon(4);
    m.store(base, 1).unwrap();
    m.manager.lock(base, 4 * PAGE).unwrap();
    assert_eq!(
        m.manager.advise(base, PAGE, Advice::DontNeed),
        Err(MapError::Locked)
    );
    m.manager.unlock(base, 4 * PAGE).unwrap();
    m.manager.advise(base, PAGE, Advice::DontNeed).unwrap();
    assert_eq!(m.load(base), Ok(0));
}

#[test]
fn addresses_are_given_back_and_used_again() {
    let m = machine();
    let first = m.anon(10);
    m.manager.unmap(first).unwrap();
    assert_eq!(m.anon(10), first);
}

#[test]
fn what_a_holder_mapped_goes_with_it_and_nothing_else() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static HOLDER: AtomicU64 = AtomicU64::new(1);
    let memory: &'static SimMemory = Box::leak(Box::new(SimMemory::new(8 << 20)));
    let tables = PageTables::new(memory.frames(), SimMmu::new(memory)).unwrap();
    let limits = VirtAddr(0x1_0000)..VirtAddr(1 << 48);
    let manager = MemoryMapManager::new(memory.frames(), tables, limits)
        .with_holder(|| HOLDER.load(Ordering::Relaxed));
    let map = |holder| {
        HOLDER.store(holder, Ordering::Relaxed);
        let base = manager.map_anon(Placement::Anywhere, PAGE, RW).unwrap();
        manager.trap(base, Access::Write).unwrap();
        base
    };
    let [_, kept, _] = [1, 2, 1].map(map);
    assert_eq!(manager.len(), 3);
    manager.remove_holder(1).unwrap();
    assert_eq!(manager.len(), 1);
    assert_eq!(manager.contains(kept, PAGE), Ok(true));
    assert_eq!(memory.frames().counts().anonymous, 1);
}

#[test]
fn a_hint_replaces_nothing() {
    let m = machine();
    let base = m.anon(1);
    m.store(base, 9).unwrap();
    let other = m.manager.map_anon(Placement::Hint(base), PAGE, RW).unwrap();
    assert_ne!(other, base);
    assert_eq!(m.load(base), Ok(9));
}

#[test]
fn a_map_shows_the_very_frame_of_the_cache_and_pins_it() {
    let m = machine();
    let file = SimFile::new(m, 3);
    let base = m.map(&file, 3, Protection::READ, Sharing::Shared);
    assert_eq!(m.load(VirtAddr(base.0 + PAGE)), Ok(2));
    assert_eq!((file.pins(0), file.pins(1), file.pins(2)), (0, 1, 0));
    m.manager.unmap(base).unwrap();
    assert_eq!(file.pins(1), 0);
}

#[test]
fn what_is_resident_after_a_page_is_entered_with_it() {
    let m = machine();
    let file = SimFile::new(m, 8);
    (0..6).for_each(|block| file.prime(block, Pattern::Normal).unwrap());
    let base = m.map(&file, 8, Protection::READ, Sharing::Shared);
    (0..6).for_each(|page| assert_eq!(m.load(VirtAddr(base.0 + page * PAGE)), Ok(page as u8 + 1)));
    assert_eq!(m.manager.fault_counts().total(), 1);
}

#[test]
fn a_read_only_shared_map_is_not_writable() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    assert_eq!(m.load(base), Ok(1));
    assert_eq!(m.store(base, 9), Err(FaultError::Denied));
    assert_eq!(file.byte(0), 1);
}

#[test]
fn a_store_to_an_untouched_page_of_a_read_only_map_leaves_the_file_clean() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    assert_eq!(m.store(base, 9), Err(FaultError::Denied));
    assert!(file.state.lock().unwrap().dirty.is_empty());
    assert_eq!(m.manager.fault_counts().of(Outcome::FileDirty), 0);
}

#[test]
fn past_the_end_of_the_file_is_a_fault_of_its_own() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 2, Protection::READ, Sharing::Shared);
    assert_eq!(m.load(VirtAddr(base.0 + PAGE)), Err(FaultError::PastEnd));
}

#[test]
fn a_failed_read_reaches_the_fault_and_the_next_one_tries_again() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    file.state.lock().unwrap().next_read_fails = Some(IoError::Device { offset: 512 });
    assert_eq!(
        m.load(base),
        Err(FaultError::Io(IoError::Device { offset: 512 }))
    );
    assert_eq!(m.load(base), Ok(1));
}

#[test]
fn mapping_removed_during_the_read_is_not_entered() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    file.during_next_read(move || m.manager.unmap(base).unwrap());
    assert_eq!(m.load(base), Err(FaultError::NoMapping));
    assert_eq!(file.pins(0), 0);
}

#[test]
fn the_file_lives_while_a_fault_waits_for_it() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    let weak = Arc::downgrade(&file);
    let seen = weak.clone();
    file.during_next_read(move || {
        m.manager.unmap(base).unwrap();
        assert!(seen.upgrade().is_some());
    });
    drop(file);
    assert_eq!(m.load(base), Err(FaultError::NoMapping));
    assert!(weak.upgrade().is_none());
}

#[test]
fn another_map_put_there_during_the_read_is_the_one_that_counts() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    file.during_next_read(move || {
        m.manager
            .map_anon(Placement::Fixed(base), PAGE, RW)
            .unwrap();
    });
    assert_eq!(m.load(base), Ok(0));
    assert_eq!(file.pins(0), 0);
}

#[test]
fn protection_taken_away_during_the_read_is_honoured() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    file.during_next_read(move || {
        m.manager
            .set_permissions(base, PAGE, Protection::NONE)
            .unwrap();
    });
    assert_eq!(m.load(base), Err(FaultError::Denied));
}

#[test]
fn two_faults_on_one_page_pin_it_once() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ, Sharing::Shared);
    file.during_next_read(move || assert_eq!(m.load(base), Ok(1)));
    assert_eq!(m.load(base), Ok(1));
    assert_eq!(file.pins(0), 1);
}

#[test]
fn a_store_reaches_the_file_and_makes_it_dirty_again_after_each_sync_through_every_alias() {
    let m = machine();
    let file = SimFile::new(m, 2);
    let first = m.map(&file, 2, RW, Sharing::Shared);
    let second = m.map(&file, 2, RW, Sharing::Shared);
    let is_dirty = || file.state.lock().unwrap().dirty.contains(&0);
    for (round, base) in [first, second, first].into_iter().enumerate() {
        m.load(first).unwrap();
        m.load(second).unwrap();
        assert!(!is_dirty(), "a load made it dirty");
        m.store(base, 10 + round as u8).unwrap();
        assert!(is_dirty(), "round {round}");
        assert_eq!(file.byte(0), 10 + round as u8);
        m.manager.sync(first, 2 * PAGE, SyncMode::Wait).unwrap();
        assert!(!is_dirty());
        // What was synced is write-protected in both maps.
        m.store(second, 50).unwrap();
        assert!(
            is_dirty(),
            "round {round}: a store after the sync was not noticed"
        );
        m.manager.sync(second, PAGE, SyncMode::Wait).unwrap();
        m.store(first, 60).unwrap();
        assert!(is_dirty(), "round {round}: nor one through the other map");
        m.manager.sync(second, PAGE, SyncMode::Wait).unwrap();
    }
    m.manager.unmap_all().unwrap();
    assert_eq!(file.pins(0), 0);
}

#[test]
fn a_store_that_the_file_has_no_room_for_fails() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, RW, Sharing::Shared);
    file.state.lock().unwrap().dirtying_fails = Some(IoError::NoSpace);
    assert_eq!(m.store(base, 1), Err(FaultError::Io(IoError::NoSpace)));
    assert_eq!(m.load(base), Ok(1));
    assert_eq!(m.store(base, 1), Err(FaultError::Io(IoError::NoSpace)));
    m.manager.unmap(base).unwrap();
    assert_eq!(file.pins(0), 0);
}

#[test]
fn a_copy_on_write_map_never_touches_the_file_and_returns_to_it() {
    let m = machine();
    let file = SimFile::new(m, 2);
    let shared = m.map(&file, 2, RW, Sharing::Shared);
    let private = m.map(&file, 2, RW, Sharing::CopyOnWrite);
    m.store(private, 99).unwrap(); // never read before
    assert_eq!(m.load(VirtAddr(private.0 + PAGE)), Ok(2));
    m.store(VirtAddr(private.0 + PAGE), 98).unwrap(); // read before
    assert_eq!(
        (m.load(shared), m.load(VirtAddr(shared.0 + PAGE))),
        (Ok(1), Ok(2))
    );
    assert!(file.state.lock().unwrap().dirty.is_empty());
    assert_eq!((file.pins(0), file.pins(1)), (1, 1));
    m.manager.invalidate(private, 2 * PAGE).unwrap();
    assert_eq!(
        (m.load(private), m.load(VirtAddr(private.0 + PAGE))),
        (Ok(1), Ok(2))
    );
    assert_eq!(m.memory.frames().counts().anonymous, 0);
}

#[test]
fn a_copy_shows_the_rest_of_the_page_too() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let private = m.map(&file, 1, RW, Sharing::CopyOnWrite);
    m.store(private, 99).unwrap();
    assert_eq!(m.load(VirtAddr(private.0 + PAGE - 1)), Ok(1));
}

#[test]
fn cloned_private_copies_part_and_shared_pages_stay_shared() {
    let m = machine();
    let file = SimFile::new(m, 1);
    let private = m.map(&file, 1, RW, Sharing::CopyOnWrite);
    let shared = m.map(&file, 1, RW, Sharing::Shared);
    m.store(private, 5).unwrap();
    let copy = m
        .manager
        .clone_range(private, PAGE, Placement::Anywhere)
        .unwrap();
    let alias = m
        .manager
        .clone_range(shared, PAGE, Placement::Anywhere)
        .unwrap();
    m.store(private, 6).unwrap();
    m.store(shared, 7).unwrap();
    assert_eq!((m.load(copy), m.load(alias)), (Ok(5), Ok(7)));
}

#[test]
fn compaction_unpins_file_pages_but_keeps_copies_and_locked_pages() {
    let m = machine();
    let file = SimFile::new(m, 4);
    let base = m.map(&file, 4, RW, Sharing::CopyOnWrite);
    let locked = m.map(&file, 4, Protection::READ, Sharing::Shared);
    m.load(base).unwrap();
    m.store(VirtAddr(base.0 + PAGE), 9).unwrap();
    m.manager.lock(locked, PAGE).unwrap();
    assert_eq!(file.pins(0), 2);
    assert!(m.manager.compact() >= 1);
    assert_eq!(file.pins(0), 1);
    assert_eq!(m.load(VirtAddr(base.0 + PAGE)), Ok(9));
}

#[test]
fn a_split_map_keeps_its_place_in_the_file() {
    let m = machine();
    let file = SimFile::new(m, 5);
    let base = m.map(&file, 5, Protection::READ, Sharing::Shared);
    m.manager.remove(VirtAddr(base.0 + 2 * PAGE), PAGE).unwrap();
    assert_eq!(m.load(VirtAddr(base.0 + 3 * PAGE)), Ok(4));
    assert_eq!(
        m.load(VirtAddr(base.0 + 2 * PAGE)),
        Err(FaultError::NoMapping)
    );
}

#[test]
fn an_executable_page_is_synchronized_before_it_is_entered() {
    use pinfold::sim::Operation;
    let m = machine();
    let file = SimFile::new(m, 1);
    let base = m.map(&file, 1, Protection::READ_EXECUTE, Sharing::Shared);
    m.mmu.take_operations();
    m.access(base, Access::Execute).unwrap();
    let operations = m.mmu.take_operations();
    let at = |wanted: fn(&Operation) -> bool| operations.iter().position(wanted);
    let synchronized = at(|o| *o == Operation::SynchronizeInstructions).unwrap();
    let entered = at(|o| matches!(o, Operation::Store(_, 3, entry) if entry.is_valid())).unwrap();
    assert!(synchronized < entered);
}
