//! Files as memory on the shipped image, on whatever disk is mounted: all that crate `memmap2` promises, and what it
//! cannot.

use crate::file::{File, OpenOptions};
use crate::files::VFS;
use crate::fs::vfs::LastLink;
use crate::fs::{FileKind, FsError};
use crate::mm::{CACHE, FRAMES, maps};
use crate::mmap::{Advice, Mmap, MmapError, MmapMut, MmapOptions, RemapOptions};
use crate::program;
use crate::selftest;
use crate::thread::{Exit, Role};
use crate::{println, thread};
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

const PAGE: usize = 4096;
const FOLDER: &str = "/selftest.tmp";

/// Runs `f` with an empty folder, as a program, where there is a disk to write to.
fn on_disk(f: impl FnOnce() + Send + 'static) {
    let Ok(root) = VFS.resolve(b"/", LastLink::Follow) else {
        println!("# skipped: nothing is mounted");
        return;
    };
    if root.fs.read_only().is_some() {
        println!("# skipped: the root is read-only");
        return;
    }
    let name = FOLDER.trim_start_matches('/').as_bytes();
    let made = root.fs.create(root.file, name, FileKind::Directory, 0o755);
    assert!(matches!(made, Ok(_) | Err(FsError::Exists)), "{made:?}");
    let exit = program::spawn("file test", Role::Test, f)
        .expect("a thread")
        .join();
    let folder = root.fs.lookup(root.file, name).expect("the folder");
    for file in ["a", "b"] {
        let gone = root.fs.unlink(folder, file.as_bytes());
        assert!(matches!(gone, Ok(_) | Err(FsError::NotFound)), "{gone:?}");
    }
    root.fs
        .remove_directory(root.file, name)
        .expect("the folder is removed");
    if let Exit::Crashed(report) = exit {
        panic!("{report}");
    }
}

fn path(name: &str) -> String {
    alloc::format!("{FOLDER}/{name}")
}

/// A new file with these contents, to be read and written.
fn new(name: &str, bytes: &[u8]) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path(name))
        .expect("a file");
    file.write_all_at(bytes, 0).expect("written");
    file
}

fn map(file: &File) -> Mmap {
    // SAFETY: tests change what others have mapped, but look at bytes only when they are not changing.
    unsafe { Mmap::map(file) }.expect("mapped")
}

fn try_map_mut(file: &File) -> Result<MmapMut, MmapError> {
    // SAFETY: as above.
    unsafe { MmapMut::map_mut(file) }
}

fn map_mut(file: &File) -> MmapMut {
    try_map_mut(file).expect("mapped")
}

/// What the device has of it: nothing is left in memory first.
fn from_device(file: &File) -> Vec<u8> {
    CACHE.drop_clean();
    contents(file)
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = alloc::vec![0; file.metadata().expect("known").size as usize];
    assert_eq!(file.read_at(&mut bytes, 0), Ok(bytes.len()));
    bytes
}

/// The report of a program that is expected to crash.
fn report_of(f: impl FnOnce() + Send + 'static) -> String {
    match program::spawn("file test", Role::Test, f)
        .expect("a thread")
        .join()
    {
        Exit::Crashed(report) => report,
        exit => panic!("it did not crash: {exit:?}"),
    }
}

