//! Machines that are saved and brought back, again and again.

mod machine;

use std::path::Path;
use std::time::Instant;

use machine::faults::FaultServer;
use machine::{Monitor, SnapshotFiles, data_bytes, kernel, load_request, merge, scratch};

const MIB: u64 = 1 << 20;

fn machine_of(vcpus: u8) -> String {
    format!(r#"{{"vcpu_count":{vcpus},"mem_size_mib":128,"track_dirty_pages":true}}"#)
}

/// Boots a guest, lets it work, pauses it and takes a full snapshot. The tick that it had got to.
fn boot_and_save(dir: &Path, vcpus: u8) -> Option<(Monitor, SnapshotFiles, u64)> {
    let kernel = kernel()?;
    let monitor = Monitor::boot(dir, &kernel, &machine_of(vcpus), "");
    monitor.wait_for_tick(5);
    let start = Instant::now();
    monitor.pause();
    eprintln!("pause: {} us", start.elapsed().as_micros());
    let files = SnapshotFiles::new(dir, "full");
    let start = Instant::now();
    monitor.snapshot("Full", &files);
    eprintln!(
        "full snapshot: {} ms, {} KiB of data",
        start.elapsed().as_millis(),
        data_bytes(&files.memory) / 1024
    );
    let tick = monitor.ticks();
    Some((monitor, files, tick))
}

/// The guest goes on where it was, and its memory is right.
#[track_caller]
fn goes_on(monitor: &Monitor, from: u64) {
    let first = monitor.first_tick();
    eprintln!("first line after {} ms", monitor.age_ms());
    assert!((from..=from + 2).contains(&first), "saved at tick {from}, back at tick {first}");
    monitor.wait_for_tick(from + 5);
}

fn restores_from_file(vcpus: u8) {
    let dir = scratch();
    let Some((saved, files, tick)) = boot_and_save(dir.path(), vcpus) else { return };
    // The saved machine is unharmed.
    saved.resume();
    saved.wait_for_tick(tick + 3);
    drop(saved);
    for round in 0..3 {
        let monitor = Monitor::start(dir.path(), &format!("file{round}"));
        monitor.load(&files.state, "File", &files.memory);
        eprintln!("File: loaded and resumed after {} ms", monitor.age_ms());
        goes_on(&monitor, tick);
    }
}

#[test]
fn one_vcpu_is_restored_from_a_file() {
    restores_from_file(1);
}

#[test]
fn two_vcpus_are_restored_from_a_file() {
    restores_from_file(2);
}

fn restores_from_fault_server(vcpus: u8) {
    let dir = scratch();
    let Some((saved, files, tick)) = boot_and_save(dir.path(), vcpus) else { return };
    drop(saved);
    for round in 0..3 {
        let socket = dir.path().join(format!("faults{round}.sock"));
        let server = FaultServer::start(&socket, &files.memory);
        let monitor = Monitor::start(dir.path(), &format!("uffd{round}"));
        monitor.load(&files.state, "Uffd", &socket);
        eprintln!("Uffd: loaded and resumed after {} ms", monitor.age_ms());
        goes_on(&monitor, tick);
        let pages = server.served();
        eprintln!("{pages} pages were faulted in");
        assert!(pages > 0 && pages < 128 * MIB / 4096 / 2, "{pages} pages is not lazy");
    }
}

#[test]
fn two_vcpus_are_restored_lazily() {
    restores_from_fault_server(2);
}

/// Generation after generation: restore (from a file and lazily in turn), work, save the difference, merge it.
fn survives_generations(vcpus: u8) {
    let dir = scratch();
    let Some((saved, full, mut tick)) = boot_and_save(dir.path(), vcpus) else { return };
    drop(saved);
    let mut state = full.state.clone();
    for generation in 0..4 {
        let monitor = Monitor::start(dir.path(), &format!("gen{generation}"));
        let socket = dir.path().join(format!("gen{generation}.faults"));
        let _server = if generation % 2 == 0 {
            monitor.load(&state, "File", &full.memory);
            None
        } else {
            let server = FaultServer::start(&socket, &full.memory);
            monitor.load(&state, "Uffd", &socket);
            Some(server)
        };
        goes_on(&monitor, tick);
        monitor.pause();
        let diff = SnapshotFiles::new(dir.path(), &format!("diff{generation}"));
        let start = Instant::now();
        monitor.snapshot("Diff", &diff);
        tick = monitor.ticks();
        let (changed, all) = (data_bytes(&diff.memory), data_bytes(&full.memory));
        eprintln!("diff: {} ms, {} of {} KiB", start.elapsed().as_millis(), changed / 1024, all / 1024);
        assert!(changed > 0 && changed < all / 2, "{changed} of {all} bytes");
        drop(monitor);
        merge(&full.memory, &diff.memory);
        state = diff.state;
    }
}

#[test]
fn two_vcpus_survive_generations_of_diffs() {
    survives_generations(2);
}

#[test]
fn a_diff_without_tracking_holds_what_was_written() {
    let dir = scratch();
    let Some((saved, full, tick)) = boot_and_save(dir.path(), 1) else { return };
    drop(saved);
    let monitor = Monitor::start(dir.path(), "untracked");
    let request = load_request(&full.state, "File", &full.memory).replace(r#""track_dirty_pages":true,"#, "");
    monitor.put("/snapshot/load", &request);
    goes_on(&monitor, tick);
    monitor.pause();
    let diff = SnapshotFiles::new(dir.path(), "diff");
    monitor.snapshot("Diff", &diff);
    let tick = monitor.ticks();
    drop(monitor);
    assert!(data_bytes(&diff.memory) < data_bytes(&full.memory) / 2);
    merge(&full.memory, &diff.memory);
    let monitor = Monitor::start(dir.path(), "again");
    monitor.load(&diff.state, "File", &full.memory);
    goes_on(&monitor, tick);
}

#[test]
fn a_full_snapshot_of_a_restored_machine_stands_alone() {
    let dir = scratch();
    let Some((saved, full, tick)) = boot_and_save(dir.path(), 1) else { return };
    drop(saved);
    for backend in ["File", "Uffd"] {
        let socket = dir.path().join("faults.sock");
        let server = (backend == "Uffd").then(|| FaultServer::start(&socket, &full.memory));
        let monitor = Monitor::start(dir.path(), backend);
        monitor.load(&full.state, backend, if server.is_some() { &socket } else { &full.memory });
        goes_on(&monitor, tick);
        monitor.pause();
        let files = SnapshotFiles::new(dir.path(), &format!("second-{backend}"));
        monitor.snapshot("Full", &files);
        let tick = monitor.ticks();
        drop((monitor, server));
        let monitor = Monitor::start(dir.path(), &format!("third-{backend}"));
        monitor.load(&files.state, "File", &files.memory);
        goes_on(&monitor, tick);
    }
}

#[test]
fn a_snapshot_is_not_written_over_what_its_machine_reads() {
    let dir = scratch();
    let Some((saved, full, tick)) = boot_and_save(dir.path(), 1) else { return };
    drop(saved);
    let monitor = Monitor::start(dir.path(), "restored");
    monitor.load(&full.state, "File", &full.memory);
    goes_on(&monitor, tick);
    let fresh = SnapshotFiles::new(dir.path(), "fresh");
    let why = monitor.refused("PUT", "/snapshot/create", &fresh.request("Full"));
    assert!(why.contains("pause it first"), "{why}");
    monitor.pause();
    let over = SnapshotFiles { memory: full.memory.clone(), ..SnapshotFiles::new(dir.path(), "over") };
    let why = monitor.refused("PUT", "/snapshot/create", &over.request("Diff"));
    assert!(why.contains("was restored from and still reads"), "{why}");
    let one = SnapshotFiles { memory: over.state.clone(), state: over.state.clone() };
    let why = monitor.refused("PUT", "/snapshot/create", &one.request("Full"));
    assert!(why.contains("a file of its own"), "{why}");
    // Neither the machine nor its file took harm.
    let tick = monitor.ticks();
    monitor.resume();
    monitor.wait_for_tick(tick + 3);
}

#[test]
fn what_is_no_snapshot_is_refused_and_the_monitor_can_load_another() {
    let dir = scratch();
    let Some((saved, full, tick)) = boot_and_save(dir.path(), 1) else { return };
    drop(saved);
    let monitor = Monitor::start(dir.path(), "picky");
    let bytes = std::fs::read(&full.state).unwrap();
    let bad = dir.path().join("bad.state");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let mut newer = bytes.clone();
    newer[8] += 1;
    for (content, why) in [
        (&bytes[..bytes.len() - 1], "truncated"),
        (&flipped, "altered or damaged"),
        (&newer, "newer"),
        (&b"MZ"[..], "no state file"),
    ] {
        std::fs::write(&bad, content).unwrap();
        let answer = monitor.refused("PUT", "/snapshot/load", &load_request(&bad, "File", &full.memory));
        assert!(answer.contains(why), "{answer}");
    }
    let short = dir.path().join("short.mem");
    std::fs::write(&short, b"short").unwrap();
    for (backend, memory, why) in [
        ("File", &short, "not of one snapshot"),
        ("File", &dir.path().join("absent"), "could not be opened"),
        ("Uffd", &dir.path().join("absent"), "nobody serves page faults"),
    ] {
        let answer = monitor.refused("PUT", "/snapshot/load", &load_request(&full.state, backend, memory));
        assert!(answer.contains(why), "{answer}");
    }
    let elsewhere = r#"{"network_overrides":[{"iface_id":"eth9","host_dev_name":"tap9"}],"#;
    let request = load_request(&full.state, "File", &full.memory).replacen('{', elsewhere, 1);
    let answer = monitor.refused("PUT", "/snapshot/load", &request);
    assert!(answer.contains("no network interface"), "{answer}");
    monitor.load(&full.state, "File", &full.memory);
    goes_on(&monitor, tick);
}

#[test]
fn a_fault_server_that_hangs_up_ends_the_machine_rather_than_hang_it() {
    let dir = scratch();
    let Some((saved, full, tick)) = boot_and_save(dir.path(), 1) else { return };
    drop(saved);
    let socket = dir.path().join("faults.sock");
    let mut server = FaultServer::start(&socket, &full.memory);
    let monitor = Monitor::start(dir.path(), "orphan");
    monitor.load(&full.state, "Uffd", &socket);
    goes_on(&monitor, tick);
    server.stop();
    assert_eq!(monitor.exit_code(), 13);
}

#[test]
fn a_machine_that_waits_for_pages_ends_when_its_fault_server_hangs_up() {
    let dir = scratch();
    let Some((saved, full, _)) = boot_and_save(dir.path(), 1) else { return };
    drop(saved);
    for round in 0..4 {
        let socket = dir.path().join(format!("faults{round}.sock"));
        let mut server = FaultServer::start(&socket, &full.memory);
        let monitor = Monitor::start(dir.path(), &format!("waiting{round}"));
        monitor.load(&full.state, "Uffd", &socket);
        server.stall();
        // A vCPU waits, or KVM on its behalf.
        monitor.wait_for("a page that is missed", || (server.left() > 0).then_some(()));
        server.stop();
        assert_eq!(monitor.exit_code(), 13, "round {round}");
    }
}
