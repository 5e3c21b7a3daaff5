//! 64 pages of a file, and what each is: a bit in one word for each thing that can be said of a page.
//!
//! ```text
//!            read                   done
//!  absent ----------> busy --------------------> clean <-----------------------.
//!    ^ ^ ^             | failed                   | ^ |                         |
//!    | | '-------------'                    store | | | evicted                 | done
//!    | '------------------------------------------|-|-'                         |
//!    |                                            v |    write-back             |
//!  hole: absent, and known to be zeros           dirty ---------------> writing-'
//!        | room made for a store                  ^ ^                      | |
//!        '------> busy ------> clean              | '--- failed -----------' |
//!                                                 '----- store ------ both --'
//! ```
//!
//! A page that is stored to while it is written is `dirty` and `writing`: it is written again. `backed` says that the
//! page has a place on the device, or that one is promised: only then it may become dirty.

use crate::fs::Reservation;
use crate::mm::addr::Frame;
use core::ops::Range;

/// Pages of a chunk.
pub const PAGES: u64 = u64::BITS as u64;

/// Pages of a group: what one translation can cover if their frames follow each other.
pub const GROUP: u64 = 16;

/// What a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// On the device only.
    Absent,
    /// On its way.
    Busy,
    /// Zeros.
    Hole,
    /// In this frame.
    Resident(Frame),
}

/// 64 pages.
pub struct Chunk {
    /// It has a frame whose bytes are right.
    pub resident: u64,
    /// Its frame is being filled, or it becomes a hole or ceases to be one.
    pub busy: u64,
    /// There is nothing on the device, and no frame.
    pub hole: u64,
    /// The frame differs from the device.
    pub dirty: u64,
    /// The frame is being written to the device.
    pub writing: u64,
    /// It has a place on the device, or one is promised.
    pub backed: u64,
    /// One is promised: `promise` is for all of these.
    pub promised: u64,
    /// Space for the pages in `promised`.
    pub promise: Reservation,
    /// Whoever gets here should have what follows read.
    pub edge: u64,
    /// The last try to read it failed.
    pub failed: u64,
    /// The last try to read it failed, with others in the same request.
    pub suspect: u64,
    /// It was read ahead, and nobody has asked for it yet.
    pub ahead: u64,
    /// It was asked for.
    pub touched: u64,
    /// It was here not long ago.
    pub evicted: u64,
    /// It was asked for again, after its translations had been taken away: it is worth keeping. Two bits of a counter.
    pub heat: [u64; 2],
    /// It is in a group whose frames follow each other, from a multiple of their number on.
    grouped: u64,
    /// Its place in the ring.
    pub place: u32,
    frames: [Frame; PAGES as usize],
    /// Translations of each page, and others who need its frame; two counts in a word, so that neighbours are counted
    /// together.
    pins: [u64; PAGES as usize / 2],
}

impl Chunk {
    /// All absent.
    pub const EMPTY: Self = Self {
        resident: 0,
        busy: 0,
        hole: 0,
        dirty: 0,
        writing: 0,
        backed: 0,
        promised: 0,
        promise: Reservation::NONE,
        edge: 0,
        failed: 0,
        suspect: 0,
        ahead: 0,
        touched: 0,
        evicted: 0,
        heat: [0; 2],
        grouped: 0,
        place: 0,
        frames: [Frame(0); PAGES as usize],
        pins: [0; PAGES as usize / 2],
    };

    /// What page `i` is.
    #[inline]
    pub fn slot(&self, i: u32) -> Slot {
        let bit = 1 << i;
        if self.resident & bit != 0 {
            Slot::Resident(self.frames[i as usize])
        } else if self.busy & bit != 0 {
            Slot::Busy
        } else if self.hole & bit != 0 {
            Slot::Hole
        } else {
            Slot::Absent
        }
    }

    /// The frame of a page that is resident, or busy with one.
    #[inline]
    pub fn frame(&self, i: u32) -> Frame {
        self.frames[i as usize]
    }

    /// An absent page begins to be filled.
    pub fn begin(&mut self, i: u32, frame: Frame) {
        debug_assert_eq!(self.slot(i), Slot::Absent);
        let bit = 1 << i;
        self.busy |= bit;
        self.failed &= !bit;
        self.frames[i as usize] = frame;
    }

    /// An absent group begins to be filled, all in frames from `first` on, which is a multiple of their number.
    pub fn begin_group(&mut self, i: u32, first: Frame) {
        let group = group_of(i);
        debug_assert!(u64::from(i).is_multiple_of(GROUP) && first.0.is_multiple_of(GROUP));
        debug_assert_eq!((self.resident | self.busy | self.hole) & group, 0);
        self.busy |= group;
        self.failed &= !group;
        self.grouped |= group;
        let frames = self.frames[i as usize..][..GROUP as usize].iter_mut();
        frames
            .zip(first.0..)
            .for_each(|(frame, number)| *frame = Frame(number));
    }

    /// A busy page has its bytes.
    pub fn publish(&mut self, pages: u64) {
        debug_assert_eq!(self.busy & pages, pages);
        self.busy &= !pages;
        self.suspect &= !pages;
        self.resident |= pages;
    }

