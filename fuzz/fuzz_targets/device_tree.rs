//! A device tree, and the board it describes.
#![no_main]

#[path = "../../tests/common/targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static BASES: LazyLock<Vec<targets::Base>> =
    LazyLock::new(|| targets::seeds("device_tree", targets::Base::new));

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = targets::chosen(&BASES, data) {
        targets::tree(bytes);
    }
});
