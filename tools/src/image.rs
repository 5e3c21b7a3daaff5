//! kernel8.img: the program as it lies in memory, up to and with the table of function names.

use crate::elf::Program;
use std::fmt;

/// Why a program cannot become an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ImageError {
    NoHeader,
    TextOffset(u64),
    ImageSize { header: u64, needed: u64 },
    TableTooLarge { table: u64, room: u64 },
    AfterTable(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => write!(
                out,
                "does not begin with a Linux Image header; boot.rs has it"
            ),
            Self::TextOffset(offset) => {
                write!(out, "the Image header says text_offset {offset:#x}, not 0")
            }
            Self::ImageSize { header, needed } => write!(
                out,
                "the Image header promises {header:#x} bytes of memory, the program takes {needed:#x}"
            ),
            Self::TableTooLarge { table, room } => write!(
                out,
                "the table of function names has {table} bytes, its room {room}: raise SYMBOL_SPACE in linker.ld"
            ),
            Self::AfterTable(offset) => write!(
                out,
                "contents at {offset:#x}, after the table of function names, where the image ends"
            ),
        }
    }
}

/// The image of `program` with `table` in it. What follows the table is memory only and not in the file.
pub(crate) fn make(program: &Program, table: &[u8]) -> Result<Vec<u8>, ImageError> {
    let room = program.table.end.saturating_sub(program.table.start);
    if table.len() as u64 > room {
        return Err(ImageError::TableTooLarge {
            table: table.len() as u64,
            room,
        });
    }
    let start = program.table.start as usize; // below 1 GiB, as every offset in a program
    let mut image = vec![0; start];
    for &(at, data) in &program.segments {
        if data.is_empty() {
            continue;
        }
        let at = at as usize;
        match image.get_mut(at..at + data.len()) {
            Some(place) => place.copy_from_slice(data),
            None => return Err(ImageError::AfterTable((at + data.len()) as u64)),
        }
    }
    image.extend(table);
    check_header(&image, program.end)?;
    Ok(image)
}

/// The header of Linux, "Booting AArch64 Linux", section 4.
fn check_header(image: &[u8], needed: u64) -> Result<(), ImageError> {
    let field = |at: usize| {
        image
            .get(at..at + 8)?
            .try_into()
            .ok()
            .map(u64::from_le_bytes)
    };
    let (Some(text_offset), Some(header)) = (field(8), field(16)) else {
        return Err(ImageError::NoHeader);
    };
    if image.get(56..60) != Some(b"ARM\x64") {
        return Err(ImageError::NoHeader);
    }
    if text_offset != 0 {
        return Err(ImageError::TextOffset(text_offset));
    }
    if header < needed {
        return Err(ImageError::ImageSize { header, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ImageError, make};
    use crate::elf::Program;
    use std::collections::BTreeMap;

    const SIZE: u64 = 0x3000;

    fn text() -> Vec<u8> {
        let mut text = vec![0xaa; 0x1100];
        text[8..16].copy_from_slice(&0u64.to_le_bytes());
        text[16..24].copy_from_slice(&SIZE.to_le_bytes());
        text[56..60].copy_from_slice(b"ARM\x64");
        text
    }

    fn program(text: &[u8]) -> Program<'_> {
        Program {
            segments: vec![(0, text), (0x1800, b"data"), (0x2000, &[])],
            table: 0x2000..0x2010,
            end: SIZE,
            code_end: 0x1100,
            functions: BTreeMap::new(),
        }
    }

    #[test]
    fn segments_lie_where_they_were_linked_and_the_table_ends_the_file() {
        let text = text();
        let image = make(&program(&text), b"table").unwrap();
        assert_eq!(image.len(), 0x2005);
        assert_eq!(image[..0x1100], text);
        assert_eq!(image[0x1100..0x1800], [0; 0x700]);
        assert_eq!(&image[0x1800..0x1804], b"data");
        assert_eq!(&image[0x2000..], b"table");
    }

    #[test]
    fn a_table_larger_than_its_room_names_the_constant_to_raise() {
        let error = make(&program(&text()), &[1; 17]).unwrap_err();
        assert_eq!(
            error,
            ImageError::TableTooLarge {
                table: 17,
                room: 16
            }
        );
        assert!(error.to_string().contains("SYMBOL_SPACE in linker.ld"));
        assert!(make(&program(&text()), &[1; 16]).is_ok());
    }

    #[test]
    fn contents_after_the_table_are_refused() {
        let text = text();
        let mut program = program(&text);
        program.segments.push((0x1ffe, b"data"));
        assert_eq!(make(&program, b""), Err(ImageError::AfterTable(0x2002)));
    }

    #[test]
    fn a_program_without_the_boot_header_is_refused() {
        let mut text = text();
        text[56] = 0;
        assert_eq!(make(&program(&text), b""), Err(ImageError::NoHeader));
    }

    #[test]
    fn a_header_that_promises_too_little_memory_is_refused() {
        let mut text = text();
        text[16..24].copy_from_slice(&(SIZE - 1).to_le_bytes());
        let error = make(&program(&text), b"").unwrap_err();
        assert_eq!(
            error,
            ImageError::ImageSize {
                header: SIZE - 1,
                needed: SIZE
            }
        );
    }

    #[test]
    fn a_header_with_a_text_offset_is_refused() {
        let mut text = text();
        text[8] = 8;
        assert_eq!(make(&program(&text), b""), Err(ImageError::TextOffset(8)));
    }
}
