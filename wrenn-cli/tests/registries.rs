//! `wrenn image import docker://…`: a registry on the loopback interface, run by the test.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::oci::{Blobs, INDEX, digest, gzip, tar};
use common::server::{Behaviour, Registry};
use common::{Bench, debugfs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP: images are imported by root");
    }
    root
}

fn import<'a>(name: &'a str, source: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["image", "import", "--no-guest", "--free", "8", name, source], more].concat()
}

/// Something that does not become small when it is packed.
fn noise() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..300_000).map(|_| next()).collect()
}

fn layer() -> Vec<u8> {
    tar(&[("etc/hello", b"hello from afar\n"), ("srv/data", &noise())])
}

/// A registry's content: an image for two kinds of machines, tagged `v1`.
fn behaviour() -> Behaviour {
    let layer = layer();
    let mut blobs = Blobs::default();
    let arm = blobs.add_image("arm64", &[(b"foreign", b"foreign")]);
    let amd = blobs.add_image("amd64", &[(&layer, &gzip(&layer))]);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [arm, amd]});
    let index = blobs.add_json(INDEX, &index);
    let mut content = blobs.0;
    content.insert("v1".to_owned(), content[index["digest"].as_str().unwrap()].clone());
    Behaviour { content, ..Behaviour::default() }
}

fn check(bench: &Bench, name: &str) {
    let image = bench.image(name).unwrap();
    assert_eq!(debugfs(&image.rootfs, "cat /etc/hello"), "hello from afar\n", "{name}");
    assert!(debugfs(&image.rootfs, "stat /srv/data").contains("Size: 300000"), "{name}");
    assert_eq!(image.details.cmd, ["run"]);
    assert!(image.details.source.contains("/test/image:v1 (sha256:"), "{}", image.details.source);
    assert!(bench.staged().is_empty());
}

#[test]
fn an_image_is_pulled_and_its_layers_are_kept() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let registry = Registry::start(behaviour());
    let said = bench.succeeds(&import("first", &registry.source(":v1"), &[]));
    assert!(said.contains("fetching layer 1 of 1"), "{said}");
    check(&bench, "first");
    let packed = digest(&gzip(&layer()));
    assert!(registry.asked().iter().any(|path| path.ends_with(&packed)));

    let said = bench.succeeds(&import("again", &registry.source(":v1"), &[]));
    assert!(said.contains("fetched before"), "{said}");
    check(&bench, "again");
    assert!(!registry.asked().iter().any(|path| path.ends_with(&packed)));
    // What is damaged on disk is fetched anew.
    let kept = bench.data().join("cache/blobs").join(packed.replace(':', "/"));
    let length = fs::metadata(&kept).unwrap().len() as usize;
    fs::write(&kept, vec![0; length]).unwrap();
    bench.succeeds(&import("repaired", &registry.source(":v1"), &[]));
    check(&bench, "repaired");

    let said = bench.fails(&import("other", &registry.source(":v2"), &[]));
    assert!(said.contains("404") && said.contains("MANIFEST_UNKNOWN"), "{said}");
    let wrong = registry.source(&format!("@sha256:{}", "ab".repeat(32)));
    let said = bench.fails(&import("other", &wrong, &[]));
    assert!(said.contains("404"), "{said}");
}

#[test]
fn a_registry_that_wants_to_know_who_asks_is_told() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let password = bench.path("password");
    fs::write(&password, "secret\n").unwrap();
    let wrong = bench.path("wrong");
    fs::write(&wrong, "guess\n").unwrap();
    let login = ["--username", "user", "--password-file", password.to_str().unwrap()];
    let bad_login = ["--username", "user", "--password-file", wrong.to_str().unwrap()];
    let credentials = Some(("user".to_owned(), "secret".to_owned()));
    let anonymous = Registry::start(Behaviour { bearer: true, redirect: true, ..behaviour() });
    bench.succeeds(&import("anonymous", &anonymous.source(":v1"), &[]));
    check(&bench, "anonymous");
    assert!(anonymous.asked().iter().any(|path| path.starts_with("/elsewhere/")));
    for (name, bearer, redirect) in [("basic", false, false), ("bearer", true, true)] {
        // A cache of its own each.
        let bench = Bench::new();
        let registry =
            Registry::start(Behaviour { credentials: credentials.clone(), bearer, redirect, ..behaviour() });
        let source = registry.source(":v1");
        for login in [&[][..], &bad_login] {
            let said = bench.fails(&import(name, &source, login));
            assert!(said.contains("--password-file"), "{said}");
            assert!(!said.contains("guess"), "{said}");
        }
        bench.succeeds(&import(name, &source, &login));
        check(&bench, name);
    }
}

