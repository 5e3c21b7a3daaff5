//! Linux and Pinfold side by side: from the logs of `bench/compare.sh` to a table and a bar chart.
//!
//! A log has a line `NAME VALUE UNIT` for each figure; all else is for people. Of several logs of one system the median
//! counts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// How figures of a row are read and shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `-icount`: a nanosecond is an instruction.
    Instructions,
    /// Instructions by those of another row, less is better.
    Ratio,
    /// Plain emulation, more is better.
    Rate,
    /// Plain emulation, in microseconds.
    Latency,
}

/// A line of the table.
struct Row {
    name: &'static str,
    means: &'static str,
    kind: Kind,
    /// The row that a ratio divides by.
    over: &'static str,
    /// What must be reached, and what is aimed at: in the row's unit, or times Linux for rates.
    goals: Option<(f64, f64)>,
    /// A figure of Pinfold's own that nothing can be better than.
    limit: Option<&'static str>,
}

const fn row(name: &'static str, means: &'static str, kind: Kind) -> Row {
    Row {
        name,
        means,
        kind,
        over: "",
        goals: None,
        limit: None,
    }
}

impl Row {
    const fn over(self, over: &'static str) -> Self {
        Self { over, ..self }
    }

    const fn goals(self, must: f64, aim: f64) -> Self {
        Self {
            goals: Some((must, aim)),
            ..self
        }
    }

    const fn limit(self, name: &'static str) -> Self {
        Self {
            limit: Some(name),
            ..self
        }
    }
}

use Kind::{Instructions, Latency, Rate, Ratio};

const ROWS: [Row; 38] = [
    row(
        "anon_read_fault",
        "anonymous read fault, each page of a region",
        Instructions,
    )
    .goals(200.0, 20.0),
    row("anon_write_fault", "anonymous write fault", Instructions)
        .goals(400.0, 250.0)
        .limit("page_zero"),
    row("anon_upgrade_fault", "first write after read", Instructions)
        .goals(500.0, 350.0)
        .limit("page_zero"),
    row(
        "anon_munmap_per_page",
        "unmap, each present anonymous page",
        Instructions,
    )
    .goals(60.0, 25.0),
    row(
        "file_read_fault_warm_faultaround",
        "cached file page, read fault, sequential",
        Instructions,
    )
    .goals(100.0, 20.0),
    row(
        "file_read_fault_warm_single",
        "the same, a single page",
        Instructions,
    )
    .goals(400.0, 250.0),
    row("file_populate_read", "the same, by populate", Instructions),
    row(
        "file_munmap_per_page",
        "unmap, each present page of a file",
        Instructions,
    )
    .goals(60.0, 25.0),
    row(
        "file_shared_write_fault_warm",
        "shared file map, first write to a page",
        Instructions,
    )
    .goals(500.0, 300.0),
    row(
        "file_shared_redirty_after_msync",
        "the same after a flush",
        Instructions,
    ),
    row("cow_write_fault_warm", "copy-on-write fault", Instructions)
        .goals(1200.0, 800.0)
        .limit("page_copy"),
    row(
        "cow_write_after_read",
        "the same after a read",
        Instructions,
    )
    .limit("page_copy"),
    row(
        "mmap_munmap_anon_1",
        "map and unmap of an untouched page",
        Instructions,
    )
    .goals(1500.0, 700.0),
    row("mmap_munmap_file_1", "the same of a file", Instructions).goals(1500.0, 700.0),
    row(
        "mmap_touch_munmap_anon_1",
        "map, touch and unmap a page",
        Instructions,
    ),
    row(
        "mprotect_split_untouched",
        "protection change in the middle, untouched",
        Instructions,
    )
    .goals(1500.0, 700.0),
    row("mprotect_split_touched", "the same, present", Instructions).goals(1500.0, 700.0),
    row(
        "mprotect_1024_touched",
        "protection change of 1024 present pages",
        Instructions,
    ),
    row("maps_1_read_fault", "read fault with one map", Instructions),
    row(
        "maps_10000_read_fault",
        "read fault with 10 000 maps",
        Instructions,
    ),
    row(
        "maps_1_upgrade_fault",
        "first write after read with one map, pages in no order",
        Instructions,
    ),
    row(
        "maps_10000_upgrade_fault",
        "the same with 10 000 maps",
        Instructions,
    ),
    row(
        "maps_10000_upgrade_fault",
        "such a fault with 10 000 maps by one with one map",
        Ratio,
    )
    .over("maps_1_upgrade_fault")
    .goals(1.15, 1.05),
    row(
        "maps_10000_mmap_munmap",
        "map and unmap with 10 000 maps",
        Instructions,
    ),
    row(
        "boot_first_user",
        "power-on to the program's first instruction",
        Instructions,
    )
    .goals(3e6, 1e6),
    row(
        "seq_cold_touch",
        "cold sequential read, a touch a page",
        Rate,
    )
    .goals(1.5, 3.0)
    .limit("raw_seq_direct_1024k"),
    row("seq_cold_sum8", "cold sequential sum of all words", Rate).limit("raw_seq_direct_1024k"),
    row(
        "seq_cold_read_128k",
        "cold sequential read() of 128 KiB",
        Rate,
    )
    .limit("raw_seq_direct_1024k"),
    row("rand_cold", "random cold 4 KiB faults", Latency).limit("raw_rand_direct_4k"),
    row("msync_MBps", "64 MiB dirty, then flushed", Rate).goals(1.5, 3.0),
    row("msync_one_page", "one page dirty, then flushed", Latency),
    row("msync_clean_64M", "flush of 64 MiB that are clean", Latency),
    row("copy_read_64k", "read() of cached 64 KiB", Rate),
    row("copy_mmap_64k", "copy out of a map, faults included", Rate),
    row("copy_mmap_present_64k", "copy out of a present map", Rate),
    row(
        "large_touch_pass1",
        "1 GiB through 256 MiB, a touch a page, first pass",
        Rate,
    )
    .goals(1.5, 4.0),
    row("large_touch_pass2", "the same, second pass", Rate).goals(1.5, 4.0),
    row(
        "large_write_msync",
        "the same, each page dirtied, then flushed",
        Rate,
    ),
];

