//! The superblock in words, as `dumpe2fs -h` has them: for people, who want to know also of one that cannot be mounted.

use super::bytes::{halves32, le16, le32};
use super::superblock::{OFFSET, SIZE};
use crate::fs::block::BlockDevice;
use crate::fs::blocking;
use crate::fs::error::{FeatureSet, FsError, Structure, Unsupported};
use alloc::vec::Vec;
use core::fmt;

const UUID: usize = 0x68;
const LABEL: usize = 0x78;

/// A superblock, as it lies on a device.
pub struct SuperblockInfo(Vec<u8>);

impl SuperblockInfo {
    /// Reads it.
    ///
    /// # Errors
    /// What the device says; [`FsError::Corrupt`] where there is none.
    pub fn read(device: &dyn BlockDevice) -> Result<Self, FsError> {
        // Whole sectors, however large they are.
        const LEN: usize = 4096;
        if device.properties().capacity < LEN as u64 {
            return Err(FsError::TooSmall);
        }
        let bytes = blocking::read(device, 0, LEN)?;
        let bytes = bytes[OFFSET as usize..OFFSET as usize + SIZE].to_vec();
        Self::new(bytes)
    }

    fn new(bytes: Vec<u8>) -> Result<Self, FsError> {
        match le16(&bytes, 0x38) {
            0xef53 => Ok(Self(bytes)),
            magic => Err(FsError::corrupt(
                Structure::SuperblockMagic,
                0,
                magic.into(),
            )),
        }
    }

    /// What it is called; nothing where nobody gave it a name.
    pub fn label(&self) -> &[u8] {
        let label = &self.0[LABEL..LABEL + 16];
        &label[..label.iter().position(|byte| *byte == 0).unwrap_or(16)]
    }

    /// Its UUID, as people write it.
    pub fn uuid(&self) -> impl fmt::Display + '_ {
        Uuid(&self.0[UUID..UUID + 16])
    }

    fn text(&self, at: usize, len: usize) -> impl fmt::Display + '_ {
        let bytes = &self.0[at..at + len];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
        match end {
            0 => b"(none)".escape_ascii(),
            end => bytes[..end].escape_ascii(),
        }
    }
}

/// Sixteen bytes as people write them.
struct Uuid<'a>(&'a [u8]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SuperblockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = &self.0[..];
        let word = |at| u64::from(le32(bytes, at));
        let long = |low, high| halves32(le32(bytes, low), le32(bytes, high));
        let [compat, incompat, ro_compat] = [0x5c, 0x60, 0x64].map(|at| le32(bytes, at));
        let is_64bit = incompat & 0x80 != 0;
        let count = |low, high| if is_64bit { long(low, high) } else { word(low) };
        let state = le16(bytes, 0x3a);
        writeln!(f, "label              {}", self.text(0x78, 16))?;
        writeln!(f, "UUID               {}", Uuid(&bytes[0x68..0x78]))?;
        writeln!(f, "last mounted on    {}", self.text(0x88, 64))?;
        writeln!(f, "revision           {}.{}", word(0x4c), le16(bytes, 0x3e))?;
        write!(f, "features          ")?;
        for (set, bits) in [
            (FeatureSet::Compatible, compat),
            (FeatureSet::Incompatible, incompat),
            (FeatureSet::ReadOnlyCompatible, ro_compat),
        ] {
            Unsupported { set, bits }.write_names(f)?;
        }
        writeln!(f)?;
        write!(f, "state              ")?;
        f.write_str(match (state & 1, state & 2, incompat & 4) {
            (_, 2, _) => "has errors: run e2fsck",
            (_, _, 4) => "in use, or not unmounted: its journal will be replayed",
            (1, ..) => "clean",
            _ => "not clean: run e2fsck",
        })?;
        writeln!(f)?;
        writeln!(f, "errors             {}", word(0x194))?;
        let (function, line) = (self.text(0x1a8, 32), word(0x1c8));
        if word(0x194) > 0 {
            writeln!(f, "first of them      in {function}, line {line}")?;
        }
        let size = 1024u64.checked_shl(le32(bytes, 0x18)).unwrap_or(0);
        let (blocks, free) = (count(0x04, 0x150), count(0x0c, 0x158));
        writeln!(f, "block size         {size}")?;
        writeln!(f, "blocks             {blocks}")?;
        writeln!(f, "free blocks        {free}")?;
        writeln!(f, "reserved blocks    {}", count(0x08, 0x154))?;
        writeln!(f, "inodes             {}", word(0x00))?;
        writeln!(f, "free inodes        {}", word(0x10))?;
        writeln!(f, "inode size         {}", le16(bytes, 0x58))?;
        writeln!(f, "blocks per group   {}", word(0x20))?;
        writeln!(f, "inodes per group   {}", word(0x28))?;
        let first = word(0x14);
        let groups = blocks.saturating_sub(first).div_ceil(word(0x20).max(1));
        writeln!(f, "groups             {groups}")?;
        let checksum = match (ro_compat & 0x400 != 0, incompat & 0x2000 != 0) {
            (true, true) => "crc32c, with a seed of its own",
            (true, false) => "crc32c",
            (false, _) if ro_compat & 0x10 != 0 => "of group descriptors alone",
            (false, _) => "none",
        };
        writeln!(f, "checksums          {checksum}")?;
        match (compat & 4 != 0, word(0xe0)) {
            (false, _) => writeln!(f, "journal            none")?,
            (true, 0) => writeln!(f, "journal            on another device")?,
            (true, inode) => writeln!(f, "journal            in inode {inode}")?,
        }
        let most = match le16(bytes, 0x36) {
            limit @ 1..=0x7fff => limit,
            _ => 0,
        };
        write!(f, "mounts             {}", le16(bytes, 0x34))?;
        match most {
            0 => writeln!(f),
            most => writeln!(f, ", of {most} until e2fsck is due"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SuperblockInfo;
    use alloc::string::ToString;

    #[test]
    fn anything_is_put_into_words() {
        let mut random = 7u64;
        for _ in 0..if cfg!(miri) { 3 } else { 200 } {
            let mut bytes = alloc::vec![0; 1024];
            for byte in &mut bytes {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *byte = (random >> 33) as u8;
            }
            assert!(SuperblockInfo::new(bytes.clone()).is_err());
            bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
            assert!(
                SuperblockInfo::new(bytes)
                    .unwrap()
                    .to_string()
                    .contains("blocks per group")
            );
        }
    }
}