    /// A page that is in nobody's use any more is absent; returns its frame.
    pub fn take(&mut self, i: u32) -> Frame {
        let bit: u64 = 1 << i;
        debug_assert_eq!(self.pins(i), 0);
        debug_assert_eq!(self.writing & bit, 0);
        self.resident &= !bit;
        self.busy &= !bit;
        self.dirty &= !bit;
        self.backed &= !bit;
        self.edge &= !bit;
        self.ahead &= !bit;
        self.touched &= !bit;
        self.heat = self.heat.map(|heat| heat & !bit);
        self.grouped &= !group_of(i);
        self.frames[i as usize]
    }

    /// Those of `pages` that nobody has pinned.
    pub fn unpinned(&self, pages: u64) -> u64 {
        bits(pages)
            .filter(|i| self.pins(*i) == 0)
            .fold(0, |all, i| all | 1 << i)
    }

    /// How often page `i` is pinned.
    pub fn pins(&self, i: u32) -> u32 {
        (self.pins[i as usize / 2] >> lane(i)) as u32
    }

    /// Pins page `i`, which is resident.
    #[inline]
    pub fn pin(&mut self, i: u32) -> Frame {
        debug_assert_ne!(self.resident & 1 << i, 0);
        self.pins[i as usize / 2] += 1 << lane(i);
        self.frames[i as usize]
    }

    /// Pins `pages`, which are resident; returns the first pages of whole groups among them. Page `i`'s frame goes to
    /// place `i + to` of `frames`; of a group only that of the first page.
    #[inline]
    pub fn pin_all(&mut self, pages: u64, to: i64, frames: &mut [Frame; PAGES as usize]) -> u64 {
        debug_assert_eq!(pages & !self.resident, 0);
        let mut groups = 0;
        let mut rest = pages;
        while rest != 0 {
            let i = rest.trailing_zeros();
            let group = group_of(i);
            let place = (i64::from(i) + to) as usize;
            if rest & self.grouped & group == group {
                frames[place] = self.frames[i as usize];
                let pins = &mut self.pins[i as usize / 2..][..GROUP as usize / 2];
                pins.iter_mut().for_each(|pins| *pins += ONE_EACH);
                groups |= 1 << i;
                rest &= !group;
            } else {
                frames[place] = self.pin(i);
                rest &= rest - 1;
            }
        }
        groups
    }

    /// Takes one pin away from page `i`.
    ///
    /// # Panics
    /// Where there is none.
    #[inline]
    pub fn unpin_one(&mut self, i: u32) {
        take(&mut self.pins[i as usize / 2], 1 << lane(i));
    }

    /// Takes one pin away from each of `pages`.
    ///
    /// # Panics
    /// Where there is none.
    #[inline]
    pub fn unpin(&mut self, pages: Range<usize>) {
        let Range { mut start, mut end } = pages;
        // Those that share a word with a page that is not meant.
        if start % 2 == 1 && start < end {
            self.unpin_one(start as u32);
            start += 1;
        }
        if end % 2 == 1 && start < end {
            end -= 1;
            self.unpin_one(end as u32);
        }
        for pins in &mut self.pins[start / 2..end.max(start) / 2] {
            take(pins, ONE_EACH);
        }
    }

    /// Somebody asks for the pages; returns how many of them had been read ahead, for this.
    #[inline]
    pub fn touch(&mut self, pages: u64) -> u32 {
        let again = self.touched & pages;
        if again != 0 {
            // As high as it goes: it survives as many rounds of the hand.
            self.heat = self.heat.map(|heat| heat | again);
        }
        self.touched |= pages;
        let ahead = self.ahead & pages;
        if ahead == 0 {
            return 0;
        }
        self.ahead &= !pages;
        ahead.count_ones()
    }

    /// A round of the hand went by: warm pages cool down; those that were cold are returned.
    pub fn cool(&mut self) -> u64 {
        let [low, high] = self.heat;
        // The counter of each page, less one, but not below zero.
        self.heat = [high & !low, high & low];
        self.resident & !(low | high)
    }

    /// The pages have room on the device now: `promise`, or places if that is nothing.
    pub fn give_room(&mut self, pages: u64, promise: Reservation) {
        self.backed |= pages;
        if !promise.is_none() {
            self.promised |= pages;
            self.promise.merge(promise);
        }
    }

    /// Takes part of the promise for `pages`, which are among the promised: all of it with the last of them.
    pub fn redeem(&mut self, pages: u64) -> Reservation {
        let pages = self.promised & pages;
        let part = self
            .promise
            .split(pages.count_ones().into(), self.promised.count_ones().into());
        self.promised &= !pages;
        part
    }

    /// Whether nothing is to be kept of it.
    pub fn is_empty(&self) -> bool {
        (self.resident | self.busy | self.hole) == 0
    }

