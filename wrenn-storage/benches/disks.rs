//! What a root disk costs: made by this crate, and by the `losetup` and `dmsetup` tools.
//!
//! `cargo bench -p wrenn-storage --no-run`, and then the program as root, in a Linux that has device-mapper. Compare within
//! one run. The tools are given what this crate does: a sparse file for the changes, its loop device, and a snapshot over a
//! loop device of the image that is there already.
#![allow(clippy::disallowed_methods, reason = "it is what they cost that is measured")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use divan::Bencher;
use wrenn_base::{Bytes, HostId, Reaper, SandboxId, UndoList};
use wrenn_storage::{BackendChoice, DiskSpec, RootDisks};

const IMAGE: Bytes = Bytes(256 << 20);

struct World {
    dir: tempfile::TempDir,
    disks: RootDisks,
    reaper: Reaper,
    /// The image's loop device, as the first sandbox leaves it to the others.
    image_loop: String,
}

static WORLD: OnceLock<World> = OnceLock::new();

fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let scratch = std::env::var_os("WRENN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::tempdir_in(scratch).expect("a directory");
        File::create(dir.path().join("image")).and_then(|file| file.set_len(IMAGE.get())).expect("an image");
        let disks = RootDisks::probe(&HostId::random(), BackendChoice::DeviceMapper);
        let image = dir.path().join("image");
        let image_loop = run("losetup", &["--find", "--show", "--read-only", text(&image)]);
        let disks = disks.expect("device-mapper works here");
        World { dir, disks, reaper: Reaper::start(), image_loop }
    })
}

fn main() {
    divan::main();
    if let Some(world) = WORLD.get() {
        run("losetup", &["--detach", &world.image_loop]);
        // Statics are never dropped.
        std::fs::remove_dir_all(world.dir.path()).expect("the directory can be removed");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the tool runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Undone as it is dropped, which divan does not measure.
struct Made(Option<Box<dyn FnOnce()>>);

impl Drop for Made {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|undo| undo());
    }
}

#[divan::bench]
fn by_this_crate(bencher: Bencher<'_, '_>) {
    let world = world();
    bencher.bench_local(|| {
        let (sandbox, mut undo) = (SandboxId::random(), UndoList::new(&world.reaper));
        let cow = world.dir.path().join(sandbox.as_str());
        let image = world.dir.path().join("image");
        let spec = DiskSpec { sandbox: &sandbox, image: &image, cow: &cow, size: None };
        world.disks.attach(&spec, &mut undo).expect("the disk is attached");
        Made(Some(Box::new(move || {
            assert!(undo.run(Duration::from_secs(10)).is_empty());
            std::fs::remove_file(cow).expect("the changes are there");
        })))
    });
}

#[divan::bench]
fn by_tools(bencher: Bencher<'_, '_>) {
    let world = world();
    bencher.bench_local(|| {
        let name = format!("bench-{}", SandboxId::random());
        let cow = world.dir.path().join(&name);
        run("truncate", &["--size", &(IMAGE.get() + (IMAGE.get() >> 6)).to_string(), text(&cow)]);
        let store = run("losetup", &["--find", "--show", text(&cow)]);
        let table = format!("0 {} snapshot {} {store} P 32", IMAGE.get() / 512, world.image_loop);
        run("dmsetup", &["create", &name, "--noudevsync", "--table", &table]);
        Made(Some(Box::new(move || {
            run("dmsetup", &["remove", "--noudevsync", &name]);
            run("losetup", &["--detach", &store]);
            std::fs::remove_file(cow).expect("the changes are there");
        })))
    });
}
