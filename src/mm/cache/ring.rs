//! The ring of all chunks, which the hand goes round: a circular list in one piece of memory, so that a chunk that goes takes
//! its place along wherever the hand is.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// Where an item stands, until it is removed.
pub(super) type PlaceId = u32;

/// No place.
const NONE: PlaceId = PlaceId::MAX;

struct Place<T> {
    /// `None` where the place is free; then `next` is the next free one.
    item: Option<T>,
    next: PlaceId,
    previous: PlaceId,
}

/// Items in the order in which the hand comes to them.
pub(super) struct Ring<T> {
    places: Vec<Place<T>>,
    free: PlaceId,
    /// What the hand comes to next.
    hand: PlaceId,
    len: usize,
}

impl<T: Clone> Ring<T> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            free: NONE,
            hand: NONE,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn at(&mut self, place: PlaceId) -> &mut Place<T> {
        &mut self.places[place as usize]
    }

    /// Adds an item, to which the hand comes after all others.
    ///
    /// # Errors
    /// No memory, or no number, for another place.
    pub(super) fn insert(&mut self, item: T) -> Result<PlaceId, OutOfPlaces> {
        if self.free == NONE {
            self.places.try_reserve(1)?;
            let new = PlaceId::try_from(self.places.len()).map_err(|_| OutOfPlaces)?;
            if new == NONE {
                return Err(OutOfPlaces);
            }
            self.places.push(Place {
                item: None,
                next: NONE,
                previous: NONE,
            });
            self.free = new;
        }
        let place = self.free;
        self.free = self.at(place).next;
        let (next, previous) = match self.hand {
            NONE => (place, place),
            hand => (hand, self.at(hand).previous),
        };
        *self.at(place) = Place {
            item: Some(item),
            next,
            previous,
        };
        self.at(previous).next = place;
        self.at(next).previous = place;
        if self.hand == NONE {
            self.hand = place;
        }
        self.len += 1;
        Ok(place)
    }

    /// Takes out what stands there; the place may be another's from now on.
    pub(super) fn remove(&mut self, place: PlaceId) -> Option<T> {
        let old = self.places.get_mut(place as usize)?;
        let item = old.item.take()?;
        let (next, previous) = (old.next, old.previous);
        self.at(previous).next = next;
        self.at(next).previous = previous;
        if self.hand == place {
            self.hand = if next == place { NONE } else { next };
        }
        self.at(place).next = self.free;
        self.free = place;
        self.len -= 1;
        Some(item)
    }

    /// What the hand is at; it goes on to the next.
    pub(super) fn advance(&mut self) -> Option<T> {
        let place = self.places.get(self.hand as usize)?;
        let item = place.item.clone();
        self.hand = place.next;
        item
    }
}

/// There is no place for another item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OutOfPlaces;

impl From<TryReserveError> for OutOfPlaces {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Ring;
    use proptest::prelude::{Strategy, prop_oneof, proptest};
    use std::collections::VecDeque;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Step {
        Insert,
        Advance,
        /// One of those that are there.
        Remove(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => proptest::strategy::Just(Step::Insert),
            3 => proptest::strategy::Just(Step::Advance),
            2 => (0..1000usize).prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue_whose_first_goes_last(steps in steps()) {
            let mut ring = Ring::new();
            // From the hand on: an item, and its place.
            let mut model = VecDeque::new();
            for (item, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert => model.push_back((item, ring.insert(item).unwrap())),
                    Step::Advance => {
                        assert_eq!(ring.advance(), model.front().map(|(item, _)| *item));
                        if !model.is_empty() {
                            model.rotate_left(1);
                        }
                    }
                    Step::Remove(i) => {
                        let gone = model.remove(i % model.len().max(1));
                        if let Some((item, place)) = gone {
                            assert_eq!(ring.remove(place), Some(item));
                            assert_eq!(ring.remove(place), None);
                        }
                    }
                }
                assert_eq!(ring.len(), model.len());
            }
            let rest: Vec<_> = model.iter().map(|(item, _)| Some(*item)).collect();
            let seen: Vec<_> = rest.iter().map(|_| ring.advance()).collect();
            assert_eq!(seen, rest);
            for (item, place) in model {
                assert_eq!(ring.remove(place), Some(item));
            }
            assert_eq!(ring.advance(), None);
        }
    }
}
