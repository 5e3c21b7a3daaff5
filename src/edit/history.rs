//! Lines that were entered before.

use alloc::collections::VecDeque;
use alloc::string::String;

/// Lines that are kept.
const MAX_LINES: usize = 200;

/// The lines, each once, the last one entered at the end.
#[derive(Default)]
pub(super) struct History(VecDeque<String>);

impl History {
    /// Keeps `line`, if there is anything in it.
    pub(super) fn add(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        self.0.retain(|old| old != line);
        if self.0.len() == MAX_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.into());
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Line number `at`, 0 the oldest.
    pub(super) fn get(&self, at: usize) -> Option<&str> {
        self.0.get(at).map(String::as_str)
    }

    /// The youngest line before number `before` that contains `text`.
    pub(super) fn find(&self, text: &str, before: usize) -> Option<usize> {
        (0..before.min(self.0.len()))
            .rev()
            .find(|at| self.0[*at].contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::{History, MAX_LINES};

    #[test]
    fn each_line_is_kept_once_and_the_oldest_goes() {
        let mut history = History::default();
        for i in 0..=MAX_LINES {
            history.add(&alloc::format!("line {i}"));
            history.add("again");
            history.add("  ");
        }
        assert_eq!(history.len(), MAX_LINES);
        assert_eq!(history.get(MAX_LINES - 1), Some("again"));
        assert_eq!(history.get(MAX_LINES - 2), Some("line 200"));
        assert_eq!(history.find("line", MAX_LINES), Some(MAX_LINES - 2));
        assert_eq!(history.find("line 3", 3), Some(1));
        assert_eq!(history.find("nothing", MAX_LINES), None);
    }
}
