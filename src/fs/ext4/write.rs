//! Writing files: backing blocks, bytes, sizes.

use super::bytes::{le32, put_le32};
use super::extent::{MAX_UNWRITTEN, Run};
use super::features::RO_COMPAT_LARGE_FILE;
use super::inode::{EXTENTS, Inode, Time};
use super::map::{END, pointer_path};
use super::superblock::FEATURE_RO_COMPAT;
use super::volume::Volume;
use crate::fs::block::Durability;
use crate::fs::blocking;
use crate::fs::error::FsError;
use crate::fs::{Extent, Reservation};
use crate::mm::addr::PAGE_SIZE;
use alloc::vec::Vec;
use core::ops::Range;

/// The most blocks that one operation backs.
const PIECE: u64 = 1024;

/// How fine the time of the last change is where only that changes: as on Linux.
const TICK_NS: u32 = 4_000_000;

/// What new blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    /// Data that is written before the operation ends.
    Data,
    /// Nothing yet: they read as zeros.
    Later,
}

impl Volume {
    /// Writes as many of `bytes` at `offset` as one operation can; returns how many.
    pub(super) fn write_at(
        &mut self,
        number: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, FsError> {
        self.finish_cut(number, offset.saturating_add(bytes.len() as u64))?;
        self.transact(|volume| volume.write_piece(number, offset, bytes))
    }

    fn write_piece(&mut self, number: u32, offset: u64, bytes: &[u8]) -> Result<usize, FsError> {
        let mut inode = self.file(number)?;
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(FsError::FileTooLarge)?;
        self.check_size(&inode, end)?;
        let size = self.superblock.block_size as u64;
        let (mut at, last) = (offset / size, end.div_ceil(size));
        let mut runs = Vec::new();
        while at < last && !self.store.is_large() {
            let (run, was_written) = self.back(&mut inode, at, last, Fill::Data)?;
            at = run.end();
            runs.push((run, was_written));
        }
        let end = end.min(at * size);
        // Only now, when nothing but the device can fail, is data touched that the file has already.
        self.zero_tail(&inode, offset)?;
        for (run, was_written) in runs {
            let from = offset.max(u64::from(run.first) * size);
            let to = end.min(run.end() * size);
            let data = &bytes[(from - offset) as usize..(to - offset) as usize];
            self.write_run(run, was_written, from, data)?;
        }
        if end > inode.size() {
            self.set_size(&mut inode, end)?;
        }
        self.touch(&mut inode);
        self.put_inode(&mut inode)?;
        Ok((end - offset) as usize)
    }

    /// Makes sure that the file has a block at `at`, and says in which run that goes up to `end` at most, and whether
    /// it held data before.
    fn back(
        &mut self,
        inode: &mut Inode,
        at: u64,
        end: u64,
        fill: Fill,
    ) -> Result<(Run, bool), FsError> {
        let piece = self.piece_at(inode, at as u32)?;
        if let Some(run) = piece.run.and_then(|run| run.cut(at, end)) {
            if !run.is_written && fill == Fill::Data {
                self.mark_written(inode, run)?;
            }
            return Ok((run, run.is_written));
        }
        let wanted = (piece.end.min(end) - at).min(MAX_UNWRITTEN.into()) as u32;
        let goal = self.goal(inode, at)?;
        let allocated = self.allocate(goal, wanted)?;
        self.add_blocks(inode, allocated.len.into());
        let is_extent = inode.has_flag(EXTENTS);
        let run = Run {
            first: at as u32,
            len: allocated.len,
            start: allocated.start,
            is_written: fill == Fill::Data || !is_extent,
        };
        if is_extent {
            self.insert_run(inode, run)?;
        } else {
            self.insert_pointers(inode, run.first, run.len, run.start)?;
        }
        if fill == Fill::Later && !is_extent {
            // A block map cannot say "unwritten": zeros must be there before the pointer is.
            self.write_run(run, false, at * self.superblock.block_size as u64, &[])?;
        }
        Ok((run, false))
    }

    /// Where block `at` of the file had best be: behind the block before it.
    fn goal(&mut self, inode: &Inode, at: u64) -> Result<u64, FsError> {
        if at > 0
            && let Some(run) = self.piece_at(inode, at as u32 - 1)?.run
        {
            return Ok(run.start + 1);
        }
        Ok(self.goal_of(inode))
    }

    /// Writes `data`, which belongs at byte `from` of the file, into `run`. What it does not fill keeps its bytes if the
    /// run held data before, and is zero otherwise.
    fn write_run(
        &mut self,
        run: Run,
        was_written: bool,
        from: u64,
        data: &[u8],
    ) -> Result<(), FsError> {
        let size = self.superblock.block_size as u64;
        let start = u64::from(run.first) * size;
        let head = from - start;
        // Only the blocks that data touches, where the others hold something.
        let (skip, end) = if was_written {
            (head / size, (head + data.len() as u64).div_ceil(size))
        } else {
            (0, run.len.into())
        };
        let place = (run.start + skip) * size;
        let len = (end - skip) * size;
        let head = (head - skip * size) as usize;
        let is_whole = head == 0 && data.len() as u64 == len;
        let bytes = if is_whole {
            data.to_vec()
        } else {
            let mut bytes = if was_written {
                self.read_data(place, len as usize)?
            } else {
                alloc::vec![0; len as usize]
            };
            bytes[head..head + data.len()].copy_from_slice(data);
            bytes
        };
        blocking::write(&**self.store.device(), place, bytes, Durability::Cached)?;
        self.store.data_written();
        Ok(())
    }

    /// Zeros what lies behind the end of the file in its last block, if the file is about to grow past it. Not while that
    /// block is being written: zeros, or what belongs there, are on their way, and must not be overtaken.
    pub(super) fn zero_tail(&mut self, inode: &Inode, offset: u64) -> Result<(), FsError> {
        let (block_size, size) = (self.superblock.block_size as u64, inode.size());
        let tail = size % block_size;
        let open = self.open.get(&inode.number);
        let is_filling = open.is_some_and(|open| open.filling.contains(size / block_size));
        if offset <= size || tail == 0 || size / block_size >= END || is_filling {
            return Ok(());
        }
        let Some(run) = self
            .piece_at(inode, (size / block_size) as u32)?
            .run
            .filter(|run| run.is_written)
        else {
            return Ok(());
        };
        let block = Run { len: 1, ..run };
        self.write_run(
            block,
            true,
            size,
            &alloc::vec![0; (block_size - tail) as usize],
        )
    }

    /// Lets the file end at `size`, past its present end or before it.
    pub(super) fn set_size(&mut self, inode: &mut Inode, size: u64) -> Result<(), FsError> {
        inode.set_size(size);
        if size > i32::MAX as u64 && !self.superblock.features.has_ro_compat(RO_COMPAT_LARGE_FILE) {
            let bytes = self.superblock_mut()?;
            let features = le32(bytes, FEATURE_RO_COMPAT) | RO_COMPAT_LARGE_FILE;
            put_le32(bytes, FEATURE_RO_COMPAT, features);
        }
        Ok(())
    }

    /// Whether the file's map could hold `size` bytes.
    pub(super) fn check_size(&self, inode: &Inode, size: u64) -> Result<(), FsError> {
        let block_size = self.superblock.block_size as u64;
        let last = size.div_ceil(block_size).saturating_sub(1);
        let fits = if inode.has_flag(EXTENTS) {
            last < END
        } else {
            // 32 bits count its sectors, metadata included.
            last < END && pointer_path(last, block_size / 4).is_some() && size >> 40 == 0
        };
        if fits {
            Ok(())
        } else {
            Err(FsError::FileTooLarge)
        }
    }

    /// Records that the file's bytes change now.
    pub(super) fn touch(&self, inode: &mut Inode) {
        let now = self.now();
        inode.set_time(Time::Modify, now);
        inode.set_time(Time::Change, now);
    }

    /// Whether the file was changed so lately that saying so again tells nothing.
    fn has_just_changed(&self, inode: &Inode) -> bool {
        let (now, last) = (self.now(), inode.time(Time::Modify));
        let just_now = last.nanoseconds..last.nanoseconds + TICK_NS;
        last.seconds == now.seconds && just_now.contains(&now.nanoseconds)
    }

    /// Promises space for a write, with what its metadata may need.
    pub(super) fn reserve(
        &mut self,
        number: u32,
        offset: u64,
        len: u64,
    ) -> Result<Reservation, FsError> {
        self.check_writable()?;
        let inode = self.file(number)?;
        let size = self.superblock.block_size as u64;
        let end = offset.checked_add(len).ok_or(FsError::FileTooLarge)?;
        self.check_size(&inode, end)?;
        let (first, last) = (offset / size, end.div_ceil(size));
        let data = self.lacking(&inode, first, last)?;
        // Every leaf under the range may be split, and they are at least half full; then the nodes above them.
        let blocks = if data == 0 {
            0
        } else {
            data + 8 + (last - first).div_ceil(32)
        };
        if self.statistics()?.available_blocks < blocks {
            return Err(FsError::NoSpace);
        }
        self.reserved += blocks;
        Ok(Reservation { blocks })
    }

    /// Whether any of the blocks from `first` on has a place.
    fn has_blocks_from(&mut self, inode: &Inode, first: u64) -> Result<bool, FsError> {
        let mut at = first;
        while at < END {
            let piece = self.piece_at(inode, at as u32)?;
            if piece.run.is_some() {
                return Ok(true);
            }
            at = piece.end.max(at + 1);
        }
        Ok(false)
    }

    /// How many blocks those pages have that lack a place for any of these.
    fn lacking(&mut self, inode: &Inode, first: u64, last: u64) -> Result<u64, FsError> {
        let page = (PAGE_SIZE / self.superblock.block_size).max(1) as u64;
        let runs = self.runs(inode, first, last)?;
        let backed = runs.iter().map(|run| (u64::from(run.first), run.end()));
        let (mut at, mut counted, mut lacking) = (first, 0, 0);
        for (start, end) in backed.chain([(last, last)]) {
            if at < start {
                let from = (at - at % page).max(counted);
                counted = start.next_multiple_of(page);
                lacking += counted - from;
            }
            at = end;
        }
        Ok(lacking)
    }

    /// How many of the blocks have a place.
    fn count_backed(&mut self, inode: &Inode, first: u64, last: u64) -> Result<u64, FsError> {
        let runs = self.runs(inode, first, last)?;
        Ok(runs.iter().map(|run| u64::from(run.len)).sum())
    }

    /// Takes a promise back.
    pub(super) fn release(&mut self, reservation: &Reservation) {
        self.reserved = self.reserved.saturating_sub(reservation.blocks);
    }

    /// Does what was promised, for which the blocks held back may be taken, too.
    fn deliver<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let held_back = core::mem::take(&mut self.held_back);
        let result = f(self);
        self.held_back = held_back;
        result
    }