selftest!(fn uses_of_memmap2() "files: the uses of crate memmap2 work by its names" {
    on_disk(|| {
        let text = b"# memmap2: a cross-platform library for memory-mapped files";
        let file = new("a", text);
        let mmap = map(&file);
        assert_eq!(&mmap[..], text);
        assert_eq!(b"# memmap2", &mmap[0..9]);
        drop(mmap);

        let mut mmap = map_mut(&file);
        mmap[2..9].copy_from_slice(b"PINFOLD");
        mmap.flush().expect("flushed");
        let mmap = mmap.make_read_only().expect("read-only");
        let mut mmap = mmap.make_mut().expect("writable again");
        mmap[0] = b'*';
        mmap.flush_async_range(0, 1).expect("begun");
        mmap.flush_range(0, 1).expect("flushed");
        drop(mmap);
        assert_eq!(&from_device(&file)[..9], b"* PINFOLD");

        // SAFETY: as for `map`.
        let copied = unsafe { MmapOptions::new().offset(2).len(7).map_copy(&file) };
        let mut mmap = copied.expect("mapped");
        mmap.copy_from_slice(b"private");
        assert_eq!(&mmap[..], b"private");
        assert_eq!(&contents(&file)[2..9], b"PINFOLD");
        drop(mmap);

        let mut anonymous = MmapOptions::new().len(3 * PAGE).populate().map_anon().expect("mapped");
        anonymous[PAGE] = 7;
        let moving = RemapOptions::new().may_move(true);
        // SAFETY: no file is behind it.
        unsafe { anonymous.remap(5 * PAGE, moving).expect("grown") };
        assert_eq!((anonymous.len(), anonymous[PAGE], anonymous[5 * PAGE - 1]), (5 * PAGE, 7, 0));

        // SAFETY: as for `map`.
        let too_far = unsafe { MmapOptions::new().offset(1 << 20).map(&file) };
        assert_eq!(too_far.err(), Some(MmapError::OutOfRange));
        let read_only = File::open(path("a")).expect("opened");
        let writable = try_map_mut(&read_only);
        assert_eq!(writable.err(), Some(MmapError::NotPermitted));
        let made_mut = map(&read_only).make_mut();
        assert_eq!(made_mut.err(), Some(MmapError::NotPermitted));
        file.set_len(0).expect("emptied");
        let empty = map(&file);
        assert!(empty.is_empty());
    });
});

selftest!(fn stores_after_a_flush() "files: what is stored after a flush is flushed by the next, through every alias" {
    on_disk(|| {
        let file = new("a", &[1; 3 * PAGE]);
        let mut one = map_mut(&file);
        let mut two = map_mut(&file);
        for round in 2..6 {
            one[PAGE] = round;
            one.flush().expect("flushed");
            two[PAGE] = round * 10;
            assert_eq!(one[PAGE], round * 10);
            one.flush().expect("flushed");
            assert_eq!(from_device(&file)[PAGE], round * 10);
            file.write_all_at(&[round], PAGE as u64 + 1).expect("written");
            assert_eq!((one[PAGE + 1], two[PAGE + 1]), (round, round));
            two.flush_range(0, 1).expect("flushed");
        }
    });
});

selftest!(fn private_pages() "files: a private map never reaches the file, and keeps its pages when it is cut" {
    on_disk(|| {
        let file = new("a", &[5; 2 * PAGE]);
        // SAFETY: as for `map`.
        let mut private = unsafe { MmapOptions::new().map_copy(&file) }.expect("mapped");
        private[PAGE + 3] = 77;
        private[0] = 78;
        assert_eq!(from_device(&file), alloc::vec![5; 2 * PAGE]);
        file.set_len(10).expect("cut");
        assert_eq!((private[PAGE + 3], private[PAGE + 4]), (77, 5));
        assert_eq!(private[9], 5);
    });
});

selftest!(fn past_the_end() "files: past the end of a file is a fault that names it; the tail of the last page is zeros" {
    on_disk(|| {
        let file = new("a", &[9; PAGE + 100]);
        // SAFETY: as for `map`.
        let map = unsafe { MmapOptions::new().len(3 * PAGE).map(&file) }.expect("mapped");
        assert!(map[PAGE + 100..2 * PAGE].iter().all(|byte| *byte == 0));
        let address = map.as_ptr() as usize + 2 * PAGE;
        let report = report_of(move || {
            // SAFETY: the fault is what is wanted.
            black_box(unsafe { (address as *const u8).read_volatile() });
        });
        for words in ["past the end of the mapped file", "/selftest.tmp/a"] {
            assert!(report.contains(words), "no \"{words}\" in:\n{report}");
        }
        // A file that grows shows in maps that were there before.
        file.write_all_at(&[4], 2 * PAGE as u64 + 5).expect("written");
        assert_eq!((map[2 * PAGE + 5], map[2 * PAGE]), (4, 0));
        file.set_len(50).expect("cut");
        assert_eq!((map[49], map[50]), (9, 0));
        file.set_len(PAGE as u64).expect("grown");
        assert_eq!(map[50..PAGE].iter().copied().max(), Some(0));
    });
});

