//! The picture of a dump: a panel for each of the files that most happened to, all over the same time.

use super::dump::{Dump, Event, Kind};
use crate::svg::{bytes, escape, head, short, ticks, time_unit};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;

const PAGE: u64 = 4096;

/// Files that are shown.
const PANELS: usize = 4;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 84.0;
const TOP: f64 = 66.0;
/// A cell of the grids: so wide, and so high above and below.
const CELL: f64 = 2.0;
const COLUMNS: usize = 430;
const ROWS: usize = 110;
const MEMORY_CELL: f64 = 3.0;
const MEMORY_ROWS: usize = 24;
const PLOT: f64 = COLUMNS as f64 * CELL;
const EVENTS_HEIGHT: f64 = ROWS as f64 * CELL;
const MEMORY_HEIGHT: f64 = MEMORY_ROWS as f64 * MEMORY_CELL;
const PANEL: f64 = 26.0 + EVENTS_HEIGHT + 8.0 + MEMORY_HEIGHT + 20.0;

/// What is drawn, the lowest first: kind, its class, and its words in the legend.
const LAYERS: [(Kind, &str, &str); 11] = [
    (Kind::Evict, "evict", "evicted"),
    (Kind::Drop, "evict", ""),
    (Kind::Ahead, "ahead", "read ahead"),
    (Kind::Flush, "flush", "written back"),
    (Kind::Read, "read", "read by a call"),
    (Kind::Write, "write", "written by a call"),
    (Kind::Load, "load", "fault: load"),
    (Kind::Copy, "write", ""),
    (Kind::Store, "store", "fault: first store"),
    (Kind::Miss, "miss", "waited for the disk"),
    (Kind::Error, "error", "failed"),
];

const STYLE: &str = "\
.evict{fill:#9a9a9a;stroke:#9a9a9a}.ahead{fill:#6aa9e9;stroke:#6aa9e9}.flush{fill:#e0912f;stroke:#e0912f}\
.read{fill:#1aa;stroke:#1aa}.write{fill:#c4a;stroke:#c4a}.load{fill:#2b9a4b;stroke:#2b9a4b}\
.store{fill:#8a55e0;stroke:#8a55e0}.miss{fill:#e5383b;stroke:#e5383b}.error{fill:#f0f;stroke:#f0f}\
.clean{fill:#2b9a4b}.dirty{fill:#e0912f}.part1{opacity:.3}.part2{opacity:.6}";

/// Shares of a row that is in memory, by class.
const PARTS: [&str; 3] = ["part1", "part2", "part3"];

pub(super) fn draw(dump: &Dump) -> String {
    let end = dump
        .events
        .iter()
        .map(|event| event.time)
        .max()
        .unwrap_or(0)
        .max(1);
    let panels = largest(dump);
    let height = TOP + PANEL * panels.len().max(1) as f64 + 30.0;
    let mut out = head(WIDTH, height, STYLE);
    let lost = match dump.lost {
        0 => String::new(),
        lost => format!(", {lost} older or missed ones lost"),
    };
    let _ = writeln!(
        out,
        "<text x=\"8\" y=\"20\" font-size=\"15\">What happened to pages of files, and which were in memory</text>\
         <text x=\"{:.0}\" y=\"20\" text-anchor=\"end\" class=\"quiet\">{} events{lost}</text>",
        WIDTH - 20.0,
        dump.events.len()
    );
    legend(dump, &mut out);
    if panels.is_empty() {
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"{:.0}\">No event has to do with a file.</text>",
            TOP + 30.0
        );
    }
    let mut top = TOP;
    for file in &panels {
        let events: Vec<&Event> = dump
            .events
            .iter()
            .filter(|event| event.file == *file)
            .collect();
        panel(dump, *file, &events, end, top, &mut out);
        top += PANEL;
    }
    time_axis(end, top - 6.0, panels.len(), &mut out);
    out + "</svg>\n"
}

/// The files that most happened to, the first one first.
fn largest(dump: &Dump) -> Vec<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for event in &dump.events {
        if event.file != 0 && !matches!(event.kind, Kind::Here | Kind::HereDirty) {
            *counts.entry(event.file).or_default() += 1;
        }
    }
    let mut files: Vec<_> = counts.into_iter().collect();
    files.sort_by_key(|(file, count)| (std::cmp::Reverse(*count), *file));
    files.truncate(PANELS);
    files.sort();
    files.into_iter().map(|(file, _)| file).collect()
}

