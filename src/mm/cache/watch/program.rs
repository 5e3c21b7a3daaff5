//! `run watch`: draws the page again and again, while another thread works.

use super::{FILES, LINES, Moment, Row, STRIP, Strip, page};
use crate::arch::aarch64::timer;
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::mm::{CACHE, FRAMES, maps};
use crate::program::{PROGRAMS, Program};
use crate::sync::SpinLock;
use crate::thread::{self, Call, Role, Thread};
use crate::{console, print, println, shell};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use linkme::distributed_slice;

#[distributed_slice(PROGRAMS)]
static WATCH: Program = Program {
    name: "watch",
    summary: "show cache and maps at work: [-1|SECONDS] [-- COMMAND...]; q ends it",
    main: watch,
};

const REFRESH_US: u64 = 500_000;
/// What a page speaks of that is drawn once, and beside no command.
const ONCE_US: u64 = 1_000_000;

fn watch(arguments: &[String]) -> Status {
    // Ctrl-C ends it when the screen is as it was.
    let _call = Call::enter();
    let (options, command) = match arguments.iter().position(|word| word == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (arguments, &[][..]),
    };
    let seconds = match options {
        [] => None,
        [once] if once == "-1" => None,
        [seconds] => match seconds.parse::<u32>() {
            Ok(seconds) => Some(u64::from(seconds) * 1_000_000),
            Err(_) => return usage(),
        },
        _ => return usage(),
    };
    if command.is_empty() && arguments.last().is_some_and(|word| word == "--") {
        return usage();
    }
    // A page that changes is for terminals.
    let is_once = options.iter().any(|word| word == "-1") || !console::is_terminal();
    let work = match Work::start(command) {
        Ok(work) => work,
        Err(error) => {
            println!("watch: {error}");
            return FAILURE;
        }
    };
    if is_once {
        let before = now();
        match &work {
            Some(work) => _ = work.wait(),
            None => thread::sleep(seconds.unwrap_or(ONCE_US)),
        }
        print!("{}", page(&before, &now(), &rows()));
    } else {
        live(seconds, work.as_ref());
    }
    work.map_or(SUCCESS, |work| work.wait())
}

fn usage() -> Status {
    println!("usage: run watch [-1|SECONDS] [-- COMMAND...]");
    USAGE
}

/// A command that runs beside the page.
struct Work {
    thread: Arc<Thread>,
    status: Arc<SpinLock<Option<Status>>>,
}

impl Work {
    /// Starts the command, if there is one: its words, or a whole line as one word.
    fn start(words: &[String]) -> Result<Option<Self>, thread::SpawnError> {
        if words.is_empty() {
            return Ok(None);
        }
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let status = Arc::new(SpinLock::new(None));
        let result = status.clone();
        // As the console's own thread: a command is the kernel's code, and starts programs itself.
        let thread = thread::spawn("watched", Role::Kernel, move || {
            let done = match &words[..] {
                [line] => shell::run_line(line),
                words => shell::run_words(words),
            };
            *result.lock() = Some(done);
        })?;
        Ok(Some(Self { thread, status }))
    }

    fn is_over(&self) -> bool {
        self.status.lock().is_some()
    }

    fn wait(&self) -> Status {
        self.thread.join();
        self.status.lock().unwrap_or(FAILURE)
    }
}

/// Redraws the page until the time is over, the work is done, or somebody ends it. What the command prints scrolls below
/// the page.
fn live(us: Option<u64>, work: Option<&Work>) {
    let end = us.map(|us| timer::now() + timer::ticks_from_us(us));
    // The screen is empty, without a cursor; rows below the page scroll, the page stays (ECMA-48; DEC's "set top and
    // bottom margins", and its "save cursor", which others have taken over).
    print!("\x1b[2J\x1b[?25l\x1b[{};24r\x1b[{0};1H", LINES + 3);
    let mut before = now();
    let began = before.us;
    loop {
        let wakes = timer::now() + timer::ticks_from_us(REFRESH_US);
        let mut is_over = false;
        while timer::now() < wakes && !is_over {
            let left =
                timer::us_from_ticks(wakes.saturating_sub(timer::now())).clamp(1, REFRESH_US / 5);
            is_over = console::read_byte_within(left) == Some(b'q')
                || console::is_interrupted()
                || work.is_some_and(Work::is_over)
                || end.is_some_and(|end| timer::now() >= end);
        }
        let now = now();
        draw(&before, &now, began, work.is_some());
        before = now;
        if is_over {
            break;
        }
    }
    // Setting the margins moves the cursor.
    print!("\x1b7\x1b[r\x1b8\x1b[?25h");
}

fn draw(before: &Moment, now: &Moment, began: u64, has_work: bool) {
    let mut out = String::from("\x1b7\x1b[H\x1b[1mPinfold at work for ");
    out.push_str(&(now.us.saturating_sub(began) / 1_000_000).to_string());
    out.push_str(match has_work {
        true => " s; q ends this page, the command goes on\x1b[m\x1b[K\n",
        false => " s; q ends it\x1b[m\x1b[K\n",
    });
    for line in page(before, now, &rows()).lines() {
        out.push_str(line);
        out.push_str("\x1b[K\n");
    }
    out.push_str("\x1b8");
    console::write_bytes(out.as_bytes());
}

fn now() -> Moment {
    Moment {
        us: timer::us_from_ticks(timer::now()),
        cache: CACHE.counts(),
        faults: maps().fault_counts(),
        frames: FRAMES.counts(),
        maps: maps().len(),
    }
}

/// The files of which most is in memory.
fn rows() -> Vec<Row> {
    let mut most: Vec<(u64, Arc<super::CachedFile>)> = Vec::new();
    for file in CACHE.files(None) {
        let (pages, _) = file.pages();
        if pages == 0 && !file.is_mapped() {
            continue;
        }
        let at = most.iter().position(|(other, _)| *other < pages);
        most.insert(at.unwrap_or(most.len()), (pages, file));
        most.truncate(FILES);
    }
    let row = |(_, file): &(u64, Arc<super::CachedFile>)| Row {
        name: file.trace_name().name,
        size: file.size(),
        strip: Strip::new(file, STRIP),
    };
    most.iter().map(row).collect()
}
