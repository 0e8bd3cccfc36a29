//! What a live sandbox's monitor is, has and sees: after its boot, beside a snapshot, and after each way of resuming.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::{HostState, TestHost, resume};
use wrenn::{ContainmentPolicy, Controller, DiskBackend, MiB, RestoreMode, RestoreOptions, Sandbox};

const MEMORY: MiB = MiB(128);
/// 128 MiB, a thirty-second part of it, and 64 MiB.
const MEMORY_MAX: u64 = (128 + 4 + 64) << 20;

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What is below `dir` and belongs to a monitor's user.
fn given_away(dir: &Path) -> Vec<PathBuf> {
    let own = fs::metadata("/proc/self").unwrap().uid();
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            found.append(&mut given_away(&path));
        }
        if meta.uid() != own || meta.gid() != own {
            found.push(path);
        }
    }
    found
}

/// The CPUs in a list such as `1-3,5`.
fn cpus(list: &str) -> BTreeSet<u32> {
    let number = |text: &str| text.parse::<u32>().unwrap();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(part)..=number(part),
    };
    list.split(',').filter(|part| !part.is_empty()).flat_map(range).collect()
}

/// A monitor that was looked at: what must differ, or be the same, the next time.
struct Look {
    user: String,
    cgroup: PathBuf,
}

