//! Journals written by e2fsprogs are recovered as e2fsck recovers them.

mod common;

use common::{Scratch, e2fsck, mkfs, mount, read_tree, run};
use pinfold::fs::ext4::Access;
use pinfold::fs::ram_disk::RamDisk;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

fn debugfs_script(image: &Path, script: &str) {
    let mut child = Command::new("debugfs")
        .args(["-w", "-f", "-", image.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}

/// An image whose log holds three transactions: blocks overwritten, revoked, and one that looks like a journal block.
fn with_transactions(options: &[&str], journal: &str) -> Vec<u8> {
    let source = Scratch::new();
    for name in ["a", "b", "c"] {
        std::fs::write(source.0.join(name), vec![name.as_bytes()[0]; 16 * 4096]).unwrap();
    }
    let image = mkfs(16 * 1024, options, Some(&source.0));
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    std::fs::write(&path, &image).unwrap();
    let block = |name: &str| {
        let out = run(
            "debugfs",
            &["-R", &format!("bmap {name} 0"), path.to_str().unwrap()],
        )
        .stdout;
        String::from_utf8(out)
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    let size = if options.contains(&"1024") {
        1024
    } else {
        4096
    };
    let data = scratch.0.join("data");
    let escaped = scratch.0.join("escaped");
    std::fs::write(&data, vec![0x5a; size * 4]).unwrap();
    std::fs::write(&escaped, [0xc0, 0x3b, 0x39, 0x98].repeat(size / 4)).unwrap();
    let (a, b, c) = (block("a"), block("b"), block("c"));
    let script = format!(
        "jo {journal}\njw -b {a},{},{b} {}\njw -r {b}\njw -b {c} {}\njc\n",
        a + 1,
        data.display(),
        escaped.display()
    );
    debugfs_script(&path, &script);
    std::fs::read(&path).unwrap()
}

fn recovered_by_us(image: Vec<u8>) -> (Vec<u8>, u32) {
    let disk = Arc::new(RamDisk::new(image));
    let mounted = mount(disk.clone(), Access::ReadOnly).unwrap();
    let transactions = mounted
        .recovered
        .map_or(0, |recovered| recovered.transactions);
    drop(mounted);
    (disk.contents(), transactions)
}

fn recovered_by_e2fsck(image: &[u8]) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.0.join("image");
    std::fs::write(&path, image).unwrap();
    run(
        "e2fsck",
        &["-y", "-E", "journal_only", path.to_str().unwrap()],
    );
    std::fs::read(&path).unwrap()
}

#[test]
fn a_log_with_revoked_and_escaped_blocks_is_replayed_as_e2fsck_does() {
    let sets: [(&[&str], &str); 5] = [
        (&["-b", "4096"], "-c -v 3"),
        (&["-b", "1024"], "-c -v 3"),
        (&["-b", "1024"], "-c -v 2"),
        (&["-b", "4096", "-O", "^metadata_csum"], ""),
        (&["-b", "4096", "-O", "^64bit,^metadata_csum"], ""),
    ];
    for (options, journal) in sets {
        let image = with_transactions(options, journal);
        let (ours, transactions) = recovered_by_us(image.clone());
        let theirs = recovered_by_e2fsck(&image);
        assert_eq!(transactions, 3, "{options:?} {journal}");
        assert_eq!(e2fsck(&ours), Ok(()));
        let tree = |image| {
            read_tree(
                &mount(Arc::new(RamDisk::new(image)), Access::ReadOnly)
                    .unwrap()
                    .file_system,
            )
            .unwrap()
        };
        assert!(tree(ours.clone()) == tree(theirs), "{options:?} {journal}");
        assert_ne!(ours, image);
    }
}

#[test]
fn recovery_twice_is_recovery_once() {
    let image = with_transactions(&["-b", "4096"], "-c -v 3");
    let (once, _) = recovered_by_us(image);
    let (twice, transactions) = recovered_by_us(once.clone());
    assert!(once == twice);
    assert_eq!(transactions, 0);
}

#[test]
fn a_torn_last_transaction_never_happened() {
    let image = with_transactions(&["-b", "4096"], "-c -v 3");
    // The last commit block: type 2, the highest sequence.
    let at = image
        .chunks(4096)
        .rposition(|block| block[..8] == [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2])
        .unwrap();
    let mut torn = image;
    torn[at * 4096 + 8] ^= 1;
    let (recovered, transactions) = recovered_by_us(torn);
    assert_eq!(transactions, 2);
    assert_eq!(e2fsck(&recovered), Ok(()));
}
