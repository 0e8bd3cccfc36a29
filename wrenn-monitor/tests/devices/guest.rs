//! The init of the guests that `lab_devices.rs` boots: it uses its disk, its network and its source of randomness
//! as it is told to over the network.
//!
//! One command per connection, a line of words; the answer is a line that begins with `ok` or `failed`:
//! - `random`: reads the entropy device.
//! - `disk SEED`: writes the whole disk with what follows from the seed, and reads it back from the device.
//! - `check SEED`: reads that back again.
//! - `busy`: writes and checks the second half of the disk in the background, for ever.
//! - `laps`: how often that has been done; `failed` if a check ever went wrong.
//! - `swallow LEN`: takes that many bytes, and answers with their checksum.
//! - `send LEN SEED`: sends that many bytes that follow from the seed, in place of an answer.
//! - `end`: powers the machine off.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

#[path = "link.rs"]
mod link;
#[path = "pattern.rs"]
mod pattern;

use pattern::{Checksum, Pattern};

const DISK: &str = "/dev/vda";
/// What one write to the disk has: several segments.
const PIECE: usize = 256 * 1024;

/// How often the background work was done; the maximum once it went wrong.
static LAPS: AtomicU64 = AtomicU64::new(0);

fn main() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, at, kind, MountFlags::empty(), c"").expect("the guest mounts what it needs");
    }
    for path in std::fs::read_to_string("/modules.list").expect("there are modules").lines() {
        let module = File::open(path).expect("the module is there");
        match finit_module(&module, &CString::default(), 0) {
            // Also if the kernel has it built in.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => panic!("{path}: {error}"),
        }
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").expect("the kernel tells its command line");
    let ip = cmdline.split_whitespace().find_map(|word| word.strip_prefix("guest.ip=")).expect("an address");
    link::bring_up("eth0", ip.parse().expect("an IPv4 address"), 30).expect("the interface comes up");
    let listener = TcpListener::bind(("0.0.0.0", 7000)).expect("the port is free");
    println!("guest: listening");
    for stream in listener.incoming() {
        let stream = stream.expect("a connection");
        std::thread::spawn(move || {
            if let Err(error) = serve(stream) {
                println!("guest: {error}");
            }
        });
    }
}

fn serve(stream: TcpStream) -> io::Result<()> {
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let result = match words[0] {
        "random" => random(),
        "disk" => write_disk(number(1)).and_then(|()| check_disk(number(1))),
        "check" => check_disk(number(1)),
        "busy" => {
            std::thread::spawn(busy);
            Ok(String::new())
        }
        "laps" => match LAPS.load(Ordering::Relaxed) {
            u64::MAX => Err(io::Error::other("the background work went wrong")),
            laps => Ok(laps.to_string()),
        },
        "swallow" => swallow(&mut input, number(1)),
        "send" => return send(&mut output, number(1), number(2)),
        "end" => reboot(RebootCommand::PowerOff).map(|()| String::new()).map_err(Into::into),
        other => Err(io::Error::other(format!("what is {other}?"))),
    };
    match result {
        Ok(text) => writeln!(output, "ok {text}"),
        Err(error) => writeln!(output, "failed {error}"),
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 64];
    File::open("/dev/hwrng")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn disk_size() -> io::Result<u64> {
    let sectors = std::fs::read_to_string("/sys/block/vda/size")?;
    Ok(sectors.trim().parse::<u64>().map_err(io::Error::other)? * 512)
}

fn write_disk(seed: u64) -> io::Result<()> {
    let disk = OpenOptions::new().write(true).open(DISK)?;
    write_pieces(&disk, 0, disk_size()? / 2, seed)?;
    disk.sync_all()
}

fn check_disk(seed: u64) -> io::Result<String> {
    // Nothing of it may come from the guest's own memory.
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    check_pieces(&File::open(DISK)?, 0, disk_size()? / 2, seed)?;
    Ok(String::new())
}

fn write_pieces(disk: &File, start: u64, end: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut piece = vec![0; PIECE];
    for at in (start..end).step_by(PIECE) {
        pattern.fill(&mut piece);
        disk.write_all_at(&piece, at)?;
    }
    Ok(())
}

fn check_pieces(disk: &File, start: u64, end: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut piece, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    for at in (start..end).step_by(PIECE) {
        pattern.fill(&mut piece);
        disk.read_exact_at(&mut found, at)?;
        if piece != found {
            return Err(io::Error::other(format!("the disk has something else at {at:#x}")));
        }
    }
    Ok(())
}

fn busy() {
    for lap in 1.. {
        let worked = || -> io::Result<()> {
            let size = disk_size()?;
            let disk = OpenOptions::new().read(true).write(true).open(DISK)?;
            write_pieces(&disk, size / 2, size, lap)?;
            disk.sync_data()?;
            std::fs::write("/proc/sys/vm/drop_caches", "1")?;
            check_pieces(&disk, size / 2, size, lap)
        };
        if let Err(error) = worked() {
            println!("guest: lap {lap}: {error}");
            return LAPS.store(u64::MAX, Ordering::Relaxed);
        }
        LAPS.store(lap, Ordering::Relaxed);
    }
}

fn swallow(input: &mut impl Read, len: u64) -> io::Result<String> {
    let mut sum = Checksum::default();
    let mut chunk = [0; 65_536];
    let mut left = len;
    while left > 0 {
        let room = chunk.len().min(left as usize);
        let taken = input.read(&mut chunk[..room])?;
        if taken == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sum.add(&chunk[..taken]);
        left -= taken as u64;
    }
    Ok(sum.value().to_string())
}

fn send(output: &mut impl Write, len: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; PIECE];
    for _ in 0..len / PIECE as u64 {
        pattern.fill(&mut chunk);
        output.write_all(&chunk)?;
    }
    Ok(())
}
