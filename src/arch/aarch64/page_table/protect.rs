//! Pages whose permissions change.

use super::super::descriptor::{ENTRIES, Entry, GROUP, PAGE_LEVEL};
use super::{Forget, Mmu, PageTables, attributes};
use crate::mm::addr::Frame;
use crate::mm::table::{Kind, Protection, Stores};
use core::ops::Range;

impl<M: Mmu> PageTables<'_, M> {
    /// What `protection` makes of a leaf, or of one that is held.
    pub(super) fn protected(
        &self,
        value: Entry,
        level: u32,
        protection: Protection,
        is_shared: bool,
    ) -> Entry {
        let (kind, stores) = if value.is_owned() {
            let stores = if is_shared {
                Stores::Trap
            } else {
                Stores::Reach
            };
            (Kind::Own, stores)
        } else if value.is_file() {
            // A page that is dirty already stays writable; a clean one has its first store noted.
            let stores = if value.is_writable() {
                Stores::Reach
            } else {
                Stores::Trap
            };
            (Kind::File, stores)
        } else {
            (Kind::Zero, Stores::Trap)
        };
        if protection == Protection::NONE {
            return match kind {
                Kind::Zero => Entry::INVALID,
                _ => value.hold(),
            };
        }
        let mut new = attributes(kind, protection, stores);
        if value.is_contiguous() {
            new = new.contiguous();
        }
        Entry::leaf(value.address(), new, level)
    }

    /// `protect` for what is in one level-3 table.
    pub(super) fn protect_pages(
        &mut self,
        table: Frame,
        part: Range<u64>,
        protection: Protection,
        forget: &mut Forget,
    ) {
        self.break_groups_at_ends(table, &part);
        let mut cleared = 0;
        let mut is_group_shared = false;
        for page in part {
            let entry = self.entry(table, page as usize % ENTRIES);
            let value = self.read(entry);
            if value.is_empty() {
                continue;
            }
            let frame = value.address().frame();
            let is_shared = if !value.is_owned() {
                false
            } else if !value.is_contiguous() {
                self.is_shared(frame, 1)
            } else {
                if page % GROUP as u64 == 0 {
                    is_group_shared = self.is_shared(frame, GROUP as u64);
                }
                is_group_shared
            };
            let new = self.protected(value, PAGE_LEVEL, protection, is_shared);
            if new == value {
                continue;
            }
            if !value.is_executable() && (value.is_owned() || value.is_file()) {
                self.synchronize(frame, 1, protection);
            }
            self.store(entry, new, page, PAGE_LEVEL);
            if value.is_valid() {
                forget.add(page, 1);
            }
            cleared += u32::from(new.is_empty());
        }
        if cleared > 0 {
            self.frames.subtract_from_count(table, cleared);
        }
    }

    /// Whether one of `count` frames is shared. What is one entry to the TLB has one permission: that of the least.
    pub(super) fn is_shared(&self, first: Frame, count: u64) -> bool {
        (first.0..first.0 + count).any(|frame| self.frames.count(Frame(frame)) > 0)
    }
}
