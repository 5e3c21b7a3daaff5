//! FAT volumes made by mkfs.vfat, written by us, judged by fsck.vfat and mtools.
//!
//! Where dosfstools and mtools are not installed, these tests say so and pass.

mod common;

use common::{Node, Scratch, clock, read_tree, run};
use pinfold::fs::error::ReadOnlyReason;
use pinfold::fs::fat::Fat;
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::sim_disk::{Random, SimDisk};
use pinfold::fs::{Backing, FileKind, FileSystem, FsError, blocking};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// An empty volume of each width; none where the tools are missing.
fn volumes() -> Vec<Vec<u8>> {
    let has = |tool: &str| Command::new(tool).arg("--help").output().is_ok();
    if !["mkfs.vfat", "fsck.vfat", "mcopy"].into_iter().all(has) {
        eprintln!("skipped: dosfstools or mtools is not installed");
        return Vec::new();
    }
    [("12", 2048), ("16", 20 * 1024), ("32", 70 * 1024)]
        .map(|(width, kib)| mkfs(width, kib))
        .into()
}

fn mkfs(width: &str, kib: usize) -> Vec<u8> {
    let (_scratch, path) = on_disk(&vec![0; kib * 1024]);
    let output = run(
        "mkfs.vfat",
        &["-F", width, "-s", "1", path.to_str().unwrap()],
    );
    assert!(output.status.success(), "{output:?}");
    std::fs::read(path).unwrap()
}

fn on_disk(image: &[u8]) -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    std::fs::write(&path, image).unwrap();
    (scratch, path)
}

fn mount(image: Vec<u8>) -> (Arc<RamDisk>, Fat) {
    let disk = Arc::new(RamDisk::new(image));
    (disk.clone(), Fat::mount(disk, false, clock).unwrap())
}

