//! Files as memory: the interface of crate `memmap2`, by the same names and with the same meaning.
//!
//! ```ignore
//! use pinfold::file::File;
//! use pinfold::mmap::Mmap;
//!
//! let file = File::open("/README.md")?;
//! let mmap = unsafe { Mmap::map(&file)? };
//! assert_eq!(b"# Pinfold", &mmap[0..9]);
//! ```
//!
//! Nothing is read before it is touched; a page is in memory once, whoever maps, reads or writes it. What programs of
//! other systems cannot have: bytes that [stay](Mmap::pin), what is [resident](Mmap::residency), and errors of writing
//! back that the next flush tells.
//!
//! # Safety
//! To map a file is `unsafe`, as in `memmap2`: while the slice is borrowed nobody may change the bytes, by a write, a
//! store to another map, or by cutting the file. Touching a page behind a cut ends the program.

use crate::file::File;
use crate::fs::FsError;
use crate::mm::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::cache::{CachedFile, Hold};
use crate::mm::describe::{Residency, residency};
use crate::mm::fault::Access;
use crate::mm::manager::{Advice as MapAdvice, MapError, Placement, Remap};
use crate::mm::maps;
use crate::mm::object::{Pattern, Sharing, SyncMode};
use crate::mm::table::Protection;
use crate::program::process::{Owned, Resource};
use crate::sync::{Mutex, SpinLock};
use crate::thread::Call;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut, Range, RangeBounds};
use core::slice;

const PAGE: usize = PAGE_SIZE;

/// Why memory was not mapped, or not changed as asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmapError {
    /// What the maps say.
    Map(MapError),
    /// What the file system says.
    Fs(FsError),
    /// The file ends before the offset, or the length is more than memory has addresses.
    OutOfRange,
    /// The file was not opened for that.
    NotPermitted,
}

impl From<MapError> for MmapError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<FsError> for MmapError {
    fn from(error: FsError) -> Self {
        Self::Fs(error)
    }
}

impl fmt::Display for MmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Fs(error) => error.fmt(f),
            Self::OutOfRange => f.write_str("not inside the file"),
            Self::NotPermitted => f.write_str("the file was not opened for that"),
        }
    }
}

impl core::error::Error for MmapError {}

/// What a program says it will do with its map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Nothing in particular.
    Normal,
    /// Touch it in no order.
    Random,
    /// Touch it from the beginning to the end.
    Sequential,
    /// Touch it soon.
    WillNeed,
}

impl From<Advice> for MapAdvice {
    fn from(advice: Advice) -> Self {
        match advice {
            Advice::Normal => Self::Pattern(Pattern::Normal),
            Advice::Random => Self::Pattern(Pattern::Random),
            Advice::Sequential => Self::Pattern(Pattern::Sequential),
            Advice::WillNeed => Self::WillNeed,
        }
    }
}

/// What a remap may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemapOptions {
    may_move: bool,
}

impl RemapOptions {
    /// Nothing but to grow or shrink where it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it may go elsewhere.
    #[must_use]
    pub fn may_move(self, may_move: bool) -> Self {
        Self { may_move }
    }
}

/// What is mapped, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct MmapOptions {
    offset: u64,
    len: Option<usize>,
    is_populated: bool,
}

impl MmapOptions {
    /// All of a file, when it is touched.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins at this byte of the file; it need not be a multiple of the page.
    pub fn offset(&mut self, offset: u64) -> &mut Self {
        self.offset = offset;
        self
    }

    /// Maps so many bytes.
    pub fn len(&mut self, len: usize) -> &mut Self {
        self.len = Some(len);
        self
    }

    /// Brings all of it into memory at once.
    pub fn populate(&mut self) -> &mut Self {
        self.is_populated = true;
        self
    }

