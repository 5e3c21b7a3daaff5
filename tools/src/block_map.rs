//! Which blocks of a disk image hold anything: the file that lets bmaptool write only those to a card.
//!
//! Source: the comment in the files that bmaptool makes, format version 2.0.

use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

const BLOCK: usize = 4096;

/// Writes the block map of `image` to `out`; says what is in it.
pub(crate) fn write(image: &Path, out: &Path) -> Result<String, String> {
    let bytes = std::fs::read(image)
        .map_err(|error| format!("cannot read {}: {error}", image.display()))?;
    let map = block_map(&bytes);
    std::fs::write(out, map).map_err(|error| format!("cannot write {}: {error}", out.display()))?;
    let used: usize = used_blocks(&bytes).iter().map(|range| range.len()).sum();
    Ok(format!(
        "{}: {} of {} KiB hold anything",
        out.display(),
        used * BLOCK / 1024,
        bytes.len() / 1024
    ))
}

/// Runs of blocks that are not all zeros.
fn used_blocks(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == i => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn block_map(bytes: &[u8]) -> String {
    let runs = used_blocks(bytes);
    let mapped: usize = runs.iter().map(|run| run.len()).sum();
    let mut ranges = String::new();
    for run in runs {
        let end = (run.end * BLOCK).min(bytes.len());
        let sum = hex(&bytes[run.start * BLOCK..end]);
        let blocks = match run.len() {
            1 => format!("{}", run.start),
            _ => format!("{}-{}", run.start, run.end - 1),
        };
        let _ = writeln!(ranges, "        <Range chksum=\"{sum}\">{blocks}</Range>");
    }
    // The file's own sum is of the file with zeros in its place.
    let zeros = "0".repeat(64);
    let map = format!(
        "<?xml version=\"1.0\" ?>\n\
         <bmap version=\"2.0\">\n    \
             <ImageSize>{}</ImageSize>\n    \
             <BlockSize>{BLOCK}</BlockSize>\n    \
             <BlocksCount>{}</BlocksCount>\n    \
             <MappedBlocksCount>{mapped}</MappedBlocksCount>\n    \
             <ChecksumType>sha256</ChecksumType>\n    \
             <BmapFileChecksum>{zeros}</BmapFileChecksum>\n    \
             <BlockMap>\n{ranges}    </BlockMap>\n\
         </bmap>\n",
        bytes.len(),
        bytes.len().div_ceil(BLOCK),
    );
    map.replacen(&zeros, &hex(map.as_bytes()), 1)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, block_map, hex, used_blocks};

    #[test]
    fn runs_of_blocks_with_anything_in_them_are_found() {
        let mut image = vec![0; 10 * BLOCK];
        image[0] = 1;
        image[3 * BLOCK + 9] = 1;
        image[5 * BLOCK - 1] = 1;
        image[10 * BLOCK - 1] = 1;
        assert_eq!(used_blocks(&image), [0..1, 3..5, 9..10]);
        let map = block_map(&image);
        assert!(map.contains(">3-4</Range>") && map.contains(">9</Range>"));
        assert!(map.contains("<MappedBlocksCount>4<") && map.contains("<BlocksCount>10<"));
        assert!(map.contains(&hex(&image[3 * BLOCK..5 * BLOCK])));
    }

    #[test]
    fn the_map_has_its_own_sum() {
        let map = block_map(&[1; BLOCK]);
        let sum = map
            .split("<BmapFileChecksum>")
            .nth(1)
            .and_then(|rest| rest.split('<').next());
        let sum = sum.unwrap();
        assert_eq!(hex(map.replacen(sum, &"0".repeat(64), 1).as_bytes()), sum);
    }
}
