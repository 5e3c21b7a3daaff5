mod sim;

use super::{ATTEMPTS, Card, CardError, LOOK_US, Locked};
use crate::driver::sd::host::{BusError, Slot};
use crate::driver::sd::register::Protection;
use crate::fs::block::{BlockError, Buffer, Completion, Durability, Operation, Request};
use alloc::boxed::Box;
use alloc::vec::Vec;
use sim::{Fault, Kind, SimCard, SimHost};

const MIB: u64 = 1 << 20;

fn start(card: SimCard) -> Card<SimHost> {
    Card::start(SimHost::with(card)).expect("a card")
}

fn high_capacity() -> SimCard {
    SimCard::new(Kind::HighCapacity, 64 * MIB)
}

fn request(operation: Operation, offset: u64, buffers: &[Vec<u8>]) -> Request {
    let buffer = |bytes: &Vec<u8>| Box::new(bytes.clone()) as Box<dyn Buffer>;
    Request {
        operation,
        offset,
        buffers: buffers.iter().map(buffer).collect(),
        on_completion: Box::new(|_: Completion| ()),
    }
}

fn write(card: &mut Card<SimHost>, offset: u64, bytes: &[u8]) -> Result<(), BlockError> {
    let parts: Vec<_> = bytes.chunks(1024).map(<[u8]>::to_vec).collect();
    card.serve(&mut request(
        Operation::Write(Durability::Cached),
        offset,
        &parts,
    ))
}

fn read(card: &mut Card<SimHost>, offset: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let mut request = request(Operation::Read, offset, &[alloc::vec![0; len]]);
    card.serve(&mut request)?;
    let bytes = request.buffers.into_iter().filter_map(Buffer::into_bytes);
    Ok(bytes.flatten().collect())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512) as u8).collect()
}

/// As long as it takes to look for a card again.
fn wait(card: &Card<SimHost>) {
    card.host.now.set(card.host.now.get() + LOOK_US);
}

#[test]
fn cards_of_every_kind_are_identified_and_keep_what_is_written() {
    for (kind, capacity) in [
        (Kind::Version1, 64 * MIB),
        (Kind::Standard, 512 * MIB),
        (Kind::HighCapacity, 4096 * MIB),
        (Kind::HighCapacity, 65536 * MIB),
    ] {
        let mut card = start(SimCard::new(kind, capacity));
        assert_eq!(card.capacity(), Ok(capacity), "{kind:?}");
        assert_eq!(card.locked(), None);
        let bytes = pattern(20 * 512);
        for offset in [0, 3 * 512, capacity - 20 * 512] {
            write(&mut card, offset, &bytes).expect("a write");
            let back = read(&mut card, offset, bytes.len());
            assert!(back.as_ref() == Ok(&bytes), "{kind:?} {offset}");
        }
    }
}

#[test]
fn a_card_larger_than_commands_can_address_is_refused() {
    // The whole of what bytes can address; and one that counts bytes, but has a size as those that count blocks.
    let card = start(SimCard::new(Kind::Standard, 1024 * MIB));
    assert_eq!(card.capacity(), Ok(1024 * MIB));
    let mut sim = SimCard::new(Kind::Standard, 1024 * MIB);
    sim.set_csd(126, 1);
    assert_eq!(start(sim).capacity(), Err(CardError::Capacity));
}

#[test]
fn a_card_is_as_fast_as_it_and_its_host_can_be() {
    let card = start(high_capacity());
    assert!(card.bus.is_fast && card.bus.has_four_lines);
    assert_eq!(card.hz, 50_000_000);
    let card = start(SimCard::new(Kind::Version1, 64 * MIB));
    assert!(!card.bus.is_fast && !card.bus.has_four_lines);
    assert_eq!(card.hz, 25_000_000);
    let mut host = SimHost::with(high_capacity());
    host.has_high_speed = false;
    let card = Card::start(host).expect("a card");
    assert!(!card.bus.is_fast && card.bus.has_four_lines);
}

