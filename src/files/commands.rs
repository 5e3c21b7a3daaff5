//! The commands about files. They say what went wrong with which path, go on with the next, and fail at the end.

use super::{VFS, mount};
use crate::command::{COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::disk::{self, Disk};
use crate::fs::block::BlockError;
use crate::fs::ext4::{Access, SuperblockInfo};
use crate::fs::vfs::{LastLink, Node};
use crate::fs::{Attributes, Cursor, DirectoryEntry, FileKind, FileSystem, FsError, Timestamp};
use crate::shell::usage;
use crate::{console, print, println};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use linkme::distributed_slice;
use sha2::{Digest, Sha256};

/// Bytes read or written at a time.
const PIECE: usize = 128 << 10;

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

command!(LS, "ls", "[-l] [PATH...]", "list directories", ls);
command!(CAT, "cat", "PATH...", "print files", cat);
command!(STAT, "stat", "PATH...", "what is known about files", stat);
command!(
    SUM,
    "sum",
    "PATH...",
    "SHA-256 of files, as sha256sum prints it",
    sum
);
command!(CP, "cp", "FROM TO", "copy a file", cp);
command!(
    MV,
    "mv",
    "FROM TO",
    "rename or move, over what is there",
    mv
);
command!(RM, "rm", "PATH...", "remove files", rm);
command!(
    LN,
    "ln",
    "[-s] TARGET NAME",
    "give a file another name, or make a symbolic link",
    ln
);
command!(MKDIR, "mkdir", "PATH...", "make directories", mkdir);
command!(RMDIR, "rmdir", "PATH...", "remove empty directories", rmdir);
command!(
    TRUNCATE,
    "truncate",
    "PATH SIZE",
    "cut a file or let it grow with zeros; makes it if need be",
    truncate
);
command!(
    WRITE,
    "write",
    "PATH TEXT...",
    "replace a file by a line of text",
    write
);
command!(DF, "df", "", "how full the file systems are", df);
command!(
    TRIM,
    "trim",
    "[PATH...]",
    "tell disks what is free: of the file systems that hold PATHs, or of all",
    trim
);
command!(SYNC, "sync", "", "make everything durable", sync);
command!(
    MOUNT,
    "mount",
    "[-r] [DISK PATH]",
    "mount a disk, read-only with -r; without arguments, what is mounted",
    mount_command
);
command!(
    UMOUNT,
    "umount",
    "PATH",
    "unmount, making everything durable first",
    umount
);

command!(
    FSCK_INFO,
    "fsck-info",
    "[DISK]",
    "the superblock of an ext4 file system, mounted or not, in words",
    fsck_info
);

/// Does `f` for each path; what fails is told and makes the command fail, but not stop.
fn for_each(command: &str, paths: &[&str], f: impl Fn(&str) -> Result<(), FsError>) -> Status {
    if paths.is_empty() {
        return usage(command);
    }
    let mut status = SUCCESS;
    for path in paths {
        if let Err(error) = f(path) {
            println!("{command}: {path}: {error}");
            status = FAILURE;
        }
    }
    status
}

fn told(command: &str, path: &str, result: Result<(), FsError>) -> Status {
    match result {
        Ok(()) => SUCCESS,
        Err(error) => {
            println!("{command}: {path}: {error}");
            FAILURE
        }
    }
}

fn resolve(path: &str) -> Result<Node, FsError> {
    VFS.resolve(path.as_bytes(), LastLink::Follow)
}

fn resolve_parent(path: &str) -> Result<(Node, Vec<u8>), FsError> {
    VFS.resolve_parent(path.as_bytes())
}

fn kind_letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    }
}

/// `drwxr-xr-x`, without the bits that mean nothing here.
struct Mode(Attributes);

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", kind_letter(self.0.kind))?;
        for shift in [6, 3, 0] {
            let bits = self.0.permissions >> shift;
            for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
                write!(f, "{}", if bits & bit != 0 { letter } else { '-' })?;
            }
        }
        Ok(())
    }
}

