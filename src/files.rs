//! Files: what is mounted, and the commands that list, read, make and remove.

mod commands;
mod mounts;

use crate::arch::aarch64::{kernel_map, timer};
use crate::disk::{self, Disk, FindError};
use crate::driver::pl031;
use crate::fs::block::BlockDevice;
use crate::fs::blocking;
use crate::fs::cached::Cached;
use crate::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions};
use crate::fs::fat::Fat;
use crate::fs::signature;
use crate::fs::vfs::{Mount, Node, Vfs};
use crate::fs::{Cursor, DirectoryEntry, FileSystem, FsError, Timestamp};
use crate::mm::addr::PAGE_SIZE;
use crate::mm::{self, CACHE};
use crate::sync::{Mutex, SpinLock};
use crate::thread::{self, Role};
use crate::{kernel, println};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// All that is mounted on this machine.
pub static VFS: Vfs = Vfs::new();

/// How often what has changed is made durable without being asked.
const COMMIT_US: u64 = 5_000_000;

/// Seconds since 1970 at power-on; zero where no clock tells.
static POWER_ON: SpinLock<u64> = SpinLock::new(0);

/// Asks the machine's clock what time it is, if it has one.
fn set_clock() {
    let Some(clock) = kernel::board().clock else {
        return;
    };
    match kernel_map::map_device(clock, pl031::SIZE) {
        Ok(registers) => {
            let since_power_on = timer::ns_from_ticks(timer::now()) / 1_000_000_000;
            // SAFETY: just mapped, for good.
            let now = unsafe { pl031::seconds(registers) };
            *POWER_ON.lock() = now.saturating_sub(since_power_on);
        }
        Err(error) => println!("pinfold: the clock at {clock} cannot be read: {error:?}"),
    }
}

/// Whether [`now`] tells the time of day.
pub fn knows_time_of_day() -> bool {
    *POWER_ON.lock() != 0
}

/// The time of day, or where no clock tells, since power-on in 1970.
pub fn now() -> Timestamp {
    let ns = timer::ns_from_ticks(timer::now());
    Timestamp {
        seconds: (*POWER_ON.lock() + ns / 1_000_000_000) as i64,
        nanoseconds: (ns % 1_000_000_000) as u32,
    }
}

/// Why nothing was mounted.
pub enum MountError {
    /// No disk or partition is meant, or several are.
    Disk(FindError),
    /// What the file system says.
    Fs(FsError),
    /// Neither ext4 nor FAT, but this.
    Unknown(&'static str),
    /// It, or what it is on, or a part of it is mounted already: this.
    Mounted(Mount),
}

impl From<FindError> for MountError {
    fn from(error: FindError) -> Self {
        Self::Disk(error)
    }
}

impl From<FsError> for MountError {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Fs(error) => error.fmt(f),
            Self::Unknown(what) => write!(f, "neither ext4 nor FAT; it looks like {what}"),
            Self::Mounted(Mount { source, path, .. }) => write!(
                f,
                "{} is mounted on {}",
                source.escape_ascii(),
                path.escape_ascii()
            ),
        }
    }
}

/// Held while something is mounted: no disk twice at once.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Mounts what is on the disk or partition that is [called](disk::find) `what` on `path`, ext4 or FAT, and says what there is to say.
pub fn mount(what: &str, path: &str, access: Access) -> Result<(), MountError> {
    let disk = disk::find(what)?;
    let Disk { name, device, .. } = &disk;
    let _mounting = MOUNTING.lock();
    check_not_mounted(&disk)?;
    VFS.mount(path.as_bytes(), name.as_bytes(), || {
        match mount_ext4(name, device.clone(), access) {
            Err(error) if error.is_another_format() => match mount_fat(device.clone(), access) {
                Err(FsError::UnknownFormat) => Err(MountError::Unknown(looks_like(&**device)?)),
                mounted => Ok(mounted?),
            },
            mounted => Ok(mounted?),
        }
    })
}

/// Neither the disk, nor what it is on, nor what is on it is mounted: two who write know nothing of each other.
fn check_not_mounted(disk: &Disk) -> Result<(), MountError> {
    let disks = disk::list();
    for mount in VFS.mounts() {
        let source = disks.iter().find(|d| d.name.as_bytes() == mount.source);
        let is_same = source.is_some_and(|source| {
            source.name == disk.name
                || source.parent.as_ref() == Some(&disk.name)
                || disk.parent.as_ref() == Some(&source.name)
        });
        if is_same {
            return Err(MountError::Mounted(mount));
        }
    }
    Ok(())
}

/// What is on a disk that cannot be mounted.
fn looks_like(device: &dyn BlockDevice) -> Result<&'static str, FsError> {
    let len = device
        .properties()
        .capacity
        .min(signature::LOOKED_AT as u64);
    Ok(signature::name(&blocking::read(device, 0, len as usize)?))
}

