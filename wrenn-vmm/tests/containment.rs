//! What a contained monitor is, has and sees, as the kernel tells it of the real program. Needs root.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Netns, PATIENCE, Scene, alive, block_on, cgroups, monitor, privileged};
use wrenn_vmm::api::{BootSource, Drive, MachineConfig, NetworkInterface};
use wrenn_vmm::{
    CgroupTree, Containment, ContainmentError, Controller, DiskMount, ExitStatus as Exit, Limits,
    MonitorProcess, MonitorProgram, MonitorSpec, ROOT_DISK_PATH, VM_DIR, VmmError,
};

/// In a range that distributions, containers and systemd leave alone.
const USER: u32 = 0x7000_0000;
const LIMITS: Limits = Limits { cpu_percent: Some(150), memory: Some(96 << 20), pids: Some(24) };

/// A spec for the real monitor, contained, with a disk that is a file.
fn contained(scene: &Scene, tree: Option<&CgroupTree>) -> MonitorSpec {
    let mut spec = scene.spec(monitor());
    fs::write(scene.path("disk.img"), "the disk").unwrap();
    spec.disk = Some(DiskMount { source: scene.path("disk.img") });
    spec.netns = Some("/proc/self/ns/net".into());
    let mut containment = Containment::new(USER);
    containment.cgroup = tree.map(|tree| (tree.clone(), LIMITS));
    spec.containment = Some(containment);
    spec
}

fn start(scene: &mut Scene, spec: MonitorSpec) -> MonitorProcess {
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap_or_else(|e| panic!("{e}: {e:?}"));
    let ready = block_on(process.wait_ready(PATIENCE));
    ready.unwrap_or_else(|e| panic!("{e}: {e:?}"));
    process
}

fn proc(process: &MonitorProcess, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", process.pid())).unwrap()
}

/// The value in a line of a `/proc` file, without its spacing.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What of a monitor's mounts is seen here; other tests make others meanwhile.
fn mounts(scene: &Scene) -> Vec<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = [VM_DIR, scene.dir.path().to_str().unwrap()];
    all.lines().filter(|line| own.iter().any(|path| line.contains(path))).map(str::to_owned).collect()
}

fn names(dir: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.as_ref().display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_contained_monitor_has_no_rights() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let spec = contained(&scene, None);
    let process = start(&mut scene, spec);
    let status = proc(&process, "status");
    let ids = [USER; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((field(&status, "Uid"), field(&status, "Gid")), (ids.clone(), ids));
    assert_eq!(field(&status, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0".repeat(16), "{set}");
    }
    assert_eq!((field(&status, "NoNewPrivs").as_str(), field(&status, "Seccomp").as_str()), ("1", "2"));
    assert_eq!(field(&status, "NSpid").split(' ').next_back(), Some("1"), "it is PID 1 where it is");
    for namespace in ["mnt", "pid", "ipc", "uts"] {
        let of = |pid: String| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(process.pid().to_string()), of("self".into()), "{namespace}");
    }
    let limits = proc(&process, "limits");
    for (name, value) in [("Max open files", "1024"), ("Max processes", "256"), ("Max core file size", "0")] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [value; 2], "{name}");
    }
    let environment = proc(&process, "environ");
    let others: Vec<_> =
        environment.split_terminator('\0').filter(|it| !it.starts_with("RUST_BACKTRACE=")).collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", process.pid())).unwrap(), Path::new("/"));
    scene.finish();
}

