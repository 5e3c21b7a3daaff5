use super::build::Builder;
use super::{Blocks, Event, MAX_DEPTH, Tree, TreeError};
use alloc::string::String;
use alloc::vec::Vec;
use fdt::node::FdtNode;

/// All steps through a tree, as text; or the error that ends them.
fn walk(bytes: &[u8]) -> Result<Vec<String>, TreeError> {
    let blocks = Blocks::of(bytes)?;
    blocks.check(bytes)?;
    let mut events = blocks.events(bytes);
    let mut steps = Vec::new();
    loop {
        steps.push(alloc::format!("{:?}", events.step()?));
        if events.depth == 0 {
            return Ok(steps);
        }
    }
}

/// What `fdt` finds in a node, as `walk` tells it.
fn tell(node: &FdtNode<'_, '_>, steps: &mut Vec<String>) {
    let name = if node.name == "/" { "" } else { node.name };
    steps.push(alloc::format!("{:?}", Event::Begin(name)));
    for property in node.properties() {
        let step = Event::Property(property.name, property.value);
        steps.push(alloc::format!("{step:?}"));
    }
    for child in node.children() {
        tell(&child, steps);
    }
    steps.push(alloc::format!("{:?}", Event::End));
}

fn small(mut builder: Builder) -> Vec<u8> {
    builder.reserve(0x1000, 0x2000).begin("");
    builder.cells("a", &[1]).text("bcd", "e");
    builder.begin("child@1").cells("a", &[]).end();
    builder.begin("other").end().end();
    builder.finish()
}

#[test]
fn a_tree_is_told_in_the_order_of_its_bytes() {
    let steps = walk(&small(Builder::default())).unwrap();
    let told = [
        r#"Begin("")"#,
        r#"Property("a", [0, 0, 0, 1])"#,
        r#"Property("bcd", [101, 0])"#,
        r#"Begin("child@1")"#,
        r#"Property("a", [])"#,
        "End",
        r#"Begin("other")"#,
        "End",
        "End",
    ];
    assert_eq!(steps, told);
}

#[test]
fn nops_between_all_tokens_change_nothing() {
    let with_nops = walk(&small(Builder::with_nops()));
    assert_eq!(with_nops, walk(&small(Builder::default())));
}

#[test]
fn what_passes_is_read_by_fdt_as_it_was_checked() {
    for builder in [Builder::default(), Builder::with_nops()] {
        let mut bytes = small(builder);
        let checked = walk(&bytes).unwrap();
        let tree = Tree::new(&mut bytes).unwrap();
        let mut told = Vec::new();
        tell(&tree.nodes.find_node("/").unwrap(), &mut told);
        assert_eq!(told, checked);
    }
}

#[test]
fn reservations_are_read_up_to_the_entry_of_zeros() {
    let mut bytes = small(Builder::default());
    let tree = Tree::new(&mut bytes).unwrap();
    let reservations: Vec<_> = tree.reservations().collect();
    assert_eq!(reservations, [(0x1000, 0x2000)]);
}

#[test]
fn padding_after_the_last_block_is_not_counted_as_used() {
    let mut bytes = small(Builder::default());
    let used = bytes.len();
    bytes.resize(0x1000, 0);
    bytes[4..8].copy_from_slice(&0x1000u32.to_be_bytes());
    assert_eq!(Tree::new(&mut bytes).unwrap().used(), used);
}

/// `bytes` with the word at `at` replaced.
fn with(bytes: &[u8], at: usize, word: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    bytes
}

#[test]
fn a_header_that_cannot_be_is_refused_by_what_is_wrong_with_it() {
    let bytes = small(Builder::default());
    let error = |at, word| walk(&with(&bytes, at, word)).unwrap_err();
    assert_eq!(error(0, 0xfeed), TreeError::Magic(0xfeed));
    assert_eq!(error(4, 39), TreeError::Size(39));
    assert_eq!(error(4, 0x7fff_ffff), TreeError::Size(0x7fff_ffff));
    let beyond = bytes.len() as u32 + 1;
    assert_eq!(error(4, beyond), TreeError::Size(beyond));
    assert_eq!(error(20, 16), TreeError::Version(16));
    assert_eq!(error(24, 18), TreeError::Version(17));
    assert_eq!(error(8, u32::MAX - 3), TreeError::Block("structure"));
    assert_eq!(error(8, 73), TreeError::Block("structure"));
    assert_eq!(error(36, beyond), TreeError::Block("structure"));
    assert_eq!(error(12, beyond), TreeError::Block("strings"));
    assert_eq!(error(32, beyond), TreeError::Block("strings"));
    assert_eq!(error(16, u32::MAX), TreeError::Block("reservation"));
    assert_eq!(
        walk(&bytes[..20]).unwrap_err(),
        TreeError::Size(bytes.len() as u32)
    );
    assert_eq!(walk(&[]), Err(TreeError::Magic(0)));
}

#[test]
fn tokens_in_the_wrong_place_are_refused_with_their_offset() {
    // The structure begins at 40 + 16 with one empty list entry, the first token after the root's name at 64.
    let tree = |build: fn(&mut Builder) -> &mut Builder| {
        let mut builder = Builder::default();
        build(&mut builder);
        walk(&builder.finish())
    };
    let token = |at, token| Err(TreeError::Token { at, token });
    assert_eq!(tree(|b| b.end()), token(56, 2));
    assert_eq!(tree(|b| b.begin("").token(5)), token(64, 5));
    assert_eq!(tree(|b| b.begin("")), token(64, 9));
    assert_eq!(
        tree(|b| b.begin("").begin("c").end().cells("late", &[]).end()),
        token(76, 3)
    );
    assert_eq!(tree(|b| b.begin("").end().end()), token(68, 2));
}

#[test]
fn a_structure_that_stops_is_unfinished() {
    let bytes = small(Builder::default());
    let len = u32::from_be_bytes(bytes[36..40].try_into().unwrap());
    let error = walk(&with(&bytes, 36, len - 4)).unwrap_err();
    assert_eq!(error, TreeError::Unfinished);
}

#[test]
fn a_property_longer_than_the_tree_is_refused() {
    let mut builder = Builder::default();
    let bytes = builder.begin("").cells("a", &[1]).end().finish();
    let error = walk(&with(&bytes, 68, u32::MAX)).unwrap_err();
    assert_eq!(error, TreeError::Property { at: 64 });
    let error = walk(&with(&bytes, 72, u32::MAX)).unwrap_err();
    assert_eq!(error, TreeError::Name { at: 64 });
}

#[test]
fn a_name_that_is_not_text_is_refused() {
    let mut builder = Builder::default();
    let bytes = builder.begin("").begin("x\u{7f}").end().end().finish();
    assert_eq!(walk(&bytes), Err(TreeError::Name { at: 64 }));
}

#[test]
fn depth_is_bounded() {
    let nested = |depth| {
        let mut builder = Builder::default();
        for _ in 0..depth {
            builder.begin("");
        }
        for _ in 0..depth {
            builder.end();
        }
        walk(&builder.finish())
    };
    assert!(nested(MAX_DEPTH).is_ok());
    assert!(matches!(
        nested(MAX_DEPTH + 1),
        Err(TreeError::TooDeep { .. })
    ));
}
