//! What can go wrong in a file system, and what was found where.

use super::block::BlockError;
use core::fmt;
use core::fmt::Write as _;

/// Why an operation on a file system failed. The file system is as it was before, unless stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// No entry of that name, or no such file any more.
    NotFound,
    /// No path leads anywhere: there is no root.
    NothingMounted,
    /// Nothing is mounted on what was to be unmounted.
    NotAMountPoint,
    /// The name is taken.
    Exists,
    /// A directory is needed.
    NotADirectory,
    /// Anything but a directory is needed.
    IsADirectory,
    /// A regular file is needed.
    NotAFile,
    /// A symbolic link is needed.
    NotASymlink,
    /// The directory still has entries.
    NotEmpty,
    /// Empty, `.` or `..` where a new name is needed, or with a slash or zero byte in it.
    InvalidName,
    /// More than 255 bytes.
    NameTooLong,
    /// More symbolic links than a path may have: perhaps a loop.
    TooManySymlinks,
    /// A file cannot have more names, or a directory more sub-directories.
    TooManyLinks,
    /// A directory cannot be moved into itself.
    IntoItself,
    /// The two names lie in different file systems.
    CrossDevice,
    /// The mount point is taken, or still in use.
    Busy,
    /// The format cannot do this, as FAT has no links.
    NotOffered,
    /// The format's files are not cached.
    NotMappable,
    /// No space is left on the device.
    NoSpace,
    /// No inode is left.
    NoInodes,
    /// The file would be longer than the format allows.
    FileTooLarge,
    /// No memory for it.
    OutOfMemory,
    /// The file system cannot be written.
    ReadOnly(ReadOnlyReason),
    /// The device failed.
    Block(BlockError),
    /// The medium holds something impossible.
    Corrupt(Corruption),
    /// The device has no room for a file system.
    TooSmall,
    /// Neither ext4 nor FAT, as far as can be seen.
    UnknownFormat,
    /// The format has something we do not know.
    Unsupported(Unsupported),
}

/// Why nothing can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnlyReason {
    /// It was mounted so.
    Asked,
    /// The device takes no writes.
    Device,
    /// These read-only-compatible features are not written by us.
    Feature(Unsupported),
    /// Only a backup superblock could be read.
    BackupSuperblock,
    /// What was being removed or cut when it was left cannot be finished.
    Unfinished(BlockError),
    /// The journal could not be written: what is in memory since then is not on the medium.
    JournalFailed(BlockError),
    /// The journal holds something impossible.
    JournalDamaged,
    /// One operation changed more than the journal holds.
    TransactionTooLarge,
    /// It was unmounted, or is about to be.
    Unmounted,
}

/// Features, by bit, that a format has and we have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Which word of feature bits.
    pub set: FeatureSet,
    /// The bits, in the format's own numbering.
    pub bits: u32,
}

/// The words of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureSet {
    /// ext4: whoever does not know these may write nevertheless.
    Compatible,
    /// ext4: whoever does not know these must not mount.
    Incompatible,
    /// ext4: whoever does not know these must not write.
    ReadOnlyCompatible,
    /// JBD2: whoever does not know these must not replay.
    Journal,
    /// The block size, in bytes.
    BlockSize,
    /// A journal on another device, by device number.
    ExternalJournal,
    /// Fast commits that were not yet folded into the file system; count of their blocks.
    FastCommits,
}

/// A value that cannot be, and where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// What kind of thing it was in.
    pub structure: Structure,
    /// The block it was in; for an inode its number, for a group descriptor its group.
    pub at: u64,
    /// The value.
    pub value: u64,
}

/// On-disk structures, as errors name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the words it prints")]
pub enum Structure {
    SuperblockMagic,
    SuperblockChecksum,
    SuperblockGeometry,
    GroupDescriptorChecksum,
    GroupDescriptor,
    BlockBitmapChecksum,
    InodeBitmapChecksum,
    Bitmap,
    InodeChecksum,
    InodeNumber,
    InodeMode,
    InodeSize,
    InodeExtraSize,
    LinkCount,
    ExtentHeader,
    ExtentChecksum,
    Extent,
    ExtentDepth,
    BlockPointer,
    DirectoryEntry,
    DirectoryChecksum,
    DirectoryHole,
    HashTree,
    HashTreeChecksum,
    SymlinkTarget,
    AttributeBlock,
    OrphanList,
    OrphanFile,
    JournalSuperblock,
    JournalChecksum,
    JournalGeometry,
    JournalTag,
    JournalRevoke,
    TransactionTooLarge,
    Fat,
    FatTime,
}

impl FsError {
    /// A corruption, in short.
    pub const fn corrupt(structure: Structure, at: u64, value: u64) -> Self {
        Self::Corrupt(Corruption {
            structure,
            at,
            value,
        })
    }

    /// Whether there is no ext4 file system at all, damaged or not.
    pub fn is_another_format(&self) -> bool {
        matches!(self, Self::Corrupt(found) if found.structure == Structure::SuperblockMagic)
    }
}

