//! A disk for QEMU that remembers what was done to it and when, and fails or stalls as told.
//!
//! It speaks the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md) on a socket, with two exports: `disk`,
//! whose requests are done in any order and recorded, and `marks`, whose writes are marks in the same record.

use crate::record::{Event, Record, SECTOR, apply};
use pinfold::fs::sim_disk::Random;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Bytes of the export `marks`.
const MARKS_SIZE: u64 = 64 << 10;

/// How long a request waits for others to change places with.
const COMPANY: Duration = Duration::from_micros(50);

// Requests.
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Requests that go wrong, counted from 0 by their kind.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Reads that fail.
    pub reads: std::ops::Range<u64>,
    /// Writes that fail, after some of their sectors were written.
    pub writes: std::ops::Range<u64>,
    /// Flushes that fail.
    pub flushes: std::ops::Range<u64>,
    /// The request, of any kind, before which the disk does nothing for a while.
    pub stall: Option<(u64, Duration)>,
}

struct Pending {
    kind: u16,
    cookie: [u8; 8],
    offset: usize,
    len: usize,
    bytes: Vec<u8>,
    /// Entries of the record when it was asked for.
    begun: usize,
}

struct State {
    image: Vec<u8>,
    events: Vec<Event>,
    pending: Vec<Pending>,
    random: Random,
    faults: Faults,
    /// Served so far: reads, writes, flushes.
    served: [u64; 3],
    failed: u64,
    connections: u32,
    is_closed: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The disk, and the socket it is reached by.
pub struct Disk {
    shared: Arc<Shared>,
    base: Vec<u8>,
    socket: PathBuf,
}

/// What became of a disk.
pub struct Outcome {
    /// All that happened.
    pub record: Record,
    /// What is on it.
    pub image: Vec<u8>,
    /// Reads, writes and flushes that were served.
    pub served: [u64; 3],
    /// Requests that failed on purpose.
    pub failed: u64,
}

impl Disk {
    /// Serves a disk with these contents at `socket`; `seed` decides the order of what is asked for at the same time.
    pub fn serve(base: Vec<u8>, socket: &Path, seed: u64, faults: Faults) -> io::Result<Self> {
        drop(std::fs::remove_file(socket));
        let listener = UnixListener::bind(socket)?;
        let state = State {
            image: base.clone(),
            events: Vec::new(),
            pending: Vec::new(),
            random: Random::new(seed),
            faults,
            served: [0; 3],
            failed: 0,
            connections: 0,
            is_closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let mut state = accepting.lock();
                if state.is_closed {
                    return;
                }
                state.connections += 1;
                drop(state);
                let shared = accepting.clone();
                thread::spawn(move || {
                    // Whoever is at the other end may be killed at any moment.
                    let _ = shared.serve(&stream);
                    shared.lock().connections -= 1;
                    shared.changed.notify_all();
                });
            }
        });
        Ok(Self {
            shared,
            base,
            socket: socket.to_path_buf(),
        })
    }

    /// Ends it, once nobody is connected any more.
    pub fn finish(self) -> Outcome {
        let mut state = self.shared.lock();
        while state.connections > 0 {
            state = self.shared.wait(state);
        }
        state.is_closed = true;
        let outcome = Outcome {
            record: Record {
                base: self.base,
                events: std::mem::take(&mut state.events),
            },
            image: std::mem::take(&mut state.image),
            served: state.served,
            failed: state.failed,
        };
        drop(state);
        // Wakes who accepts, to see that it is over.
        drop(UnixStream::connect(&self.socket));
        drop(std::fs::remove_file(&self.socket));
        outcome
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with it")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("no thread panics with it")
    }

    fn serve(self: &Arc<Self>, stream: &UnixStream) -> io::Result<()> {
        let size = self.lock().image.len() as u64;
        match negotiate(stream, size)? {
            Export::Marks => self.serve_marks(stream),
            Export::Disk => {
                let writer = stream.try_clone()?;
                let shared = self.clone();
                let worker = thread::spawn(move || shared.work(&writer));
                let ended = self.take_requests(stream);
                self.lock().pending.clear();
                self.changed.notify_all();
                // It ends when it finds nobody to answer to.
                drop(stream.shutdown(std::net::Shutdown::Both));
                self.lock().pending.push(Pending::end());
                self.changed.notify_all();
                let _ = worker.join();
                ended
            }
        }
    }

    /// Puts what is asked for into the queue, until the connection ends.
    fn take_requests(&self, mut stream: &UnixStream) -> io::Result<()> {
        loop {
            let mut request = read_request(&mut stream)?;
            let is_end = request.kind == DISCONNECT;
            let mut state = self.lock();
            request.begun = state.events.len();
            if is_end {
                return Ok(());
            }
            state.pending.push(request);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Does what is in the queue, in any order.
    fn work(&self, mut stream: &UnixStream) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            while state.pending.is_empty() {
                state = self.wait(state);
            }
            if state.pending.len() == 1 {
                let waited = self.changed.wait_timeout(state, COMPANY);
                state = waited.expect("no thread panics with it").0;
            }
            // The connection's end may have emptied it.
            if state.pending.is_empty() {
                continue;
            }
            let count = state.pending.len() as u64;
            let chosen = state.random.below(count) as usize;
            let request = state.pending.swap_remove(chosen);
            if request.kind == DISCONNECT {
                return Ok(());
            }
            let stall = state.stall();
            drop(state);
            if let Some(time) = stall {
                thread::sleep(time);
            }
            let cookie = request.cookie;
            let served = self.lock().serve(request);
            let (error, bytes) = match served {
                Ok(bytes) => (0, bytes),
                Err(error) => (error, Vec::new()),
            };
            reply(&mut stream, cookie, error, &bytes)?;
        }
    }

    fn serve_marks(&self, mut stream: &UnixStream) -> io::Result<()> {
        loop {
            let request = read_request(&mut stream)?;
            let mut bytes = Vec::new();
            match request.kind {
                READ => bytes.resize(request.len, 0),
                WRITE => {
                    let step = request.bytes[..8].try_into().expect("eight bytes");
                    self.lock()
                        .events
                        .push(Event::Mark(u64::from_le_bytes(step)));
                }
                DISCONNECT => return Ok(()),
                _ => {}
            }
            reply(&mut stream, request.cookie, 0, &bytes)?;
        }
    }
}

