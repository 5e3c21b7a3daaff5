//! The programs in the box. What of them needs no machine is tested on a PC.

pub mod kv;
pub mod text;

#[cfg(target_os = "none")]
mod grep;
#[cfg(target_os = "none")]
mod hello;
#[cfg(target_os = "none")]
mod iobench;
#[cfg(target_os = "none")]
mod mapbench;
#[cfg(target_os = "none")]
mod scan;
#[cfg(target_os = "none")]
mod wc;
