//! What happened to which page when: a ring of events, for a person to look at later.
//!
//! ```text
//!   faults      mm::resolve, on a path that is taken only while somebody watches     \
//!   the cache   reads begin and end, pages are written back, evicted, dropped         > record -> ring -> dump
//!   the end     `stop` adds what is in memory by then                                /
//! ```
//!
//! An event is sixteen bytes. The ring has room for a number of them that is fixed when it is made; the newest stay, and
//! those that had to go are counted. Who reads the events goes from what was in memory at the end back through them: so
//! it is known of every moment, also where the oldest are lost.
//!
//! While nothing is recorded, [`record`] is a load and a branch. It is called in any context, with other locks held and
//! from handlers; it never waits: an event that comes while another one is being recorded is lost, and counted.

#[cfg(target_os = "none")]
mod command;

use super::cache::chunk::bits;
use super::fault::{Access, Outcome};
use super::object::Sharing;
use crate::sync::SpinLock;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What happened.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        const KINDS: &[(Kind, &str)] = &[$((Kind::$kind, $name),)*];
    };
}

kinds! {
    /// A fault: zeros were entered.
    Zero = "zero",
    /// A fault: a fresh page, or a group or block of them.
    Fresh = "fresh",
    /// A fault: a page was copied.
    Copied = "copy",
    /// A fault: a page may be stored to again.
    Reused = "reuse",
    /// A fault: a page of a file was entered for loads.
    File = "load",
    /// A fault: a page of a file was stored to for the first time.
    FileDirty = "store",
    /// A fault that another had resolved.
    Spurious = "spurious",
    /// A fault that was not resolved.
    Failed = "fatal",
    /// Pages were read by a call.
    Read = "read",
    /// Pages were made dirty by a call.
    Write = "write",
    /// Somebody waits for a page that is not in memory.
    Miss = "miss",
    /// Pages are being read that nobody waits for.
    Ahead = "ahead",
    /// Pages came into memory.
    Filled = "fill",
    /// Pages could not be read.
    NotRead = "unread",
    /// Dirty pages begin to be written.
    Writing = "flush",
    /// Dirty pages have been written.
    Written = "clean",
    /// Pages could not be written, and stay dirty.
    NotWritten = "unwritten",
    /// Pages had to go: they can be read again.
    Evicted = "evict",
    /// Pages of a file that was cut, or has ended.
    Dropped = "drop",
    /// Pages that are in memory when the recording ends.
    Here = "here",
    /// Of these, pages that differ from the device.
    HereDirty = "dirty",
}

impl Kind {
    /// What became of a fault.
    pub fn of_fault(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Zero => Self::Zero,
            Outcome::Fresh | Outcome::FreshGroup | Outcome::FreshBlock => Self::Fresh,
            Outcome::Copied => Self::Copied,
            Outcome::Reused => Self::Reused,
            Outcome::File => Self::File,
            Outcome::FileDirty => Self::FileDirty,
            Outcome::Spurious => Self::Spurious,
            Outcome::Failed => Self::Failed,
        }
    }

    fn name(self) -> &'static str {
        KINDS[self as usize].1
    }
}

/// What is at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's number, or [`NO_FILE`].
    pub file: u32,
    /// The page of it; without a file, of all addresses.
    pub page: u64,
    /// How the map relates to the file.
    pub sharing: Option<Sharing>,
}

impl Place {
    /// What a fault there comes to.
    pub fn likely(&self, access: Access) -> Kind {
        match (self.sharing, access) {
            (Some(Sharing::Shared), Access::Write) => Kind::FileDirty,
            (Some(Sharing::CopyOnWrite), Access::Write) => Kind::Copied,
            (Some(_), _) => Kind::File,
            (None, Access::Write) => Kind::Fresh,
            (None, _) => Kind::Zero,
        }
    }
}

/// Pages an event can speak of at most.
const MOST_PAGES: u64 = (1 << 12) - 1;

/// Of no file: memory of a program.
pub const NO_FILE: u32 = 0;
/// Stands for all files with higher numbers.
const LAST_FILE: u32 = (1 << 20) - 1;

/// What happened to which pages when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Ticks since the recording began.
    pub time: u64,
    /// What happened.
    pub kind: Kind,
    /// The number of the file, or [`NO_FILE`].
    pub file: u32,
    /// The first page: of the file, or of all addresses.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// An event in the ring: time and file; count, kind and page.
