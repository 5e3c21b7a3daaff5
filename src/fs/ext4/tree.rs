//! Changing extent trees.
//!
//! A change happens in one leaf: its runs are taken out, edited, joined where they touch, and put back. A leaf that
//! overflows is split and gives its parent an entry; one that runs empty takes its entry away; one whose first block
//! changed corrects it: so a change goes up as far as it must, and an overflowing root puts a level between.

use super::bytes::put_le32;
use super::extent::{self, Entries, Index, Node, Run};
use super::inode::Inode;
use super::volume::Volume;
use crate::fs::error::{FsError, Structure};
use alloc::vec::Vec;

/// A node on the way from the root to a leaf.
struct Level {
    /// Its block; none for the root, which lies in the inode.
    block: Option<u64>,
    node: Node,
    /// Which of the entries leads on.
    position: usize,
}

impl Volume {
    /// Adds a run where the file has a hole.
    pub(super) fn insert_run(&mut self, inode: &mut Inode, run: Run) -> Result<(), FsError> {
        self.edit_leaf(inode, run.first, |runs| {
            let at = runs.partition_point(|other| other.first < run.first);
            runs.insert(at, run);
        })
    }

    /// Marks a part of a run as written.
    pub(super) fn mark_written(&mut self, inode: &mut Inode, part: Run) -> Result<(), FsError> {
        self.edit_leaf(inode, part.first, |runs| {
            cut_out(runs, part);
            let at = runs.partition_point(|other| other.first < part.first);
            runs.insert(
                at,
                Run {
                    is_written: true,
                    ..part
                },
            );
        })
    }

    /// Takes a part of a run out of the tree; its blocks stay allocated.
    pub(super) fn remove_run(&mut self, inode: &mut Inode, part: Run) -> Result<(), FsError> {
        self.edit_leaf(inode, part.first, |runs| cut_out(runs, part))
    }

    /// The last run of the file.
    pub(super) fn last_run(&mut self, inode: &Inode) -> Result<Option<Run>, FsError> {
        let path = self.path_to(inode, u32::MAX)?;
        Ok(path.last().and_then(|level| match &level.node.entries {
            Entries::Runs(runs) => runs.last().copied(),
            Entries::Indexes(_) => None,
        }))
    }

    fn edit_leaf(
        &mut self,
        inode: &mut Inode,
        block: u32,
        edit: impl FnOnce(&mut Vec<Run>),
    ) -> Result<(), FsError> {
        let mut path = self.path_to(inode, block)?;
        let level = path.len() - 1;
        let mut node = core::mem::replace(&mut path[level].node, Node::EMPTY);
        if let Entries::Runs(runs) = &mut node.entries {
            edit(runs);
            join(runs);
        }
        self.put_node(inode, &mut path, level, node, block)
    }

    /// The nodes from the root to the leaf that has `block`, or would have it.
    fn path_to(&mut self, inode: &Inode, block: u32) -> Result<Vec<Level>, FsError> {
        let mut path = Vec::new();
        let mut place = None;
        let mut node = self.extent_root(inode)?;
        loop {
            let next = match &node.entries {
                Entries::Runs(_) => None,
                Entries::Indexes(indexes) => {
                    let position = indexes
                        .partition_point(|index| index.first <= block)
                        .saturating_sub(1);
                    Some((position, indexes[position].child))
                }
            };
            let depth = node.depth;
            path.push(Level {
                block: place,
                node,
                position: next.map_or(0, |(position, _)| position),
            });
            let Some((_, child)) = next else {
                return Ok(path);
            };
            node = self.extent_node(inode, child, depth - 1)?;
            place = Some(child);
        }
    }

