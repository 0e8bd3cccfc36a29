//! `wrenn image`: from directories and archives, honest and hostile ones.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::{Bench, debugfs, is_whole};
use tar::{Builder, EntryType, Header};
use wrenn_core::Bytes;

const BUILD: [&str; 5] = ["image", "build", "--no-guest", "--free", "8"];

fn build<'a>(name: &'a str, from: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&BUILD[..], &[name, "--from", from.to_str().unwrap()], more].concat()
}

fn small_tree(dir: &Path) {
    fs::create_dir_all(dir.join("etc/deep")).unwrap();
    fs::write(dir.join("etc/hello"), "hello from the image\n").unwrap();
    fs::write(dir.join("etc/deep/program"), vec![7; 100_000]).unwrap();
    fs::set_permissions(dir.join("etc/deep/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc/hello", dir.join("link")).unwrap();
}

#[test]
fn a_directory_becomes_an_image() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    small_tree(&tree);
    let said = bench.succeeds(&build("small", &tree, &[]));
    assert!(said.contains("image small is ready"), "{said}");
    let image = bench.image("small").unwrap();
    image.verify(&mut |_| ()).unwrap();
    assert!(is_whole(&image.rootfs));
    assert_eq!(debugfs(&image.rootfs, "cat /etc/hello"), "hello from the image\n");
    assert!(debugfs(&image.rootfs, "stat /etc/deep/program").contains("Mode:  04755"));
    assert!(debugfs(&image.rootfs, "stat /link").contains("Fast link dest: \"/etc/hello\""));
    assert!(image.size >= Bytes(8 << 20));
    assert!(bench.staged().is_empty());

    let said = bench.succeeds(&["image", "ls"]);
    assert!(said.contains("small") && said.contains("directory"), "{said}");
}

#[test]
fn a_taken_name_is_refused_until_it_is_forced() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    small_tree(&tree);
    bench.succeeds(&build("small", &tree, &[]));
    let first = bench.image("small").unwrap().digest;
    let said = bench.fails(&build("small", &tree, &[]));
    assert!(said.contains("registered already") && said.contains("--force"), "{said}");
    assert_eq!(bench.image("small").unwrap().digest, first);

    fs::write(tree.join("etc/hello"), "changed\n").unwrap();
    bench.succeeds(&build("small", &tree, &["--force"]));
    assert_eq!(debugfs(&bench.image("small").unwrap().rootfs, "cat /etc/hello"), "changed\n");
    assert!(bench.staged().is_empty());
}

#[test]
fn a_size_is_kept_and_too_small_a_one_refused() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    small_tree(&tree);
    fs::write(tree.join("large"), vec![1; 30 << 20]).unwrap();
    let from = tree.to_str().unwrap();
    let sized = |name: &'static str, size: &'static str| {
        ["image", "build", name, "--no-guest", "--from", from, "--size", size].map(str::to_owned)
    };
    let fits = sized("fits", "64");
    bench.succeeds(&fits.each_ref().map(String::as_str));
    assert_eq!(bench.image("fits").unwrap().size, Bytes(64 << 20));
    let tight = sized("tight", "16");
    let said = bench.fails(&tight.each_ref().map(String::as_str));
    assert!(said.contains("mke2fs failed"), "{said}");
    assert!(bench.image("tight").is_err());
}

#[test]
fn archives_of_all_kinds_become_images() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    small_tree(&tree);
    let mut plain = Vec::new();
    let mut tar = Builder::new(&mut plain);
    tar.follow_symlinks(false);
    tar.append_dir_all(".", &tree).unwrap();
    tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    // Two frames, as parallel compressors write them.
    let half = plain.len() / 2;
    let zstd = [&plain[..half], &plain[half..]].map(|part| zstd::encode_all(part, 1).unwrap()).concat();
    for (name, content) in [("plain", &plain), ("gzip", &gzip), ("zstd", &zstd)] {
        // By content, not by name.
        let archive = bench.path("archive");
        fs::write(&archive, content).unwrap();
        bench.succeeds(&build(name, &archive, &[]));
        let rootfs = bench.image(name).unwrap().rootfs;
        assert!(is_whole(&rootfs), "{name}");
        assert_eq!(debugfs(&rootfs, "cat /etc/hello"), "hello from the image\n", "{name}");
        assert!(debugfs(&rootfs, "stat /etc/deep/program").contains("Size: 100000"), "{name}");
        assert!(debugfs(&rootfs, "stat /etc/deep/program").contains("Mode:  04755"), "{name}");
        assert!(debugfs(&rootfs, "stat /link").contains("Fast link dest: \"/etc/hello\""), "{name}");
    }
}

