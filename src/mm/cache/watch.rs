//! A page that shows what cache and maps do, while they do it: `run watch`. How it looks is a function of two moments.

#[cfg(target_os = "none")]
mod program;

use super::{CachedFile, Counts};
use crate::mm::addr::PAGE_SIZE;
use crate::mm::fault::{FaultCounts, Outcome};
use crate::mm::frame;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const PAGE: u64 = PAGE_SIZE as u64;

/// Files that are shown.
pub const FILES: usize = 4;
/// Columns of each one's strip.
pub const STRIP: u64 = 30;

/// Lines of the page.
pub const LINES: usize = 12 + FILES + 1;

/// What there is to know at one moment.
pub struct Moment {
    /// Microseconds since power-on.
    pub us: u64,
    /// What the cache has done.
    pub cache: Counts,
    /// Faults.
    pub faults: FaultCounts,
    /// Who has how many frames.
    pub frames: frame::Counts,
    /// How many maps there are.
    pub maps: usize,
}

/// What is in memory of a file, in columns of as many pages each.
pub struct Strip {
    /// A character for each column: [`LEGEND`].
    pub text: String,
    /// Pages of a column.
    pub each: u64,
    /// Pages in memory.
    pub resident: u64,
    /// Of these, those that differ from the device.
    pub dirty: u64,
}

/// What the characters of a strip mean.
pub const LEGEND: &str = "# in memory  + in part  * with dirty pages  o hole  . not in memory";

impl Strip {
    /// Of a file, in `columns` columns at most.
    pub fn new(file: &CachedFile, columns: u64) -> Self {
        let pages = file.size().div_ceil(PAGE);
        let each = pages.div_ceil(columns).max(1);
        let mut counts: Vec<[u64; 3]> = Vec::new();
        counts.resize(pages.div_ceil(each) as usize, [0; 3]);
        let (mut resident, mut dirty) = (0, 0);
        for present in file.present() {
            for i in super::chunk::bits(present.resident | present.hole) {
                let bit = 1 << i;
                let of = |pages: u64| u64::from(pages & bit != 0);
                let is = [of(present.resident), of(present.dirty), of(present.hole)];
                resident += is[0];
                dirty += is[1];
                // Nothing, where the file grew meanwhile.
                if let Some(counts) =
                    counts.get_mut(((present.first + u64::from(i)) / each) as usize)
                {
                    (0..3).for_each(|k| counts[k] += is[k]);
                }
            }
        }
        let column = |(i, [resident, dirty, holes]): (usize, &[u64; 3])| match (*resident, *dirty) {
            (_, 1..) => '*',
            (0, _) if *holes > 0 => 'o',
            (0, _) => '.',
            (all, _) if all == each.min(pages - i as u64 * each) => '#',
            _ => '+',
        };
        Self {
            text: counts.iter().enumerate().map(column).collect(),
            each,
            resident,
            dirty,
        }
    }
}

/// A file on the page.
pub struct Row {
    name: String,
    size: u64,
    strip: Strip,
}

/// At most six characters for a number of things.
fn brief(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{n}"),
        1_000_000..1_000_000_000 => format!("{}.{}M", n / 1_000_000, n / 100_000 % 10),
        _ => format!("{}G", n / 1_000_000_000),
    }
}

/// At most eight characters for a number of bytes.
fn size(bytes: u64) -> String {
    let mut shift = 0;
    while bytes >> shift >= 1024 && shift < 40 {
        shift += 10;
    }
    let unit = ["B", "KiB", "MiB", "GiB", "TiB"][shift / 10];
    match bytes >> shift {
        whole @ ..10 if shift > 0 => format!("{whole}.{} {unit}", ((bytes * 10) >> shift) % 10),
        whole => format!("{whole} {unit}"),
    }
}

/// A name in `width` characters: of a long one the end, which says more.
fn tail(name: &str, width: usize) -> String {
    let count = name.chars().count();
    let mut out = String::new();
    for (i, character) in name.chars().enumerate() {
        match count - i {
            left if left > width => {}
            left if left == width && i > 0 => out.push('~'),
            _ if character.is_control() => out.push('?'),
            _ => out.push(character),
        }
    }
    out
}

/// How numbers of a column are shown.
#[derive(Clone, Copy)]
enum Show {
    Count,
    Pages,
    /// A number of thousandths; [`NOTHING`] where there is nothing of which it could be a share.
    Share,
}

