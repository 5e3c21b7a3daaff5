//! Plots of how something grows: one picture, and a table.
//!
//! ```text
//! title: Faults with more and more maps
//! x: maps
//! y: instructions
//! read fault 1 120.5          what, how many, how much
//! read fault 10 121.0
//! ```
//!
//! The horizontal axis is logarithmic; so is the vertical one where a line `scale: logarithmic` says so.

use crate::compare::grouped;
use crate::svg::{escape, head, short, ticks};
use std::fmt::Write;
use std::path::Path;

#[derive(Default, Debug, PartialEq)]
struct Plot {
    title: String,
    x: String,
    y: String,
    is_logarithmic: bool,
    lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// Reads the figures in `from`, writes their picture to `to`, and returns their table, in Markdown.
pub(crate) fn plot(from: &Path, to: &Path) -> Result<String, String> {
    let text =
        std::fs::read_to_string(from).map_err(|error| format!("{}: {error}", from.display()))?;
    let plot = Plot::parse(&text).map_err(|error| format!("{}: {error}", from.display()))?;
    std::fs::write(to, plot.draw()).map_err(|error| format!("{}: {error}", to.display()))?;
    Ok(plot.table())
}

impl Plot {
    fn parse(text: &str) -> Result<Self, String> {
        let mut plot = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            match line.split_once(": ") {
                _ if line.trim().is_empty() => {}
                Some(("title", title)) => plot.title = title.into(),
                Some(("x", x)) => plot.x = x.into(),
                Some(("y", y)) => plot.y = y.into(),
                Some(("scale", "logarithmic")) => plot.is_logarithmic = true,
                _ => plot
                    .add(line)
                    .ok_or(format!("line {number} is no figure: {line}"))?,
            }
        }
        if plot.lines.is_empty() {
            return Err("no figure is there".into());
        }
        Ok(plot)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = line.rsplitn(3, ' ');
        let (y, x, name) = (words.next()?, words.next()?, words.next()?);
        let positive = |word: &str| {
            word.parse()
                .ok()
                .filter(|n: &f64| n.is_finite() && *n >= 0.0)
        };
        let point = (positive(x).filter(|x| *x > 0.0)?, positive(y)?);
        match self.lines.iter_mut().find(|(known, _)| known == name) {
            Some((_, points)) => points.push(point),
            None => self.lines.push((name.into(), vec![point])),
        }
        Some(())
    }

    /// The places on the horizontal axis, each once.
    fn places(&self) -> Vec<f64> {
        let mut places: Vec<f64> = self
            .lines
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(x, _)| *x)
            .collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }

    fn table(&self) -> String {
        let mut out = format!("| {} |", self.x);
        let names: Vec<&str> = self.lines.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(
            out,
            " {} |\n| ---: |{}",
            names.join(" | "),
            " ---: |".repeat(names.len())
        );
        for place in self.places() {
            let _ = write!(out, "| {} |", grouped(place));
            for (_, points) in &self.lines {
                let value = points.iter().find(|(x, _)| *x == place);
                let _ = write!(
                    out,
                    " {} |",
                    value.map_or(String::new(), |(_, y)| figure(*y))
                );
            }
            out.push('\n');
        }
        out
    }

    fn draw(&self) -> String {
        const WIDTH: f64 = 760.0;
        const LEFT: f64 = 84.0;
        const RIGHT: f64 = 500.0;
        const TOP: f64 = 44.0;
        const BOTTOM: f64 = 284.0;
        let places = self.places();
        let (low, high) = (places[0], places[places.len() - 1]);
        let all = || {
            self.lines
                .iter()
                .flat_map(|(_, points)| points)
                .map(|(_, y)| *y)
        };
        let most = all().fold(1.0, f64::max);
        let x = |value: f64| match high > low {
            true => LEFT + (value / low).ln() / (high / low).ln() * (RIGHT - LEFT),
            false => (LEFT + RIGHT) / 2.0,
        };
        // From zero, or from the power of ten below the least to that above the most.
        let (floor, ceiling) = if self.is_logarithmic {
            let least = all().filter(|y| *y > 0.0).fold(most, f64::min);
            (
                10f64.powf(least.log10().floor()),
                10f64.powf(most.log10().floor() + 1.0),
            )
        } else {
            (0.0, most * 1.08)
        };
        let y = |value: f64| {
            let part = match self.is_logarithmic {
                true => (value.max(floor) / floor).ln() / (ceiling / floor).ln(),
                false => value / ceiling,
            };
            BOTTOM - part * (BOTTOM - TOP)
        };
        let mut out = head(WIDTH, BOTTOM + 46.0, &STYLE.concat());
        let _ = writeln!(
            out,
            "<text x=\"8\" y=\"22\" font-size=\"14\">{}</text>\
             <rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" class=\"quiet\">{}</text>\
             <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\" class=\"quiet\">{}</text>",
            escape(&self.title, 90),
            RIGHT - LEFT,
            BOTTOM - TOP,
            (LEFT + RIGHT) / 2.0,
            BOTTOM + 36.0,
            escape(&self.x, 60),
            (TOP + BOTTOM) / 2.0,
            escape(&self.y, 40)
        );
        let marks: Vec<f64> = match self.is_logarithmic {
            true => (0..)
                .map(|i| floor * 10f64.powi(i))
                .take_while(|mark| *mark <= ceiling * 1.01)
                .collect(),
            false => ticks(ceiling, 5),
        };
        for mark in marks {
            let at = y(mark);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"11\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                brief(mark)
            );
        }
        for place in &places {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
                x(*place),
                BOTTOM + 16.0,
                brief(*place)
            );
        }
        for (i, (name, points)) in self.lines.iter().enumerate() {
            let class = i % STYLE.len();
            let path: Vec<String> = points
                .iter()
                .map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py)))
                .collect();
            let _ = writeln!(
                out,
                "<polyline class=\"l{class}\" points=\"{}\"/>",
                path.join(" ")
            );
            for (px, py) in points {
                let _ = writeln!(
                    out,
                    "<circle class=\"d{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                    x(*px),
                    y(*py)
                );
            }
            let at = TOP + 12.0 + 20.0 * i as f64;
            let _ = writeln!(
                out,
                "<circle class=\"d{class}\" cx=\"{}\" cy=\"{}\" r=\"5\"/><text x=\"{}\" y=\"{}\">{}</text>",
                RIGHT + 18.0,
                at - 4.0,
                RIGHT + 30.0,
                at,
                escape(name, 34)
            );
        }
        out + "</svg>\n"
    }
}

