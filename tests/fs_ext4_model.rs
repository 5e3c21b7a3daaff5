//! Random operations against a plain model; afterwards the contents are the model's and `e2fsck -fn` is satisfied.
//!
//! `PINFOLD_OPERATIONS=10000 PINFOLD_SEEDS=20 cargo test --release --test fs_ext4_model` is the long run.

mod common;

use common::model::Model;
use common::{OPTION_SETS, campaign, e2fsck, mkfs, mount};
use pinfold::fs::FileSystem;
use pinfold::fs::ext4::Access;
use pinfold::fs::ram_disk::RamDisk;
use std::sync::Arc;

fn run(name: &str, kib: u64, options: &[&str], seed: u64, operations: u64) {
    let disk = Arc::new(RamDisk::new(mkfs(kib, options, None)));
    let mounted = mount(disk.clone(), Access::ReadWrite).unwrap();
    assert_eq!(mounted.read_only, None, "{name}");
    let mut fs = mounted.file_system;
    let mut model = Model::new(seed, fs.root(), disk.clone());
    for step in 0..operations {
        model.step(&fs);
        if step % (operations / 3).max(1) == operations / 4 {
            model.forget_open_files(&fs);
            fs.unmount().unwrap();
            if let Err(report) = e2fsck(&disk.contents()) {
                panic!("{name}, seed {seed}, after {step} operations: {report}");
            }
            fs = mount(disk.clone(), Access::ReadWrite).unwrap().file_system;
            model.compare(&fs);
        }
    }
    model.forget_open_files(&fs);
    model.compare(&fs);
    fs.unmount().unwrap();
    let image = disk.contents();
    if let Err(report) = e2fsck(&image) {
        panic!("{name}, seed {seed}: {report}");
    }
    let fs = mount(Arc::new(RamDisk::new(image)), Access::ReadOnly)
        .unwrap()
        .file_system;
    model.compare(&fs);
}

#[test]
fn random_operations_leave_what_the_model_has_on_all_option_sets() {
    let operations = campaign("PINFOLD_OPERATIONS", 700);
    for seed in 0..campaign("PINFOLD_SEEDS", 1) {
        for (name, options) in OPTION_SETS {
            run(name, 24 * 1024, options, seed, operations);
        }
    }
}

#[test]
fn random_operations_on_a_nearly_full_disk_fail_cleanly() {
    let operations = campaign("PINFOLD_OPERATIONS", 1000);
    for seed in 0..campaign("PINFOLD_SEEDS", 1) {
        for (name, options) in [OPTION_SETS[0], OPTION_SETS[1], OPTION_SETS[6]] {
            run(name, 3 * 1024, options, seed + 1000, operations);
        }
    }
}
