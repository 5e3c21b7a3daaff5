//! Paths through mounted file systems.

mod common;

use common::{mkfs, mount};
use pinfold::fs::ext4::Access;
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::vfs::{LastLink, Vfs};
use pinfold::fs::{FileKind, FileSystem, FsError};
use std::sync::Arc;

/// Two file systems, the second on `/mnt` of the first.
fn two() -> Vfs {
    let vfs = Vfs::new();
    for path in ["/", "/mnt"] {
        let disk = Arc::new(RamDisk::new(mkfs(4096, &[], None)));
        let fs: Arc<dyn FileSystem> = Arc::new(mount(disk, Access::ReadWrite).unwrap().file_system);
        vfs.mount(path.as_bytes(), b"test", || Ok::<_, FsError>(fs))
            .unwrap();
        if path == "/" {
            make(&vfs, "/", "below", FileKind::File);
            make(&vfs, "/", "mnt", FileKind::Directory);
            make(&vfs, "/mnt", "hidden", FileKind::File);
        } else {
            make(&vfs, "/mnt", "above", FileKind::File);
        }
    }
    vfs
}

fn make(vfs: &Vfs, directory: &str, name: &str, kind: FileKind) {
    let node = vfs.resolve(directory.as_bytes(), LastLink::Follow).unwrap();
    node.fs
        .create(node.file, name.as_bytes(), kind, 0o755)
        .unwrap();
}

fn link(vfs: &Vfs, directory: &str, name: &str, target: &str) {
    let node = vfs.resolve(directory.as_bytes(), LastLink::Follow).unwrap();
    node.fs
        .symlink(node.file, name.as_bytes(), target.as_bytes())
        .unwrap();
}

fn error(vfs: &Vfs, path: &str) -> Option<FsError> {
    vfs.resolve(path.as_bytes(), LastLink::Follow).err()
}

#[test]
fn a_mount_hides_what_its_directory_held() {
    let vfs = two();
    assert_eq!(error(&vfs, "/below"), None);
    assert_eq!(error(&vfs, "/mnt/above"), None);
    assert_eq!(error(&vfs, "/mnt/hidden"), Some(FsError::NotFound));
    vfs.unmount(b"/mnt").unwrap();
    assert_eq!(error(&vfs, "/mnt/hidden"), None);
    assert_eq!(error(&vfs, "/mnt/above"), Some(FsError::NotFound));
}

#[test]
fn dots_lead_out_of_a_mount_and_stop_at_the_root() {
    let vfs = two();
    for path in [
        "/mnt/../below",
        "/mnt/./..//below",
        "/../../below",
        "below",
        "/mnt/../mnt/above",
    ] {
        assert_eq!(error(&vfs, path), None, "{path}");
    }
}

#[test]
fn links_are_followed_across_mounts_and_loops_are_ended() {
    let vfs = two();
    link(&vfs, "/", "to-above", "mnt/above");
    link(&vfs, "/mnt", "to-below", "/below");
    link(&vfs, "/mnt", "up", "..");
    link(&vfs, "/", "loop", "loop");
    link(&vfs, "/", "ping", "pong/x");
    link(&vfs, "/", "pong", "ping");
    for path in [
        "/to-above",
        "/mnt/to-below",
        "/mnt/up/below",
        "/mnt/up/mnt/up/to-above",
    ] {
        assert_eq!(error(&vfs, path), None, "{path}");
    }
    for path in ["/loop", "/ping", "/loop/x"] {
        assert_eq!(error(&vfs, path), Some(FsError::TooManySymlinks), "{path}");
    }
    let kept = vfs.resolve(b"/loop", LastLink::Keep).unwrap();
    assert_eq!(
        kept.fs.attributes(kept.file).unwrap().kind,
        FileKind::Symlink
    );
}

#[test]
fn a_slash_at_the_end_asks_for_a_directory() {
    let vfs = two();
    assert_eq!(error(&vfs, "/mnt/"), None);
    assert_eq!(error(&vfs, "/below/"), Some(FsError::NotADirectory));
    assert_eq!(error(&vfs, "/below/x"), Some(FsError::NotADirectory));
    assert_eq!(error(&vfs, "/nothing/x"), Some(FsError::NotFound));
}

