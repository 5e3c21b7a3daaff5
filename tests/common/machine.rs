//! A machine without a processor: ext4 on a simulated disk, the page cache in front of it, and maps on the simulated MMU.

use super::{e2fsck, mkfs, mount, read_file};
use pinfold::arch::aarch64::page_table::PageTables;
use pinfold::fs::cached::Cached;
use pinfold::fs::ext4::Access as FsAccess;
use pinfold::fs::sim_disk::SimDisk;
use pinfold::fs::{FileId, FileKind, FileSystem};
use pinfold::mm::addr::{PAGE_SIZE, VirtAddr};
use pinfold::mm::cache::{InUse, PageCache, Residence};
use pinfold::mm::fault::{Access, FaultError};
use pinfold::mm::manager::{MemoryMapManager, Placement};
use pinfold::mm::object::{Sharing, SyncMode};
use pinfold::mm::table::Protection;
use pinfold::sim::{SimMemory, SimMmu};
use std::cell::Cell;
use std::sync::Arc;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

pub const PAGE: u64 = PAGE_SIZE as u64;

pub type Manager = MemoryMapManager<'static, PageTables<'static, SimMmu<'static>>>;

thread_local! {
    /// What the maps of this test's thread reclaim from.
    static CACHE: Cell<Option<&'static PageCache>> = const { Cell::new(None) };
}

/// It lives as long as the test's process: files and maps may refer to it as they like.
#[derive(Clone)]
pub struct Machine {
    pub memory: &'static SimMemory,
    pub manager: &'static Manager,
    pub cache: &'static PageCache,
    pub mmu: SimMmu<'static>,
    pub disk: Arc<SimDisk>,
    pub fs: Arc<Cached>,
    /// The file system behind the cache.
    pub beneath: Arc<dyn FileSystem>,
    /// What was on the disk at first.
    pub base: Arc<Vec<u8>>,
    /// Free blocks that nobody could have at first.
    pub held_back: u64,
}

impl Machine {
    /// With an empty file system of 8 MiB.
    pub fn new(seed: u64, memory: u64, mkfs_options: &[&str]) -> Self {
        Self::on(mkfs(8192, mkfs_options, None), seed, memory)
    }

