//! What it costs to get to a program.

use crate::arch::aarch64::timer;
use crate::kernel;
use crate::println;

crate::program! { name: "hello", summary: "say what it cost to get to a program's first instruction", main: hello }

fn hello() {
    let ticks = timer::now();
    let start = kernel::start_cost(ticks);
    println!("Hello from a program on SP_EL0.");
    println!("{start}");
}
