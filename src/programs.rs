//! The programs in the box. What of them needs no machine is tested on a PC.

pub mod kv;

#[cfg(target_os = "none")]
mod hello;