#[test]
fn a_contained_monitor_sees_what_it_needs_and_nothing_else() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let shown = tempfile::tempdir_in("/var/tmp").unwrap();
    let (read, write) = (shown.path().join("read"), shown.path().join("write"));
    fs::write(&read, "content").unwrap();
    fs::set_permissions(&read, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    fs::create_dir(&write).unwrap();
    fs::write(shown.path().join("not shown"), "secret").unwrap();
    let mut spec = contained(&scene, None);
    let containment = spec.containment.as_mut().unwrap();
    (containment.readable, containment.writable) = (vec![read.clone()], vec![write.clone()]);
    let program = spec.program.path().file_name().unwrap().to_str().unwrap().to_owned();
    let process = start(&mut scene, spec);

    let root = PathBuf::from(format!("/proc/{}/root", process.pid()));
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    // A program with a loader has the machine's libraries beside these.
    let libraries = ["lib", "lib64", "usr", "etc"].map(str::to_owned);
    let top: BTreeSet<_> = names(&root).into_iter().filter(|name| !libraries.contains(name)).collect();
    assert_eq!(top, ["bin", "dev", "run", "tmp", "var"].map(str::to_owned).into());
    assert_eq!(names(root.join("bin")), [program.clone()].into());
    assert_eq!(names(root.join("run")), ["wrenn".to_owned()].into());
    assert_eq!(names(root.join("run/wrenn")), ["vm".to_owned()].into());
    assert_eq!(names(root.join("run/wrenn/vm")), ["root.disk".to_owned()].into());
    assert_eq!(names(root.join("tmp")).len(), 1, "the API socket's directory");
    assert_eq!(names(inside(shown.path())), ["read", "write"].map(str::to_owned).into());
    let mut nodes = Vec::new();
    for (inner, outer) in
        [("kvm", "/dev/kvm"), ("userfaultfd", "/dev/userfaultfd"), ("urandom", "/dev/urandom")]
    {
        if let Ok(outer) = fs::metadata(outer) {
            let node = fs::symlink_metadata(root.join("dev").join(inner)).unwrap();
            assert!(node.file_type().is_char_device());
            assert_eq!(
                (node.rdev(), node.uid(), node.mode() & 0o777),
                (outer.rdev(), USER, 0o600),
                "{inner}"
            );
            nodes.push(inner.to_owned());
        }
    }
    if Path::new("/dev/net/tun").exists() {
        assert_eq!(names(root.join("dev/net")), ["tun".to_owned()].into());
        nodes.push("net".to_owned());
    }
    assert_eq!(names(root.join("dev")), nodes.into_iter().collect());

    let disk = inside(Path::new(ROOT_DISK_PATH));
    assert_eq!(
        (fs::read_to_string(&disk).unwrap().as_str(), disk.metadata().unwrap().uid()),
        ("the disk", USER)
    );
    let mut points = BTreeSet::new();
    for line in proc(&process, "mountinfo").lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        let option = |name| options.split(',').any(|it| it == name);
        let data =
            [ROOT_DISK_PATH, scene.dir.path().to_str().unwrap(), write.to_str().unwrap()].contains(&point);
        assert_eq!(option("ro"), !data, "only what is to be written to can be: {line}");
        assert!(option("nosuid"), "{line}");
        assert_eq!(option("nodev"), point != "/", "{line}");
        points.insert(point.to_owned());
    }
    let mut expected: BTreeSet<_> =
        ["/".to_owned(), format!("/bin/{program}"), ROOT_DISK_PATH.into()].into_iter().collect();
    expected.extend([scene.dir.path(), &read, &write].map(|path| path.to_str().unwrap().to_owned()));
    points.retain(|point| !libraries.iter().any(|library| point.starts_with(&format!("/{library}"))));
    assert_eq!(points, expected, "nothing of the machine's own mounts is left");

    assert_eq!(mounts(&scene), [""; 0], "and nothing of this is seen outside");
    block_on(process.shutdown(PATIENCE)).unwrap();
    assert_eq!(mounts(&scene), [""; 0]);
    scene.finish();
}