fn legend(dump: &Dump, out: &mut String) {
    let mut x = LEFT;
    let mut entry = |class: &str, words: &str| {
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x:.0}\" y=\"38\" width=\"10\" height=\"10\"/>\
             <text x=\"{:.0}\" y=\"47\">{words}</text>",
            x + 14.0
        );
        x += 32.0 + 6.4 * words.chars().count() as f64;
    };
    for (kind, class, words) in LAYERS {
        if !words.is_empty()
            && dump
                .events
                .iter()
                .any(|event| event.file != 0 && event.kind == kind)
        {
            entry(class, words);
        }
    }
    entry("clean", "in memory");
    if dump
        .events
        .iter()
        .any(|event| matches!(event.kind, Kind::Store | Kind::Write))
    {
        entry("dirty", "dirty");
    }
}

/// Offsets and times of a panel, as cells.
struct Scale {
    end: u64,
    pages: u64,
}

impl Scale {
    fn column(&self, time: u64) -> usize {
        (u128::from(time) * COLUMNS as u128 / (u128::from(self.end) + 1)) as usize
    }

    /// The rows, of `rows` from the start of the file on, that the pages lie in.
    fn rows(&self, pages: &Range<u64>, rows: usize) -> Range<usize> {
        let at = |page: u64| u128::from(page) * rows as u128;
        let all = u128::from(self.pages);
        let first = ((at(pages.start) / all) as usize).min(rows - 1);
        first..(at(pages.end).div_ceil(all) as usize).clamp(first + 1, rows)
    }

    /// The pages of one of `rows` rows.
    fn pages_of(&self, row: usize, rows: usize) -> Range<u64> {
        let at = |row: usize| (u128::from(self.pages) * row as u128).div_ceil(rows as u128) as u64;
        at(row)..at(row + 1)
    }
}

fn panel(dump: &Dump, file: u32, events: &[&Event], end: u64, top: f64, out: &mut String) {
    let touched = events
        .iter()
        .map(|event| event.pages.end)
        .max()
        .unwrap_or(1);
    let (name, size) = match dump.files.get(&file) {
        Some(known) => (known.name.clone(), known.size),
        None => (format!("file {file}"), touched * PAGE),
    };
    // All of the file, unless most of it was left alone.
    let whole = size.div_ceil(PAGE);
    let pages_shown = if whole / 2 < touched {
        whole.max(touched)
    } else {
        touched
    };
    let scale = Scale {
        end,
        pages: pages_shown.max(1),
    };
    let pages = |kind: Kind| -> u64 {
        let of_kind = events.iter().filter(|event| event.kind == kind);
        of_kind
            .map(|event| event.pages.end - event.pages.start)
            .sum()
    };
    let mut said = vec![bytes(size)];
    for (kind, words) in [
        (Kind::Load, "load faults"),
        (Kind::Store, "first stores"),
        (Kind::Miss, "waits for the disk"),
        (Kind::Fill, "pages read"),
        (Kind::Clean, "pages written"),
        (Kind::Evict, "pages evicted"),
    ] {
        if pages(kind) > 0 {
            said.push(format!("{words}: {}", pages(kind)));
        }
    }
    let (events_top, memory_top) = (top + 26.0, top + 26.0 + EVENTS_HEIGHT + 8.0);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT:.0}\" y=\"{:.0}\"><tspan font-weight=\"bold\">{}</tspan><tspan dx=\"10\" class=\"quiet\">{}</tspan></text>",
        top + 19.0,
        escape(&name, 48),
        said.join(" · ")
    );
    for (y, height) in [(events_top, EVENTS_HEIGHT), (memory_top, MEMORY_HEIGHT)] {
        let _ = writeln!(
            out,
            "<rect class=\"frame\" x=\"{LEFT:.0}\" y=\"{y:.0}\" width=\"{PLOT:.0}\" height=\"{height:.0}\"/>"
        );
    }
    for (label, y) in [
        (bytes(scale.pages * PAGE), events_top + 10.0),
        ("0".into(), events_top + EVENTS_HEIGHT - 1.0),
    ] {
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"end\" font-size=\"11\">{label}</text>",
            LEFT - 5.0
        );
    }
    for (label, y) in [
        ("events", events_top + EVENTS_HEIGHT / 2.0),
        ("in memory", memory_top + MEMORY_HEIGHT / 2.0),
    ] {
        let _ = writeln!(
            out,
            "<text transform=\"translate(70 {y:.0}) rotate(-90)\" text-anchor=\"middle\" class=\"quiet\" font-size=\"11\">{label}</text>"
        );
    }
    for (kind, class, _) in LAYERS {
        let drawn = events.iter().filter(|event| event.kind == kind);
        layer(&scale, drawn.copied(), class, events_top, out);
    }
    memory(&scale, events, memory_top, out);
}