const STYLE: [&str; 6] = [
    ".l0{fill:none;stroke:#2b9a4b;stroke-width:2}.d0{fill:#2b9a4b}",
    ".l1{fill:none;stroke:#4a90d9;stroke-width:2}.d1{fill:#4a90d9}",
    ".l2{fill:none;stroke:#e0912f;stroke-width:2}.d2{fill:#e0912f}",
    ".l3{fill:none;stroke:#e5383b;stroke-width:2}.d3{fill:#e5383b}",
    ".l4{fill:none;stroke:#8a55e0;stroke-width:2}.d4{fill:#8a55e0}",
    ".l5{fill:none;stroke:#888;stroke-width:2}.d5{fill:#888}",
];

/// A number for an axis.
fn brief(value: f64) -> String {
    match value {
        1e9.. => format!("{}G", short(value / 1e9)),
        1e6.. => format!("{}M", short(value / 1e6)),
        1e4.. => format!("{}k", short(value / 1e3)),
        _ => short(value),
    }
}

/// A figure for a table: whole, but where it is small.
fn figure(value: f64) -> String {
    match value {
        100.0.. => grouped(value),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::Plot;

    const TEXT: &str = "title: A < B\nx: things\ny: instructions\n\nread fault 1 120.5\nread fault 100000 130\nwrite 1 0\n";

    #[test]
    fn lines_are_collected_by_name_and_the_table_has_all() {
        let plot = Plot::parse(TEXT).unwrap();
        assert_eq!(
            plot.lines[0],
            ("read fault".into(), vec![(1.0, 120.5), (100_000.0, 130.0)])
        );
        assert_eq!(
            plot.table(),
            "| things | read fault | write |\n| ---: | ---: | ---: |\n| 1 | 120 | 0.0 |\n| 100\u{202f}000 | 130 |  |\n"
        );
    }

    #[test]
    fn every_point_is_within_the_frame() {
        for text in [
            TEXT.to_string(),
            format!("scale: logarithmic\n{TEXT}"),
            "a 5 5\n".into(),
            "a 1 0\n".into(),
        ] {
            let picture = Plot::parse(&text).unwrap().draw();
            assert!(!picture.contains("NaN") && !picture.contains("inf"));
            for part in picture
                .split("<circle class=\"d")
                .skip(1)
                .filter(|part| part.contains("r=\"3\""))
            {
                let number = |name: &str| -> f64 {
                    let at = part.find(name).unwrap() + name.len() + 2;
                    part[at..].split('"').next().unwrap().parse().unwrap()
                };
                assert!((84.0..=500.0).contains(&number("cx")), "{part}");
                assert!((44.0..=284.0).contains(&number("cy")), "{part}");
            }
        }
    }

    #[test]
    fn what_is_no_figure_is_told_with_its_line() {
        assert!(Plot::parse("").unwrap_err().contains("no figure"));
        for bad in [
            "a 1",
            "a x 1",
            "a 0 1",
            "a 1 -1",
            "a 1 inf",
            "scale: square",
        ] {
            let text = format!("title: t\n{bad}\n");
            assert!(Plot::parse(&text).unwrap_err().contains("line 2"), "{bad}");
        }
    }
}
