//! Honest layers, and what all tests of layers need.

mod hostile;

use std::error::Error;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;
use tar::{Builder, EntryType, Header};

use super::{LayerError, Limits, Unpacked, Unpacker};

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

/// A layer in the making. Names go in as they are: the `tar` crate's own writer is too honest.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(name: &str, kind: EntryType, link: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(if kind == DIR { 0o755 } else { 0o644 });
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        header.set_mtime(1_000_000_000);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header
    }

    fn append(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// An entry whose content or link target is `content`.
    fn entry(self, name: &str, kind: EntryType, content: &str) -> Self {
        match kind {
            SYMLINK | LINK => self.append(Self::header(name, kind, content, 0), b""),
            _ => self.append(Self::header(name, kind, "", content.len() as u64), content.as_bytes()),
        }
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(name, FILE, content)
    }

    fn dir(self, name: &str) -> Self {
        self.entry(name, DIR, "")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("victim")).unwrap();
        fs::write(dir.path().join("victim/secret"), "untouched").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn victim(&self) -> String {
        self.dir.path().join("victim").to_str().unwrap().to_owned()
    }

    fn unpack(&self, layers: &[Vec<u8>]) -> Result<Unpacked, LayerError> {
        self.unpack_within(layers, Limits::default())
    }

    fn unpack_within(&self, layers: &[Vec<u8>], limits: Limits) -> Result<Unpacked, LayerError> {
        let mut unpacker = Unpacker::new(&self.root(), limits).unwrap();
        for (number, layer) in layers.iter().enumerate() {
            unpacker.apply(&number.to_string(), &mut &layer[..])?;
        }
        unpacker.finish()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.root().join(name)).is_ok()
    }

    /// What is outside of the root, which no layer may change.
    fn check_outside(&self, case: &str) {
        let names = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.dir.path()), ["root", "victim"], "{case}");
        assert_eq!(names(&self.dir.path().join("victim")), ["secret"], "{case}");
        let secret = self.dir.path().join("victim/secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched", "{case}");
        assert_eq!(fs::metadata(secret).unwrap().nlink(), 1, "{case}");
    }
}

fn reason(error: &LayerError) -> String {
    error.source().unwrap().to_string()
}

#[test]
fn everything_that_a_layer_has_comes_out() {
    let bench = Bench::new();
    let mut program = Layer::header("usr/bin/program", FILE, "", 5);
    program.set_mode(0o4755);
    let mut closed = Layer::header("closed/", DIR, "", 0);
    closed.set_mode(0o1555);
    let long = format!("usr/{}/{}", "a".repeat(120), "b".repeat(200));
    let layer = Layer::new()
        .append(closed, b"")
        .file("closed/file", "in it")
        .append(program, b"#!/x\n")
        .entry("usr/bin/second", LINK, "./usr/bin/program")
        .entry("absolute", SYMLINK, "/etc/passwd")
        .entry("upwards", SYMLINK, "../../../outside")
        .entry("pipe", EntryType::Fifo, "")
        .entry("dev/null", EntryType::Char, "")
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.binary", b"\n9 \0=\n"),
            ("comment", b"of no meaning"),
        ])
        .file("short", "long name")
        .done();
    let unpacked = bench.unpack(&[layer]).unwrap();
    let meta = |name: &str| fs::symlink_metadata(bench.root().join(name)).unwrap();
    assert_eq!(meta("usr/bin/program").mode() & 0o7777, 0o4755);
    assert_eq!(meta("usr/bin/program").mtime(), 1_000_000_000);
    assert_eq!(meta("usr/bin/program").ino(), meta("usr/bin/second").ino());
    assert_eq!(meta("closed").mode() & 0o7777, 0o1555);
    assert_eq!(meta("closed").mtime(), 1_000_000_000, "set after it was filled");
    assert_eq!(meta("usr").mode() & 0o7777, 0o755, "a directory that no entry describes");
    assert_eq!(bench.text("closed/file"), "in it");
    assert_eq!(fs::read_link(bench.root().join("absolute")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(bench.root().join("upwards")).unwrap(), Path::new("../../../outside"));
    assert!(meta("pipe").file_type().is_fifo());
    if bench.has("dev/null") {
        assert!(meta("dev/null").file_type().is_char_device());
        assert_eq!(meta("dev/null").rdev(), rustix::fs::makedev(1, 3));
    }
    assert_eq!(bench.text(&long), "long name");
    assert_eq!((meta(&long).mtime(), meta(&long).mtime_nsec()), (1_234_567_890, 123_456_789));
    if unpacked.left_out == 0 {
        let mut value = [0; 16];
        let length = getxattr(bench.root().join(&long), "user.binary", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"\n9 \0=\n");
    }
    bench.check_outside("honest");
    // So that the test's directory can be removed by anybody.
    fs::set_permissions(bench.root().join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn owners_are_set_where_that_is_allowed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: only root gives files away");
        return;
    }
    let bench = Bench::new();
    let owned = |name: &str, kind| {
        let mut header = Layer::header(name, kind, if kind == SYMLINK { "x" } else { "" }, 0);
        header.set_uid(1234);
        header.set_gid(5678);
        header
    };
    let layer = Layer::new()
        .append(owned("dir/", DIR), b"")
        .append(owned("dir/file", FILE), b"")
        .append(owned("dir/link", SYMLINK), b"")
        .pax(&[("uid", b"77777777"), ("gid", b"4")])
        .append(owned("dir/large", FILE), b"");
    bench.unpack(&[layer.done()]).unwrap();
    for (name, owner) in [
        ("dir", (1234, 5678)),
        ("dir/file", (1234, 5678)),
        ("dir/link", (1234, 5678)),
        ("dir/large", (77_777_777, 4)),
    ] {
        let meta = fs::symlink_metadata(bench.root().join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), owner, "{name}");
    }
}

