//! Paths: which file of which mounted file system a name means.
//!
//! File systems are mounted on directories, the first on `/`. A path is walked name by name; where a directory is a
//! mount point the walk goes on in the root of what is mounted there, and `..` from that root comes back. Symbolic
//! links are followed by putting their target in front of what is left of the path.
//!
//! No lock is held while a file system is asked: a walk uses the table of mounts as it was at its beginning.

use super::error::FsError;
use super::file_system::{FileId, FileKind, FileSystem};
use crate::sync::SpinLock;
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
    mount: usize,
}

impl Node {
    /// Another file of the same file system.
    pub fn beside(&self, file: FileId) -> Node {
        Node {
            file,
            ..self.clone()
        }
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
    /// The directory it hides: index of its mount, and file. `None` for `/`.
    covers: Option<(usize, FileId)>,
}

/// All that is mounted.
pub struct Vfs {
    // An unmounted one leaves its place empty, unless it is the last: the indices of the others stay.
    mounts: SpinLock<Option<Arc<Vec<Option<Mount>>>>>,
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
        }
    }

    fn snapshot(&self) -> Arc<Vec<Option<Mount>>> {
        self.mounts.lock().clone().unwrap_or_default()
    }

    /// What is mounted, in the order of mounting.
    pub fn mounts(&self) -> Vec<Mount> {
        self.snapshot().iter().flatten().cloned().collect()
    }

    /// Mounts what `make` makes on the directory `path`; the first on `/`. Where nothing can be mounted nothing is made.
    pub fn mount<E: From<FsError>>(
        &self,
        path: &[u8],
        source: &[u8],
        make: impl FnOnce() -> Result<Arc<dyn FileSystem>, E>,
    ) -> Result<(), E> {
        let covered = if self.snapshot().iter().flatten().next().is_none() {
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
        let mut mounts = self.mounts.lock();
        let mut new = mounts.as_deref().cloned().unwrap_or_default();
        new.push(Some(Mount {
            path: path.to_vec(),
            source: source.to_vec(),
            fs,
            covers: covered.map(|node| (node.mount, node.file)),
        }));
        *mounts = Some(Arc::new(new));
        Ok(())
    }

    /// [`FsError::Busy`] where something is mounted on what `name` means in `directory`.
    fn check_not_covered(&self, directory: &Node, name: &[u8]) -> Result<(), FsError> {
        let mounts = self.snapshot();
        let covered = mounts.iter().flatten().filter_map(|mount| mount.covers);
        let mut beside = covered
            .filter(|(below, _)| *below == directory.mount)
            .peekable();
        if beside.peek().is_none() {
            return Ok(());
        }
        match directory.fs.lookup(directory.file, name) {
            Ok(file) if beside.any(|(_, covered)| covered == file) => Err(FsError::Busy),
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
        let node = self.resolve(path, LastLink::Follow)?;
        if node.file != node.fs.root() {
            return Err(FsError::NotAMountPoint);
        }
        self.unmount_at(node.mount)
    }

    fn unmount_at(&self, index: usize) -> Result<(), FsError> {
        let mounts = self.snapshot();
        let is_below = |mount: &Mount| mount.covers.is_some_and(|(below, _)| below == index);
        if mounts.iter().flatten().any(is_below) {
            return Err(FsError::Busy);
        }
        let mount = mounts.get(index).and_then(Option::as_ref);
        let mount = mount.ok_or(FsError::NotFound)?;
        mount.fs.unmount()?;
        if let Some((below, directory)) = mount.covers
            && let Some(below) = mounts[below].as_ref()
        {
            below.fs.close(directory)?;
        }
        let mut mounts = self.mounts.lock();
        let mut new = mounts.as_deref().cloned().unwrap_or_default();
        if let Some(place) = new.get_mut(index) {
            *place = None;
        }
        while let Some(None) = new.last() {
            new.pop();
        }
        *mounts = Some(Arc::new(new));
        Ok(())
    }

    /// Unmounts everything, last first. Errors do not stop it; each is returned with its path.
    pub fn unmount_all(&self) -> Vec<(Vec<u8>, FsError)> {
        let mut errors = Vec::new();
        for index in (0..self.snapshot().len()).rev() {
            let path = match &self.snapshot()[index] {
                Some(mount) => mount.path.clone(),
                None => continue,
            };
            if let Err(error) = self.unmount_at(index) {
                errors.push((path, error));
            }
        }
        errors
    }

    /// Makes everything durable; the first error, after all have been tried.
    pub fn sync(&self) -> Result<(), FsError> {
        let mut result = Ok(());
        for mount in self.mounts() {
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
    mounts: Arc<Vec<Option<Mount>>>,
    mount: usize,
    file: FileId,
    /// Names still to go, the next one last.
    names: Vec<Vec<u8>>,
    /// The path ended in `/`: it means a directory.
    must_be_directory: bool,
    symlinks: usize,
}

impl Walk {
    fn new(mounts: Arc<Vec<Option<Mount>>>, path: &[u8]) -> Result<Self, FsError> {
        let mut walk = Self {
            mount: 0,
            file: FileId(0),
            names: Vec::new(),
            must_be_directory: path.ends_with(b"/"),
            symlinks: 0,
            mounts,
        };
        walk.go_to_root()?;
        if path.is_empty() {
            return Err(FsError::NotFound);
        }
        walk.put_in_front(path)?;
        Ok(walk)
    }

    fn fs(&self, mount: usize) -> Result<&Arc<dyn FileSystem>, FsError> {
        let mount = self.mounts.get(mount).and_then(Option::as_ref);
        Ok(&mount.ok_or(FsError::NotFound)?.fs)
    }

    fn go_to_root(&mut self) -> Result<(), FsError> {
        let root = |mount: &Option<Mount>| mount.as_ref().is_some_and(|m| m.covers.is_none());
        let root = self.mounts.iter().position(root);
        self.mount = root.ok_or(FsError::NothingMounted)?;
        self.file = self.fs(self.mount)?.root();
        Ok(())
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
                if self.fs(self.mount)?.attributes(self.file)?.kind != FileKind::Directory {
                    return Err(FsError::NotADirectory);
                }
                return Ok((self.node()?, name));
            }
            let keeps_link = is_last && last == LastLink::Keep && !self.must_be_directory;
            self.step(&name, keeps_link)?;
        }
        let node = self.node()?;
        if self.must_be_directory && node.fs.attributes(node.file)?.kind != FileKind::Directory {
            return Err(FsError::NotADirectory);
        }
        Ok((node, Vec::new()))
    }

    fn node(&self) -> Result<Node, FsError> {
        Ok(Node {
            fs: self.fs(self.mount)?.clone(),
            file: self.file,
            mount: self.mount,
        })
    }

    fn step(&mut self, name: &[u8], keeps_link: bool) -> Result<(), FsError> {
        if name == b".." && self.file == self.fs(self.mount)?.root() {
            // Out of what is mounted; at the very root `..` leads nowhere.
            let covers = self.mounts[self.mount]
                .as_ref()
                .and_then(|mount| mount.covers);
            let Some((below, directory)) = covers else {
                return Ok(());
            };
            (self.mount, self.file) = (below, directory);
            return self.step(name, keeps_link);
        }
        if name.len() > MAX_NAME {
            return Err(FsError::NameTooLong);
        }
        let directory = self.file;
        let fs = self.fs(self.mount)?.clone();
        let file = fs.lookup(directory, name)?;
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
                self.go_to_root()?;
            }
            if self.names.is_empty() && target.ends_with(b"/") {
                self.must_be_directory = true;
            }
            return self.put_in_front(&target);
        }
        self.file = file;
        let here = (self.mount, file);
        let covers = |mount: &Option<Mount>| mount.as_ref().is_some_and(|m| m.covers == Some(here));
        if let Some(above) = self.mounts.iter().position(covers) {
            self.mount = above;
            self.file = self.fs(above)?.root();
        }
        Ok(())
    }
}
