//! A guest's disk, network and randomness, before and after a snapshot, and while one is taken.

mod machine;
#[path = "devices/pattern.rs"]
mod pattern;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use machine::faults::FaultServer;
use machine::{Monitor, SnapshotFiles, initramfs, kernel, merge, scratch};
use pattern::{Checksum, Pattern};

const DISK: u64 = 16 << 20;
const PIECE: usize = 256 * 1024;
const TRAFFIC: u64 = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// The address of the network of four that a test has to itself: guest and host.
fn addresses(test: u8) -> (String, String) {
    (format!("169.254.77.{}", test * 4 + 1), format!("169.254.77.{}", test * 4 + 2))
}

/// A TAP with the host's address; gone when it is dropped.
struct Tap(String);

impl Tap {
    fn new(name: &str, host: &str) -> Self {
        let tap = Self(format!("{name}{}", std::process::id()));
        ip(&["tuntap", "add", &tap.0, "mode", "tap"]);
        ip(&["addr", "add", &format!("{host}/30"), "dev", &tap.0]);
        ip(&["link", "set", &tap.0, "up"]);
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&["link", "del", &self.0]);
    }
}

fn ip(args: &[&str]) {
    #[allow(clippy::disallowed_methods)] // A test's setting up.
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success() || std::thread::panicking(), "ip {args:?}");
}

/// A guest with all devices, and what is needed to talk to it.
struct Guest {
    monitor: Monitor,
    address: String,
    disk: PathBuf,
}

impl Guest {
    fn boot(dir: &Path, tap: &Tap, test: u8, vcpus: u8) -> Option<Self> {
        Self::boot_with(dir, tap, test, vcpus, "")
    }

    /// As [`Self::boot`], with more members for the disk's description.
    fn boot_with(dir: &Path, tap: &Tap, test: u8, vcpus: u8, drive: &str) -> Option<Self> {
        let kernel = kernel()?;
        let modules = kernel.with_file_name("initramfs.cpio");
        let Ok(mut initrd) = std::fs::read(&modules) else {
            eprintln!("SKIP: no initramfs with the kernel's modules at {}", modules.display());
            return None;
        };
        // The kernel unpacks one archive after the other: ours replaces the agent as /init.
        initrd.extend(initramfs::with_init(env!("CARGO_BIN_EXE_wrenn-lab-devices")));
        let initrd_path = dir.join("initrd");
        std::fs::write(&initrd_path, initrd).unwrap();
        let disk = dir.join("disk");
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        let (address, _) = addresses(test);

        let monitor = Monitor::start(dir, "boot");
        monitor.put(
            "/machine-config",
            &format!(r#"{{"vcpu_count":{vcpus},"mem_size_mib":128,"track_dirty_pages":true}}"#),
        );
        let args = format!("console=ttyS0 quiet loglevel=1 reboot=k panic=-1 guest.ip={address}");
        monitor.put(
            "/boot-source",
            &format!(
                r#"{{"kernel_image_path":{kernel:?},"initrd_path":{initrd_path:?},"boot_args":{args:?}}}"#
            ),
        );
        monitor.put(
            "/drives/data",
            &format!(
                r#"{{"drive_id":"data","path_on_host":{disk:?},"is_root_device":false,"is_read_only":false,
                    "cache_type":"Writeback"{drive}}}"#
            ),
        );
        monitor.put(
            "/network-interfaces/eth0",
            &format!(r#"{{"iface_id":"eth0","host_dev_name":{:?},"guest_mac":"06:00:a9:fe:4d:01"}}"#, tap.0),
        );
        monitor.put("/entropy", "{}");
        monitor.put("/actions", r#"{"action_type":"InstanceStart"}"#);
        let guest = Self { monitor, address, disk };
        guest.monitor.wait_for_text("guest: listening");
        Some(guest)
    }

    fn connect(&self, command: &str) -> TcpStream {
        let give_up = Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect((self.address.as_str(), 7000)) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < give_up, "{error}\n{}", self.monitor.console()),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{command}").unwrap();
        stream
    }

    /// What the guest answers to `command`, which it must be able to do.
    #[track_caller]
    fn ask(&self, command: &str) -> String {
        let answer = answer(self.connect(command));
        let text = answer.strip_prefix("ok ");
        text.unwrap_or_else(|| panic!("{command}: {answer:?}\n{}", self.monitor.console())).to_owned()
    }

    /// Sends a lot in both directions.
    fn exchange(&self, seed: u64) {
        let (mut pattern, mut chunk, mut sum) = (Pattern::new(seed), vec![0; PIECE], Checksum::default());
        let mut stream = self.connect(&format!("swallow {TRAFFIC}"));
        for _ in 0..TRAFFIC / PIECE as u64 {
            pattern.fill(&mut chunk);
            sum.add(&chunk);
            stream.write_all(&chunk).unwrap();
        }
        assert_eq!(answer(stream), format!("ok {}", sum.value()), "what the guest received");
        let mut stream = self.connect(&format!("send {TRAFFIC} {seed}"));
        let (mut pattern, mut found) = (Pattern::new(seed), vec![0; PIECE]);
        for at in 0..TRAFFIC / PIECE as u64 {
            pattern.fill(&mut chunk);
            stream.read_exact(&mut found).unwrap();
            assert!(chunk == found, "what the guest sent differs in piece {at}");
        }
    }

