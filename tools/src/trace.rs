//! From what `trace dump` prints to a picture: file offset over time, coloured by what happened, and below it how much of
//! the file was in memory.

mod dump;
mod picture;

use std::path::Path;

/// Reads the dump at `from`, and writes its picture to `to`.
pub(crate) fn trace(from: &Path, to: &Path) -> Result<String, String> {
    let bytes = std::fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let dump = dump::Dump::parse(&text).map_err(|error| format!("{}: {error}", from.display()))?;
    let picture = picture::draw(&dump);
    std::fs::write(to, &picture).map_err(|error| format!("{}: {error}", to.display()))?;
    Ok(format!(
        "{}: {} bytes, {} events of {} files, {} lost",
        to.display(),
        picture.len(),
        dump.events.len(),
        dump.files.len(),
        dump.lost
    ))
}