/// Seconds since 1970 as a date and time in UTC (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
struct Date(Timestamp);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.seconds;
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Days since the first of March of year 0, in eras of 400 years.
        let days = days + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (
            day - (153 * month + 2) / 5 + 1,
            if month < 10 { month + 3 } else { month - 9 },
        );
        let year = year + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
        )
    }
}

fn entries(directory: &Node) -> Result<Vec<DirectoryEntry>, FsError> {
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

fn ls(arguments: &[&str]) -> Status {
    let (is_long, paths) = match arguments {
        ["-l", paths @ ..] => (true, paths),
        paths => (false, paths),
    };
    let paths = if paths.is_empty() { &["/"] } else { paths };
    let has_many = paths.len() > 1;
    for_each("ls", paths, |path| {
        let node = resolve(path)?;
        if node.fs.attributes(node.file)?.kind != FileKind::Directory {
            return print_entry(&node, path.as_bytes(), is_long);
        }
        if has_many {
            println!("{path}:");
        }
        for entry in entries(&node)? {
            print_entry(&node.beside(entry.file), &entry.name, is_long)?;
        }
        Ok(())
    })
}

fn print_entry(node: &Node, name: &[u8], is_long: bool) -> Result<(), FsError> {
    let attributes = node.fs.attributes(node.file)?;
    let name = name.escape_ascii();
    if !is_long {
        let slash = if attributes.kind == FileKind::Directory {
            "/"
        } else {
            ""
        };
        println!("{name}{slash}");
        return Ok(());
    }
    print!(
        "{} {:>3} {:>12} {} {name}",
        Mode(attributes),
        attributes.links,
        attributes.size,
        Date(attributes.modified),
    );
    if attributes.kind == FileKind::Symlink {
        print!(" -> {}", node.fs.read_link(node.file)?.escape_ascii());
    }
    println!();
    Ok(())
}

/// Hands all bytes of a file to `f`, a piece at a time.
fn read_all(path: &str, mut f: impl FnMut(&[u8]) -> Result<(), FsError>) -> Result<(), FsError> {
    let node = resolve(path)?;
    match node.fs.attributes(node.file)?.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(FsError::IsADirectory),
        _ => return Err(FsError::NotAFile),
    }
    node.fs.open(node.file)?;
    let mut bytes = alloc::vec![0; PIECE];
    let mut offset = 0;
    let result = loop {
        match node.fs.read_at(node.file, offset, &mut bytes) {
            Ok(0) => break Ok(()),
            Ok(len) => {
                if let Err(error) = f(&bytes[..len]) {
                    break Err(error);
                }
                offset += len as u64;
            }
            Err(error) => break Err(error),
        }
    };
    result.and(node.fs.close(node.file))
}

fn cat(arguments: &[&str]) -> Status {
    for_each("cat", arguments, |path| {
        read_all(path, |bytes| {
            console::write_bytes(bytes);
            Ok(())
        })
    })
}

