//! The format of `kv`: a log of records in one file, of which a header says how much is valid.
//!
//! ```text
//! page 0   header A (512 bytes), then zeros        record   CRC-32C   4   of all that follows it, and its offset
//! page 1   header B (512 bytes), then zeros                 key       2   bytes in the key, 1 to 1024
//! page 2   record | record | ... | record | zeros           value     4   bytes in the value, or u32::MAX: deleted
//!          ^ START                        ^ committed       the key, the value
//! ```
//!
//! **Commit.** Records are appended behind what is committed, where nobody looks after a power cut. When they are durable
//! ([`Storage::flush`] has returned), the header that is older gets the next number and the new end, and is flushed in its
//! turn. Each header lies in a page of its own and within one sector of 512 bytes, which a disk writes as a whole or not at
//! all; whatever becomes of one, the other still says what was valid before. What is written back earlier than asked for,
//! or in another order, is behind the end that the headers know.
//!
//! **Open.** The valid header with the higher number counts. Every record up to its end is checked, and gives an index: a
//! hash table of offsets, by open addressing, with part of the hash in the upper bits. A file that is damaged is refused.
//!
//! **Garbage** is what was replaced or deleted, and deletions themselves. [`Store::copy_to`] leaves it behind.

use crate::fs::ext4::checksum::{self, crc32c};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Bytes in a key at most.
pub const MAX_KEY: usize = 1024;

/// Bytes in a value at most.
pub const MAX_VALUE: usize = 16 << 20;

const PAGE: usize = 4096;

/// Where the records begin.
const START: usize = 2 * PAGE;

/// Bytes in a new store: headers, and some room.
const NEW: usize = 64 << 10;

/// How much a store grows by at most, when it doubles no more.
const MAX_GROWTH: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"PINFKV01";

/// Bytes in a record before its key.
const HEAD: usize = 10;

/// Instead of a value's length: the key was deleted.
const DELETED: u32 = u32::MAX;

/// Bits of a slot that are the offset of a record; above them, part of its key's hash.
const OFFSET_BITS: u32 = 48;
const OFFSET: u64 = (1 << OFFSET_BITS) - 1;

/// Bytes that can be made durable: a mapped file.
pub trait Storage {
    /// What goes wrong with it.
    type Error;
    /// All bytes.
    fn bytes(&self) -> &[u8];
    /// All bytes, to be changed. When they reach the medium is open until [`flush`](Self::flush) returns.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Returns when the bytes in `range` are durable.
    fn flush(&mut self, range: Range<usize>) -> Result<(), Self::Error>;
    /// Adds zeros at the end, to `len` bytes; returns when that is durable.
    fn grow(&mut self, len: usize) -> Result<(), Self::Error>;
}

/// Why a store does not do what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error<E> {
    /// What the storage says.
    Storage(E),
    /// The file is no store: it has no header of one.
    NotAStore,
    /// Something cannot be as it is, at this byte of the file.
    Damaged {
        /// What.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// A key has 1 to 1024 bytes.
    BadKey(usize),
    /// A value has 16 MiB at most.
    ValueTooLong(usize),
    /// No memory for the index.
    OutOfMemory,
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Self::Storage(error)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(error) => error.fmt(f),
            Self::NotAStore => f.write_str("not a key-value store: it has no header of one"),
            Self::Damaged { what, at } => write!(f, "damaged at byte {at:#x}: {what}"),
            Self::BadKey(len) => write!(f, "a key has 1 to {MAX_KEY} bytes, not {len}"),
            Self::ValueTooLong(len) => {
                write!(f, "a value has {MAX_VALUE} bytes at most, not {len}")
            }
            Self::OutOfMemory => f.write_str("no memory for the index"),
        }
    }
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    number: u64,
    end: u64,
}

