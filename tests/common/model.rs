//! A file system as maps and vectors, driven side by side with a real one.

use super::{Node, Tree, read_tree};
use pinfold::fs::block::{BlockDevice, Durability};
use pinfold::fs::blocking;
use pinfold::fs::sim_disk::Random;
use pinfold::fs::{Backing, FileId, FileKind, FileSystem, FsError};
use std::collections::BTreeMap;
use std::sync::Arc;

type Number = usize;

enum File {
    Regular { bytes: Vec<u8>, links: u32 },
    Directory(BTreeMap<Vec<u8>, Number>),
    Symlink(Vec<u8>),
}

/// The model, and which of its files is which of the real ones.
pub struct Model {
    random: Random,
    files: BTreeMap<Number, (File, FileId)>,
    next: Number,
    /// Open files that have lost their names.
    held: Vec<(Number, FileId)>,
    max_len: u64,
    device: Arc<dyn BlockDevice>,
}

const ROOT: Number = 0;

impl Model {
    pub fn new(seed: u64, root: FileId, device: Arc<dyn BlockDevice>) -> Self {
        let files = BTreeMap::from([(ROOT, (File::Directory(BTreeMap::new()), root))]);
        Self {
            random: Random::new(seed),
            files,
            next: 1,
            held: Vec::new(),
            max_len: 600_000,
            device,
        }
    }

    /// Makes files no longer than this.
    pub fn set_max_len(&mut self, len: u64) {
        self.max_len = len;
    }

    fn pick(&mut self, wanted: impl Fn(&File) -> bool) -> Option<Number> {
        let numbers: Vec<_> = self
            .files
            .iter()
            .filter(|(_, (file, _))| wanted(file))
            .map(|(n, _)| *n)
            .collect();
        (!numbers.is_empty()).then(|| numbers[self.random.below(numbers.len() as u64) as usize])
    }

    fn pick_directory(&mut self) -> Number {
        self.pick(|file| matches!(file, File::Directory(_)))
            .unwrap()
    }

    fn pick_file(&mut self) -> Option<Number> {
        self.pick(|file| matches!(file, File::Regular { .. }))
    }

    fn pick_name(&mut self) -> Option<(Number, Vec<u8>, Number)> {
        let mut names = Vec::new();
        for (directory, (file, _)) in &self.files {
            if let File::Directory(entries) = file {
                names.extend(
                    entries
                        .iter()
                        .map(|(name, file)| (*directory, name.clone(), *file)),
                );
            }
        }
        (!names.is_empty())
            .then(|| names.swap_remove(self.random.below(names.len() as u64) as usize))
    }

    fn new_name(&mut self) -> Vec<u8> {
        let len = match self.random.below(4) {
            0 => 255,
            1 => 100,
            _ => 1 + self.random.below(20),
        };
        (0..len)
            .map(|_| match self.random.next_u64() as u8 {
                0 | b'/' | b'.' => b'x',
                byte => byte,
            })
            .collect()
    }

    fn id(&self, number: Number) -> FileId {
        self.files[&number].1
    }

    fn entries(&mut self, directory: Number) -> &mut BTreeMap<Vec<u8>, Number> {
        match &mut self.files.get_mut(&directory).unwrap().0 {
            File::Directory(entries) => entries,
            _ => unreachable!(),
        }
    }

    fn add(&mut self, directory: Number, name: Vec<u8>, file: File, id: FileId) {
        let number = self.next;
        self.next += 1;
        self.files.insert(number, (file, id));
        self.entries(directory).insert(name, number);
    }

    /// One random operation on both.
    pub fn step(&mut self, fs: &dyn FileSystem) {
        match self.random.below(100) {
            0..20 => self.create(fs),
            20..26 => self.create_directory(fs),
            26..30 => self.symlink(fs),
            30..56 => self.write(fs),
            56..60 => self.write_back(fs),
            60..70 => self.truncate(fs),
            70..74 => self.link(fs),
            74..82 => self.remove(fs),
            82..92 => self.rename(fs),
            92..95 => self.read(fs),
            95..97 => self.close(fs),
            _ => fs.sync().unwrap(),
        }
    }

    fn create(&mut self, fs: &dyn FileSystem) {
        let (directory, name) = (self.pick_directory(), self.new_name());
        let made = fs.create(self.id(directory), &name, FileKind::File, 0o644);
        if self.entries(directory).contains_key(&name) {
            assert_eq!(made, Err(FsError::Exists));
        } else if let Some(id) = with_space(made) {
            self.add(
                directory,
                name,
                File::Regular {
                    bytes: Vec::new(),
                    links: 1,
                },
                id,
            );
        }
    }

    fn create_directory(&mut self, fs: &dyn FileSystem) {
        let (directory, name) = (self.pick_directory(), self.new_name());
        let made = fs.create(self.id(directory), &name, FileKind::Directory, 0o755);
        if self.entries(directory).contains_key(&name) {
            assert_eq!(made, Err(FsError::Exists));
        } else if let Some(id) = with_space(made) {
            self.add(directory, name, File::Directory(BTreeMap::new()), id);
        }
    }