/// What was measured of one system, by name: all values, and the median of each counts.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn read(&mut self, log: &str) {
        for line in log.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, value, unit] = words[..] else {
                continue;
            };
            let scale = match unit {
                "ns" | "insn" | "MB/s" => 1.0,
                "us" => 1e3,
                "ms" => 1e6,
                _ => continue,
            };
            if let Ok(value) = value.parse::<f64>() {
                self.0.entry(name.into()).or_default().push(value * scale);
            }
        }
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut values = self.0.get(name)?.clone();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }
}

/// A row with its figures. Instructions, MB/s, or ns.
struct Line<'a> {
    row: &'a Row,
    linux: f64,
    pinfold: f64,
    limit: Option<f64>,
}

impl Line<'_> {
    /// How many times better than Linux.
    fn ratio(&self) -> f64 {
        match self.row.kind {
            Rate => self.pinfold / self.linux,
            Instructions | Ratio | Latency => self.linux / self.pinfold.max(0.1),
        }
    }

    fn verdict(&self) -> &'static str {
        let Some((must, aim)) = self.row.goals else {
            return if self.ratio() >= 1.0 { "" } else { "slower" };
        };
        let reaches = |goal: f64| match self.row.kind {
            Rate => self.ratio() >= goal,
            Instructions | Ratio | Latency => self.pinfold <= goal,
        };
        match (reaches(aim), reaches(must)) {
            (true, _) => "aim",
            (_, true) => "must",
            _ => "**missed**",
        }
    }

    fn show(&self, value: f64) -> String {
        match self.row.kind {
            Instructions => grouped(value),
            Ratio => format!("{value:.2}"),
            Rate => format!("{value:.0} MB/s"),
            Latency if value >= 1e6 => format!("{:.2} ms", value / 1e6),
            Latency => format!("{:.1} µs", value / 1e3),
        }
    }
}