/// Looks at the monitor of a sandbox that answers, of a host in `data`.
fn check(sandbox: &Sandbox, data: &Path) -> Look {
    let proc = PathBuf::from(format!("/proc/{}", sandbox.monitor_pid()));
    let status = read(proc.join("status"));
    let user = field(&status, "Uid").split(' ').next().unwrap().to_owned();
    assert!(user.parse::<u32>().unwrap() > 0x7000_0000, "a user for each slot, from 1 on: {user}");
    assert_eq!(field(&status, "Uid"), [user.as_str(); 4].join(" "));
    assert_eq!(field(&status, "Gid"), [user.as_str(); 4].join(" "));
    assert_eq!(field(&status, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0".repeat(16), "{set}");
    }
    assert_eq!((field(&status, "NoNewPrivs").as_str(), field(&status, "Seccomp").as_str()), ("1", "2"));
    assert_eq!(field(&status, "NSpid").split(' ').next_back(), Some("1"));
    for namespace in ["mnt", "pid", "ipc", "uts", "net"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert_ne!(fs::read_link(proc.join("ns").join(namespace)).unwrap(), own, "{namespace}");
    }

    let root = proc.join("root");
    for hidden in ["proc", "sys", "root", "home", "boot"] {
        assert!(!root.join(hidden).exists(), "{hidden}");
    }
    let inside = root.join(data.strip_prefix("/").unwrap());
    let id = sandbox.id().as_str();
    let sandboxes = inside.join("sandboxes");
    assert_eq!(names(&sandboxes), [id.to_owned()].into(), "it sees no other sandbox");
    let own = names(&sandboxes.join(id));
    assert!(own.contains("monitor") && !own.contains("disk.cow") && !own.contains("snapshots"), "{own:?}");

    let path = read(proc.join("cgroup")).lines().find_map(|line| Some(line.strip_prefix("0::/")?.to_owned()));
    let cgroup = Path::new("/sys/fs/cgroup").join(path.unwrap());
    assert!(cgroup.starts_with("/sys/fs/cgroup/wrenn") && cgroup.ends_with(id), "{}", cgroup.display());
    assert_eq!(read(cgroup.join("cpu.max")), "150000 100000");
    assert_eq!(read(cgroup.join("memory.max")), MEMORY_MAX.to_string());
    assert_eq!(read(cgroup.join("pids.max")), "17");
    // A thread of the kernel's, which older kernels make for each machine of KVM's, is listed as well; it has no memory.
    let procs = read(cgroup.join("cgroup.procs"));
    let of_users = |pid: &&str| !read(format!("/proc/{pid}/statm")).starts_with("0 ");
    assert_eq!(procs.lines().filter(of_users).collect::<Vec<_>>(), [sandbox.monitor_pid().to_string()]);
    let owner = cpus(&field(&read("/proc/self/status"), "Cpus_allowed_list"));
    for thread in names(&proc.join("task")) {
        let status = read(proc.join("task").join(thread).join("status"));
        let allowed = cpus(&field(&status, "Cpus_allowed_list"));
        assert!(!allowed.is_empty() && allowed.is_subset(&owner), "{allowed:?} are not among {owner:?}");
    }
    assert!(cpus(&read(cgroup.join("cpuset.cpus.effective"))).is_subset(&owner));
    Look { user, cgroup }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_is_contained_for_all_of_its_sandboxs_life() {
    let test = TestHost::new();
    let policy = ContainmentPolicy {
        required: vec![Controller::Cpu, Controller::Memory, Controller::Pids],
        ..ContainmentPolicy::default()
    };
    let host = test.builder().containment(policy).open().await.expect("the host opens");
    let opened = HostState::of(&test.data());
    let sandbox = host.sandbox("debian").unwrap().memory(MEMORY).create().await.expect("the sandbox boots");
    let first = check(&sandbox, &test.data());
    sandbox.exec("echo kept > /root/state; sync").await.unwrap();

    // A copy of the process freezes the memory meanwhile; afterwards the limit is what it was.
    let child = sandbox.branch(1).await.unwrap().pop().unwrap();
    check(&sandbox, &test.data());
    let other = check(&child, &test.data());
    assert_ne!((&first.user, &first.cgroup), (&other.user, &other.cgroup), "no two share a user");
    child.destroy().await.unwrap();
    assert!(!other.cgroup.exists());

    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    assert!(!first.cgroup.exists());
    assert_eq!(given_away(&test.data()), Vec::<PathBuf>::new());
    // A full snapshot is in one layer, so it can be mapped.
    let file = RestoreOptions { mode: RestoreMode::File, ..RestoreOptions::default() };
    let sandbox = resume(paused, file).await;
    let mapped = check(&sandbox, &test.data());
    assert_eq!(mapped.cgroup, first.cgroup);
    assert_eq!(sandbox.exec("cat /root/state").await.unwrap().stdout_text(), "kept");
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = resume(paused, RestoreOptions::default()).await;
    check(&sandbox, &test.data());
    assert_eq!(sandbox.exec("cat /root/state").await.unwrap().stdout_text(), "kept");
    sandbox.destroy().await.unwrap();
    opened.assert_same(&HostState::of(&test.data()));
    host.close().await.unwrap();
    assert!(!first.cgroup.parent().unwrap().exists(), "the host's cgroups go with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_a_file_is_its_monitors_for_as_long_as_it_runs() {
    let test = TestHost::new();
    let host = test.builder().disk_backend(DiskBackend::Copy).open().await.expect("the host opens");
    let sandbox = host.sandbox("debian").unwrap().memory(MEMORY).create().await.expect("the sandbox boots");
    let disk = |id: &str| test.data().join("sandboxes").join(id).join("disk.cow");
    let id = sandbox.id().as_str().to_owned();
    assert_eq!(given_away(&test.data()), [disk(&id)]);
    sandbox.exec("echo kept > /root/state; sync").await.unwrap();
    let template = sandbox.snapshot("t").await.unwrap().template;
    assert_eq!(given_away(&test.data()), [disk(&id)]);
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    assert_eq!(given_away(&test.data()), Vec::<PathBuf>::new());
    let sandbox = resume(paused, RestoreOptions::default()).await;
    assert_eq!(given_away(&test.data()), [disk(&id)], "and not the snapshot's");
    let other = template.spawn(1).await.unwrap().remove(0);
    for sandbox in [sandbox, other] {
        assert_eq!(
            sandbox.exec("cat /root/state; echo more >> /root/state").await.unwrap().stdout_text(),
            "kept"
        );
        sandbox.destroy().await.unwrap();
    }
    template.delete().await.unwrap();
    drop(template);
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_can_run_uncontained_to_look_for_a_fault() {
    let test = TestHost::new();
    let policy = ContainmentPolicy { enabled: false, ..ContainmentPolicy::default() };
    let host = test.builder().containment(policy).open().await.expect("the host opens");
    let sandbox = host.sandbox("debian").unwrap().memory(MEMORY).create().await.expect("the sandbox boots");
    let status = read(format!("/proc/{}/status", sandbox.monitor_pid()));
    assert_eq!(field(&status, "Uid"), "0 0 0 0");
    assert_eq!(field(&status, "NSpid"), sandbox.monitor_pid().to_string());
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = resume(paused, RestoreOptions::default()).await;
    assert!(sandbox.exec("true").await.unwrap().status.success());
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}
