//! Hostile layers: each next to a directory that must stay as it is.

use tar::{EntryType, Header};

use super::super::Limits;
use super::super::error::EntryError;
use super::{Bench, DIR, FILE, LINK, Layer, SYMLINK, reason};

type Entry<'a> = (&'a str, EntryType, &'a str);

#[test]
fn a_hostile_layer_reaches_nothing_outside() {
    let outside = Bench::new();
    let victim = outside.victim();
    let secret = format!("{victim}/secret");
    let cases: [(&str, &[Entry<'_>], &str); 24] = [
        ("dotdot", &[("../escaped", FILE, "x")], "leads out"),
        ("inner dotdot", &[("a/../../escaped", FILE, "x")], "leads out"),
        ("last dotdot", &[("a/..", DIR, "")], "leads out"),
        ("harmless dotdot", &[("a/../b", FILE, "x")], "leads out"),
        ("absolute dotdot", &[("/../escaped", FILE, "x")], "leads out"),
        ("directory dotdot", &[("../victim/", DIR, "")], "leads out"),
        ("symlink dotdot", &[("../escaped", SYMLINK, "x")], "leads out"),
        ("device dotdot", &[("../null", EntryType::Char, "")], "leads out"),
        ("pipe dotdot", &[("d/../../pipe", EntryType::Fifo, "")], "leads out"),
        ("whiteout dotdot", &[("../victim/.wh.secret", FILE, "")], "leads out"),
        ("whiteout of dotdot", &[("a/.wh...", FILE, "")], "hides"),
        ("whiteout of dot", &[("a/.wh..", FILE, "")], "hides"),
        ("whiteout of nothing", &[("a/.wh.", FILE, "")], "hides"),
        ("beneath a whiteout", &[(".wh.a/b", FILE, "x")], "beneath a whiteout"),
        ("root as a file", &[("./", SYMLINK, "/")], "root's place"),
        ("hard link dotdot", &[("stolen", LINK, "../victim/secret")], "leads out"),
        ("hard link absolute", &[("stolen", LINK, &secret)], "not there"),
        (
            "hard link through a link",
            &[("out", SYMLINK, &victim), ("stolen", LINK, "out/secret")],
            "not there",
        ),
        ("hard link to a directory", &[("a/", DIR, ""), ("b", LINK, "a")], "to a directory"),
        ("hard link to the root", &[("b", LINK, "./")], "to the root"),
        ("loop", &[("a", SYMLINK, "b"), ("b", SYMLINK, "a"), ("a/x", FILE, "x")], "too many symbolic links"),
        ("through a file", &[("a", FILE, "x"), ("a/b", FILE, "x")], "no directory"),
        ("through a device", &[("a", EntryType::Fifo, ""), ("a/b", FILE, "x")], "no directory"),
        ("sparse", &[("a", EntryType::GNUSparse, "")], "sparsely"),
    ];
    for (case, entries, expected) in cases {
        let bench = Bench::new();
        let mut layer = Layer::new().file("honest", "first");
        for (name, kind, content) in entries {
            layer = layer.entry(name, *kind, content);
        }
        let error = bench.unpack(&[layer.done()]).unwrap_err();
        assert!(reason(&error).contains(expected), "{case}: {}", reason(&error));
        assert!(error.to_string().contains("layer 0"), "{case}: {error}");
        assert_eq!(bench.text("honest"), "first", "{case}");
        bench.check_outside(case);
        assert!(!bench.has("stolen"), "{case}");
        outside.check_outside(case);
    }
}

#[test]
fn what_goes_through_links_to_the_outside_stays_inside() {
    let cases: [&[Entry<'_>]; 6] = [
        &[("out/secret", FILE, "x")],
        &[("out/new/", DIR, "")],
        &[("out/.wh.secret", FILE, "")],
        &[("out/.wh..wh..opq", FILE, "")],
        &[("out/secret", SYMLINK, "x")],
        &[("out/secret", EntryType::Fifo, "")],
    ];
    for entries in cases {
        for up in [false, true] {
            let bench = Bench::new();
            let target = if up { "../victim".to_owned() } else { bench.victim() };
            let mut layer = Layer::new().entry("out", SYMLINK, &target);
            for (name, kind, content) in entries {
                layer = layer.entry(name, *kind, content);
            }
            bench.unpack(&[layer.done()]).unwrap();
            bench.check_outside(entries[0].0);
        }
    }
    let bench = Bench::new();
    let absolute = format!("{}/secret", bench.victim());
    bench.unpack(&[Layer::new().file(&absolute, "inside").done()]).unwrap();
    assert_eq!(bench.text(absolute.trim_start_matches('/')), "inside");
    bench.check_outside("absolute");
}

#[test]
fn everything_is_bounded() {
    let fails = |layer: Vec<u8>, limits: Limits, expected: &str| {
        let bench = Bench::new();
        let error = bench.unpack_within(&[layer], limits).unwrap_err();
        assert!(reason(&error).contains(expected), "{expected}: {}", reason(&error));
        error
    };
    let three = Layer::new().file("1", "").file("2", "").file("3", "").done();
    let few = Limits { entries: 2, ..Limits::default() };
    let error = fails(three, few, "entries of all layers");
    assert!(matches!(error.source, EntryError::TooLarge { limit: 2, .. }));

    let large = Layer::new().file("large", &"x".repeat(100_000)).done();
    let small = Limits { bytes: 50_000, ..Limits::default() };
    let error = fails(large.clone(), small, "bytes of all layers");
    assert_eq!(error.entry, "large");
    // The limit is that of all layers together.
    let twice = Limits { bytes: large.len() as u64 * 3 / 2, ..Limits::default() };
    assert!(Bench::new().unpack_within(std::slice::from_ref(&large), twice).is_ok());
    assert!(Bench::new().unpack_within(&[large.clone(), large.clone()], twice).is_err());
    // Also of what follows the archive's end.
    let trailing = [&Layer::new().file("a", "").done()[..], &[7; 100_000]].concat();
    fails(trailing, small, "bytes of all layers");

    let huge = |name: &str, kind| Layer::header(name, kind, "", 1 << 40);
    let claims = |header: Header| {
        let mut header = header;
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    fails(claims(huge("huge", FILE)), Limits::default(), "cannot be read on");
    fails(claims(huge("huge", EntryType::XHeader)), Limits::default(), "extended header");
    fails(claims(huge("huge", EntryType::GNULongName)), Limits::default(), "extended header");
    fails(large[..50_000].to_vec(), Limits::default(), "cannot be read on");
    fails(vec![7; 1024], Limits::default(), "cannot be read on");

    let deep = "d/".repeat(300);
    fails(
        Layer::new().pax(&[("path", deep.as_bytes())]).file("x", "").done(),
        Limits::default(),
        "directories",
    );
    let long = "a/".repeat(3000);
    fails(Layer::new().pax(&[("path", long.as_bytes())]).file("x", "").done(), Limits::default(), "its path");
    let name = "n".repeat(256);
    fails(Layer::new().pax(&[("path", name.as_bytes())]).file("x", "").done(), Limits::default(), "its name");
    let value = vec![b'v'; 65_000];
    let xattrs = [("SCHILY.xattr.user.a", &value[..]), ("SCHILY.xattr.user.b", &value[..])];
    fails(Layer::new().pax(&xattrs).file("x", "").done(), Limits::default(), "attributes");
    let sized = Layer::new().pax(&[("size", b"999999999999")]).file("x", "").done();
    fails(sized, Limits::default(), "two sizes");
    let sparse = Layer::new().pax(&[("GNU.sparse.major", b"1")]).file("x", "").done();
    fails(sparse, Limits::default(), "sparsely");
    let owner = Layer::new().pax(&[("uid", b"4294967295")]).file("x", "").done();
    fails(owner, Limits::default(), "owner");
}

/// Numbers that look random, and are the same each time.
struct Random(u64);

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(self.0 >> 33) as usize % from.len()]
    }
}

#[test]
fn no_mixture_of_entries_reaches_the_outside() {
    let mut random = Random(1);
    for round in 0..400 {
        let bench = Bench::new();
        let victim = bench.victim();
        let secret = format!("{victim}/secret");
        let names = ["a", "b", "a/", "a/b", "b/a", "a/b/a", "./", "a/secret", "b/secret", "/b"];
        let whiteouts = [".wh.a", "a/.wh.b", "a/.wh.secret", "b/.wh..wh..opq", ".wh..wh..opq", "a/.wh..."];
        let targets =
            ["a", "b", "a/b", "b/secret", "/", "..", "../victim", "../../victim/secret", &victim, &secret];
        let kinds = [FILE, FILE, DIR, SYMLINK, SYMLINK, LINK, EntryType::Fifo];
        let mut layers = Vec::new();
        for _ in 0..3 {
            let mut layer = Layer::new();
            for _ in 0..6 {
                layer = match random.pick(&kinds) {
                    FILE => {
                        let name = [random.pick(&names), random.pick(&whiteouts)];
                        layer.file(random.pick(&name), "x")
                    }
                    kind @ (SYMLINK | LINK) => layer.entry(random.pick(&names), kind, random.pick(&targets)),
                    kind => layer.entry(random.pick(&names), kind, ""),
                };
            }
            layers.push(layer.done());
        }
        // Whether it is refused is not the question here.
        let _ = bench.unpack(&layers);
        bench.check_outside(&format!("round {round}"));
    }
}
