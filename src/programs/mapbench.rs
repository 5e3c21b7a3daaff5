//! `mapbench`: what maps cost, by the names of `mmapbench`, on a program's own threads.

use crate::bench::{BENCHES, Bench};
use crate::command::{FAILURE, SUCCESS, Status, USAGE};
use crate::println;
use crate::thread::Call;
use alloc::string::String;
use alloc::vec::Vec;

crate::program! {
    name: "mapbench",
    summary: "measure faults and maps, one \"name value unit\" a line: [GROUP...]",
    main: main,
}

/// The groups of `bench` that are about maps; those about files want a disk to write to.
const GROUPS: [&str; 9] = [
    "anon", "cow", "floor", "large", "maps", "mmap", "mprotect", "msync", "warm",
];

fn main(arguments: &[String]) -> Status {
    let wanted: Vec<&str> = match arguments {
        [] => GROUPS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = wanted.iter().find(|name| !GROUPS.contains(name)) {
        println!(
            "mapbench: no group \"{unknown}\"; there are {}",
            GROUPS.join(" ")
        );
        return USAGE;
    }
    let mut status = SUCCESS;
    for name in wanted {
        let groups = || BENCHES.iter().filter(|bench: &&Bench| bench.name == name);
        for bench in groups() {
            println!("# section {name}");
            let result = {
                // It calls the kernel itself.
                let _call = Call::enter();
                (bench.run)()
            };
            if let Err(reason) = result {
                println!("mapbench: {name}: {reason}");
                status = FAILURE;
            }
        }
    }
    status
}
