//! The page table, as the maps see it: what hardware translates, and how that is changed.
//!
//! Behind the trait stand the processor's tables, TLB and barriers; the maps never see an entry. A page of a map is
//! absent or present; what is present is of one of three kinds, and may be out of reach (protection "none").

use super::addr::{Frame, Page};
use super::frame::OutOfFrames;
use super::object::Pinned;
use arrayvec::ArrayVec;
use core::fmt;
use core::ops::Range;

/// What was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// What a map allows. Hardware cannot forbid the kernel's mode to read what it can write or execute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Protection(u8);

const R: u8 = 1;
const W: u8 = 2;
const X: u8 = 4;

impl Protection {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READ: Self = Self(R);
    /// Loads and stores.
    pub const READ_WRITE: Self = Self(R | W);
    /// Loads and instruction fetches.
    pub const READ_EXECUTE: Self = Self(R | X);
    /// Everything, for those who ask for it by this name.
    pub const READ_WRITE_EXECUTE: Self = Self(R | W | X);

    /// Whether `access` succeeds.
    #[inline(always)]
    pub const fn allows(self, access: Access) -> bool {
        let needed = match access {
            Access::Read => R,
            Access::Write => W,
            Access::Execute => X,
        };
        self.0 & needed != 0
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (access, letter) in [
            (Access::Read, "r"),
            (Access::Write, "w"),
            (Access::Execute, "x"),
        ] {
            f.write_str(if self.allows(access) { letter } else { "-" })?;
        }
        Ok(())
    }
}

/// What a present page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The one page of zeros, for anonymous memory that was only read.
    Zero,
    /// Anonymous memory, or a private copy of a file's page: the frame counts its entries.
    Own,
    /// A page of the page cache, pinned by the entry.
    File,
}

/// Whether stores to a page whose map allows them reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stores {
    /// At once.
    Reach,
    /// They fault first, so that somebody can copy the page or note that it is dirty.
    Trap,
}

/// A present page, or a block of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    /// What it is.
    pub kind: Kind,
    /// Its frame; of a block, the one of the page that was asked for.
    pub frame: Frame,
    /// Whether it is part of a 2 MiB block or a 64 KiB group.
    pub is_huge: bool,
    /// Whether stores reach it.
    pub is_writable: bool,
    /// Whether instructions can be fetched from it.
    pub is_executable: bool,
    /// Whether its map allows stores.
    pub may_store: bool,
    /// Whether nothing reaches it.
    pub is_held: bool,
}

impl Present {
    /// Whether `access` succeeds as things are.
    #[inline(always)]
    pub fn allows(&self, access: Access) -> bool {
        match access {
            _ if self.is_held => false,
            Access::Read => true,
            Access::Write => self.is_writable,
            Access::Execute => self.is_executable,
        }
    }
}

/// Pages that were removed, and their frames, which follow each other as the pages do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first page.
    pub page: Page,
    /// Its frame.
    pub frame: Frame,
    /// How many.
    pub count: u64,
    /// `Own` or `File`.
    pub kind: Kind,
}

/// Runs in a batch.
const BATCH: usize = 64;

/// Pages removed from the table, which no TLB translates any more.
#[derive(Default)]
pub struct Removed(ArrayVec<Run, BATCH>);

impl Removed {
    /// None.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Whether another run may not fit.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Adds pages to the last run, where they continue it, or as a run of their own.
    ///
    /// # Panics
    /// When it is full.
    #[inline(always)]
    pub fn push(&mut self, run: Run) {
        if let Some(last) = self.0.last_mut()
            && last.kind == run.kind
            && last.page.0 + last.count == run.page.0
            && last.frame.0 + last.count == run.frame.0
        {
            last.count += run.count;
            return;
        }
        self.0.push(run);
    }

    /// Takes all runs out.
    pub fn drain(&mut self) -> impl Iterator<Item = Run> + '_ {
        self.0.drain(..)
    }
}

/// The low half's translation: pages to frames.
///
/// All methods leave the TLB as their result says: what was removed or downgraded is in no TLB any more when they
/// return. Frames for tables are [urgent](super::frame::Urgency::Critical).
pub trait PageTable {
    /// What `page` translates to.
    fn find(&mut self, page: Page) -> Option<Present>;

    /// Whether it takes but a glance to see that nothing is present at `page`.
    fn is_known_absent(&self, page: Page) -> bool;

    /// The first present page of `range` from its start on.
    fn next_present(&self, range: Range<Page>) -> Option<(Page, Present)>;

    /// Enters the page of zeros for `page`, and for as many around it as is cheap, within `range`, where nothing is
    /// present; returns how many.
    fn enter_zero(
        &mut self,
        page: Page,
        range: Range<Page>,
        protection: Protection,
    ) -> Result<u64, OutOfFrames>;

    /// Enters `count` frames from `first` on as the pages from `page` on, in the place of what is there: one page, or
    /// an aligned group or block of 16 or 512. Their bytes are written already.
    fn enter(
        &mut self,
        page: Page,
        count: u64,
        first: Frame,
        kind: Kind,
        protection: Protection,
        stores: Stores,
    ) -> Result<(), OutOfFrames>;

    /// Enters `frame` as `page`, where nothing is present. Its bytes are written already.
    fn enter_new(
        &mut self,
        page: Page,
        frame: Frame,
        kind: Kind,
        protection: Protection,
        stores: Stores,
    ) -> Result<(), OutOfFrames>;

    /// The page of zeros.
    fn zero_frame(&self) -> Frame;

    /// Of the `count` pages from `page` on, all in one table, those where nothing is present: a bit for each.
    fn absent(&self, page: Page, count: u64) -> [u64; 8];

    /// Enters pages of a file where nothing is present: `frames[i]` as the `i`th page from `page` on, for each of the
    /// `pinned` blocks. They are all in one table; stores to them fault.
    fn enter_file_pages(
        &mut self,
        page: Page,
        pinned: Pinned,
        frames: &[Frame; 64],
        protection: Protection,
    ) -> Result<(), OutOfFrames>;

    /// Lets stores to the pages of files that are present in `range` fault.
    fn write_protect(&mut self, range: Range<Page>);

    /// Whether nothing but zeros is present in the aligned group of `count` pages from `page` on.
    fn is_replaceable(&self, page: Page, count: u64) -> bool;

    /// Whether a block can be entered at `page`: nothing but zeros is present in it.
    fn is_block_free(&self, page: Page) -> bool;

    /// Makes sure that entering `page` cannot fail for want of a table.
    fn prepare(&mut self, page: Page) -> Result<(), OutOfFrames>;

    /// Lets stores reach `page`, which is present and whose map allows them.
    fn allow_stores(&mut self, page: Page) -> Result<(), OutOfFrames>;

    /// Makes a translation of `page` that is already right be seen: for faults that have no other reason.
    fn refresh(&mut self, page: Page);

    /// Gives what is present in `range` the protection of its map. An `Own` page that is shared stays read-only.
    ///
    /// It fails only where `range` begins or ends within a block.
    fn protect(&mut self, range: Range<Page>, protection: Protection) -> Result<(), OutOfFrames>;

    /// Removes what is present in `range` from its start on; returns the page it got to. It goes on from there when
    /// called again, once `removed` is drained.
    fn remove(&mut self, range: Range<Page>, removed: &mut Removed) -> Result<Page, OutOfFrames>;
}
