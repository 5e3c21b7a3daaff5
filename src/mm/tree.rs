//! An ordered tree from page numbers to what begins there: a B+ tree whose nodes are 512 bytes, eight lines of a cache.
//!
//! ```text
//!  inner   | 0  40  96 ...      |     the first key of each child, exactly
//!            |   |   |
//!  leaf    | 0  3  17 ...       |     keys, and a value for each
//! ```
//!
//! What stands in no place of `keys` is larger than every key, so that the search in a node is five comparisons without a
//! branch, whatever the node holds. With 10 000 keys that is three nodes.

use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::mem;

/// Keys of a node: one less than a power of two, which the search relies on.
const WIDTH: usize = 31;

/// In the place of a key where there is none.
const NO_KEY: u64 = u64::MAX;

/// Items of a node below which it is joined with a neighbour, and above which two are not joined.
const FEW: usize = WIDTH / 4;
const MANY: usize = WIDTH - FEW;

/// Keys in ascending order, and an item for each.
struct Row<T> {
    keys: [u64; WIDTH],
    items: ArrayVec<T, WIDTH>,
}

enum Node<V> {
    Leaf(Row<Box<V>>),
    Inner(Row<Box<Node<V>>>),
}

/// Values in boxes, which stay where they are, by their keys: any number but the largest.
pub(super) struct Tree<V> {
    root: Node<V>,
    len: usize,
}

impl<T> Row<T> {
    const fn new() -> Self {
        Self {
            keys: [NO_KEY; WIDTH],
            items: ArrayVec::new_const(),
        }
    }

    /// How many keys are at most `key`.
    #[inline(always)]
    fn rank(&self, key: u64) -> usize {
        let mut rank = 0;
        let mut step = WIDTH.div_ceil(2);
        while step > 0 {
            // At most 16 + 8 + 4 + 2 + 1 - 1.
            rank += if self.keys[rank + step - 1] <= key {
                step
            } else {
                0
            };
            step /= 2;
        }
        rank
    }

    /// The item with the largest key that is at most `key`.
    #[inline(always)]
    fn floor(&self, key: u64) -> Option<&T> {
        self.items.get(self.rank(key).checked_sub(1)?)
    }

    #[inline(always)]
    fn floor_mut(&mut self, key: u64) -> Option<&mut T> {
        let i = self.rank(key).checked_sub(1)?;
        self.items.get_mut(i)
    }

    /// Puts an item at place `i`, if there is room for one.
    fn insert(&mut self, i: usize, key: u64, item: T) {
        let len = self.items.len();
        if i == len {
            self.items.push(item);
        } else {
            self.items.insert(i, item);
            self.keys.copy_within(i..len, i + 1);
        }
        self.keys[i] = key;
    }

    fn remove(&mut self, i: usize) -> T {
        let last = self.items.len() - 1;
        // Up to the end, where the item is the one to be taken out.
        if i < last {
            self.keys.copy_within(i + 1..last + 1, i);
            self.items[i..].rotate_left(1);
        }
        self.keys[last] = NO_KEY;
        self.items.swap_remove(last)
    }

    /// Takes what stands from place `i` on away.
    fn split_off(&mut self, i: usize) -> Self {
        let mut rest = Self::new();
        rest.keys[..WIDTH - i].copy_from_slice(&self.keys[i..]);
        self.keys[i..].fill(NO_KEY);
        rest.items.extend(self.items.drain(i..));
        rest
    }

    fn append(&mut self, rest: &mut Self) {
        let (len, more) = (self.items.len(), rest.items.len());
        self.keys[len..len + more].copy_from_slice(&rest.keys[..more]);
        self.items.extend(rest.items.drain(..));
    }

    /// Puts an item at place `i`; the right half, where there was no room.
    fn insert_splitting(&mut self, i: usize, key: u64, item: T) -> Option<Self> {
        if !self.items.is_full() {
            self.insert(i, key, item);
            return None;
        }
        // Keys mostly come in ascending order: then nodes stay full.
        let middle = if i == WIDTH { WIDTH } else { WIDTH / 2 };
        let mut rest = self.split_off(middle);
        match i.checked_sub(middle) {
            Some(i) => rest.insert(i, key, item),
            None => self.insert(i, key, item),
        }
        Some(rest)
    }
}

