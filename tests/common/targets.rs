//! What fuzzing throws at the library: each target takes bytes and must come back, whatever they are.
//!
//! Each says whether its input was whole enough to be used, so that whoever drives it knows that not all is refused.
//!
//! Shared by `fuzz/`, where libFuzzer chooses the bytes, and `tests/fuzz_targets.rs`, where chance does. It refers to
//! nothing else of the tests, so that both can include it.
//!
//! An image is megabytes, most of them empty or data; so the bytes are not an image but [`patches`](Base::patched) of
//! one that was made by its own tools, at places where something stands.
#![allow(dead_code, unreachable_pub, reason = "each includer uses its part")]

use pinfold::arch::aarch64::board::Board;
use pinfold::arch::aarch64::device_tree;
use pinfold::command;
use pinfold::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions, SuperblockInfo};
use pinfold::fs::fat::Fat;
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::sim_disk::Random;
use pinfold::fs::{Cursor, FileId, FileKind, FileSystem, Timestamp, partition};
use pinfold::mm::addr::PhysAddr;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes as some tool made them, and where in them there is something.
pub struct Base {
    bytes: Vec<u8>,
    /// Starts of the pieces that are not filled with one value.
    places: Vec<usize>,
}

/// The bytes that change nothing of the base of that number.
pub fn whole(base: usize) -> Vec<u8> {
    Vec::from([base as u8])
}

/// A piece of a base.
const PIECE: usize = 512;

impl Base {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::of_pieces(bytes, |piece| piece.iter().any(|byte| *byte != piece[0]))
    }

    /// Only pieces that `is_wanted` are patched.
    pub fn of_pieces(bytes: Vec<u8>, is_wanted: impl Fn(&[u8]) -> bool) -> Self {
        let pieces = bytes.chunks_exact(PIECE).enumerate();
        let wanted = pieces.filter(|(_, piece)| is_wanted(piece));
        let mut places: Vec<usize> = wanted.map(|(i, _)| i * PIECE).collect();
        if places.is_empty() {
            places.push(0);
        }
        Self { bytes, places }
    }

    /// The base with changes, each of eight bytes: which piece, where in it and how many bytes, and their values.
    pub fn patched(&self, patches: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for patch in patches.chunks_exact(8) {
            let half = |at: usize| usize::from(u16::from_le_bytes([patch[at], patch[at + 1]]));
            let place = self.places[half(0) % self.places.len()];
            let len = [1, 2, 4, 4][half(2) >> 14];
            let at = place + half(2) % PIECE;
            let end = (at + len).min(bytes.len());
            if at < end {
                bytes[at..end].copy_from_slice(&patch[4..4 + end - at]);
            }
        }
        bytes
    }
}

/// Takes the first byte of `data` to choose one of `bases`, the rest to patch it.
pub fn chosen(bases: &[Base], data: &[u8]) -> Option<Vec<u8>> {
    let (first, patches) = data.split_first()?;
    let base = bases.get(usize::from(*first) % bases.len().max(1))?;
    Some(base.patched(patches))
}

/// What `fuzz/seeds.sh` has made in a folder of that name, as bases.
pub fn seeds(folder: &str, make: impl Fn(Vec<u8>) -> Base) -> Vec<Base> {
    let folder = format!("{}/seeds/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}; run fuzz/seeds.sh first"))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let bytes = paths.into_iter().map(|path| std::fs::read(path).unwrap());
    bytes.map(make).collect()
}