/// An archive entry with any name: the `tar` crate's own writer is too honest.
fn entry(tar: &mut Builder<File>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    if kind == EntryType::Char {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

#[test]
fn a_hostile_archive_reaches_nothing_outside() {
    let bench = Bench::new();
    let victim = bench.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("secret"), "untouched").unwrap();
    let outside = victim.to_str().unwrap();
    let secret = victim.join("secret");
    let secret = secret.to_str().unwrap();
    type Entry<'a> = (&'a str, EntryType, &'a str);
    let cases: [(&str, &[Entry<'_>], &str); 9] = [
        ("dotdot", &[("../escaped", EntryType::Regular, "")], "leads out"),
        ("inner-dotdot", &[("a/../../escaped", EntryType::Regular, "")], "leads out"),
        ("dotdot-dir", &[("../escaped/", EntryType::Directory, "")], "leads out"),
        (
            "through-symlink",
            &[("out", EntryType::Symlink, outside), ("out/pwned", EntryType::Regular, "")],
            "outside of destination",
        ),
        (
            "through-relative-symlink",
            &[("up", EntryType::Symlink, "../../../../../.."), ("up/pwned", EntryType::Regular, "")],
            "outside of destination",
        ),
        (
            "directory-through-symlink",
            &[("out", EntryType::Symlink, outside), ("out/pwned/", EntryType::Directory, "")],
            "outside of destination",
        ),
        ("hard-link-absolute", &[("stolen", EntryType::Link, secret)], "outside of the archive"),
        (
            "hard-link-dotdot",
            &[("stolen", EntryType::Link, "../../../victim/secret")],
            "outside of the archive",
        ),
        (
            "hard-link-through-symlink",
            &[("out", EntryType::Symlink, outside), ("stolen", EntryType::Link, "out/secret")],
            "outside of destination",
        ),
    ];
    for (name, entries, reason) in cases {
        let archive = bench.path("hostile.tar");
        let mut tar = Builder::new(File::create(&archive).unwrap());
        entry(&mut tar, "honest", EntryType::Regular, "", b"first");
        for (path, kind, link) in entries {
            let content: &[u8] = if *kind == EntryType::Regular { b"pwned" } else { b"" };
            entry(&mut tar, path, *kind, link, content);
        }
        tar.into_inner().unwrap();
        let said = bench.fails(&build(name, &archive, &[]));
        assert!(said.contains(reason), "{name}: {said}");
        assert!(said.contains("hostile.tar"), "{name}: {said}");
        assert!(bench.image(name).is_err(), "{name}");
        let left: Vec<_> = fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["secret"], "{name}");
        assert_eq!(fs::read_to_string(victim.join("secret")).unwrap(), "untouched", "{name}");
        assert!(!bench.path("escaped").exists() && !bench.data().join("escaped").exists(), "{name}");
    }
}

#[test]
fn what_is_odd_but_harmless_stays_inside_or_is_left_out() {
    let bench = Bench::new();
    let archive = bench.path("odd.tar");
    let absolute = bench.path("absolute");
    let mut tar = Builder::new(File::create(&archive).unwrap());
    entry(&mut tar, absolute.to_str().unwrap(), EntryType::Regular, "", b"inside");
    entry(&mut tar, "null", EntryType::Char, "", b"");
    entry(&mut tar, "pipe", EntryType::Fifo, "", b"");
    // Overwriting what an earlier entry made is what tar does; through a link it would hit the link's target.
    entry(&mut tar, "link", EntryType::Symlink, "honest", b"");
    entry(&mut tar, "honest", EntryType::Regular, "", b"honest");
    entry(&mut tar, "link", EntryType::Regular, "", b"a file now");
    // A directory that nobody may write to, before what lies in it.
    entry(&mut tar, "closed/", EntryType::Directory, "", b"");
    entry(&mut tar, "closed/file", EntryType::Regular, "", b"in it");
    tar.into_inner().unwrap();
    let said = bench.succeeds(&build("odd", &archive, &[]));
    assert!(said.contains("2 device nodes left out"), "{said}");
    assert!(!absolute.exists());
    let rootfs = bench.image("odd").unwrap().rootfs;
    assert_eq!(debugfs(&rootfs, &format!("cat {}", absolute.display())), "inside");
    assert_eq!(debugfs(&rootfs, "cat /honest"), "honest");
    assert_eq!(debugfs(&rootfs, "cat /link"), "a file now");
    assert_eq!(debugfs(&rootfs, "cat /closed/file"), "in it");
    let listing = debugfs(&rootfs, "ls /");
    assert!(!listing.contains("null") && !listing.contains("pipe"), "{listing}");
}

#[test]
fn what_cannot_be_a_source_is_named() {
    let bench = Bench::new();
    let file = bench.path("source");
    for (content, reason) in [
        (&b""[..], "neither a directory nor a tar archive"),
        (b"just text", "neither a directory nor a tar archive"),
        (&[0; 10_240], "neither a directory nor a tar archive"),
        (b"\x1f\x8b\x08cut", "not a usable archive"),
        (b"\x28\xb5\x2f\xfdcut", "not a usable archive"),
    ] {
        fs::write(&file, content).unwrap();
        let said = bench.fails(&build("bad", &file, &[]));
        assert!(said.contains(reason) && said.contains("source"), "{said}");
    }
    let mut tar = Builder::new(File::create(&file).unwrap());
    entry(&mut tar, "whole", EntryType::Regular, "", &[1; 100_000]);
    tar.into_inner().unwrap();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..50_000]).unwrap();
    let said = bench.fails(&build("bad", &file, &[]));
    assert!(said.contains("not a usable archive"), "{said}");

    let said = bench.fails(&build("bad", &bench.path("nowhere"), &[]));
    assert!(said.contains("cannot open") && said.contains("nowhere"), "{said}");
    let said = bench.fails(&["image", "build", "other", "--no-guest"]);
    assert!(said.contains("--from"), "{said}");
    let output = bench.wrenn(&["image", "build", "../other", "--no-guest"]);
    assert_eq!(output.status.code(), Some(2), "a name that is none is a wrong argument");
    assert!(common::said(&output).contains("not a valid image name"));
    let said = bench.succeeds(&["image", "ls"]);
    assert!(said.contains("no images"), "{said}");
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: without root the build is refused earlier");
        return;
    }
    let bench = Bench::new();
    let output = bench
        .command(&["image", "build", "debian", "--no-guest"])
        .env("PATH", bench.path("nothing-here"))
        .output()
        .unwrap();
    let said = common::said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("apt-get install mmdebstrap"), "{said}");
    assert!(bench.staged().is_empty());
}
