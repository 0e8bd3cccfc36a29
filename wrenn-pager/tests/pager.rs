//! The pager's life, without guests: when it ends, when it goes on, and what is told of it.
#![allow(clippy::disallowed_methods, reason = "tests look at processes with the machine's own tools")]

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use wrenn_base::{Bytes, SandboxId};
use wrenn_pager::{ImageFiles, PagerClient, PagerError, PagerProgram, PagerSpec, PagingOptions, Prefetch};
use wrenn_storage::{LayerDir, MemoryImage};

const LIMIT: Duration = Duration::from_secs(10);
const OPTIONS: PagingOptions =
    PagingOptions { share: true, prefetch: Prefetch::WorkingSet, prefetch_limit: u64::MAX };

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self) -> PagerClient {
        let program = PagerProgram::discover(Some(Path::new(env!("CARGO_BIN_EXE_wrenn-pager")))).unwrap();
        let spec = PagerSpec { program, socket: self.path("pager.sock"), log: self.path("pager.log") };
        PagerClient::start(&spec).unwrap()
    }

    /// An image of a guest of 16 pages.
    fn image(&self) -> ImageFiles {
        let layers = LayerDir::open(self.path("layers")).unwrap();
        let mut image = MemoryImage::write_full(Bytes(16 << 12), &layers).unwrap();
        image.put(0, &[7; 4 << 12]).unwrap();
        image.finish().unwrap().image.save(&self.path("manifest")).unwrap();
        ImageFiles {
            manifest: self.path("manifest"),
            layers: self.path("layers"),
            working_set: self.path("working-set"),
        }
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn it_ends_with_its_program() {
    let place = Place::new();
    let pager = place.start();
    let pid = pager.pid().unwrap();
    assert!(is_there(pid));
    drop(pager);
    assert!(!is_there(pid), "it has ended, and is collected, by the time that it was let go of");
    assert!(PagerClient::find(&place.path("pager.sock")).is_none());
}

#[test]
fn what_was_begun_can_be_ended_and_begun_again() {
    let place = Place::new();
    let (pager, id) = (place.start(), SandboxId::random());
    for _ in 0..3 {
        pager.begin(&id, place.image(), OPTIONS).unwrap();
        assert_eq!(pager.sandboxes().unwrap(), std::slice::from_ref(&id));
        let status = pager.status(&id).unwrap().unwrap();
        assert_eq!((status.stats.faults, status.failure), (0, None));
        assert!(pager.end(&id).unwrap().is_some());
        assert!(pager.end(&id).unwrap().is_none(), "to end it twice is fine");
        assert!(pager.status(&id).unwrap().is_none());
    }
}

#[test]
fn an_image_that_cannot_be_opened_is_refused_with_the_reason() {
    let place = Place::new();
    let (pager, id) = (place.start(), SandboxId::random());
    let mut image = place.image();
    image.manifest = place.path("nothing");
    let Err(PagerError::Refused { why, .. }) = pager.begin(&id, image, OPTIONS) else {
        panic!("it was opened")
    };
    assert!(why.contains("nothing"), "{why}");
    let socket = place.path("uffd.sock");
    let refused = pager.serve(&id, &socket, true, || {});
    assert!(matches!(refused, Err(PagerError::Refused { .. })), "{refused:?}");
    assert!(!socket.exists());
    assert_eq!(pager.sandboxes().unwrap(), []);
}

#[test]
fn who_does_not_keep_to_the_protocol_is_ended_and_the_reason_told() {
    let place = Place::new();
    let (pager, id) = (place.start(), SandboxId::random());
    pager.begin(&id, place.image(), OPTIONS).unwrap();
    let socket = place.path("uffd.sock");
    pager.serve(&id, &socket, true, || panic!("it lives")).unwrap();
    assert!(socket.exists());
    let twice = pager.serve(&id, &place.path("other.sock"), true, || {});
    assert!(matches!(twice, Err(PagerError::Refused { .. })), "{twice:?}");
    let intruder = "import socket, sys, time\n\
        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'nonsense'); time.sleep(60)";
    let mut intruder = Command::new("/usr/bin/python3").arg("-c").arg(intruder).arg(&socket).spawn().unwrap();
    assert_eq!(intruder.wait().unwrap().signal(), Some(9));
    let why = pager.status(&id).unwrap().unwrap().failure;
    assert!(why.is_some(), "it was told before the process was ended");
    pager.end(&id).unwrap();
    assert!(!socket.exists());
}

#[test]
fn a_program_that_finds_it_keeps_it_as_well() {
    let place = Place::new();
    let pager = place.start();
    let pid = pager.pid().unwrap();
    let found = PagerClient::find(&place.path("pager.sock")).unwrap();
    let id = SandboxId::random();
    pager.begin(&id, place.image(), OPTIONS).unwrap();
    assert_eq!(found.sandboxes().unwrap(), [id]);
    drop(found);
    assert!(is_there(pid) && pager.sandboxes().is_ok(), "its own program is still there");
}

#[test]
fn its_death_is_told_for_each_sandbox_that_it_served() {
    let place = Place::new();
    let (pager, tell) = (place.start(), mpsc::channel());
    let ids = [SandboxId::random(), SandboxId::random()];
    for (number, id) in ids.iter().enumerate() {
        pager.begin(id, place.image(), OPTIONS).unwrap();
        let lost = tell.0.clone();
        let on_loss = move || lost.send(number).unwrap();
        pager.serve(id, &place.path(&format!("{number}.sock")), true, on_loss).unwrap();
    }
    assert!(!pager.is_lost());
    let pid = Pid::from_raw(pager.pid().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let mut lost = [tell.1.recv_timeout(LIMIT).unwrap(), tell.1.recv_timeout(LIMIT).unwrap()];
    lost.sort_unstable();
    assert_eq!(lost, [0, 1]);
    assert!(pager.is_lost());
    assert!(matches!(pager.status(&ids[0]), Err(PagerError::Unreachable { .. })));
    let too_late = pager.watch_over(&ids[0], || {});
    assert!(matches!(too_late, Err(PagerError::Unreachable { .. })));
}

#[test]
fn what_is_no_request_does_not_disturb_it() {
    let place = Place::new();
    let pager = place.start();
    for junk in [&b"\n"[..], b"{\"begin\":{}}\n", b"{\"keep\":1}\n", &[b'['; 100_000], b"\xff\xfe\n"] {
        let mut stream = std::os::unix::net::UnixStream::connect(place.path("pager.sock")).unwrap();
        // It may hang up before it has been told all.
        let _ = io::Write::write_all(&mut stream, junk);
        drop(stream);
    }
    assert_eq!(pager.sandboxes().unwrap(), []);
}

#[test]
fn only_its_owner_can_connect_and_a_name_that_was_left_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    fs::write(place.path("pager.sock"), "").unwrap();
    let _pager = place.start();
    let mode = fs::metadata(place.path("pager.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