type Packed = [u64; 2];

impl Event {
    fn pack(&self) -> Packed {
        let time = self.time.min((1 << 44) - 1);
        let first = self.first.min((1 << 36) - 1);
        [
            time << 20 | u64::from(self.file.min(LAST_FILE)),
            self.count.min(MOST_PAGES) << 52 | (self.kind as u64) << 36 | first,
        ]
    }

    fn unpack([when, what]: Packed) -> Self {
        Self {
            time: when >> 20,
            kind: KINDS[(what >> 36 & 0xff) as usize].0,
            file: (when as u32) & LAST_FILE,
            first: what & ((1 << 36) - 1),
            count: what >> 52,
        }
    }

    /// Takes in what comes right behind in the same way.
    fn absorb(&mut self, next: &Self) -> bool {
        let is_more = matches!(self.kind, Kind::Read | Kind::Write | Kind::Here)
            && self.kind == next.kind
            && self.file == next.file
            && self.first + self.count == next.first
            && self.count + next.count <= MOST_PAGES;
        self.count += if is_more { next.count } else { 0 };
        is_more
    }
}

/// Events of a segment: memory is had in pieces of 64 KiB, which are found more easily than one large one.
const SEGMENT: usize = 4096;

/// The newest events.
pub struct Ring {
    segments: Vec<Vec<Packed>>,
    /// How many there have been.
    written: u64,
    clock: fn() -> u64,
    began: u64,
    /// Files that have ended since: there is no other way to their names.
    ended: Vec<Name>,
}

/// Ended files whose names are kept.
const MOST_ENDED: usize = 1024;

impl Ring {
    /// An empty ring with room for `bytes`, rounded up; `None` where there is no memory for it.
    pub fn new(bytes: u64, clock: fn() -> u64) -> Option<Self> {
        let segment = SEGMENT * size_of::<Packed>();
        let count = usize::try_from(bytes).ok()?.div_ceil(segment).max(1);
        let mut segments = Vec::new();
        segments.try_reserve_exact(count).ok()?;
        for _ in 0..count {
            let mut segment = Vec::new();
            segment.try_reserve_exact(SEGMENT).ok()?;
            segment.resize(SEGMENT, [0; 2]);
            segments.push(segment);
        }
        let mut ended = Vec::new();
        ended.try_reserve_exact(MOST_ENDED).ok()?;
        Some(Self {
            segments,
            written: 0,
            clock,
            began: clock(),
            ended,
        })
    }

    /// Events there is room for.
    pub fn capacity(&self) -> u64 {
        (self.segments.len() * SEGMENT) as u64
    }

    /// Events that were recorded, those included that had to go.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Events that had to go.
    pub fn overwritten(&self) -> u64 {
        self.written.saturating_sub(self.capacity())
    }

    fn slot(&mut self, number: u64) -> &mut Packed {
        let at = (number % self.capacity()) as usize;
        &mut self.segments[at / SEGMENT][at % SEGMENT]
    }

    fn push(&mut self, kind: Kind, file: u32, pages: Range<u64>) {
        let time = (self.clock)() - self.began;
        let mut first = pages.start;
        while first < pages.end {
            let event = Event {
                time,
                kind,
                file,
                first,
                count: (pages.end - first).min(MOST_PAGES),
            };
            first += event.count;
            if self.written > 0 {
                let last = self.slot(self.written - 1);
                let mut both = Event::unpack(*last);
                if both.absorb(&event) {
                    *last = both.pack();
                    continue;
                }
            }
            *self.slot(self.written) = event.pack();
            self.written += 1;
        }
    }

    /// The events that are left, the oldest first.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        (self.overwritten()..self.written).map(|number| {
            let at = (number % self.capacity()) as usize;
            Event::unpack(self.segments[at / SEGMENT][at % SEGMENT])
        })
    }
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static RING: SpinLock<Option<Ring>> = SpinLock::new(None);
/// Events that came while another one was being recorded.
static MISSED: AtomicU64 = AtomicU64::new(0);

/// Whether events are recorded.
#[inline(always)]
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Something happened to `pages` of `file`.
#[inline(always)]
pub fn record(kind: Kind, file: u32, pages: Range<u64>) {
    if is_on() {
        record_now(kind, file, pages);
    }
}

