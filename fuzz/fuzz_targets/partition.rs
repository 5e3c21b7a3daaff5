//! A disk with a partition table.
#![no_main]

#[path = "../../tests/common/targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static BASES: LazyLock<Vec<targets::Base>> =
    LazyLock::new(|| targets::seeds("partition", targets::Base::new));

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = targets::chosen(&BASES, data) {
        targets::partitions(bytes);
    }
});
