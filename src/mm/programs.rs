//! Programs that show what maps do.

use super::addr::PAGE_SIZE;
use super::low_half::maps;
use super::manager::Placement;
use super::table::Protection;
use crate::command::{FAILURE, SUCCESS, Status};
use crate::println;
use crate::program::{PROGRAMS, Program};
use alloc::string::String;
use linkme::distributed_slice;

const PAGE: u64 = PAGE_SIZE as u64;

/// What `sparse` and `fill` map: far more than there is.
const SIZE: u64 = 64 << 30;

#[distributed_slice(PROGRAMS)]
static SPARSE: Program = Program {
    name: "sparse",
    summary: "map 64 GiB and store to a page in every GiB",
    main: sparse,
};

#[distributed_slice(PROGRAMS)]
static FILL: Program = Program {
    name: "fill",
    summary: "map 64 GiB and store to every page, until there is no memory left",
    main: fill,
};

fn sparse(_: &[String]) -> Status {
    touch(1 << 30)
}

fn fill(_: &[String]) -> Status {
    touch(PAGE)
}

fn touch(step: u64) -> Status {
    let base = match maps().map_anon(Placement::Anywhere, SIZE, Protection::READ_WRITE) {
        Ok(base) => base,
        Err(error) => {
            println!("no map of {} GiB: {error}", SIZE >> 30);
            return FAILURE;
        }
    };
    let address = |offset: u64| (base.0 + offset) as *mut u64;
    for offset in (0..SIZE).step_by(step as usize) {
        // SAFETY: in the map made above, which nobody else knows.
        unsafe { address(offset).write_volatile(offset) };
    }
    for offset in (0..SIZE).step_by(step as usize) {
        // SAFETY: as above.
        let found = unsafe { address(offset).read_volatile() };
        if found != offset {
            println!("at {offset:#x}: {found:#x}");
            return FAILURE;
        }
    }
    match maps().unmap(base) {
        Ok(()) => SUCCESS,
        Err(error) => {
            println!("not unmapped: {error}");
            FAILURE
        }
    }
}
