//! `kv`: a key-value store in a mapped file.

pub mod store;

#[cfg(target_os = "none")]
mod command;
