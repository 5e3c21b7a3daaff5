//! The image in QEMU, on a disk of ours.

use crate::disk::{Disk, Faults, Outcome};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How QEMU is to be ended before the image ends it.
const LIMIT: Duration = Duration::from_secs(300);

static BOOTS: AtomicU64 = AtomicU64::new(0);

/// One boot.
pub struct Boot<'a> {
    /// The image: `kernel8.img`.
    pub kernel: &'a Path,
    /// Memory, as QEMU's `-m` takes it.
    pub memory: &'a str,
    /// What the machine runs before it powers off.
    pub command: &'a str,
    /// What is on the disk.
    pub disk: Vec<u8>,
    /// What of it goes wrong.
    pub faults: Faults,
    /// Decides in which order requests are done.
    pub seed: u64,
    /// Ends QEMU after so long, in the midst of whatever it does.
    pub killed_after: Option<Duration>,
}

/// What became of it.
pub struct Ended {
    /// What the console said.
    pub text: String,
    /// The status the image left; none where QEMU was killed.
    pub status: Option<i32>,
    /// It took longer than anything may take.
    pub is_hung: bool,
    /// What became of the disk.
    pub disk: Outcome,
}

impl Boot<'_> {
    /// Boots, and waits for the end.
    pub fn run(self) -> Result<Ended, String> {
        let number = BOOTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("pinfold-{}-{number}.socket", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let disk = Disk::serve(self.disk, &socket, self.seed, self.faults)
            .map_err(|error| format!("{}: {error}", socket.display()))?;
        let mut qemu = command(self.kernel, self.memory, self.command, &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| format!("qemu-system-aarch64: {error}"))?;
        let mut output = qemu.stdout.take().ok_or("QEMU has no output")?;
        let reader = thread::spawn(move || {
            let mut text = Vec::new();
            output.read_to_end(&mut text).map(|_| text)
        });
        let (status, is_hung) = wait(&mut qemu, self.killed_after)?;
        let text = reader.join().map_err(|_| "the reader has ended")?;
        let text = text.map_err(|error| format!("QEMU's output: {error}"))?;
        Ok(Ended {
            text: String::from_utf8_lossy(&text).replace('\r', ""),
            status,
            is_hung,
            disk: disk.finish(),
        })
    }
}

fn command(kernel: &Path, memory: &str, append: &str, socket: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-aarch64");
    qemu.args(["-machine", "virt", "-cpu", "cortex-a72", "-m", memory])
        .args(["-display", "none", "-nic", "none", "-monitor", "none"])
        .args(["-semihosting-config", "enable=on,target=native"])
        .args([
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", append]);
    for export in ["disk", "marks"] {
        let server = format!("server.type=unix,server.path={}", socket.display());
        qemu.arg("-blockdev")
            .arg(format!(
                "driver=nbd,node-name={export},{server},export={export}"
            ))
            .arg("-device")
            .arg(format!("virtio-blk-device,drive={export}"));
    }
    qemu
}

/// The status, and whether it had to be killed because it took too long.
fn wait(qemu: &mut Child, killed_after: Option<Duration>) -> Result<(Option<i32>, bool), String> {
    let started = Instant::now();
    loop {
        let ended = qemu.try_wait().map_err(|error| format!("QEMU: {error}"))?;
        if let Some(status) = ended {
            return Ok((status.code(), false));
        }
        let is_hung = started.elapsed() > LIMIT;
        if is_hung || killed_after.is_some_and(|time| started.elapsed() >= time) {
            // It may have ended by itself.
            drop(qemu.kill());
            let status = qemu.wait().map_err(|error| format!("QEMU: {error}"))?;
            return Ok((status.code(), is_hung));
        }
        thread::sleep(Duration::from_millis(2));
    }
}