    /// Puts a changed node back at `level` of the path, and changes its parents as it needs. `near` is the block of
    /// the file that the change is about.
    fn put_node(
        &mut self,
        inode: &mut Inode,
        path: &mut [Level],
        level: usize,
        node: Node,
        near: u32,
    ) -> Result<(), FsError> {
        let Some(place) = path[level].block else {
            return self.put_root(inode, node);
        };
        let room = extent::capacity(self.superblock.block_size - 4);
        let parent_level = level - 1;
        let position = path[parent_level].position;
        let mut parent = path[parent_level].node.clone();
        let Entries::Indexes(indexes) = &mut parent.entries else {
            return Err(FsError::corrupt(
                Structure::ExtentDepth,
                place,
                node.depth.into(),
            ));
        };
        let Some(first) = node.first() else {
            self.free_metadata(inode, place)?;
            indexes.remove(position);
            return self.put_node(inode, path, parent_level, parent, near);
        };
        let before = indexes[position].first;
        indexes[position].first = first;
        if node.len() <= room {
            self.write_node(inode, place, &node)?;
            if before == first {
                return Ok(());
            }
            return self.put_node(inode, path, parent_level, parent, near);
        }
        let (left, right) = split(node, near);
        let block = self.allocate_metadata(inode, place + 1)?;
        self.write_node(inode, place, &left)?;
        self.write_node(inode, block, &right)?;
        if let Some(first) = right.first() {
            indexes.insert(
                position + 1,
                Index {
                    first,
                    child: block,
                },
            );
        }
        self.put_node(inode, path, parent_level, parent, near)
    }

    fn put_root(&mut self, inode: &mut Inode, node: Node) -> Result<(), FsError> {
        let root = match node.first() {
            None => Node::EMPTY,
            Some(_) if node.len() <= extent::capacity(inode.map().len()) => node,
            Some(first) => {
                let goal = self.goal_of(inode);
                let block = self.allocate_metadata(inode, goal)?;
                self.write_node(inode, block, &node)?;
                let entries = Entries::Indexes(Vec::from([Index {
                    first,
                    child: block,
                }]));
                Node {
                    depth: node.depth + 1,
                    entries,
                }
            }
        };
        root.encode(inode.map_mut());
        Ok(())
    }

    fn write_node(&mut self, inode: &Inode, block: u64, node: &Node) -> Result<(), FsError> {
        let seed = self
            .superblock
            .has_checksums()
            .then(|| inode.checksum_seed(&self.superblock));
        let room = self.superblock.block_size - 4;
        let bytes = self.store.modify(block)?;
        node.encode(&mut bytes[..room]);
        if let Some(seed) = seed {
            let (at, checksum) = extent::checksum(bytes, seed);
            put_le32(bytes, at, checksum);
        }
        Ok(())
    }

    /// Where the first block of a file should be: at the start of its inode's group.
    pub(super) fn goal_of(&self, inode: &Inode) -> u64 {
        let (group, _) = self.superblock.group_of_inode(inode.number);
        self.superblock.group_start(group)
    }
}

/// Takes `part` out of the run it lies in.
fn cut_out(runs: &mut Vec<Run>, part: Run) {
    let at = runs.partition_point(|run| run.end() <= part.first.into());
    let Some(run) = runs.get(at).copied() else {
        return;
    };
    let rest = [run.cut(0, part.first.into()), run.cut(part.end(), u64::MAX)];
    runs.splice(at..=at, rest.into_iter().flatten());
}

/// Joins runs that touch.
fn join(runs: &mut Vec<Run>) {
    runs.dedup_by(|next, run| {
        let joins = run.joins(next);
        if joins {
            run.len += next.len;
        }
        joins
    });
}

/// Halves a node; one that grows at its end keeps its entries together, so that files written in order fill their nodes.
fn split(node: Node, near: u32) -> (Node, Node) {
    let depth = node.depth;
    let middle = |firsts: &mut dyn DoubleEndedIterator<Item = u32>, len: usize| {
        if firsts.next_back().is_some_and(|last| last <= near) {
            len - 1
        } else {
            len / 2
        }
    };
    let (left, right) = match node.entries {
        Entries::Runs(mut runs) => {
            let at = middle(&mut runs.iter().map(|run| run.first), runs.len());
            let right = runs.split_off(at);
            (Entries::Runs(runs), Entries::Runs(right))
        }
        Entries::Indexes(mut indexes) => {
            let at = middle(&mut indexes.iter().map(|index| index.first), indexes.len());
            let right = indexes.split_off(at);
            (Entries::Indexes(indexes), Entries::Indexes(right))
        }
    };
    (
        Node {
            depth,
            entries: left,
        },
        Node {
            depth,
            entries: right,
        },
    )
}
