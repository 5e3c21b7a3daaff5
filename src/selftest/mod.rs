//! What the shipped image can prove about itself.
//!
//! A test stands beside the feature it tests, or in a module here where it needs several, and registers itself:
//!
//! ```ignore
//! selftest!(fn sum_of_two() "two and two are four" { assert_eq!(2 + 2, 4) });
//! ```
//!
//! `selftest [FILTER]` runs those whose name contains FILTER, in the order of their names, each in a thread of its own, and prints TAP
//! version 14. A panic or an exception fails the test and the next one runs; a test that does not end in time fails
//! with the backtrace of its thread, and nothing runs after it, since what it holds is not known.

mod board;
mod exceptions;
mod files;
mod maps;
mod memory;
mod programs;
mod sd;
mod stopping;
mod threads;

use crate::command::{self, COMMANDS, Command, FAILURE, INTERRUPTED, SUCCESS, Status, USAGE};
use crate::report;
use crate::thread::{self, Exit, Role, Thread};
use crate::{console, print, println};
use alloc::sync::Arc;
use linkme::distributed_slice;

/// One test.
pub struct Test {
    /// The behaviour it states.
    pub name: &'static str,
    /// Panics where the behaviour is not there.
    pub run: fn(),
}

/// All tests, in no order.
#[distributed_slice]
pub static TESTS: [Test];

/// Declares and registers a test: a function name, the behaviour in words, and the body.
#[macro_export]
macro_rules! selftest {
    (fn $function:ident() $name:literal $body:block) => {
        fn $function() $body

        const _: () = {
            #[linkme::distributed_slice($crate::selftest::TESTS)]
            static TEST: $crate::selftest::Test = $crate::selftest::Test { name: $name, run: $function };
        };
    };
}

/// How long one test may take. Emulation on a busy machine is slow: this ends hangs, it measures nothing.
const TIME_LIMIT_US: u64 = 120_000_000;

/// The test that always fails; it runs only when asked for by this name.
const CANARY: &str = "canary";

selftest!(fn canary() "canary: a test that fails is reported" {
    panic!("the canary sings: failures are seen");
});

#[distributed_slice(COMMANDS)]
static SELFTEST: Command = Command {
    name: "selftest",
    arguments: "[FILTER]",
    summary: "test this image on this machine, in TAP version 14\n\n\
        Only tests with FILTER in their name, if there is one. What a test makes on\n\
        the disk it removes.\n\
        Example: selftest disks",
    run: selftest,
};

fn selftest(arguments: &[&str]) -> Status {
    let filter = match arguments {
        [] => "",
        [filter] => *filter,
        _ => {
            println!("selftest: one FILTER at most; quote it if it has blanks");
            return USAGE;
        }
    };
    let meant = TESTS
        .iter()
        .filter(|test| test.name.contains(filter))
        .filter(|test| filter.contains(CANARY) || !test.name.starts_with(CANARY));
    let tests = command::by_name(meant, |test| test.name);
    if tests.is_empty() {
        println!("selftest: no test has \"{filter}\" in its name");
        return USAGE;
    }
    println!("TAP version 14\n1..{}", tests.len());
    let summary = if filter.is_empty() {
        board::report()
    } else {
        None
    };
    let mut failed = 0;
    for (i, test) in tests.iter().enumerate() {
        if console::is_interrupted() {
            println!("Bail out! interrupted");
            return INTERRUPTED;
        }
        let number = i + 1;
        match run(test) {
            Outcome::Passed => println!("ok {number} - {}", test.name),
            Outcome::Failed(report) => {
                failed += 1;
                println!("not ok {number} - {}", test.name);
                print_diagnostic(&report);
            }
            Outcome::Hung(thread) => {
                failed += tests.len() - i;
                println!("not ok {number} - {}", test.name);
                println!("# no end after {} s", TIME_LIMIT_US / 1_000_000);
                print_diagnostic(&alloc::format!("{}", report::stuck(&thread)));
                println!("Bail out! what the test holds is not known");
                break;
            }
        }
    }
    let passed = tests.len() - failed;
    if let Some(summary) = summary {
        summary.print(passed, failed);
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { SUCCESS } else { FAILURE }
}

enum Outcome {
    Passed,
    Failed(alloc::string::String),
    Hung(Arc<Thread>),
}

fn run(test: &Test) -> Outcome {
    let thread = match thread::spawn(test.name, Role::Test, test.run) {
        Ok(thread) => thread,
        Err(error) => return Outcome::Failed(alloc::format!("{error}")),
    };
    match thread.join_timeout(TIME_LIMIT_US) {
        Some(Exit::Returned) => Outcome::Passed,
        Some(Exit::Crashed(report)) => Outcome::Failed(report),
        Some(Exit::Stopped) => Outcome::Failed("it was stopped".into()),
        None => Outcome::Hung(thread),
    }
}

fn print_diagnostic(text: &str) {
    for line in text.lines() {
        print!("# {line}\n");
    }
}
