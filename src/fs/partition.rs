//! Partition tables: MBR (with logical partitions) and GPT, and the window a partition is on its disk.
//!
//! Facts: the UEFI specification, chapter "GUID Partition Table (GPT) Disk Layout", for both tables.

use super::block::{BlockDevice, BlockError, Properties, Refusal, Refused, Request, SECTOR_SIZE};
use super::{blocking, checksum_agrees};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// The most partitions that are looked at: a table that says more is damaged or hostile.
const MAX_PARTITIONS: usize = 128;

/// What kind of partition the table says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The type byte of an MBR entry.
    Mbr(u8),
    /// The type GUID of a GPT entry, as it lies on disk.
    Gpt([u8; 16]),
}

/// One entry of a partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1, as Linux counts (logical MBR partitions from 5).
    pub number: u32,
    /// What it is for.
    pub kind: Kind,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes in it.
    pub len: u64,
    /// The GPT name; empty for MBR.
    pub name: String,
    /// Its PARTUUID, as Linux writes it: the GPT entry's GUID, or the MBR's signature and the number.
    pub uuid: String,
}

/// Why a partition table could not be read. A disk without one is not an error: it has no entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionError {
    /// The disk did not answer.
    Block(BlockError),
    /// The GPT header or its entries have a wrong checksum, at this sector, and so has the backup.
    GptChecksum {
        /// Where the primary header lies.
        sector: u64,
    },
    /// The GPT says something impossible, in this many entries of this size.
    GptGeometry {
        /// Number of entries.
        entries: u32,
        /// Bytes in each.
        entry_size: u32,
    },
}

impl fmt::Display for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(error) => write!(f, "{error}"),
            Self::GptChecksum { sector } => write!(
                f,
                "the GPT at sector {sector} is damaged, and so is its backup"
            ),
            Self::GptGeometry {
                entries,
                entry_size,
            } => write!(
                f,
                "the GPT says that it has {entries} entries of {entry_size} bytes"
            ),
        }
    }
}

impl From<BlockError> for PartitionError {
    fn from(error: BlockError) -> Self {
        Self::Block(error)
    }
}

/// The partitions of `device`, those that lie inside it. None if it has no table.
pub fn find(device: &dyn BlockDevice) -> Result<Vec<Entry>, PartitionError> {
    let Properties {
        capacity,
        sector_size,
        ..
    } = device.properties();
    let sector_size = u64::from(sector_size);
    if capacity < 2 * sector_size {
        return Ok(Vec::new());
    }
    let mbr = blocking::read(device, 0, sector_size as usize)?;
    if !has_mbr_signature(&mbr) {
        return Ok(Vec::new());
    }
    if (0..4).any(|i| mbr[446 + 16 * i + 4] == GPT_PROTECTIVE) {
        return gpt(device, sector_size);
    }
    mbr_partitions(device, &mbr)
}

/// A partition as a device of its own.
pub struct Partition {
    device: Arc<dyn BlockDevice>,
    start: u64,
    len: u64,
}

impl Partition {
    /// The window of `device` that `entry` describes.
    pub fn new(device: Arc<dyn BlockDevice>, entry: &Entry) -> Self {
        Self {
            device,
            start: entry.start,
            len: entry.len,
        }
    }
}

impl BlockDevice for Partition {
    fn properties(&self) -> Properties {
        Properties {
            capacity: self.len,
            ..self.device.properties()
        }
    }

    fn submit(&self, mut request: Request) -> Result<(), Refused> {
        if let Err(error) = request.check(&self.properties()) {
            return Err(Refused {
                request,
                reason: Refusal::Invalid(error),
            });
        }
        request.offset += self.start;
        self.device.submit(request).map_err(|mut refused| {
            refused.request.offset -= self.start;
            refused
        })
    }

    fn poll(&self) {
        self.device.poll();
    }
}

const GPT_PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

fn has_mbr_signature(sector: &[u8]) -> bool {
    sector[510..512] == [0x55, 0xaa]
}

fn mbr_entry(sector: &[u8], index: usize) -> (u8, u64, u64) {
    let entry = &sector[446 + 16 * index..][..16];
    let le32 = |at: usize| {
        u64::from(u32::from_le_bytes([
            entry[at],
            entry[at + 1],
            entry[at + 2],
            entry[at + 3],
        ]))
    };
    // MBR sectors are counted in 512 bytes, whatever the medium has.
    (entry[4], le32(8) * SECTOR_SIZE, le32(12) * SECTOR_SIZE)
}

