//! All maps of the address space, by their first page: looked up, split, merged and placed in O(log n).

use super::object::{
    Backing, Condition, FileKey, MappableFile, MemoryMappedObject, Pattern, Sharing,
};
use super::table::Protection;
use super::tree::Tree;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::ops::Range;

/// Pages of a 2 MiB block: maps that are large enough start at a multiple of it.
const BLOCK: u64 = 512;

/// What a fault in anonymous memory needs to know of the map it is in.
#[derive(Clone, Copy)]
pub struct Hot {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) protection: Protection,
    pub(super) is_random: bool,
}

/// What a fault in a map of a file needs to know of it.
pub(super) struct HotFile {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) protection: Protection,
    pub(super) pattern: Pattern,
    pub(super) sharing: Sharing,
    pub(super) file: Arc<dyn MappableFile>,
    first_block: u64,
}

impl HotFile {
    #[inline(always)]
    fn contains(&self, page: u64) -> bool {
        page.wrapping_sub(self.start) < self.end - self.start
    }

    /// The block that `page` shows.
    #[inline(always)]
    pub(super) fn block(&self, page: u64) -> u64 {
        self.first_block + (page - self.start)
    }
}

/// Whether all of `range` lies in `area`.
pub(super) fn lies_in(range: &Range<u64>, area: &Range<u64>) -> bool {
    area.start <= range.start && range.end <= area.end
}

/// The maps. They do not overlap.
pub(super) struct Maps {
    by_start: Tree<MemoryMappedObject>,
    /// The first pages of the maps of each file.
    of_files: BTreeSet<(FileKey, u64)>,
    /// The anonymous map that was found last; emptied by every change.
    last: Option<Hot>,
    /// The same for maps of files.
    last_file: Option<HotFile>,
    /// Where maps may be.
    limits: Range<u64>,
    /// Where maps are put that may be anywhere.
    area: Range<u64>,
    /// What was given back last, and is free: where the next map is tried first.
    last_freed: Range<u64>,
    /// Maps that are being removed.
    dying: usize,
}

impl Maps {
    pub(super) fn new(limits: Range<u64>) -> Self {
        // The lower half of the addresses is left to those who ask for some.
        let area = limits.start + (limits.end - limits.start) / 2..limits.end;
        Self {
            by_start: Tree::new(),
            of_files: BTreeSet::new(),
            last: None,
            last_file: None,
            limits,
            area,
            last_freed: 0..0,
            dying: 0,
        }
    }

    /// Whether all of `range` lies where maps may be.
    pub(super) fn may_hold(&self, range: &Range<u64>) -> bool {
        lies_in(range, &self.limits)
    }

    pub(super) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// What a fault at `page` needs to know, if it is in the anonymous map that was found last.
    #[inline(always)]
    pub(super) fn last_hot(&self, page: u64) -> Option<Hot> {
        self.last.filter(|hot| hot.start <= page && page < hot.end)
    }

    /// What a fault at `page` needs to know, if the map there is live and anonymous.
    #[inline(always)]
    pub(super) fn find_hot(&mut self, page: u64) -> Option<Hot> {
        if let Some(hot) = self.last_hot(page) {
            return Some(hot);
        }
        let object = self.find(page)?;
        if object.condition != Condition::Live || !matches!(object.backing, Backing::Anonymous(_)) {
            return None;
        }
        let hot = Hot {
            start: object.start,
            end: object.end,
            protection: object.protection,
            is_random: object.pattern == Pattern::Random,
        };
        self.last = Some(hot);
        Some(hot)
    }

    fn forget_last(&mut self) {
        self.last = None;
        self.last_file = None;
    }

    /// What a fault at `page` needs to know, if it is in the map of a file that was found last.
    #[inline(always)]
    pub(super) fn last_file(&self, page: u64) -> Option<&HotFile> {
        self.last_file.as_ref().filter(|hot| hot.contains(page))
    }

    /// What a fault at `page` needs to know, if the map there is live and shows a file.
    #[inline(always)]
    pub(super) fn find_file(&mut self, page: u64) -> Option<&HotFile> {
        if self.last_file(page).is_none() {
            self.last_file = Some(self.find_other_file(page)?);
        }
        self.last_file.as_ref()
    }

