//! Programs: what runs on top of the machine.
//!
//! A program is a function linked into the image, registered in [`PROGRAMS`] and started by name. It runs in a thread
//! of its own at EL1 with SPSel = 0: on SP_EL0, a stack of its own, so that whatever happens to that stack, handlers
//! have theirs. The stack is an anonymous map with a guard page below, and grows by fault. A crash ends the program, not the machine.

use crate::command::{self, COMMANDS, Command, FAILURE, Status, USAGE};
use crate::mm::ProgramStack;
use crate::println;
use crate::sync::SpinLock;
use crate::thread::{self, Exit, Role};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::global_asm;
use linkme::distributed_slice;

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

/// Bytes of a program's stack at most: it is a map, and takes the memory of what has been touched.
const STACK_SIZE: u64 = 8 << 20;

/// Exit status of a program that crashed, as a shell says of one that a signal ended.
const CRASHED: Status = 128 + 11;

fn run(arguments: &[&str]) -> Status {
    let Some((name, arguments)) = arguments.split_first() else {
        for program in command::by_name(PROGRAMS.iter(), |program| program.name) {
            println!("{:12} {}", program.name, program.summary);
        }
        return 0;
    };
    let Some(program) = PROGRAMS.iter().find(|program| program.name == *name) else {
        println!("run: no program \"{name}\"; `run` lists them");
        return USAGE;
    };
    let arguments = arguments.iter().map(ToString::to_string).collect();
    match start(program, arguments) {
        Ok(running) => running.wait(),
        Err(error) => {
            println!("run: {name}: {error}");
            FAILURE
        }
    }
}

/// A program that was started.
pub struct Running {
    thread: Arc<thread::Thread>,
    status: Arc<SpinLock<Option<Status>>>,
}

impl Running {
    /// Waits for its end; its exit status.
    pub fn wait(&self) -> Status {
        let exit = self.thread.join();
        // What it mapped and did not unmap, because it crashed or did not care.
        if let Err(error) = crate::mm::maps().remove_holder(self.thread.id) {
            println!("run: {}: maps remain: {error}", self.thread.name);
        }
        match exit {
            Exit::Returned => self.status.lock().unwrap_or(CRASHED),
            Exit::Crashed(_) => CRASHED,
        }
    }
}

/// Starts `program` with `arguments`.
pub fn start(
    program: &'static Program,
    arguments: Vec<String>,
) -> Result<Running, thread::SpawnError> {
    let status = Arc::new(SpinLock::new(None));
    let result = status.clone();
    let thread = spawn(program.name, Role::Program, move || {
        *result.lock() = Some((program.main)(&arguments));
    })?;
    Ok(Running { thread, status })
}

/// Starts a thread that runs `f` on SP_EL0.
pub fn spawn(
    name: &str,
    role: Role,
    f: impl FnOnce() + Send + 'static,
) -> Result<Arc<thread::Thread>, thread::SpawnError> {
    let stack = ProgramStack::new(STACK_SIZE).map_err(|_| thread::SpawnError::OutOfMemory)?;
    let stack_end = stack.end().0;
    thread::spawn_with(name, role, Some(stack), move || {
        let mut f = Some(f);
        let mut call = || f.take().into_iter().for_each(|f| f());
        let mut call: &mut dyn FnMut() = &mut call;
        // SAFETY: the stack is mapped, and this thread's until it ends; `call_it` gets the pointer it expects, to a
        // local of ours that outlives the call.
        unsafe { on_sp_el0(call_it, (&raw mut call).cast(), stack_end) };
    })
}

unsafe extern "C" fn call_it(closure: *mut u8) {
    // SAFETY: `spawn` passes a pointer to this type.
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

#[distributed_slice(PROGRAMS)]
static HELLO: Program = Program {
    name: "hello",
    summary: "say what it cost to get to a program's first instruction",
    main: hello,
};

fn hello(_: &[String]) -> Status {
    let ticks = crate::arch::aarch64::timer::now();
    let start = crate::kernel::start_cost(ticks);
    println!("Hello from a program on SP_EL0.");
    println!("{start}");
    0
}
