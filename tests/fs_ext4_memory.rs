//! How much memory the file system takes at once, for images that are large or hostile: a machine may have 16 MiB.

#![cfg(not(target_os = "none"))]

mod common;

use common::{Scratch, changed_by_debugfs, mkfs, mount, run};
use pinfold::fs::block::{BlockDevice, Properties, Refused, Request};
use pinfold::fs::error::Structure;
use pinfold::fs::ext4::Access;
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::{FileKind, FileSystem, FsError};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Read;
use std::sync::Arc;

/// No file system asks for more at once, but for the bytes of files.
const ENOUGH: usize = 64 << 10;

thread_local! {
    /// The largest piece of memory this thread has asked for.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same, and `alloc` had it from there.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What `work` answers, which must not take much memory at once.
fn within_limits<T>(work: impl FnOnce() -> T) -> T {
    LARGEST.set(0);
    let result = work();
    let largest = LARGEST.get();
    assert!(largest <= ENOUGH, "{largest} bytes at once");
    result
}

fn error_of_mount(image: Vec<u8>, access: Access) -> Option<FsError> {
    let disk = Arc::new(RamDisk::new(image));
    within_limits(|| mount(disk, access).err())
}

/// Fills a block of the image with its own number, so that it points to itself for ever.
fn close_circle(image: &mut [u8], block: u32) {
    let start = block as usize * 1024;
    for entry in image[start..start + 1024].chunks_exact_mut(4) {
        entry.copy_from_slice(&block.to_le_bytes());
    }
}

fn is_corrupt(error: Option<FsError>, structure: Structure) -> bool {
    matches!(error, Some(FsError::Corrupt(found)) if found.structure == structure)
}

#[test]
fn removing_a_large_file_without_extents_takes_little_memory() {
    const MIB: u64 = 64;
    let options = ["-b", "1024", "-O", "^extents,^has_journal,^64bit"];
    let image = mkfs((MIB + 8) * 1024, &options, None);
    let disk = Arc::new(RamDisk::new(image));
    let fs = mount(disk, Access::ReadWrite).unwrap().file_system;
    let file = fs.create(fs.root(), b"a", FileKind::File, 0o644).unwrap();
    for i in 0..MIB {
        fs.write_at(file, i << 20, &[7; 1 << 20]).unwrap();
    }
    fs.sync().unwrap();
    within_limits(|| fs.unlink(fs.root(), b"a")).unwrap();
}

#[test]
fn removing_a_file_in_single_blocks_takes_little_memory() {
    for features in ["^extents,^has_journal,^64bit", "^64bit"] {
        let options = ["-b", "1024", "-O", features];
        let image = mkfs(40 * 1024, &options, None);
        let disk = Arc::new(RamDisk::new(image));
        let fs = mount(disk, Access::ReadWrite).unwrap().file_system;
        let [one, other] = [b"a", b"b"].map(|name| {
            let file = fs.create(fs.root(), name, FileKind::File, 0o644);
            file.unwrap()
        });
        for i in 0..12_000 {
            fs.write_at(one, i << 10, &[1; 1024]).unwrap();
            fs.write_at(other, i << 10, &[2; 1024]).unwrap();
        }
        fs.sync().unwrap();
        within_limits(|| fs.unlink(fs.root(), b"a")).unwrap();
        fs.unmount().unwrap();
    }
}

#[test]
fn an_orphan_directory_whose_map_goes_in_circles_is_an_error() {
    let options = [
        "-b",
        "1024",
        "-O",
        "^extents,^has_journal,^64bit,^metadata_csum",
    ];
    let commands = [
        "mkdir d",
        "set_inode_field <12> links_count 0",
        "set_inode_field <12> block[TIND] 1500",
        "set_super_value last_orphan 12",
    ];
    let image = mkfs(2048, &options, None);
    let mut image = changed_by_debugfs(&image, &commands.map(String::from));
    close_circle(&mut image, 1500);
    let error = error_of_mount(image, Access::ReadWrite);
    assert!(is_corrupt(error, Structure::Bitmap), "{error:?}");
}

#[test]
fn a_journal_whose_map_goes_in_circles_is_an_error() {
    let options = [
        "-b",
        "1024",
        "-J",
        "size=1",
        "-O",
        "^extents,^64bit,^metadata_csum,^flex_bg,^huge_file",
    ];
    let commands = [
        "set_inode_field <8> block[TIND] 7500",
        "set_inode_field <8> size 17246978048",
    ];
    let image = mkfs(8192, &options, None);
    let mut image = changed_by_debugfs(&image, &commands.map(String::from));
    close_circle(&mut image, 7500);
    let error = error_of_mount(image, Access::ReadOnly);
    assert!(is_corrupt(error, Structure::JournalGeometry), "{error:?}");
}

/// The beginning of a large disk; behind it nothing can be read.
struct Beginning {
    disk: RamDisk,
    capacity: u64,
}

impl BlockDevice for Beginning {
    fn properties(&self) -> Properties {
        let capacity = self.capacity;
        Properties {
            capacity,
            ..self.disk.properties()
        }
    }

    fn submit(&self, request: Request) -> Result<(), Refused> {
        self.disk.submit(request)
    }

    fn poll(&self) {}
}

#[test]
fn a_journal_larger_than_any_is_an_error() {
    const GIB: u64 = 16;
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    let path = path.to_str().unwrap();
    let made = run(
        "mkfs.ext4",
        &[
            "-q",
            "-b",
            "1024",
            "-J",
            "size=1",
            "-O",
            "^extents,^64bit,^metadata_csum,^flex_bg",
            path,
            &format!("{GIB}G"),
        ],
    );
    assert!(made.status.success(), "{made:?}");
    for command in [
        "set_inode_field <8> block[TIND] 7500",
        "set_inode_field <8> size 12000000000",
    ] {
        run("debugfs", &["-w", "-R", command, path]);
    }
    let mut image = vec![0; 8 << 20];
    std::fs::File::open(path)
        .unwrap()
        .read_exact(&mut image)
        .unwrap();
    close_circle(&mut image, 7500);
    let disk = Arc::new(Beginning {
        disk: RamDisk::new(image),
        capacity: GIB << 30,
    });
    let error = within_limits(|| mount(disk, Access::ReadOnly).err());
    assert!(is_corrupt(error, Structure::JournalGeometry), "{error:?}");
}

#[test]
fn an_orphan_list_that_goes_in_circles_is_an_error() {
    let options = ["-b", "1024", "-N", "60000", "-O", "^metadata_csum"];
    let commands = [
        "write /dev/null a",
        "write /dev/null b",
        "set_inode_field a dtime @13",
        "set_inode_field b dtime @12",
        "set_super_value last_orphan 12",
    ];
    let image = mkfs(32 << 10, &options, None);
    let image = changed_by_debugfs(&image, &commands.map(String::from));
    let error = error_of_mount(image, Access::ReadWrite);
    assert!(is_corrupt(error, Structure::OrphanList), "{error:?}");
}