/// The same, to those of 64 pages from `first` on that `mask` has a bit for.
#[inline(always)]
pub fn record_mask(kind: Kind, file: u32, first: u64, mask: u64) {
    if is_on() && mask != 0 {
        runs(mask).for_each(|run| record_now(kind, file, first + run.start..first + run.end));
    }
}

#[cold]
fn record_now(kind: Kind, file: u32, pages: Range<u64>) {
    match RING.try_lock() {
        Some(mut ring) => {
            if let Some(ring) = &mut *ring {
                ring.push(kind, file, pages);
            }
        }
        None => {
            MISSED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A file ends while events are recorded: its name is kept for the dump.
#[cold]
pub fn file_ended(name: Name) {
    if let Some(mut ring) = RING.try_lock()
        && let Some(ring) = &mut *ring
        && ring.ended.len() < MOST_ENDED
    {
        ring.ended.push(name);
    }
}

/// Runs of ones, as ranges of bits.
fn runs(mut mask: u64) -> impl Iterator<Item = Range<u64>> {
    core::iter::from_fn(move || {
        let start = bits(mask).next()?;
        let len = (mask >> start).trailing_ones();
        mask &= !(u64::MAX >> (u64::BITS - len) << start);
        Some(u64::from(start)..u64::from(start + len))
    })
}

/// Begins to record into `ring`.
pub fn start(ring: Ring) {
    IS_ON.store(false, Ordering::Relaxed);
    let before = RING.lock().replace(ring);
    MISSED.store(0, Ordering::Relaxed);
    IS_ON.store(true, Ordering::Relaxed);
    drop(before);
}

/// Ends the recording: what `now_here` adds to the ring is what is in memory now. `false` where nothing was recorded.
pub fn stop(now_here: impl FnOnce(&mut dyn FnMut(Kind, u32, u64, u64))) -> bool {
    if !IS_ON.swap(false, Ordering::Relaxed) {
        return false;
    }
    now_here(&mut |kind, file, first, mask| {
        if let Some(ring) = &mut *RING.lock() {
            runs(mask).for_each(|run| ring.push(kind, file, first + run.start..first + run.end));
        }
    });
    true
}

/// Lends the ring, which is not to be recorded into meanwhile; `None` where there is none.
pub fn with_ring<R>(f: impl FnOnce(&Ring) -> R) -> Option<R> {
    let ring = RING.lock().take()?;
    let result = f(&ring);
    let mut place = RING.lock();
    let ring = match &*place {
        None => place.replace(ring),
        Some(_) => Some(ring),
    };
    drop(place);
    drop(ring);
    Some(result)
}

/// Forgets what was recorded.
pub fn clear() {
    IS_ON.store(false, Ordering::Relaxed);
    let ring = RING.lock().take();
    drop(ring);
}

/// How many events there are, how many there is room for, and how many were lost; `None` where there is no ring.
pub fn counts() -> Option<(u64, u64, u64)> {
    let ring = RING.lock();
    let ring = ring.as_ref()?;
    let lost = ring.overwritten() + MISSED.load(Ordering::Relaxed);
    Some((ring.written() - ring.overwritten(), ring.capacity(), lost))
}

/// What a dump says of a file.
pub struct Name {
    /// Its number in events.
    pub number: u32,
    /// Its bytes.
    pub size: u64,
    /// What people call it.
    pub name: String,
}

impl Ring {
    /// Files that have ended since the recording began.
    pub fn ended(&self) -> &[Name] {
        &self.ended
    }

    /// Writes all events as text: a header, a line for each file, a line for each event, and how many there were.
    ///
    /// An event's line has the time in nanoseconds, as `ns` makes them of ticks, the kind, the file, the first page, and the
    /// number of pages where they are several.
    pub fn dump(
        &self,
        names: &[Name],
        ns: fn(u64) -> u64,
        out: &mut dyn fmt::Write,
    ) -> fmt::Result {
        let count = self.written - self.overwritten();
        let lost = self.overwritten() + MISSED.load(Ordering::Relaxed);
        writeln!(out, "pinfold-trace 1\nevents {count} lost {lost}")?;
        for Name { number, size, name } in names {
            let name = name.replace(char::is_control, "?");
            writeln!(out, "file {number} {size} {name}")?;
        }
        for event in self.events() {
            let Event {
                time,
                kind,
                file,
                first,
                ..
            } = event;
            write!(out, "{} {} {file} {first}", ns(time), kind.name())?;
            match event.count {
                1 => writeln!(out)?,
                count => writeln!(out, " {count}")?,
            }
        }
        writeln!(out, "end {count}")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::{Event, KINDS, Kind, MOST_PAGES, Name, Ring, SEGMENT, runs};
    use core::sync::atomic::{AtomicU64, Ordering};
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn ring(bytes: u64) -> Ring {
        static NOW: AtomicU64 = AtomicU64::new(0);
        Ring::new(bytes, || NOW.fetch_add(1, Ordering::Relaxed)).unwrap()
    }

    #[test]
    fn an_event_is_what_it_was_when_it_is_unpacked() {
        for (i, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, i);
            let event = Event {
                time: (1 << 44) - 1 - i as u64,
                kind: *kind,
                file: (1 << 20) - 1 - i as u32,
                first: (1 << 36) - 1 - i as u64,
                count: MOST_PAGES - i as u64,
            };
            assert_eq!(Event::unpack(event.pack()), event);
        }
    }

    #[test]
    fn what_is_too_large_is_the_largest_there_is() {
        let event = Event {
            time: u64::MAX,
            kind: Kind::Zero,
            file: u32::MAX,
            first: u64::MAX,
            count: u64::MAX,
        };
        let unpacked = Event::unpack(event.pack());
        assert_eq!(
            (unpacked.time, unpacked.file),
            ((1 << 44) - 1, (1 << 20) - 1)
        );
        assert_eq!(
            (unpacked.first, unpacked.count),
            ((1 << 36) - 1, MOST_PAGES)
        );
    }

    #[test]
    fn the_newest_events_stay_and_the_others_are_counted() {
        let mut ring = ring(1);
        assert_eq!(ring.capacity(), SEGMENT as u64);
        for page in 0..SEGMENT as u64 + 100 {
            ring.push(Kind::Miss, 1, page..page + 1);
        }
        assert_eq!(ring.overwritten(), 100);
        let pages: Vec<u64> = ring.events().map(|event| event.first).collect();
        assert_eq!(pages, (100..SEGMENT as u64 + 100).collect::<Vec<_>>());
    }

    #[test]
    fn reads_that_follow_each_other_are_one_event_and_faults_are_not() {
        let mut ring = ring(1);
        for page in 0..3 {
            ring.push(Kind::Read, 1, page..page + 1);
        }
        ring.push(Kind::Read, 2, 3..4);
        ring.push(Kind::File, 2, 4..5);
        ring.push(Kind::File, 2, 5..6);
        let events: Vec<_> = ring.events().map(|e| (e.file, e.first, e.count)).collect();
        assert_eq!(events, [(1, 0, 3), (2, 3, 1), (2, 4, 1), (2, 5, 1)]);
    }

    #[test]
    fn a_long_run_is_several_events() {
        let mut ring = ring(1);
        ring.push(Kind::Dropped, 1, 5..10_005);
        let events: Vec<_> = ring.events().map(|e| (e.first, e.count)).collect();
        assert_eq!(events, [(5, 4095), (4100, 4095), (8195, 1810)]);
    }

    #[test]
    fn runs_of_a_mask_are_found() {
        assert!(runs(0).next().is_none());
        assert!(runs(u64::MAX).eq(core::iter::once(0..64)));
        assert!(runs(1 << 63 | 0b0110_1000).eq([3..4, 5..7, 63..64]));
    }

    #[test]
    fn a_dump_has_a_line_for_each_event() {
        let mut ring = ring(1);
        ring.push(Kind::Miss, 3, 16..17);
        ring.push(Kind::Ahead, 3, 17..32);
        let name = Name {
            number: 3,
            size: 70_000,
            name: "/a\nb".to_string(),
        };
        let mut text = String::new();
        ring.dump(&[name], |_| 0, &mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "pinfold-trace 1",
                "events 2 lost 0",
                "file 3 70000 /a?b",
                "0 miss 3 16",
                "0 ahead 3 17 15",
                "end 2"
            ]
        );
    }
}
