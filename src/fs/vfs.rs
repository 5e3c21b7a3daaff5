//! Paths: which file of which mounted file system a name means.
//!
//! File systems are mounted on directories, the first on `/`. A path is walked name by name; where a directory is a
//! mount point the walk goes on in the root of what is mounted there, and `..` from that root comes back. Symbolic
//! links are followed by putting their target in front of what is left of the path.
//!
//! No lock is held while a file system is asked: a walk uses the table of mounts as it was at its beginning.

use super::error::FsError;
use super::file_system::{FileId, FileKind, FileSystem};
use crate::sync::{Mutex, SpinLock};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Symbolic links that one path may go through, as on Linux.
const MAX_SYMLINKS: usize = 40;

/// Bytes in a path at most, symbolic links put in, as on Linux.
const MAX_PATH: usize = 4096;

/// Bytes in a name at most.
const MAX_NAME: usize = 255;

/// A file and the file system it is in.
#[derive(Clone)]
pub struct Node {
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
    /// The file.
    pub file: FileId,
}

impl Node {
    /// Another file of the same file system.
    pub fn beside(&self, file: FileId) -> Node {
        let fs = self.fs.clone();
        Node { fs, file }
    }

    /// Where a file system begins.
    fn root(fs: &Arc<dyn FileSystem>) -> Node {
        let file = fs.root();
        Node {
            fs: fs.clone(),
            file,
        }
    }

    /// Whether both are the same file.
    pub fn is(&self, other: &Node) -> bool {
        self.is_beside(other) && self.file == other.file
    }

    /// Whether both are in one file system.
    pub fn is_beside(&self, other: &Node) -> bool {
        Arc::ptr_eq(&self.fs, &other.fs)
    }
}

/// Whether a symbolic link at the end of a path means itself or its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    /// Its target.
    Follow,
    /// Itself.
    Keep,
}

/// A mounted file system.
#[derive(Clone)]
pub struct Mount {
    /// Its path, as it was given.
    pub path: Vec<u8>,
    /// What it is on, for people.
    pub source: Vec<u8>,
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
    /// The directory it hides. `None` for `/`.
    covers: Option<Node>,
}

type Mounts = Arc<Vec<Mount>>;

/// All that is mounted.
pub struct Vfs {
    mounts: SpinLock<Option<Mounts>>,
    /// Held by whoever mounts or unmounts: what he found is so until he has done.
    changing: Mutex<()>,
}

impl Default for Vfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Vfs {
    /// With nothing mounted.
    pub const fn new() -> Self {
        Self {
            mounts: SpinLock::new(None),
            changing: Mutex::new(()),
        }
    }

    /// What is mounted, in the order of mounting.
    pub fn mounts(&self) -> Vec<Mount> {
        self.snapshot().to_vec()
    }