impl<V> Node<V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(row) => row.items.len(),
            Self::Inner(row) => row.items.len(),
        }
    }

    fn first_key(&self) -> u64 {
        match self {
            Self::Leaf(row) => row.keys[0],
            Self::Inner(row) => row.keys[0],
        }
    }

    /// Adds a value where there is none; what stands to the right of this node now, where it was full.
    fn insert(&mut self, key: u64, value: Box<V>) -> Option<Box<Self>> {
        match self {
            Self::Leaf(row) => {
                let rest = row.insert_splitting(row.rank(key), key, value)?;
                Some(Box::new(Self::Leaf(rest)))
            }
            Self::Inner(row) => {
                let i = row.rank(key).max(1) - 1;
                let child = &mut row.items[i];
                let right = child.insert(key, value);
                row.keys[i] = child.first_key();
                let right = right?;
                let rest = row.insert_splitting(i + 1, right.first_key(), right)?;
                Some(Box::new(Self::Inner(rest)))
            }
        }
    }

    fn remove(&mut self, key: u64) -> Option<Box<V>> {
        match self {
            Self::Leaf(row) => {
                let i = row.rank(key).checked_sub(1)?;
                (row.keys[i] == key).then(|| row.remove(i))
            }
            Self::Inner(row) => {
                let i = row.rank(key).checked_sub(1)?;
                let child = &mut row.items[i];
                let value = child.remove(key)?;
                match child.len() {
                    0 => drop(row.remove(i)),
                    len => {
                        row.keys[i] = child.first_key();
                        if len < FEW {
                            row.join_at(i);
                        }
                    }
                }
                Some(value)
            }
        }
    }
}

impl<V> Row<Box<Node<V>>> {
    /// Makes one of child `i` and a neighbour, if there is one that has room.
    fn join_at(&mut self, i: usize) {
        for left in [Some(i), i.checked_sub(1)].into_iter().flatten() {
            let Some([node, next]) = self.items.get_mut(left..left + 2) else {
                continue;
            };
            if node.len() + next.len() > MANY {
                continue;
            }
            match (&mut **node, &mut **next) {
                (Node::Leaf(row), Node::Leaf(rest)) => row.append(rest),
                (Node::Inner(row), Node::Inner(rest)) => row.append(rest),
                // All leaves are equally deep.
                _ => return,
            }
            self.remove(left + 1);
            return;
        }
    }
}

