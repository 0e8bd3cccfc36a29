//! `wrenn guest build`, on a kernel package of the test's own making: no network, no real kernel.

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use common::{Bench, run};
use wrenn_core::image::GuestFiles;

const RELEASE: &str = "9.9.9-test";

/// A package with what looks like a kernel and modules whose dependencies are real.
fn kernel_package(bench: &Bench, modules: &[(&str, &str)], builtin: &str) -> PathBuf {
    let root = bench.path("package");
    let _ = fs::remove_dir_all(&root);
    let modules_dir = root.join("lib/modules").join(RELEASE);
    for dir in [root.join("boot"), root.join("DEBIAN"), modules_dir.join("kernel/drivers/deep")] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::copy("/bin/true", root.join("boot").join(format!("vmlinuz-{RELEASE}"))).unwrap();
    fs::write(modules_dir.join("modules.builtin"), builtin).unwrap();
    for (name, depends) in modules {
        let source = bench.path("module.c");
        let text = format!(
            "__attribute__((section(\".modinfo\"), used)) static const char d[] = \"depends={depends}\";\n"
        );
        fs::write(&source, text).unwrap();
        let object = modules_dir.join("kernel/drivers/deep").join(format!("{name}.ko"));
        run("cc", &["-c", "-o", object.to_str().unwrap(), source.to_str().unwrap()]);
    }
    let control =
        "Package: linux-image-test\nVersion: 1\nArchitecture: all\nMaintainer: test\nDescription: test\n";
    fs::write(root.join("DEBIAN/control"), control).unwrap();
    let deb = bench.path("linux-image-test.deb");
    run("dpkg-deb", &["--build", "-Znone", root.to_str().unwrap(), deb.to_str().unwrap()]);
    deb
}

const MODULES: [(&str, &str); 6] = [
    ("virtio", "virtio_ring"),
    ("virtio_ring", ""),
    ("virtio_mmio", "virtio,virtio_ring"),
    ("virtio_net", "virtio_ring,virtio"),
    ("virtio-rng", "virtio"),
    ("unused", ""),
];
const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\nkernel/drivers/block/virtio_blk.ko\n";

fn agent(bench: &Bench, code: u8) -> PathBuf {
    let (source, agent) = (bench.path("agent.c"), bench.path(&format!("agent-{code}")));
    fs::write(&source, format!("int main(void) {{ return {code}; }}\n")).unwrap();
    run("cc", &["-static", "-o", agent.to_str().unwrap(), source.to_str().unwrap()]);
    agent
}

/// The content of one file of an initramfs.
fn member(initramfs: &Path, name: &str) -> Vec<u8> {
    let archive = fs::read(initramfs).unwrap();
    let mut rest = &archive[..];
    loop {
        let mut reader = cpio::newc::Reader::new(rest).unwrap();
        assert!(!reader.entry().is_trailer(), "no {name}");
        if reader.entry().name() == name {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            return content;
        }
        rest = reader.finish().unwrap();
    }
}

fn build<'a>(agent: &'a Path, deb: &'a Path) -> [&'a str; 6] {
    ["guest", "build", "--agent", agent.to_str().unwrap(), "--kernel-deb", deb.to_str().unwrap()]
}

#[test]
fn a_kernel_package_and_an_agent_become_guest_files() {
    let bench = Bench::new();
    let (deb, agent) = (kernel_package(&bench, &MODULES, BUILTIN), agent(&bench, 1));
    bench.succeeds(&build(&agent, &deb));
    let guest = GuestFiles::open(&bench.data()).unwrap();
    assert_eq!(guest.details.kernel_release, RELEASE);
    assert_eq!(guest.details.source, "linux-image-test.deb");
    assert_eq!(fs::read(&guest.kernel).unwrap(), fs::read("/bin/true").unwrap());
    let list = String::from_utf8(member(&guest.initramfs, "modules.list")).unwrap();
    let order: Vec<_> = list.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(order, ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio_net.ko", "virtio_rng.ko"]);
    for line in list.lines() {
        assert!(member(&guest.initramfs, &line[1..]).starts_with(b"\x7fELF"), "{line}");
    }
    let (init, whole) = (member(&guest.initramfs, "init"), fs::read(&agent).unwrap());
    assert!(init.len() < whole.len(), "without symbols");
    assert_eq!(init[64..4096], whole[64..4096], "else the same");
    assert!(bench.staged().is_empty());
}

#[test]
fn an_image_build_renews_guest_files_of_another_agent_only() {
    let bench = Bench::new();
    let deb = kernel_package(&bench, &MODULES, BUILTIN);
    let (first, second) = (agent(&bench, 1), agent(&bench, 2));
    bench.succeeds(&build(&first, &deb));
    let initramfs = || fs::read(bench.data().join("guest/initramfs.cpio")).unwrap();
    let before = initramfs();
    let tree = bench.path("tree");
    fs::create_dir(&tree).unwrap();
    let image = |name: &str, agent: &Path, more: &[&str]| {
        let args = ["image", "build", name, "--free", "8", "--from", tree.to_str().unwrap(), "--agent"];
        bench.succeeds(&[&args[..], &[agent.to_str().unwrap()], more].concat())
    };
    let said = image("one", &first, &[]);
    assert!(said.contains("are there"), "{said}");
    assert_eq!(initramfs(), before);
    let said = image("two", &second, &["--kernel-deb", deb.to_str().unwrap()]);
    assert!(said.contains("another agent"), "{said}");
    assert_ne!(initramfs(), before);
}

#[test]
fn what_cannot_be_a_guest_is_named_and_the_old_files_stay() {
    let bench = Bench::new();
    let agent = agent(&bench, 1);
    let deb = kernel_package(&bench, &MODULES, BUILTIN);
    bench.succeeds(&build(&agent, &deb));
    let before = fs::read(bench.data().join("guest/guest.json")).unwrap();

    let dynamic = Path::new(env!("CARGO_BIN_EXE_wrenn"));
    let said = bench.fails(&build(dynamic, &deb));
    assert!(said.contains("dynamically linked") && said.contains("crt-static"), "{said}");
    let said = bench.fails(&build(&bench.path("no-agent"), &deb));
    assert!(said.contains("no-agent") && said.contains("cargo build"), "{said}");
    let said = bench.fails(&build(&agent, &bench.path("agent.c")));
    assert!(said.contains("dpkg-deb failed"), "{said}");
    let deb = kernel_package(&bench, &MODULES[..2], BUILTIN);
    let said = bench.fails(&build(&agent, &deb));
    assert!(said.contains("no module virtio_mmio"), "{said}");
    let root = bench.path("package/boot").join(format!("vmlinuz-{RELEASE}"));
    let deb = kernel_package(&bench, &MODULES, BUILTIN);
    fs::write(&root, "no kernel").unwrap();
    run("dpkg-deb", &["--build", "-Znone", bench.path("package").to_str().unwrap(), deb.to_str().unwrap()]);
    let said = bench.fails(&build(&agent, &deb));
    assert!(said.contains("neither an ELF file nor a bzImage"), "{said}");

    assert_eq!(fs::read(bench.data().join("guest/guest.json")).unwrap(), before);
    GuestFiles::open(&bench.data()).unwrap();
}
