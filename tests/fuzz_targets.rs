//! Every fuzz target, driven by chance instead of libFuzzer: a few seconds, so that none of them rots.
//!
//! `PINFOLD_MUTATIONS=100000 PINFOLD_FIRST=0 cargo test --release --test fuzz_targets` is the long run. `fuzz/README.md`
//! has the guided one. Where a tool that makes a target's inputs is missing, its test says so and passes.

mod common;
#[path = "common/targets.rs"]
mod targets;

use common::{Scratch, campaign, hostile_source, mkfs, run};
use pinfold::fs::sim_disk::Random;
use std::path::Path;
use std::process::Command;
use targets::Base;

/// Calls `target` with what chance makes of up to `most` bytes; says how often it had a use for them.
fn drive(most: u64, mut target: impl FnMut(&[u8]) -> bool) -> u64 {
    let (first, count) = (
        campaign("PINFOLD_FIRST", 0),
        campaign("PINFOLD_MUTATIONS", 300),
    );
    let mut used = 0;
    for seed in first..first + count {
        let mut random = Random::new(seed);
        let len = 1 + random.below(most);
        let data: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
        used += u64::from(target(&data));
    }
    used
}

/// Drives `target` with patches of `bases`, each of which it can use as it is.
fn drive_patches(bases: &[Base], target: impl Fn(Vec<u8>, &[u8]) -> bool) {
    for base in 0..bases.len() {
        let data = targets::whole(base);
        assert!(target(targets::chosen(bases, &data).unwrap(), &data));
    }
    let used = drive(FEW_PATCHES, |data| {
        target(targets::chosen(bases, data).unwrap(), data)
    });
    // Miri has no time for so many that one is sure to be used.
    assert!(used > 0 || cfg!(miri), "all patches were refused");
}

/// Six patches and the choice of a base.
const FEW_PATCHES: u64 = 6 * 8 + 1;

fn has(tool: &str) -> bool {
    let is_there = Command::new(tool).arg("--help").output().is_ok();
    if !is_there {
        eprintln!("skipped: {tool} is not installed");
    }
    is_there
}

#[test]
fn ext4_images() {
    let source = hostile_source();
    let make = |options| Base::new(mkfs(2 * 1024, options, Some(&source.0)));
    let bases = [
        make(&["-b", "1024", "-N", "256", "-O", "^metadata_csum"]),
        make(&[
            "-b",
            "1024",
            "-N",
            "256",
            "-O",
            "^extents,^has_journal,^64bit",
        ]),
        make(&[
            "-b",
            "2048",
            "-N",
            "256",
            "-O",
            "orphan_file,^metadata_csum",
        ]),
    ];
    drive_patches(&bases, targets::ext4);
}

#[test]
fn ext4_journals() {
    let source = hostile_source();
    let options = ["-b", "1024", "-O", "^metadata_csum"];
    let bases = [targets::with_full_log(mkfs(
        4 * 1024,
        &options,
        Some(&source.0),
    ))];
    drive_patches(&bases, targets::ext4);
}

#[test]
fn fat_volumes() {
    if !has("mkfs.vfat") || !has("mcopy") {
        return;
    }
    let bases = ["12", "16"].map(|width| Base::new(fat_volume(width)));
    drive_patches(&bases, targets::fat);
}

fn fat_volume(width: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let image = scratch.0.join("image");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(if width == "12" { 1 << 20 } else { 5 << 20 })
        .unwrap();
    let image = image.to_str().unwrap();
    run("mkfs.vfat", &["-F", width, "-s", "1", image]);
    let source = hostile_source();
    let directory = source.0.join("directory");
    run(
        "mcopy",
        &["-s", "-i", image, directory.to_str().unwrap(), "::/"],
    );
    std::fs::read(image).unwrap()
}

#[test]
fn partition_tables() {
    if !has("sfdisk") {
        return;
    }
    let table = |script: &str| {
        let scratch = Scratch::new();
        let image = scratch.0.join("image");
        std::fs::write(&image, vec![0; 4 << 20]).unwrap();
        std::fs::write(scratch.0.join("script"), script).unwrap();
        let script = scratch.0.join("script");
        let command = format!("sfdisk -q {} < {}", image.display(), script.display());
        let output = run("sh", &["-c", &command]);
        assert!(output.status.success(), "{output:?}");
        Base::new(std::fs::read(&image).unwrap())
    };
    let bases = [
        table("label: gpt\nsize=1M, name=one\nsize=1M, name=two\n"),
        table("label: dos\nsize=512K, type=c\ntype=5\nsize=256K\nsize=256K\nsize=256K\n"),
    ];
    drive_patches(&bases, |disk, _| targets::partitions(disk));
    drive(4096, |data| targets::partitions(data.to_vec()));
}

