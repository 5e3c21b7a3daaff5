//! Images made by mkfs.ext4 on the PC are read back byte for byte.

mod common;

use common::{Node, OPTION_SETS, Scratch, Tree, mkfs, mount, read_host_tree, read_tree};
use pinfold::fs::ext4::Access;
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::sim_disk::Random;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::sync::Arc;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next_u64() as u8).collect()
}

/// A directory with something of every kind.
fn source() -> Scratch {
    let scratch = Scratch::new();
    let root = &scratch.0;
    for (i, len) in [
        0, 1, 59, 60, 1023, 1024, 4095, 4096, 4097, 70_000, 1_500_000,
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(root.join(format!("file{i}")), bytes(i as u64, len)).unwrap();
    }
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    for at in [5_000, 300_000, 5_000_000, 70_000_000] {
        sparse.write_all_at(&bytes(at, 3000), at).unwrap();
    }
    sparse.set_len(80_000_001).unwrap();
    std::fs::create_dir_all(root.join("a/b/c")).unwrap();
    std::fs::write(root.join("a/b/c/deep"), b"deep").unwrap();
    std::fs::create_dir(root.join("many")).unwrap();
    for i in 0..600 {
        std::fs::write(
            root.join(format!("many/file number {i} with a rather long name")),
            [i as u8; 7],
        )
        .unwrap();
    }
    symlink("a/b/c/deep", root.join("short")).unwrap();
    symlink("x".repeat(200), root.join("long")).unwrap();
    std::fs::write(root.join("n".repeat(255)), b"255").unwrap();
    std::fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8")),
        b"8",
    )
    .unwrap();
    scratch
}

fn ours(image: Vec<u8>) -> Tree {
    let mounted = mount(Arc::new(RamDisk::new(image)), Access::ReadOnly).unwrap();
    let mut tree = read_tree(&mounted.file_system).unwrap();
    assert_eq!(tree.remove(&b"/lost+found"[..]), Some(Node::Directory));
    tree
}

fn assert_same(left: &Tree, right: &Tree, of: &str) {
    assert!(left.keys().eq(right.keys()), "{of}: names differ");
    for (path, node) in left {
        assert!(
            right[path] == *node,
            "{of}: {} differs",
            String::from_utf8_lossy(path)
        );
    }
}

#[test]
fn trees_of_all_option_sets_are_read_as_the_pc_has_them() {
    let source = source();
    let wanted = read_host_tree(&source.0);
    for (name, options) in OPTION_SETS {
        assert_same(
            &ours(mkfs(20 * 1024, options, Some(&source.0))),
            &wanted,
            name,
        );
    }
}

#[test]
fn hashed_directories_made_by_e2fsck_are_read() {
    let source = source();
    let wanted = read_host_tree(&source.0);
    for options in [&["-b", "1024"][..], &["-b", "4096", "-O", "^metadata_csum"]] {
        let image = mkfs(20 * 1024, options, Some(&source.0));
        let scratch = Scratch::new();
        let path = scratch.0.join("image");
        std::fs::write(&path, image).unwrap();
        // -D builds hash trees.
        common::run("e2fsck", &["-fyD", path.to_str().unwrap()]);
        let image = std::fs::read(&path).unwrap();
        let stat = common::debugfs(&image, "htree_dump /many");
        assert!(
            String::from_utf8_lossy(&stat).contains("Root node dump"),
            "no tree was made"
        );
        assert_same(&ours(image), &wanted, "hashed");
    }
}

#[test]
fn a_second_reader_agrees() {
    let source = source();
    let image = mkfs(20 * 1024, &["-b", "1024"], Some(&source.0));
    let other = ext4_view::Ext4::load(Box::new(image.clone())).unwrap();
    for (path, node) in ours(image) {
        if let Node::File(bytes) = node {
            assert!(other.read(path.as_slice()).unwrap() == bytes);
        }
    }
}
