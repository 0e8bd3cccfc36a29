//! Builds that are cut off half way.
//!
//! The archive is a pipe of which only the first half is ever written: the build is in its midst for as long as the test
//! likes.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::Bench;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

/// Starts a build that waits for the rest of its archive; the pipe ends with the returned file.
fn start(bench: &Bench) -> (Child, File) {
    let pipe = bench.path("pipe");
    let _ = fs::remove_file(&pipe);
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let child = bench
        .command(&["image", "build", "half", "--no-guest", "--from", pipe.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("first", vec![1; 200_000]), ("second", vec![2; 2_000_000])] {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &content[..]).unwrap();
    }
    let archive = tar.into_inner().unwrap();
    // Opens when the build has opened its end.
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    writer.write_all(&archive[..1_000_000]).unwrap();
    let start = Instant::now();
    while !unpacked_something(bench) {
        assert!(start.elapsed() < Duration::from_secs(60), "the build never began");
        std::thread::sleep(Duration::from_millis(10));
    }
    (child, writer)
}

fn unpacked_something(bench: &Bench) -> bool {
    bench
        .staged()
        .iter()
        .any(|name| bench.data().join("images").join(name).join("scratch/root/first").exists())
}

fn interrupt(bench: &Bench, signal: Signal) -> ExitStatus {
    let (mut child, _writer) = start(bench);
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap()
}

#[test]
fn a_killed_build_registers_nothing_and_is_swept() {
    let bench = Bench::new();
    let status = interrupt(&bench, Signal::KILL);
    assert_eq!(status.signal(), Some(9));
    assert_eq!(bench.staged().len(), 1, "nobody could clean up");
    let said = bench.succeeds(&["image", "ls"]);
    assert!(said.contains("no images"), "{said}");
    assert!(bench.staged().is_empty(), "the next command has swept it");
    assert!(bench.image("half").is_err());
}

#[test]
fn an_interrupted_build_cleans_up_after_itself() {
    let bench = Bench::new();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let status = interrupt(&bench, signal);
        assert_eq!(status.code(), Some(code));
        assert_eq!(bench.staged(), Vec::<String>::new());
    }
    assert!(bench.image("half").is_err());
}

#[test]
fn a_living_build_is_not_swept_by_another_command() {
    let bench = Bench::new();
    let (mut child, writer) = start(&bench);
    bench.succeeds(&["image", "ls"]);
    assert_eq!(bench.staged().len(), 1);
    assert!(unpacked_something(&bench));
    // The archive ends too early: the build fails by itself.
    drop(writer);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(bench.staged().is_empty());
}