#[test]
fn whiteouts_hide_what_is_below_and_only_that() {
    let bench = Bench::new();
    let lower = Layer::new()
        .file("gone", "lower")
        .file("stays", "lower")
        .file("replaced", "lower")
        .dir("opaque/")
        .file("opaque/old", "lower")
        .dir("opaque/olddir/")
        .file("opaque/olddir/file", "lower")
        .file("opaque/shared/old", "lower")
        .dir("tree/")
        .file("tree/deep/file", "lower");
    let upper = Layer::new()
        .file(".wh.gone", "")
        .file(".wh.never-there", "")
        .file("nowhere/.wh.file", "")
        .file("stays/.wh.file", "")
        // In either order, the layer's own file is what is there.
        .file("replaced", "upper")
        .file(".wh.replaced", "")
        .file("opaque/new", "upper")
        .file("opaque/shared/new", "upper")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.tree", "")
        .file("tree/new", "upper")
        .file(".wh..wh.plnk/123.456", "of old tools");
    bench.unpack(&[lower.done(), upper.done()]).unwrap();
    for gone in [
        "gone",
        "nowhere",
        "opaque/old",
        "opaque/olddir",
        "opaque/shared/old",
        "tree/deep",
        ".wh.gone",
        "opaque/.wh..wh..opq",
        ".wh..wh.plnk",
    ] {
        assert!(!bench.has(gone), "{gone}");
    }
    assert_eq!(bench.text("stays"), "lower");
    for upper in ["replaced", "opaque/new", "opaque/shared/new", "tree/new"] {
        assert_eq!(bench.text(upper), "upper", "{upper}");
    }
    // And the layer above hides what this one brought.
    let bench = Bench::new();
    let layers = [
        Layer::new().file("a/b", "1").done(),
        Layer::new().file("a/c", "2").done(),
        Layer::new().file(".wh.a", "").done(),
        Layer::new().file("a/d", "4").done(),
    ];
    bench.unpack(&layers).unwrap();
    assert!(!bench.has("a/b") && !bench.has("a/c") && bench.has("a/d"));
}

#[test]
fn a_removed_directory_is_forgotten_with_its_attributes() {
    let bench = Bench::new();
    let mut private = Layer::header("dir/", DIR, "", 0);
    private.set_mode(0o700);
    let layers = [
        Layer::new().append(private, b"").done(),
        Layer::new().file(".wh.dir", "").done(),
        Layer::new().file("dir/file", "new").done(),
    ];
    bench.unpack(&layers).unwrap();
    assert_eq!(fs::metadata(bench.root().join("dir")).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn one_kind_replaces_another_and_nothing_is_written_through() {
    let bench = Bench::new();
    let lower = Layer::new()
        .file("file", "lower")
        .file("target", "target")
        .entry("link", SYMLINK, "target")
        .file("dir/deep/file", "lower")
        .entry("dirlink", SYMLINK, "dir");
    let upper = Layer::new()
        .dir("file/")
        .file("file/inner", "upper")
        .file("link", "upper")
        .entry("dir", SYMLINK, "elsewhere")
        .dir("dirlink/")
        .file("target", "again")
        .entry("target", LINK, "target");
    bench.unpack(&[lower.done(), upper.done()]).unwrap();
    assert_eq!(bench.text("file/inner"), "upper");
    assert_eq!(bench.text("link"), "upper");
    assert_eq!(bench.text("target"), "again", "a link to itself changes nothing");
    assert_eq!(fs::read_link(bench.root().join("dir")).unwrap(), Path::new("elsewhere"));
    assert!(fs::symlink_metadata(bench.root().join("dirlink")).unwrap().is_dir());
}

#[test]
fn links_on_the_way_are_walked_inside_of_the_root() {
    let bench = Bench::new();
    let victim = bench.victim();
    let lower = Layer::new()
        .dir("usr/lib/")
        .entry("lib", SYMLINK, "usr/lib")
        .entry("lib64", SYMLINK, "/usr/lib")
        .entry("up", SYMLINK, "../../../..")
        .entry("out", SYMLINK, &victim)
        .entry("run", SYMLINK, "/not/yet/there");
    let upper = Layer::new()
        .file("lib/one", "1")
        .file("lib64/two", "2")
        .file("up/usr/lib/three", "3")
        .file("out/secret", "inside")
        .file("out/.wh.nothing", "")
        .file("run/four", "4")
        .entry("linked", LINK, "out/secret");
    bench.unpack(&[lower.done(), upper.done()]).unwrap();
    for (name, content) in [("one", "1"), ("two", "2"), ("three", "3")] {
        assert_eq!(bench.text(&format!("usr/lib/{name}")), content);
    }
    assert_eq!(bench.text("not/yet/there/four"), "4");
    let inside = victim.trim_start_matches('/');
    assert_eq!(bench.text(&format!("{inside}/secret")), "inside");
    assert_eq!(bench.text("linked"), "inside");
    bench.check_outside("links");
}