    /// Maps a file to be read.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map(&self, file: &File) -> Result<Mmap, MmapError> {
        self.map_file(file, Protection::READ, Sharing::Shared)
            .map(Mmap)
    }

    /// Maps a file to be read and executed.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map_exec(&self, file: &File) -> Result<Mmap, MmapError> {
        self.map_file(file, Protection::READ_EXECUTE, Sharing::Shared)
            .map(Mmap)
    }

    /// Maps a file to be read and written: what is stored is the file's.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map_mut(&self, file: &File) -> Result<MmapMut, MmapError> {
        self.map_file(file, Protection::READ_WRITE, Sharing::Shared)
            .map(MmapMut)
    }

    /// Maps a file to be read and written: each page that is stored to becomes a copy, the file never sees it.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map_copy(&self, file: &File) -> Result<MmapMut, MmapError> {
        self.map_file(file, Protection::READ_WRITE, Sharing::CopyOnWrite)
            .map(MmapMut)
    }

    /// The same, to be read; [`Mmap::make_mut`] lets it be written.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map_copy_read_only(&self, file: &File) -> Result<Mmap, MmapError> {
        self.map_file(file, Protection::READ, Sharing::CopyOnWrite)
            .map(Mmap)
    }

    /// Maps memory with no file behind it: zeros, as many as [`len`](Self::len) says.
    pub fn map_anon(&self) -> Result<MmapMut, MmapError> {
        let _call = Call::enter();
        let len = self.len.unwrap_or(0);
        let base = maps().map_anon(
            Placement::Anywhere,
            len.max(1) as u64,
            Protection::READ_WRITE,
        )?;
        let inner = Inner {
            base,
            skipped: 0,
            len,
            file: None,
            may_write: true,
            pins: Mutex::new(Pins::default()),
        };
        self.populated(inner, Access::Write).map(MmapMut)
    }

    fn map_file(
        &self,
        file: &File,
        protection: Protection,
        sharing: Sharing,
    ) -> Result<Inner, MmapError> {
        let _call = Call::enter();
        let (can_read, can_write) = file.access();
        let needs_write = protection.allows(Access::Write) && sharing == Sharing::Shared;
        if !can_read || needs_write && !can_write {
            return Err(MmapError::NotPermitted);
        }
        let cached = file.mappable()?;
        let len = match self.len {
            Some(len) => len,
            None => {
                let rest = cached.size().checked_sub(self.offset);
                usize::try_from(rest.ok_or(MmapError::OutOfRange)?)
                    .map_err(|_| MmapError::OutOfRange)?
            }
        };
        // The page that the offset is in.
        let skipped = (self.offset % PAGE as u64) as usize;
        let whole = len.checked_add(skipped).ok_or(MmapError::OutOfRange)?;
        let base = maps().map_file(
            cached.handle(),
            Placement::Anywhere,
            whole.max(1) as u64,
            protection,
            self.offset - skipped as u64,
            sharing,
        )?;
        let inner = Inner {
            base,
            skipped,
            len,
            file: Some(Arc::downgrade(&cached)),
            may_write: can_write || sharing == Sharing::CopyOnWrite,
            pins: Mutex::new(Pins::default()),
        };
        self.populated(inner, Access::Read)
    }

    fn populated(&self, inner: Inner, access: Access) -> Result<Inner, MmapError> {
        if self.is_populated && inner.len > 0 {
            maps().populate(inner.base, inner.whole(), access)?;
        }
        Ok(inner)
    }
}

/// A map, whatever it allows.
struct Inner {
    /// Where it begins: a multiple of the page.
    base: VirtAddr,
    /// Bytes from there to the first that was asked for.
    skipped: usize,
    len: usize,
    /// The map itself holds it.
    file: Option<Weak<CachedFile>>,
    /// Whether stores may be allowed: they are private, or the file was opened for them.
    may_write: bool,
    /// Ranges of bytes that are pinned.
    pins: Mutex<Pins>,
}