impl State {
    fn stall(&mut self) -> Option<Duration> {
        let all: u64 = self.served.iter().sum();
        self.faults
            .stall
            .take_if(|(number, _)| all >= *number)
            .map(|(_, time)| time)
    }

    /// Counts a request, and says whether it is to fail.
    fn fails(&mut self, kind: usize) -> bool {
        let number = self.served[kind];
        self.served[kind] += 1;
        let faults = [
            &self.faults.reads,
            &self.faults.writes,
            &self.faults.flushes,
        ];
        let fails = faults[kind].contains(&number);
        self.failed += u64::from(fails);
        fails
    }

    fn serve(&mut self, request: Pending) -> Result<Vec<u8>, u32> {
        let range = request.offset..request.offset + request.len;
        if range.end > self.image.len() {
            return Err(EINVAL);
        }
        match request.kind {
            READ if self.fails(0) => Err(EIO),
            READ => Ok(self.image[range].to_vec()),
            WRITE => {
                let fails = self.fails(1);
                let mut event = Event::Write {
                    offset: request.offset,
                    bytes: request.bytes,
                    begun: request.begun,
                };
                let Self { random, image, .. } = self;
                apply(image, &event, |_| !fails || random.below(2) == 0);
                if fails {
                    // As it has become.
                    if let Event::Write { bytes, .. } = &mut event {
                        bytes.copy_from_slice(&image[range]);
                    }
                }
                self.events.push(event);
                if fails { Err(EIO) } else { Ok(Vec::new()) }
            }
            FLUSH if self.fails(2) => Err(EIO),
            FLUSH => {
                self.events.push(Event::Flush {
                    covers: request.begun,
                });
                Ok(Vec::new())
            }
            _ => Err(EINVAL),
        }
    }
}