impl Header {
    const LEN: usize = 28;

    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Self::LEN)?;
        let (body, crc) = bytes.split_at(Self::LEN - 4);
        let is_whole =
            body.starts_with(&MAGIC) && crc == crc32c(checksum::START, body).to_le_bytes();
        is_whole.then(|| Self {
            number: u64_at(body, 8),
            end: u64_at(body, 16),
        })
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.end.to_le_bytes());
        let crc = crc32c(checksum::START, &bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Where the header of that number is.
    fn place(number: u64) -> usize {
        (number % 2) as usize * PAGE
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// A record, as it lies in the file.
#[derive(Clone, Copy)]
struct Record<'a> {
    key: &'a [u8],
    /// `None`: deleted.
    value: Option<&'a [u8]>,
    /// Where the next one begins.
    next: usize,
}

impl<'a> Record<'a> {
    /// The record at `at`, whose bytes end before `end`; in words what is wrong with it.
    fn read(bytes: &'a [u8], at: usize, end: usize) -> Result<Self, &'static str> {
        let rest = bytes.get(at..end).ok_or("a record behind the end")?;
        let head = rest.first_chunk::<HEAD>().ok_or("half a record")?;
        let [c0, c1, c2, c3, k0, k1, v0, v1, v2, v3] = *head;
        let key_len = usize::from(u16::from_le_bytes([k0, k1]));
        let value_len = u32::from_le_bytes([v0, v1, v2, v3]);
        if key_len == 0 || key_len > MAX_KEY {
            return Err("a key of a length that cannot be");
        }
        let is_deleted = value_len == DELETED;
        let len = if is_deleted { 0 } else { value_len as usize };
        if len > MAX_VALUE {
            return Err("a value of a length that cannot be");
        }
        let whole = rest.get(..HEAD + key_len + len).ok_or("half a record")?;
        let crc = crc32c(seed_of(at), &whole[4..]);
        if crc.to_le_bytes() != [c0, c1, c2, c3] {
            return Err("a record whose checksum is wrong");
        }
        let (key, value) = whole[HEAD..].split_at(key_len);
        Ok(Self {
            key,
            value: (!is_deleted).then_some(value),
            next: at + whole.len(),
        })
    }

    /// The record at `at`, which has been checked.
    fn checked(bytes: &'a [u8], at: usize) -> Self {
        let key_len = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let mut value_len = [0; 4];
        value_len.copy_from_slice(&bytes[at + 6..at + HEAD]);
        let value_len = u32::from_le_bytes(value_len);
        let key = &bytes[at + HEAD..at + HEAD + key_len];
        let start = at + HEAD + key_len;
        let len = if value_len == DELETED {
            0
        } else {
            value_len as usize
        };
        Self {
            key,
            value: (value_len != DELETED).then(|| &bytes[start..start + len]),
            next: start + len,
        }
    }
}

/// Where a checksum begins: a record that was moved is none.
fn seed_of(at: usize) -> u32 {
    !(at as u32) ^ (at as u64 >> 32) as u32
}

/// FNV-1a, and a finaliser, since its upper bits are poor.
fn hash(key: &[u8]) -> u64 {
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Where the newest record of each key is.
struct Index {
    /// A power of two of them, at most three quarters in use. Zero is empty: no record lies at offset 0.
    slots: Vec<u64>,
    used: usize,
}

impl Index {
    fn new(len: usize) -> Option<Self> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(len).ok()?;
        slots.resize(len, 0);
        Some(Self { slots, used: 0 })
    }

    /// The slot of `key`, and the offset in it, or the empty slot where it belongs.
    fn find(&self, bytes: &[u8], key: &[u8]) -> (usize, Option<usize>) {
        let hash = hash(key);
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return (at, None);
            }
            let offset = (slot & OFFSET) as usize;
            if slot & !OFFSET == hash & !OFFSET && Record::checked(bytes, offset).key == key {
                return (at, Some(offset));
            }
            at = (at + 1) & mask;
        }
    }

    /// Says that the newest record of `key` is at `offset`; the one before.
    fn set(&mut self, bytes: &[u8], key: &[u8], offset: usize) -> Option<usize> {
        let (at, before) = self.find(bytes, key);
        self.slots[at] = offset as u64 | hash(key) & !OFFSET;
        self.used += usize::from(before.is_none());
        before
    }

    /// Makes room for another key.
    fn reserve(&mut self, bytes: &[u8]) -> Option<()> {
        if (self.used + 1) * 4 <= self.slots.len() * 3 {
            return Some(());
        }
        let mut larger = Self::new(self.slots.len() * 2)?;
        for slot in self.slots.iter().filter(|slot| **slot != 0) {
            let offset = (slot & OFFSET) as usize;
            larger.set(bytes, Record::checked(bytes, offset).key, offset);
        }
        *self = larger;
        Some(())
    }
}

