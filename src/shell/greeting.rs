//! What stands on the screen when somebody comes to the console.

use crate::arch::aarch64::timer;
use crate::console::{Style, Styled};
use crate::disk::{self, Disk};
use crate::files::VFS;
use crate::size::human;
use crate::{kernel, mm};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What this is, what it runs on and with, what to try, and how to leave.
pub(super) struct Greeting;

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strong = |text: &'static str| Styled(Style::Strong, text);
        let board = kernel::board();
        let cores = match board.cores {
            1 => String::from("1 core"),
            cores => alloc::format!("{cores} cores, 1 in use"),
        };
        writeln!(
            f,
            "\n{} {}: files as memory, for AArch64\n",
            strong("Pinfold"),
            env!("CARGO_PKG_VERSION")
        )?;
        writeln!(
            f,
            "  machine   {}, {cores}, entered at EL{}",
            board.model,
            kernel::entry_level()
        )?;
        writeln!(
            f,
            "  memory    {}, {} in use after {} ms",
            human(board.ram.bytes()),
            human(mm::used_bytes()),
            timer::us_from_ticks(timer::now()) / 1000,
        )?;
        write_disks(f)?;
        writeln!(f, "\nTry")?;
        for (command, what) in [
            ("demo", "see in a minute what this is about"),
            ("help", "list the commands; `help map` tells about one"),
            ("ls -l /", "look at the disk"),
        ] {
            writeln!(f, "  {:9} {what}", strong(command))?;
        }
        writeln!(
            f,
            "\nTab completes, Ctrl-C stops a command, Ctrl-D powers off.\n"
        )
    }
}

/// Whole disks, with what of each is mounted where.
fn write_disks(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let disks = disk::list();
    let mounts = VFS.mounts();
    let mut heading = "disks";
    for disk in disks.iter().filter(|disk| disk.parent.is_none()) {
        let is_on =
            |other: &&Disk| other.name == disk.name || other.parent.as_ref() == Some(&disk.name);
        let mounted: Vec<String> = disks
            .iter()
            .filter(is_on)
            .filter_map(|part| {
                let mount = mounts
                    .iter()
                    .find(|mount| mount.source == part.name.as_bytes())?;
                let how = match mount.fs.read_only() {
                    Some(_) => ", read-only",
                    None => "",
                };
                // A whole disk is named before.
                let name = part.name.strip_prefix(&disk.name).unwrap_or_default();
                let name = if name.is_empty() { name } else { &part.name };
                let blank = if name.is_empty() { "" } else { " " };
                let path = mount.path.escape_ascii();
                Some(alloc::format!("{name}{blank}on {path}{how}"))
            })
            .collect();
        let properties = disk.device.properties();
        let flush = if properties.has_flush || properties.is_read_only {
            ""
        } else {
            "; it has no flush: power may take what is written"
        };
        let mounted = match mounted.is_empty() {
            true => String::from("not mounted"),
            false => mounted.join(", "),
        };
        writeln!(
            f,
            "  {heading:9} {}, {}, {mounted}{flush}",
            disk.name,
            human(properties.capacity)
        )?;
        heading = "";
    }
    if disks.is_empty() {
        writeln!(f, "  disks     none: nothing can be mapped but memory")?;
    }
    Ok(())
}