/// All events of a kind, as one path: a run of cells of a column is one rectangle.
fn layer<'e>(
    scale: &Scale,
    events: impl Iterator<Item = &'e Event>,
    class: &str,
    top: f64,
    out: &mut String,
) {
    let mut cells: BTreeSet<(usize, usize)> = BTreeSet::new();
    for event in events {
        let column = scale.column(event.time);
        cells.extend(scale.rows(&event.pages, ROWS).map(|row| (column, row)));
    }
    let mut path = String::new();
    // A few dots are easily overlooked.
    let stroke = if cells.len() < 600 { 1.5 } else { 0.0 };
    let mut cells = cells.into_iter().peekable();
    while let Some((column, row)) = cells.next() {
        let mut height = 1;
        while cells.next_if_eq(&(column, row + height)).is_some() {
            height += 1;
        }
        // Offset zero is at the bottom.
        let (x, y) = (
            LEFT + column as f64 * CELL,
            top + (ROWS - row - height) as f64 * CELL,
        );
        let _ = write!(path, "M{x:.0} {y:.0}h2v{}h-2z", height * CELL as usize);
    }
    if !path.is_empty() {
        let _ = writeln!(
            out,
            "<path class=\"{class}\" stroke-width=\"{stroke}\" d=\"{path}\"/>"
        );
    }
}

/// How much of each row is in memory: from what is there at the end back to the beginning, and then forward again.
fn memory(scale: &Scale, events: &[&Event], top: f64, out: &mut String) {
    // Small files have no more rows than pages.
    let count = scale.pages.min(MEMORY_ROWS as u64) as usize;
    let height = MEMORY_HEIGHT / count as f64;
    let mut rows = vec![0i64; count];
    let add = |rows: &mut [i64], pages: &Range<u64>, sign: i64| {
        for row in scale.rows(pages, count) {
            let all = scale.pages_of(row, count);
            let both = pages
                .end
                .min(all.end)
                .saturating_sub(pages.start.max(all.start));
            rows[row] += sign * both as i64;
        }
    };
    for event in events {
        match event.kind {
            Kind::Here | Kind::Evict | Kind::Drop => add(&mut rows, &event.pages, 1),
            Kind::Fill => add(&mut rows, &event.pages, -1),
            _ => {}
        }
    }
    let mut dirty: BTreeSet<u64> = BTreeSet::new();
    let mut columns = vec![vec![None; count]; COLUMNS];
    let mut events = events.iter().peekable();
    for (column, levels) in columns.iter_mut().enumerate() {
        while let Some(event) = events.next_if(|event| scale.column(event.time) <= column) {
            match event.kind {
                Kind::Fill => add(&mut rows, &event.pages, 1),
                Kind::Evict | Kind::Drop => add(&mut rows, &event.pages, -1),
                _ => {}
            }
            match event.kind {
                Kind::Store | Kind::Write => dirty.extend(event.pages.clone()),
                Kind::Clean | Kind::Drop => {
                    event.pages.clone().for_each(|page| _ = dirty.remove(&page))
                }
                _ => {}
            }
        }
        for (row, level) in levels.iter_mut().enumerate() {
            let all = scale.pages_of(row, count);
            let share = rows[row] as f64 / (all.end - all.start).max(1) as f64;
            let part = match share {
                _ if rows[row] <= 0 => continue,
                share if share > 0.9 => 2,
                share if share > 0.4 => 1,
                _ => 0,
            };
            let is_dirty = dirty.range(all).next().is_some();
            *level = Some((is_dirty, part));
        }
    }
    for (is_dirty, part) in (0..6).map(|i| (i >= 3, i % 3)) {
        let mut path = String::new();
        for row in 0..count {
            let mut column = 0;
            while column < COLUMNS {
                let run = columns[column..]
                    .iter()
                    .take_while(|levels| levels[row] == Some((is_dirty, part)))
                    .count();
                if run > 0 {
                    let (x, y) = (
                        LEFT + column as f64 * CELL,
                        top + (count - 1 - row) as f64 * height,
                    );
                    let width = run * CELL as usize;
                    let _ = write!(path, "M{x:.0} {y:.1}h{width}v{height:.1}h-{width}z");
                }
                column += run.max(1);
            }
        }
        if !path.is_empty() {
            let (kind, part) = (if is_dirty { "dirty" } else { "clean" }, PARTS[part]);
            let _ = writeln!(out, "<path class=\"{kind} {part}\" d=\"{path}\"/>");
        }
    }
}

