//! The programs in the box.

mod hello;
