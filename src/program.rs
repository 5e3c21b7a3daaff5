//! Programs: what runs on top of the machine, and what they use.
//!
//! A program is a function linked into the image, registered by [`program!`](crate::program!) and started by name. It runs
//! in threads of its own at EL1 with SPSel = 0: on SP_EL0, stacks of their own, so that whatever happens to those, handlers
//! have theirs. A stack is an anonymous map with a guard page below, and grows by fault. A crash ends the program, not the
//! machine.
//!
//! | Where | What | In the standard library |
//! | --- | --- | --- |
//! | [`env`](mod@env) | arguments, environment | `std::env` |
//! | [`fs`] | files | `std::fs` |
//! | [`mmap`] | files as memory | crate `memmap2` |
//! | [`io`] | the console, traits of crate `embedded-io` | `std::io` |
//! | [`options`] | options of programs | |
//! | [`process`] | starting and ending programs | `std::process` |
//! | [`random`] | random numbers, traits of crate `rand_core` | crate `rand` |
//! | [`thread`] | threads | `std::thread` |
//! | [`time`] | clocks | `std::time` |
//!
//! [`print!`](crate::print!), [`println!`](crate::println!) and crate `log` reach the console. Locks that wait are in
//! [`sync`](crate::sync). What is elsewhere in this crate is the kernel's: a program that calls it enters a
//! [`Call`] first.
//!
//! ```no_run
//! #![no_std]
//! #![no_main]
//! extern crate alloc;
//!
//! use alloc::string::String;
//! use pinfold::program::fs::{self, FsError};
//! use pinfold::println;
//!
//! pinfold::program! { name: "count", summary: "count the bytes of files", main }
//!
//! fn main(paths: &[String]) -> Result<(), FsError> {
//!     for path in paths {
//!         println!("{} {path}", fs::read(path)?.len());
//!     }
//!     Ok(())
//! }
//! ```

pub mod env;
pub mod fs;
pub mod io;
pub mod options;
pub mod process;
pub mod random;
pub mod thread;
pub mod time;

pub use crate::mmap;
pub use process::interrupt;

use crate::command::{self, COMMANDS, Command, FAILURE, SUCCESS, Status, USAGE};
use crate::mm::ProgramStack;
use crate::println;
use crate::thread::{Call, Role, SpawnError, Thread, spawn_with};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::arch::global_asm;
use core::fmt;
use linkme::distributed_slice;
use process::ThreadStack;

/// A program that can be started.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Its function: takes the words after the name, returns the exit status.
    pub main: fn(&[String]) -> Status,
}

/// All programs, in no order.
#[distributed_slice]
pub static PROGRAMS: [Program];

/// Makes a function a program.
///
/// The function may take the words after the program's name, as `&[String]`, or nothing; and returns what
/// [`Termination`](crate::program::Termination) takes: nothing, an exit status, or a `Result` whose error is printed.
///
/// ```
/// # #![no_std]
/// use pinfold::command::Status;
///
/// pinfold::program! { name: "twice", summary: "a program of two words", main: twice }
///
/// fn twice() -> Status { 2 }
/// ```
///
/// In a binary of its own, `pinfold::program!(main)` takes the binary's name and the package's description.
#[macro_export]
macro_rules! program {
    ($main:ident) => {
        $crate::program! { name: env!("CARGO_BIN_NAME"), summary: env!("CARGO_PKG_DESCRIPTION"), main: $main }
    };
    (name: $name:expr, summary: $summary:expr, main $(,)?) => {
        $crate::program! { name: $name, summary: $summary, main: main }
    };
    (name: $name:expr, summary: $summary:expr, main: $main:expr $(,)?) => {
        const _: () = {
            use $crate::program as pinfold_program;

            #[$crate::linkme::distributed_slice(pinfold_program::PROGRAMS)]
            #[linkme(crate = $crate::linkme)]
            static PROGRAM: pinfold_program::Program = pinfold_program::Program {
                name: $name,
                summary: $summary,
                main: |arguments| pinfold_program::Main::call(&$main, $name, arguments),
            };
        };
    };
}

/// What `main` may be. `Kind` tells the kinds apart for the compiler, and is nobody's business.
pub trait Main<Kind> {
    /// Calls it, and says what goes wrong in the name of the program.
    fn call(&self, name: &str, arguments: &[String]) -> Status;
}