impl From<BlockError> for FsError {
    fn from(error: BlockError) -> Self {
        Self::Block(error)
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::NotFound => "no such file or directory",
            Self::NothingMounted => "nothing is mounted on /",
            Self::NotAMountPoint => "nothing is mounted there",
            Self::Exists => "the name exists already",
            Self::NotADirectory => "not a directory",
            Self::IsADirectory => "is a directory",
            Self::NotAFile => "not a regular file",
            Self::NotASymlink => "not a symbolic link",
            Self::NotEmpty => "the directory is not empty",
            Self::InvalidName => "not a valid name",
            Self::NameTooLong => "the name is longer than 255 bytes",
            Self::TooManySymlinks => "too many symbolic links on the way",
            Self::TooManyLinks => "too many links",
            Self::IntoItself => "a directory cannot be moved into itself",
            Self::CrossDevice => "not on the same file system",
            Self::Busy => "in use",
            Self::NotOffered => "the file system does not offer this",
            Self::NotMappable => "files of a FAT volume cannot be mapped",
            Self::NoSpace => "no space left on the device",
            Self::NoInodes => "no inode left on the device",
            Self::FileTooLarge => "the file would be too large",
            Self::OutOfMemory => "out of memory",
            Self::TooSmall => "the device is too small for a file system",
            Self::UnknownFormat => "neither ext4 nor FAT",
            Self::ReadOnly(reason) => return write!(f, "read-only file system: {reason}"),
            Self::Block(error) => return error.fmt(f),
            Self::Corrupt(corruption) => return corruption.fmt(f),
            Self::Unsupported(unsupported) => return unsupported.fmt(f),
        };
        f.write_str(words)
    }
}

impl fmt::Display for ReadOnlyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("mounted read-only"),
            Self::Device => f.write_str("the device is read-only"),
            Self::Feature(unsupported) => unsupported.fmt(f),
            Self::BackupSuperblock => f.write_str("the primary superblock is damaged"),
            Self::Unfinished(error) => {
                write!(f, "a removal or a cut cannot be finished: {error}")
            }
            Self::JournalFailed(error) => write!(f, "the journal could not be written: {error}"),
            Self::JournalDamaged => f.write_str("the journal is damaged"),
            Self::TransactionTooLarge => f.write_str("the journal is too small"),
            Self::Unmounted => f.write_str("unmounted"),
        }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits;
        match self.set {
            FeatureSet::BlockSize => return write!(f, "unsupported block size: {bits}"),
            FeatureSet::ExternalJournal => {
                return write!(f, "unsupported: journal on device {bits:#x}");
            }
            FeatureSet::FastCommits => {
                return write!(f, "{bits} blocks of fast commits to recover: run e2fsck");
            }
            _ => {}
        }
        f.write_str("unsupported features:")?;
        self.write_names(f)
    }
}

impl Unsupported {
    /// Writes the features' names, a blank before each.
    pub(super) fn write_names(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits;
        let names: &[(u32, &str)] = match self.set {
            FeatureSet::Compatible => &COMPATIBLE_NAMES,
            FeatureSet::Incompatible => &INCOMPATIBLE_NAMES,
            FeatureSet::ReadOnlyCompatible => &READ_ONLY_NAMES,
            FeatureSet::Journal => &JOURNAL_NAMES,
            FeatureSet::BlockSize | FeatureSet::ExternalJournal | FeatureSet::FastCommits => &[],
        };
        for bit in (0..32)
            .map(|shift| 1 << shift)
            .filter(|bit| bits & bit != 0)
        {
            match names.iter().find(|(named, _)| *named == bit) {
                Some((_, name)) => write!(f, " {name}")?,
                None => write!(f, " {bit:#x}")?,
            }
        }
        Ok(())
    }
}

// The names are those of mke2fs.
const COMPATIBLE_NAMES: [(u32, &str); 9] = [
    (0x1, "dir_prealloc"),
    (0x2, "imagic_inodes"),
    (0x4, "has_journal"),
    (0x8, "ext_attr"),
    (0x10, "resize_inode"),
    (0x20, "dir_index"),
    (0x200, "sparse_super2"),
    (0x400, "fast_commit"),
    (0x1000, "orphan_file"),
];

const INCOMPATIBLE_NAMES: [(u32, &str); 18] = [
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extents"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x1_0000, "encrypt"),
    (0x2_0000, "casefold"),
    (0x20, "extents-reserved"),
    (0x800, "reserved"),
];

const READ_ONLY_NAMES: [(u32, &str); 15] = [
    (0x1, "sparse_super"),
    (0x2, "large_file"),
    (0x8, "huge_file"),
    (0x10, "uninit_bg"),
    (0x20, "dir_nlink"),
    (0x40, "extra_isize"),
    (0x80, "has_snapshot"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x400, "metadata_csum"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (0x8000, "verity"),
    (0x1_0000, "orphan_present"),
];

const JOURNAL_NAMES: [(u32, &str); 6] = [
    (0x1, "journal_incompat_revoke"),
    (0x2, "journal_64bit"),
    (0x4, "journal_async_commit"),
    (0x8, "journal_checksum_v2"),
    (0x10, "journal_checksum_v3"),
    (0x20, "fast_commit"),
];

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fat => f.write_str("FAT"),
            Self::FatTime => f.write_str("FAT time"),
            // The variant's name, in words.
            _ => write!(Words { f, is_first: true }, "{self:?}"),
        }
    }
}

/// Writes `TitleCase` as title case.
struct Words<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    is_first: bool,
}

impl fmt::Write for Words<'_, '_> {
    fn write_str(&mut self, name: &str) -> fmt::Result {
        for letter in name.chars() {
            if letter.is_ascii_uppercase() && !self.is_first {
                self.f.write_char(' ')?;
            }
            self.is_first = false;
            self.f.write_char(letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            structure,
            at,
            value,
        } = self;
        write!(f, "damaged file system: {structure} at {at} has {value:#x}")
    }
}

impl core::error::Error for FsError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn an_unknown_feature_is_named() {
        let error = Unsupported {
            set: FeatureSet::Incompatible,
            bits: 0x8100,
        };
        assert_eq!(error.to_string(), "unsupported features: mmp inline_data");
    }

    #[test]
    fn a_structure_is_named_in_words() {
        let error = FsError::corrupt(Structure::GroupDescriptorChecksum, 3, 0xd5b0);
        assert_eq!(
            error.to_string(),
            "damaged file system: group descriptor checksum at 3 has 0xd5b0"
        );
    }
}