/// What is known about a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statistics {
    /// Keys that have a value.
    pub records: usize,
    /// Commits since it was made.
    pub commits: u64,
    /// Bytes up to the end of the last record.
    pub used: u64,
    /// Bytes of these that are of no use any more.
    pub garbage: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// A key and its value.
pub type Pair<'s> = (&'s [u8], &'s [u8]);

/// A key-value store.
pub struct Store<S> {
    storage: S,
    index: Index,
    records: usize,
    garbage: usize,
    header: Header,
    /// Where the next record goes.
    end: usize,
}

impl<S: Storage> Store<S> {
    /// The store in `storage`; a new one, if that is empty or all zeros.
    pub fn open(mut storage: S) -> Result<Self, Error<S::Error>> {
        let is_new = storage.bytes().iter().all(|byte| *byte == 0);
        let header = if is_new {
            if storage.bytes().len() < NEW {
                storage.grow(NEW)?;
            }
            let header = Header {
                number: 0,
                end: START as u64,
            };
            write_header(&mut storage, header)?;
            header
        } else {
            newest_header(storage.bytes())?
        };
        let index = Index::new(64).ok_or(Error::OutOfMemory)?;
        let mut store = Self {
            storage,
            index,
            records: 0,
            garbage: 0,
            header,
            end: START,
        };
        store.read_log()?;
        Ok(store)
    }

    fn read_log(&mut self) -> Result<(), Error<S::Error>> {
        let bytes = self.storage.bytes();
        let end = self.header.end as usize;
        while self.end < end {
            let at = self.end;
            let record = Record::read(bytes, at, end);
            let record = record.map_err(|what| Error::Damaged {
                what,
                at: at as u64,
            })?;
            self.index.reserve(bytes).ok_or(Error::OutOfMemory)?;
            let before = self.index.set(bytes, record.key, at);
            let before = before.map(|before| Record::checked(bytes, before));
            count(&mut self.records, &mut self.garbage, at, record, before);
            self.end = record.next;
        }
        Ok(())
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let bytes = self.storage.bytes();
        let (_, offset) = self.index.find(bytes, key);
        Record::checked(bytes, offset?).value
    }

    /// Gives `key` a value; durable with the next [`commit`](Self::commit).
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error<S::Error>> {
        if value.len() > MAX_VALUE {
            return Err(Error::ValueTooLong(value.len()));
        }
        self.append(key, Some(value))
    }

    /// Takes the value of `key` away, whether there was one; durable with the next [`commit`](Self::commit).
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Error<S::Error>> {
        let had_value = self.get(key).is_some();
        if had_value {
            self.append(key, None)?;
        }
        Ok(had_value)
    }