impl Inner {
    /// Bytes of the map, with those before the first that was asked for.
    fn whole(&self) -> u64 {
        (self.skipped + self.len).max(1) as u64
    }

    fn start(&self) -> *mut u8 {
        (self.base.0 as usize + self.skipped) as *mut u8
    }

    /// The pages that bytes `range` of the slice lie in.
    fn pages(&self, range: &Range<usize>) -> (VirtAddr, u64) {
        let start = (self.skipped + range.start) & !(PAGE - 1);
        let end = self.skipped + range.end;
        (VirtAddr(self.base.0 + start as u64), (end - start) as u64)
    }

    fn check(&self, offset: usize, len: usize) -> Result<Range<usize>, MmapError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(offset..end),
            _ => Err(MmapError::OutOfRange),
        }
    }

    fn flush(&self, offset: usize, len: usize, mode: SyncMode) -> Result<(), MmapError> {
        let _call = Call::enter();
        let range = self.check(offset, len)?;
        if range.is_empty() {
            return Ok(());
        }
        let (base, length) = self.pages(&range);
        Ok(maps().sync(base, length, mode)?)
    }

    fn protect(&self, protection: Protection) -> Result<(), MmapError> {
        let _call = Call::enter();
        maps().set_permissions(self.base, self.whole(), protection)?;
        Ok(())
    }

    fn advise(&self, advice: MapAdvice, range: Range<usize>) -> Result<(), MmapError> {
        let _call = Call::enter();
        let range = self.check(range.start, range.end.saturating_sub(range.start))?;
        if range.is_empty() {
            return Ok(());
        }
        let (base, length) = self.pages(&range);
        Ok(maps().advise(base, length, advice)?)
    }

    fn remap(&mut self, len: usize, options: RemapOptions) -> Result<(), MmapError> {
        let _call = Call::enter();
        let new = self.skipped.checked_add(len).ok_or(MmapError::OutOfRange)?;
        let how = match options.may_move {
            true => Remap::MayMove,
            false => Remap::InPlace,
        };
        self.base = maps().remap(self.base, self.whole(), new.max(1) as u64, how)?;
        self.len = len;
        Ok(())
    }

    fn pin(&self, range: Range<usize>) -> Result<PinnedSlice<'_>, MmapError> {
        let _call = Call::enter();
        if range.end > self.len || range.start >= range.end {
            return Err(MmapError::OutOfRange);
        }
        let (base, length) = self.pages(&range);
        let file = self.file.as_ref().and_then(Weak::upgrade);
        let hold = file.map(|file| {
            let offset = maps().file_offset(base).unwrap_or(0);
            let hold = file.hold(offset + length);
            Owned::new(Arc::new(Held(SpinLock::new(Some(hold)))))
        });
        let mut pins = self.pins.lock();
        pins.ranges
            .try_reserve(1)
            .map_err(|_| MapError::OutOfFrames)?;
        maps().lock(base, length)?;
        pins.ranges.push(range.clone());
        drop(pins);
        Ok(PinnedSlice {
            inner: self,
            range,
            _hold: hold,
        })
    }

    fn lock(&self) -> Result<(), MmapError> {
        let _call = Call::enter();
        let mut pins = self.pins.lock();
        maps().lock(self.base, self.whole())?;
        pins.is_locked = true;
        Ok(())
    }

    fn unlock(&self) -> Result<(), MmapError> {
        let _call = Call::enter();
        let mut pins = self.pins.lock();
        pins.is_locked = false;
        self.unlock_unpinned(&pins, self.base, self.whole())
    }

    /// Lets go of the pages of a range that nothing keeps in memory any more.
    fn unlock_unpinned(&self, pins: &Pins, base: VirtAddr, length: u64) -> Result<(), MmapError> {
        if pins.is_locked {
            return Ok(());
        }
        let pinned = || {
            pins.ranges.iter().map(|range| {
                let (base, length) = self.pages(range);
                base.0..(base.0 + length).next_multiple_of(PAGE as u64)
            })
        };
        let (mut at, end) = (base.0, base.0 + length);
        while at < end {
            let of_pins = pinned().filter(|range| range.contains(&at));
            if let Some(end_of_pins) = of_pins.map(|range| range.end).max() {
                at = end_of_pins;
                continue;
            }
            let next = pinned()
                .map(|range| range.start)
                .filter(|start| *start > at);
            let next = next.min().unwrap_or(end).min(end);
            maps().unlock(VirtAddr(at), next - at)?;
            at = next;
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _call = Call::enter();
        if let Err(error) = maps().remove(self.base, self.whole()) {
            log::warn!("{} stays mapped: {error}", self.base);
        }
    }
}

