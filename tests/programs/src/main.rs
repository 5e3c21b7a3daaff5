//! Uses each part of what programs are given, as its documentation shows it, and checks what comes of it.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use pinfold::println;
use pinfold::program::fs::{self, File, FsError};
use pinfold::program::io::{self, Read, Seek, SeekFrom, Write};
use pinfold::program::mmap::{Mmap, MmapMut};
use pinfold::program::random::rand_core::{Rng, TryRng};
use pinfold::program::time::{Instant, NoClock, SystemTime, UNIX_EPOCH};
use pinfold::program::{env, process, random, thread};

pinfold::program!(main);
pinfold::program! { name: "count", summary: "count the bytes of files", main: count }
pinfold::program! { name: "fails", summary: "return an error", main: || Err::<(), _>("as it should") }
pinfold::program! { name: "echo", summary: "repeat lines", main: echo }
pinfold::program! { name: "leaves", summary: "leave from another thread", main: leaves }

struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: core::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(alloc::format!("{error}"))
    }
}

fn main(words: &[String]) -> Result<(), Failed> {
    environment(words);
    threads().map_err(|error| Failed(alloc::format!("{error}")))?;
    clocks();
    random_numbers()?;
    if fs::exists("/")? {
        files()?;
        mapped_files()?;
    }
    println!("all uses work");
    Ok(())
}

fn environment(words: &[String]) {
    let all: Vec<String> = env::args().collect();
    assert_eq!(all[0], "uses");
    assert_eq!(&all[1..], words);
    assert_eq!(env::var("NO_SUCH"), Err(env::VarError::NotPresent));
    for (name, value) in env::vars() {
        println!("environment: {name}={value}");
        assert_eq!(env::var(&name), Ok(value));
    }
}

fn threads() -> Result<(), thread::SpawnError> {
    let words = ["a", "few", "words"];
    let len = thread::scope(|scope| {
        let first = scope.spawn(|| words[0].len())?;
        let rest = scope.spawn(|| words[1..].iter().map(|word| word.len()).sum::<usize>())?;
        Ok::<_, thread::SpawnError>(first.join() + rest.join())
    })?;
    assert_eq!(len, 9);
    assert_eq!(thread::spawn(|| 6 * 7)?.join(), 42);
    thread::yield_now();
    Ok(())
}

fn clocks() {
    let start = Instant::now();
    thread::sleep(Duration::from_millis(20));
    assert!(start.elapsed() >= Duration::from_millis(20));
    match SystemTime::now() {
        Ok(now) => {
            println!(
                "clock: {} s since 1970",
                now.duration_since(UNIX_EPOCH).as_secs()
            );
            assert!(now > UNIX_EPOCH);
        }
        Err(NoClock) => println!("clock: none"),
    }
}

fn random_numbers() -> Result<(), Failed> {
    let mut generator = match random::generator() {
        Ok(generator) => generator,
        Err(error) => {
            println!("random: {error}");
            assert!(random::SysRng.try_next_u64().is_err());
            return Ok(());
        }
    };
    let dice = generator.next_u32() % 6 + 1;
    assert!((1..=6).contains(&dice));
    let mut bytes = [[0; 64]; 2];
    random::fill(&mut bytes[0])?;
    random::SysRng.try_fill_bytes(&mut bytes[1])?;
    assert!(bytes[0] != bytes[1] && bytes[0] != [0; 64]);
    println!("random: {:016x}", random::SysRng.try_next_u64()?);
    Ok(())
}

fn files() -> Result<(), FsError> {
    fs::create_dir_all("/uses/a/b")?;
    assert_eq!(fs::create_dir("/uses"), Err(FsError::Exists));
    fs::write("/uses/a/b/text", "some text\n")?;
    assert_eq!(fs::read_to_string("/uses/a/b/text")?, "some text\n");
    assert_eq!(fs::copy("/uses/a/b/text", "/uses/copy")?, 10);
    fs::rename("/uses/copy", "/uses/a/moved")?;
    assert!(!fs::exists("/uses/copy")?);
    let mut names: Vec<_> = fs::read_dir("/uses/a")?.collect::<Result<_, _>>()?;
    names.sort_by(|a, b| a.file_name().cmp(b.file_name()));
    assert_eq!(names.len(), 2);
    assert_eq!(names[0].file_name(), b"b");
    assert_eq!(names[0].file_type()?, fs::FileType::Directory);
    assert_eq!(names[1].metadata()?.size, 10);
    assert!(fs::read_dir("/uses/a/moved").is_err());

    let mut file = File::options()
        .read(true)
        .write(true)
        .open("/uses/a/moved")?;
    Seek::seek(&mut file, SeekFrom::End(-5))?;
    let mut word = [0; 4];
    file.read_exact(&mut word).map_err(|_| FsError::NotFound)?;
    assert_eq!(&word, b"text");
    Write::write_all(&mut file, b"!")?;
    file.sync_all()?;
    drop(file);
    assert_eq!(fs::read("/uses/a/moved")?, b"some text!");

    assert_eq!(fs::remove_dir("/uses/a"), Err(FsError::NotEmpty));
    for path in ["/uses/a/moved", "/uses/a/b/text"] {
        fs::remove_file(path)?;
    }
    for path in ["/uses/a/b", "/uses/a", "/uses"] {
        fs::remove_dir(path)?;
    }
    Ok(())
}

fn mapped_files() -> Result<(), Failed> {
    fs::write("/mapped", [b'x'; 10_000])?;
    let file = File::options().read(true).write(true).open("/mapped")?;
    // SAFETY: nobody else changes the file.
    let mut map = unsafe { MmapMut::map_mut(&file)? };
    map[9_999] = b'!';
    map.flush()?;
    drop(map);
    // SAFETY: as above.
    let map = unsafe { Mmap::map(&file)? };
    assert_eq!(&map[9_998..], b"x!");
    assert_eq!(map.pin(5_000..6_000)?.len(), 1_000);
    drop(map);
    fs::remove_file("/mapped")?;
    Ok(())
}

fn count(paths: &[String]) -> Result<(), FsError> {
    for path in paths {
        println!("{} {path}", fs::read(path)?.len());
    }
    Ok(())
}

fn echo() {
    let mut line = String::new();
    while io::stdin().read_line(&mut line) > 0 {
        println!("you said {}", line.trim_end());
        line.clear();
    }
}

fn leaves() {
    let _ = thread::spawn(|| process::exit(33));
    loop {
        thread::sleep(Duration::from_secs(1_000));
    }
}