    /// With this file system.
    pub fn on(base: Vec<u8>, seed: u64, memory: u64) -> Self {
        let memory: &'static SimMemory = Box::leak(Box::new(SimMemory::new(memory)));
        let mmu = SimMmu::new(memory);
        let tables = PageTables::new(memory.frames(), mmu.clone()).unwrap();
        mmu.install(tables.root());
        let limits = VirtAddr(0x1_0000)..VirtAddr(1 << 48);
        let cache: &'static PageCache = Box::leak(Box::new(PageCache::new(memory.frames())));
        let reclaim = || CACHE.get().is_some_and(PageCache::reclaim_or_write);
        let manager: &'static Manager = Box::leak(Box::new(
            MemoryMapManager::new(memory.frames(), tables, limits).with_reclaim(reclaim),
        ));
        cache.set_aliases(manager);
        let disk = Arc::new(SimDisk::new(base.clone(), seed));
        let mounted = mount(disk.clone(), FsAccess::ReadWrite).unwrap();
        let beneath: Arc<dyn FileSystem> = Arc::new(mounted.file_system);
        let fs = Arc::new(Cached::new(beneath.clone(), cache));
        let at_first = fs.statistics().unwrap();
        let machine = Self {
            memory,
            manager,
            cache,
            mmu,
            disk,
            fs,
            beneath,
            base: Arc::new(base),
            held_back: at_first.free_blocks - at_first.available_blocks,
        };
        machine.adopt_thread();
        machine
    }

    /// Lets faults of this thread reclaim from the machine's cache.
    pub fn adopt_thread(&self) {
        CACHE.set(Some(self.cache));
    }

    /// A new file, open, with these bytes.
    pub fn create(&self, name: &str, bytes: &[u8]) -> FileId {
        let root = self.fs.root();
        let file = self
            .fs
            .create(root, name.as_bytes(), FileKind::File, 0o644)
            .unwrap();
        self.fs.open(file).unwrap();
        self.fs.write_at(file, 0, bytes).unwrap();
        file
    }

    pub fn cached(&self, file: FileId) -> InUse {
        self.fs.mappable(file, "a file").unwrap()
    }

    pub fn map_with(
        &self,
        file: FileId,
        first_page: u64,
        pages: u64,
        protection: Protection,
        sharing: Sharing,
    ) -> VirtAddr {
        let handle = self.cached(file).handle();
        let length = pages * PAGE;
        let offset = first_page * PAGE;
        let placement = Placement::Anywhere;
        self.manager
            .map_file(handle, placement, length, protection, offset, sharing)
            .unwrap()
    }

    /// A shared map that may be stored to.
    pub fn map(&self, file: FileId, first_page: u64, pages: u64) -> VirtAddr {
        let protection = Protection::READ_WRITE;
        self.map_with(file, first_page, pages, protection, Sharing::Shared)
    }

    /// A private one.
    pub fn map_private(&self, file: FileId, first_page: u64, pages: u64) -> VirtAddr {
        let protection = Protection::READ_WRITE;
        self.map_with(file, first_page, pages, protection, Sharing::CopyOnWrite)
    }

    /// An access as a processor makes it: until it succeeds, or cannot.
    fn access<R>(
        &self,
        address: VirtAddr,
        access: Access,
        attempt: impl Fn(&SimMmu<'static>) -> Result<R, u32>,
    ) -> Result<R, FaultError> {
        for _ in 0..1000 {
            // Other threads change translations with the maps locked: an access comes before or after.
            if let Ok(done) = self.manager.with_table(|_| attempt(&self.mmu)) {
                return Ok(done);
            }
            self.manager.trap(address, access)?;
        }
        panic!("{access:?} at {address} goes on faulting");
    }

    pub fn load(&self, address: VirtAddr) -> Result<u8, FaultError> {
        self.access(address, Access::Read, |mmu| mmu.load(address))
    }

    pub fn store(&self, address: VirtAddr, value: u8) -> Result<(), FaultError> {
        self.access(address, Access::Write, |mmu| mmu.store_byte(address, value))
    }

    /// The bytes of a file through `read`.
    pub fn read(&self, file: FileId, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        let read = self.fs.read_at(file, offset, &mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    }

    /// The bytes that are on the disk by now, told by a file system of its own after the log was replayed.
    pub fn on_disk(&self, file: FileId) -> Vec<u8> {
        let disk = Arc::new(SimDisk::new(self.disk.contents(), 1));
        let fs = mount(disk, FsAccess::ReadWrite).unwrap().file_system;
        let mut bytes = vec![0; fs.attributes(file).unwrap().size as usize];
        let read = fs.read_at(file, 0, &mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    }

    pub fn check(&self) {
        self.manager.check();
        self.mmu.check();
        for file in self.cache.files(None) {
            file.check();
        }
    }

    pub fn sync(&self, base: VirtAddr, pages: u64) -> Result<(), pinfold::mm::manager::MapError> {
        self.manager.sync(base, pages * PAGE, SyncMode::Wait)
    }

    /// A file that is on the disk, and not in memory.
    pub fn cold(&self, name: &str, bytes: &[u8]) -> FileId {
        let file = self.create(name, bytes);
        self.fs.sync().unwrap();
        self.cache.drop_clean();
        assert_eq!(self.cached(file).pages(), (0, 0));
        file
    }

    pub fn residence(&self, file: FileId, page: u64) -> Residence {
        self.cached(file).residence(page..page + 1)[0]
    }

    /// A thread that runs `f` while a transfer is held open, and has been given time to wait for it.
    pub fn meanwhile(&self, f: impl FnOnce(Machine) + Send + 'static) -> JoinHandle<()> {
        let machine = self.clone();
        let thread = spawn(move || {
            machine.adopt_thread();
            f(machine);
        });
        sleep(Duration::from_millis(20));
        thread
    }

    /// Nothing is promised to anybody once all is written and gone from memory.
    pub fn check_promises(&self) {
        self.fs.sync().unwrap();
        self.cache.drop_clean();
        let now = self.fs.statistics().unwrap();
        let promised = now.free_blocks - now.available_blocks;
        assert_eq!(
            promised,
            self.held_back.min(now.free_blocks),
            "room is lost"
        );
    }

    /// Unmounts, checks, and returns what a file holds on the disk.
    pub fn finish(&self, file: FileId) -> Vec<u8> {
        self.check();
        self.manager.unmap_all().unwrap();
        self.check_promises();
        self.fs.close(file).unwrap();
        self.fs.unmount().unwrap();
        let frames = self.memory.frames().counts();
        assert_eq!((frames.cache, frames.anonymous), (0, 0), "frames are lost");
        e2fsck(&self.disk.contents()).unwrap();
        self.on_disk(file)
    }
}

/// A small generator (xorshift64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub const OPTIONS: &[&str] = &["-b", "4096"];

pub fn machine() -> Machine {
    Machine::new(1, 16 << 20, OPTIONS)
}

/// An address in page `page` of a map.
pub fn at(base: VirtAddr, page: u64, byte: u64) -> VirtAddr {
    VirtAddr(base.0 + page * PAGE + byte)
}

/// `pages` pages, each full of its number.
pub fn numbered(pages: u64) -> Vec<u8> {
    (0..pages).flat_map(|i| vec![i as u8; PAGE_SIZE]).collect()
}

/// Takes all that is free, past the cache: what can be had for a file of its own, and again what can be had by then.
pub fn fill(machine: &Machine) {
    let (beneath, root) = (&machine.beneath, machine.fs.root());
    let filler = beneath.lookup(root, b"filler");
    let filler = filler.or_else(|_| beneath.create(root, b"filler", FileKind::File, 0o644));
    let filler = filler.unwrap();
    let mut end = beneath.attributes(filler).unwrap().size;
    beneath.sync().unwrap();
    for _ in 0..2 {
        while beneath.write_at(filler, end, &[0; 1024]).is_ok() {
            end += 1024;
        }
        beneath.sync().unwrap();
    }
}

/// The file as it is found by whoever mounts the image.
pub fn found_on(image: Vec<u8>, name: &[u8]) -> Vec<u8> {
    let disk = Arc::new(SimDisk::new(image, 1));
    let fs = mount(disk, FsAccess::ReadWrite).unwrap().file_system;
    let file = fs.lookup(fs.root(), name).unwrap();
    read_file(&fs, file).unwrap()
}