#[test]
fn a_registry_that_sends_something_else_is_refused() {
    if !is_root() {
        return;
    }
    let packed = digest(&gzip(&layer()));
    let manifest = |behaviour: &Behaviour| {
        let index: serde_json::Value = serde_json::from_slice(&behaviour.content["v1"]).unwrap();
        index["manifests"][1]["digest"].as_str().unwrap().to_owned()
    };
    type Change<'a> = &'a dyn Fn(&mut Behaviour);
    let cases: [(Change<'_>, &str); 5] = [
        (&|registry| registry.content.get_mut(&packed).unwrap()[1000] ^= 1, "its SHA-256 is"),
        (&|registry| registry.content.get_mut(&packed).unwrap().push(0), "bytes, not"),
        (&|registry| registry.content.get_mut(&packed).unwrap().truncate(1000), "it has 1000 bytes, not"),
        (
            &|registry| {
                let manifest = manifest(registry);
                let text = registry.content.get_mut(&manifest).unwrap();
                let at = text.iter().position(|byte| *byte == b'2').unwrap();
                text[at] = b'3';
            },
            "its SHA-256 is",
        ),
        (
            &|registry| {
                registry.content.insert("v1".to_owned(), vec![b' '; 5 << 20]);
            },
            "too long",
        ),
    ];
    for (change, expected) in cases {
        let bench = Bench::new();
        let mut behaviour = behaviour();
        change(&mut behaviour);
        let registry = Registry::start(behaviour);
        let said = bench.fails(&import("refused", &registry.source(":v1"), &[]));
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(bench.image("refused").is_err());
        let kept = bench.data().join("cache/blobs").join(packed.replace(':', "/"));
        assert!(!kept.exists(), "{expected}");
    }
}

#[test]
fn other_registries_are_asked_with_encryption_only() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    // A name for this machine that does not look like one, so that nothing is asked beyond it.
    let registry = Registry::start(behaviour());
    let source = format!("docker://localhost.localdomain:{}/test/image:v1", registry.address.port());
    let said = bench.fails(&import("refused", &source, &[]));
    assert!(said.contains("cannot ask https://localhost.localdomain"), "{said}");
    assert!(registry.asked().iter().all(|path| !path.starts_with("/v2")));
}

#[test]
fn an_interrupted_pull_leaves_nothing() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let registry = Registry::start(Behaviour { stall: true, ..behaviour() });
    let source = registry.source(":v1");
    let blobs = bench.data().join("cache/blobs/sha256");
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let mut child = bench.command(&import("half", &source, &[])).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let half_way = || {
            let entries = fs::read_dir(&blobs).into_iter().flatten().flatten();
            let staged = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".staged"));
            staged
                .filter_map(|entry| fs::metadata(entry.path().join("blob")).ok())
                .any(|blob| blob.len() > 100_000)
        };
        while !half_way() {
            assert!(start.elapsed() < Duration::from_secs(60), "the import never began");
            std::thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        match code {
            Some(code) => {
                assert_eq!(status.code(), Some(code));
                assert_eq!(bench.staged(), Vec::<String>::new());
            }
            None => {
                assert_eq!(status.signal(), Some(9));
                assert_eq!(bench.staged().len(), 2, "the image and the blob: nobody could clean up");
            }
        }
        assert!(bench.image("half").is_err());
    }
    // The next import sweeps what the killed one left.
    let registry = Registry::start(behaviour());
    bench.succeeds(&import("whole", &registry.source(":v1"), &[]));
    check(&bench, "whole");
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 1);
}
