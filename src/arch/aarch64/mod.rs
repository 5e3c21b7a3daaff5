//! AArch64: boot, exceptions, translation tables, timer, interrupt controllers.
//!
//! Pure modules, which a PC tests: [`board`], [`descriptor`], [`device_tree`], [`esr`], [`layout`], [`page_table`]. The rest is the image's.

pub mod board;
pub mod descriptor;
pub mod device_tree;
pub mod esr;
pub mod layout;
pub mod page_table;

#[cfg(target_os = "none")]
mod processor;
#[cfg(target_os = "none")]
pub use processor::{
    InterruptState, cannot_fault, core_pointer, halt, interrupts_are_masked, is_on_program_stack,
    mask_interrupts, restore_interrupts, set_core_pointer, stack_pointer, touch_stack, translate,
    unmask_interrupts, wait_for_interrupt,
};

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod bytes;
#[cfg(target_os = "none")]
pub mod cache;
#[cfg(target_os = "none")]
pub mod crc;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod fp;
#[cfg(target_os = "none")]
pub mod interrupt_controller;
#[cfg(target_os = "none")]
pub mod kernel_map;
#[cfg(target_os = "none")]
pub mod mmu;
#[cfg(target_os = "none")]
pub mod page;
#[cfg(target_os = "none")]
pub mod pmu;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod switch;
#[cfg(target_os = "none")]
pub mod timer;