    fn append(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Error<S::Error>> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Error::BadKey(key.len()));
        }
        let at = self.end;
        let next = at + HEAD + key.len() + value.map_or(0, <[u8]>::len);
        let size = self.storage.bytes().len();
        if next > size {
            let larger = next + (next - START).clamp(NEW, MAX_GROWTH);
            self.storage.grow(larger.next_multiple_of(PAGE))?;
        }
        self.index
            .reserve(self.storage.bytes())
            .ok_or(Error::OutOfMemory)?;
        let record = &mut self.storage.bytes_mut()[at..next];
        let value_len = value.map_or(DELETED, |value| value.len() as u32);
        record[4..6].copy_from_slice(&(key.len() as u16).to_le_bytes());
        record[6..HEAD].copy_from_slice(&value_len.to_le_bytes());
        record[HEAD..HEAD + key.len()].copy_from_slice(key);
        record[HEAD + key.len()..].copy_from_slice(value.unwrap_or(&[]));
        let crc = crc32c(seed_of(at), &record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());

        let bytes = self.storage.bytes();
        let before = self.index.set(bytes, key, at);
        let before = before.map(|before| Record::checked(bytes, before));
        let record = Record::checked(bytes, at);
        count(&mut self.records, &mut self.garbage, at, record, before);
        self.end = next;
        Ok(())
    }

    /// Returns when all that was put and deleted is durable.
    ///
    /// # Errors
    /// It is not, and may be tried again; after a power cut there is what was committed before.
    pub fn commit(&mut self) -> Result<(), Error<S::Error>> {
        let committed = self.header.end as usize;
        if committed == self.end {
            return Ok(());
        }
        // No store gets there by commits.
        let number = self.header.number.checked_add(1).ok_or(Error::Damaged {
            what: "a header with a number that none can follow",
            at: Header::place(self.header.number) as u64,
        })?;
        self.storage.flush(committed..self.end)?;
        let header = Header {
            number,
            end: self.end as u64,
        };
        write_header(&mut self.storage, header)?;
        self.header = header;
        Ok(())
    }

    /// All keys that begin with `prefix`, in order, with their values.
    pub fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair<'_>>, Error<S::Error>> {
        let bytes = self.storage.bytes();
        let found = || {
            let offsets = self.index.slots.iter().filter(|slot| **slot != 0);
            offsets
                .map(|slot| Record::checked(bytes, (slot & OFFSET) as usize))
                .filter(|record| record.key.starts_with(prefix))
                .filter_map(|record| Some((record.key, record.value?)))
        };
        let mut all: Vec<Pair<'_>> = Vec::new();
        all.try_reserve_exact(found().count())
            .map_err(|_| Error::OutOfMemory)?;
        all.extend(found());
        all.sort_unstable_by_key(|(key, _)| *key);
        Ok(all)
    }

    /// Puts what is of use into the new store `to`, and commits it there.
    pub fn copy_to<T: Storage>(&self, to: &mut Store<T>) -> Result<(), Error<T::Error>> {
        let bytes = self.storage.bytes();
        let mut at = START;
        while at < self.end {
            let record = Record::checked(bytes, at);
            let is_newest = || self.index.find(bytes, record.key).1 == Some(at);
            if let Some(value) = record.value
                && is_newest()
            {
                to.put(record.key, value)?;
            }
            at = record.next;
        }
        to.commit()
    }

    /// Whether more than half of what it holds, and more than a megabyte, is of no use any more.
    pub fn is_mostly_garbage(&self) -> bool {
        self.garbage > 1 << 20 && self.garbage > (self.end - START) / 2
    }

    /// Sizes and counts.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            records: self.records,
            commits: self.header.number,
            used: self.end as u64,
            garbage: self.garbage as u64,
            size: self.storage.bytes().len() as u64,
        }
    }

    /// What it is kept in.
    pub fn into_storage(self) -> S {
        self.storage
    }
}

/// Counts the record at `at`, which stands for its key in the place of the one `before`.
fn count(
    records: &mut usize,
    garbage: &mut usize,
    at: usize,
    record: Record<'_>,
    before: Option<Record<'_>>,
) {
    let len = |record: Record<'_>| HEAD + record.key.len() + record.value.map_or(0, <[u8]>::len);
    debug_assert_eq!(at + len(record), record.next);
    match record.value {
        Some(_) => *records += 1,
        None => *garbage += len(record),
    }
    if let Some(before) = before
        && before.value.is_some()
    {
        *records -= 1;
        *garbage += len(before);
    }
}

fn newest_header<E>(bytes: &[u8]) -> Result<Header, Error<E>> {
    // Only where it belongs: its successor goes to the other place, and must not be written over it.
    let header = |number| {
        let place = Header::place(number);
        Header::read(bytes.get(place..)?).filter(|header| Header::place(header.number) == place)
    };
    let newest = match (header(0), header(1)) {
        (None, None) => return Err(Error::NotAStore),
        (Some(header), None) | (None, Some(header)) => header,
        (Some(a), Some(b)) if a.number > b.number => a,
        (Some(_), Some(b)) => b,
    };
    let end = newest.end;
    if end < START as u64 || end > bytes.len() as u64 {
        let what = "a header whose end is outside of the file";
        let at = Header::place(newest.number) as u64;
        return Err(Error::Damaged { what, at });
    }
    Ok(newest)
}

fn write_header<S: Storage>(storage: &mut S, header: Header) -> Result<(), S::Error> {
    let place = Header::place(header.number);
    let place = place..place + Header::LEN;
    storage.bytes_mut()[place.clone()].copy_from_slice(&header.to_bytes());
    storage.flush(place)
}

#[cfg(test)]
mod tests;