#[test]
fn a_contained_monitor_gets_at_its_disk_its_tap_and_its_files() {
    if !privileged() {
        return;
    }
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("SKIP: this machine has no TAP devices");
        return;
    }
    let mut scene = Scene::new();
    let netns = Netns::new("held");
    netns.add_tap("tap0");
    let shown = tempfile::tempdir_in("/var/tmp").unwrap();
    let (kernel, hidden) = (shown.path().join("kernel"), shown.path().join("hidden"));
    for path in [&kernel, &hidden] {
        fs::write(path, "this is no kernel").unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    }
    let mut spec = contained(&scene, None);
    spec.netns = Some(netns.path());
    spec.containment.as_mut().unwrap().readable = vec![kernel.clone()];
    let process = start(&mut scene, spec);
    let client = process.client();
    let drive = Drive {
        drive_id: "root".into(),
        path_on_host: Some(ROOT_DISK_PATH.into()),
        is_read_only: Some(false),
        ..Drive::default()
    };
    let network = NetworkInterface {
        iface_id: "eth0".into(),
        host_dev_name: "tap0".into(),
        ..NetworkInterface::default()
    };
    block_on(async {
        // It opens what it is told of at once, and finds out how much memory the machine has.
        let machine = MachineConfig { vcpu_count: 1, mem_size_mib: 64, ..MachineConfig::default() };
        client.put_machine_config(&machine).await.unwrap();
        client.put_drive(&drive).await.unwrap();
        client.put_network_interface(&network).await.unwrap();
        for (path, read) in [(&kernel, true), (&hidden, false)] {
            let source = BootSource { kernel_image_path: path.clone(), ..BootSource::default() };
            let Err(VmmError::Fault { fault_message, .. }) = client.put_boot_source(&source).await else {
                panic!("it takes {} for a kernel", path.display())
            };
            assert_eq!(!fault_message.contains("could not be opened"), read, "{fault_message}");
        }
    });
    if Path::new("/dev/kvm").exists() {
        let console = fs::read_to_string(process.console_log()).unwrap();
        assert!(!console.contains("/dev/kvm could not be opened"), "{console}");
    }
    scene.finish();
}

#[test]
fn a_monitors_cgroup_has_its_limits_and_goes_with_it() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let Some(tree) = cgroups(&mut scene) else { return scene.finish() };
    let spec = contained(&scene, Some(&tree));
    let dir = tree.path().join(spec.id.as_str());
    let process = start(&mut scene, spec);
    let unified =
        proc(&process, "cgroup").lines().find_map(|line| Some(line.strip_prefix("0::")?.to_owned()));
    assert!(dir.ends_with(unified.unwrap().trim_start_matches('/')), "it is in {}", dir.display());
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap().trim().to_owned();
    assert_eq!(read("cgroup.procs"), process.pid().to_string());
    for (controller, file, value) in [
        (Controller::Cpu, "cpu.max", "150000 100000".to_owned()),
        (Controller::Memory, "memory.max", (96 << 20).to_string()),
        (Controller::Pids, "pids.max", "24".to_owned()),
    ] {
        match tree.missing().contains(&controller) {
            false => assert_eq!(read(file), value),
            true => eprintln!("SKIP: the {controller} controller is not offered by this machine's cgroup2"),
        }
    }
    if !tree.missing().contains(&Controller::Memory) {
        process.extend_memory(wrenn_base::Bytes(32 << 20)).unwrap();
        assert_eq!(read("memory.max"), (128 << 20).to_string());
        process.settle_memory(PATIENCE).unwrap();
        assert_eq!(read("memory.max"), (96 << 20).to_string());
    }
    let own = field(&fs::read_to_string("/proc/self/status").unwrap(), "Cpus_allowed_list");
    assert_eq!(field(&proc(&process, "status"), "Cpus_allowed_list"), own, "it runs where its owner may");
    scene.finish();
    assert!(!alive(process.pid()) && !dir.exists() && !tree.path().exists());
}

