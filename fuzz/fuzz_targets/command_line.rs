//! A line as typed at the console, or given to the kernel.
#![no_main]

#[path = "../../tests/common/targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    targets::command_line(data);
});
