//! Creating, linking, renaming and removing files.

use super::directory::Found;
use super::extent::Node;
use super::features::{INCOMPAT_EXTENTS, RO_COMPAT_DIR_NLINK};
use super::inode::{EXTENTS, Inode, MAP, ROOT, Time, kind_codes};
use super::insert::NewName;
use super::volume::Volume;
use crate::fs::FileKind;
use crate::fs::error::{FsError, Structure};

/// The most names a file can have, and a directory sub-directories unless they are no longer counted.
const MAX_LINKS: u16 = 65000;
const MAX_NAME: usize = 255;

impl Volume {
    /// Makes an empty file or directory.
    pub(super) fn create(
        &mut self,
        directory: u32,
        name: &[u8],
        kind: FileKind,
        permissions: u16,
    ) -> Result<u32, FsError> {
        check_name(name)?;
        if !matches!(kind, FileKind::File | FileKind::Directory) {
            return Err(FsError::NotAFile);
        }
        self.transact(|volume| {
            let mut inode = volume.new_inode(directory, name, kind, permissions)?;
            inode.set_links(1);
            if kind == FileKind::Directory {
                inode.set_links(2);
                volume.make_directory(&mut inode, directory)?;
            }
            volume.put_inode(&mut inode)?;
            volume.add_name(directory, name, &inode)?;
            Ok(inode.number)
        })
    }

    /// Makes a symbolic link.
    pub(super) fn symlink(
        &mut self,
        directory: u32,
        name: &[u8],
        target: &[u8],
    ) -> Result<u32, FsError> {
        check_name(name)?;
        if target.is_empty() || target.contains(&0) {
            return Err(FsError::InvalidName);
        }
        if target.len() >= self.superblock.block_size {
            return Err(FsError::NameTooLong);
        }
        self.transact(|volume| {
            let mut inode = volume.new_inode(directory, name, FileKind::Symlink, 0o777)?;
            inode.set_links(1);
            if target.len() < MAP.len() {
                inode.set_flags(inode.flags() & !EXTENTS);
                inode.map_mut().fill(0);
                inode.map_mut()[..target.len()].copy_from_slice(target);
            } else {
                let (_, block) = volume.append_block(&mut inode)?;
                volume.store.modify(block)?[..target.len()].copy_from_slice(target);
            }
            inode.set_size(target.len() as u64);
            volume.put_inode(&mut inode)?;
            volume.add_name(directory, name, &inode)?;
            Ok(inode.number)
        })
    }

    /// Gives a file another name.
    pub(super) fn link(&mut self, file: u32, directory: u32, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        self.transact(|volume| {
            let mut inode = volume.live_inode(file)?;
            if inode.kind()? == FileKind::Directory {
                return Err(FsError::IsADirectory);
            }
            volume.check_absent(directory, name)?;
            if inode.links() == 0 {
                return Err(FsError::NotFound);
            }
            if inode.links() >= MAX_LINKS {
                return Err(FsError::TooManyLinks);
            }
            inode.set_links(inode.links() + 1);
            inode.set_time(Time::Change, volume.now());
            volume.put_inode(&mut inode)?;
            volume.add_name(directory, name, &inode)
        })
    }

    /// Takes a name from a file; the last one removes it, unless it is open: then it is returned.
    pub(super) fn unlink(&mut self, directory: u32, name: &[u8]) -> Result<Option<u32>, FsError> {
        check_name(name)?;
        let orphan = self.transact(|volume| {
            let parent = volume.directory(directory)?;
            let found = volume.find(&parent, name)?.ok_or(FsError::NotFound)?;
            let mut inode = volume.live_inode(found.inode)?;
            if inode.kind()? == FileKind::Directory {
                return Err(FsError::IsADirectory);
            }
            volume.drop_name(directory, found)?;
            volume.drop_link(&mut inode)
        })?;
        self.remove_if_unused(orphan)
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&mut self, directory: u32, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        let orphan = self.transact(|volume| {
            let parent = volume.directory(directory)?;
            let found = volume.find(&parent, name)?.ok_or(FsError::NotFound)?;
            volume.check_removable(found.inode)?;
            volume.drop_name(directory, found)?;
            volume.drop_directory(found.inode, directory)
        })?;
        self.remove_if_unused(Some(orphan)).map(drop)
    }

    /// Moves a name; returns what lost it as its last, and is open.
    pub(super) fn rename(
        &mut self,
        from: u32,
        name: &[u8],
        to: u32,
        new_name: &[u8],
    ) -> Result<Option<u32>, FsError> {
        check_name(name)?;
        check_name(new_name)?;
        let orphan = self.transact(|volume| volume.move_name(from, name, to, new_name))?;
        self.remove_if_unused(orphan)
    }