#[test]
fn a_contained_monitor_ends_at_once_and_its_end_is_told() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let tree = cgroups(&mut scene);
    let spec = contained(&scene, tree.as_ref());
    let process = start(&mut scene, spec);
    // PID 1 hears no SIGTERM: waiting for it to work would take all of this time.
    let shutdown = block_on(async { tokio::time::timeout(PATIENCE / 2, process.shutdown(PATIENCE)).await });
    let report = shutdown.expect("it does not wait for the grace to run out").unwrap();
    assert_eq!(report.status, Exit::Signaled(9));
    assert!(!alive(process.pid()));
    scene.finish();
}

#[test]
fn sockets_lie_where_a_running_monitor_cannot_replace_them() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let spec = contained(&scene, None);
    let process = start(&mut scene, spec);
    let dir = scene.dir.path().metadata().unwrap();
    assert_eq!((dir.uid(), dir.mode() & 0o777), (rustix::process::getuid().as_raw(), 0o711));
    assert_eq!(scene.path("api.sock").metadata().unwrap().uid(), USER);
    let socket = scene.path("fault.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    process.give(&socket).unwrap();
    assert_eq!(socket.metadata().unwrap().uid(), USER);
    // A link is not followed to what it leads to.
    let precious = scene.path("precious");
    fs::write(&precious, "").unwrap();
    std::os::unix::fs::symlink(&precious, scene.path("link")).unwrap();
    process.give(&scene.path("link")).unwrap();
    assert_ne!(precious.metadata().unwrap().uid(), USER);
    scene.finish();
}

#[test]
fn what_cannot_be_contained_is_refused_before_anything_is_made() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let tree = cgroups(&mut scene);
    let spec = contained(&scene, tree.as_ref());
    let mut spawn = |edit: &dyn Fn(&mut Containment)| {
        let mut spec = spec.clone();
        edit(spec.containment.as_mut().unwrap());
        MonitorProcess::spawn(spec, &mut scene.undo).unwrap_err()
    };
    let absent = PathBuf::from("/no/such/file");
    let error = spawn(&|it| it.readable = vec![absent.clone()]);
    assert!(
        matches!(&error, VmmError::Containment(ContainmentError::Path { path, .. }) if *path == absent),
        "{error:?}"
    );
    let error = spawn(&|it| it.user = 0);
    assert!(matches!(error, VmmError::Containment(ContainmentError::User { user: 0 })), "{error:?}");
    assert!(!spec.console_log.exists());
    assert_eq!(mounts(&scene), [""; 0]);
    if let Some(tree) = &tree {
        assert!(!tree.path().join(spec.id.as_str()).exists());
    }
    scene.finish();
}

#[test]
fn a_contained_program_that_cannot_run_leaves_nothing() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let Some(tree) = cgroups(&mut scene) else { return scene.finish() };
    let mut spec = contained(&scene, Some(&tree));
    // Its interpreter is not in its root.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behave.sh");
    spec.program = MonitorProgram::discover(Some(&script)).unwrap();
    let dir = tree.path().join(spec.id.as_str());
    let error = MonitorProcess::spawn(spec, &mut scene.undo).unwrap_err();
    assert!(matches!(&error, VmmError::Spawn { program, .. } if *program == script), "{error:?}");
    assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap(), "", "no process is left");
    let owner = scene.dir.path().metadata().unwrap().uid();
    assert_eq!(owner, rustix::process::getuid().as_raw(), "the directory is given back");
    scene.finish();
    assert!(!dir.exists());
}

#[test]
fn the_running_program_can_be_its_own_contained_monitor() {
    if !privileged() {
        return;
    }
    let mut scene = Scene::new();
    let mut spec = contained(&scene, None);
    spec.program = MonitorProgram::reexec("wrenn-monitor");
    let process = MonitorProcess::spawn(spec, &mut scene.undo).unwrap();
    // The test harness, found and linked where it is now, does not know a monitor's options.
    let report = block_on(process.exited());
    assert!(report.console_tail.contains("Unrecognized option: 'api-sock'"), "{report:?}");
    assert_eq!(report.status, Exit::Exited(101));
    scene.finish();
}
