//! Names made small: a code for each pair of codes that comes often, again and again.
//!
//! Re-Pair (Larsson and Moffat, "Offline Dictionary-Based Compression", 1999), with each name a text of its own. It finds
//! by itself what names share: module paths, types, suffixes.

use std::collections::{BTreeSet, HashMap};

/// A pair must come this often: a rule takes four bytes, and each use of it saves one or two.
const WORTH_A_RULE: usize = 4;

/// How deep rules may lie in each other, so that the image can expand a name in little memory.
const MAX_DEPTH: u8 = 30;

/// Codes from here on are rules; those below are bytes.
const FIRST_RULE: usize = 256;

type Pair = (u16, u16);

/// Names as codes, and what the codes from 256 on stand for.
#[derive(Debug)]
pub(crate) struct Grammar {
    /// Rule n is what code 256 + n stands for: two lower codes.
    pub(crate) rules: Vec<Pair>,
    /// Each name, in the order they were given.
    pub(crate) names: Vec<Vec<u16>>,
}

impl Grammar {
    /// Finds rules for `names`.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let names: Vec<Vec<u16>> = names
            .map(|name| name.iter().copied().map(u16::from).collect())
            .collect();
        let mut uses = Uses::default();
        for (index, name) in names.iter().enumerate() {
            uses.add(index, name);
        }
        let mut grammar = Self {
            rules: Vec::new(),
            names,
        };
        let mut depths = vec![0u8; FIRST_RULE];
        while let Some(pair) = uses.most_frequent(&depths) {
            let Ok(code) = u16::try_from(FIRST_RULE + grammar.rules.len()) else {
                break; // no codes left
            };
            grammar.rules.push(pair);
            depths.push(depth(pair, &depths));
            for index in uses.names_with(pair) {
                let name = &mut grammar.names[index];
                uses.remove(index, name);
                replace(name, pair, code);
                uses.add(index, name);
            }
        }
        grammar
    }
}

/// How deep a rule for `pair` would be.
fn depth(pair: Pair, depths: &[u8]) -> u8 {
    1 + depths[usize::from(pair.0)].max(depths[usize::from(pair.1)])
}

fn replace(name: &mut Vec<u16>, pair: Pair, code: u16) {
    let mut replaced = Vec::with_capacity(name.len());
    let mut rest = name.as_slice();
    while let [first, tail @ ..] = rest {
        match tail {
            [second, after @ ..] if (*first, *second) == pair => {
                replaced.push(code);
                rest = after;
            }
            _ => {
                replaced.push(*first);
                rest = tail;
            }
        }
    }
    *name = replaced;
}

/// Which pairs come how often, and in which names.
#[derive(Default)]
struct Uses(HashMap<Pair, (usize, BTreeSet<usize>)>);

impl Uses {
    fn add(&mut self, index: usize, name: &[u16]) {
        for pair in name.windows(2) {
            let (count, names) = self.0.entry((pair[0], pair[1])).or_default();
            *count += 1;
            names.insert(index);
        }
    }

    fn remove(&mut self, index: usize, name: &[u16]) {
        for pair in name.windows(2) {
            let pair = (pair[0], pair[1]);
            if let Some((count, names)) = self.0.get_mut(&pair) {
                *count -= 1;
                names.remove(&index);
                if *count == 0 {
                    self.0.remove(&pair);
                }
            }
        }
    }

    /// The pair to make a rule of next; of equals always the same one.
    fn most_frequent(&self, depths: &[u8]) -> Option<Pair> {
        self.0
            .iter()
            .filter(|(pair, (count, _))| {
                *count >= WORTH_A_RULE && depth(**pair, depths) <= MAX_DEPTH
            })
            .max_by_key(|(pair, (count, _))| (*count, std::cmp::Reverse(**pair)))
            .map(|(pair, _)| *pair)
    }

    fn names_with(&self, pair: Pair) -> Vec<usize> {
        self.0
            .get(&pair)
            .map_or_else(Vec::new, |(_, names)| names.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Grammar, MAX_DEPTH};

    fn expand(grammar: &Grammar, code: u16, out: &mut Vec<u8>) -> u8 {
        match u8::try_from(code) {
            Ok(byte) => {
                out.push(byte);
                0
            }
            Err(_) => {
                let (first, second) = grammar.rules[usize::from(code) - 256];
                assert!(first < code && second < code);
                1 + expand(grammar, first, out).max(expand(grammar, second, out))
            }
        }
    }

    fn assert_names_come_back(names: &[String]) -> Grammar {
        let grammar = Grammar::of(names.iter().map(|name| name.as_bytes()));
        for (name, codes) in names.iter().zip(&grammar.names) {
            let mut bytes = Vec::new();
            for code in codes {
                assert!(expand(&grammar, *code, &mut bytes) <= MAX_DEPTH);
            }
            assert_eq!(name.as_bytes(), bytes);
        }
        grammar
    }

    #[test]
    fn a_shared_path_becomes_one_code() {
        let names: Vec<String> = ["x", "y", "z", "w", "v"]
            .iter()
            .map(|leaf| format!("pinfold::mm::{leaf}"))
            .collect();
        let grammar = assert_names_come_back(&names);
        assert!(grammar.names.iter().all(|codes| codes.len() == 2));
    }

    #[test]
    fn equal_neighbours_come_back() {
        assert_names_come_back(&(0..40).map(|n| "a".repeat(n)).collect::<Vec<_>>());
    }

    #[test]
    fn names_that_extend_each_other_need_no_deeper_rules_than_allowed() {
        let alphabet: String = ('0'..='z').collect();
        let names: Vec<String> = (0..alphabet.len())
            .map(|n| alphabet[..n].to_string())
            .collect();
        assert_names_come_back(&names);
    }

    #[test]
    fn nothing_is_a_grammar_too() {
        assert!(assert_names_come_back(&[]).rules.is_empty());
        assert_names_come_back(&[String::new()]);
    }
}
