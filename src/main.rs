//! The image. All of it is in the library, so that others can build images of their own; on a PC this is nothing, and
//! the library's tests are what runs.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use pinfold as _;

#[cfg(not(target_os = "none"))]
fn main() {}
