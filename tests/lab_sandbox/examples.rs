//! The examples, run as a user runs them: each in a process of its own, to its end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{HostState, TestHost};

/// Runs the built example `name` on a data directory of its own, and expects that it succeeds and leaves nothing.
fn run(name: &str, monitor: Option<&Path>) -> Output {
    let test = TestHost::new();
    let before = HostState::of(&test.data());
    let mut example = Command::new(built(name));
    example.env("WRENN_DATA", test.data());
    if let Some(monitor) = monitor {
        example.env("WRENN_MONITOR", monitor);
    }
    let output = example.output().expect("the example runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    before.assert_same_but_for(
        &HostState::of(&test.data()),
        &["/host.json", "/lock", "/sandboxes", "/templates", "/branches"],
    );
    output
}

/// Cargo builds examples beside its tests: `debug/deps/<this test>`, `debug/examples/<name>`.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this test's binary");
    let path = own.ancestors().nth(2).expect("a directory for each profile").join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_quickstart_keeps_its_promises() {
    let text = stdout(&run("quickstart", None));
    for phase in [
        "boot to agent ready",
        "exec",
        "full pause",
        "resume to first answered exec",
        "diff pause",
        "resume again",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(phase) && line.contains(" ms | ")),
            "no {phase:?} in: {text}"
        );
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("ok: ")).count(), 5, "{text}");
}

#[test]
fn the_quickstart_runs_on_firecracker_too() {
    let Some(firecracker) = firecracker() else {
        println!(
            "SKIP: no Firecracker on this machine; set WRENN_FIRECRACKER to its path, or install it on PATH"
        );
        return;
    };
    let text = stdout(&run("quickstart", Some(&firecracker)));
    assert_eq!(text.lines().filter(|line| line.starts_with("ok: ")).count(), 5, "{text}");
}

/// `$WRENN_FIRECRACKER`, or `firecracker` on `PATH`.
fn firecracker() -> Option<PathBuf> {
    let named = std::env::var_os("WRENN_FIRECRACKER").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = &named {
        assert!(path.is_file(), "WRENN_FIRECRACKER={} is no file", path.display());
    }
    named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("firecracker")).find(|program| program.is_file())
    })
}

#[test]
fn ten_lines_are_enough() {
    let text = stdout(&run("ten_lines", None));
    assert_eq!(text, "hello from a microVM\nstill there: print('hello from a microVM')\n");
}

#[test]
fn one_binary_is_enough() {
    // Without another monitor to fall back on.
    assert_eq!(stdout(&run("single_binary", Some(Path::new("/nonexistent")))), "one binary is enough\n");
}
