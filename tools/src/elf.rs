//! What the linked program says of itself.

use object::elf::{EM_AARCH64, PT_LOAD, SHF_ALLOC};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::collections::BTreeMap;
use std::fmt;

/// The parts of the program that make the image. Addresses are counted from the image's base.
pub(crate) struct Program<'a> {
    /// Bytes to be loaded, and where.
    pub(crate) segments: Vec<(u64, &'a [u8])>,
    /// The room for the table of function names.
    pub(crate) table: std::ops::Range<u64>,
    /// End of everything, memory without contents included.
    pub(crate) end: u64,
    /// End of the code.
    pub(crate) code_end: u32,
    /// Start and name of each function, in order.
    pub(crate) functions: BTreeMap<u32, String>,
}

/// Why an ELF file cannot become an image.
#[derive(Debug)]
pub(crate) enum ElfError {
    Malformed(object::Error),
    NotAarch64,
    NoSymbol(&'static str),
    BelowBase(u64),
    TooFar(u64),
    Relocations(String),
}

impl fmt::Display for ElfError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(out, "not a readable ELF file: {error}"),
            Self::NotAarch64 => write!(out, "not a program for AArch64"),
            Self::NoSymbol(name) => write!(out, "no symbol {name}; linker.ld defines it"),
            Self::BelowBase(address) => {
                write!(out, "{address:#x} is below IMAGE of linker.ld")
            }
            Self::TooFar(address) => {
                write!(
                    out,
                    "{address:#x} is more than 1 GiB above IMAGE of linker.ld"
                )
            }
            Self::Relocations(section) => write!(
                out,
                "section {section} holds relocations, and nobody would apply them at boot"
            ),
        }
    }
}

impl From<object::Error> for ElfError {
    fn from(error: object::Error) -> Self {
        Self::Malformed(error)
    }
}

impl<'a> Program<'a> {
    /// Reads `bytes`, an ELF file linked by linker.ld.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let elf = ElfFile64::<Endianness>::parse(bytes)?;
        let endian = elf.endian();
        if elf.elf_header().e_machine(endian) != EM_AARCH64 {
            return Err(ElfError::NotAarch64);
        }
        for section in elf.sections() {
            let header = section.elf_section_header();
            if header.sh_flags(endian) & u64::from(SHF_ALLOC) != 0
                && header
                    .rela(endian, bytes)?
                    .is_some_and(|(all, _)| !all.is_empty())
            {
                return Err(ElfError::Relocations(section.name()?.to_owned()));
            }
        }

        let address = |name: &'static str| {
            elf.symbols()
                .find(|symbol| symbol.name() == Ok(name))
                .map(|symbol| symbol.address())
                .ok_or(ElfError::NoSymbol(name))
        };
        let base = address("_start")?;
        let offset = |address: u64| match address.checked_sub(base) {
            None => Err(ElfError::BelowBase(address)),
            Some(offset) if offset > 1 << 30 => Err(ElfError::TooFar(address)),
            Some(offset) => Ok(offset),
        };

        let mut segments = Vec::new();
        let mut end = 0;
        for header in elf.elf_program_headers() {
            if header.p_type(endian) != PT_LOAD || header.p_memsz(endian) == 0 {
                continue;
            }
            let start = offset(header.p_vaddr(endian))?;
            end = end.max(offset(
                header
                    .p_vaddr(endian)
                    .saturating_add(header.p_memsz(endian)),
            )?);
            let data = header
                .data(endian, bytes)
                .map_err(|()| ElfError::TooFar(header.p_vaddr(endian)))?;
            segments.push((start, data));
        }

        let small = |address| offset(address).map(|offset| offset as u32); // below 1 GiB
        let mut functions = BTreeMap::new();
        for symbol in elf.symbols() {
            let is_entry = symbol.kind() == SymbolKind::Text || symbol.name() == Ok("_start");
            if !is_entry || symbol.is_undefined() || symbol.name()?.starts_with('$') {
                continue;
            }
            let name = format!("{:#}", rustc_demangle::demangle(symbol.name()?));
            let best = functions
                .entry(small(symbol.address())?)
                .or_insert_with(|| name.clone());
            // Several names for the same code: any will do, so long as it is always the same.
            if (name.len(), &name) < (best.len(), best) {
                *best = name;
            }
        }
        Ok(Self {
            segments,
            table: offset(address("__symbols_start")?)?..offset(address("__symbols_end")?)?,
            end,
            code_end: small(address("__rodata_start")?)?,
            functions,
        })
    }
}
