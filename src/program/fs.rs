//! Files: what `std::fs` has, by the same names.
//!
//! Paths are bytes, and begin at `/`, whether they say so or not.

pub use crate::file::{File, OpenOptions, SeekFrom};
pub use crate::fs::{Attributes as Metadata, FileKind as FileType, FsError};

use crate::files::VFS;
use crate::fs::Cursor;
use crate::fs::vfs::{LastLink, Node};
use crate::thread::Call;
use alloc::string::String;
use alloc::vec::{self, Vec};

/// All bytes of a file.
pub fn read(path: impl AsRef<[u8]>) -> Result<Vec<u8>, FsError> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.size).map_err(|_| FsError::FileTooLarge)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| FsError::OutOfMemory)?;
    bytes.resize(len, 0);
    let mut at = 0;
    while at < len {
        match file.read_at(&mut bytes[at..], at as u64)? {
            0 => break,
            read => at += read,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// All of a file, whose bytes are UTF-8; what is not becomes U+FFFD.
pub fn read_to_string(path: impl AsRef<[u8]>) -> Result<String, FsError> {
    Ok(match String::from_utf8(read(path)?) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Makes a file of these bytes, or replaces what is in it.
pub fn write(path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Result<(), FsError> {
    File::create(path)?.write_all(bytes.as_ref())
}

/// What is known about a file; of a symbolic link, about what it leads to.
pub fn metadata(path: impl AsRef<[u8]>) -> Result<Metadata, FsError> {
    let _call = Call::enter();
    attributes(path.as_ref(), LastLink::Follow)
}

/// What is known about a file, or about a symbolic link itself.
pub fn symlink_metadata(path: impl AsRef<[u8]>) -> Result<Metadata, FsError> {
    let _call = Call::enter();
    attributes(path.as_ref(), LastLink::Keep)
}

fn attributes(path: &[u8], last: LastLink) -> Result<Metadata, FsError> {
    let node = VFS.resolve(path, last)?;
    node.fs.attributes(node.file)
}

/// Whether the path leads to something.
pub fn exists(path: impl AsRef<[u8]>) -> Result<bool, FsError> {
    match metadata(path) {
        Err(FsError::NotFound | FsError::NothingMounted) => Ok(false),
        found => found.map(|_| true),
    }
}

/// Makes a directory.
pub fn create_dir(path: impl AsRef<[u8]>) -> Result<(), FsError> {
    let _call = Call::enter();
    let (parent, name) = VFS.resolve_parent(path.as_ref())?;
    let kind = FileType::Directory;
    parent
        .fs
        .create(parent.file, &name, kind, 0o755)
        .map(|_| ())
}

/// Makes a directory and those above it that are missing.
pub fn create_dir_all(path: impl AsRef<[u8]>) -> Result<(), FsError> {
    let path = path.as_ref();
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let ends = ends.map(|(at, _)| at).filter(|at| *at > 0);
    for end in ends.chain([path.len()]) {
        match create_dir(&path[..end]) {
            Ok(()) => {}
            Err(FsError::Exists) if metadata(&path[..end])?.kind == FileType::Directory => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes a file.
pub fn remove_file(path: impl AsRef<[u8]>) -> Result<(), FsError> {
    let _call = Call::enter();
    let (parent, name) = VFS.resolve_parent(path.as_ref())?;
    parent.fs.unlink(parent.file, &name)?;
    Ok(())
}

/// Removes an empty directory.
pub fn remove_dir(path: impl AsRef<[u8]>) -> Result<(), FsError> {
    let _call = Call::enter();
    let (parent, name) = VFS.resolve_parent(path.as_ref())?;
    VFS.remove_directory(&parent, &name)
}

/// Moves a name, atomically; what had the new name loses it.
pub fn rename(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<(), FsError> {
    let _call = Call::enter();
    let (old, old_name) = VFS.resolve_parent(from.as_ref())?;
    let (new, new_name) = VFS.resolve_parent(to.as_ref())?;
    VFS.rename(&old, &old_name, &new, &new_name)
}

/// Copies a file's bytes; how many.
pub fn copy(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<u64, FsError> {
    let source = File::open(from)?;
    let copy = File::create(to)?;
    let mut bytes = alloc::vec![0; 128 << 10];
    let mut len = 0;
    loop {
        match source.read(&mut bytes)? {
            0 => return Ok(len),
            read => copy.write_all(&bytes[..read])?,
        }
        len = source.seek(SeekFrom::Current(0))?;
    }
}

/// One name of a directory.
#[derive(Clone)]
pub struct DirEntry {
    name: Vec<u8>,
    kind: Option<FileType>,
    node: Node,
}

impl DirEntry {
    /// The name: any bytes but `/` and zero.
    pub fn file_name(&self) -> &[u8] {
        &self.name
    }

    /// What it is.
    pub fn file_type(&self) -> Result<FileType, FsError> {
        match self.kind {
            Some(kind) => Ok(kind),
            None => self.metadata().map(|metadata| metadata.kind),
        }
    }

    /// What is known about it; of a symbolic link, about itself.
    pub fn metadata(&self) -> Result<Metadata, FsError> {
        let _call = Call::enter();
        self.node.fs.attributes(self.node.file)
    }
}

/// The names in a directory, but `.` and `..`; read as they are asked for.
pub struct ReadDir {
    directory: Node,
    cursor: Cursor,
    read: vec::IntoIter<DirEntry>,
    is_over: bool,
}

/// Reads a directory.
pub fn read_dir(path: impl AsRef<[u8]>) -> Result<ReadDir, FsError> {
    let _call = Call::enter();
    let directory = VFS.resolve(path.as_ref(), LastLink::Follow)?;
    if directory.fs.attributes(directory.file)?.kind != FileType::Directory {
        return Err(FsError::NotADirectory);
    }
    Ok(ReadDir {
        directory,
        cursor: Cursor::default(),
        read: Vec::new().into_iter(),
        is_over: false,
    })
}

impl ReadDir {
    fn read_more(&mut self) -> Result<(), FsError> {
        let _call = Call::enter();
        let Node { fs, file, .. } = &self.directory;
        let some = fs.read_directory(*file, &mut self.cursor)?;
        self.is_over = some.is_empty();
        let entries = some
            .into_iter()
            .filter(|entry| entry.name != b"." && entry.name != b"..");
        let entries = entries.map(|entry| DirEntry {
            node: self.directory.beside(entry.file),
            name: entry.name,
            kind: entry.kind,
        });
        self.read = entries.collect::<Vec<_>>().into_iter();
        Ok(())
    }
}

impl Iterator for ReadDir {
    type Item = Result<DirEntry, FsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.read.next() {
                return Some(Ok(entry));
            }
            if self.is_over {
                return None;
            }
            if let Err(error) = self.read_more() {
                self.is_over = true;
                return Some(Err(error));
            }
        }
    }
}
