//! The table of function names, as `src/symbols.rs` of the image reads it; the format is described there.

use crate::grammar::Grammar;
use std::collections::BTreeMap;

/// The table for `functions`, by start, in code that ends at `code_end`.
pub(crate) fn table(functions: &BTreeMap<u32, String>, code_end: u32) -> Vec<u8> {
    let grammar = Grammar::of(functions.values().map(|name| name.as_bytes()));
    let mut bytes = Vec::from(*b"PFS1");
    bytes.extend([0; 4]); // the length, below
    bytes.extend(code_end.to_le_bytes());
    bytes.extend((functions.len() as u32).to_le_bytes());
    bytes.extend((grammar.rules.len() as u32).to_le_bytes());
    for (first, second) in grammar.rules {
        bytes.extend(first.to_le_bytes());
        bytes.extend(second.to_le_bytes());
    }
    let mut before = 0;
    for (start, codes) in functions.keys().zip(grammar.names) {
        number(&mut bytes, start - before);
        before = *start;
        let mut name = Vec::new();
        for code in codes {
            number(&mut name, u32::from(code));
        }
        number(&mut bytes, name.len() as u32);
        bytes.extend(name);
    }
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Appends `value`, seven bits a byte, lowest first.
fn number(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::table;
    use pinfold::symbols::Symbols;
    use std::collections::BTreeMap;

    #[test]
    fn the_image_reads_every_name_back() {
        let functions: BTreeMap<u32, String> = (0..3000)
            .map(|n| {
                let module = ["mm::cache", "fs::ext4::journal", "arch::aarch64"][n as usize % 3];
                (
                    4 * n * n + 4,
                    format!("<pinfold::{module}::Type{} as Trait>::method_{n}", n % 17),
                )
            })
            .collect();
        let table = table(&functions, 4 * 3000 * 3000);
        let symbols = Symbols::new(&table).unwrap();
        assert_eq!(symbols.len(), 3000);
        for (start, name) in &functions {
            let symbol = symbols.find(start + 1).unwrap();
            assert_eq!((symbol.name.to_string(), symbol.offset), (name.clone(), 1));
        }
        assert!(symbols.find(3).is_none());
        assert!(symbols.find(4 * 3000 * 3000).is_none());
    }

    #[test]
    fn the_same_functions_give_the_same_table() {
        let functions = |seed: u32| -> BTreeMap<u32, String> {
            (0..200)
                .map(|n| (n * 8, format!("a::b{}::c{}", n * seed % 7, n % 5)))
                .collect()
        };
        assert_eq!(table(&functions(3), 1600), table(&functions(3), 1600));
        assert_ne!(table(&functions(3), 1600), table(&functions(4), 1600));
    }
}