    fn symlink(&mut self, fs: &dyn FileSystem) {
        let (directory, name) = (self.pick_directory(), self.new_name());
        let target = vec![b't'; 1 + self.random.below(300) as usize];
        if self.entries(directory).contains_key(&name) {
            return;
        }
        if let Some(id) = with_space(fs.symlink(self.id(directory), &name, &target)) {
            self.add(directory, name, File::Symlink(target), id);
        }
    }

    fn range(&mut self, len: u64) -> (u64, u64) {
        let at = match self.random.below(4) {
            0 => len,
            1 => self.random.below(self.max_len),
            _ => self.random.below(len + 1),
        };
        let count = 1 + match self.random.below(8) {
            0 => self.random.below(150_000),
            1..3 => self.random.below(20_000),
            _ => self.random.below(2_000),
        };
        (at, count)
    }

    fn bytes_of(&mut self, number: Number) -> &mut Vec<u8> {
        match &mut self.files.get_mut(&number).unwrap().0 {
            File::Regular { bytes, .. } => bytes,
            _ => unreachable!(),
        }
    }

    fn write(&mut self, fs: &dyn FileSystem) {
        let Some(number) = self.pick_file() else {
            return;
        };
        let len = self.bytes_of(number).len() as u64;
        let (at, count) = self.range(len);
        let first = self.random.next_u64() as u8;
        let data: Vec<u8> = (0..count)
            .map(|i| first.wrapping_add((i / 7) as u8))
            .collect();
        // A write is atomic up to what one operation backs.
        if with_space(fs.write_at(self.id(number), at, &data)).is_some() {
            put(self.bytes_of(number), at, &data);
        }
    }

    /// What the page cache will do: reserve, allocate, transfer, say so.
    fn write_back(&mut self, fs: &dyn FileSystem) {
        let Some(number) = self.pick_file() else {
            return;
        };
        let id = self.id(number);
        let len = self.bytes_of(number).len() as u64;
        let (at, count) = self.range(len);
        let Some(mut reservation) = with_space(fs.reserve(id, at, count)) else {
            return;
        };
        // What was reserved must be there.
        let free = fs.statistics().unwrap().free_blocks;
        let promised = format!("{reservation:?} of {free} free for {count} at {at}");
        let extents = fs
            .allocate(id, at, count, &mut reservation)
            .expect(&promised);
        if self.random.below(3) == 0 {
            // As after a power cut: the space is there, the data is not.
            return;
        }
        let value = self.random.next_u64() as u8;
        put(self.bytes_of(number), at, &vec![value; count as usize]);
        let mut whole = self.bytes_of(number).clone();
        for extent in extents {
            let (Backing::Written(place) | Backing::Unwritten(place)) = extent.backing else {
                panic!("allocated, and a hole: {extent:?}");
            };
            let end = (extent.offset + extent.len) as usize;
            whole.resize(whole.len().max(end), 0);
            let data = whole[extent.offset as usize..end].to_vec();
            blocking::write(&*self.device, place, data, Durability::Cached).unwrap();
        }
        fs.written(id, at, count, (at + count).max(len)).unwrap();
    }

    fn truncate(&mut self, fs: &dyn FileSystem) {
        let Some(number) = self.pick_file() else {
            return;
        };
        let old = self.bytes_of(number).len() as u64;
        let len = match self.random.below(3) {
            0 => 0,
            1 => self.random.below(self.max_len),
            _ => self.random.below(old + 1),
        };
        if with_space(fs.set_len(self.id(number), len)).is_some() {
            self.bytes_of(number).resize(len as usize, 0);
        }
    }

    fn link(&mut self, fs: &dyn FileSystem) {
        let Some(number) = self.pick_file() else {
            return;
        };
        let (directory, name) = (self.pick_directory(), self.new_name());
        if self.entries(directory).contains_key(&name) {
            return;
        }
        if with_space(fs.link(self.id(number), self.id(directory), &name)).is_some() {
            self.entries(directory).insert(name, number);
            self.count(number, 1);
        }
    }

    fn count(&mut self, number: Number, change: i32) {
        let Some((File::Regular { links, .. }, _)) = self.files.get_mut(&number) else {
            if change < 0 {
                self.files.remove(&number);
            }
            return;
        };
        *links = links.checked_add_signed(change).unwrap();
        if *links == 0 {
            self.files.remove(&number);
        }
    }

    fn remove(&mut self, fs: &dyn FileSystem) {
        let Some((directory, name, number)) = self.pick_name() else {
            return;
        };
        let (parent, id) = (self.id(directory), self.id(number));
        if let File::Directory(entries) = &self.files[&number].0 {
            let is_empty = entries.is_empty();
            assert_eq!(fs.unlink(parent, &name), Err(FsError::IsADirectory));
            let removed = fs.remove_directory(parent, &name);
            if !is_empty {
                assert_eq!(removed, Err(FsError::NotEmpty));
                return;
            }
            removed.unwrap();
        } else {
            if self.random.below(4) == 0 {
                fs.open(id).unwrap();
                self.held.push((number, id));
            }
            fs.unlink(parent, &name).unwrap();
        }
        self.entries(directory).remove(&name);
        self.count(number, -1);
    }

