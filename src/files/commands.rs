//! The commands about files. They say what went wrong with which path, go on with the next, and fail at the end.

use super::{VFS, entries};
use crate::command::{self, COMMANDS, Command, FAILURE, INTERRUPTED, SUCCESS, Status, USAGE};
use crate::console::{self, Style, Styled, complain, is_interrupted};
use crate::fs::vfs::{LastLink, Node};
use crate::fs::{Attributes, Backing, FileKind, FsError, Timestamp};
use crate::program::fs::create_dir_all;
use crate::progress::Progress;
use crate::shell::{self, usage};
use crate::size::{self, Count, Size, Unit};
use crate::{print, println};
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

command!(
    LS,
    "ls",
    "[-lb] [PATH...]",
    "list directories\n\n\
        -l  mode, names, size and time of change, too\n\
        -b  sizes in bytes\n\
        Example: ls -l /",
    ls
);
command!(
    CAT,
    "cat",
    "PATH...",
    "print files\n\n\
        Through a pipe they come out byte for byte: ./qemu.sh \"cat /big\" >copy\n\
        Example: cat /docs/start.md",
    cat
);
command!(
    STAT,
    "stat",
    "PATH...",
    "what is known about files\n\nExample: stat /big",
    stat
);
command!(
    SUM,
    "sum",
    "PATH...",
    "SHA-256 of files, as sha256sum prints it\n\n\
        They are read; `mapsum` maps them.\n\
        Example: sum /big",
    sum
);
command!(
    CP,
    "cp",
    "FROM TO",
    "copy a file\n\nTO may be a directory.\nExample: cp /docs/start.md /copy.md",
    cp
);
command!(
    MV,
    "mv",
    "FROM TO",
    "rename or move, over what is there\n\nTO may be a directory.\nExample: mv /copy.md /docs",
    mv
);
command!(
    RM,
    "rm",
    "[-r] PATH...",
    "remove files\n\n-r  directories, too, with all that is in them\nExample: rm /copy.md",
    rm
);
command!(
    LN,
    "ln",
    "[-s] TARGET NAME",
    "give a file another name, or make a symbolic link\n\n\
        -s  a symbolic link\n\
        NAME may be a directory.\nExample: ln -s /docs/start.md /start",
    ln
);
command!(
    MKDIR,
    "mkdir",
    "[-p] PATH...",
    "make directories\n\n\
        -p  those above, too, and be content with what is there\n\
        Example: mkdir /mine",
    mkdir
);
command!(
    RMDIR,
    "rmdir",
    "PATH...",
    "remove empty directories\n\nExample: rmdir /mine",
    rmdir
);
command!(
    TRUNCATE,
    "truncate",
    "PATH SIZE",
    "cut a file or let it grow with zeros; makes it if need be\n\n\
        SIZE is in bytes, or with K, M, G or T behind it.\n\
        Example: truncate /hole 64M",
    truncate
);
command!(
    WRITE,
    "write",
    "PATH TEXT...",
    "replace a file by a line of text\n\nExample: write /note remember the milk",
    write
);