fn time_axis(end: u64, y: f64, panels: usize, out: &mut String) {
    let (unit, ns) = time_unit(end);
    for tick in ticks(end as f64 / ns, 8) {
        let x = LEFT + tick * ns / end as f64 * PLOT;
        for panel in 0..panels {
            let top = TOP + panel as f64 * PANEL + 26.0;
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.0}\" y2=\"{:.0}\"/>",
                top + EVENTS_HEIGHT + 8.0 + MEMORY_HEIGHT
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.0}\" text-anchor=\"middle\" font-size=\"11\">{} {unit}</text>",
            short(tick)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::dump::Dump;
    use super::super::dump::tests::GOOD;
    use super::{COLUMNS, LEFT, MEMORY_ROWS, PLOT, ROWS, Scale, WIDTH, draw};

    fn scale(end: u64, pages: u64) -> Scale {
        Scale { end, pages }
    }

    #[test]
    fn cells_cover_the_whole_file_and_all_of_the_time() {
        let scale = scale(1000, 7);
        assert_eq!(scale.column(0), 0);
        assert_eq!(scale.column(1000), COLUMNS - 1);
        assert_eq!(scale.rows(&(0..7), ROWS), 0..ROWS);
        let all: u64 = (0..MEMORY_ROWS)
            .map(|row| scale.pages_of(row, MEMORY_ROWS))
            .map(|pages| pages.end - pages.start)
            .sum();
        assert_eq!(all, 7);
    }

    #[test]
    fn every_page_is_in_the_row_that_says_so() {
        for pages in [1, 5, 24, 100, 1 << 36] {
            let scale = scale(1, pages);
            for page in [0, pages / 3, pages / 2, pages - 1] {
                let row = scale.rows(&(page..page + 1), MEMORY_ROWS).start;
                assert!(
                    scale.pages_of(row, MEMORY_ROWS).contains(&page),
                    "{page} of {pages}"
                );
            }
        }
    }

    #[test]
    fn the_picture_has_the_file_its_events_and_nothing_outside() {
        let picture = draw(&Dump::parse(GOOD).unwrap());
        for part in [
            "/a file\\n&lt;b&gt;",
            "class=\"miss\"",
            "class=\"ahead\"",
            "class=\"evict\"",
            "2 older or missed",
            "waits for the disk: 1",
        ] {
            assert!(picture.contains(part), "no {part}");
        }
        assert!(!picture.contains("class=\"store\" d"));
        const { assert!(LEFT + PLOT <= WIDTH) };
    }

    #[test]
    fn what_is_in_memory_is_found_from_the_end_too() {
        // Where the beginning was lost, four pages of eight are there all the time, and two go.
        let text = "pinfold-trace 1\nevents 2 lost 9\n0 evict 1 6 2\n100 here 1 0 4\nend 2\n";
        let picture = draw(&Dump::parse(text).unwrap());
        let full: Vec<&str> = picture
            .lines()
            .filter(|line| line.starts_with("<path class=\"clean part3\""))
            .collect();
        assert_eq!(full.len(), 1);
        // The lower half, in each of its rows from the first to the last moment.
        assert_eq!(full[0].matches("h860v9.0").count(), 4);
    }

    #[test]
    fn a_dump_without_files_says_so() {
        let text = "pinfold-trace 1\nevents 1 lost 0\n5 fresh 0 4096\nend 1\n";
        assert!(draw(&Dump::parse(text).unwrap()).contains("No event has to do with a file"));
    }
}