    /// Backs a range with blocks that read as zeros where they are new. After an error what was promised still is.
    pub(super) fn allocate_range(
        &mut self,
        number: u32,
        offset: u64,
        len: u64,
        promise: &mut Reservation,
    ) -> Result<Vec<Extent>, FsError> {
        let promised = promise.blocks;
        self.release(promise);
        let result = self.deliver(|volume| volume.back_range(number, offset, len));
        match result {
            Ok(_) => *promise = Reservation::NONE,
            Err(_) => self.reserved += promised,
        }
        result
    }

    fn back_range(&mut self, number: u32, offset: u64, len: u64) -> Result<Vec<Extent>, FsError> {
        let size = self.superblock.block_size as u64;
        let end = offset.checked_add(len).ok_or(FsError::FileTooLarge)?;
        self.finish_cut(number, end)?;
        let inode = self.file(number)?;
        self.check_size(&inode, end)?;
        let last = end.div_ceil(size);
        let mut at = offset / size;
        if inode.has_flag(EXTENTS) && self.count_backed(&inode, at, last)? == last - at {
            return self.begin_filling(&inode, offset, len);
        }
        while at < last {
            let stop = last.min(at + PIECE);
            at = self.transact(|volume| {
                let mut inode = volume.file(number)?;
                let mut at = at;
                while at < stop && !volume.store.is_large() {
                    let (run, _) = volume.back(&mut inode, at, stop, Fill::Later)?;
                    at = run.end();
                }
                let is_past_end = at > inode.size().div_ceil(size);
                if is_past_end && !inode.has_flag(EXTENTS) && !volume.is_orphan(number)? {
                    // A block map may not have blocks behind the end of the file, unless they are to be cut.
                    volume.add_orphan(&mut inode)?;
                }
                volume.put_inode(&mut inode)?;
                Ok(at)
            })?;
        }
        let inode = self.file(number)?;
        self.begin_filling(&inode, offset, len)
    }