/// Why a command did not do all that it should.
pub(super) enum Stop {
    Failed(FsError),
    /// With another path than the one that it was given first.
    FailedAt(String, FsError),
    /// It cannot be, for this reason.
    Refused(&'static str),
    /// By Ctrl-C.
    Interrupted,
}

impl Stop {
    /// Says that it was `path` with which something failed.
    fn at(path: &str) -> impl Fn(FsError) -> Self {
        move |error| Self::FailedAt(path.to_string(), error)
    }
}

impl From<FsError> for Stop {
    fn from(error: FsError) -> Self {
        Self::Failed(error)
    }
}

/// An error once Ctrl-C was typed; for loops that take long.
fn go_on() -> Result<(), Stop> {
    match is_interrupted() {
        true => Err(Stop::Interrupted),
        false => Ok(()),
    }
}

/// Does `f` for each path; what fails is told and makes the command fail, but not stop. Ctrl-C stops it.
pub(super) fn for_each<E: Into<Stop>>(
    command: &str,
    paths: &[&str],
    f: impl Fn(&str) -> Result<(), E>,
) -> Status {
    if paths.is_empty() {
        return usage(command);
    }
    let mut status = SUCCESS;
    for path in paths {
        match told(command, path, f(path)) {
            SUCCESS => {}
            INTERRUPTED => return INTERRUPTED,
            failure => status = failure,
        }
    }
    status
}

pub(super) fn told(command: &str, path: &str, result: Result<(), impl Into<Stop>>) -> Status {
    match result.map_err(Into::into) {
        Ok(()) => SUCCESS,
        Err(Stop::Interrupted) => shell::interrupted(command),
        Err(Stop::Failed(error)) => failed(command, path, error),
        Err(Stop::FailedAt(path, error)) => failed(command, &path, error),
        Err(Stop::Refused(why)) => failed(command, path, why),
    }
}

fn failed(command: &str, path: &str, why: impl fmt::Display) -> Status {
    let path = if path.is_empty() { "\"\"" } else { path };
    complain(format_args!("{command}: {path}: {why}"));
    FAILURE
}

fn resolve(path: &str) -> Result<Node, FsError> {
    VFS.resolve(path.as_bytes(), LastLink::Follow)
}

/// The directory that `path` names something in, and the name: to be given, or taken away.
fn resolve_parent(path: &str) -> Result<(Node, Vec<u8>), Stop> {
    VFS.resolve_parent(path.as_bytes())
        .map_err(|error| match error {
            FsError::InvalidName if !path.is_empty() => {
                Stop::Refused("`/`, `.` and `..` cannot be made, moved or removed")
            }
            error => error.into(),
        })
}

/// A regular file, to be read.
fn regular_file(path: &str) -> Result<(Node, Attributes), FsError> {
    let node = resolve(path)?;
    let attributes = node.fs.attributes(node.file)?;
    match attributes.kind {
        FileKind::File => Ok((node, attributes)),
        FileKind::Directory => Err(FsError::IsADirectory),
        _ => Err(FsError::NotAFile),
    }
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

fn ls(arguments: &[&str]) -> Status {
    let Ok((options, paths)) = command::options(arguments, "lb") else {
        return usage("ls");
    };
    let unit = (options.contains('l')).then(|| size::unit(&options));
    let paths = if paths.is_empty() { &["/"] } else { paths };
    let has_many = paths.len() > 1;
    for_each("ls", paths, |path| {
        let node = resolve(path)?;
        if node.fs.attributes(node.file)?.kind != FileKind::Directory {
            return Ok(print_entry(&node, path.as_bytes(), unit)?);
        }
        if has_many {
            println!("{path}:");
        }
        for entry in entries(&node)? {
            go_on()?;
            print_entry(&node.beside(entry.file), &entry.name, unit)?;
        }
        Ok::<_, Stop>(())
    })
}

/// A line for a name: with what is known about it, if there is a unit for its size.
fn print_entry(node: &Node, name: &[u8], unit: Option<Unit>) -> Result<(), FsError> {
    let attributes = node.fs.attributes(node.file)?;
    let (style, mark) = match attributes.kind {
        FileKind::Directory => (Style::Directory, "/"),
        FileKind::Symlink => (Style::Link, ""),
        _ => (Style::Normal, ""),
    };
    let name = Styled(style, name.escape_ascii());
    let Some(unit) = unit else {
        println!("{name}{mark}");
        return Ok(());
    };
    let size = Size(attributes.size, unit);
    let width = if unit == Unit::Bytes { 12 } else { 8 };
    print!(
        "{} {:>3} {size:>width$} {} {name}",
        Mode(attributes),
        attributes.links,
        Date(attributes.modified),
    );
    if attributes.kind == FileKind::Symlink {
        print!(" -> {}", node.fs.read_link(node.file)?.escape_ascii());
    }
    println!();
    Ok(())
}

/// Hands all bytes of a file to `f`, a piece at a time; shows how far it is under the name `what`, if there is one.
fn read_all(
    path: &str,
    what: Option<&str>,
    mut f: impl FnMut(&[u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let (node, attributes) = regular_file(path)?;
    let mut progress = what.map(|what| Progress::new(what, attributes.size));
    node.fs.open(node.file)?;
    let mut bytes = alloc::vec![0; PIECE];
    let mut offset = 0;
    let result = loop {
        match node.fs.read_at(node.file, offset, &mut bytes) {
            Ok(0) => break Ok(()),
            Ok(len) => {
                if let Err(stop) = f(&bytes[..len]).and_then(|()| go_on()) {
                    break Err(stop);
                }
                offset += len as u64;
                if let Some(progress) = &mut progress {
                    progress.add(len as u64);
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    result.and(node.fs.close(node.file).map_err(Stop::from))
}

fn cat(arguments: &[&str]) -> Status {
    /// Less than a tenth of a second at 115 200 bits a second: so soon Ctrl-C is seen.
    const PRINTED: usize = 1 << 10;
    for_each("cat", arguments, |path| {
        read_all(path, None, |bytes| {
            bytes.chunks(PRINTED).try_for_each(|part| {
                console::write_bytes(part);
                go_on()
            })
        })
    })
}

fn sum(arguments: &[&str]) -> Status {
    for_each("sum", arguments, |path| {
        let mut hash = Sha256::new();
        read_all(path, Some(path), |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        for byte in hash.finalize() {
            print!("{byte:02x}");
        }
        println!("  {path}");
        Ok::<_, Stop>(())
    })
}

/// How many stretches of the medium a file lies in, holes among them. A window at a time: a file may have as many as blocks.
fn count_extents(node: &Node, size: u64) -> Result<u64, Stop> {
    const WINDOW: u64 = 64 << 20;
    let mut count = 0;
    // Where the last one would go on.
    let mut next = None;
    for offset in (0..size).step_by(WINDOW as usize) {
        go_on()?;
        for extent in node.fs.map(node.file, offset, WINDOW.min(size - offset))? {
            count += u64::from(next != Some(extent.backing));
            next = Some(match extent.backing {
                Backing::Hole => Backing::Hole,
                Backing::Written(place) => Backing::Written(place + extent.len),
                Backing::Unwritten(place) => Backing::Unwritten(place + extent.len),
            });
        }
    }
    Ok(count)
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
        println!(
            "inode       {}, {}",
            node.file.0,
            Count(attributes.links.into(), "name")
        );
        println!(
            "size        {} ({}), {} on the medium",
            size::human(attributes.size),
            Count(attributes.size, "byte"),
            size::human(attributes.allocated)
        );
        println!("owner       {}:{}", attributes.owner.0, attributes.owner.1);
        println!("modified    {}", Date(attributes.modified));
        println!("changed     {}", Date(attributes.changed));
        println!("accessed    {}", Date(attributes.accessed));
        if attributes.kind == FileKind::File {
            println!("extents     {}", count_extents(&node, attributes.size)?);
        }
        Ok::<_, Stop>(())
    })
}

/// The path `to`, or where it is a directory, the path of the name of `from` in it.
fn target(from: &str, to: &str) -> Result<String, FsError> {
    match resolve(to) {
        Ok(node) if node.fs.attributes(node.file)?.kind == FileKind::Directory => {
            let name = from.trim_end_matches('/').rsplit('/').next();
            let directory = to.trim_end_matches('/');
            Ok(alloc::format!("{directory}/{}", name.unwrap_or(from)))
        }
        _ => Ok(to.to_string()),
    }
}

/// The directory and the name that the [`target`] is, and its path.
fn destination(from: &str, to: &str) -> Result<(Node, Vec<u8>, String), Stop> {
    let path = target(from, to)?;
    let (directory, name) = VFS
        .resolve_parent(path.as_bytes())
        .map_err(Stop::at(&path))?;
    Ok((directory, name, path))
}

/// The regular file at `path`, as it is, or a new one. What a symbolic link leads to must be there.
fn create(path: &str, permissions: u16) -> Result<Node, Stop> {
    match regular_file(path) {
        Err(FsError::NotFound) => {
            let (directory, name) = resolve_parent(path)?;
            let fs = &directory.fs;
            match fs.create(directory.file, &name, FileKind::File, permissions) {
                // The link itself.
                Err(FsError::Exists) => Err(FsError::NotFound.into()),
                file => Ok(directory.beside(file?)),
            }
        }
        found => Ok(found?.0),
    }
}

fn cp(arguments: &[&str]) -> Status {
    match command::options(arguments, "") {
        Ok((_, [from, to])) => told("cp", from, copy(from, to)),
        _ => usage("cp"),
    }
}

fn copy(from: &str, to: &str) -> Result<(), Stop> {
    let (source, attributes) = regular_file(from)?;
    let to = target(from, to)?;
    let at = Stop::at(&to);
    let copy = create(&to, attributes.permissions).map_err(|stop| match stop {
        Stop::Failed(error) => at(error),
        stop => stop,
    })?;
    if copy.is_beside(&source) && copy.file == source.file {
        return Err(Stop::Refused("both paths are the same file"));
    }
    copy.fs.set_len(copy.file, 0).map_err(&at)?;
    // What is not written takes no room, but on FAT.
    let has_holes = copy.fs.device().is_some();
    let mut offset = 0;
    read_all(from, Some(from), |bytes| {
        if !has_holes || bytes.iter().any(|byte| *byte != 0) {
            copy.fs.write_at(copy.file, offset, bytes).map_err(&at)?;
        }
        offset += bytes.len() as u64;
        Ok(())
    })?;
    if has_holes {
        copy.fs.set_len(copy.file, offset).map_err(&at)?;
    }
    Ok(())
}

fn mv(arguments: &[&str]) -> Status {
    let Ok((_, [from, to])) = command::options(arguments, "") else {
        return usage("mv");
    };
    let rename = || {
        let (old, old_name) = resolve_parent(from)?;
        old.fs.lookup(old.file, &old_name)?;
        let (new, new_name, path) = destination(from, to)?;
        let renamed = VFS.rename(&old, &old_name, &new, &new_name);
        // The old name is there.
        renamed.map_err(Stop::at(&path))
    };
    told("mv", from, rename())
}

fn rm(arguments: &[&str]) -> Status {
    let Ok((options, paths)) = command::options(arguments, "r") else {
        return usage("rm");
    };
    for_each("rm", paths, |path| {
        let (directory, name) = resolve_parent(path)?;
        if options.contains('r') {
            return remove_tree(directory, name);
        }
        directory.fs.unlink(directory.file, &name)?;
        Ok(())
    })
}

/// Removes what is called `name`, and first what is in it. What is still to be removed is on the heap: a tree may be
/// deeper than a stack.
fn remove_tree(directory: Node, name: Vec<u8>) -> Result<(), Stop> {
    let mut left = alloc::vec![(directory, name)];
    while let Some((directory, name)) = left.last() {
        go_on()?;
        let (fs, parent) = (&directory.fs, directory.file);
        let file = fs.lookup(parent, name)?;
        if fs.attributes(file)?.kind != FileKind::Directory {
            fs.unlink(parent, name)?;
            left.pop();
            continue;
        }
        match VFS.remove_directory(directory, name) {
            Ok(()) => drop(left.pop()),
            Err(FsError::NotEmpty) => {
                let inside = directory.beside(file);
                let names = entries(&inside)?.into_iter().map(|entry| entry.name);
                left.extend(names.map(|name| (inside.clone(), name)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn ln(arguments: &[&str]) -> Status {
    let Ok((options, [target, name])) = command::options(arguments, "s") else {
        return usage("ln");
    };
    if options.contains('s') {
        let symlink = || {
            let (directory, new_name, path) = destination(target, name)?;
            let fs = &directory.fs;
            let made = fs.symlink(directory.file, &new_name, target.as_bytes());
            made.map(|_| ()).map_err(Stop::at(&path))
        };
        return told("ln", name, symlink());
    }
    let link = || {
        let file = VFS.resolve(target.as_bytes(), LastLink::Keep)?;
        let (directory, new_name, path) = destination(target, name)?;
        if !file.is_beside(&directory) {
            return Err(FsError::CrossDevice.into());
        }
        let linked = file.fs.link(file.file, directory.file, &new_name);
        linked.map_err(|error| match error {
            FsError::IsADirectory | FsError::TooManyLinks => error.into(),
            error => Stop::at(&path)(error),
        })
    };
    told("ln", target, link())
}

fn mkdir(arguments: &[&str]) -> Status {
    let Ok((options, paths)) = command::options(arguments, "p") else {
        return usage("mkdir");
    };
    for_each("mkdir", paths, |path| {
        if options.contains('p') {
            return Ok(create_dir_all(path)?);
        }
        let (directory, name) = resolve_parent(path)?;
        let kind = FileKind::Directory;
        directory.fs.create(directory.file, &name, kind, 0o755)?;
        Ok::<_, Stop>(())
    })
}

fn rmdir(arguments: &[&str]) -> Status {
    let Ok((_, paths)) = command::options(arguments, "") else {
        return usage("rmdir");
    };
    for_each("rmdir", paths, |path| {
        let (directory, name) = resolve_parent(path)?;
        Ok::<_, Stop>(VFS.remove_directory(&directory, &name)?)
    })
}

fn truncate(arguments: &[&str]) -> Status {
    let Ok((_, [path, size])) = command::options(arguments, "") else {
        return usage("truncate");
    };
    let Some(size) = size::parse(size) else {
        complain(format_args!(
            "truncate: \"{size}\" is no size: a number of bytes, perhaps with K, M, G or T behind it"
        ));
        return USAGE;
    };
    let cut = || {
        let node = create(path, 0o644)?;
        Ok::<_, Stop>(node.fs.set_len(node.file, size)?)
    };
    told("truncate", path, cut())
}

fn write(arguments: &[&str]) -> Status {
    let Ok((_, [path, text @ ..])) = command::options(arguments, "") else {
        return usage("write");
    };
    let put = || {
        let node = create(path, 0o644)?;
        node.fs.set_len(node.file, 0)?;
        let mut line: String = text.join(" ");
        line.push('\n');
        Ok::<_, Stop>(node.fs.write_at(node.file, 0, line.as_bytes())?)
    };
    told("write", path, put())
}