/// Device trees as machines have them: of QEMU, and of Raspberry Pis where `scripts/pi-files.sh trees` has been.
#[test]
fn device_trees() {
    let mut bases = Vec::new();
    if has("qemu-system-aarch64") {
        bases.extend(["", ",gic-version=3,virtualization=on"].map(qemu_tree));
    }
    let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/trees");
    if has("fdtput") {
        let boards = std::fs::read_dir(trees).into_iter().flatten().flatten();
        bases.extend(boards.filter_map(|entry| pi_tree(&entry.path())));
    }
    for tree in &bases {
        assert!(targets::tree(tree.clone()));
        let used = drive(FEW_PATCHES, |data| {
            // Not in pieces: all of a tree is structure.
            let mut tree = tree.clone();
            for patch in data.chunks_exact(8) {
                let at = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
                let at = at % (tree.len() - 4) / 4 * 4;
                match patch[3] % 3 {
                    0 => tree[at..at + 4].copy_from_slice(&patch[4..]),
                    1 => tree[at..at + 4].copy_from_slice(&u32::from(patch[4] % 16).to_be_bytes()),
                    _ => tree[at + usize::from(patch[5] % 4)] = patch[4],
                }
            }
            targets::tree(tree)
        });
        assert!(used > 0, "all trees were refused");
    }
    drive(300, |data| targets::tree(data.to_vec()));
}

/// The tree of a Pi, with the memory that its firmware puts in.
fn pi_tree(path: &Path) -> Option<Vec<u8>> {
    let name = path.file_name()?.to_str()?;
    let size: &[&str] = match name {
        _ if name.starts_with("bcm2711-") => &["0", "0", "3c000000"],
        _ if name.starts_with("bcm2837-") => &["0", "3c000000"],
        // One that another test is working on.
        _ => return None,
    };
    let scratch = Scratch::new();
    let copy = scratch.0.join(name);
    std::fs::copy(path, &copy).ok()?;
    let put = ["-t", "x", copy.to_str()?, "/memory@0", "reg"];
    let output = run("fdtput", &[&put[..], size].concat());
    assert!(output.status.success(), "{output:?}");
    std::fs::read(copy).ok()
}

/// The tree QEMU makes for `virt`, without the nothing it pads it with.
fn qemu_tree(more: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.0.join("tree");
    let machine = format!("virt{more},dumpdtb={}", path.display());
    run(
        "qemu-system-aarch64",
        &[
            "-machine",
            &machine,
            "-cpu",
            "cortex-a72",
            "-nic",
            "none",
            "-display",
            "none",
        ],
    );
    let mut tree = std::fs::read(&path).unwrap();
    let last = tree.iter().rposition(|byte| *byte != 0).unwrap();
    // Strings come last; the header says how long all of it is.
    tree.truncate((last + 2).next_multiple_of(8));
    let len = (tree.len() as u32).to_be_bytes();
    tree[4..8].copy_from_slice(&len);
    tree
}

/// Images that others have made, and named after what they are: for Miri, which can call no other program.
#[test]
fn images_of_a_folder() {
    let Some(folder) = std::env::var_os("PINFOLD_IMAGES") else {
        return;
    };
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bases = [Base::new(std::fs::read(&path).unwrap())];
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        println!("{name}");
        match name.split('-').next() {
            Some("ext4") => drive_patches(&bases, targets::ext4),
            Some("fat") => drive_patches(&bases, targets::fat),
            Some("tree") => drive_patches(&bases, |tree, _| targets::tree(tree)),
            _ => panic!("{name} is of no kind"),
        }
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn command_lines() {
    let pieces = [
        "'", "\"", "\\", ";", " ", "#", "ls", "selftest", "\u{e9}", "\0",
    ];
    drive(200, targets::command_line);
    drive(60, |data| {
        let line: String = data
            .iter()
            .map(|byte| pieces[usize::from(*byte) % pieces.len()])
            .collect();
        targets::command_line(line.as_bytes())
    });
}