    fn move_name(
        &mut self,
        from: u32,
        name: &[u8],
        to: u32,
        new_name: &[u8],
    ) -> Result<Option<u32>, FsError> {
        let from_directory = self.directory(from)?;
        let to_directory = self.directory(to)?;
        let source = self.find(&from_directory, name)?.ok_or(FsError::NotFound)?;
        let mut inode = self.live_inode(source.inode)?;
        let is_directory = inode.kind()? == FileKind::Directory;
        if is_directory && from != to {
            self.check_not_inside(source.inode, to)?;
        }
        let mut orphan = None;
        match self.find(&to_directory, new_name)? {
            Some(target) if target.inode == source.inode => return Ok(None),
            Some(target) => {
                let mut replaced = self.live_inode(target.inode)?;
                match (is_directory, replaced.kind()? == FileKind::Directory) {
                    (true, false) => return Err(FsError::NotADirectory),
                    (false, true) => return Err(FsError::IsADirectory),
                    (true, true) => {
                        self.check_removable(target.inode)?;
                        orphan = Some(self.drop_directory(target.inode, to)?);
                    }
                    (false, false) => orphan = self.drop_link(&mut replaced)?,
                }
                let (_, kind) = kind_codes(inode.kind()?);
                let directory = self.directory(to)?;
                self.redirect_name(&directory, target, source.inode, kind)?;
                self.touch_directory(to)?;
            }
            None => self.insert_entry(to, new_name, &inode)?,
        }
        // Inserting may have moved it.
        let from_directory = self.directory(from)?;
        let source = self.find(&from_directory, name)?.ok_or(FsError::NotFound)?;
        self.drop_name(from, source)?;
        if is_directory && from != to {
            let dots = self.find(&inode, b"..")?;
            let dots = dots.ok_or(FsError::corrupt(
                Structure::DirectoryEntry,
                inode.number.into(),
                0,
            ))?;
            self.redirect_name(&inode, dots, to, 2)?;
            self.count_directory(from, false)?;
            self.count_directory(to, true)?;
        }
        inode = self.inode(inode.number)?;
        inode.set_time(Time::Change, self.now());
        self.put_inode(&mut inode)?;
        Ok(orphan)
    }

    fn new_inode(
        &mut self,
        directory: u32,
        name: &[u8],
        kind: FileKind,
        permissions: u16,
    ) -> Result<Inode, FsError> {
        self.check_absent(directory, name)?;
        let mut inode = self.allocate_inode(directory, kind)?;
        inode.set_mode(kind_codes(kind).0 | permissions & 0o7777);
        if self.superblock.features.has_incompat(INCOMPAT_EXTENTS) {
            inode.set_flags(EXTENTS);
            Node::EMPTY.encode(inode.map_mut());
        }
        Ok(inode)
    }

    fn check_absent(&mut self, directory: u32, name: &[u8]) -> Result<(), FsError> {
        let directory = self.directory(directory)?;
        if directory.links() == 0 {
            return Err(FsError::NotFound);
        }
        match self.find(&directory, name)? {
            Some(_) => Err(FsError::Exists),
            None => Ok(()),
        }
    }

    /// Adds a name, and counts it if it is a sub-directory.
    fn add_name(&mut self, directory: u32, name: &[u8], inode: &Inode) -> Result<(), FsError> {
        self.insert_entry(directory, name, inode)?;
        if inode.kind()? == FileKind::Directory {
            self.count_directory(directory, true)?;
        }
        Ok(())
    }

    fn insert_entry(&mut self, directory: u32, name: &[u8], inode: &Inode) -> Result<(), FsError> {
        let mut parent = self.directory(directory)?;
        if parent.links() == 0 {
            return Err(FsError::NotFound);
        }
        let (_, kind) = kind_codes(inode.kind()?);
        self.insert_name(
            &mut parent,
            NewName {
                name,
                inode: inode.number,
                kind,
            },
        )?;
        self.touch(&mut parent);
        self.put_inode(&mut parent)
    }

    fn drop_name(&mut self, directory: u32, found: Found) -> Result<(), FsError> {
        let parent = self.directory(directory)?;
        self.remove_name(&parent, found)?;
        self.touch_directory(directory)
    }

    fn touch_directory(&mut self, directory: u32) -> Result<(), FsError> {
        let mut inode = self.inode(directory)?;
        self.touch(&mut inode);
        self.put_inode(&mut inode)
    }

