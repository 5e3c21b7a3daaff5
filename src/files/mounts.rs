//! The commands about file systems: what is mounted where, how full it is, what its superblock says.

use super::commands::{for_each, told};
use super::{VFS, mount};
use crate::command::{self, COMMANDS, Command, FAILURE, SUCCESS, Status};
use crate::console::complain;
use crate::disk::{self, Disk};
use crate::fs::block::BlockError;
use crate::fs::ext4::{Access, SuperblockInfo};
use crate::fs::vfs::LastLink;
use crate::fs::{FileSystem, FsError};
use crate::mm::addr::VirtAddr;
use crate::mm::maps;
use crate::shell::usage;
use crate::size::{self, Size, Unit};
use crate::{print, println};
use alloc::string::{String, ToString};
use linkme::distributed_slice;

macro_rules! command {
    ($static:ident, $name:literal, $arguments:literal, $summary:literal, $run:path) => {
        #[distributed_slice(COMMANDS)]
        static $static: Command = Command {
            name: $name,
            arguments: $arguments,
            summary: $summary,
            run: $run,
        };
    };
}

command!(
    DF,
    "df",
    "[-b]",
    "how full the file systems are\n\nFREE is what can be had: some blocks are held back, or promised.\n-b  in bytes\nExample: df",
    df
);
command!(
    SYNC,
    "sync",
    "",
    "make everything durable\n\n\
        Without it that happens every few seconds, and when the machine ends.\n\
        Example: sync",
    sync
);
command!(
    TRIM,
    "trim",
    "[PATH...]",
    "tell disks what is free: of the file systems that hold PATHs, or of all\n\n\
        A disk that takes discards may forget what was there.\n\
        Example: trim /",
    trim
);
command!(
    MOUNT,
    "mount",
    "[-r] [DISK PATH]",
    "mount a disk; without arguments, say what is mounted\n\n\
        DISK is a name that `disks` shows, or LABEL=, UUID=, PARTLABEL= or PARTUUID=\n\
        and a value.\n\
        -r  read-only\n\
        Example: mount vdb /mnt",
    mount_command
);
command!(
    UMOUNT,
    "umount",
    "PATH",
    "unmount, making everything durable first\n\nExample: umount /mnt",
    umount
);

command!(
    FSCK_INFO,
    "fsck-info",
    "[DISK]",
    "the superblock of an ext4 file system, mounted or not, in words\n\n\
        Of the first disk that has one, if DISK is not said.\n\
        Example: fsck-info vda",
    fsck_info
);

fn df(arguments: &[&str]) -> Status {
    let unit = match command::options(arguments, "b") {
        Ok((options, [])) => size::unit(&options),
        _ => return usage("df"),
    };
    println!(
        "{:12} {:>14} {:>14} {:>14} {:>10}  ON",
        "DISK", "SIZE", "USED", "FREE", "FREE FILES"
    );
    let mut status = SUCCESS;
    for mount in VFS.mounts() {
        let (source, path) = (mount.source.escape_ascii(), mount.path.escape_ascii());
        match mount.fs.statistics() {
            Ok(s) => {
                let size = |blocks: u64| Size(blocks.saturating_mul(u64::from(s.block_size)), unit);
                let source = alloc::format!("{source}");
                println!(
                    "{source:12} {:>14} {:>14} {:>14} {:>10}  {path}",
                    size(s.blocks),
                    size(s.blocks.saturating_sub(s.free_blocks)),
                    size(s.available_blocks),
                    s.free_inodes
                );
            }
            Err(error) => {
                complain(format_args!("df: {path}: {error}"));
                status = FAILURE;
            }
        }
    }
    status
}

