//! `wrenn image import`: from archives and layouts, honest and hostile ones.

mod common;

use std::fs;
use std::path::Path;

use common::oci::{Blobs, archive, config, digest, gzip, saved, tar, write_dir, zstd};
use common::{Bench, debugfs, is_whole};
use serde_json::{Value, json};

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP: images are imported by root");
    }
    root
}

fn import<'a>(name: &'a str, source: &'a str) -> Vec<&'a str> {
    vec!["image", "import", "--no-guest", "--free", "8", name, source]
}

/// Two layers: the upper one hides a file of the lower and brings one.
fn layers() -> [Vec<u8>; 2] {
    let lower =
        tar(&[("etc/hello", b"hello from below\n"), ("etc/gone", b"gone"), ("srv/data", &[7; 100_000])]);
    let upper = tar(&[("etc/.wh.gone", b""), ("etc/upper", b"from above\n")]);
    [lower, upper]
}

fn check(bench: &Bench, name: &str) {
    let image = bench.image(name).unwrap();
    image.verify(&mut |_| ()).unwrap();
    assert!(is_whole(&image.rootfs), "{name}");
    assert_eq!(debugfs(&image.rootfs, "cat /etc/hello"), "hello from below\n", "{name}");
    assert_eq!(debugfs(&image.rootfs, "cat /etc/upper"), "from above\n", "{name}");
    let listing = debugfs(&image.rootfs, "ls /etc");
    assert!(!listing.contains("gone") && !listing.contains(".wh"), "{name}: {listing}");
    let details = image.details;
    assert_eq!(details.env["PATH"], "/usr/bin:/bin");
    assert_eq!(details.env["EMPTY"], "");
    assert_eq!(details.env.len(), 2);
    assert_eq!(details.entrypoint, ["/bin/tool", "--quiet"]);
    assert_eq!(details.cmd, ["run"]);
    assert_eq!(details.workdir.as_deref(), Some("/srv"));
    assert_eq!(details.user.as_deref(), Some("1000:1000"));
    assert_eq!(details.exposed_ports, ["53/udp", "8080/tcp"]);
    assert!(bench.staged().is_empty());
}

#[test]
fn a_saved_archive_becomes_an_image() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let [lower, upper] = layers();
    let files = saved("tool:1", &config("amd64", &[&lower, &upper]), &[&lower, &upper]);
    let path = bench.path("saved.tar");
    let source = format!("docker-archive:{}", path.display());
    for (name, content) in [("plain", archive(&files)), ("gzip", gzip(&archive(&files)))] {
        fs::write(&path, content).unwrap();
        let said = bench.succeeds(&import(name, &source));
        assert!(said.contains("unpacking layer 2 of 2"), "{said}");
        check(&bench, name);
    }
    bench.succeeds(&import("named", &format!("{source}:tool:1")));
    check(&bench, "named");
    let said = bench.fails(&import("other", &format!("{source}:tool:2")));
    assert!(said.contains("no image tool:2") && said.contains("tool:1"), "{said}");
    let said = bench.fails(&import("plain", &source));
    assert!(said.contains("registered already"), "{said}");
    let said = bench.succeeds(&["image", "ls"]);
    assert!(said.contains("docker-archive") && said.contains("(tool:1)"), "{said}");
}

#[test]
fn a_layout_becomes_an_image() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let [lower, upper] = layers();
    let mut blobs = Blobs::default();
    let arm = blobs.add_image("arm64", &[(&lower, &lower)]);
    let amd = blobs.add_image("amd64", &[(&lower, &gzip(&lower)), (&upper, &zstd(&upper))]);
    let index = json!({"schemaVersion": 2, "manifests": [arm, amd]});
    let mut index = blobs.add_json(common::oci::INDEX, &index);
    index["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let mut other = blobs.add_image("amd64", &[(&upper, &upper)]);
    other["annotations"] = json!({"org.opencontainers.image.ref.name": "v2"});

    let one = bench.path("one");
    write_dir(&one, &blobs.layout(&[index.clone()]));
    bench.succeeds(&import("dir", &format!("oci:{}", one.display())));
    check(&bench, "dir");
    let two = bench.path("two.tar");
    fs::write(&two, archive(&blobs.layout(&[index, other]))).unwrap();
    let two = format!("oci:{}", two.display());
    bench.succeeds(&import("tar", &format!("{two}:v1")));
    check(&bench, "tar");
    let said = bench.fails(&import("several", &two));
    assert!(said.contains("several images") && said.contains("v1, v2"), "{said}");
    let said = bench.fails(&import("several", &format!("{two}:v3")));
    assert!(said.contains("no image v3"), "{said}");

    // Only one of the images in the index itself is for this kind of machine.
    let direct = bench.path("direct");
    write_dir(&direct, &blobs.layout(&[arm.clone(), amd]));
    bench.succeeds(&import("direct", &format!("oci:{}", direct.display())));
    check(&bench, "direct");
    let foreign = bench.path("foreign");
    write_dir(&foreign, &blobs.layout(&[arm]));
    let said = bench.fails(&import("foreign", &format!("oci:{}", foreign.display())));
    assert!(said.contains("not for linux/amd64"), "{said}");
}

/// Imports a layout that `change` has changed, and expects it to be refused.
fn refused(expected: &str, change: impl FnOnce(&mut Blobs, &mut Value)) {
    let bench = Bench::new();
    let [lower, upper] = layers();
    let mut blobs = Blobs::default();
    let mut image = blobs.add_image("amd64", &[(&lower, &gzip(&lower)), (&upper, &upper)]);
    change(&mut blobs, &mut image);
    let layout = bench.path("layout");
    write_dir(&layout, &blobs.layout(&[image]));
    let said = bench.fails(&import("refused", &format!("oci:{}", layout.display())));
    assert!(said.contains(expected), "{expected}: {said}");
    assert!(bench.image("refused").is_err(), "{expected}");
}