    /// Says where to transfer a range to, and notes that this is about to happen.
    fn begin_filling(
        &mut self,
        inode: &Inode,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, FsError> {
        let extents = self.extents(inode, offset, len)?;
        let blocks = self.blocks_around(offset, offset + len);
        if let Some(open) = self.open.get_mut(&inode.number) {
            open.filling.begin(blocks);
        }
        Ok(extents)
    }

    /// Notes that none of these blocks are being transferred to any more.
    pub(super) fn end_filling(&mut self, number: u32, blocks: Range<u64>) {
        if let Some(open) = self.open.get_mut(&number) {
            open.filling.end(blocks);
        }
    }

    /// The blocks that hold bytes `from..to` of a file.
    fn blocks_around(&self, from: u64, to: u64) -> Range<u64> {
        let size = self.superblock.block_size as u64;
        from / size..to.div_ceil(size)
    }

    /// Says that a range holds data, and that the file has at least `size` bytes.
    pub(super) fn written(
        &mut self,
        number: u32,
        offset: u64,
        len: u64,
        size: u64,
    ) -> Result<(), FsError> {
        let is_cut = self.cutting.contains(&number);
        let size = if is_cut { 0 } else { size };
        self.deliver(|volume| {
            volume.finish_cut(number, size)?;
            volume.note_written(number, offset, len, size)
        })
    }

    fn note_written(
        &mut self,
        number: u32,
        offset: u64,
        len: u64,
        size: u64,
    ) -> Result<(), FsError> {
        let block_size = self.superblock.block_size as u64;
        let end = offset.checked_add(len).ok_or(FsError::FileTooLarge)?;
        self.store.data_written();
        let Range {
            start: mut at,
            end: last,
        } = self.blocks_around(offset, end);
        // Whatever becomes of the rest: the bytes have arrived.
        self.end_filling(number, at..last);
        loop {
            let stop = last.min(at + PIECE);
            let mut is_overwrite = true;
            self.transact(|volume| {
                let mut inode = volume.file(number)?;
                volume.check_size(&inode, size.max(end))?;
                // One extent after the other: what touches need not be one.
                let mut block = at;
                while block < stop.min(END) {
                    let piece = volume.piece_at(&inode, block as u32)?;
                    let run = piece.run.and_then(|run| run.cut(block, stop));
                    if let Some(run) = run.filter(|run| !run.is_written) {
                        volume.mark_written(&mut inode, run)?;
                        is_overwrite = false;
                    }
                    block = piece.end.max(block + 1);
                }
                is_overwrite &= inode.has_flag(EXTENTS) && size <= inode.size();
                if stop == last && size > inode.size() {
                    // The transfer has filled the file's last block if it began there.
                    if inode.size() / block_size < offset / block_size {
                        volume.zero_tail(&inode, size)?;
                    }
                    volume.set_size(&mut inode, size)?;
                }
                if !inode.has_flag(EXTENTS) && inode.links() > 0 && volume.is_orphan(number)? {
                    let first_behind = inode.size().div_ceil(block_size);
                    if !volume.has_blocks_from(&inode, first_behind)? {
                        volume.remove_orphan(&mut inode)?;
                    }
                }
                if is_overwrite {
                    volume.store.only_times_changed();
                    if volume.has_just_changed(&inode) {
                        return Ok(());
                    }
                }
                volume.touch(&mut inode);
                volume.put_inode(&mut inode)
            })?;
            if stop >= last {
                break;
            }
            at = stop;
        }
        Ok(())
    }
}
