//! What the file-system tests share: images made and judged by e2fsprogs.
#![allow(dead_code, unreachable_pub, reason = "each test crate uses its part")]

use pinfold::fs::block::BlockDevice;
use pinfold::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions, Mounted};
use pinfold::fs::{Cursor, FileId, FileKind, FileSystem, FsError, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The option sets of mkfs.ext4 that must work.
pub const OPTION_SETS: [(&str, &[&str]); 13] = [
    ("debian", &["-b", "4096"]),
    ("1k", &["-b", "1024"]),
    ("2k", &["-b", "2048"]),
    ("no-metadata-csum", &["-b", "4096", "-O", "^metadata_csum"]),
    (
        "uninit-bg",
        &["-b", "1024", "-O", "^metadata_csum,uninit_bg"],
    ),
    ("no-64bit", &["-b", "4096", "-O", "^64bit"]),
    (
        "ext2",
        &["-b", "1024", "-O", "^extents,^has_journal,^64bit"],
    ),
    (
        "ext3",
        &[
            "-b",
            "4096",
            "-O",
            "^extents,^64bit,^metadata_csum,^flex_bg,^huge_file,^dir_nlink,^extra_isize",
        ],
    ),
    ("orphan-file", &["-b", "4096", "-O", "orphan_file"]),
    ("csum-seed", &["-b", "4096", "-O", "metadata_csum_seed"]),
    ("inode-128", &["-b", "4096", "-I", "128"]),
    ("small-groups", &["-b", "1024", "-g", "1024"]),
    (
        "sparse-super2",
        &["-b", "1024", "-O", "sparse_super2,^resize_inode"],
    ),
];

pub mod expected;
pub mod hooked;
pub mod machine;
pub mod model;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A directory that is removed with the value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let name = format!(
            "pinfold-{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .output()
        .unwrap()
}

/// An empty image of `kib` KiB, perhaps filled from a directory.
pub fn mkfs(kib: u64, options: &[&str], from: Option<&Path>) -> Vec<u8> {
    let scratch = Scratch::new();
    let image = scratch.0.join("image");
    let size = format!("{kib}K");
    let mut arguments = vec![
        "-q",
        "-F",
        "-E",
        "hash_seed=01234567-89ab-cdef-0123-456789abcdef",
    ];
    arguments.extend(options);
    if let Some(from) = from {
        arguments.extend(["-d", from.to_str().unwrap()]);
    }
    arguments.extend([image.to_str().unwrap(), &size]);
    let output = run("mkfs.ext4", &arguments);
    assert!(
        output.status.success(),
        "mkfs.ext4 {arguments:?}: {output:?}"
    );
    std::fs::read(image).unwrap()
}

/// What `e2fsck -fn` says, if it is not satisfied.
pub fn e2fsck(image: &[u8]) -> Result<(), String> {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    write_sparse(&path, image).unwrap();
    check_file(&path)
}

/// Writes a file with holes where the image has pages of zeros: most of it, and most of the time that writing takes.
pub fn write_sparse(path: &Path, image: &[u8]) -> std::io::Result<()> {
    const PAGE: usize = 4096;
    let file = std::fs::File::create(path)?;
    file.set_len(image.len() as u64)?;
    let pages = image.chunks(PAGE).zip((0..).step_by(PAGE));
    for (page, at) in pages.filter(|(page, _)| **page != [0; PAGE][..page.len()]) {
        std::os::unix::fs::FileExt::write_all_at(&file, page, at)?;
    }
    Ok(())
}

pub fn check_file(path: &Path) -> Result<(), String> {
    let output = run("e2fsck", &["-fn", path.to_str().unwrap()]);
    if output.status.code() == Some(0) {
        return Ok(());
    }
    Err(format!(
        "{:?}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    ))
}

/// What debugfs prints for `command`.
pub fn debugfs(image: &[u8], command: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    std::fs::write(&path, image).unwrap();
    run("debugfs", &["-R", command, path.to_str().unwrap()]).stdout
}

/// The image after debugfs has run these commands on it.
pub fn changed_by_debugfs(image: &[u8], commands: &[String]) -> Vec<u8> {
    let scratch = Scratch::new();
    let (path, script) = (scratch.0.join("image"), scratch.0.join("commands"));
    write_sparse(&path, image).unwrap();
    std::fs::write(&script, commands.join("\n") + "\n").unwrap();
    let (path, script) = (path.to_str().unwrap(), script.to_str().unwrap());
    let output = run("debugfs", &["-w", "-f", script, path]);
    assert!(output.status.success(), "{output:?}");
    std::fs::read(path).unwrap()
}

/// Files with every structure of ext4, to be damaged.
pub fn hostile_source() -> Scratch {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.0.join("directory/below")).unwrap();
    for i in 0..150 {
        let name = format!("directory/file number {i:03} with a long name");
        std::fs::write(scratch.0.join(name), vec![i as u8; i * 50]).unwrap();
    }
    let sparse = std::fs::File::create(scratch.0.join("sparse")).unwrap();
    for i in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", i * 100_000).unwrap();
    }
    std::os::unix::fs::symlink("x".repeat(100), scratch.0.join("link")).unwrap();
    scratch
}

pub fn clock() -> Timestamp {
    Timestamp {
        seconds: 1_700_000_000,
        nanoseconds: 123_456_789,
    }
}

pub fn options(access: Access) -> MountOptions {
    MountOptions {
        access,
        clock,
        limits: MetadataLimits::default(),
    }
}

pub fn mount(device: Arc<dyn BlockDevice>, access: Access) -> Result<Mounted, FsError> {
    Ext4::mount(device, options(access))
}

/// What a file is and holds, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Other(FileKind),
}

