//! Files as programs see them: what `std::fs` has, by the same names.

use crate::files::VFS;
use crate::fs::vfs::{LastLink, Node};
use crate::fs::{Attributes, FileId, FileKind, FileSystem, FsError};
use crate::mm::cache::InUse;
use crate::program::process::{Owned, Resource};
use crate::sync::SpinLock;
use crate::thread::{self, Call};
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

/// Bytes written at a time: a program that is told to end in the middle of a large write leaves it after so many.
const PIECE: usize = 4 << 20;

/// How a file is opened: as `std::fs::OpenOptions`.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    read: bool,
    write: bool,
    append: bool,
    truncate: bool,
    create: bool,
    create_new: bool,
}

macro_rules! option {
    ($name:ident, $what:literal) => {
        #[doc = $what]
        pub fn $name(&mut self, $name: bool) -> &mut Self {
            self.$name = $name;
            self
        }
    };
}

impl OpenOptions {
    /// Nothing is allowed yet.
    pub fn new() -> Self {
        Self::default()
    }

    option!(read, "Whether it can be read.");
    option!(write, "Whether it can be written.");
    option!(append, "Whether each write goes to its end.");
    option!(truncate, "Whether it is emptied.");
    option!(create, "Whether it is made if there is none.");
    option!(create_new, "Whether it is made, and there must be none.");

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Exists`], [`FsError::IsADirectory`] and all else the file system says.
    pub fn open(&self, path: impl AsRef<[u8]>) -> Result<File, FsError> {
        let _call = Call::enter();
        let path = path.as_ref();
        let (open, owned) = self.open_path(path)?;
        let file = File {
            open,
            options: *self,
            position: SpinLock::new(0),
            _owned: owned,
        };
        if self.truncate && self.can_write() {
            file.set_len(0)?;
        }
        Ok(file)
    }

    fn can_write(&self) -> bool {
        self.write || self.append
    }

    /// Opens the file that `path` leads to, after that as before: until it is open nothing keeps it, its name may be gone
    /// and its number another's.
    fn open_path(&self, path: &[u8]) -> Result<(Arc<OpenFile>, Owned), FsError> {
        let mut made = None;
        let mut has_existed = false;
        loop {
            let node = match VFS.resolve(path, LastLink::Follow) {
                Err(FsError::NotFound) if self.can_write() && (self.create || self.create_new) => {
                    match make(path) {
                        // Made by somebody else just now; or a link that leads nowhere.
                        Err(FsError::Exists) if !self.create_new && !has_existed => {
                            has_existed = true;
                            continue;
                        }
                        node => made.insert(node?).clone(),
                    }
                }
                found => found?,
            };
            if self.create_new && !made.as_ref().is_some_and(|made| made.is(&node)) {
                return Err(FsError::Exists);
            }
            let open = Arc::new(OpenFile {
                path: String::from_utf8_lossy(path).into(),
                is_open: AtomicBool::new(false),
                node,
            });
            let owned = Owned::new(open.clone());
            let opened = open.open();
            match VFS.resolve(path, LastLink::Follow) {
                Ok(now) if now.is(&open.node) => return opened.map(|()| (open, owned)),
                // Another file by now, or none.
                Ok(_) | Err(FsError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Makes a file.
fn make(path: &[u8]) -> Result<Node, FsError> {
    let (directory, name) = VFS.resolve_parent(path)?;
    let file = directory
        .fs
        .create(directory.file, &name, FileKind::File, 0o644)?;
    Ok(directory.beside(file))
}

/// An open file.
pub struct File {
    open: Arc<OpenFile>,
    options: OpenOptions,
    position: SpinLock<u64>,
    /// Closes it.
    _owned: Owned,
}

/// What a program that ends without a word leaves open.
struct OpenFile {
    node: Node,
    path: Arc<str>,
    is_open: AtomicBool,
}

impl OpenFile {
    fn open(&self) -> Result<(), FsError> {
        let Node { fs, file } = &self.node;
        match fs.attributes(*file)?.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(FsError::IsADirectory),
            _ => return Err(FsError::NotAFile),
        }
        fs.open(*file)?;
        self.is_open.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Resource for OpenFile {
    fn release(&self) {
        let was_open = self.is_open.swap(false, Ordering::Relaxed);
        if was_open && let Err(error) = self.node.fs.close(self.node.file) {
            log::warn!("{}: not closed: {error}", self.path);
        }
    }
}

/// Where to go: as `std::io::SeekFrom`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekFrom {
    /// From the beginning.
    Start(u64),
    /// From the end.
    End(i64),
    /// From here.
    Current(i64),
}

impl File {
    /// Opens a file to be read.
    pub fn open(path: impl AsRef<[u8]>) -> Result<Self, FsError> {
        OpenOptions::new().read(true).open(path)
    }

    /// Opens a file to be written, emptied or new.
    pub fn create(path: impl AsRef<[u8]>) -> Result<Self, FsError> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
    }

    /// What may be asked for: see [`OpenOptions`].
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// What is known about it.
    pub fn metadata(&self) -> Result<Attributes, FsError> {
        let _call = Call::enter();
        let (fs, file) = self.node();
        fs.attributes(file)
    }

    /// Cuts it, or lets it grow with zeros.
    pub fn set_len(&self, len: u64) -> Result<(), FsError> {
        let _call = Call::enter();
        self.check(self.options.can_write())?;
        let (fs, file) = self.node();
        fs.set_len(file, len)
    }

    /// Returns when all of it is durable.
    ///
    /// # Errors
    /// What went wrong now, or with an earlier write that nobody was told of.
    pub fn sync_all(&self) -> Result<(), FsError> {
        let _call = Call::enter();
        let (fs, file) = self.node();
        fs.sync_file(file)
    }

    /// Returns when its bytes and its length are durable. When it was changed last may be told later.
    ///
    /// # Errors
    /// As [`sync_all`](Self::sync_all).
    pub fn sync_data(&self) -> Result<(), FsError> {
        let _call = Call::enter();
        let (fs, file) = self.node();
        fs.sync_data(file)
    }

    /// Reads from where it is; less than asked for at the end.
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, FsError> {
        let at = *self.position.lock();
        let read = self.read_at(bytes, at)?;
        *self.position.lock() = at + read as u64;
        Ok(read)
    }

    /// Writes all of `bytes` where it is, or at the end: up to 128 KiB stay together there, whoever else appends.
    pub fn write_all(&self, bytes: &[u8]) -> Result<(), FsError> {
        if self.options.append {
            return self.append(bytes);
        }
        let at = *self.position.lock();
        self.write_all_at(bytes, at)?;
        *self.position.lock() = at + bytes.len() as u64;
        Ok(())
    }

    fn append(&self, bytes: &[u8]) -> Result<(), FsError> {
        let _call = Call::enter();
        let (fs, file) = self.node();
        for piece in bytes.chunks(PIECE) {
            if thread::is_to_end() {
                return Err(FsError::Busy);
            }
            let end = fs.append(file, piece)?;
            *self.position.lock() = end;
        }
        Ok(())
    }

    /// Goes elsewhere; returns where that is, from the beginning.
    pub fn seek(&self, to: SeekFrom) -> Result<u64, FsError> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.metadata()?.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.lock().checked_add_signed(by),
        };
        let at = at.ok_or(FsError::FileTooLarge)?;
        *self.position.lock() = at;
        Ok(at)
    }

    /// Reads at `offset`; less than asked for only at the end.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, FsError> {
        let _call = Call::enter();
        self.check(self.options.read)?;
        let (fs, file) = self.node();
        fs.read_at(file, offset, bytes)
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<(), FsError> {
        let _call = Call::enter();
        self.check(self.options.can_write())?;
        let (fs, file) = self.node();
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            if thread::is_to_end() {
                // Nobody will see it: the call's end is the thread's.
                return Err(FsError::Busy);
            }
            fs.write_at(file, at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn node(&self) -> (&dyn FileSystem, FileId) {
        let Node { fs, file } = &self.open.node;
        (&**fs, *file)
    }

    fn check(&self, is_allowed: bool) -> Result<(), FsError> {
        match is_allowed {
            true => Ok(()),
            false => Err(FsError::NotOffered),
        }
    }

    /// Whether it was opened to be read, and to be written.
    pub(crate) fn access(&self) -> (bool, bool) {
        (self.options.read, self.options.write)
    }

    /// The file as maps show it.
    pub(crate) fn mappable(&self) -> Result<InUse, FsError> {
        let (fs, file) = self.node();
        fs.mappable(file, &self.open.path)
    }
}
