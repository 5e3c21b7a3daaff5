//! Random operations on maps, against a model with one entry for each page.
//!
//! Everything runs on the simulated MMU, which panics on what hardware would corrupt. Seeds are fixed; for a campaign set
//! `PINFOLD_CAMPAIGN` to the number of seconds it may take, and `PINFOLD_SEED` to repeat one.

#![cfg(not(target_os = "none"))]

use pinfold::arch::aarch64::page_table::PageTables;
use pinfold::mm::addr::{PAGE_SIZE, VirtAddr};
use pinfold::mm::fault::{Access, FaultError};
use pinfold::mm::manager::{Advice, MapError, MemoryMapManager, Placement, Remap};
use pinfold::mm::object::Pattern;
use pinfold::mm::table::Protection;
use pinfold::sim::{SimMemory, SimMmu};
use std::time::{Duration, Instant};

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages that operations are about: four blocks.
const PAGES: usize = 2048;
/// Their first address; the last block begins one page off, so that the window's ends are within tables.
const BASE: u64 = 0x4000_0000;

const PROTECTIONS: [Protection; 5] = [
    Protection::NONE,
    Protection::READ,
    Protection::READ_WRITE,
    Protection::READ_EXECUTE,
    Protection::READ_WRITE_EXECUTE,
];

type Manager<'m> = MemoryMapManager<'m, PageTables<'m, SimMmu<'m>>>;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct ModelPage {
    protection: Protection,
    is_guard: bool,
    is_locked: bool,
    first: u8,
    last: u8,
}

impl ModelPage {
    const fn new(protection: Protection) -> Self {
        Self {
            protection,
            is_guard: false,
            is_locked: false,
            first: 0,
            last: 0,
        }
    }
}

struct Machine<'m> {
    manager: Manager<'m>,
    mmu: SimMmu<'m>,
    model: Vec<Option<ModelPage>>,
    random: Random,
}

fn manager<'m>(memory: &'m SimMemory) -> (Manager<'m>, SimMmu<'m>) {
    let mmu = SimMmu::new(memory);
    let tables = PageTables::new(memory.frames(), mmu.clone()).unwrap();
    mmu.install(tables.root());
    let limits = VirtAddr(0x1_0000)..VirtAddr(1 << 48);
    (MemoryMapManager::new(memory.frames(), tables, limits), mmu)
}

fn address(page: usize) -> VirtAddr {
    VirtAddr(BASE + page as u64 * PAGE)
}

impl<'m> Machine<'m> {
    fn new(memory: &'m SimMemory, seed: u64) -> Self {
        let (manager, mmu) = manager(memory);
        Self {
            manager,
            mmu,
            model: vec![None; PAGES],
            random: Random(seed | 1),
        }
    }

    /// An access as a processor makes it: until it succeeds, or cannot.
    fn access(&self, address: VirtAddr, access: Access) -> Result<*mut u8, FaultError> {
        for _ in 0..4 {
            match self.mmu.translate(address, access) {
                Ok(pointer) => return Ok(pointer),
                Err(_) => self.manager.trap(address, access)?,
            }
        }
        panic!("{access:?} at {address} goes on faulting");
    }

    fn expected(&self, page: usize, access: Access) -> Option<FaultError> {
        match self.model[page] {
            None => Some(FaultError::NoMapping),
            Some(page) if page.is_guard => Some(FaultError::Guard),
            Some(page) if !page.protection.allows(access) => Some(FaultError::Denied),
            Some(_) => None,
        }
    }

    fn load(&self, page: usize) {
        let expected = self.expected(page, Access::Read);
        match self.access(address(page), Access::Read) {
            Ok(pointer) => {
                assert_eq!(expected, None, "page {page}");
                let model = self.model[page].unwrap();
                // SAFETY: translated just now.
                let (first, last) = unsafe { (pointer.read(), pointer.add(4095).read()) };
                assert_eq!((first, last), (model.first, model.last), "page {page}");
            }
            Err(error) => assert_eq!(Some(error), expected, "page {page}"),
        }
    }

    fn store(&mut self, page: usize, value: u8) {
        let expected = self.expected(page, Access::Write);
        match self.access(address(page), Access::Write) {
            Ok(pointer) => {
                assert_eq!(expected, None, "page {page}");
                // SAFETY: translated just now.
                unsafe {
                    pointer.write(value);
                    pointer.add(4095).write(!value);
                }
                let model = self.model[page].as_mut().unwrap();
                (model.first, model.last) = (value, !value);
            }
            Err(FaultError::OutOfFrames) => {}
            Err(error) => assert_eq!(Some(error), expected, "page {page}"),
        }
    }