    fn snapshot(&self) -> Mounts {
        self.mounts.lock().clone().unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Mount>)) {
        let mut mounts = self.mounts.lock();
        let mut new = mounts.as_deref().cloned().unwrap_or_default();
        change(&mut new);
        *mounts = Some(Arc::new(new));
    }

    /// Mounts what `make` makes on the directory `path`; the first on `/`. Where nothing can be mounted nothing is made.
    pub fn mount<E: From<FsError>>(
        &self,
        path: &[u8],
        source: &[u8],
        make: impl FnOnce() -> Result<Arc<dyn FileSystem>, E>,
    ) -> Result<(), E> {
        let _changing = self.changing.lock();
        let covered = if self.snapshot().is_empty() {
            if path != b"/" {
                return Err(FsError::NothingMounted.into());
            }
            None
        } else {
            let node = self.resolve(path, LastLink::Follow)?;
            if node.fs.attributes(node.file)?.kind != FileKind::Directory {
                return Err(FsError::NotADirectory.into());
            }
            if node.file == node.fs.root() {
                return Err(FsError::Busy.into());
            }
            // Its file system is in use.
            node.fs.open(node.file)?;
            Some(node)
        };
        let fs = match (make(), &covered) {
            (Err(error), Some(node)) => {
                node.fs.close(node.file)?;
                return Err(error);
            }
            (made, _) => made?,
        };
        let mount = Mount {
            path: path.to_vec(),
            source: source.to_vec(),
            fs,
            covers: covered,
        };
        self.change(|mounts| mounts.push(mount));
        Ok(())
    }

    /// [`FsError::Busy`] where something is mounted on what `name` means in `directory`.
    fn check_not_covered(&self, directory: &Node, name: &[u8]) -> Result<(), FsError> {
        let mounts = self.snapshot();
        let covered = mounts.iter().filter_map(|mount| mount.covers.as_ref());
        let mut beside = covered.filter(|node| node.is_beside(directory)).peekable();
        if beside.peek().is_none() {
            return Ok(());
        }
        match directory.fs.lookup(directory.file, name) {
            Ok(file) if beside.any(|node| node.file == file) => Err(FsError::Busy),
            Ok(_) | Err(FsError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes an empty directory on which nothing is mounted.
    pub fn remove_directory(&self, directory: &Node, name: &[u8]) -> Result<(), FsError> {
        self.check_not_covered(directory, name)?;
        directory.fs.remove_directory(directory.file, name)
    }

    /// Moves a name within a file system, atomically; what had the new name loses it. Mount points stay where they are.
    pub fn rename(
        &self,
        old: &Node,
        old_name: &[u8],
        new: &Node,
        new_name: &[u8],
    ) -> Result<(), FsError> {
        if !old.is_beside(new) {
            return Err(FsError::CrossDevice);
        }
        self.check_not_covered(old, old_name)?;
        self.check_not_covered(new, new_name)?;
        old.fs.rename(old.file, old_name, new.file, new_name)?;
        Ok(())
    }

    /// Unmounts what is mounted on `path`, making it durable first; [`FsError::Busy`] while something is mounted in it.
    pub fn unmount(&self, path: &[u8]) -> Result<(), FsError> {
        let _changing = self.changing.lock();
        let node = self.resolve(path, LastLink::Follow)?;
        if node.file != node.fs.root() {
            return Err(FsError::NotAMountPoint);
        }
        let mounts = self.snapshot();
        let mount = mounts.iter().find(|mount| node.is(&Node::root(&mount.fs)));
        self.end(mount.ok_or(FsError::NotFound)?)
    }

    fn end(&self, mount: &Mount) -> Result<(), FsError> {
        let root = Node::root(&mount.fs);
        let covers = |other: &Mount| {
            other
                .covers
                .as_ref()
                .is_some_and(|node| node.is_beside(&root))
        };
        if self.snapshot().iter().any(covers) {
            return Err(FsError::Busy);
        }
        mount.fs.unmount()?;
        if let Some(covered) = &mount.covers {
            covered.fs.close(covered.file)?;
        }
        self.change(|mounts| mounts.retain(|other| !Arc::ptr_eq(&other.fs, &mount.fs)));
        Ok(())
    }

    /// Unmounts everything, last first. Errors do not stop it; each is returned with its path.
    pub fn unmount_all(&self) -> Vec<(Vec<u8>, FsError)> {
        let _changing = self.changing.lock();
        let mut errors = Vec::new();
        for mount in self.snapshot().iter().rev() {
            if let Err(error) = self.end(mount) {
                errors.push((mount.path.clone(), error));
            }
        }
        errors
    }

    /// Makes everything durable; the first error, after all have been tried.
    pub fn sync(&self) -> Result<(), FsError> {
        let mut result = Ok(());
        for mount in self.snapshot().iter() {
            result = result.and(mount.fs.sync());
        }
        result
    }

    /// The file that `path` means. Paths begin at `/`, whether they say so or not; an empty one means nothing.
    pub fn resolve(&self, path: &[u8], last: LastLink) -> Result<Node, FsError> {
        let walk = Walk::new(self.snapshot(), path)?;
        walk.run(last, End::File).map(|(node, _)| node)
    }

    /// The directory in which `path` names something, which need not exist, and the name.
    pub fn resolve_parent(&self, path: &[u8]) -> Result<(Node, Vec<u8>), FsError> {
        let walk = Walk::new(self.snapshot(), path)?;
        let (node, name) = walk.run(LastLink::Keep, End::Parent)?;
        if name.is_empty() || name == b"." || name == b".." {
            return Err(FsError::InvalidName);
        }
        Ok((node, name))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    File,
    Parent,
}

/// A walk along a path.
struct Walk {
    mounts: Mounts,
    at: Node,
    /// Names still to go, the next one last.
    names: Vec<Vec<u8>>,
    /// The path ended in `/`: it means a directory.
    must_be_directory: bool,
    symlinks: usize,
}

/// Where all paths begin.
fn root(mounts: &[Mount]) -> Result<Node, FsError> {
    let root = mounts.iter().find(|mount| mount.covers.is_none());
    Ok(Node::root(&root.ok_or(FsError::NothingMounted)?.fs))
}

impl Walk {
    fn new(mounts: Mounts, path: &[u8]) -> Result<Self, FsError> {
        let mut walk = Self {
            at: root(&mounts)?,
            names: Vec::new(),
            must_be_directory: path.ends_with(b"/"),
            symlinks: 0,
            mounts,
        };
        if path.is_empty() {
            return Err(FsError::NotFound);
        }
        walk.put_in_front(path)?;
        Ok(walk)
    }

    fn put_in_front(&mut self, path: &[u8]) -> Result<(), FsError> {
        let waiting: usize = self.names.iter().map(|name| name.len() + 1).sum();
        if waiting + path.len() > MAX_PATH {
            return Err(FsError::NameTooLong);
        }
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty());
        self.names.extend(names.rev().map(<[u8]>::to_vec));
        Ok(())
    }

    fn run(mut self, last: LastLink, end: End) -> Result<(Node, Vec<u8>), FsError> {
        while let Some(name) = self.names.pop() {
            let is_last = self.names.is_empty();
            if is_last && end == End::Parent {
                self.check_directory()?;
                return Ok((self.at, name));
            }
            let keeps_link = is_last && last == LastLink::Keep && !self.must_be_directory;
            self.step(&name, keeps_link)?;
        }
        if self.must_be_directory {
            self.check_directory()?;
        }
        Ok((self.at, Vec::new()))
    }

    fn check_directory(&self) -> Result<(), FsError> {
        match self.at.fs.attributes(self.at.file)?.kind {
            FileKind::Directory => Ok(()),
            _ => Err(FsError::NotADirectory),
        }
    }

    fn step(&mut self, name: &[u8], keeps_link: bool) -> Result<(), FsError> {
        if name == b".." && self.at.file == self.at.fs.root() {
            // Out of what is mounted; at the very root `..` leads nowhere.
            let here = |mount: &&Mount| Arc::ptr_eq(&mount.fs, &self.at.fs);
            let covered = self
                .mounts
                .iter()
                .find(here)
                .and_then(|mount| mount.covers.clone());
            let Some(covered) = covered else {
                return Ok(());
            };
            self.at = covered;
            return self.step(name, keeps_link);
        }
        if name.len() > MAX_NAME {
            return Err(FsError::NameTooLong);
        }
        let fs = &self.at.fs;
        let file = fs.lookup(self.at.file, name)?;
        if fs.attributes(file)?.kind == FileKind::Symlink && !keeps_link {
            self.symlinks += 1;
            if self.symlinks > MAX_SYMLINKS {
                return Err(FsError::TooManySymlinks);
            }
            let target = fs.read_link(file)?;
            if target.is_empty() {
                return Err(FsError::NotFound);
            }
            if target.starts_with(b"/") {
                self.at = root(&self.mounts)?;
            }
            if self.names.is_empty() && target.ends_with(b"/") {
                self.must_be_directory = true;
            }
            return self.put_in_front(&target);
        }
        self.at.file = file;
        let covers = |mount: &&Mount| mount.covers.as_ref().is_some_and(|node| node.is(&self.at));
        if let Some(above) = self.mounts.iter().find(covers) {
            self.at = Node::root(&above.fs);
        }
        Ok(())
    }
}