fn mbr_partitions(device: &dyn BlockDevice, mbr: &[u8]) -> Result<Vec<Entry>, PartitionError> {
    let capacity = device.properties().capacity;
    let signature = u32::from_le_bytes([mbr[440], mbr[441], mbr[442], mbr[443]]);
    let mut entries = Vec::new();
    let mut add = |number: u32, kind, start: u64, len: u64| {
        let is_inside = start.checked_add(len).is_some_and(|end| end <= capacity);
        if kind != 0 && start != 0 && len != 0 && is_inside {
            entries.push(Entry {
                number,
                kind: Kind::Mbr(kind),
                start,
                len,
                name: String::new(),
                uuid: alloc::format!("{signature:08x}-{number:02x}"),
            });
        }
    };
    let mut chain = None;
    for index in 0..4 {
        let (kind, start, len) = mbr_entry(mbr, index);
        if EXTENDED.contains(&kind) {
            chain = chain.or(Some(start));
        } else {
            add(index as u32 + 1, kind, start, len);
        }
    }
    let Some(base) = chain else {
        return Ok(entries);
    };
    // Each table of the chain has one partition, relative to itself, and the next table, relative to the first.
    let mut table = base;
    let size = device.properties().sector_size as usize;
    for number in 5..5 + MAX_PARTITIONS as u32 {
        let is_inside = table
            .checked_add(size as u64)
            .is_some_and(|end| end <= capacity);
        if !is_inside || !table.is_multiple_of(size as u64) {
            break;
        }
        let sector = blocking::read(device, table, size)?;
        if !has_mbr_signature(&sector) {
            break;
        }
        let (kind, start, len) = mbr_entry(&sector, 0);
        add(number, kind, table.saturating_add(start), len);
        let (kind, next, _) = mbr_entry(&sector, 1);
        if !EXTENDED.contains(&kind) || next == 0 {
            break;
        }
        table = base + next;
    }
    Ok(entries)
}

fn gpt(device: &dyn BlockDevice, sector_size: u64) -> Result<Vec<Entry>, PartitionError> {
    let last = device.properties().capacity / sector_size - 1;
    match gpt_at(device, sector_size, 1) {
        Err(PartitionError::GptChecksum { .. }) => {
            let backup = gpt_at(device, sector_size, last);
            backup.map_err(|_| PartitionError::GptChecksum { sector: 1 })
        }
        primary => primary,
    }
}

fn gpt_at(
    device: &dyn BlockDevice,
    sector_size: u64,
    sector: u64,
) -> Result<Vec<Entry>, PartitionError> {
    let wrong = PartitionError::GptChecksum { sector };
    let capacity = device.properties().capacity;
    let mut header = blocking::read(device, sector * sector_size, sector_size as usize)?;
    let le32 = |b: &[u8], at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let le64 = |b: &[u8], at: usize| u64::from(le32(b, at)) | u64::from(le32(b, at + 4)) << 32;
    let header_size = le32(&header, 12) as usize;
    if &header[..8] != b"EFI PART" || !(92..=header.len()).contains(&header_size) {
        return Err(wrong);
    }
    let stored = le32(&header, 16);
    header[16..20].fill(0);
    if !checksum_agrees(stored, crc32(&header[..header_size])) || le64(&header, 24) != sector {
        return Err(wrong);
    }
    let (count, entry_size) = (le32(&header, 80), le32(&header, 84));
    let geometry = PartitionError::GptGeometry {
        entries: count,
        entry_size,
    };
    if !(128..=4096).contains(&entry_size) || !entry_size.is_power_of_two() || count > 1024 {
        return Err(geometry);
    }
    let table_len = u64::from(count) * u64::from(entry_size);
    let start = le64(&header, 72).checked_mul(sector_size).ok_or(geometry)?;
    let read_len = table_len.next_multiple_of(sector_size);
    if start.checked_add(read_len).is_none_or(|end| end > capacity) {
        return Err(geometry);
    }
    let table = blocking::read(device, start, read_len as usize)?;
    let table = &table[..table_len as usize];
    if !checksum_agrees(le32(&header, 88), crc32(table)) {
        return Err(wrong);
    }
    let mut entries = Vec::new();
    for (index, entry) in table
        .chunks_exact(entry_size as usize)
        .enumerate()
        .take(MAX_PARTITIONS)
    {
        let mut kind = [0; 16];
        kind.copy_from_slice(&entry[..16]);
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let end = last
            .checked_add(1)
            .and_then(|sectors| sectors.checked_mul(sector_size));
        let Some(end) = end.filter(|&end| end <= capacity && first <= last && first > 0) else {
            continue;
        };
        if kind == [0; 16] {
            continue;
        }
        let units = entry[56..128]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        entries.push(Entry {
            number: index as u32 + 1,
            kind: Kind::Gpt(kind),
            start: first * sector_size,
            len: end - first * sector_size,
            name: char::decode_utf16(units.take_while(|&unit| unit != 0))
                .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
            uuid: guid(&entry[16..32]),
        });
    }
    Ok(entries)
}

/// A GUID as people write it: its first three fields are little-endian, the rest are bytes.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (i, at) in ORDER.into_iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [bytes[at] >> 4, bytes[at] & 0xf] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text
}