#[test]
fn an_empty_slot_has_no_card() {
    assert_eq!(Card::start(SimHost::empty()).err(), Some(CardError::NoCard));
    let mut host = SimHost::empty();
    host.slot = Slot::Empty;
    let commands = host.commands.clone();
    assert_eq!(Card::start(host).err(), Some(CardError::NoCard));
    assert!(commands.borrow().is_empty(), "nobody is asked");
}

#[test]
fn a_card_that_never_gets_ready_is_given_up() {
    let mut sim = high_capacity();
    sim.busy_polls = usize::MAX;
    let card = Card::start(SimHost::with(sim));
    assert_eq!(card.err(), Some(CardError::Slow));
}

#[test]
fn what_protects_a_card_is_told() {
    let mut host = SimHost::with(high_capacity());
    host.is_locked = true;
    let card = Card::start(host).expect("a card");
    assert_eq!(card.locked(), Some(Locked::Switch));
    let mut sim = high_capacity();
    sim.set_csd(12, 1);
    let locked = start(sim.clone()).locked();
    assert_eq!(locked, Some(Locked::Card(Protection::Temporary)));
    sim.set_csd(13, 1);
    let locked = start(sim).locked();
    assert_eq!(locked, Some(Locked::Card(Protection::Permanent)));
}

#[test]
fn a_damaged_transfer_is_done_again_and_slower_if_need_be() {
    let bytes = pattern(8 * 512);
    for faults in 1..ATTEMPTS as usize {
        let mut card = start(high_capacity());
        card.host.fail(Fault::Damaged, faults);
        assert_eq!(write(&mut card, 512, &bytes), Ok(()), "{faults}");
        assert_eq!(card.bus.is_fast, faults == 1, "after {faults}");
        card.host.fail(Fault::Damaged, faults);
        assert!(read(&mut card, 512, bytes.len()).as_ref() == Ok(&bytes));
    }
    let mut card = start(high_capacity());
    card.host.fail(Fault::Damaged, ATTEMPTS as usize);
    let outcome = read(&mut card, 512, 512);
    assert_eq!(outcome, Err(BlockError::Garbled { offset: 512 }));
    assert!(read(&mut card, 512, 512).is_ok(), "it goes on");
}

#[test]
fn a_transfer_that_does_not_end_is_stopped_and_done_again() {
    let mut card = start(high_capacity());
    let bytes = pattern(8 * 512);
    card.host.fail(Fault::Stuck, 2);
    assert_eq!(write(&mut card, 0, &bytes), Ok(()));
    assert!(read(&mut card, 0, bytes.len()) == Ok(bytes));
    card.host.fail(Fault::Stuck, ATTEMPTS as usize);
    let outcome = read(&mut card, 0, 512);
    assert_eq!(outcome, Err(BlockError::TimedOut { offset: 0 }));
    assert!(read(&mut card, 0, 512).is_ok());
}

#[test]
fn what_the_card_itself_refuses_is_tried_twice_and_then_told() {
    const CARD_ECC_FAILED: u32 = 1 << 21;
    const WP_VIOLATION: u32 = 1 << 26;
    let mut card = start(high_capacity());
    card.host.fail(Fault::Status(CARD_ECC_FAILED), 1);
    assert!(read(&mut card, 0, 512).is_ok());
    card.host.fail(Fault::Status(CARD_ECC_FAILED), 2);
    let outcome = read(&mut card, 0, 512);
    assert_eq!(outcome, Err(BlockError::Device { offset: 0 }));
    card.host.fail(Fault::Status(WP_VIOLATION), 2);
    let outcome = write(&mut card, 0, &pattern(512));
    assert_eq!(outcome, Err(BlockError::ReadOnly));
    assert!(read(&mut card, 0, 512).is_ok());
}