/// Puts another manifest in the place of the image's, with a digest that fits.
fn rewrite(blobs: &mut Blobs, image: &mut Value, change: impl FnOnce(&mut Blobs, &mut Value)) {
    let mut manifest = serde_json::from_slice(&blobs.0[image["digest"].as_str().unwrap()]).unwrap();
    change(blobs, &mut manifest);
    *image = blobs.add_json(common::oci::MANIFEST, &manifest);
}

#[test]
fn what_is_not_as_promised_is_refused() {
    if !is_root() {
        return;
    }
    let [lower, upper] = layers();
    let (packed, plain) = (digest(&gzip(&lower)), digest(&upper));
    // A layer with another content of the same size; plain, so that nothing but the digests can tell.
    refused("not what was promised", |blobs, _| {
        let layer = blobs.0.get_mut(&plain).unwrap();
        let at = layer.windows(5).position(|window| window == b"above").unwrap();
        layer[at] = b'A';
    });
    refused("not what was promised", |blobs, image| {
        let manifest = image["digest"].as_str().unwrap();
        blobs.0.get_mut(manifest).unwrap().push(b' ');
    });
    refused("not what was promised", |blobs, image| {
        let manifest = blobs.0.get_mut(image["digest"].as_str().unwrap()).unwrap();
        // Valid still, and of the same size.
        let at = manifest.iter().position(|byte| *byte == b'2').unwrap();
        manifest[at] = b'3';
    });
    refused("bytes, not", |blobs, _| blobs.0.get_mut(&packed).unwrap().push(0));
    // Truncated, with a descriptor that fits what is left.
    refused("cannot be read on", |blobs, image| {
        rewrite(blobs, image, |blobs, manifest| {
            let half = gzip(&lower)[..60].to_vec();
            manifest["layers"][0] = blobs.add("layer", &half);
        });
    });
    // Another layer than the configuration describes.
    refused("the content of layer", |blobs, image| {
        rewrite(blobs, image, |blobs, manifest| {
            manifest["layers"][0] = blobs.add("layer", &gzip(&tar(&[("other", b"")])));
        });
    });
    refused("has 1 layers, but its configuration describes 2", |blobs, image| {
        rewrite(blobs, image, |_, manifest| {
            manifest["layers"].as_array_mut().unwrap().pop();
        });
    });
    refused("has no blobs/sha256/", |blobs, _| {
        blobs.0.remove(&packed);
    });
    refused("neither an index nor a manifest", |blobs, image| {
        rewrite(blobs, image, |_, manifest| manifest["manifests"] = json!([]));
    });
    refused("not version 2", |blobs, image| {
        rewrite(blobs, image, |_, manifest| manifest["schemaVersion"] = json!(1));
    });
    refused("no SHA-256 digest", |blobs, image| {
        rewrite(blobs, image, |_, manifest| {
            manifest["layers"][0]["digest"] = json!(format!("sha512:{}", "ab".repeat(64)));
        });
    });
    refused("not the document", |blobs, image| *image = blobs.add("manifest", b"{\"schemaVersion\":2,"));
}

#[test]
fn a_hostile_layer_is_named_and_registers_nothing() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let path = bench.path("saved.tar");
    let source = format!("docker-archive:{}", path.display());
    for name in ["../../escaped", "etc/../../../escaped", "etc/.wh..."] {
        let layer = tar(&[("honest", b"first"), (name, b"x")]);
        fs::write(&path, archive(&saved("bad:1", &config("amd64", &[&layer]), &[&layer]))).unwrap();
        let said = bench.fails(&import("bad", &source));
        assert!(said.contains("0/layer.tar") && said.contains(name), "{said}");
        assert!(bench.image("bad").is_err());
        assert!(!bench.path("escaped").exists() && !bench.data().join("escaped").exists());
    }
}

#[test]
fn what_cannot_be_a_source_is_named() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let file = bench.path("file");
    let sources = |file: &Path| ["docker-archive", "oci"].map(|kind| format!("{kind}:{}", file.display()));
    for content in [&b"just text"[..], b"", &[0; 10_240], b"\x1f\x8b\x08cut", &tar(&[("a", b"b")])[..]] {
        fs::write(&file, content).unwrap();
        for source in sources(&file) {
            let said = bench.fails(&import("bad", &source));
            assert!(said.contains("file"), "{said}");
            assert!(said.contains("is no image") || said.contains("cannot unpack"), "{said}");
        }
    }
    for source in sources(&bench.path("nowhere")) {
        let said = bench.fails(&import("bad", &source));
        assert!(said.contains("cannot open") && said.contains("nowhere"), "{said}");
    }
    // The configuration of an archive has its digest for a name.
    let layer = tar(&[("a", b"b")]);
    let mut files = saved("bad:1", &config("amd64", &[&layer]), &[&layer]);
    files[0].1 = config("amd64", &[b"other"]);
    fs::write(&file, archive(&files)).unwrap();
    let said = bench.fails(&import("bad", &sources(&file)[0]));
    assert!(said.contains("not what was promised"), "{said}");
    let output = bench.wrenn(&import("bad", "busybox"));
    assert_eq!(output.status.code(), Some(2), "a wrong argument");
    assert!(common::said(&output).contains("docker-archive:PATH"));
}
