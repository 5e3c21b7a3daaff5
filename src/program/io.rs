//! The console, and the traits of crate `embedded-io`, which files have too.
//!
//! ```no_run
//! use pinfold::println;
//! use pinfold::program::io;
//!
//! # fn main() {
//! let mut line = alloc::string::String::new();
//! while io::stdin().read_line(&mut line) > 0 {
//!     println!("you said {}", line.trim_end());
//!     line.clear();
//! }
//! # }
//! # extern crate alloc;
//! ```

pub use embedded_io::{self, BufRead, Read, Seek, SeekFrom, Write};

use crate::console;
use crate::file::{self, File};
use crate::fs::FsError;
use crate::fs::block::BlockError;
use crate::print;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use embedded_io::{Error, ErrorKind, ErrorType};

/// What is typed at the console.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdin;

/// What is shown on the console.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdout;

/// The console's input.
pub fn stdin() -> Stdin {
    Stdin
}

/// The console's output.
pub fn stdout() -> Stdout {
    Stdout
}

const END: u8 = 0x04; // Ctrl-D
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

impl Stdin {
    /// The next byte, as it was typed: nothing is shown, nothing means anything. Waits for it.
    pub fn read_byte(self) -> u8 {
        console::read_byte()
    }

    /// Appends a line with its end to `line`, shown as it is typed at a terminal; how many bytes that were. Zero at the end of input:
    /// Ctrl-D at the start of a line.
    pub fn read_line(self, line: &mut String) -> usize {
        let mut typed: Vec<u8> = Vec::new();
        loop {
            match console::read_byte() {
                b'\r' | b'\n' => {
                    typed.push(b'\n');
                    break;
                }
                END if typed.is_empty() => return 0,
                BACKSPACE | DELETE => {
                    // A character may be several bytes; on the screen it is one column.
                    let before = typed.len();
                    while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                    if typed.len() < before && console::is_terminal() {
                        print!("\x08 \x08");
                    }
                }
                byte if byte >= b' ' || byte == b'\t' => {
                    typed.push(byte);
                    if console::is_terminal() {
                        console::write_bytes(&[byte]);
                    }
                }
                _ => {}
            }
        }
        if console::is_terminal() {
            print!("\n");
        }
        let typed = String::from_utf8_lossy(&typed);
        line.push_str(&typed);
        typed.len()
    }
}

impl ErrorType for Stdin {
    type Error = Infallible;
}

impl Read for Stdin {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        if let Some(first) = bytes.first_mut() {
            *first = self.read_byte();
            return Ok(1);
        }
        Ok(0)
    }
}

impl ErrorType for Stdout {
    type Error = Infallible;
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        console::write_bytes(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        console::flush();
        Ok(())
    }
}

impl Error for FsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound | Self::NothingMounted => ErrorKind::NotFound,
            Self::Exists => ErrorKind::AlreadyExists,
            Self::ReadOnly(_) => ErrorKind::PermissionDenied,
            Self::NotOffered | Self::NotMappable | Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::OutOfMemory => ErrorKind::OutOfMemory,
            Self::Corrupt(_) | Self::UnknownFormat => ErrorKind::InvalidData,
            Self::InvalidName | Self::NameTooLong => ErrorKind::InvalidInput,
            Self::Block(BlockError::TimedOut { .. }) => ErrorKind::TimedOut,
            _ => ErrorKind::Other,
        }
    }
}

macro_rules! file_traits {
    ($($file:ty),*) => {$(
        impl ErrorType for $file {
            type Error = FsError;
        }

        impl Read for $file {
            fn read(&mut self, bytes: &mut [u8]) -> Result<usize, FsError> {
                File::read(self, bytes)
            }
        }

        impl Write for $file {
            fn write(&mut self, bytes: &[u8]) -> Result<usize, FsError> {
                File::write_all(self, bytes)?;
                Ok(bytes.len())
            }

            /// Nothing is buffered here; [`File::sync_all`] makes it durable.
            fn flush(&mut self) -> Result<(), FsError> {
                Ok(())
            }
        }

        impl Seek for $file {
            fn seek(&mut self, to: SeekFrom) -> Result<u64, FsError> {
                File::seek(self, match to {
                    SeekFrom::Start(at) => file::SeekFrom::Start(at),
                    SeekFrom::End(by) => file::SeekFrom::End(by),
                    SeekFrom::Current(by) => file::SeekFrom::Current(by),
                })
            }
        }
    )*};
}

file_traits!(File, &File);