fn mount_ext4(
    name: &str,
    device: Arc<dyn BlockDevice>,
    access: Access,
) -> Result<Arc<dyn FileSystem>, FsError> {
    let options = MountOptions {
        access,
        clock: now,
        limits: MetadataLimits::for_memory(mm::FRAMES.counts().total * PAGE_SIZE as u64),
    };
    let mounted = Ext4::mount(device, options)?;
    if let Some(recovered) = mounted.recovered {
        println!("pinfold: {name}: the journal was replayed: {recovered:?}");
    }
    if let Some(reason) = mounted.read_only {
        println!("pinfold: {name} is read-only: {reason:?}");
    }
    if !mounted.has_flush && mounted.read_only.is_none() {
        log::debug!("{name} has no flush command: what it acknowledges may be lost with its power");
    }
    Ok(Arc::new(Cached::new(Arc::new(mounted.file_system), &CACHE)))
}

/// A FAT volume: the firmware's partition of a card. Its files are read and written, not mapped.
fn mount_fat(device: Arc<dyn BlockDevice>, access: Access) -> Result<Arc<dyn FileSystem>, FsError> {
    let fat = Fat::mount(device, access == Access::ReadOnly, now).map_err(|error| match error {
        FsError::Corrupt(_) | FsError::Unsupported(_) => FsError::UnknownFormat,
        error => error,
    })?;
    Ok(Arc::new(fat))
}

/// Mounts the root: the disk or partition `root` names, else the first on which there is an ext4 file system.
pub fn init(root: Option<&str>) {
    set_clock();
    let disks = disk::list();
    match root {
        // An ext4 file system, unless it is asked for by name.
        Some(name) => {
            if let Err(error) = mount(name, "/", Access::ReadWrite) {
                println!("pinfold: root={name}: {error}");
            }
        }
        None => {
            let mut others = Vec::new();
            for disk in &disks {
                let access = Access::ReadWrite;
                let mounted = VFS.mount(b"/", disk.name.as_bytes(), || {
                    mount_ext4(&disk.name, disk.device.clone(), access)
                });
                match mounted {
                    Ok(()) => break,
                    Err(error) => others.push((disk, error)),
                }
            }
            if VFS.mounts().is_empty() {
                // A disk with partitions has nothing else on it.
                let is_whole = |name: &str| disks.iter().all(|d| d.parent.as_deref() != Some(name));
                others.retain(|(disk, _)| is_whole(&disk.name));
                for (disk, error) in others {
                    say_why_not(disk, error);
                }
            }
        }
    }
    if VFS.mounts().is_empty() {
        return;
    }
    if let Err(error) = thread::spawn("commit", Role::Kernel, commit) {
        println!("pinfold: changes are made durable only on demand: {error}");
    }
}

/// Says why a disk is not the root.
fn say_why_not(Disk { name, device, .. }: &Disk, error: FsError) {
    let is_another = error.is_another_format();
    if is_another && mount_fat(device.clone(), Access::ReadOnly).is_ok() {
        println!("pinfold: {name} is not mounted: it is FAT; `mount {name} /` mounts it");
        return;
    }
    let looks = if is_another {
        looks_like(&**device)
    } else {
        Err(error)
    };
    match looks {
        Ok(what) => println!("pinfold: {name} is not mounted: no ext4; it looks like {what}"),
        Err(error) => println!("pinfold: {name} is not mounted: {error}"),
    }
}

/// What is in a directory but `.` and `..`, by name.
pub(crate) fn entries(directory: &Node) -> Result<Vec<DirectoryEntry>, FsError> {
    let mut cursor = Cursor::default();
    let mut all = Vec::new();
    loop {
        let some = directory.fs.read_directory(directory.file, &mut cursor)?;
        if some.is_empty() {
            break;
        }
        all.extend(
            some.into_iter()
                .filter(|e| e.name != b"." && e.name != b".."),
        );
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn commit() {
    let mut is_failing = false;
    let mut committed = timer::now();
    loop {
        // Memory is short, or much of it dirty, or a file has lost its last user: that does not wait for the next time.
        let result = if CACHE.wait_for_pressure(COMMIT_US)
            && timer::now() - committed < timer::ticks_from_us(COMMIT_US)
        {
            CACHE.write_back(None)
        } else {
            committed = timer::now();
            VFS.sync()
        };
        let result = result.and(CACHE.tidy());
        if let (Err(error), false) = (&result, is_failing) {
            println!("pinfold: changes cannot be made durable: {error}");
        }
        is_failing = result.is_err();
    }
}

/// Makes everything durable and unmounts it, as the machine ends; `false` where something failed, which was told.
pub fn shut_down() -> bool {
    if let Err(error) = mm::maps().unmap_files() {
        println!("pinfold: files stay mapped: {error}");
    }
    let errors = VFS.unmount_all();
    for (path, error) in &errors {
        println!("pinfold: {}: not unmounted: {error}", path.escape_ascii());
    }
    errors.is_empty()
}