    fn fetch(&self, page: usize) {
        let result = self.access(address(page), Access::Execute);
        assert_eq!(
            result.err(),
            self.expected(page, Access::Execute),
            "page {page}"
        );
    }

    /// A run of pages: mostly short, sometimes blocks, sometimes up to the end.
    fn run(&mut self) -> std::ops::Range<usize> {
        let start = match self.random.below(4) {
            0 => self.random.below(4) as usize * 512,
            1 => self.random.below(128) as usize * 16,
            _ => self.random.below(PAGES as u64) as usize,
        };
        let len = match self.random.below(8) {
            0 => 512 * (1 + self.random.below(3) as usize),
            1 | 2 => 16 * (1 + self.random.below(8) as usize),
            3 => PAGES,
            _ => 1 + self.random.below(40) as usize,
        };
        start..(start + len).min(PAGES)
    }

    fn length(run: &std::ops::Range<usize>) -> u64 {
        run.len() as u64 * PAGE
    }

    fn is_mapped(&self, run: &std::ops::Range<usize>) -> bool {
        self.model[run.clone()].iter().all(Option::is_some)
    }

    fn step(&mut self) {
        let run = self.run();
        let (at, length) = (address(run.start), Self::length(&run));
        match self.random.below(22) {
            0..=2 => {
                let protection = PROTECTIONS[self.random.below(5) as usize];
                let placement = Placement::Fixed(at);
                assert_eq!(
                    self.manager
                        .map_anon(placement, length - self.random.below(PAGE), protection),
                    Ok(at)
                );
                self.model[run].fill(Some(ModelPage::new(protection)));
            }
            3 => {
                let result = self.manager.map_anon(
                    Placement::FixedNoReplace(at),
                    length,
                    Protection::READ_WRITE,
                );
                if self.model[run.clone()].iter().all(Option::is_none) {
                    assert_eq!(result, Ok(at));
                    self.model[run].fill(Some(ModelPage::new(Protection::READ_WRITE)));
                } else {
                    assert_eq!(result, Err(MapError::Occupied));
                }
            }
            4 => {
                self.manager.remove(at, length).unwrap();
                self.model[run].fill(None);
            }
            5..=7 => {
                let protection = PROTECTIONS[self.random.below(5) as usize];
                self.manager
                    .set_permissions(at, length, protection)
                    .unwrap();
                for page in self.model[run].iter_mut().flatten() {
                    page.protection = protection;
                    page.is_guard = false;
                }
            }
            8..=10 => run.for_each(|page| self.load(page)),
            11..=14 => {
                let value = self.random.next() as u8;
                run.for_each(|page| self.store(page, value.wrapping_add(page as u8)));
            }
            15 => run.for_each(|page| self.fetch(page)),
            16 => {
                let result = self.manager.advise(at, length, Advice::DontNeed);
                let is_locked = self.model[run.clone()]
                    .iter()
                    .flatten()
                    .any(|page| page.is_locked);
                if !self.is_mapped(&run) {
                    assert_eq!(result, Err(MapError::NotMapped));
                } else if is_locked {
                    assert_eq!(result, Err(MapError::Locked));
                } else {
                    assert_eq!(result, Ok(()));
                    for page in self.model[run].iter_mut().flatten() {
                        (page.first, page.last) = (0, 0);
                    }
                }
            }
            17 => {
                self.manager.guard(at, length).unwrap();
                for page in self.model[run].iter_mut().flatten() {
                    *page = ModelPage {
                        is_guard: true,
                        first: 0,
                        last: 0,
                        ..*page
                    };
                }
            }
            18 => self.clone_and_compare(&run),
            19 => self.move_away_and_back(&run),
            20 => {
                let patterns = [Pattern::Normal, Pattern::Random, Pattern::Sequential];
                let pattern = patterns[self.random.below(3) as usize];
                let result = self.manager.advise(at, length, Advice::Pattern(pattern));
                assert_eq!(result.is_ok(), self.is_mapped(&run));
            }
            _ => {
                let accesses = [Access::Read, Access::Write];
                let access = accesses[self.random.below(2) as usize];
                let is_allowed = self.is_mapped(&run)
                    && run
                        .clone()
                        .all(|page| self.expected(page, access).is_none());
                let result = self.manager.populate(at, length, access);
                assert!(result.is_ok() == is_allowed || result == Err(MapError::OutOfFrames));
            }
        }
    }