/// Bytes of a map that can neither fault nor fail until this is dropped.
pub struct PinnedSlice<'a> {
    inner: &'a Inner,
    range: Range<usize>,
    _hold: Option<Owned>,
}

/// What keeps pages of a map in memory.
#[derive(Default)]
struct Pins {
    /// A pin each.
    ranges: Vec<Range<usize>>,
    /// All of the map is locked.
    is_locked: bool,
}

/// What keeps a file from being cut.
struct Held(SpinLock<Option<Hold>>);

impl Resource for Held {
    fn release(&self) {
        let hold = self.0.lock().take();
        drop(hold);
    }
}

impl Deref for PinnedSlice<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the map, as checked by `pin`.
        unsafe { slice::from_raw_parts(self.inner.start().add(self.range.start), self.range.len()) }
    }
}

impl Drop for PinnedSlice<'_> {
    fn drop(&mut self) {
        let _call = Call::enter();
        let mut pins = self.inner.pins.lock();
        if let Some(at) = pins.ranges.iter().position(|range| *range == self.range) {
            pins.ranges.swap_remove(at);
        }
        let (base, length) = self.inner.pages(&self.range);
        // It fails only for want of memory to split a map; then the pages stay in memory.
        if let Err(error) = self.inner.unlock_unpinned(&pins, base, length) {
            log::warn!("what was pinned from {base} on stays in memory: {error}");
        }
    }
}

fn range_of(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    use core::ops::Bound::{Excluded, Included, Unbounded};
    let start = match range.start_bound() {
        Included(start) => *start,
        Excluded(start) => start + 1,
        Unbounded => 0,
    };
    let end = match range.end_bound() {
        Included(end) => end + 1,
        Excluded(end) => *end,
        Unbounded => len,
    };
    start..end
}

macro_rules! both {
    ($map:ident) => {
        impl $map {
            /// Takes advice for all of it.
            pub fn advise(&self, advice: Advice) -> Result<(), MmapError> {
                self.0.advise(advice.into(), 0..self.0.len)
            }

            /// Takes advice for `len` bytes from `offset` on.
            pub fn advise_range(
                &self,
                advice: Advice,
                offset: usize,
                len: usize,
            ) -> Result<(), MmapError> {
                self.0
                    .advise(advice.into(), offset..offset.saturating_add(len))
            }

            /// Keeps all of it in memory until [`unlock`](Self::unlock).
            pub fn lock(&self) -> Result<(), MmapError> {
                self.0.lock()
            }

            /// Takes [`lock`](Self::lock) back. What is pinned stays.
            pub fn unlock(&self) -> Result<(), MmapError> {
                self.0.unlock()
            }

            /// Makes it longer or shorter, with the same contents.
            ///
            /// # Safety
            /// As for mapping: what is gained must be in the file when it is touched.
            pub unsafe fn remap(
                &mut self,
                len: usize,
                options: RemapOptions,
            ) -> Result<(), MmapError> {
                self.0.remap(len, options)
            }

            /// Bytes that can neither fault nor fail as long as the slice is there: they are in memory, and the file
            /// cannot be cut before their end.
            pub fn pin(
                &self,
                range: impl RangeBounds<usize>,
            ) -> Result<PinnedSlice<'_>, MmapError> {
                self.0.pin(range_of(range, self.0.len))
            }

            /// What is present of it now, in pages.
            pub fn residency(&self) -> Residency {
                let _call = Call::enter();
                residency(maps(), self.0.base, self.0.whole())
            }
        }

        impl Deref for $map {
            type Target = [u8];

            fn deref(&self) -> &[u8] {
                // SAFETY: within the map; whoever made it has promised that nobody changes it.
                unsafe { slice::from_raw_parts(self.0.start(), self.0.len) }
            }
        }

        impl AsRef<[u8]> for $map {
            fn as_ref(&self) -> &[u8] {
                self
            }
        }

        impl fmt::Debug for $map {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($map))
                    .field("ptr", &self.as_ptr())
                    .field("len", &self.len())
                    .finish()
            }
        }
    };
}

