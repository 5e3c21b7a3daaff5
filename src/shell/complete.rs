//! What a word at the console may be completed to: commands, programs, paths.

use crate::command::{COMMANDS, by_name};
use crate::edit::{Candidate, Complete};
use crate::files::{self, VFS};
use crate::fs::vfs::LastLink;
use crate::fs::{FileKind, FsError};
use crate::program::PROGRAMS;
use alloc::string::String;
use alloc::vec::Vec;

/// All words that there are.
pub(super) struct Words;

impl Complete for Words {
    fn candidates(&mut self, words: &[String], word: &str) -> Vec<Candidate> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            [] | ["help"] => beginning_with(word, COMMANDS.iter().map(|command| command.name)),
            ["run"] => beginning_with(word, PROGRAMS.iter().map(|program| program.name)),
            // A path that cannot be looked into has nothing to offer: that is no error while it is typed.
            _ => paths(word).unwrap_or_default(),
        }
    }
}

fn beginning_with<'a>(word: &str, all: impl Iterator<Item = &'a str>) -> Vec<Candidate> {
    let fit = all.filter(|name| name.starts_with(word));
    by_name(fit, |name| name)
        .into_iter()
        .map(|name| Candidate {
            word: name.into(),
            is_partial: false,
        })
        .collect()
}

/// Paths that begin with `word`: names in the folder up to its last slash. Names that are no text, or
/// would do something to the terminal, cannot be typed.
fn paths(word: &str) -> Result<Vec<Candidate>, FsError> {
    let (folder, start) = word.split_at(word.rfind('/').map_or(0, |at| at + 1));
    let folder_path = if folder.is_empty() { "/" } else { folder };
    let node = VFS.resolve(folder_path.as_bytes(), LastLink::Follow)?;
    let mut candidates = Vec::new();
    for entry in files::entries(&node)? {
        let Ok(name) = core::str::from_utf8(&entry.name) else {
            continue;
        };
        if name.contains(char::is_control)
            || !name.starts_with(start)
            || (start.is_empty() && name.starts_with('.'))
        {
            continue;
        }
        let path = alloc::format!("{folder}{name}");
        let target = VFS.resolve(path.as_bytes(), LastLink::Follow);
        let is_partial = target
            .and_then(|node| node.fs.attributes(node.file))
            .is_ok_and(|attributes| attributes.kind == FileKind::Directory);
        candidates.push(Candidate {
            word: if is_partial { path + "/" } else { path },
            is_partial,
        });
    }
    Ok(candidates)
}