impl<T: Termination, F: Fn() -> T> Main<((), T)> for F {
    fn call(&self, name: &str, _: &[String]) -> Status {
        self().report(name)
    }
}

impl<T: Termination, F: Fn(&[String]) -> T> Main<(&[String], T)> for F {
    fn call(&self, name: &str, arguments: &[String]) -> Status {
        self(arguments).report(name)
    }
}

/// What `main` may return.
pub trait Termination {
    /// The exit status; an error is printed, after the program's name.
    fn report(self, name: &str) -> Status;
}

impl Termination for () {
    fn report(self, _: &str) -> Status {
        SUCCESS
    }
}

impl Termination for Status {
    fn report(self, _: &str) -> Status {
        self
    }
}

impl<T: Termination, E: fmt::Display> Termination for Result<T, E> {
    fn report(self, name: &str) -> Status {
        match self {
            Ok(value) => value.report(name),
            Err(error) => {
                println!("{name}: {error}");
                FAILURE
            }
        }
    }
}

#[distributed_slice(COMMANDS)]
static RUN: Command = Command {
    name: "run",
    arguments: "[PROGRAM [ARGUMENT...]]",
    summary: "run a program and wait for it; without arguments, list them\n\n\
        Its exit status is the command's; one that crashed has 139, one that Ctrl-C\n\
        ended 130.\n\
        Example: run hello",
    run,
};

fn run(arguments: &[&str]) -> Status {
    let Some((name, arguments)) = arguments.split_first() else {
        for program in command::by_name(PROGRAMS.iter(), |program| program.name) {
            println!("{:12} {}", program.name, program.summary);
        }
        return SUCCESS;
    };
    let Some(program) = process::find(name) else {
        println!("run: no program \"{name}\"; `run` lists them");
        return USAGE;
    };
    let arguments = arguments.iter().map(ToString::to_string).collect();
    match process::start(program, arguments) {
        Ok(running) => running.wait_in_foreground(),
        Err(error) => {
            println!("run: {name}: {error}");
            FAILURE
        }
    }
}

/// Bytes of the stack of [`spawn`]'s threads at most.
const STACK_SIZE: u64 = 8 << 20;

/// Starts a thread that runs `f` on SP_EL0 and belongs to no program: for what the kernel does in a program's manner.
pub fn spawn(
    name: &str,
    role: Role,
    f: impl FnOnce() + Send + 'static,
) -> Result<Arc<Thread>, SpawnError> {
    let stack = ProgramStack::new(STACK_SIZE).map_err(|_| SpawnError::OutOfMemory)?;
    let end = stack.end().0;
    spawn_with(name, role, None, Some(ThreadStack::new(stack)), move || {
        on_program_stack(end, f)
    })
}

/// Calls `f` on the stack that ends at `stack_end`, which is this thread's until it ends.
fn on_program_stack(stack_end: u64, f: impl FnOnce()) {
    let mut f = Some(f);
    let mut call = || {
        // The first return to program code: it may have been told to end before it began.
        drop(Call::enter());
        f.take().into_iter().for_each(|f| f());
    };
    let mut call: &mut dyn FnMut() = &mut call;
    // SAFETY: the stack is mapped, and this thread's; `call_it` gets the pointer it expects, to a local of ours that
    // outlives the call.
    unsafe { on_sp_el0(call_it, (&raw mut call).cast(), stack_end) };
}

unsafe extern "C" fn call_it(closure: *mut u8) {
    // SAFETY: `on_program_stack` passes a pointer to this type.
    unsafe { (*closure.cast::<&mut dyn FnMut()>())() };
}

unsafe extern "C" {
    /// Calls `function(argument)` with SPSel = 0 and SP_EL0 = `stack`.
    fn on_sp_el0(function: unsafe extern "C" fn(*mut u8), argument: *mut u8, stack: u64);
}

global_asm!(
    r#"
    .section .text.on_sp_el0, "ax"
    .global on_sp_el0
    .type on_sp_el0, %function
on_sp_el0:
    stp     x29, x30, [sp, #-16]!
    mov     x29, sp
    mov     x9, x0
    mov     x0, x1
    msr     SP_EL0, x2
    msr     SPSel, #0               // exceptions now come through the SP_EL0 vectors, onto the kernel stack
    blr     x9
    msr     SPSel, #1
    ldp     x29, x30, [sp], #16
    ret
    "#
);