/// A whole number in groups of three digits.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && i % 3 == first {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Reads the logs in `from`, and writes `performance.md` and `performance.svg` to `to`. `about` says when and on what.
pub(crate) fn compare(from: &Path, to: &Path, about: &str) -> Result<String, String> {
    // By system, then instructions or time: figures of one kind are not taken for the other's.
    let mut logs: BTreeMap<(&str, bool), Figures> = BTreeMap::new();
    let entries =
        std::fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let system = match name.split('-').next() {
            Some("linux") => "linux",
            Some("pinfold") => "pinfold",
            _ => continue,
        };
        let path = entry.path();
        let log = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let figures = logs.entry((system, name.contains("icount"))).or_default();
        figures.read(&log);
    }
    let figure = |system, kind: Kind, name: &str| {
        let is_counted = matches!(kind, Instructions | Ratio);
        logs.get(&(system, is_counted))?.median(name)
    };
    let value = |system, row: &Row| {
        let value = figure(system, row.kind, row.name)?;
        match row.over {
            "" => Some(value),
            over => Some(value / figure(system, row.kind, over)?),
        }
    };
    let mut lines = Vec::new();
    let mut missing = Vec::new();
    for row in &ROWS {
        let linux = value("linux", row);
        let pinfold = value("pinfold", row);
        match (linux, pinfold) {
            (Some(linux), Some(pinfold)) => lines.push(Line {
                row,
                linux,
                pinfold,
                limit: row.limit.and_then(|name| figure("pinfold", row.kind, name)),
            }),
            _ => missing.push(row.name),
        }
    }
    if lines.is_empty() {
        return Err(format!("no figures of both systems in {}", from.display()));
    }
    let write = |name: &str, text: String| {
        let path = to.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    let table = markdown(&lines, &missing, about);
    write("performance.md", table.clone())?;
    write("performance.svg", chart(&lines))?;
    Ok(table)
}

fn markdown(lines: &[Line<'_>], missing: &[&str], about: &str) -> String {
    let mut out = format!(
        "# Beside Linux\n\n{about}\n\n![How many times less than Linux](performance.svg)\n"
    );
    for (kind, title) in [
        (Instructions, "Instructions, counted by QEMU"),
        (Ratio, "How they grow, less is better"),
        (Rate, "By the clock: rates, more is better"),
        (Latency, "By the clock: times, less is better"),
    ] {
        let _ = write!(
            out,
            "\n## {title}\n\n| `name` | | Linux | Pinfold | times better | limit | goal |\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n"
        );
        for line in lines.iter().filter(|line| line.row.kind == kind) {
            let limit = line.limit.map(|limit| line.show(limit)).unwrap_or_default();
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {:.1} | {} | {} |",
                line.row.name,
                line.row.means,
                line.show(line.linux),
                line.show(line.pinfold),
                line.ratio(),
                limit,
                line.verdict()
            );
        }
    }
    let slower = lines.iter().filter(|line| line.ratio() < 1.0).count();
    let with_goals = lines.iter().filter(|line| line.row.goals.is_some());
    let (mut aim, mut must, mut goals) = (0, 0, 0);
    for line in with_goals {
        goals += 1;
        aim += usize::from(line.verdict() == "aim");
        must += usize::from(line.verdict() != "**missed**");
    }
    let _ = write!(
        out,
        "\nOf {goals} rows with goals {must} reach what they must and {aim} what is aimed at; {slower} of {} rows are slower than \
         Linux's.\n",
        lines.len()
    );
    if !missing.is_empty() {
        let _ = writeln!(out, "Not measured on both: {}.", missing.join(", "));
    }
    out
}

