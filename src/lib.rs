//! Pinfold: a unikernel for AArch64 whose memory is its files.
//!
//! Programs map files into memory; nothing is present until it is touched; a fault, not a call, brings each page in.
//!
//! | Where | What | Runs on |
//! | --- | --- | --- |
//! | [`mm`] | frames, heap, maps, the fault path | image and PC |
//! | [`fs`] | block devices, file systems | image and PC |
//! | `program` | programs and what they use: files, maps, threads, clocks | image |
//! | [`programs`] | the programs in the box | image; what needs no machine on a PC too |
//! | [`arch`] | the processor | image; its pure functions on a PC too |
//! | [`symbols`] | names of functions, for backtraces | image and PC |
//! | [`sync`] | locks, and their order | image and PC |
//! | [`workload`] | what the durability campaign does to files | image and PC |

#![no_std]

extern crate alloc;

#[doc(hidden)]
pub use linkme;

pub mod arch;
pub mod command;
pub mod driver;
pub mod edit;
pub mod fs;
pub mod mm;
pub mod options;
pub mod programs;
pub mod size;
pub mod symbols;
pub mod sync;
pub mod workload;

#[cfg(target_os = "none")]
pub mod bench;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod disk;
#[cfg(target_os = "none")]
pub mod file;
#[cfg(target_os = "none")]
pub mod files;
#[cfg(target_os = "none")]
pub mod interrupt;
#[cfg(target_os = "none")]
pub mod kernel;
#[cfg(target_os = "none")]
pub mod mmap;
#[cfg(target_os = "none")]
pub mod program;
#[cfg(target_os = "none")]
pub mod progress;
#[cfg(target_os = "none")]
mod report;
#[cfg(target_os = "none")]
pub mod selftest;
#[cfg(target_os = "none")]
mod shell;
#[cfg(not(target_os = "none"))]
pub mod sim;
#[cfg(target_os = "none")]
pub mod thread;
