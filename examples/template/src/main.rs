//! A program for Pinfold. Boot it with `cargo run -- world`.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use pinfold::command::{Status, USAGE};
use pinfold::println;
use pinfold::program::env;

// Its name is that of the binary, its summary the package's description.
pinfold::program!(main);

fn main(names: &[String]) -> Status {
    let greeting = env::var("GREETING").unwrap_or("Hello".into());
    if names.is_empty() {
        println!("greet: whom?");
        return USAGE;
    }
    for name in names {
        println!("{greeting}, {name}!");
    }
    0
}
