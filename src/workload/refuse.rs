//! `run refuse FIRST COUNT`: so many requests for frames are refused, from the one with this number on.

use crate::command::{SUCCESS, Status, USAGE};
use crate::mm::FRAMES;
use crate::println;
use crate::program::{PROGRAMS, Program};
use alloc::string::String;
use alloc::vec::Vec;
use linkme::distributed_slice;

#[distributed_slice(PROGRAMS)]
static REFUSE: Program = Program {
    name: "refuse",
    summary: "refuse requests for frames: FIRST COUNT; tells how many there were since it last ran",
    main: run,
};

fn run(arguments: &[String]) -> Status {
    let words: Vec<Result<u64, _>> = arguments.iter().map(|word| word.parse()).collect();
    let [Ok(first), Ok(count)] = words[..] else {
        println!("usage: run refuse FIRST COUNT");
        return USAGE;
    };
    let asked = FRAMES.refuse(first..first.saturating_add(count));
    println!("refuse: {asked} requests for frames");
    SUCCESS
}
