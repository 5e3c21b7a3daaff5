//! The text that `trace dump` prints, taken apart.
//!
//! ```text
//! pinfold-trace 1
//! events 4 lost 0
//! file 3 70000 /name        number, bytes, name
//! 81250 miss 3 16           nanoseconds, kind, file, first page
//! 81250 ahead 3 17 15       and how many pages, where they are several
//! end 4
//! ```
//!
//! What stands before the first line is whatever else the console said, and is passed over; what stands after the last, too.

use std::collections::BTreeMap;
use std::ops::Range;

/// What happened to pages, as far as pictures tell it apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Load,
    Store,
    Copy,
    Miss,
    Ahead,
    Fill,
    Read,
    Write,
    Flush,
    Clean,
    Evict,
    Drop,
    Error,
    Here,
    HereDirty,
    /// Of memory without a file, or nothing to see.
    Other,
}

const KINDS: [(&str, Kind); 21] = [
    ("zero", Kind::Other),
    ("fresh", Kind::Other),
    ("copy", Kind::Copy),
    ("reuse", Kind::Other),
    ("load", Kind::Load),
    ("store", Kind::Store),
    ("spurious", Kind::Other),
    ("fatal", Kind::Error),
    ("read", Kind::Read),
    ("write", Kind::Write),
    ("miss", Kind::Miss),
    ("ahead", Kind::Ahead),
    ("fill", Kind::Fill),
    ("unread", Kind::Error),
    ("flush", Kind::Flush),
    ("clean", Kind::Clean),
    ("unwritten", Kind::Error),
    ("evict", Kind::Evict),
    ("drop", Kind::Drop),
    ("here", Kind::Here),
    ("dirty", Kind::HereDirty),
];

/// Something that happened to pages of a file; file 0 is memory without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) time: u64,
    pub(super) kind: Kind,
    pub(super) file: u32,
    pub(super) pages: Range<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) size: u64,
    pub(super) name: String,
}

/// All of a dump.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) files: BTreeMap<u32, File>,
    pub(super) events: Vec<Event>,
    pub(super) lost: u64,
}

/// Pages that a file can have, and addresses: what is beyond was not written by Pinfold.
const MOST_PAGES: u64 = 1 << 36;