impl<V> Tree<V> {
    pub(super) const fn new() -> Self {
        Self {
            root: Node::Leaf(Row::new()),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The value with the largest key that is at most `key`.
    #[inline]
    pub(super) fn floor(&self, key: u64) -> Option<&V> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(row) => return row.floor(key).map(|value| &**value),
                Node::Inner(row) => node = row.floor(key)?,
            }
        }
    }

    /// The same, to be changed.
    #[inline]
    pub(super) fn floor_mut(&mut self, key: u64) -> Option<&mut V> {
        let mut node = &mut self.root;
        loop {
            match node {
                Node::Leaf(row) => return row.floor_mut(key).map(|value| &mut **value),
                Node::Inner(row) => node = row.floor_mut(key)?,
            }
        }
    }

    /// The values with the two largest keys that are at most `key`, the larger one last.
    #[inline]
    pub(super) fn last_two(&self, key: u64) -> [Option<&V>; 2] {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(row) => {
                    let Some(i) = row.rank(key).checked_sub(1) else {
                        return [None; 2];
                    };
                    let before = match i.checked_sub(1) {
                        Some(i) => row.items.get(i).map(|value| &**value),
                        None => row.keys[0].checked_sub(1).and_then(|key| self.floor(key)),
                    };
                    return [before, row.items.get(i).map(|value| &**value)];
                }
                Node::Inner(row) => match row.floor(key) {
                    Some(child) => node = child,
                    None => return [None; 2],
                },
            }
        }
    }

    /// The value with the smallest key that is at least `key`.
    #[inline]
    pub(super) fn ceiling(&self, key: u64) -> Option<&V> {
        let mut node = &self.root;
        // What follows all of `node`.
        let mut after = None;
        loop {
            match node {
                Node::Leaf(row) => {
                    let less = key.checked_sub(1).map_or(0, |before| row.rank(before));
                    return match row.items.get(less) {
                        Some(value) => Some(value),
                        None => after.map(Self::first_of),
                    };
                }
                Node::Inner(row) => {
                    let i = row.rank(key).max(1) - 1;
                    after = row.items.get(i + 1).map(|next| &**next).or(after);
                    node = &row.items[i];
                }
            }
        }
    }

    fn first_of(mut node: &Node<V>) -> &V {
        loop {
            match node {
                Node::Leaf(row) => return &row.items[0],
                Node::Inner(row) => node = &row.items[0],
            }
        }
    }

    /// Adds a value, whose key none has.
    pub(super) fn insert(&mut self, key: u64, value: Box<V>) {
        debug_assert!(key != NO_KEY);
        self.len += 1;
        let Some(right) = self.root.insert(key, value) else {
            return;
        };
        let left = Box::new(mem::replace(&mut self.root, Node::Inner(Row::new())));
        if let Node::Inner(row) = &mut self.root {
            row.insert(0, left.first_key(), left);
            row.insert(1, right.first_key(), right);
        }
    }

    /// Takes the value with that key out.
    pub(super) fn remove(&mut self, key: u64) -> Option<Box<V>> {
        let value = self.root.remove(key)?;
        self.len -= 1;
        while let Node::Inner(row) = &mut self.root
            && row.items.len() == 1
        {
            self.root = *row.remove(0);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{Box, FEW, NO_KEY, Node, Row, Tree, WIDTH};
    use proptest::prelude::{Strategy, prop_oneof, proptest};
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// Panics where a row's keys are not as they must be.
    fn check_row<T>(row: &Row<T>) {
        let (keys, rest) = row.keys.split_at(row.items.len());
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert!(rest.iter().all(|key| *key == NO_KEY), "{rest:?}");
    }

    /// How deep the node is.
    fn check_node<V>(node: &Node<V>) -> usize {
        match node {
            Node::Leaf(row) => {
                check_row(row);
                0
            }
            Node::Inner(row) => {
                check_row(row);
                let depths = row.items.iter().zip(row.keys).map(|(child, key)| {
                    assert_eq!(child.first_key(), key);
                    assert!(child.len() > 0);
                    check_node(child)
                });
                let depths: Vec<usize> = depths.collect();
                assert!(depths.iter().all(|depth| *depth == depths[0]));
                depths[0] + 1
            }
        }
    }

    fn check(tree: &Tree<u64>, model: &BTreeMap<u64, u64>, asked: &[u64]) {
        check_node(&tree.root);
        assert!(!matches!(&tree.root, Node::Inner(row) if row.items.len() < 2));
        assert_eq!(tree.len(), model.len());
        for key in asked {
            let floor = model.range(..=key).next_back().map(|(_, value)| value);
            assert_eq!(tree.floor(*key), floor, "floor of {key}");
            let ceiling = model.range(key..).next().map(|(_, value)| value);
            assert_eq!(tree.ceiling(*key), ceiling, "ceiling of {key}");
            let mut down = model.range(..=key).rev().map(|(_, value)| value);
            let last = down.next();
            assert_eq!(
                tree.last_two(*key),
                [down.next(), last],
                "the last two up to {key}"
            );
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(u64),
        /// As many in a row.
        Fill(u64, u64),
        Clear(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = || prop_oneof![0..200u64, 0..5000u64, NO_KEY - 50..NO_KEY];
        let step = prop_oneof![
            4 => key().prop_map(Step::Insert),
            4 => key().prop_map(Step::Remove),
            1 => (key(), 0..400u64).prop_map(|(key, count)| Step::Fill(key, count)),
            1 => (key(), 0..400u64).prop_map(|(key, count)| Step::Clear(key, count)),
        ];
        proptest::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn a_tree_holds_what_an_ordered_map_holds(steps in steps()) {
            let mut tree = Tree::new();
            let mut model = BTreeMap::new();
            for (value, step) in (0u64..).zip(steps) {
                let (is_insert, start, count) = match step {
                    Step::Insert(key) => (true, key, 1),
                    Step::Fill(key, count) => (true, key, count),
                    Step::Remove(key) => (false, key, 1),
                    Step::Clear(key, count) => (false, key, count),
                };
                let end = start.saturating_add(count.max(1));
                for key in start..end {
                    if !is_insert {
                        assert_eq!(tree.remove(key), model.remove(&key).map(Box::new));
                    } else if model.insert(key, value).is_none() {
                        tree.insert(key, Box::new(value));
                    } else if let Some(old) = tree.floor_mut(key) {
                        *old = value;
                    }
                }
                let near = [start.saturating_sub(1), start, end - 1, end / 2, 0, NO_KEY - 1];
                check(&tree, &model, &near);
            }
            let all: Vec<u64> = model.keys().flat_map(|key| [key.saturating_sub(1), *key]).collect();
            check(&tree, &model, &all);
            for key in all {
                assert_eq!(tree.remove(key), model.remove(&key).map(Box::new));
            }
            check(&tree, &model, &[0, 1, NO_KEY - 1]);
        }
    }

    #[test]
    fn nodes_are_eight_lines_and_full_after_ascending_keys() {
        assert_eq!(size_of::<Node<u64>>(), 512);
        let mut tree = Tree::new();
        for key in 0..10_000u64 {
            tree.insert(key, Box::new(key));
        }
        let Node::Inner(root) = &tree.root else {
            panic!("10 000 keys in a leaf");
        };
        // Three nodes from top to bottom.
        assert_eq!(check_node(&tree.root), 2);
        assert_eq!(root.items.len(), 10_000usize.div_ceil(WIDTH * WIDTH));
        for key in (0..10_000).filter(|key| key % 100 != 0) {
            assert_eq!(tree.remove(key), Some(Box::new(key)));
        }
        // What is left of them is put together.
        let Node::Inner(root) = &tree.root else {
            panic!("100 keys in a leaf");
        };
        assert_eq!(check_node(&tree.root), 1);
        assert!(root.items.len() < 100 / FEW + 2, "{}", root.items.len());
    }
}