    /// Counts a name less for a file, which becomes an orphan with the last; says so.
    fn drop_link(&mut self, inode: &mut Inode) -> Result<Option<u32>, FsError> {
        let wrong = FsError::corrupt(Structure::LinkCount, inode.number.into(), 0);
        let links = inode.links().checked_sub(1).ok_or(wrong)?;
        inode.set_links(links);
        inode.set_time(Time::Change, self.now());
        // A cut that was broken off may have left it on the list.
        if links == 0 && !self.is_orphan(inode.number)? {
            self.add_orphan(inode)?;
        }
        self.put_inode(inode)?;
        Ok((links == 0).then_some(inode.number))
    }

    /// Makes an empty directory an orphan, and counts it no longer in its parent.
    fn drop_directory(&mut self, number: u32, parent: u32) -> Result<u32, FsError> {
        let mut inode = self.inode(number)?;
        inode.set_links(0);
        self.touch(&mut inode);
        self.add_orphan(&mut inode)?;
        self.put_inode(&mut inode)?;
        self.count_directory(parent, false)?;
        Ok(number)
    }

    fn check_removable(&mut self, number: u32) -> Result<(), FsError> {
        let inode = self.directory(number)?;
        if number == ROOT {
            return Err(FsError::Busy);
        }
        if self.is_empty(&inode)? {
            Ok(())
        } else {
            Err(FsError::NotEmpty)
        }
    }

    /// Counts a sub-directory in its parent. From 65000 on the count says 1: not known.
    fn count_directory(&mut self, parent: u32, is_added: bool) -> Result<(), FsError> {
        let mut inode = self.inode(parent)?;
        let links = inode.links();
        let has_limit = !self.superblock.features.has_ro_compat(RO_COMPAT_DIR_NLINK);
        let links = match (links, is_added) {
            (1, _) => 1,
            (MAX_LINKS.., true) if has_limit => return Err(FsError::TooManyLinks),
            (MAX_LINKS.., true) => 1,
            (links, true) => links + 1,
            (0..=2, false) => links,
            (links, false) => links - 1,
        };
        inode.set_links(links);
        self.put_inode(&mut inode)
    }

    /// Whether `directory` does not lie in `moved`, so that moving cannot cut the tree apart.
    fn check_not_inside(&mut self, moved: u32, directory: u32) -> Result<(), FsError> {
        let mut at = directory;
        for _ in 0..self.superblock.inodes_count {
            if at == moved {
                return Err(FsError::IntoItself);
            }
            if at == ROOT {
                return Ok(());
            }
            let inode = self.directory(at)?;
            let above = self.find(&inode, b"..")?;
            at = above
                .ok_or(FsError::corrupt(Structure::DirectoryEntry, at.into(), 0))?
                .inode;
        }
        Err(FsError::corrupt(
            Structure::DirectoryEntry,
            directory.into(),
            at.into(),
        ))
    }

    /// Removes an orphan, or returns it if it is open.
    fn remove_if_unused(&mut self, orphan: Option<u32>) -> Result<Option<u32>, FsError> {
        match orphan {
            Some(number) if !self.open.contains_key(&number) => {
                self.remove_file(number).map(|()| None)
            }
            open => Ok(open),
        }
    }

    /// Changes attributes of a file.
    pub(super) fn change_inode(
        &mut self,
        number: u32,
        change: impl Fn(&mut Inode),
    ) -> Result<(), FsError> {
        self.transact(|volume| {
            let mut inode = volume.live_inode(number)?;
            change(&mut inode);
            inode.set_time(Time::Change, volume.now());
            volume.put_inode(&mut inode)
        })
    }

    /// Keeps a file until it is closed as often.
    pub(super) fn open(&mut self, number: u32) -> Result<(), FsError> {
        let inode = self.live_inode(number)?;
        self.check_plausible(&inode)?;
        self.open.entry(number).or_default().count += 1;
        Ok(())
    }

    /// Lets go of a file; the last one removes it if it has no name.
    pub(super) fn close(&mut self, number: u32) -> Result<(), FsError> {
        match self.open.get_mut(&number) {
            None => return Err(FsError::NotFound),
            Some(open) if open.count > 1 => {
                open.count -= 1;
                return Ok(());
            }
            Some(_) => drop(self.open.remove(&number)),
        }
        if self.check_writable().is_err() || self.inode(number)?.links() > 0 {
            return Ok(());
        }
        self.remove_file(number)
    }
}

/// Whether a file can be called so.
fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > MAX_NAME {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0)
    {
        return Err(FsError::InvalidName);
    }
    Ok(())
}