    fn use_everything(&self, seed: u64) {
        let (first, second) = (self.ask("random"), self.ask("random"));
        assert!(first.len() == 128 && first != second, "{first} {second}");
        self.ask(&format!("disk {seed}"));
        let (mut pattern, mut piece, mut found) = (Pattern::new(seed), vec![0; PIECE], vec![0; PIECE]);
        let disk = File::open(&self.disk).unwrap();
        for at in (0..DISK / 2).step_by(PIECE) {
            pattern.fill(&mut piece);
            disk.read_exact_at(&mut found, at).unwrap();
            assert!(piece == found, "the host's file differs at {at:#x}");
        }
        self.exchange(seed);
    }

    /// The same guest after its snapshot was loaded by another monitor.
    fn moved_to(self, monitor: Monitor) -> Self {
        Self { monitor, ..self }
    }
}

fn answer(stream: TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end_matches('\n').to_owned()
}

/// Loads the snapshot in a fresh monitor, with `tap` in place of the TAP that it was made with.
fn load(dir: &Path, name: &str, files: &SnapshotFiles, backend: (&str, &Path), tap: &Tap) -> Monitor {
    let monitor = Monitor::start(dir, name);
    let SnapshotFiles { state, .. } = files;
    let (kind, path) = backend;
    monitor.put(
        "/snapshot/load",
        &format!(
            r#"{{"snapshot_path":{state:?},"mem_backend":{{"backend_type":{kind:?},"backend_path":{path:?}}},
                "track_dirty_pages":true,"resume_vm":true,
                "network_overrides":[{{"iface_id":"eth0","host_dev_name":{:?}}}]}}"#,
            tap.0
        ),
    );
    monitor
}

#[test]
fn devices_work_before_and_after_a_snapshot() {
    let dir = scratch();
    let (_, host) = addresses(0);
    let tap = Tap::new("wda", &host);
    let Some(guest) = Guest::boot(dir.path(), &tap, 0, 2) else { return };
    guest.use_everything(1);
    guest.monitor.pause();
    let files = SnapshotFiles::new(dir.path(), "full");
    guest.monitor.snapshot("Full", &files);
    guest.monitor.resume();
    guest.use_everything(1);
    guest.monitor.pause();
    drop(tap);

    let tap = Tap::new("wdb", &host);
    let monitor = load(dir.path(), "restored", &files, ("File", &files.memory), &tap);
    let guest = guest.moved_to(monitor);
    guest.ask("check 1");
    guest.use_everything(2);
    drop(guest.connect("end"));
    assert_eq!(guest.monitor.exit_code(), 0);
}

/// However fast the machine, so much cannot pass in less time.
#[test]
fn a_limited_disk_is_no_faster_than_its_limit_before_and_after_a_snapshot() {
    const RATE: u64 = 2 << 20;
    // A half of it is written, and read back; the first second's worth passes at once.
    let at_least = Duration::from_secs((DISK - RATE) / RATE);
    let dir = scratch();
    let (_, host) = addresses(3);
    let tap = Tap::new("wdl", &host);
    let limit = format!(r#","rate_limiter":{{"bandwidth":{{"size":{RATE},"refill_time":1000}}}}"#);
    let Some(guest) = Guest::boot_with(dir.path(), &tap, 3, 1, &limit) else { return };
    let begun = Instant::now();
    guest.ask("disk 1");
    let took = begun.elapsed();
    assert!(took >= at_least, "written within {took:?}");
    guest.monitor.pause();
    let files = SnapshotFiles::new(dir.path(), "full");
    guest.monitor.snapshot("Full", &files);
    drop(tap);

    let tap = Tap::new("wdm", &host);
    let monitor = load(dir.path(), "restored", &files, ("File", &files.memory), &tap);
    let guest = guest.moved_to(monitor);
    let begun = Instant::now();
    guest.ask("disk 2");
    let took = begun.elapsed();
    assert!(took >= at_least, "written within {took:?} after the restore");
    drop(guest.connect("end"));
    assert_eq!(guest.monitor.exit_code(), 0);
}

#[test]
fn a_busy_disk_survives_snapshot_after_snapshot() {
    let dir = scratch();
    let (_, host) = addresses(1);
    let tap = Tap::new("wdc", &host);
    let Some(mut guest) = Guest::boot(dir.path(), &tap, 1, 1) else { return };
    guest.ask("busy");
    let mut server: Option<FaultServer> = None;
    let mut memory: Option<PathBuf> = None;
    for round in 0..3 {
        let laps: u64 = guest.ask("laps").parse().unwrap();
        guest.exchange(round);
        let give_up = Instant::now() + PATIENCE;
        while guest.ask("laps").parse::<u64>().unwrap() <= laps {
            assert!(
                Instant::now() < give_up,
                "round {round}: the disk does nothing\n{}",
                guest.monitor.console()
            );
        }
        guest.monitor.pause();
        let mut files = SnapshotFiles::new(dir.path(), &format!("round{round}"));
        match memory.take() {
            None => guest.monitor.snapshot("Full", &files),
            Some(base) => {
                guest.monitor.snapshot("Diff", &files);
                // Not over the file that the machine still runs from.
                let whole = dir.path().join(format!("round{round}.whole"));
                std::fs::copy(&base, &whole).unwrap();
                merge(&whole, &files.memory);
                files.memory = whole;
            }
        }
        let Guest { monitor, address, disk } = guest;
        // It lets go of its TAP, which the next one takes.
        drop(monitor);
        drop(server.take());
        let name = format!("restored{round}");
        let monitor = if round % 2 == 0 {
            load(dir.path(), &name, &files, ("File", &files.memory), &tap)
        } else {
            let socket = dir.path().join(format!("uffd{round}"));
            server = Some(FaultServer::start(&socket, &files.memory));
            load(dir.path(), &name, &files, ("Uffd", &socket), &tap)
        };
        memory = Some(files.memory);
        guest = Guest { monitor, address, disk };
    }
    guest.exchange(9);
    guest.ask("laps");
}