/// A map that can be read.
pub struct Mmap(Inner);

both!(Mmap);

impl Mmap {
    /// Maps all of a file.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map(file: &File) -> Result<Self, MmapError> {
        // SAFETY: as the caller promises.
        unsafe { MmapOptions::new().map(file) }
    }

    /// Lets it be written.
    ///
    /// # Errors
    /// [`MmapError::NotPermitted`] where the file may not be written; a private map always may.
    pub fn make_mut(self) -> Result<MmapMut, MmapError> {
        if !self.0.may_write {
            return Err(MmapError::NotPermitted);
        }
        self.0.protect(Protection::READ_WRITE)?;
        Ok(MmapMut(self.0))
    }
}

/// A map that can be written.
pub struct MmapMut(Inner);

both!(MmapMut);

impl MmapMut {
    /// Maps all of a file; what is stored is the file's.
    ///
    /// # Safety
    /// See the [module](self).
    pub unsafe fn map_mut(file: &File) -> Result<Self, MmapError> {
        // SAFETY: as the caller promises.
        unsafe { MmapOptions::new().map_mut(file) }
    }

    /// Memory with no file behind it.
    pub fn map_anon(len: usize) -> Result<Self, MmapError> {
        MmapOptions::new().len(len).map_anon()
    }

    /// Returns when what was stored is durable.
    ///
    /// # Errors
    /// What went wrong, now or with an earlier write of this file that nobody was told of. What could not be written
    /// stays in memory, and is tried again with the next flush.
    pub fn flush(&self) -> Result<(), MmapError> {
        self.0.flush(0, self.0.len, SyncMode::Wait)
    }

    /// Begins to make what was stored durable.
    pub fn flush_async(&self) -> Result<(), MmapError> {
        self.0.flush(0, self.0.len, SyncMode::Start)
    }

    /// As [`flush`](Self::flush), for `len` bytes from `offset` on.
    pub fn flush_range(&self, offset: usize, len: usize) -> Result<(), MmapError> {
        self.0.flush(offset, len, SyncMode::Wait)
    }

    /// As [`flush_async`](Self::flush_async), for `len` bytes from `offset` on.
    pub fn flush_async_range(&self, offset: usize, len: usize) -> Result<(), MmapError> {
        self.0.flush(offset, len, SyncMode::Start)
    }

    /// Lets it be read only.
    pub fn make_read_only(self) -> Result<Mmap, MmapError> {
        self.0.protect(Protection::READ)?;
        Ok(Mmap(self.0))
    }

    /// Lets it be read and executed.
    pub fn make_exec(self) -> Result<Mmap, MmapError> {
        self.0.protect(Protection::READ_EXECUTE)?;
        Ok(Mmap(self.0))
    }
}

impl DerefMut for MmapMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the map, which allows stores; whoever made it has promised that nobody else changes it.
        unsafe { slice::from_raw_parts_mut(self.0.start(), self.0.len) }
    }
}

impl AsMut<[u8]> for MmapMut {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}