fn crc32(bytes: &[u8]) -> u32 {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ram_disk::RamDisk;
    use alloc::vec;

    const SECTORS: usize = 4096;

    fn mbr_entry_bytes(
        disk: &mut [u8],
        table: usize,
        index: usize,
        kind: u8,
        start: u32,
        len: u32,
    ) {
        let at = table * 512 + 446 + 16 * index;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        disk[table * 512 + 510..table * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn gpt_disk() -> Vec<u8> {
        let mut disk = vec![0; SECTORS * 512];
        mbr_entry_bytes(&mut disk, 0, 0, GPT_PROTECTIVE, 1, SECTORS as u32 - 1);
        let entry = &mut disk[2 * 512..2 * 512 + 128];
        entry[..16].fill(0x11);
        for i in 0..16 {
            entry[16 + i] = i as u8;
        }
        entry[32..40].copy_from_slice(&64u64.to_le_bytes());
        entry[40..48].copy_from_slice(&127u64.to_le_bytes());
        entry[56..60].copy_from_slice(&[b'r', 0, b't', 0]);
        for (header, table) in [(1, 2), (SECTORS - 1, SECTORS - 33)] {
            let entries = disk[2 * 512..34 * 512].to_vec();
            disk[table * 512..(table + 32) * 512].copy_from_slice(&entries);
            let bytes = &mut disk[header * 512..header * 512 + 512];
            bytes[..8].copy_from_slice(b"EFI PART");
            bytes[12..16].copy_from_slice(&92u32.to_le_bytes());
            bytes[24..32].copy_from_slice(&(header as u64).to_le_bytes());
            bytes[72..80].copy_from_slice(&(table as u64).to_le_bytes());
            bytes[80..84].copy_from_slice(&128u32.to_le_bytes());
            bytes[84..88].copy_from_slice(&128u32.to_le_bytes());
            bytes[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            let checksum = crc32(&bytes[..92]);
            bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        }
        disk
    }

    fn places(disk: Vec<u8>) -> Vec<(u32, u64, u64)> {
        let entries = find(&RamDisk::new(disk)).unwrap();
        entries
            .iter()
            .map(|entry| (entry.number, entry.start / 512, entry.len / 512))
            .collect()
    }

    #[test]
    fn a_blank_disk_has_no_partitions() {
        assert_eq!(places(vec![0; SECTORS * 512]), []);
    }

    #[test]
    fn primary_and_logical_partitions_are_found() {
        let mut disk = vec![0; SECTORS * 512];
        mbr_entry_bytes(&mut disk, 0, 0, 0x0c, 8, 64);
        mbr_entry_bytes(&mut disk, 0, 1, 0x05, 100, 1000);
        mbr_entry_bytes(&mut disk, 100, 0, 0x83, 4, 16);
        mbr_entry_bytes(&mut disk, 100, 1, 0x05, 200, 100);
        mbr_entry_bytes(&mut disk, 300, 0, 0x83, 4, 32);
        disk[440..444].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        let entries = find(&RamDisk::new(disk.clone())).unwrap();
        assert_eq!(entries[2].uuid, "12345678-06");
        assert_eq!(places(disk), [(1, 8, 64), (5, 104, 16), (6, 304, 32)]);
    }

    #[test]
    fn a_partition_past_the_end_of_the_disk_is_left_out() {
        let mut disk = vec![0; SECTORS * 512];
        mbr_entry_bytes(&mut disk, 0, 0, 0x83, SECTORS as u32 - 8, 9);
        mbr_entry_bytes(&mut disk, 0, 1, 0x83, u32::MAX, u32::MAX);
        assert_eq!(places(disk), []);
    }

    #[test]
    fn a_chain_of_tables_that_bites_its_tail_ends() {
        let mut disk = vec![0; SECTORS * 512];
        mbr_entry_bytes(&mut disk, 0, 0, 0x05, 100, 1000);
        mbr_entry_bytes(&mut disk, 100, 0, 0x83, 4, 16);
        mbr_entry_bytes(&mut disk, 100, 1, 0x05, 200, 100);
        mbr_entry_bytes(&mut disk, 300, 0, 0x83, 4, 16);
        mbr_entry_bytes(&mut disk, 300, 1, 0x05, 200, 100);
        assert_eq!(places(disk).len(), MAX_PARTITIONS);
    }

    #[test]
    fn a_gpt_is_read_with_its_names() {
        let entries = find(&RamDisk::new(gpt_disk())).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].start, entries[0].len), (64 * 512, 64 * 512));
        assert_eq!(entries[0].name, "rt");
        assert_eq!(entries[0].uuid, "03020100-0504-0706-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn a_damaged_gpt_is_read_from_its_backup() {
        let mut disk = gpt_disk();
        disk[512 + 40] ^= 1;
        assert_eq!(places(disk), [(1, 64, 64)]);
    }

    #[test]
    fn two_damaged_gpts_are_an_error() {
        let mut disk = gpt_disk();
        disk[512 + 40] ^= 1;
        disk[(SECTORS - 1) * 512 + 40] ^= 1;
        assert_eq!(
            find(&RamDisk::new(disk)),
            Err(PartitionError::GptChecksum { sector: 1 })
        );
    }

    #[test]
    fn a_partition_does_not_reach_past_its_end() {
        let disk = Arc::new(RamDisk::new(gpt_disk()));
        let entry = find(&*disk).unwrap().remove(0);
        let partition = Partition::new(disk, &entry);
        assert_eq!(
            blocking::read(&partition, 63 * 512, 512).map(|b| b.len()),
            Ok(512)
        );
        assert!(blocking::read(&partition, 64 * 512, 512).is_err());
    }
}