impl Pending {
    fn end() -> Self {
        Self {
            kind: DISCONNECT,
            cookie: [0; 8],
            offset: 0,
            len: 0,
            bytes: Vec::new(),
            begun: 0,
        }
    }
}

enum Export {
    Disk,
    Marks,
}

/// The handshake, in its "fixed newstyle": options are refused but for those that choose the export.
fn negotiate(mut stream: &UnixStream, size: u64) -> io::Result<Export> {
    const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
    const FIXED_NEWSTYLE: u16 = 1;
    const NO_ZEROES: u32 = 2;
    const HAS_FLAGS_AND_FLUSH: u16 = 1 | 4;
    const EXPORT_NAME: u32 = 1;
    const GO: u32 = 7;
    const ACK: u32 = 1;
    const INFO: u32 = 3;
    const UNSUPPORTED: u32 = 1 << 31 | 1;

    stream.write_all(b"NBDMAGIC")?;
    stream.write_all(&OPTION_MAGIC)?;
    stream.write_all(&(FIXED_NEWSTYLE | NO_ZEROES as u16).to_be_bytes())?;
    let client = u32::from_be_bytes(read(&mut stream)?);
    loop {
        if read(&mut stream)? != OPTION_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let option = u32::from_be_bytes(read(&mut stream)?);
        let len = u32::from_be_bytes(read(&mut stream)?) as usize;
        let mut data = vec![0; len.min(1 << 16)];
        stream.read_exact(&mut data)?;
        let mut answer = |kind: u32, data: &[u8]| {
            let mut bytes = 0x3_e889_0455_65a9u64.to_be_bytes().to_vec();
            for word in [option, kind, data.len() as u32] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend(data);
            stream.write_all(&bytes)
        };
        let name = match option {
            EXPORT_NAME => &data[..],
            // Length of the name, the name, wishes.
            GO if len > 8 => &data[4..],
            _ => {
                answer(UNSUPPORTED, &[])?;
                continue;
            }
        };
        let (export, size) = match name.starts_with(b"marks") {
            true => (Export::Marks, MARKS_SIZE),
            false => (Export::Disk, size),
        };
        let mut about = size.to_be_bytes().to_vec();
        about.extend(HAS_FLAGS_AND_FLUSH.to_be_bytes());
        if option == GO {
            answer(INFO, &[&[0, 0], &about[..]].concat())?;
            // Least, best and largest number of bytes.
            let sizes = [SECTOR as u32, 4096, 32 << 20].map(u32::to_be_bytes);
            answer(INFO, &[&[0, 3], sizes.as_flattened()].concat())?;
            answer(ACK, &[])?;
        } else {
            stream.write_all(&about)?;
            if client & NO_ZEROES == 0 {
                stream.write_all(&[0; 124])?;
            }
        }
        return Ok(export);
    }
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_request(stream: &mut impl Read) -> io::Result<Pending> {
    if u32::from_be_bytes(read(stream)?) != 0x2560_9513 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let _flags: [u8; 2] = read(stream)?;
    let kind = u16::from_be_bytes(read(stream)?);
    let cookie = read(stream)?;
    let offset = u64::from_be_bytes(read(stream)?) as usize;
    let len = u32::from_be_bytes(read(stream)?) as usize;
    let mut bytes = vec![0; if kind == WRITE { len } else { 0 }];
    stream.read_exact(&mut bytes)?;
    Ok(Pending {
        kind,
        cookie,
        offset,
        len,
        bytes,
        begun: 0,
    })
}

fn reply(stream: &mut impl Write, cookie: [u8; 8], error: u32, bytes: &[u8]) -> io::Result<()> {
    let mut message = 0x6744_6698u32.to_be_bytes().to_vec();
    message.extend(error.to_be_bytes());
    message.extend(cookie);
    message.extend(bytes);
    stream.write_all(&message)
}