impl Dump {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = (1..).zip(text.lines().map(str::trim_end));
        lines
            .find(|(_, line)| line.starts_with("pinfold-trace "))
            .ok_or("no line begins with \"pinfold-trace\": it is no dump of `trace dump`")
            .and_then(|(_, line)| match line {
                "pinfold-trace 1" => Ok(()),
                _ => Err("a dump of another version of Pinfold"),
            })?;
        let (number, line) = lines.next().ok_or("it ends behind its first line")?;
        let (count, lost) = match words(line)[..] {
            ["events", count, "lost", lost] => (whole(count, number)?, whole(lost, number)?),
            _ => {
                return Err(format!(
                    "line {number} does not say how many events there are: {}",
                    shown(line)
                ));
            }
        };
        let mut dump = Self {
            files: BTreeMap::new(),
            events: Vec::new(),
            lost,
        };
        for (number, line) in lines {
            match words(line)[..] {
                ["end", end] if whole(end, number)? != dump.events.len() as u64 => {
                    return Err(format!(
                        "line {number} speaks of {end} events, and {} are there: lines are missing",
                        dump.events.len()
                    ));
                }
                ["end", _] => return Ok(dump),
                ["file", file, size, ..] => {
                    let name = line.splitn(4, ' ').nth(3).unwrap_or("").to_string();
                    let size = whole(size, number)?;
                    dump.files.insert(small(file, number)?, File { size, name });
                }
                [time, kind, file, first] => dump.add([time, kind, file, first, "1"], number)?,
                [time, kind, file, first, count] => {
                    dump.add([time, kind, file, first, count], number)?
                }
                _ => return Err(format!("line {number} is no event: {}", shown(line))),
            }
        }
        Err(format!(
            "it is cut off: {} of {count} events, and no line \"end\"",
            dump.events.len()
        ))
    }

    fn add(
        &mut self,
        [time, kind, file, first, count]: [&str; 5],
        line: usize,
    ) -> Result<(), String> {
        let found = KINDS.iter().find(|(name, _)| *name == kind);
        let (_, kind) =
            found.ok_or_else(|| format!("line {line}: unknown event {}", shown(kind)))?;
        let (time, first, count) = (whole(time, line)?, whole(first, line)?, whole(count, line)?);
        if first > MOST_PAGES || count == 0 || count > MOST_PAGES {
            return Err(format!(
                "line {line}: {count} pages from {first} on are none that a file has"
            ));
        }
        if self.events.last().is_some_and(|last| last.time > time) {
            return Err(format!(
                "line {line}: its time is before that of the line before"
            ));
        }
        self.events.push(Event {
            time,
            kind: *kind,
            file: small(file, line)?,
            pages: first..first + count,
        });
        Ok(())
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn whole(word: &str, line: usize) -> Result<u64, String> {
    word.parse()
        .map_err(|_| format!("line {line}: {} is no number", shown(word)))
}

fn small(word: &str, line: usize) -> Result<u32, String> {
    u32::try_from(whole(word, line)?)
        .map_err(|_| format!("line {line}: {word} is no number of a file"))
}

/// Text from a dump, for an error message.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("\"{}\"", short.escape_debug())
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Dump, Event, Kind};

    pub(crate) const GOOD: &str = "\
Pinfold on virt
> trace dump
pinfold-trace 1
events 5 lost 2
file 3 70000 /a file\\n<b>
10 miss 3 0
10 ahead 3 1 15
500 fill 3 0 16
510 load 3 0
90000 evict 3 4 2
end 5
> poweroff
";

    #[test]
    fn a_dump_is_found_among_other_lines() {
        for text in [GOOD.to_string(), GOOD.replace('\n', "\r\n")] {
            let dump = Dump::parse(&text).unwrap();
            assert_eq!((dump.events.len(), dump.lost), (5, 2));
            assert_eq!(dump.files[&3].name, "/a file\\n<b>");
            assert_eq!(dump.files[&3].size, 70_000);
            assert_eq!(
                dump.events[2],
                Event {
                    time: 500,
                    kind: Kind::Fill,
                    file: 3,
                    pages: 0..16
                }
            );
        }
    }

    #[test]
    fn damage_is_told_in_words() {
        let said = |text: &str| Dump::parse(text).unwrap_err();
        assert!(said("").contains("no dump"));
        assert!(said("pinfold-trace 2\n").contains("another version"));
        assert!(said("pinfold-trace 1").contains("ends behind its first line"));
        assert!(said("pinfold-trace 1\nevents many lost 0\n").contains("\"many\" is no number"));
        let cut = &GOOD[..GOOD.find("500 fill").unwrap()];
        assert!(said(cut).contains("cut off: 2 of 5 events"));
        let line = |from: &str, to: &str| said(&GOOD.replace(from, to));
        assert!(line("510 load 3 0\n", "").contains("5 events, and 4 are there"));
        assert!(line("510 load", "510 lozd").contains("line 9: unknown event \"lozd\""));
        assert!(line("510 load", "499 load").contains("line 9: its time is before"));
        assert!(line("load 3 0", "load 3").contains("line 9 is no event"));
        assert!(line("load 3 0", "load -3 0").contains("\"-3\" is no number"));
        assert!(line("load 3 0", "load 99999999999 0").contains("no number of a file"));
        assert!(line("load 3 0", "load 3 99999999999999").contains("none that a file has"));
        assert!(line("load 3 0", "load 3 0 0").contains("0 pages"));
    }

    #[test]
    fn any_text_is_taken_or_refused() {
        // Each byte of a good dump replaced, and each line left out.
        for at in 0..GOOD.len() {
            for byte in [b'x', b'9', b' ', b'\n', 0xff] {
                let mut bytes = GOOD.as_bytes().to_vec();
                bytes[at] = byte;
                let _ = Dump::parse(&String::from_utf8_lossy(&bytes))
                    .map(|dump| super::super::picture::draw(&dump));
            }
        }
    }
}
