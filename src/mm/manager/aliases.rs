//! The maps of a file, for whoever writes its pages or takes them away.

use super::{MemoryMapManager, State};
use crate::mm::addr::Page;
use crate::mm::frame::Frames;
use crate::mm::object::{Aliases, FileKey, MemoryMappedObject, Sharing, Which};
use crate::mm::table::{Kind, PageTable, Removed};
use core::ops::Range;

impl<T: PageTable + Send> Aliases for MemoryMapManager<'_, T> {
    fn write_protect(&self, file: FileKey, blocks: Range<u64>) {
        self.for_aliases(file, &blocks, |state, object| {
            let pages = object.pages_of(&blocks);
            if object
                .file()
                .is_some_and(|file| file.sharing == Sharing::Shared)
            {
                state
                    .table
                    .write_protect(Page(pages.start)..Page(pages.end));
            }
        });
    }

    fn unmap(&self, file: FileKey, blocks: Range<u64>, which: Which) {
        self.for_aliases(file, &blocks, |state, object| {
            if which == Which::All || !object.is_locked {
                state.let_go_of_file_pages(self.frames, object.pages_of(&blocks));
            }
        });
    }
}

impl<T: PageTable> MemoryMapManager<'_, T> {
    /// Calls `f` for each map that shows some of `blocks`, the lock being open between two of them. Maps that are being
    /// removed are among them: some of their pages may still be there.
    fn for_aliases(
        &self,
        file: FileKey,
        blocks: &Range<u64>,
        f: impl Fn(&mut State<T>, &MemoryMappedObject),
    ) {
        let mut from = 0;
        let mut moves = 0;
        loop {
            let mut state = self.state.lock();
            if moves != state.moves {
                // What was moved meanwhile may lie further down.
                (from, moves) = (0, state.moves);
            }
            // One that begins before may have been made one with the next meanwhile.
            let here = state.maps.find(from);
            let here = here.filter(|object| object.file_key() == Some(file));
            let Some(object) = here.or_else(|| state.maps.next_of_file(file, from)) else {
                return;
            };
            from = object.end;
            if !object.pages_of(blocks).is_empty() {
                let object = object.clone();
                f(&mut state, &object);
                // The last to have the file may be us by now, and letting go of a file is no work for a lock.
                drop(state);
            }
        }
    }
}

impl<T: PageTable> State<T> {
    /// Removes pages of the page cache in `range`, within one map; returns how many.
    pub(super) fn let_go_of_file_pages(&mut self, frames: &Frames, range: Range<u64>) -> u64 {
        let mut removed = Removed::new();
        let mut let_go = 0;
        let mut at = range.start;
        while let Some((page, present)) = self.table.next_present(Page(at)..Page(range.end)) {
            at = page.0 + 1;
            if present.kind != Kind::File {
                continue;
            }
            // With its neighbours: the TLB is told once.
            while at < range.end
                && self
                    .table
                    .find(Page(at))
                    .is_some_and(|next| next.kind == Kind::File)
            {
                at += 1;
            }
            let mut from = page.0;
            while from < at
                && let Ok(next) = self.take_out(frames, from..at, &mut removed)
            {
                let_go += next - from;
                from = next;
            }
        }
        let_go
    }
}