selftest!(fn holes() "files: a hole costs no frame until it is stored to, and then every map shows it" {
    on_disk(|| {
        let file = new("a", &[]);
        file.set_len(64 * PAGE as u64).expect("grown");
        let one = map(&file);
        let before = FRAMES.counts().cache;
        assert!(one.iter().all(|byte| *byte == 0));
        assert_eq!(FRAMES.counts().cache, before);
        let mut two = map_mut(&file);
        two[7 * PAGE + 1] = 3;
        assert_eq!((one[7 * PAGE + 1], one[6 * PAGE + 1]), (3, 0));
        two.flush().expect("flushed");
        assert!(file.metadata().expect("known").allocated < 16 * PAGE as u64);
        assert_eq!(from_device(&file)[7 * PAGE + 1], 3);
    });
});

selftest!(fn unlinked_files() "files: a map keeps a file that has no name any more" {
    on_disk(|| {
        let file = new("a", &[6; 5 * PAGE]);
        let mut map = map_mut(&file);
        drop(file);
        let folder = VFS.resolve(FOLDER.as_bytes(), LastLink::Follow).expect("the folder");
        folder.fs.unlink(folder.file, b"a").expect("unlinked");
        map[4 * PAGE] = 1;
        map.flush().expect("flushed");
        CACHE.drop_clean();
        assert_eq!((map[4 * PAGE], map[3 * PAGE]), (1, 6));
    });
});

selftest!(fn execution() "files: code in a file is mapped and called" {
    on_disk(|| {
        // mov w0, #42; ret; and the same with 43.
        let code = |value: u32| [0x5280_0000 | value << 5, 0xd65f_03c0].map(u32::to_le_bytes).concat();
        let file = new("a", &code(42));
        for value in [42, 43] {
            file.write_all_at(&code(value), 0).expect("written");
            // SAFETY: as for `map`.
            let map = unsafe { MmapOptions::new().map_exec(&file) }.expect("mapped");
            // SAFETY: the function that was just written.
            let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(map.as_ptr()) };
            assert_eq!(function(), value);
        }
    });
});

selftest!(fn pinned_bytes() "files: what is pinned neither leaves memory nor is cut off" {
    on_disk(|| {
        let file = new("a", &[8; 4 * PAGE]);
        file.sync_all().expect("durable");
        let map = map(&file);
        let pinned = map.pin(PAGE..2 * PAGE + 1).expect("pinned");
        let stays = |bytes: &[u8]| {
            CACHE.drop_clean();
            let faults = maps().fault_counts().total();
            assert!(bytes.iter().all(|byte| *byte == 8));
            maps().fault_counts().total() == faults
        };
        assert!(stays(&pinned));
        // Neither takes from the other what it keeps.
        map.unlock().expect("nothing was locked");
        assert!(stays(&pinned));
        map.lock().expect("locked");
        drop(map.pin(0..PAGE).expect("pinned"));
        assert!(stays(&map));
        map.unlock().expect("unlocked");
        assert!(stays(&pinned) && !stays(&map));
        assert_eq!(file.set_len(PAGE as u64), Err(FsError::Busy));
        file.set_len(3 * PAGE as u64).expect("cut behind it");
        drop(pinned);
        file.set_len(PAGE as u64).expect("cut");
        assert!(map.pin(2 * PAGE..3 * PAGE).is_err());
    });
});

selftest!(fn larger_than_memory() "files: pages are evicted, and come back as they were stored" {
    on_disk(|| {
        const PAGES: usize = 256;
        let file = new("a", &[]);
        file.set_len((PAGES * PAGE) as u64).expect("grown");
        let mut map = map_mut(&file);
        map.advise(Advice::Random).expect("taken");
        for round in 0..3u8 {
            for page in 0..PAGES {
                let at = page * 89 % PAGES * PAGE;
                let before = if round == 0 { 0 } else { (round - 1) ^ at as u8 ^ (at >> 12) as u8 };
                assert_eq!(map[at], before, "round {round}, page {page}");
                map[at] = round ^ at as u8 ^ (at >> 12) as u8;
                if page % 16 == 0 {
                    maps().compact();
                    CACHE.reclaim(32);
                    thread::yield_now();
                }
            }
            CACHE.write_back(None).expect("written");
            CACHE.drop_clean();
        }
    });
});