#[test]
fn a_write_is_done_when_the_card_has_programmed_it() {
    let mut card = start(high_capacity());
    card.host.card().programs_us = 700_000;
    let before = card.host.now.get();
    assert_eq!(write(&mut card, 0, &pattern(512)), Ok(()));
    assert!(card.host.now.get() >= before + 700_000);
    card.host.card().programs_us = u64::MAX;
    let outcome = write(&mut card, 0, &pattern(512));
    assert_eq!(outcome, Err(BlockError::TimedOut { offset: 0 }));
}

#[test]
fn a_card_that_is_taken_out_is_gone_until_it_is_back() {
    for slot in [Slot::Unknown, Slot::Card] {
        let mut card = start(high_capacity());
        card.host.slot = slot;
        let bytes = pattern(512);
        write(&mut card, 0, &bytes).expect("a write");
        let sim = card.host.take_out();
        for _ in 0..2 {
            assert_eq!(
                read(&mut card, 0, 512),
                Err(BlockError::Removed),
                "{slot:?}"
            );
        }
        card.host.put_in(sim);
        wait(&card);
        assert!(read(&mut card, 0, 512) == Ok(bytes), "{slot:?}");
    }
}

#[test]
fn a_card_that_was_out_between_two_requests_is_set_up_anew() {
    let mut card = start(high_capacity());
    let bytes = pattern(512);
    write(&mut card, 0, &bytes).expect("a write");
    let sim = card.host.take_out();
    card.host.put_in(sim);
    assert!(read(&mut card, 0, 512) == Ok(bytes));
    assert!(card.bus.is_fast);
}

#[test]
fn another_card_is_not_written_to() {
    let mut card = start(high_capacity());
    let first = card.host.take_out();
    let mut second = high_capacity();
    second.set_cid(24, 0x1234);
    card.host.put_in(second);
    for _ in 0..2 {
        let outcome = write(&mut card, 0, &pattern(512));
        assert_eq!(outcome, Err(BlockError::Removed));
        wait(&card);
    }
    assert!(card.host.take_out().is_blank());
    card.host.put_in(first);
    wait(&card);
    assert_eq!(write(&mut card, 0, &pattern(512)), Ok(()));
}

#[test]
fn a_card_that_is_gone_is_looked_for_now_and_then_only() {
    let mut card = start(high_capacity());
    card.host.take_out();
    assert_eq!(read(&mut card, 0, 512), Err(BlockError::Removed));
    let before = card.host.commands.borrow().len();
    assert_eq!(read(&mut card, 0, 512), Err(BlockError::Removed));
    assert_eq!(card.host.commands.borrow().len(), before);
}

#[test]
fn erased_is_what_was_asked_for_and_no_more() {
    for kind in [Kind::Standard, Kind::HighCapacity] {
        let mut card = start(SimCard::new(kind, 64 * MIB));
        assert!(card.can_erase());
        let bytes = pattern(12 * 512);
        // Across the end of a piece.
        let offset = (4 << 20) - 6 * 512;
        write(&mut card, offset, &bytes).expect("a write");
        let mut discard = request(Operation::Discard { len: 8 * 512 }, offset + 512, &[]);
        assert_eq!(card.serve(&mut discard), Ok(()));
        let after = read(&mut card, offset, bytes.len()).expect("a read");
        let kept = after[..512] == bytes[..512] && after[9 * 512..] == bytes[9 * 512..];
        assert!(kept, "{kind:?}");
        assert!(
            after[512..9 * 512].iter().all(|byte| *byte == 0),
            "{kind:?}"
        );
    }
}

#[test]
fn a_cache_is_turned_on_and_flushed() {
    let mut sim = high_capacity();
    sim.give_cache();
    let mut card = start(sim);
    assert!(card.has_cache());
    write(&mut card, 0, &pattern(2048)).expect("a write");
    assert!(card.host.card().is_blank(), "it is in the cache");
    assert_eq!(card.serve(&mut request(Operation::Flush, 0, &[])), Ok(()));
    assert!(!card.host.card().is_blank());
    let durable = Operation::Write(Durability::Durable);
    let mut durable = request(durable, 4096, &[pattern(512)]);
    assert_eq!(card.serve(&mut durable), Ok(()));
    assert_eq!(card.host.card().in_cache(), 0);
}