    fn rename(&mut self, fs: &dyn FileSystem) {
        let Some((from, name, number)) = self.pick_name() else {
            return;
        };
        let (to, new_name) = match self.random.below(3) {
            0 => match self.pick_name() {
                Some((to, new_name, _)) => (to, new_name),
                None => return,
            },
            1 => (from, self.new_name()),
            _ => (self.pick_directory(), self.new_name()),
        };
        let renamed = fs.rename(self.id(from), &name, self.id(to), &new_name);
        if self.is_inside(to, number) {
            assert_eq!(renamed, Err(FsError::IntoItself));
            return;
        }
        let is_directory = |file: &File| matches!(file, File::Directory(_));
        let source_is_directory = is_directory(&self.files[&number].0);
        let replaced = self.entries(to).get(&new_name).copied();
        if replaced == Some(number) {
            renamed.unwrap();
            return;
        }
        if let Some(replaced) = replaced {
            let target = &self.files[&replaced].0;
            match (source_is_directory, is_directory(target)) {
                (true, false) => return assert_eq!(renamed, Err(FsError::NotADirectory)),
                (false, true) => return assert_eq!(renamed, Err(FsError::IsADirectory)),
                _ => {}
            }
            if let File::Directory(entries) = target
                && !entries.is_empty()
            {
                return assert_eq!(renamed, Err(FsError::NotEmpty));
            }
        }
        if with_space(renamed).is_none() {
            return;
        }
        self.entries(from).remove(&name);
        self.entries(to).insert(new_name, number);
        if let Some(replaced) = replaced {
            self.count(replaced, -1);
        }
    }

    fn is_inside(&self, directory: Number, of: Number) -> bool {
        if directory == of {
            return true;
        }
        let File::Directory(entries) = &self.files[&of].0 else {
            return false;
        };
        let children: Vec<_> = entries.values().copied().collect();
        children
            .into_iter()
            .any(|child| self.is_inside(directory, child))
    }

    fn read(&mut self, fs: &dyn FileSystem) {
        let Some(number) = self.pick_file() else {
            return;
        };
        let len = self.bytes_of(number).len() as u64;
        let (at, count) = (self.random.below(len + 10), self.random.below(9000));
        let mut bytes = vec![0xaa; count as usize];
        let read = fs.read_at(self.id(number), at, &mut bytes).unwrap();
        let whole = self.bytes_of(number);
        let wanted =
            &whole[(at as usize).min(whole.len())..((at + count) as usize).min(whole.len())];
        assert!(bytes[..read] == *wanted);
    }

    fn close(&mut self, fs: &dyn FileSystem) {
        if !self.held.is_empty() {
            let at = self.random.below(self.held.len() as u64) as usize;
            let (_, id) = self.held.swap_remove(at);
            fs.close(id).unwrap();
        }
    }

    /// Closes everything, or leaves it to be removed as an orphan by whoever mounts next.
    pub fn forget_open_files(&mut self, fs: &dyn FileSystem) {
        for (_, id) in std::mem::take(&mut self.held) {
            if self.random.below(2) == 0 {
                fs.close(id).unwrap();
            }
        }
    }

    /// The names and contents of everything.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let mut waiting = vec![(Vec::new(), ROOT)];
        while let Some((path, directory)) = waiting.pop() {
            let File::Directory(entries) = &self.files[&directory].0 else {
                continue;
            };
            for (name, number) in entries {
                let mut path = path.clone();
                path.push(b'/');
                path.extend(name);
                let node = match &self.files[number].0 {
                    File::Regular { bytes, .. } => Node::File(bytes.clone()),
                    File::Symlink(target) => Node::Symlink(target.clone()),
                    File::Directory(_) => {
                        waiting.push((path.clone(), *number));
                        Node::Directory
                    }
                };
                tree.insert(path, node);
            }
        }
        tree
    }

    /// Whether both hold the same.
    pub fn compare(&self, fs: &dyn FileSystem) {
        let mut real = read_tree(fs).unwrap();
        real.remove(&b"/lost+found"[..]);
        let model = self.tree();
        assert!(model.keys().eq(real.keys()), "names differ");
        for (path, node) in model {
            if real[&path] != node {
                panic!(
                    "{:?} differs: {}",
                    String::from_utf8_lossy(&path),
                    difference(&node, &real[&path])
                );
            }
        }
    }
}

fn difference(model: &Node, real: &Node) -> String {
    match (model, real) {
        (Node::File(model), Node::File(real)) => {
            let at = model.iter().zip(real).position(|(a, b)| a != b);
            format!(
                "lengths {} and {}, first at {at:?}",
                model.len(),
                real.len()
            )
        }
        _ => format!("{model:?} and {real:?}")
            .chars()
            .take(200)
            .collect(),
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (at, end) = (at as usize, at as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

/// The outcome of an operation that may find the disk full; any other error is a failure of the test.
fn with_space<T>(result: Result<T, FsError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(FsError::NoSpace | FsError::NoInodes) => None,
        Err(error) => panic!("{error}"),
    }
}