const NOTHING: u64 = u64::MAX;

fn share(part: u64, all: u64) -> u64 {
    part.saturating_mul(1000)
        .checked_div(all)
        .unwrap_or(NOTHING)
}

impl Show {
    #[inline(never)]
    fn text(self, value: u64) -> String {
        match self {
            Self::Count => brief(value),
            Self::Pages => size(value.saturating_mul(PAGE)),
            Self::Share if value == NOTHING => String::from("-"),
            Self::Share => format!("{}.{}%", value / 10, value % 10),
        }
    }
}

type Columns = [(&'static str, Show); 8];

const CACHE: Columns = [
    ("HIT RATE", Show::Share),
    ("HITS", Show::Count),
    ("MISSES", Show::Count),
    ("READ", Show::Pages),
    ("AHEAD", Show::Share),
    ("WRITTEN", Show::Pages),
    ("EVICTED", Show::Count),
    ("REFAULTS", Show::Count),
];

const MEMORY: Columns = [
    ("ALL", Show::Pages),
    ("FREE", Show::Pages),
    ("CACHE", Show::Pages),
    ("DIRTY", Show::Pages),
    ("PROGRAMS", Show::Pages),
    ("TABLES", Show::Pages),
    ("KERNEL", Show::Pages),
    ("MAPS", Show::Count),
];

const FAULTS: Columns = [
    ("LOAD", Show::Count),
    ("STORE", Show::Count),
    ("COPY", Show::Count),
    ("ZERO", Show::Count),
    ("FRESH", Show::Count),
    ("REUSE", Show::Count),
    ("NONE", Show::Count),
    ("FAILED", Show::Count),
];

/// What the cache did; shares are made of it when it is known of which time.
fn cache(counts: &Counts) -> [u64; 8] {
    [
        counts.hits + counts.misses,
        counts.hits,
        counts.misses,
        counts.read,
        counts.read_ahead,
        counts.written,
        counts.evicted,
        counts.refaults,
    ]
}

fn with_shares(mut did: [u64; 8]) -> [u64; 8] {
    did[0] = share(did[1], did[0]);
    did[4] = share(did[4], did[3]);
    did
}

/// Faults by what became of them.
fn faults(counts: &FaultCounts) -> [u64; 8] {
    let of = |outcome| counts.of(outcome);
    [
        of(Outcome::File),
        of(Outcome::FileDirty),
        of(Outcome::Copied),
        of(Outcome::Zero),
        of(Outcome::Fresh) + of(Outcome::FreshGroup) + of(Outcome::FreshBlock),
        of(Outcome::Reused),
        of(Outcome::Spurious),
        of(Outcome::Failed),
    ]
}

/// Text that ends at a column; what is too long goes on behind it.
#[inline(never)]
fn ends_at(out: &mut String, column: usize, text: &str) {
    let start = out.rfind('\n').map_or(0, |at| at + 1);
    let len = out[start..].chars().count() + text.chars().count();
    (len..column).for_each(|_| out.push(' '));
    out.push_str(text);
}

#[inline(never)]
fn line(out: &mut String, label: &str, columns: &Columns, values: Option<[u64; 8]>) {
    out.push_str(label);
    for (i, (head, show)) in columns.iter().enumerate() {
        let text = values.map(|values| show.text(values[i]));
        ends_at(out, 7 + 9 * (i + 1), text.as_deref().unwrap_or(head));
    }
    out.push('\n');
}

/// The page, [`LINES`] lines of 79 characters at most: what happened from `before` to `now`, in a second, and in all.
pub fn page(before: &Moment, now: &Moment, rows: &[Row]) -> String {
    let us = u128::from(now.us.saturating_sub(before.us).max(1));
    let rates = |was: [u64; 8], is: [u64; 8]| {
        let mut rates = [0; 8];
        for (i, rate) in rates.iter_mut().enumerate() {
            *rate = (u128::from(is[i].saturating_sub(was[i])) * 1_000_000 / us) as u64;
        }
        rates
    };
    let mut out = String::new();
    let frames = &now.frames;
    let memory = [
        frames.total,
        frames.free,
        frames.cache,
        now.cache.dirty,
        frames.anonymous,
        frames.page_table,
        frames.kernel,
        now.maps as u64,
    ];
    line(&mut out, "MEMORY", &MEMORY, None);
    line(&mut out, "now", &MEMORY, Some(memory));
    out.push('\n');
    line(&mut out, "CACHE", &CACHE, None);
    let (was, is) = (cache(&before.cache), cache(&now.cache));
    line(
        &mut out,
        "each s",
        &CACHE,
        Some(with_shares(rates(was, is))),
    );
    line(&mut out, "in all", &CACHE, Some(with_shares(is)));
    out.push('\n');
    line(&mut out, "FAULTS", &FAULTS, None);
    let (was, is) = (faults(&before.faults), faults(&now.faults));
    line(&mut out, "each s", &FAULTS, Some(rates(was, is)));
    line(&mut out, "in all", &FAULTS, Some(is));
    out.push_str("\nFILE                      SIZE   CACHED    DIRTY\n");
    for row in rows.iter().take(FILES) {
        out.push_str(&tail(&row.name, 20));
        ends_at(&mut out, 30, &size(row.size));
        ends_at(&mut out, 39, &Show::Pages.text(row.strip.resident));
        ends_at(&mut out, 48, &Show::Pages.text(row.strip.dirty));
        out.push(' ');
        out.push_str(&row.strip.text);
        out.push('\n');
    }
    (rows.len()..FILES).for_each(|_| out.push('\n'));
    out.push_str(LEGEND);
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::{LINES, Moment, Row, STRIP, Show, Strip, brief, page, share, size, tail};
    use crate::mm::cache::Counts;
    use crate::mm::fault::{FaultCounts, Outcome};
    use crate::mm::frame;
    use alloc::string::String;
    use alloc::vec::Vec;

    fn moment(us: u64, n: u64) -> Moment {
        let mut faults = FaultCounts::NONE;
        faults.count(Outcome::File);
        Moment {
            us,
            cache: Counts {
                hits: n,
                misses: n / 4,
                read: n,
                read_ahead: n / 2,
                used: n,
                wasted: n,
                evicted: n,
                refaults: n,
                written: n,
                failed: n,
                dirty: n,
            },
            faults,
            frames: frame::Counts {
                total: n,
                free: n,
                reserve: n,
                metadata: n,
                page_table: n,
                cache: n,
                anonymous: n,
                kernel: n,
            },
            maps: 100_000,
        }
    }

    fn rows(count: usize) -> Vec<Row> {
        let row = |_| Row {
            name: "/a/long/name/of/a/file/ü\n".into(),
            size: u64::MAX,
            strip: Strip {
                text: String::from_utf8(alloc::vec![b'#'; STRIP as usize]).unwrap(),
                each: 1,
                resident: 1 << 40,
                dirty: 1 << 40,
            },
        };
        (0..count).map(row).collect()
    }

    #[test]
    fn the_page_fits_whatever_it_says() {
        for (n, files) in [(0, 0), (1, 1), (12_345, 4), (1 << 26, 9), (1 << 40, 4)] {
            let page = page(&moment(0, 0), &moment(1_000_000, n), &rows(files));
            assert_eq!(page.lines().count(), LINES);
            for line in page.lines() {
                assert!(line.chars().count() < 80, "{line}");
            }
        }
    }

    #[test]
    fn rates_are_those_of_a_second() {
        let page = page(&moment(1_000_000, 1000), &moment(1_500_000, 3000), &[]);
        let line = |label: &str| page.lines().find(|line| line.starts_with(label)).unwrap();
        assert!(
            line("each s").contains("    80.0%     4000     1000"),
            "{page}"
        );
        assert!(
            line("in all").contains("    80.0%     3000      750"),
            "{page}"
        );
    }

    #[test]
    fn numbers_are_short_and_names_are_cut_at_their_start() {
        assert_eq!(
            (brief(999_999), brief(1_250_000)),
            ("999999".into(), "1.2M".into())
        );
        assert_eq!(
            (size(1023), size(1536), size(64 << 20)),
            ("1023 B".into(), "1.5 KiB".into(), "64 MiB".into())
        );
        let text = |part, all| Show::Share.text(share(part, all));
        assert_eq!((text(1, 0), text(1, 3)), ("-".into(), "33.3%".into()));
        assert_eq!(
            (tail("/abc", 4), tail("/abcd", 4)),
            ("/abc".into(), "~bcd".into())
        );
    }
}