/// A value for everything random a target does, so that its bytes decide it.
fn seed(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn options(access: Access) -> MountOptions {
    MountOptions {
        access,
        clock: || Timestamp {
            seconds: 1_700_000_000,
            nanoseconds: 5,
        },
        limits: MetadataLimits::default(),
    }
}

/// Mounts an ext4 image, looks at everything, and changes what can be changed.
pub fn ext4(image: Vec<u8>, data: &[u8]) -> bool {
    let mut random = Random::new(seed(data));
    let disk = Arc::new(RamDisk::new(image));
    if let Ok(info) = SuperblockInfo::read(&*disk) {
        let _ = format!("{info} {} {:?}", info.uuid(), info.label());
    }
    let access = match random.below(4) {
        0 => Access::ReadOnly,
        _ => Access::ReadWrite,
    };
    let mounted = Ext4::mount(disk, options(access));
    if let Ok(mounted) = &mounted {
        exercise(&mounted.file_system, access, &mut random);
    }
    mounted.is_ok()
}

/// Makes of an ext4 image one whose log is full of what was not written to its place, and whose patches go there.
pub fn with_full_log(image: Vec<u8>) -> Base {
    let disk = Arc::new(RamDisk::new(image));
    let fs = Ext4::mount(disk.clone(), options(Access::ReadWrite))
        .unwrap()
        .file_system;
    for round in 0..6 {
        for i in 0..20 {
            let name = format!("{round} {i}");
            let made = fs
                .create(fs.root(), name.as_bytes(), FileKind::File, 0o644)
                .unwrap();
            fs.write_at(made, 0, &[round; 100]).unwrap();
            if i % 3 == 0 {
                fs.unlink(fs.root(), name.as_bytes()).unwrap();
            }
        }
        fs.sync().unwrap();
    }
    // Not unmounted.
    Base::of_pieces(disk.contents(), |piece| {
        piece[..4] == [0xc0, 0x3b, 0x39, 0x98]
    })
}

/// Mounts a FAT volume and does the same.
pub fn fat(image: Vec<u8>, data: &[u8]) -> bool {
    let mut random = Random::new(seed(data));
    let disk = Arc::new(RamDisk::new(image));
    let mounted = Fat::mount(disk, false, Timestamp::default);
    if let Ok(fs) = &mounted {
        exercise(fs, Access::ReadWrite, &mut random);
    }
    mounted.is_ok()
}

/// Reads a disk's partition table.
pub fn partitions(disk: Vec<u8>) -> bool {
    let capacity = disk.len() as u64;
    let entries = partition::find(&RamDisk::new(disk)).unwrap_or_default();
    for entry in &entries {
        assert!(entry.start + entry.len <= capacity, "{entry:?}");
    }
    !entries.is_empty()
}

/// Reads a device tree, and all a board knows from it.
pub fn tree(bytes: Vec<u8>) -> bool {
    let _ = device_tree::size(&bytes);
    // A board lives as long as its tree: for ever. Here both end with this function.
    let tree = Box::into_raw(bytes.into_boxed_slice());
    // SAFETY: it was just let go of, and nothing else refers to it.
    let board = Board::from_tree(unsafe { &mut *tree }, PhysAddr(0x4800_0000));
    if let Ok(board) = &board {
        assert!(!format!("{board} {board:?}").is_empty());
        if let Some(pci) = &board.pci {
            for device in 0..4 {
                for pin in 0..6 {
                    let _ = pci.interrupts.line(device << 11, pin);
                }
            }
        }
        let _ = command::parse(board.command_line);
    }
    let is_read = board.is_ok();
    drop(board);
    // SAFETY: it came from a box, and the board, which referred to it, is gone.
    drop(unsafe { Box::from_raw(tree) });
    is_read
}

/// Takes a command line apart, and looks for what its words may have meant.
pub fn command_line(data: &[u8]) -> bool {
    let line = String::from_utf8_lossy(data);
    let commands = command::parse(&line);
    if let Ok(commands) = &commands {
        let len: usize = commands.iter().flatten().map(String::len).sum();
        assert!(len <= line.len(), "{line:?} became {commands:?}");
        for words in commands {
            assert!(!words.is_empty());
            let _ = (command::find(&words[0]), command::nearest(&words[0]));
        }
    }
    commands.is_ok()
}

fn exercise(fs: &dyn FileSystem, access: Access, random: &mut Random) {
    walk(fs);
    if access == Access::ReadWrite {
        change(fs, random);
        let _ = fs.unmount();
    }
}

/// Looks at everything that can be reached, going on after errors.
pub fn walk(fs: &dyn FileSystem) {
    let _ = fs.statistics();
    let mut seen = BTreeSet::new();
    let mut waiting = vec![fs.root()];
    while let Some(directory) = waiting.pop() {
        let mut cursor = Cursor::default();
        while let Ok(entries) = fs.read_directory(directory, &mut cursor) {
            if entries.is_empty() || seen.len() > 500 {
                break;
            }
            for entry in entries {
                let _ = fs.lookup(directory, &entry.name);
                if seen.insert(entry.file) {
                    look_at(fs, entry.file, &mut waiting);
                }
            }
        }
    }
}

fn look_at(fs: &dyn FileSystem, file: FileId, waiting: &mut Vec<FileId>) {
    let Ok(attributes) = fs.attributes(file) else {
        return;
    };
    match attributes.kind {
        FileKind::Directory => waiting.push(file),
        FileKind::Symlink => {
            let _ = fs.read_link(file);
        }
        _ => {
            let mut bytes = [0; 10_000];
            for offset in [
                0,
                attributes.size / 2,
                attributes.size.saturating_sub(1),
                1 << 40,
            ] {
                let _ = fs.read_at(file, offset, &mut bytes);
                let _ = fs.map(file, offset, 1 << 20);
            }
        }
    }
}

/// Names to change: two that the images have at their top, and those of one directory.
fn places(fs: &dyn FileSystem) -> Vec<(FileId, Vec<u8>)> {
    let mut places = vec![
        (fs.root(), b"sparse".to_vec()),
        (fs.root(), b"link".to_vec()),
    ];
    if let Ok(directory) = fs.lookup(fs.root(), b"directory") {
        let mut cursor = Cursor::default();
        while let Ok(entries) = fs.read_directory(directory, &mut cursor) {
            if entries.is_empty() || places.len() > 300 {
                break;
            }
            places.extend(entries.into_iter().map(|entry| (directory, entry.name)));
        }
    }
    places
}

/// Changes what can be changed, going on after errors.
pub fn change(fs: &dyn FileSystem, random: &mut Random) {
    let places = places(fs);
    for _ in 0..12 {
        let (directory, name) = &places[random.below(places.len() as u64) as usize];
        let number = random.next_u64().to_string().repeat(5);
        let number = number.as_bytes();
        let _ = match random.below(8) {
            0 => fs.unlink(*directory, name).map(drop),
            1 => fs
                .create(*directory, number, FileKind::File, 0o644)
                .map(drop),
            2 => fs
                .create(*directory, number, FileKind::Directory, 0o755)
                .map(drop),
            3 => fs.rename(*directory, name, fs.root(), number).map(drop),
            4 => fs.remove_directory(*directory, name),
            5 => fs.symlink(*directory, number, &number[..70]).map(drop),
            _ => fs
                .lookup(*directory, name)
                .and_then(|file| change_file(fs, file, random)),
        };
    }
    let _ = fs.sync();
}

fn change_file(
    fs: &dyn FileSystem,
    file: FileId,
    random: &mut Random,
) -> Result<(), pinfold::fs::FsError> {
    // Miri would take an hour to fill what lies before that.
    let at = random.below(if cfg!(miri) { 50_000 } else { 5_000_000 });
    match random.below(4) {
        0 => fs.set_len(file, at),
        1 => {
            // As write-back does it.
            let mut space = fs.reserve(file, at, 30_000)?;
            fs.allocate(file, at, 30_000, &mut space)?;
            fs.written(file, at, 30_000, at + 30_000)
        }
        _ => fs.write_at(file, at, &[3; 10_000]),
    }
}
