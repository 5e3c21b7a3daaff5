//! Mounts arbitrary bytes as ext4, walks everything, and changes what can be changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::fs::ext4::{Access, Ext4, MetadataLimits, MountOptions};
use pinfold::fs::ram_disk::RamDisk;
use pinfold::fs::{Cursor, FileKind, FileSystem, Timestamp};
use std::sync::Arc;

fuzz_target!(|image: &[u8]| {
    let options = MountOptions {
        access: Access::ReadWrite,
        clock: || Timestamp::default(),
        limits: MetadataLimits::default(),
    };
    let Ok(mounted) = Ext4::mount(Arc::new(RamDisk::new(image.to_vec())), options) else {
        return;
    };
    let fs = mounted.file_system;
    let mut waiting = vec![fs.root()];
    for _ in 0..50 {
        let Some(directory) = waiting.pop() else {
            break;
        };
        let mut cursor = Cursor::default();
        while let Ok(entries) = fs.read_directory(directory, &mut cursor) {
            if entries.is_empty() {
                break;
            }
            for entry in entries.into_iter().take(50) {
                let mut bytes = [0; 5000];
                let _ = fs.read_at(entry.file, 3000, &mut bytes);
                let _ = fs.read_link(entry.file);
                let _ = fs.write_at(entry.file, 70_000, b"fuzz");
                let _ = fs.set_len(entry.file, 1);
                let _ = fs.rename(directory, &entry.name, fs.root(), b"renamed");
                let _ = fs.unlink(fs.root(), b"renamed");
                waiting.push(entry.file);
            }
        }
        let _ = fs.create(directory, b"new", FileKind::Directory, 0o755);
    }
    let _ = fs.unmount();
});
