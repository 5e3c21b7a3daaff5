//! What a disk looks like that nobody here can mount: enough for a person to see that it is the wrong one.
//!
//! Magic numbers and their places are those of each format's own description, as `file` and `blkid` know them.

/// Bytes at the beginning of a disk that are looked at.
pub const LOOKED_AT: usize = 0x1_1000;

/// Where which bytes mean what. What may lie inside something else comes later.
const SIGNATURES: [(usize, &[u8], &str); 28] = [
    (0x1_0040, b"_BHRfS_M", "Btrfs"),
    (0x8001, b"CD001", "a CD (ISO 9660)"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0x438, b"\x53\xef", "ext4, damaged"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (0x400, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0x400, b"H+", "HFS+"),
    (0x200, b"LABELONE", "a volume of LVM"),
    (0x200, b"EFI PART", "a disk with GUID partitions"),
    (
        0x40,
        b"\x7f\x10\xda\xbe",
        "a VirtualBox image (VDI): convert it to raw",
    ),
    (0x20, b"NXSB", "APFS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0, b"XFSB", "XFS"),
    (0, b"hsqs", "SquashFS"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, b"QFI\xfb", "a QEMU image (qcow2): convert it to raw"),
    (0, b"KDMV", "a VMware image (VMDK): convert it to raw"),
    (0, b"vhdxfile", "a Hyper-V image (VHDX): convert it to raw"),
    (0, b"\x1f\x8b", "compressed (gzip)"),
    (0, b"\xfd7zXZ\0", "compressed (xz)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)"),
    (0, b"BZh", "compressed (bzip2)"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0x101, b"ustar", "a tar archive"),
    (0x52, b"FAT32   ", "FAT, damaged"),
    (0x36, b"FAT1", "FAT, damaged"),
    (
        0x1fe,
        b"\x55\xaa",
        "a disk with partitions, or one that boots a PC",
    ),
];

/// What a disk that begins with these bytes looks like.
pub fn name(beginning: &[u8]) -> &'static str {
    let is_there = |at: usize, bytes: &[u8]| {
        let place = beginning.get(at..);
        place.is_some_and(|place| place.starts_with(bytes))
    };
    let found = SIGNATURES
        .iter()
        .find(|(at, bytes, _)| is_there(*at, bytes));
    match found {
        Some((_, _, name)) => name,
        None if beginning.is_empty() => "nothing: it has no bytes",
        None if beginning.iter().all(|byte| *byte == 0) => "nothing yet: it begins with zeros",
        None => "nothing that is known here",
    }
}

#[cfg(test)]
mod tests {
    use super::{LOOKED_AT, SIGNATURES, name};
    use alloc::vec;

    #[test]
    fn each_signature_is_found_in_its_place() {
        for (at, bytes, what) in SIGNATURES {
            let mut disk = vec![0; LOOKED_AT];
            disk[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(name(&disk), what);
            // One that ends within it is no match, and no crash.
            assert_ne!(name(&disk[..at + bytes.len() - 1]), what);
        }
    }

    #[test]
    fn an_empty_disk_and_a_strange_one_are_told_apart() {
        assert_eq!(name(&[]), "nothing: it has no bytes");
        assert_eq!(name(&[0; 512]), "nothing yet: it begins with zeros");
        assert_eq!(name(&[7; 512]), "nothing that is known here");
    }
}