/// Bars of how many times better each row is than Linux, on a logarithmic scale.
fn chart(lines: &[Line<'_>]) -> String {
    const WIDTH: f64 = 860.0;
    const LEFT: f64 = 330.0;
    const STEP: f64 = 20.0;
    const TOP: f64 = 46.0;
    let most = lines.iter().map(Line::ratio).fold(10.0, f64::max);
    let least = lines.iter().map(Line::ratio).fold(1.0, f64::min);
    let (low, high) = (least.log10().floor(), most.log10().ceil());
    let x = |ratio: f64| LEFT + (ratio.log10() - low) / (high - low) * (WIDTH - LEFT - 70.0);
    let height = TOP + STEP * lines.len() as f64 + 14.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>text{{fill:#222}}.better{{fill:#2a7}}.worse{{fill:#c43}}.line{{stroke:#8888}}.one{{stroke:#222}}\n\
         @media (prefers-color-scheme:dark){{text{{fill:#ddd}}.one{{stroke:#ddd}}}}</style>\n\
         <text x=\"8\" y=\"18\" font-size=\"14\">Pinfold beside Linux on the same emulator: how many times better</text>\n"
    );
    for power in low as i32..=high as i32 {
        let at = x(10f64.powi(power));
        let class = if power == 0 { "one" } else { "line" };
        let label = if power < 0 {
            format!("1/{}", 10i64.pow(-power as u32))
        } else {
            10i64.pow(power as u32).to_string()
        };
        let _ = writeln!(
            out,
            "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.0}\" y2=\"{:.0}\"/>\
             <text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>",
            TOP - 4.0,
            height - 10.0,
            TOP - 8.0
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let ratio = line.ratio();
        let (from, to) = (x(1.0).min(x(ratio)), x(1.0).max(x(ratio)));
        let class = if ratio >= 1.0 { "better" } else { "worse" };
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{from:.1}\" y=\"{:.0}\" width=\"{:.1}\" height=\"13\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{ratio:.1}</text>",
            LEFT - 8.0,
            y + 12.0,
            line.row.name,
            y + 1.5,
            (to - from).max(1.0),
            to + 5.0,
            y + 12.0
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::{
        Figures, Instructions, Latency, Line, ROWS, Rate, Ratio, chart, grouped, markdown,
    };

    #[test]
    fn the_median_of_all_logs_counts_and_other_lines_do_not() {
        let mut figures = Figures::default();
        figures.read("# section x\nrand_cold 25.6 us\nPinfold 0.1 on virt\nrand_cold 31.0 us\n");
        figures.read("rand_cold 20 us\nname one ns\n");
        assert_eq!(figures.median("rand_cold"), Some(25_600.0));
        assert_eq!(figures.median("name"), None);
    }

    #[test]
    fn a_row_is_better_when_it_takes_less_or_gets_more() {
        let line = |kind, linux, pinfold| {
            let row = ROWS
                .iter()
                .find(|row| row.kind == kind && row.goals.is_some());
            let of_kind = || ROWS.iter().find(|row| row.kind == kind);
            let row = row.or_else(of_kind).unwrap();
            Line {
                row,
                linux,
                pinfold,
                limit: None,
            }
        };
        assert_eq!(line(Instructions, 1000.0, 10.0).ratio(), 100.0);
        assert_eq!(line(Instructions, 1000.0, 10.0).verdict(), "aim");
        assert_eq!(line(Instructions, 1000.0, 300.0).verdict(), "**missed**");
        assert_eq!(line(Rate, 1000.0, 2000.0).verdict(), "must");
        assert_eq!(line(Latency, 1000.0, 2000.0).verdict(), "slower");
        assert_eq!(line(Ratio, 1.2, 1.1).verdict(), "must");
    }

    #[test]
    fn table_and_chart_have_every_row() {
        let lines: Vec<_> = ROWS
            .iter()
            .map(|row| Line {
                row,
                linux: 1000.0,
                pinfold: 500.0,
                limit: Some(5.0),
            })
            .collect();
        let (table, chart) = (markdown(&lines, &[], "Today."), chart(&lines));
        for row in &ROWS {
            assert!(table.contains(&format!("| `{}` |", row.name)));
            assert!(chart.contains(row.name));
        }
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(894_769_184.2), "894\u{202f}769\u{202f}184");
        assert_eq!(grouped(12.0), "12");
        assert_eq!(grouped(123_456.0), "123\u{202f}456");
    }
}
