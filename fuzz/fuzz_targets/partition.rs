//! Reads arbitrary bytes as a disk with a partition table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::fs::partition;
use pinfold::fs::ram_disk::RamDisk;

fuzz_target!(|disk: &[u8]| {
    let _ = partition::find(&RamDisk::new(disk.to_vec()));
});
