//! How far long work is, at a terminal: a row that is drawn over and over, after the first second.

use crate::arch::aarch64::timer;
use crate::edit::COLUMNS;
use crate::size::human;
use crate::{console, print};
use alloc::string::String;

/// Before this nobody wonders.
const PATIENCE_US: u64 = 1_000_000;
/// Time between two drawings.
const PERIOD_US: u64 = 200_000;

/// Work on `total` bytes. The row goes when this is dropped.
pub struct Progress<'a> {
    what: &'a str,
    total: u64,
    done: u64,
    started: u64,
    /// When to draw next, in ticks.
    next: u64,
    is_drawn: bool,
}

impl<'a> Progress<'a> {
    /// Nothing is done yet.
    pub fn new(what: &'a str, total: u64) -> Self {
        let started = timer::now();
        Self {
            what,
            total,
            done: 0,
            started,
            next: started + timer::ticks_from_us(PATIENCE_US),
            is_drawn: false,
        }
    }

    /// So many bytes more are done.
    pub fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let now = timer::now();
        if now < self.next || !console::is_terminal() {
            return;
        }
        self.next = now + timer::ticks_from_us(PERIOD_US);
        self.is_drawn = true;
        let us = timer::ns_from_ticks(now - self.started) / 1000;
        print!("\r{}\x1b[K", row(self.what, self.done, self.total, us));
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.is_drawn {
            print!("\r\x1b[K");
        }
    }
}

/// Cut to a row of the screen, from the name's beginning: the figures are what is looked at.
fn row(what: &str, done: u64, total: u64, us: u64) -> String {
    let scale =
        |a: u64, b: u64, c: u64| (u128::from(a) * u128::from(b) / u128::from(c.max(1))) as u64;
    let rate = scale(done, 1_000_000, us);
    let left = total.saturating_sub(done).div_ceil(rate.max(1));
    let figures = alloc::format!(
        "{:>8} of {}, {} %, {}/s, {left} s left",
        human(done),
        human(total),
        scale(done, 100, total),
        human(rate),
    );
    let room = COLUMNS - 3 - figures.len();
    let skipped = what.chars().count().saturating_sub(room);
    let what: String = what.chars().skip(skipped).collect();
    alloc::format!("{what}  {figures}")
}
