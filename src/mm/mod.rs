//! Memory: frames, the heap, maps and the fault path.

pub mod addr;
pub mod cache;
pub mod describe;
pub mod fault;
pub mod frame;
pub mod heap;
pub mod manager;
mod maps;
pub mod object;
pub mod table;
pub mod trace;
mod trap;
mod tree;

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod low_half;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod programs;
#[cfg(target_os = "none")]
pub use low_half::{
    Explanation, KernelMaps, ProgramStack, Verdict, can_resolve_in_critical_section, maps, resolve,
    resolve_data_fault,
};
#[cfg(target_os = "none")]
pub use machine::{
    CACHE, FRAMES, Summary, alloc_kernel_frame, alloc_table_frame, free_frames, free_kernel_frame,
    heap_objects, init, used_bytes,
};
