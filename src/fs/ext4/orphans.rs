//! The list of orphans: files without a name that are still open, and files that are being cut.
//!
//! The superblock names the first; each names the next where its time of deletion would be. A file system with the
//! `orphan_file` feature may also keep them in a file; we empty that at mount and use the list, which is allowed.

use super::bytes::{le32, put_le32};
use super::checksum::crc32c;
use super::features::{COMPAT_ORPHAN_FILE, RO_COMPAT_ORPHAN_PRESENT};
use super::inode::Inode;
use super::superblock::{FEATURE_RO_COMPAT, LAST_ORPHAN};
use super::volume::Volume;
use crate::fs::FileKind;
use crate::fs::checksum_agrees;
use crate::fs::error::{FsError, Structure};

const FILE_MAGIC: u32 = 0x0b10_ca04;

impl Volume {
    /// Puts a file on the list; the caller writes the inode.
    pub(super) fn add_orphan(&mut self, inode: &mut Inode) -> Result<(), FsError> {
        let bytes = self.superblock_mut()?;
        inode.set_deletion_time(le32(bytes, LAST_ORPHAN));
        put_le32(bytes, LAST_ORPHAN, inode.number);
        Ok(())
    }

    /// Takes a file off the list, if it is on it; the caller writes the inode.
    pub(super) fn remove_orphan(&mut self, inode: &mut Inode) -> Result<(), FsError> {
        let next = inode.deletion_time();
        let first = le32(&self.superblock_bytes()?, LAST_ORPHAN);
        if first == inode.number {
            put_le32(self.superblock_mut()?, LAST_ORPHAN, next);
            inode.set_deletion_time(0);
            return Ok(());
        }
        let is_before = |other: &Inode| other.deletion_time() == inode.number;
        if let Some(mut other) = self.find_orphan(is_before)? {
            other.set_deletion_time(next);
            self.put_inode(&mut other)?;
            inode.set_deletion_time(0);
        }
        Ok(())
    }

    /// Whether a file is on the list.
    pub(super) fn is_orphan(&mut self, number: u32) -> Result<bool, FsError> {
        let found = self.find_orphan(|inode| inode.number == number)?;
        Ok(found.is_some())
    }

    /// The first file on the list that is meant. A list that runs in a circle is an error; it is found in little memory
    /// by Brent's way: one place is remembered, twice as far along each time, and come by again in a circle only.
    fn find_orphan(&mut self, is_meant: impl Fn(&Inode) -> bool) -> Result<Option<Inode>, FsError> {
        let mut number = le32(&self.superblock_bytes()?, LAST_ORPHAN);
        let (mut remembered, mut steps, mut reach) = (0, 0u64, 1);
        while number != 0 {
            if number == remembered {
                return Err(FsError::corrupt(Structure::OrphanList, 0, number.into()));
            }
            if steps == reach {
                (remembered, steps, reach) = (number, 0, 2 * reach);
            }
            steps += 1;
            let inode = self.inode(number)?;
            if is_meant(&inode) {
                return Ok(Some(inode));
            }
            number = inode.deletion_time();
        }
        Ok(None)
    }

    /// Finishes at mount what was under way: removes orphans without a name, and cuts the others at their size.
    pub(super) fn process_orphans(&mut self) -> Result<(), FsError> {
        self.process_orphan_file()?;
        self.process_list()
    }

    fn process_list(&mut self) -> Result<(), FsError> {
        // All of it is gone through once, before any of it is believed.
        self.find_orphan(|_| false)?;
        for _ in 0..self.superblock.inodes_count {
            let number = le32(&self.superblock_bytes()?, LAST_ORPHAN);
            if number == 0 {
                return Ok(());
            }
            self.process_orphan(number)?;
        }
        Err(FsError::corrupt(Structure::OrphanList, 0, 0))
    }

    /// Finishes what was under way with one, which leaves the list with that.
    fn process_orphan(&mut self, number: u32) -> Result<(), FsError> {
        let inode = self.inode(number)?;
        if inode.links() == 0 {
            self.remove_file(number)
        } else if inode.kind()? == FileKind::File {
            self.free_past_end(number)
        } else {
            Err(FsError::corrupt(
                Structure::OrphanList,
                number.into(),
                inode.mode().into(),
            ))
        }
    }

    /// Moves what the orphan file holds to the list, and finishes that: block by block, since the list is gone through for
    /// each of them.
    fn process_orphan_file(&mut self) -> Result<(), FsError> {
        let features = self.superblock.features;
        if !features.has_compat(COMPAT_ORPHAN_FILE)
            || !features.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT)
        {
            return Ok(());
        }
        let file = self.inode(self.superblock.orphan_file_inode)?;
        let blocks = self.count_blocks(&file, Structure::OrphanFile)?;
        for block in 0..blocks.min(u32::MAX.into()) as u32 {
            self.process_list()?;
            self.transact(|volume| volume.adopt_block(&file, block))?;
        }
        self.transact(|volume| {
            let bytes = volume.superblock_mut()?;
            let features = le32(bytes, FEATURE_RO_COMPAT) & !RO_COMPAT_ORPHAN_PRESENT;
            put_le32(bytes, FEATURE_RO_COMPAT, features);
            Ok(())
        })?;
        self.superblock
            .features
            .clear_ro_compat(RO_COMPAT_ORPHAN_PRESENT);
        Ok(())
    }

    fn adopt_block(&mut self, file: &Inode, block: u32) -> Result<(), FsError> {
        let place = self.block_of(file, block)?;
        let seed = self
            .superblock
            .has_checksums()
            .then(|| file.checksum_seed(&self.superblock));
        let bytes = self.store.read(place)?;
        let tail = bytes.len() - 8;
        let checksum =
            |bytes: &[u8], seed| crc32c(crc32c(seed, &place.to_le_bytes()), &bytes[..tail]);
        let is_whole =
            seed.is_none_or(|seed| checksum_agrees(le32(&bytes, tail + 4), checksum(&bytes, seed)));
        if le32(&bytes, tail) != FILE_MAGIC || !is_whole {
            return Err(FsError::corrupt(
                Structure::OrphanFile,
                place,
                le32(&bytes, tail).into(),
            ));
        }
        for entry in bytes[..tail].chunks_exact(4) {
            let number = le32(entry, 0);
            if number == file.number {
                return Err(FsError::corrupt(
                    Structure::OrphanFile,
                    place,
                    number.into(),
                ));
            }
            if number != 0 && !self.is_orphan(number)? {
                let mut inode = self.inode(number)?;
                self.add_orphan(&mut inode)?;
                self.put_inode(&mut inode)?;
            }
        }
        let bytes = self.store.modify(place)?;
        bytes[..tail].fill(0);
        if let Some(seed) = seed {
            let checksum = checksum(bytes, seed);
            put_le32(bytes, tail + 4, checksum);
        }
        Ok(())
    }
}