fn fsck(image: &[u8]) {
    let (_scratch, path) = on_disk(image);
    let output = run("fsck.vfat", &["-n", path.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn noise(len: usize) -> Vec<u8> {
    let mut random = Random::new(len as u64);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

#[test]
fn what_the_pc_wrote_is_read() {
    for image in volumes() {
        let (scratch, path) = on_disk(&image);
        let source = scratch.0.join("a rather long name.txt");
        std::fs::write(&source, noise(50_000)).unwrap();
        let image = path.to_str().unwrap();
        assert!(run("mmd", &["-i", image, "::overlays"]).status.success());
        assert!(
            run(
                "mcopy",
                &["-i", image, source.to_str().unwrap(), "::overlays"]
            )
            .status
            .success()
        );
        let (_, fs) = mount(std::fs::read(&path).unwrap());
        let tree = read_tree(&fs).unwrap();
        assert_eq!(
            tree[&b"/overlays/a rather long name.txt"[..]],
            Node::File(noise(50_000))
        );
    }
}

#[test]
fn what_was_written_here_is_read_by_the_pc() {
    for image in volumes() {
        let (disk, fs) = mount(image);
        let directory = fs
            .create(fs.root(), b"Some Directory", FileKind::Directory, 0o755)
            .unwrap();
        for i in 0..100 {
            let name = format!("a file with number {i}.bin");
            let file = fs
                .create(directory, name.as_bytes(), FileKind::File, 0o644)
                .unwrap();
            fs.write_at(file, 0, &noise(i * 300)).unwrap();
        }
        for i in (0..100).step_by(3) {
            fs.unlink(directory, format!("a file with number {i}.bin").as_bytes())
                .unwrap();
        }
        fs.rename(
            directory,
            b"a file with number 50.bin",
            fs.root(),
            b"CONFIG.TXT",
        )
        .unwrap();
        let cut = fs.lookup(directory, b"a file with number 70.bin").unwrap();
        fs.set_len(cut, 1000).unwrap();
        assert_eq!(
            fs.remove_directory(fs.root(), b"Some Directory"),
            Err(FsError::NotEmpty)
        );
        fs.unmount().unwrap();
        let image = disk.contents();
        fsck(&image);
        let (_scratch, path) = on_disk(&image);
        let read = |name: &str| run("mtype", &["-i", path.to_str().unwrap(), name]).stdout;
        assert!(read("::CONFIG.TXT") == noise(50 * 300));
        assert!(read("::Some Directory/a file with number 70.bin") == noise(70 * 300)[..1000]);
        assert!(read("::Some Directory/a file with number 71.bin") == noise(71 * 300));
    }
}

#[test]
fn extents_say_where_the_bytes_are() {
    for image in volumes() {
        let (disk, fs) = mount(image);
        let file = fs.create(fs.root(), b"f", FileKind::File, 0o644).unwrap();
        let data = noise(40_001);
        fs.write_at(file, 0, &data).unwrap();
        fs.sync().unwrap();
        let mut found = Vec::new();
        for extent in fs.map(file, 0, 40_001).unwrap() {
            let Backing::Written(place) = extent.backing else {
                panic!("{extent:?}");
            };
            assert_eq!(extent.offset, found.len() as u64);
            found.extend(blocking::read(&*disk, place, extent.len as usize).unwrap());
        }
        assert!(found[..40_001] == data);
        assert!(fs.reserve(file, 0, 100) == Err(FsError::NotOffered));
        fs.unmount().unwrap();
        fsck(&disk.contents());
    }
}

#[test]
fn a_flush_that_failed_is_told_to_everybody() {
    for image in volumes() {
        let disk = Arc::new(SimDisk::new(image, 1));
        let fs = Fat::mount(disk.clone(), false, clock).unwrap();
        let file = fs.create(fs.root(), b"a", FileKind::File, 0o644).unwrap();
        fs.write_at(file, 0, b"words").unwrap();
        disk.fail_after(0);
        let failed = fs.sync().unwrap_err();
        disk.heal();
        // The first may have been the writer thread, and what the device had is gone.
        assert_eq!(fs.sync_file(file), Err(failed));
        assert_eq!(fs.sync(), Err(failed));
    }
}

#[test]
fn what_fat_cannot_do_is_refused() {
    for image in volumes() {
        let (_, fs) = mount(image.clone());
        let file = fs.create(fs.root(), b"f", FileKind::File, 0o644).unwrap();
        assert_eq!(fs.symlink(fs.root(), b"s", b"f"), Err(FsError::NotOffered));
        assert_eq!(fs.link(file, fs.root(), b"l"), Err(FsError::NotOffered));
        fs.open(file).unwrap();
        assert_eq!(fs.unlink(fs.root(), b"f"), Err(FsError::Busy));
        // Not replaced either: whoever goes on writing would write into the other.
        fs.create(fs.root(), b"new", FileKind::File, 0o644).unwrap();
        let replaced = fs.rename(fs.root(), b"new", fs.root(), b"f");
        assert_eq!(replaced, Err(FsError::Busy));
        fs.close(file).unwrap();
        fs.unlink(fs.root(), b"f").unwrap();
        assert_eq!(fs.attributes(file), Err(FsError::NotFound));
        assert_eq!(fs.lookup(fs.root(), b"f"), Err(FsError::NotFound));
        let fs = Fat::mount(Arc::new(RamDisk::read_only(image)), false, clock).unwrap();
        assert_eq!(fs.read_only(), Some(ReadOnlyReason::Device));
        assert!(matches!(
            fs.create(fs.root(), b"f", FileKind::File, 0o644),
            Err(FsError::ReadOnly(_))
        ));
    }
}

#[test]
fn a_file_is_renamed_to_itself_in_other_letters() {
    for image in volumes() {
        let (_, fs) = mount(image);
        let file = fs
            .create(fs.root(), b"readme", FileKind::File, 0o644)
            .unwrap();
        for is_open in [false, true] {
            if is_open {
                fs.open(file).unwrap();
            }
            for [name, new] in [[b"readme", b"README"], [b"README", b"readme"]] {
                fs.rename(fs.root(), name, fs.root(), new).unwrap();
                fs.rename(fs.root(), new, fs.root(), new).unwrap();
                fs.attributes(file).unwrap();
            }
        }
        fs.close(file).unwrap();
    }
}

#[test]
fn mutated_volumes_neither_panic_nor_hang() {
    for image in volumes().into_iter().take(2) {
        let (disk, fs) = mount(image);
        let directory = fs
            .create(fs.root(), b"directory", FileKind::Directory, 0o755)
            .unwrap();
        for i in 0..40 {
            let name = format!("some file {i}");
            let file = fs
                .create(directory, name.as_bytes(), FileKind::File, 0o644)
                .unwrap();
            fs.write_at(file, 0, &noise(2000)).unwrap();
        }
        fs.unmount().unwrap();
        let image = disk.contents();
        for run in 0..common::campaign("PINFOLD_MUTATIONS", 1500) / 20 {
            let mut random = Random::new(run);
            let mut mutated = image.clone();
            for _ in 0..=random.below(5) {
                let at = random.below(8192.min(mutated.len() as u64)) as usize;
                mutated[at] = random.next_u64() as u8;
            }
            let Ok(fs) = Fat::mount(Arc::new(RamDisk::new(mutated)), false, clock) else {
                continue;
            };
            if let Ok(directory) = fs.lookup(fs.root(), b"directory") {
                for i in 0..40 {
                    let name = format!("some file {i}");
                    if let Ok(file) = fs.lookup(directory, name.as_bytes()) {
                        let _ = fs.read_at(file, 0, &mut [0; 3000]);
                        let _ = fs.map(file, 0, 1 << 20);
                        let _ = fs.write_at(file, random.below(5000), &[1; 700]);
                    }
                }
                let _ = fs.unlink(directory, b"some file 3");
            }
            let _ = fs.unmount();
        }
    }
}

#[test]
fn nothing_is_changed_after_an_unmount_or_where_nothing_may_be() {
    for image in volumes() {
        let (disk, fs) = mount(image);
        let file = fs.create(fs.root(), b"f", FileKind::File, 0o644).unwrap();
        fs.unmount().unwrap();
        let before = disk.contents();
        let asked = Fat::mount(Arc::new(RamDisk::new(before.clone())), true, clock).unwrap();
        let device =
            Fat::mount(Arc::new(RamDisk::read_only(before.clone())), false, clock).unwrap();
        for (fs, file, reason) in [
            (&fs, file, ReadOnlyReason::Unmounted),
            (
                &asked,
                asked.lookup(asked.root(), b"f").unwrap(),
                ReadOnlyReason::Asked,
            ),
            (
                &device,
                device.lookup(device.root(), b"f").unwrap(),
                ReadOnlyReason::Device,
            ),
        ] {
            let refused = FsError::ReadOnly(reason);
            let root = fs.root();
            assert_eq!(fs.create(root, b"g", FileKind::File, 0o644), Err(refused));
            assert_eq!(
                fs.create(root, b"d", FileKind::Directory, 0o755),
                Err(refused)
            );
            assert_eq!(fs.rename(root, b"f", root, b"g"), Err(refused));
            assert_eq!(fs.set_permissions(file, 0o444), Err(refused));
            assert_eq!(fs.set_times(file, clock(), clock()), Err(refused));
            assert_eq!(fs.write_at(file, 0, b"words"), Err(refused));
            assert_eq!(fs.unlink(root, b"f"), Err(refused));
            fs.unmount().unwrap();
        }
        assert!(disk.contents() == before, "changed");
    }
}