#[test]
fn a_new_name_must_be_one() {
    let vfs = two();
    let (node, name) = vfs.resolve_parent(b"/mnt/new").unwrap();
    assert_eq!(
        (node.file, name.as_slice()),
        (node.fs.root(), b"new".as_slice())
    );
    for path in ["/", "/mnt/..", "."] {
        let parent = vfs.resolve_parent(path.as_bytes());
        assert_eq!(parent.err(), Some(FsError::InvalidName), "{path}");
    }
    assert_eq!(
        vfs.resolve_parent(b"/below/x").err(),
        Some(FsError::NotADirectory)
    );
}

#[test]
fn what_is_in_use_stays_mounted() {
    let vfs = two();
    assert_eq!(vfs.unmount(b"/"), Err(FsError::Busy));
    assert_eq!(vfs.unmount(b"/below"), Err(FsError::NotAMountPoint));
    assert!(vfs.unmount_all().is_empty());
    assert!(vfs.mounts().is_empty());
    assert_eq!(error(&vfs, "/below"), Some(FsError::NothingMounted));
}

#[test]
fn a_path_or_name_that_is_too_long_is_refused() {
    let vfs = two();
    let long = "x".repeat(256);
    assert_eq!(error(&vfs, &long), Some(FsError::NameTooLong));
    assert_eq!(error(&vfs, &"a/".repeat(3000)), Some(FsError::NameTooLong));
}

#[test]
fn a_mount_point_stays_where_it_is() {
    let vfs = two();
    let parent = |path: &str| vfs.resolve_parent(path.as_bytes()).unwrap();
    make(&vfs, "/", "other", FileKind::Directory);
    let (root, mnt) = parent("/mnt");
    assert_eq!(vfs.remove_directory(&root, &mnt), Err(FsError::Busy));
    let (_, other) = parent("/other");
    for (old, new) in [(&mnt, &other), (&other, &mnt)] {
        assert_eq!(vfs.rename(&root, old, &root, new), Err(FsError::Busy));
    }
    vfs.rename(&root, &other, &root, b"moved").unwrap();
    vfs.remove_directory(&root, b"moved").unwrap();
    vfs.unmount(b"/mnt").unwrap();
    let hidden = parent("/mnt/hidden");
    hidden.0.fs.unlink(hidden.0.file, &hidden.1).unwrap();
    vfs.remove_directory(&root, &mnt).unwrap();
}

#[test]
fn nothing_is_made_where_nothing_can_be_mounted() {
    let mount_on = |vfs: &Vfs, path: &str| {
        vfs.mount(path.as_bytes(), b"test", || -> Result<_, FsError> {
            panic!("the file system is mounted for nothing")
        })
    };
    let none = Vfs::new();
    assert_eq!(mount_on(&none, "/mnt"), Err(FsError::NothingMounted));
    let vfs = two();
    for (path, error) in [
        ("/", FsError::Busy),
        ("/mnt", FsError::Busy),
        ("/none", FsError::NotFound),
        ("/below", FsError::NotADirectory),
    ] {
        assert_eq!(mount_on(&vfs, path), Err(error), "{path}");
    }
}

#[test]
fn everything_is_unmounted_after_one_in_the_middle_was() {
    let vfs = two();
    make(&vfs, "/", "third", FileKind::Directory);
    let disk = Arc::new(RamDisk::new(mkfs(4096, &[], None)));
    let fs: Arc<dyn FileSystem> = Arc::new(mount(disk, Access::ReadWrite).unwrap().file_system);
    vfs.mount(b"/third", b"test", || Ok::<_, FsError>(fs))
        .unwrap();
    vfs.unmount(b"/mnt").unwrap();
    assert_eq!(vfs.unmount_all(), []);
    assert_eq!(vfs.mounts().len(), 0);
}
