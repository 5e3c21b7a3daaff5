//! What the pictures have in common: text that is safe in XML, round numbers for axes, sizes and times for people.

/// `text` as XML takes it, at most `most` characters of it.
pub(crate) fn escape(text: &str, most: usize) -> String {
    let mut out = String::new();
    for (i, character) in text.chars().enumerate() {
        if i == most {
            out.push('…');
            break;
        }
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The head of a picture: its size, and the colours of text and lines in the light and in the dark.
pub(crate) fn head(width: f64, height: f64, style: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>text{{fill:#222}}.quiet{{fill:#666}}.grid{{stroke:#8884}}.frame{{fill:#8881;stroke:#8888}}{style}\n\
         @media (prefers-color-scheme:dark){{text{{fill:#ddd}}.quiet{{fill:#aaa}}}}</style>\n"
    )
}

/// Marks from zero to `most` at round distances, `count` of them or fewer.
pub(crate) fn ticks(most: f64, count: usize) -> Vec<f64> {
    let rough = most / count.max(1) as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![0.0];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|n| n * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    (0..=count)
        .map(|i| i as f64 * step)
        .take_while(|tick| *tick <= most * 1.000_001)
        .collect()
}

/// A number with at most two digits behind the point, and none that say nothing.
pub(crate) fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{} {unit}", short(value))
}

/// The unit for times up to `ns`, and how many nanoseconds it has.
pub(crate) fn time_unit(ns: u64) -> (&'static str, f64) {
    match ns {
        0..2_000 => ("ns", 1.0),
        2_000..2_000_000 => ("µs", 1e3),
        2_000_000..2_000_000_000 => ("ms", 1e6),
        _ => ("s", 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, escape, short, ticks, time_unit};

    #[test]
    fn what_would_end_the_xml_is_escaped_and_long_text_is_cut() {
        assert_eq!(
            escape("a<b>&\"c\"\n", 20),
            "a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}"
        );
        assert_eq!(escape("abcdef", 3), "abc…");
    }

    #[test]
    fn marks_are_round_and_few() {
        assert_eq!(ticks(10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.7, 4), [0.0, 0.2, 0.4, 0.6000000000000001]);
        assert_eq!(ticks(0.0, 5), [0.0]);
        assert_eq!(ticks(f64::NAN, 5), [0.0]);
        for most in [1.0, 3.3, 99.0, 101.0, 12_345.0] {
            assert!((2..=7).contains(&ticks(most, 6).len()), "{most}");
        }
    }

    #[test]
    fn sizes_and_times_have_units_people_read() {
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(33_554_432), "32 MiB");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(time_unit(5_000_000), ("ms", 1e6));
        assert_eq!(short(2.0), "2");
        assert_eq!(short(0.25), "0.25");
    }
}