    /// A copy shows the same, and neither sees what is stored to the other.
    fn clone_and_compare(&mut self, run: &std::ops::Range<usize>) {
        let length = Self::length(run);
        let copy = match self
            .manager
            .clone_range(address(run.start), length, Placement::Anywhere)
        {
            Ok(copy) => copy,
            Err(MapError::NotMapped) => {
                return assert!(self.model[run.clone()].iter().all(Option::is_none));
            }
            Err(error) => return assert_eq!(error, MapError::OutOfFrames),
        };
        self.manager.check();
        let value = self.random.next() as u8;
        for page in run.clone() {
            let there = VirtAddr(copy.0 + (page - run.start) as u64 * PAGE);
            let turn = self.random.below(4);
            if turn == 0 {
                self.store(page, value);
            }
            if turn == 1 && self.expected(page, Access::Write).is_none() {
                if let Ok(pointer) = self.access(there, Access::Write) {
                    // SAFETY: translated just now.
                    unsafe { pointer.write(value) };
                }
            } else if turn > 1 && self.expected(page, Access::Read).is_none() {
                let pointer = self.access(there, Access::Read).unwrap();
                // SAFETY: translated just now.
                assert_eq!(unsafe { pointer.read() }, self.model[page].unwrap().first);
            }
            self.load(page);
        }
        self.manager.check();
        self.manager.remove(copy, length).unwrap();
    }

    fn move_away_and_back(&mut self, run: &std::ops::Range<usize>) {
        let length = Self::length(run);
        let at = address(run.start);
        // Moving one page off, too, where groups do not fit.
        let away = Remap::To(VirtAddr(0x7000_0000_0000 + self.random.below(3) * PAGE));
        match self.manager.remap(at, length, length, away) {
            Ok(there) => {
                assert!(self.is_mapped(run));
                assert_eq!(self.manager.contains(at, length), Ok(false));
                self.manager.check();
                assert_eq!(
                    self.manager.remap(there, length, length, Remap::To(at)),
                    Ok(at)
                );
            }
            Err(MapError::NotMapped) => assert!(!self.is_mapped(run)),
            Err(error) => assert_eq!(error, MapError::OutOfFrames),
        }
    }

    fn check(&self) {
        self.manager.check();
        self.mmu.check();
        for page in (0..PAGES).step_by(16) {
            self.mmu.check_group(address(page).page());
        }
    }
}

fn campaign(seed: u64, steps: usize) {
    let memory = SimMemory::new(if cfg!(miri) { 16 << 20 } else { 64 << 20 });
    let before = memory.frames().counts();
    let mut machine = Machine::new(&memory, seed);
    for step in 0..steps {
        if std::env::var_os("PINFOLD_SEED").is_some() {
            println!("step {step}");
        }
        machine.step();
        machine.check();
    }
    for page in 0..PAGES {
        machine.load(page);
    }
    machine.manager.unmap_all().unwrap();
    machine.check();
    assert_eq!(memory.frames().counts().anonymous, 0, "seed {seed}");
    drop(machine);
    assert_eq!(memory.frames().counts(), before, "seed {seed}");
}

/// Operations of one seed.
const STEPS: usize = if cfg!(miri) { 12 } else { 400 };

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_operations_agree_with_the_model_and_leave_no_frame_behind() {
    if let Some(seed) = number("PINFOLD_SEED") {
        return campaign(seed, STEPS);
    }
    let time = number("PINFOLD_CAMPAIGN").map_or(Duration::from_secs(4), Duration::from_secs);
    let end = Instant::now() + time;
    let mut seed = 1;
    while Instant::now() < end {
        println!("seed {seed}");
        campaign(seed, STEPS);
        seed += 1;
    }
}

#[test]
fn a_remap_that_is_refused_changes_nothing() {
    let memory = SimMemory::new(4 << 20);
    let (manager, mmu) = manager(&memory);
    let protection = Protection::READ_WRITE;
    let map = |placement, pages| manager.map_anon(placement, pages * PAGE, protection);
    let base = map(Placement::Anywhere, 4).unwrap();
    let other = map(Placement::Fixed(address(0)), 1).unwrap();
    let last = VirtAddr(base.0 + 3 * PAGE);
    manager.trap(last, Access::Write).unwrap();
    mmu.store_byte(last, 7).unwrap();
    let moved = manager.remap(base, 4 * PAGE, 2 * PAGE, Remap::To(other));
    assert_eq!(moved, Err(MapError::Occupied));
    assert_eq!(mmu.load(last), Ok(7));
    let moved = manager.remap(base, 4 * PAGE, 2 * PAGE, Remap::To(address(1)));
    assert_eq!(moved, Ok(address(1)));
    assert_eq!(manager.contains(base, 4 * PAGE), Ok(false));
}