/// The whole tree, by path.
pub type Tree = BTreeMap<Vec<u8>, Node>;

pub fn read_file(fs: &dyn FileSystem, file: FileId) -> Result<Vec<u8>, FsError> {
    let mut bytes = vec![0; fs.attributes(file)?.size as usize];
    let len = fs.read_at(file, 0, &mut bytes)?;
    assert_eq!(len, bytes.len());
    Ok(bytes)
}

/// Everything in the file system, each name looked up too.
pub fn read_tree(fs: &dyn FileSystem) -> Result<Tree, FsError> {
    let mut tree = Tree::new();
    let mut waiting = vec![(Vec::new(), fs.root())];
    while let Some((path, directory)) = waiting.pop() {
        let mut cursor = Cursor::default();
        loop {
            let entries = fs.read_directory(directory, &mut cursor)?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                assert_eq!(fs.lookup(directory, &entry.name), Ok(entry.file));
                let mut path = path.clone();
                path.push(b'/');
                path.extend(&entry.name);
                let node = match fs.attributes(entry.file)?.kind {
                    FileKind::File => Node::File(read_file(fs, entry.file)?),
                    FileKind::Symlink => Node::Symlink(fs.read_link(entry.file)?),
                    FileKind::Directory => {
                        waiting.push((path.clone(), entry.file));
                        Node::Directory
                    }
                    other => Node::Other(other),
                };
                tree.insert(path, node);
            }
        }
    }
    Ok(tree)
}

/// The same of a directory of the PC.
pub fn read_host_tree(root: &Path) -> Tree {
    use std::os::unix::ffi::OsStrExt;
    let mut tree = Tree::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            let node = if kind.is_symlink() {
                Node::Symlink(
                    std::fs::read_link(&path)
                        .unwrap()
                        .as_os_str()
                        .as_bytes()
                        .to_vec(),
                )
            } else if kind.is_dir() {
                waiting.push(path.clone());
                Node::Directory
            } else {
                Node::File(std::fs::read(&path).unwrap())
            };
            let mut name = b"/".to_vec();
            name.extend(path.strip_prefix(root).unwrap().as_os_str().as_bytes());
            tree.insert(name, node);
        }
    }
    tree
}

/// The length of a campaign: `default`, or what the environment variable says.
pub fn campaign(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}
