//! A look at everything that a sandbox may leave behind on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_socket2::NetlinkSocket;

/// Everything that the sandboxes of one host put on a machine, as sorted lines: equal before and after, or something
/// leaked. What belongs to the host's pager is left out: it is there from the first restore until the host is closed, which
/// `recovery.rs` looks at. Other tests run beside this one, so only what bears the host's id or lies in its directory is looked at;
/// `lab/left-behind` looks at the whole machine when all tests have run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostState {
    lines: BTreeSet<String>,
}

impl HostState {
    /// Looks at the machine for what belongs to the host in `data`, and at its files.
    pub(crate) fn of(data: &Path) -> Self {
        // Before it is opened for the first time it has no id, and nothing on the machine can bear it.
        let id = host_id(data).unwrap_or_else(|| "no id yet".into());
        let data_text = data.display().to_string();
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, what: String| {
            if what.contains(&id) || what.contains(&data_text) || kind.starts_with("own ") {
                lines.insert(format!("{kind} {what}"));
            }
        };
        for link in names("/sys/class/net") {
            add("link", link);
        }
        for device in names("/sys/block") {
            if device.starts_with("dm-") {
                add("device-mapper", read(&format!("/sys/block/{device}/dm/name")));
            }
            let backing = format!("/sys/block/{device}/loop/backing_file");
            if Path::new(&backing).exists() {
                add("loop", read(&backing));
            }
        }
        for mount in fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines() {
            add("mount", mount.split(' ').nth(4).unwrap_or_default().to_owned());
        }
        for table in nft_tables() {
            add("nft", table);
        }
        for cgroup in cgroups(&id).into_iter().filter(|path| !path.ends_with("pager")) {
            add("cgroup", cgroup.display().to_string());
        }
        for root in [data, &Path::new("/run/wrenn-test").join(&id), &Path::new("/run/wrenn").join(&id)] {
            let pagers = |path: &PathBuf| path.ends_with("pager.sock") || path.ends_with("pager.log");
            for file in files_below(root).into_iter().filter(|path| !pagers(path)) {
                add("file", file.display().to_string());
            }
        }
        for (pid, command) in monitors().into_iter().filter(|(_, command)| command != PAGER) {
            add("own process", format!("{pid} {command}"));
        }
        add("own threads", threads().join(" "));
        add("own descriptors", descriptors().join(" "));
        Self { lines }
    }

    /// How many things of a kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.lines.iter().filter(|line| line.split(' ').next() == Some(kind)).count()
    }

    /// Fails with what is new and what is gone, if anything is.
    #[track_caller]
    pub(crate) fn assert_same(&self, after: &Self) {
        self.assert_same_but_for(after, &[]);
    }

    /// As [`assert_same`](Self::assert_same), but new files may be there whose path ends with one of `expected`.
    #[track_caller]
    pub(crate) fn assert_same_but_for(&self, after: &Self, expected: &[&str]) {
        let unexpected =
            |line: &&String| !(line.starts_with("file ") && expected.iter().any(|end| line.ends_with(end)));
        let new: Vec<_> = after.lines.difference(&self.lines).filter(unexpected).collect();
        let gone: Vec<_> = self.lines.difference(&after.lines).collect();
        assert!(new.is_empty() && gone.is_empty(), "left behind: {new:#?}\ngone: {gone:#?}");
    }

    /// Without what comes and goes while a sandbox runs: what this process has open, connections to the agent among it, and the
    /// working set as it is being written.
    pub(crate) fn while_running(mut self) -> Self {
        let passing = |line: &str| {
            line.starts_with("own descriptors")
                || line.contains("/.staged-") && line.ends_with("-working-set")
        };
        self.lines.retain(|line| !passing(line));
        self
    }

    /// Fails unless there is something of `kind` that was not there before.
    #[track_caller]
    pub(crate) fn assert_differs(&self, after: &Self, kind: &str) {
        let new: Vec<_> = after.lines.difference(&self.lines).collect();
        assert!(new.iter().any(|line| line.starts_with(kind)), "nothing of kind {kind}: {new:#?}");
    }
}

/// The id that the host in `data` has in the names of everything it makes.
fn host_id(data: &Path) -> Option<String> {
    let record = fs::read_to_string(data.join("host.json")).ok()?;
    let (_, id) = record.split_once("\"id\":\"").expect("an id in host.json");
    Some(id.split('"').next().expect("a quote").to_owned())
}

pub(super) fn names(dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The numbers of all processes.
pub(crate) fn processes() -> impl Iterator<Item = String> {
    names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
}

/// Processes that this one started and that are still there, zombies included. Other tests run beside this one.
pub(super) fn monitors() -> Vec<(String, String)> {
    let own = format!("PPid:\t{}", std::process::id());
    let child = |pid: &String| read(&format!("/proc/{pid}/status")).lines().any(|line| line == own);
    processes().filter(child).map(|pid| (pid.clone(), read(&format!("/proc/{pid}/comm")))).collect()
}

/// The cgroups of the host `id`.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup/wrenn").join(id);
    let below = names(&root.display().to_string()).into_iter().map(|name| root.join(name));
    root.is_dir().then(|| root.clone()).into_iter().chain(below.filter(|path| path.is_dir())).collect()
}

/// Asked of the kernel, as the `nft` program takes longer in the lab than all the rest of this.
fn nft_tables() -> Vec<String> {
    let request = Request::new().op_gettable_dump(&Nfgenmsg::new());
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request).expect("the kernel takes the question");
    let mut tables = Vec::new();
    while let Some(answer) = reply.recv() {
        let (_, table) = answer.expect("a table");
        tables.push(table.get_name().expect("it has a name").to_string_lossy().into_owned());
    }
    tables
}

pub(super) fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else { return found };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// The threads of this process that are not the asynchronous runtime's, which come and go.
fn threads() -> Vec<String> {
    let comm = |id: String| read(&format!("/proc/self/task/{id}/comm"));
    let mut threads: Vec<String> = names("/proc/self/task").into_iter().map(comm).collect();
    threads.retain(|name| !name.starts_with("tokio-") && name != PAGER);
    threads.sort();
    threads
}

/// How many pagers this process talks to: it has a thread for each.
fn pagers_in_use() -> usize {
    let comm = |id: String| read(&format!("/proc/self/task/{id}/comm"));
    names("/proc/self/task").into_iter().map(comm).filter(|name| name == PAGER).count()
}

/// What this process has open, apart from the runtime's own and the directory being listed.
fn descriptors() -> Vec<String> {
    let target = |fd: String| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let mut open: Vec<String> = names("/proc/self/fd")
        .into_iter()
        .filter_map(target)
        .map(|path| path.display().to_string())
        .map(|path| path.split(":[").next().unwrap_or_default().to_owned())
        .filter(|path| !path.starts_with("/proc/"))
        .collect();
    open.sort();
    // The connection that keeps a pager, and its copy for the thread that waits for its end.
    for _ in 0..pagers_in_use() * 2 {
        if let Some(index) = open.iter().position(|path| path == "socket") {
            open.remove(index);
        }
    }
    open
}

/// What the process that pages memory in is called, and the thread that waits for it.
pub(super) const PAGER: &str = "wrenn-pager";