fn trim(arguments: &[&str]) -> Status {
    let trim = |path: &str, fs: &dyn FileSystem| {
        let bytes = fs.trim()?;
        println!("{path}: {} discarded", Size(bytes, Unit::Human));
        Ok(())
    };
    if arguments.is_empty() {
        // All that can: a file system or disk that knows no discarding has nothing to do.
        let mut status = SUCCESS;
        for mount in VFS.mounts() {
            let path = mount.path.escape_ascii().to_string();
            match trim(&path, &*mount.fs) {
                Err(FsError::NotOffered | FsError::Block(BlockError::Unsupported)) => {}
                result => status = status.max(told("trim", &path, result)),
            }
        }
        return status;
    }
    for_each("trim", arguments, |path| {
        let node = VFS.resolve(path.as_bytes(), LastLink::Follow)?;
        trim(path, &*node.fs)
    })
}

fn sync(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return usage("sync");
    }
    told("sync", "/", VFS.sync())
}

fn mount_command(arguments: &[&str]) -> Status {
    let Ok((options, arguments)) = command::options(arguments, "r") else {
        return usage("mount");
    };
    let access = match options.contains('r') {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let (disk, path) = match arguments {
        [] => {
            for mount in VFS.mounts() {
                println!(
                    "{} on {}",
                    mount.source.escape_ascii(),
                    mount.path.escape_ascii()
                );
            }
            return SUCCESS;
        }
        [disk, path] => (disk, path),
        _ => return usage("mount"),
    };
    match mount(disk, path, access) {
        Ok(()) => SUCCESS,
        Err(error) => {
            complain(format_args!("mount: {disk}: {error}"));
            FAILURE
        }
    }
}

fn umount(arguments: &[&str]) -> Status {
    let [path] = arguments else {
        return usage("umount");
    };
    match VFS.unmount(path.as_bytes()) {
        Err(FsError::Busy) => {
            match user(path) {
                Some(by) => complain(format_args!("umount: {path}: {by}")),
                None => complain(format_args!("umount: {path}: {}", FsError::Busy)),
            }
            FAILURE
        }
        result => told("umount", path, result),
    }
}

/// Who uses what is mounted on `path`, as far as paths tell: what is mounted in it, or a map of a file.
fn user(path: &str) -> Option<String> {
    let folder = alloc::format!("{}/", path.trim_end_matches('/'));
    let is_in = |other: &[u8]| other.len() > folder.len() && other.starts_with(folder.as_bytes());
    if let Some(mount) = VFS.mounts().into_iter().find(|mount| is_in(&mount.path)) {
        let (source, path) = (mount.source.escape_ascii(), mount.path.escape_ascii());
        return Some(alloc::format!("in use: {source} is mounted on {path}"));
    }
    let mut at = VirtAddr(0);
    while let Some(object) = maps().next_map(at) {
        at = object.pages().end.start();
        if let Some(map) = object.file()
            && is_in(map.file.name().as_bytes())
        {
            let (name, start) = (map.file.name(), object.pages().start.start());
            return Some(alloc::format!("in use: {name} is mapped at {start}"));
        }
    }
    None
}

fn fsck_info(arguments: &[&str]) -> Status {
    let has_ext4 = |disk: &Disk| SuperblockInfo::read(&*disk.device).is_ok();
    let found = match arguments {
        [] => disk::list().into_iter().find(has_ext4).ok_or_else(|| {
            complain(format_args!("fsck-info: no disk has an ext4 file system"));
        }),
        [what] => {
            disk::find(what).map_err(|error| complain(format_args!("fsck-info: {what}: {error}")))
        }
        _ => return usage("fsck-info"),
    };
    let Ok(disk) = found else { return FAILURE };
    let name = &disk.name;
    let read = match SuperblockInfo::read(&*disk.device) {
        Err(error) if error.is_another_format() => {
            complain(format_args!("fsck-info: {name}: no ext4 file system"));
            return FAILURE;
        }
        read => read,
    };
    let told_of = read.map(|info| {
        println!("disk               {name}");
        print!("{info}");
    });
    told("fsck-info", name, told_of)
}
