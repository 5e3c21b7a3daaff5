//! Reading: attributes, symbolic links, bytes.

use super::inode::{Inode, Time};
use super::map::END;
use super::volume::Volume;
use crate::fs::blocking;
use crate::fs::error::{FsError, Structure};
use crate::fs::ext4::bytes::{halves32, le32};
use crate::fs::ext4::superblock::{FREE_BLOCKS_HIGH, FREE_BLOCKS_LOW, FREE_INODES};
use crate::fs::{Attributes, Backing, Extent, FileKind, Statistics};
use alloc::vec::Vec;

/// The longest target of a symbolic link.
const MAX_TARGET: u64 = 4096;

impl Volume {
    pub(super) fn attributes(&mut self, number: u32) -> Result<Attributes, FsError> {
        let inode = self.live_inode(number)?;
        Ok(Attributes {
            kind: inode.kind()?,
            permissions: inode.mode() & 0o7777,
            links: inode.links().into(),
            owner: inode.owner(),
            size: inode.size(),
            allocated: inode.sectors(&self.superblock).saturating_mul(512),
            accessed: inode.time(Time::Access),
            modified: inode.time(Time::Modify),
            changed: inode.time(Time::Change),
            created: inode.time(Time::Birth),
        })
    }

    pub(super) fn statistics(&mut self) -> Result<Statistics, FsError> {
        let bytes = self.superblock_bytes()?;
        let high = if self.superblock.is_64bit() {
            le32(&bytes, FREE_BLOCKS_HIGH)
        } else {
            0
        };
        let free_blocks = halves32(le32(&bytes, FREE_BLOCKS_LOW), high);
        Ok(Statistics {
            block_size: self.superblock.block_size as u32,
            blocks: self.superblock.blocks_count,
            free_blocks,
            available_blocks: free_blocks.saturating_sub(self.reserved + self.held_back),
            inodes: self.superblock.inodes_count.into(),
            free_inodes: le32(&bytes, FREE_INODES).into(),
        })
    }

    pub(super) fn read_link(&mut self, number: u32) -> Result<Vec<u8>, FsError> {
        let inode = self.live_inode(number)?;
        if inode.kind()? != FileKind::Symlink {
            return Err(FsError::NotASymlink);
        }
        let size = inode.size();
        let wrong = FsError::corrupt(Structure::SymlinkTarget, number.into(), size);
        let target = if inode.is_short_symlink() {
            inode.map()[..size as usize].to_vec()
        } else {
            if size > MAX_TARGET.min(self.superblock.block_size as u64) {
                return Err(wrong);
            }
            let block = self.block_of(&inode, 0)?;
            self.metadata(block, &inode)?[..size as usize].to_vec()
        };
        if target.is_empty() || target.contains(&0) {
            return Err(wrong);
        }
        Ok(target)
    }

    /// A regular file.
    pub(super) fn file(&mut self, number: u32) -> Result<Inode, FsError> {
        let inode = self.live_inode(number)?;
        match inode.kind()? {
            FileKind::File => {
                self.check_plausible(&inode)?;
                Ok(inode)
            }
            FileKind::Directory => Err(FsError::IsADirectory),
            _ => Err(FsError::NotAFile),
        }
    }

    /// An error where no map could hold as much as the file's size says: whoever adds to it may rely on that.
    pub(super) fn check_plausible(&self, inode: &Inode) -> Result<(), FsError> {
        let size = inode.size();
        if size.div_ceil(self.superblock.block_size as u64) > END {
            return Err(FsError::corrupt(
                Structure::InodeSize,
                inode.number.into(),
                size,
            ));
        }
        Ok(())
    }

    /// Up to `len` bytes from `offset` on; fewer only at the end of the file.
    pub(super) fn read_at(
        &mut self,
        number: u32,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, FsError> {
        let inode = self.file(number)?;
        let len = inode.size().saturating_sub(offset).min(len as u64) as usize;
        let extents = self.extents(&inode, offset, len as u64)?;
        if let [
            Extent {
                offset: start,
                backing: Backing::Written(place),
                ..
            },
        ] = extents[..]
        {
            return self.read_data(place + (offset - start), len);
        }
        let mut bytes = alloc::vec![0; len];
        for extent in extents {
            let Backing::Written(place) = extent.backing else {
                continue;
            };
            let from = extent.offset.max(offset);
            let to = (extent.offset + extent.len).min(offset + len as u64);
            let data = self.read_data(place + (from - extent.offset), (to - from) as usize)?;
            bytes[(from - offset) as usize..(to - offset) as usize].copy_from_slice(&data);
        }
        Ok(bytes)
    }

    /// Reads `len` bytes of file data that begin anywhere on the device.
    pub(super) fn read_data(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let unit = u64::from(self.store.device().properties().sector_size);
        let start = offset - offset % unit;
        let end = (offset + len as u64).next_multiple_of(unit);
        let mut bytes = blocking::read(&**self.store.device(), start, (end - start) as usize)?;
        bytes.truncate((offset - start) as usize + len);
        bytes.drain(..(offset - start) as usize);
        Ok(bytes)
    }

    /// What backs `len` bytes from `offset` on, rounded to blocks.
    pub(super) fn extents(
        &mut self,
        inode: &Inode,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Extent>, FsError> {
        let size = self.superblock.block_size as u64;
        let end = offset.saturating_add(len).div_ceil(size).min(END);
        let mut at = (offset / size).min(END);
        let mut extents = Vec::new();
        for run in self.runs(inode, at, end)? {
            if u64::from(run.first) > at {
                push(
                    &mut extents,
                    at * size,
                    u64::from(run.first) * size,
                    Backing::Hole,
                )?;
            }
            let place = run.start * size;
            let backing = if run.is_written {
                Backing::Written(place)
            } else {
                Backing::Unwritten(place)
            };
            push(
                &mut extents,
                u64::from(run.first) * size,
                run.end() * size,
                backing,
            )?;
            at = run.end();
        }
        if at < end {
            push(&mut extents, at * size, end * size, Backing::Hole)?;
        }
        Ok(extents)
    }
}

fn push(extents: &mut Vec<Extent>, offset: u64, end: u64, backing: Backing) -> Result<(), FsError> {
    extents.try_reserve(1).map_err(|_| FsError::OutOfMemory)?;
    extents.push(Extent {
        offset,
        len: end - offset,
        backing,
    });
    Ok(())
}