    #[inline(never)]
    fn find_other_file(&self, page: u64) -> Option<HotFile> {
        let object = self.find(page)?;
        let file = object.file()?;
        (object.condition == Condition::Live).then(|| HotFile {
            start: object.start,
            end: object.end,
            protection: object.protection,
            pattern: object.pattern,
            sharing: file.sharing,
            file: file.file.clone(),
            first_block: file.first_block,
        })
    }

    /// The map that `page` is in.
    pub(super) fn find(&self, page: u64) -> Option<&MemoryMappedObject> {
        let object = self.by_start.floor(page)?;
        (page < object.end).then_some(object)
    }

    /// The map that starts at `start`, to be changed in anything but its place.
    pub(super) fn at(&mut self, start: u64) -> Option<&mut MemoryMappedObject> {
        self.forget_last();
        let object = self.by_start.floor_mut(start)?;
        (object.start == start).then_some(object)
    }

    /// The first map that has a page in `range`.
    pub(super) fn first_in(&self, range: &Range<u64>) -> Option<&MemoryMappedObject> {
        if range.is_empty() {
            return None;
        }
        if let Some(object) = self.find(range.start) {
            return Some(object);
        }
        self.from(range.start)
            .filter(|object| object.start < range.end)
    }

    /// The first map that starts at `page` or behind it.
    fn from(&self, page: u64) -> Option<&MemoryMappedObject> {
        self.by_start.ceiling(page)
    }

    /// The first map that starts in `range`, to be changed in anything but its place.
    pub(super) fn starting_in(&mut self, range: Range<u64>) -> Option<&mut MemoryMappedObject> {
        let start = self.from(range.start)?.start;
        if start >= range.end {
            return None;
        }
        self.at(start)
    }

