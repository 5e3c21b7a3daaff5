//! All cached files, one after the other, without memory for a list of them: there may be more than the heap has room for.

use super::{CachedFile, PageCache, VolumeId};
use crate::fs::FileId;
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::ops::Bound::{self, Excluded, Included};

/// Files that are taken from the table at once.
const SOME: usize = 16;

type Key = (VolumeId, FileId);

/// The files of a cache, by number. Those that come meanwhile are among them or not; it ends where the table ended when it
/// began, so whoever makes files does not keep it going.
pub struct Files<'c> {
    cache: &'c PageCache,
    some: arrayvec::IntoIter<Arc<CachedFile>, SOME>,
    rest: Option<(Bound<Key>, Key)>,
}

impl PageCache {
    /// All files of one file system, or of all.
    pub fn files(&self, volume: Option<VolumeId>) -> Files<'_> {
        let first = (volume.unwrap_or(VolumeId(0)), FileId(0));
        let end = (volume.unwrap_or(VolumeId(u64::MAX)), FileId(u64::MAX));
        let files = self.files.lock();
        let last = files.range(first..=end).next_back().map(|(key, _)| *key);
        Files {
            cache: self,
            some: ArrayVec::new().into_iter(),
            rest: last.map(|last| (Included(first), last)),
        }
    }
}

impl Iterator for Files<'_> {
    type Item = Arc<CachedFile>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(file) = self.some.next() {
            return Some(file);
        }
        let (start, last) = self.rest?;
        let mut some = ArrayVec::new();
        let files = self.cache.files.lock();
        for (key, file) in files.range((start, Included(last))).take(SOME) {
            some.push(file.clone());
            self.rest = Some((Excluded(*key), last));
        }
        drop(files);
        if some.is_empty() {
            self.rest = None;
        }
        self.some = some.into_iter();
        self.some.next()
    }
}
