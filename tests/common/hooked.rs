//! A file system that lets others run before or after a call: the one moment that matters.

use super::machine::Machine;
use pinfold::fs::block::BlockDevice;
use pinfold::fs::cached::Cached;
use pinfold::fs::error::ReadOnlyReason;
use pinfold::fs::{
    Attributes, Cursor, DirectoryEntry, Extent, FileId, FileKind, FileSystem, FsError, Reservation,
    Statistics, Timestamp,
};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

type Then = Box<dyn FnOnce() + Send>;

/// What is called goes on to another file system.
pub struct Hooked {
    inner: Arc<dyn FileSystem>,
    hooks: Mutex<Vec<(&'static str, Then)>>,
}

impl Hooked {
    /// In front of a file system.
    pub fn new(inner: Arc<dyn FileSystem>) -> Self {
        Self {
            inner,
            hooks: Mutex::new(Vec::new()),
        }
    }

    /// Runs `then` once at the next `call`, such as `before map`, `after map`.
    pub fn on(&self, call: &'static str, then: impl FnOnce() + Send + 'static) {
        self.hooks.lock().unwrap().push((call, Box::new(then)));
    }

    fn run(&self, call: &str) {
        let mut hooks = self.hooks.lock().unwrap();
        let at = hooks.iter().position(|(name, _)| *name == call);
        let then = at.map(|at| hooks.remove(at).1);
        drop(hooks);
        if let Some(then) = then {
            then();
        }
    }
}

macro_rules! hooked {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        impl FileSystem for Hooked {
            $(fn $name(&self, $($argument: $type),*) -> $result {
                self.run(concat!("before ", stringify!($name)));
                let result = self.inner.$name($($argument),*);
                self.run(concat!("after ", stringify!($name)));
                result
            })*
        }
    };
}

hooked! {
    root() -> FileId;
    statistics() -> Result<Statistics, FsError>;
    device() -> Option<Arc<dyn BlockDevice>>;
    read_only() -> Option<ReadOnlyReason>;
    attributes(file: FileId) -> Result<Attributes, FsError>;
    lookup(directory: FileId, name: &[u8]) -> Result<FileId, FsError>;
    read_directory(directory: FileId, cursor: &mut Cursor) -> Result<Vec<DirectoryEntry>, FsError>;
    read_link(link: FileId) -> Result<Vec<u8>, FsError>;
    open(file: FileId) -> Result<(), FsError>;
    close(file: FileId) -> Result<(), FsError>;
    read_at(file: FileId, offset: u64, bytes: &mut [u8]) -> Result<usize, FsError>;
    write_at(file: FileId, offset: u64, bytes: &[u8]) -> Result<(), FsError>;
    set_len(file: FileId, len: u64) -> Result<(), FsError>;
    set_permissions(file: FileId, permissions: u16) -> Result<(), FsError>;
    set_times(file: FileId, accessed: Timestamp, modified: Timestamp) -> Result<(), FsError>;
    create(directory: FileId, name: &[u8], kind: FileKind, permissions: u16) -> Result<FileId, FsError>;
    symlink(directory: FileId, name: &[u8], target: &[u8]) -> Result<FileId, FsError>;
    link(file: FileId, directory: FileId, name: &[u8]) -> Result<(), FsError>;
    unlink(directory: FileId, name: &[u8]) -> Result<Option<FileId>, FsError>;
    remove_directory(directory: FileId, name: &[u8]) -> Result<(), FsError>;
    rename(from: FileId, name: &[u8], to: FileId, new_name: &[u8]) -> Result<Option<FileId>, FsError>;
    map(file: FileId, offset: u64, len: u64) -> Result<Vec<Extent>, FsError>;
    reserve(file: FileId, offset: u64, len: u64) -> Result<Reservation, FsError>;
    release(reservation: Reservation) -> ();
    allocate(file: FileId, offset: u64, len: u64, promise: &mut Reservation) -> Result<Vec<Extent>, FsError>;
    written(file: FileId, offset: u64, len: u64, size: u64) -> Result<(), FsError>;
    truncate_prepare(file: FileId, size: u64) -> Result<(), FsError>;
    sync_file(file: FileId) -> Result<(), FsError>;
    sync_data(file: FileId) -> Result<(), FsError>;
    sync() -> Result<(), FsError>;
    trim() -> Result<u64, FsError>;
    unmount() -> Result<(), FsError>;
}

/// A machine on which others run at chosen calls of the file system.
pub fn hooked(options: &[&str]) -> (Machine, Arc<Hooked>) {
    hook(Machine::new(1, 16 << 20, options))
}

pub fn hook(machine: Machine) -> (Machine, Arc<Hooked>) {
    let hooked = Arc::new(Hooked::new(machine.beneath.clone()));
    let fs = Arc::new(Cached::new(hooked.clone(), machine.cache));
    (Machine { fs, ..machine }, hooked)
}

/// A thread that one hook starts, and the test waits for.
pub type Started = Arc<Mutex<Option<JoinHandle<()>>>>;

pub fn join(thread: &Started) {
    thread.lock().unwrap().take().unwrap().join().unwrap();
}
