extern crate std;

use super::{Error, HEAD, Header, MAX_KEY, NEW, PAGE, START, Storage, Store, write_header};
use crate::fs::sim_disk::Random;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::ops::Range;
use proptest::prelude::{any, prop_assert, proptest};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const SECTOR: usize = 512;

/// A mapped file on a disk that may lose its power at any flush.
///
/// Sectors reach the medium whole, and in any order: some of them before they are asked for, the rest when a flush does. At
/// each flush several power cuts are tried, before, within and after it.
struct Sim {
    memory: Vec<u8>,
    medium: Vec<u8>,
    random: Random,
    /// What a power cut at one of the flushes left.
    cuts: Vec<Vec<u8>>,
}

impl Sim {
    fn new(seed: u64) -> Self {
        Self::of(Vec::new(), seed)
    }

    fn of(medium: Vec<u8>, seed: u64) -> Self {
        Self {
            memory: medium.clone(),
            medium,
            random: Random::new(seed),
            cuts: Vec::new(),
        }
    }

    fn write_back(&mut self, sector: usize) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        self.medium[range.clone()].copy_from_slice(&self.memory[range]);
    }

    fn dirty(&self) -> Vec<usize> {
        let sectors = 0..self.memory.len() / SECTOR;
        let is_dirty = |sector: &usize| {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            self.memory[range.clone()] != self.medium[range]
        };
        sectors.filter(is_dirty).collect()
    }

    /// The medium, with any of the dirty sectors on it.
    fn cut(&mut self) {
        let mut image = self.medium.clone();
        for sector in self.dirty() {
            if self.random.below(2) == 0 {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                image[range.clone()].copy_from_slice(&self.memory[range]);
            }
        }
        self.cuts.push(image);
    }
}

impl Storage for Sim {
    type Error = ();

    fn bytes(&self) -> &[u8] {
        &self.memory
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // Write-back in the background.
        if self.random.below(3) == 0 {
            for sector in self.dirty() {
                if self.random.below(4) == 0 {
                    self.write_back(sector);
                }
            }
        }
        &mut self.memory
    }

    fn flush(&mut self, range: Range<usize>) -> Result<(), ()> {
        for _ in 0..3 {
            self.cut();
        }
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            self.write_back(sector);
        }
        self.cut();
        Ok(())
    }

    fn grow(&mut self, len: usize) -> Result<(), ()> {
        assert!(len > self.memory.len() && len.is_multiple_of(PAGE));
        self.memory.resize(len, 0);
        self.medium.resize(len, 0);
        self.cut();
        Ok(())
    }
}

fn contents<S: Storage>(store: &Store<S>) -> Model
where
    S::Error: core::fmt::Debug,
{
    let all = store.scan(b"").unwrap();
    all.into_iter()
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect()
}

fn reopened(image: &[u8]) -> Result<Model, Error<()>> {
    let store = Store::open(Sim::of(image.to_vec(), 1))?;
    let found = contents(&store);
    for (key, value) in &found {
        assert_eq!(store.get(key), Some(&value[..]));
    }
    assert_eq!(store.statistics().records, found.len());
    Ok(found)
}

#[test]
fn every_power_cut_leaves_what_was_committed() {
    let seeds = if cfg!(miri) { 1 } else { 40 };
    let mut tried = 0;
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let mut store = Store::open(Sim::new(seed)).unwrap();
        let mut model = Model::new();
        let mut committed = Model::new();
        for _ in 0..random.below(60) + 20 {
            for _ in 0..random.below(8) {
                let key = format!("key {}", random.below(30)).into_bytes();
                let long = if random.below(20) == 0 { 9_000 } else { 60 };
                if random.below(4) == 0 {
                    assert_eq!(store.delete(&key), Ok(model.remove(&key).is_some()));
                } else {
                    let value = vec![random.next_u64() as u8; random.below(long) as usize];
                    store.put(&key, &value).unwrap();
                    model.insert(key, value);
                }
            }
            assert_eq!(contents(&store), model);
            store.commit().unwrap();
            for cut in store.storage.cuts.drain(..) {
                let found = reopened(&cut).unwrap();
                assert!(found == committed || found == model, "seed {seed}");
                tried += 1;
            }
            // Acknowledged: whatever happens now, it is there.
            store.storage.cut();
            let cut = store.storage.cuts.pop().unwrap();
            assert_eq!(reopened(&cut).unwrap(), model, "seed {seed}");
            committed = model.clone();
        }
    }
    assert!(
        tried > seeds as usize * 50,
        "only {tried} power cuts were tried"
    );
}

#[test]
fn a_store_goes_on_after_a_power_cut() {
    for seed in 0..if cfg!(miri) { 1 } else { 30 } {
        let mut medium = Vec::new();
        let mut committed = Model::new();
        for round in 0..12u8 {
            let mut store = Store::open(Sim::of(medium, seed + u64::from(round))).unwrap();
            assert_eq!(contents(&store), committed);
            store.put(&[round], &[round; 700]).unwrap();
            store.put(b"same", &[round]).unwrap();
            store.commit().unwrap();
            committed.insert(vec![round], vec![round; 700]);
            committed.insert(b"same".to_vec(), vec![round]);
            // Lost: longer than what is written over it next.
            store.put(b"lost", &[1; 2000]).unwrap();
            store.storage.cut();
            medium = store.storage.cuts.pop().unwrap();
        }
    }
}