    /// Panics where two things are said of a page that cannot be.
    pub fn check(&self) {
        assert_eq!(self.resident & self.busy, 0);
        assert_eq!(self.hole & (self.resident | self.busy), 0);
        assert_eq!(self.dirty & !self.resident, 0);
        assert_eq!(self.writing & !self.resident, 0);
        assert_eq!(self.promised & !self.backed, 0);
        assert_eq!(self.grouped & !(self.resident | self.busy), 0);
        for i in bits(self.grouped) {
            let first = self.frames[i as usize & !(GROUP as usize - 1)].0;
            assert_eq!(first % GROUP, 0);
            assert_eq!(self.frame(i), Frame(first + u64::from(i) % GROUP));
        }
        for i in bits(!self.resident) {
            assert_eq!(self.pins(i), 0, "page {i} is pinned, but not there");
        }
    }
}

/// The numbers of the bits that are set, ascending.
pub fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let i = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(i)
    })
}

/// One more for both counts of a word.
const ONE_EACH: u64 = 1 << 32 | 1;

/// Takes one from the counts of a word that `one` has a bit for.
#[inline]
fn take(pins: &mut u64, one: u64) {
    // A count below zero has borrowed: it is far larger than any can be.
    const BORROWED: u64 = ONE_EACH << 31;
    let less = pins.wrapping_sub(one);
    assert_eq!(less & BORROWED, 0, "a page of a chunk has no pin");
    *pins = less;
}

/// Where the count of page `i` is in its word.
#[inline]
const fn lane(i: u32) -> u32 {
    i % 2 * 32
}

/// The group that page `i` is in.
#[inline]
const fn group_of(i: u32) -> u64 {
    ((1 << GROUP) - 1) << (i & !(GROUP as u32 - 1))
}

/// Bits `from` to `to`, not included.
pub fn mask(from: u64, to: u64) -> u64 {
    debug_assert!(from <= to && to <= PAGES);
    let below = |n: u64| if n == PAGES { u64::MAX } else { (1 << n) - 1 };
    below(to) & !below(from)
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Slot, bits, mask};
    use crate::mm::addr::Frame;

    #[test]
    fn a_page_is_absent_busy_resident_and_absent_again() {
        let mut chunk = Chunk::EMPTY;
        assert_eq!(chunk.slot(5), Slot::Absent);
        chunk.begin(5, Frame(77));
        assert_eq!(chunk.slot(5), Slot::Busy);
        chunk.publish(1 << 5);
        assert_eq!(chunk.slot(5), Slot::Resident(Frame(77)));
        assert_eq!(chunk.pin(5), Frame(77));
        assert_eq!(chunk.unpinned(0xff), 0xff & !(1 << 5));
        chunk.check();
        chunk.unpin(5..6);
        assert_eq!(chunk.take(5), Frame(77));
        assert!(chunk.is_empty());
        chunk.check();
    }

    #[test]
    fn a_group_is_pinned_as_one_while_all_of_it_is_there() {
        let mut chunk = Chunk::EMPTY;
        chunk.begin_group(16, Frame(160));
        chunk.publish(0xffff << 16);
        chunk.check();
        let mut frames = [Frame(0); 64];
        assert_eq!(chunk.pin_all(0xffff << 16, -16, &mut frames), 1 << 16);
        assert_eq!(frames[0], Frame(160));
        // Not all of it.
        assert_eq!(chunk.pin_all(0xfffe << 16, 0, &mut frames), 0);
        assert_eq!((frames[16], frames[17]), (Frame(0), Frame(161)));
        assert_eq!((chunk.pins(16), chunk.pins(31)), (1, 2));
        chunk.unpin(16..32);
        chunk.unpin(17..32);
        assert_eq!(chunk.take(20), Frame(164));
        chunk.check();
        chunk.begin(20, Frame(7));
        chunk.publish(1 << 20);
        chunk.check();
        assert_eq!(chunk.pin_all(0xffff << 16, 0, &mut frames), 0);
        assert_eq!(frames[20], Frame(7));
    }

    #[test]
    fn a_page_that_is_asked_for_again_survives_three_rounds() {
        let mut chunk = Chunk::EMPTY;
        for i in [0, 1] {
            chunk.begin(i, Frame(u64::from(i)));
            chunk.publish(1 << i);
        }
        chunk.touch(0b11);
        assert_eq!(chunk.cool(), 0b11, "asked for once is not worth keeping");
        chunk.touch(0b10);
        assert_eq!([chunk.cool(), chunk.cool(), chunk.cool()], [0b01; 3]);
        assert_eq!(chunk.cool(), 0b11);
    }

    #[test]
    fn what_was_read_ahead_is_used_once() {
        let mut chunk = Chunk::EMPTY;
        chunk.ahead = 0b1110;
        assert_eq!(chunk.touch(0b0011), 1);
        assert_eq!(chunk.touch(0b0011), 0);
        assert_eq!(chunk.ahead, 0b1100);
    }

    #[test]
    fn a_mask_goes_up_to_all_bits() {
        assert_eq!(mask(0, 64), u64::MAX);
        assert_eq!(mask(64, 64), 0);
        assert_eq!(mask(3, 5), 0b11000);
        assert!(bits(mask(60, 64)).eq([60, 61, 62, 63]));
    }
}
