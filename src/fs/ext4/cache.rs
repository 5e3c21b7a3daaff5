//! Metadata blocks as they are on the medium, the least recently used evicted first.

use super::store::Block;
use alloc::collections::BTreeMap;

/// At most `limit` blocks.
pub(super) struct Cache {
    blocks: BTreeMap<u64, (Block, u64)>,
    /// Which block was used when; the first is evicted.
    uses: BTreeMap<u64, u64>,
    clock: u64,
    limit: usize,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            blocks: BTreeMap::new(),
            uses: BTreeMap::new(),
            clock: 0,
            limit: limit.max(1),
        }
    }

    pub(super) fn get(&mut self, block: u64) -> Option<Block> {
        let (bytes, used) = self.blocks.get_mut(&block)?;
        self.clock += 1;
        self.uses.remove(used);
        self.uses.insert(self.clock, block);
        *used = self.clock;
        Some(bytes.clone())
    }

    pub(super) fn insert(&mut self, block: u64, bytes: Block) {
        self.remove(block);
        if self.blocks.len() >= self.limit
            && let Some((_, evicted)) = self.uses.pop_first()
        {
            self.blocks.remove(&evicted);
        }
        self.clock += 1;
        self.uses.insert(self.clock, block);
        self.blocks.insert(block, (bytes, self.clock));
    }

    pub(super) fn remove(&mut self, block: u64) {
        if let Some((_, used)) = self.blocks.remove(&block) {
            self.uses.remove(&used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let mut cache = Cache::new(2);
        for block in [1, 2] {
            cache.insert(block, Arc::new(alloc::vec![block as u8]));
        }
        assert!(cache.get(1).is_some());
        cache.insert(3, Arc::new(alloc::vec![3]));
        assert_eq!(
            [1, 2, 3].map(|block| cache.get(block).is_some()),
            [true, false, true]
        );
    }
}