fn sum(arguments: &[&str]) -> Status {
    for_each("sum", arguments, |path| {
        let mut hash = Sha256::new();
        read_all(path, |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        for byte in hash.finalize() {
            print!("{byte:02x}");
        }
        println!("  {path}");
        Ok(())
    })
}

fn stat(arguments: &[&str]) -> Status {
    for_each("stat", arguments, |path| {
        let node = VFS.resolve(path.as_bytes(), LastLink::Keep)?;
        let attributes = node.fs.attributes(node.file)?;
        println!("path        {path}");
        println!("kind        {:?}, {}", attributes.kind, Mode(attributes));
        if attributes.kind == FileKind::Symlink {
            println!(
                "target      {}",
                node.fs.read_link(node.file)?.escape_ascii()
            );
        }
        println!("inode       {}, {} names", node.file.0, attributes.links);
        println!(
            "size        {} bytes, {} on the medium",
            attributes.size, attributes.allocated
        );
        println!("owner       {}:{}", attributes.owner.0, attributes.owner.1);
        println!("modified    {}", Date(attributes.modified));
        println!("changed     {}", Date(attributes.changed));
        println!("accessed    {}", Date(attributes.accessed));
        if attributes.kind == FileKind::File {
            let extents = node.fs.map(node.file, 0, attributes.size)?;
            println!("extents     {}", extents.len());
        }
        Ok(())
    })
}

/// The path, or where it is a directory, the name of `from` in it.
fn destination(from: &str, to: &str) -> Result<(Node, Vec<u8>), FsError> {
    if let Ok(node) = resolve(to)
        && node.fs.attributes(node.file)?.kind == FileKind::Directory
    {
        let (_, name) = resolve_parent(from)?;
        return Ok((node, name));
    }
    resolve_parent(to)
}

/// The regular file of that name, emptied, or a new one.
fn create(directory: &Node, name: &[u8], permissions: u16) -> Result<Node, FsError> {
    let file = match directory
        .fs
        .create(directory.file, name, FileKind::File, permissions)
    {
        Err(FsError::Exists) => {
            let file = directory.fs.lookup(directory.file, name)?;
            directory.fs.set_len(file, 0)?;
            file
        }
        result => result?,
    };
    Ok(directory.beside(file))
}

fn cp(arguments: &[&str]) -> Status {
    let [from, to] = arguments else {
        return usage("cp");
    };
    let copy = || {
        let source = resolve(from)?;
        let attributes = source.fs.attributes(source.file)?;
        let (directory, name) = destination(from, to)?;
        if directory.is_beside(&source)
            && directory.fs.lookup(directory.file, &name) == Ok(source.file)
        {
            return Err(FsError::Exists);
        }
        let copy = create(&directory, &name, attributes.permissions)?;
        let mut offset = 0;
        read_all(from, |bytes| {
            copy.fs.write_at(copy.file, offset, bytes)?;
            offset += bytes.len() as u64;
            Ok(())
        })
    };
    told("cp", from, copy())
}

fn mv(arguments: &[&str]) -> Status {
    let [from, to] = arguments else {
        return usage("mv");
    };
    let rename = || {
        let (old, old_name) = resolve_parent(from)?;
        let (new, new_name) = destination(from, to)?;
        if !old.is_beside(&new) {
            return Err(FsError::CrossDevice);
        }
        old.fs.rename(old.file, &old_name, new.file, &new_name)
    };
    told("mv", from, rename())
}

fn rm(arguments: &[&str]) -> Status {
    for_each("rm", arguments, |path| {
        let (directory, name) = resolve_parent(path)?;
        directory.fs.unlink(directory.file, &name)
    })
}

fn ln(arguments: &[&str]) -> Status {
    match arguments {
        ["-s", target, name] => told("ln", name, {
            resolve_parent(name).and_then(|(directory, name)| {
                directory
                    .fs
                    .symlink(directory.file, &name, target.as_bytes())
                    .map(drop)
            })
        }),
        [target, name] => {
            let link = || {
                let file = VFS.resolve(target.as_bytes(), LastLink::Keep)?;
                let (directory, new_name) = destination(target, name)?;
                if !file.is_beside(&directory) {
                    return Err(FsError::CrossDevice);
                }
                file.fs.link(file.file, directory.file, &new_name)
            };
            told("ln", target, link())
        }
        _ => usage("ln"),
    }
}

fn mkdir(arguments: &[&str]) -> Status {
    for_each("mkdir", arguments, |path| {
        let (directory, name) = resolve_parent(path)?;
        let kind = FileKind::Directory;
        directory
            .fs
            .create(directory.file, &name, kind, 0o755)
            .map(drop)
    })
}

fn rmdir(arguments: &[&str]) -> Status {
    for_each("rmdir", arguments, |path| {
        let (directory, name) = resolve_parent(path)?;
        directory.fs.remove_directory(directory.file, &name)
    })
}

fn truncate(arguments: &[&str]) -> Status {
    let [path, size] = arguments else {
        return usage("truncate");
    };
    let Some(size) = parse_size(size) else {
        println!(
            "truncate: \"{size}\" is no size: a number of bytes, perhaps with K, M or G behind it"
        );
        return USAGE;
    };
    let cut = || {
        let node = match resolve(path) {
            Err(FsError::NotFound) => {
                let (directory, name) = resolve_parent(path)?;
                create(&directory, &name, 0o644)?
            }
            result => result?,
        };
        node.fs.set_len(node.file, size)
    };
    told("truncate", path, cut())
}

/// Bytes, perhaps with a binary unit: `4096`, `64K`, `2M`, `1G`.
fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn write(arguments: &[&str]) -> Status {
    let [path, text @ ..] = arguments else {
        return usage("write");
    };
    let put = || {
        let (directory, name) = resolve_parent(path)?;
        let node = create(&directory, &name, 0o644)?;
        let mut line: String = text.join(" ");
        line.push('\n');
        node.fs.write_at(node.file, 0, line.as_bytes())
    };
    told("write", path, put())
}

fn df(arguments: &[&str]) -> Status {
    if !arguments.is_empty() {
        return usage("df");
    }
    println!(
        "{:10} {:>12} {:>12} {:>12} {:>10}  MOUNTED ON",
        "DISK", "KiB", "USED", "FREE", "FREE FILES"
    );
    let mut status = SUCCESS;
    for mount in VFS.mounts() {
        let (source, path) = (mount.source.escape_ascii(), mount.path.escape_ascii());
        match mount.fs.statistics() {
            Ok(s) => {
                let kib = |blocks: u64| (u128::from(blocks) * u128::from(s.block_size)) >> 10;
                let (all, free) = (kib(s.blocks), kib(s.free_blocks));
                let source = alloc::format!("{source}");
                println!(
                    "{source:10} {all:>12} {:>12} {free:>12} {:>10}  {path}",
                    all - free,
                    s.free_inodes
                );
            }
            Err(error) => {
                println!("df: {path}: {error}");
                status = FAILURE;
            }
        }
    }
    status
}

fn trim(arguments: &[&str]) -> Status {
    let trim = |path: &str, fs: &dyn FileSystem| {
        let bytes = fs.trim()?;
        println!("{path}: {} KiB discarded", bytes >> 10);
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
    let (access, disk, path) = match arguments {
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
        ["-r", disk, path] => (Access::ReadOnly, disk, path),
        [disk, path] => (Access::ReadWrite, disk, path),
        _ => return usage("mount"),
    };
    match mount(disk, path, access) {
        Ok(()) => SUCCESS,
        Err(error) => {
            println!("mount: {disk}: {error}");
            FAILURE
        }
    }
}

fn umount(arguments: &[&str]) -> Status {
    let [path] = arguments else {
        return usage("umount");
    };
    told("umount", path, VFS.unmount(path.as_bytes()))
}

fn fsck_info(arguments: &[&str]) -> Status {
    let has_ext4 = |disk: &Disk| SuperblockInfo::read(&*disk.device).is_ok();
    let found = match arguments {
        [] => disk::list().into_iter().find(has_ext4).ok_or_else(|| {
            println!("fsck-info: no disk has an ext4 file system");
        }),
        [what] => disk::find(what).map_err(|error| println!("fsck-info: {what}: {error}")),
        _ => return usage("fsck-info"),
    };
    let Ok(disk) = found else { return FAILURE };
    let read = SuperblockInfo::read(&*disk.device).map(|info| {
        println!("disk               {}", disk.name);
        print!("{info}");
    });
    told("fsck-info", &disk.name, read)
}