    /// All maps that have a page in `range`.
    pub(super) fn all_in(&self, range: &Range<u64>) -> impl Iterator<Item = &MemoryMappedObject> {
        let end = range.end;
        let first = self.first_in(range);
        core::iter::successors(first, |object| self.from(object.end))
            .take_while(move |object| object.start < end)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &MemoryMappedObject> {
        core::iter::successors(self.from(0), |object| self.from(object.end))
    }

    /// The first map of `file` from page `from` on.
    pub(super) fn next_of_file(&self, file: FileKey, from: u64) -> Option<&MemoryMappedObject> {
        let mut maps = self.of_files.range((file, from)..=(file, u64::MAX));
        let (_, start) = maps.next()?;
        self.find(*start)
    }

    /// Adds a map where there is none.
    pub(super) fn insert(&mut self, object: Box<MemoryMappedObject>) {
        self.forget_last();
        self.take_addresses(object.start..object.end);
        if let Some(file) = object.file_key() {
            self.of_files.insert((file, object.start));
        }
        self.by_start.insert(object.start, object);
    }

    /// Adds a map where there is none, to its neighbours if they are alike.
    pub(super) fn insert_merging(&mut self, object: MemoryMappedObject) {
        let end = object.end;
        let [before, last] = self.by_start.last_two(end);
        let has_next = last.is_some_and(|last| last.start == end);
        let before = if has_next { before } else { last };
        match before.filter(|before| before.continues_with(&object)) {
            Some(before) => self.grow(before.start, end),
            None => {
                self.insert(Box::new(object));
                if has_next {
                    self.merge(end);
                }
            }
        }
    }

    /// Lets the map that starts at `start` end at `end`; nothing is in the way.
    pub(super) fn grow(&mut self, start: u64, end: u64) {
        if let Some(object) = self.at(start) {
            let old_end = object.end;
            object.end = end;
            self.take_addresses(old_end..end);
            self.merge(end);
        }
    }

    /// Notes that something is mapped in `range` now.
    fn take_addresses(&mut self, range: Range<u64>) {
        if range.start < self.last_freed.end && self.last_freed.start < range.end {
            self.last_freed = 0..0;
        }
    }

    /// Takes the map that starts at `start` out; its addresses can be had again.
    pub(super) fn remove(&mut self, start: u64) -> Option<Box<MemoryMappedObject>> {
        self.forget_last();
        let object = self.by_start.remove(start)?;
        self.forget_file_of(&object);
        if object.condition == Condition::Dying {
            self.dying -= 1;
        }
        if self.last_freed.end == object.start {
            self.last_freed.end = object.end;
        } else {
            self.last_freed = object.start..object.end;
        }
        Some(object)
    }

    /// Lets nobody find the map that starts at `start` any more, while its pages are removed.
    pub(super) fn let_die(&mut self, start: u64) {
        if let Some(object) = self.at(start)
            && object.condition != Condition::Dying
        {
            object.condition = Condition::Dying;
            self.dying += 1;
        }
    }

    /// Whether somebody is removing a map in `range`.
    #[inline(always)]
    pub(super) fn is_dying(&self, range: &Range<u64>) -> bool {
        self.dying > 0
            && self
                .all_in(range)
                .any(|object| object.condition == Condition::Dying)
    }

    /// Cuts the map that goes across `at` in two.
    pub(super) fn split(&mut self, at: u64) {
        if let Some(object) = self.by_start.floor_mut(at)
            && object.start < at
            && at < object.end
        {
            let rest = object.split(at);
            self.insert(Box::new(rest));
        }
    }

    /// Makes one of the map that ends at `at` and the one that starts there, if they are alike.
    pub(super) fn merge(&mut self, at: u64) {
        let [Some(object), Some(next)] = self.by_start.last_two(at) else {
            return;
        };
        if next.start == at
            && object.continues_with(next)
            && let Some(next) = self.by_start.remove(at)
        {
            self.forget_last();
            self.forget_file_of(&next);
            if let Some(object) = self.by_start.floor_mut(at) {
                object.end = next.end;
            }
        }
    }

    fn forget_file_of(&mut self, object: &MemoryMappedObject) {
        if let Some(file) = object.file_key() {
            self.of_files.remove(&(file, object.start));
        }
    }

    /// Whether no map has a page in `range`.
    pub(super) fn is_free(&self, range: &Range<u64>) -> bool {
        // There is no map without pages, so none starts below `range` and ends above it.
        match self.by_start.floor(range.end - 1) {
            Some(object) => object.end <= range.start,
            None => true,
        }
    }

    /// A place for `len` pages.
    pub(super) fn choose(&mut self, len: u64) -> Option<u64> {
        let alignment = if len >= BLOCK { BLOCK } else { 1 };
        let start = self.last_freed.start.next_multiple_of(alignment);
        let range = start..start.checked_add(len)?;
        if range.end <= self.last_freed.end && lies_in(&range, &self.area) {
            self.last_freed.start = range.end;
            return Some(start);
        }
        let last = self.by_start.floor(self.limits.end);
        let top = last.map_or(self.area.start, |last| last.end.max(self.area.start));
        let start = top.next_multiple_of(alignment);
        let range = start..start.checked_add(len)?;
        if lies_in(&range, &self.area) {
            return Some(start);
        }
        // All addresses were used once: now it takes a look at every gap.
        let ends = self.all().map(|object| object.end);
        core::iter::once(self.limits.start)
            .chain(ends)
            .filter_map(|end| {
                let start = end.next_multiple_of(alignment);
                Some(start..start.checked_add(len)?)
            })
            .find(|range| self.may_hold(range) && self.is_free(range))
            .map(|range| range.start)
    }

    /// Panics where the maps overlap, are empty or lie outside.
    pub(super) fn check(&self) {
        assert!(self.first_in(&self.last_freed).is_none());
        let mut end = self.limits.start;
        let mut dying = 0;
        let files = self.all().filter_map(|object| object.file_key());
        assert_eq!(files.count(), self.of_files.len());
        assert_eq!(self.all().count(), self.by_start.len());
        for object in self.all() {
            let file = object.file_key().map(|file| (file, object.start));
            assert!(file.is_none_or(|file| self.of_files.contains(&file)));
            assert!(object.start >= end && object.end > object.start);
            assert!(object.end <= self.limits.end);
            end = object.end;
            dying += usize::from(object.condition == Condition::Dying);
        }
        assert_eq!(dying, self.dying);
    }
}