#[test]
fn a_cache_is_flushed_though_the_answer_that_it_is_on_was_lost() {
    let mut sim = high_capacity();
    sim.give_cache();
    sim.loses_answer = true;
    let mut card = start(sim);
    assert!(card.has_cache());
    write(&mut card, 0, &pattern(2048)).expect("a write");
    assert_eq!(card.serve(&mut request(Operation::Flush, 0, &[])), Ok(()));
    assert_eq!(card.host.card().in_cache(), 0);
}

#[test]
fn what_a_cache_lost_is_told_by_every_flush() {
    let mut sim = high_capacity();
    sim.give_cache();
    let mut card = start(sim);
    write(&mut card, 0, &pattern(512)).expect("a write");
    let same = card.host.take_out();
    assert_eq!(read(&mut card, 0, 512), Err(BlockError::Removed));
    card.host.put_in(same);
    wait(&card);
    read(&mut card, 0, 512).expect("a card that is back");
    let lost = Err(BlockError::Device { offset: 0 });
    // Of another partition, perhaps.
    assert_eq!(card.serve(&mut request(Operation::Flush, 0, &[])), lost);
    assert_eq!(card.serve(&mut request(Operation::Flush, 0, &[])), lost);
    write(&mut card, 0, &pattern(512)).expect("a write");
    assert_eq!(card.serve(&mut request(Operation::Flush, 0, &[])), lost);
}

#[test]
fn a_card_without_a_cache_has_nothing_to_flush() {
    let mut card = start(high_capacity());
    assert!(!card.has_cache());
    assert_eq!(card.serve(&mut request(Operation::Flush, 0, &[])), Ok(()));
}

#[test]
fn an_error_at_any_moment_ends_in_an_answer_and_loses_nothing() {
    // Each command of a write in turn fails; then the write is done, or has failed, and the card works.
    let bytes = pattern(4 * 512);
    for fault in [Fault::Damaged, Fault::Stuck, Fault::NoAnswer] {
        for at in 0..12 {
            let mut card = start(high_capacity());
            card.host.fail_later(fault, at);
            let outcome = write(&mut card, 0, &bytes);
            wait(&card);
            // The failure may still be to come, or be what this read meets.
            let first = read(&mut card, 0, bytes.len());
            wait(&card);
            let back = first.or_else(|_| read(&mut card, 0, bytes.len()));
            let back = back.expect("a card that works");
            assert!(outcome.is_err() || back == bytes, "{fault:?} at {at}");
        }
    }
}

#[test]
fn many_blocks_are_one_command_which_is_stopped_after_an_error() {
    const WRITE_MULTIPLE: u8 = 25;
    const STOP: u8 = 12;
    let mut card = start(high_capacity());
    let commands = card.host.commands.clone();
    commands.borrow_mut().clear();
    write(&mut card, 1024, &pattern(4096)).expect("a write");
    assert_eq!(
        commands.borrow()[0],
        (WRITE_MULTIPLE, 2),
        "addressed by block"
    );
    commands.borrow_mut().clear();
    card.host.fail(Fault::Damaged, 1);
    write(&mut card, 1024, &pattern(4096)).expect("a write");
    let indices: Vec<u8> = commands.borrow().iter().map(|c| c.0).collect();
    assert_eq!(indices[..2], [WRITE_MULTIPLE, STOP]);
    let writes = indices.iter().filter(|index| **index == WRITE_MULTIPLE);
    assert_eq!(writes.count(), 2);
}

#[test]
fn a_controller_that_is_dead_is_an_error() {
    let mut host = SimHost::with(high_capacity());
    host.is_dead = true;
    let error = Card::start(host).err();
    assert_eq!(error, Some(CardError::Bus(BusError::Dead)));
}
