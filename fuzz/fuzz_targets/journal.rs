//! An ext4 image whose log is full: recovered, looked at, and changed.
#![no_main]

#[path = "../../tests/common/targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static BASES: LazyLock<Vec<targets::Base>> =
    LazyLock::new(|| targets::seeds("journal", targets::with_full_log));

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = targets::chosen(&BASES, data) {
        targets::ext4(bytes, data);
    }
});