#[test]
fn keys_are_found_when_there_are_many() {
    let count = if cfg!(miri) { 300 } else { 60_000u32 };
    let mut store = Store::open(Sim::new(1)).unwrap();
    store.storage.random = Random::new(0);
    for i in 0..count {
        store.put(&i.to_be_bytes(), &(i * 7).to_le_bytes()).unwrap();
    }
    for i in 0..count {
        assert_eq!(
            store.get(&i.to_be_bytes()),
            Some(&(i * 7).to_le_bytes()[..])
        );
    }
    assert_eq!(store.get(&count.to_be_bytes()), None);
    let first: Vec<_> = store
        .scan(&[0, 0, 1])
        .unwrap()
        .into_iter()
        .map(|(key, _)| key.to_vec())
        .collect();
    let wanted: Vec<_> = (256..count.min(512))
        .map(|i| i.to_be_bytes().to_vec())
        .collect();
    assert_eq!(first, wanted);
}

#[test]
fn a_copy_has_no_garbage() {
    let mut store = Store::open(Sim::new(1)).unwrap();
    for round in 0..20u8 {
        for key in 0..50u8 {
            store.put(&[key], &[round; 100]).unwrap();
        }
    }
    store.delete(&[7]).unwrap();
    let garbage = store.statistics().garbage;
    // 19 older values of each, the last one of the deleted key, and its deletion.
    let record = (HEAD + 1 + 100) as u64;
    assert_eq!(garbage, 19 * 50 * record + record + (HEAD + 1) as u64);
    let mut copy = Store::open(Sim::new(2)).unwrap();
    store.copy_to(&mut copy).unwrap();
    assert_eq!(contents(&copy), contents(&store));
    let statistics = copy.statistics();
    assert_eq!((statistics.garbage, statistics.records), (0, 49));
    assert_eq!(statistics.used, START as u64 + 49 * record);
}

#[test]
fn bad_keys_and_values_are_refused() {
    let mut store = Store::open(Sim::new(1)).unwrap();
    assert_eq!(store.put(b"", b"x"), Err(Error::BadKey(0)));
    let long = vec![1; MAX_KEY + 1];
    assert_eq!(store.put(&long, b"x"), Err(Error::BadKey(MAX_KEY + 1)));
    store.put(&long[1..], b"x").unwrap();
    assert_eq!(store.get(&long[1..]), Some(&b"x"[..]));
    assert_eq!(store.get(b""), None);
}

#[test]
fn the_last_number_of_a_header_can_be_read_and_not_be_followed() {
    let mut storage = Store::open(Sim::new(1)).unwrap().into_storage();
    let header = Header {
        number: u64::MAX - 1,
        end: START as u64,
    };
    write_header(&mut storage, header).unwrap();
    let mut store = Store::open(storage).unwrap();
    store.put(b"a", b"first").unwrap();
    store.commit().unwrap();
    store.put(b"a", b"second").unwrap();
    assert!(matches!(store.commit(), Err(Error::Damaged { .. })));
    let store = Store::open(store.into_storage()).unwrap();
    assert_eq!(store.get(b"a"), Some(&b"first"[..]));
}

/// A store with some records, committed in several steps.
fn example() -> (Vec<u8>, Vec<Model>) {
    let mut store = Store::open(Sim::new(3)).unwrap();
    let mut states = vec![Model::new()];
    for i in 0..6u8 {
        store.put(&[b'k', i % 4], &[i; 40]).unwrap();
        store.commit().unwrap();
        states.push(contents(&store));
    }
    (store.into_storage().medium, states)
}

#[test]
fn no_damaged_bit_goes_unseen() {
    let (image, states) = example();
    let used = START + 6 * (HEAD + 2 + 40);
    let (bytes, bits) = if cfg!(miri) { (120, 1) } else { (1, 8) };
    let all = (0..28).chain(PAGE..PAGE + 28).chain(START..used);
    for at in all.step_by(bytes) {
        for bit in 0..bits {
            let mut damaged = image.clone();
            damaged[at] ^= 1 << bit;
            match reopened(&damaged) {
                // A damaged header is as one that was torn: the other counts, whose state was committed, too.
                Ok(found) if at < START => assert!(states.contains(&found), "byte {at}"),
                Ok(_) => panic!("bit {bit} of byte {at} was not missed"),
                Err(Error::Damaged { at: place, .. }) => assert!(place <= at as u64),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

#[test]
fn records_that_changed_places_are_refused() {
    let (image, _) = example();
    let len = HEAD + 2 + 40;
    let mut damaged = image.clone();
    damaged[START..START + len].copy_from_slice(&image[START + len..START + 2 * len]);
    damaged[START + len..START + 2 * len].copy_from_slice(&image[START..START + len]);
    let refused = Err(Error::Damaged {
        what: "a record whose checksum is wrong",
        at: START as u64,
    });
    assert_eq!(reopened(&damaged), refused);
}

#[test]
fn a_header_in_the_others_place_is_none() {
    let (mut image, _) = example();
    let (a, b) = image[..2 * PAGE].split_at_mut(PAGE);
    a.swap_with_slice(b);
    // The next would be written over the newest.
    assert_eq!(reopened(&image), Err(Error::NotAStore));
}

#[test]
fn a_file_that_is_cut_or_no_store_is_refused() {
    let (image, _) = example();
    for len in [28, PAGE, START, START + 100] {
        let damaged = reopened(&image[..len]);
        assert!(
            matches!(damaged, Err(Error::Damaged { .. })),
            "{len}: {damaged:?}"
        );
    }
    assert_eq!(reopened(b"# A text\n"), Err(Error::NotAStore));
    assert_eq!(reopened(&vec![0; NEW]), Ok(Model::new()));
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(if cfg!(miri) { 2 } else { 256 }))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..400usize) {
        let (mut image, _) = example();
        let at = if at < 200 { at } else { START + at - 200 };
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        prop_assert!(!matches!(reopened(&image), Err(Error::Storage(()))));
    }
}
