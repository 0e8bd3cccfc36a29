//! The `wrenn` command, as a person types it: each a process of its own, with the host process that they share in the background.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{HostState, TestHost, base, eventually, processes, read};

/// The command, in a data directory of its own that has a template called "base".
struct Wrenn {
    test: TestHost,
}

impl Wrenn {
    fn new() -> Self {
        let test = TestHost::new();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(base::template(&test));
        Self { test }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.env("WRENN_DATA", self.test.data()).env("WRENN_IDLE_SECONDS", "2").args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().expect("it runs");
        println!("{args:?}: {} {}{}", output.status, text(&output.stdout), text(&output.stderr));
        output
    }

    /// What it prints; it succeeds.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    /// What it prints as JSON; it succeeds.
    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(&[&["--json"], args].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// The sandboxes that there are, by state.
    #[track_caller]
    fn sandboxes(&self) -> Vec<(String, String)> {
        let listed = self.json(&["ps", "--all"]);
        let field = |sandbox: &Value, name: &str| sandbox[name].as_str().expect("a text").to_owned();
        let listed = listed.as_array().expect("a list").iter();
        listed.map(|sandbox| (field(sandbox, "id"), field(sandbox, "state"))).collect()
    }

    /// Waits until the host process has ended, as nobody needs it.
    #[track_caller]
    fn wait_for_idle_end(&self) {
        let data = self.test.data();
        eventually("the host process ends", || host_process(&data).is_none());
    }
}

fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this test's binary");
    let path = own.ancestors().nth(2).expect("a directory for each profile").join("wrenn");
    assert!(path.exists(), "{} is missing: run `make build`", path.display());
    path
}

fn host_process(data: &Path) -> Option<String> {
    let data = data.display().to_string();
    processes().find(|pid| {
        let line = read(&format!("/proc/{pid}/cmdline"));
        line.contains("host-process") && line.contains(&data)
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_command_runs_in_a_sandbox_of_its_own() {
    let wrenn = Wrenn::new();
    let before = HostState::of(&wrenn.test.data());
    let output =
        wrenn.run(&["run", "-e", "A=b c", "base", "--", "sh", "-c", "echo \"$A\"; echo err >&2; exit 7"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "b c\n".into()));
    assert!(text(&output.stderr).contains("err\n"));

    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let mut cat = wrenn.command(&["run", "-i", "base", "--", "cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let (mut stdin, sent) = (cat.stdin.take().expect("a pipe"), bytes.clone());
    let feeding = std::thread::spawn(move || stdin.write_all(&sent));
    let mut echoed = Vec::new();
    cat.stdout.take().expect("a pipe").read_to_end(&mut echoed).expect("it can be read");
    feeding.join().expect("no panic").expect("all of it is taken");
    assert!(cat.wait().expect("it ends").success() && echoed == bytes);

    assert_eq!(wrenn.run(&["run", "base", "--", "no-such-program"]).status.code(), Some(127));
    assert_eq!(wrenn.run(&["run", "--timeout", "1s", "base", "--", "sleep", "600"]).status.code(), Some(124));
    assert_eq!(wrenn.run(&["run", "base", "--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(wrenn.run(&["run", "no-such-image", "--", "true"]).status.code(), Some(125));
    assert_eq!(wrenn.run(&["run", "--memory", "64t", "base"]).status.code(), Some(2));
    // The template has its memory, and cannot be given another.
    assert_eq!(wrenn.run(&["run", "--memory", "512m", "base"]).status.code(), Some(125));
    assert!(wrenn.sandboxes().is_empty());
    wrenn.wait_for_idle_end();
    before.assert_same_but_for(&HostState::of(&wrenn.test.data()), KEPT);
}

/// What a host and its process leave in the data directory.
const KEPT: &[&str] = &[
    "/host.json",
    "/lock",
    "/sandboxes",
    "/templates",
    "/branches",
    "/host.sock",
    "/host.log",
    "/host.lock",
    "/pager.log",
];

#[test]
fn many_commands_share_a_sandbox() {
    let wrenn = Wrenn::new();
    let id = wrenn.ok(&["run", "--detach", "--label", "task=one", "base"]);
    assert_eq!(wrenn.sandboxes(), [(id.clone(), "running".to_owned())]);
    assert_eq!(wrenn.ok(&["ps", "-q", "--label", "task=one"]), id);
    assert_eq!(wrenn.ok(&["ps", "-q", "--label", "task=two"]), "");

    let here = tempfile::tempdir().expect("a directory");
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("directories");
    fs::write(tree.join("deep/er/bytes"), [0, 159, 255, 10]).expect("a file");
    fs::write(tree.join("hello.sh"), "#!/bin/sh\necho hello from $(id -un)\n").expect("a file");
    fs::set_permissions(tree.join("hello.sh"), fs::Permissions::from_mode(0o755)).expect("a mode");
    symlink("deep/er/bytes", tree.join("near")).expect("a link");
    symlink("/etc/hostname", tree.join("deep/far")).expect("a link");
    let tree_text = tree.display().to_string();
    wrenn.ok(&["cp", &tree_text, &format!("{id}:/root")]);
    assert_eq!(
        wrenn.ok(&["exec", &id, "readlink", "/root/tree/near", "/root/tree/deep/far"]),
        "deep/er/bytes\n/etc/hostname"
    );
    // What is in the guest already leads nowhere else.
    let trap = "mkdir -p /root/out/tree /root/else && ln -s /root/else /root/out/tree/deep";
    wrenn.ok(&["exec", &id, "sh", "-c", trap]);
    assert!(!wrenn.run(&["cp", &tree_text, &format!("{id}:/root/out")]).status.success());
    assert_eq!(wrenn.ok(&["exec", &id, "ls", "/root/else"]), "");
    // The beginning of an id will do.
    assert_eq!(wrenn.ok(&["exec", &id[..6], "/root/tree/hello.sh"]), "hello from root");

    let paused = wrenn.json(&["pause", &id]);
    assert!(paused["memory_written_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{paused}");
    assert_eq!(wrenn.sandboxes(), [(id.clone(), "paused".to_owned())]);
    assert_eq!(wrenn.run(&["exec", &id, "true"]).status.code(), Some(125));
    wrenn.ok(&["resume", &id]);

    let back = here.path().join("back");
    wrenn.ok(&["cp", &format!("{id}:/root/tree"), &back.display().to_string()]);
    assert_eq!(fs::read(back.join("deep/er/bytes")).expect("it came back"), [0, 159, 255, 10]);
    let mode = fs::metadata(back.join("hello.sh")).expect("it came back").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    assert_eq!(fs::read_link(back.join("near")).expect("a link"), Path::new("deep/er/bytes"));
    assert_eq!(fs::read_link(back.join("deep/far")).expect("a link"), Path::new("/etc/hostname"));
    // Nor does what is here.
    let (trap, other) = (here.path().join("trap"), here.path().join("else"));
    fs::create_dir_all(trap.join("tree")).expect("directories");
    fs::create_dir(&other).expect("a directory");
    symlink(&other, trap.join("tree/deep")).expect("a link");
    let copied = wrenn.run(&["cp", &format!("{id}:/root/tree"), &trap.display().to_string()]);
    assert!(!copied.status.success());
    assert_eq!(fs::read_dir(&other).expect("a directory").count(), 0);
    // What is named is followed only where that is asked for.
    wrenn.ok(&["cp", &format!("{id}:/root/tree/near"), &here.path().join("kept").display().to_string()]);
    assert!(here.path().join("kept").is_symlink());
    wrenn.ok(&[
        "cp",
        "-L",
        &format!("{id}:/root/tree/near"),
        &here.path().join("read").display().to_string(),
    ]);
    assert_eq!(fs::read(here.path().join("read")).expect("a file"), [0, 159, 255, 10]);

    let children = wrenn.ok(&["branch", "-n", "2", &id]);
    assert_eq!(children.lines().count(), 2, "{children}");
    for child in children.lines() {
        assert_eq!(wrenn.ok(&["exec", child, "cat", "/root/tree/hello.sh"]).lines().count(), 2);
    }
    wrenn.ok(&["snapshot", &id, "with-tree"]);
    let templates = wrenn.json(&["templates"]);
    assert!(templates.as_array().expect("a list").iter().any(|template| template["name"] == "with-tree"));
    assert_eq!(wrenn.ok(&["run", "with-tree", "--", "/root/tree/hello.sh"]), "hello from root");

    let stats = wrenn.json(&["stats", &id]);
    assert!(stats[0]["memory_resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    assert!(wrenn.json(&["logs", &id])["log"].is_string());
    let mut all = vec!["rm", &id];
    all.extend(children.lines());
    wrenn.ok(&all);
    wrenn.ok(&["templates", "rm", "with-tree"]);
    assert!(wrenn.sandboxes().is_empty());
    wrenn.wait_for_idle_end();
}

#[test]
fn a_port_of_a_guest_is_had_on_this_machine() {
    let wrenn = Wrenn::new();
    let server = "import socket\ns = socket.create_server(('', 8000))\nwhile True:\n c, _ = s.accept()\n c.recv(1000)\n \
                  c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nhello')\n c.close()";
    let id = wrenn.ok(&["run", "--detach", "base", "--", "python3", "-c", server]);
    let mut forward = wrenn.command(&["port-forward", &id, "127.0.0.1:28000:8000"]);
    let mut forward = forward.stderr(Stdio::null()).spawn().expect("it runs");
    eventually("the guest's server answers", || {
        let Ok(mut stream) = std::net::TcpStream::connect("127.0.0.1:28000") else { return false };
        let mut answer = String::new();
        let asked =
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.contains("200 OK")
    });
    forward.kill().expect("it is killed");
    forward.wait().expect("it ends");
    wrenn.ok(&["rm", &id]);
    wrenn.wait_for_idle_end();
}

/// A `run` whose command sleeps, once it does.
fn sleeping(wrenn: &Wrenn) -> Child {
    let mut run = wrenn.command(&["run", "base", "--", "sh", "-c", "echo up; exec sleep 600"]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("it runs");
    let mut first = [0; 3];
    run.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("it prints");
    assert_eq!(&first, b"up\n");
    run
}

#[test]
fn who_interrupts_or_kills_it_leaves_nothing() {
    let wrenn = Wrenn::new();
    let before = HostState::of(&wrenn.test.data());
    let mut interrupted = sleeping(&wrenn);
    let pid = interrupted.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("it runs").success());
    assert_eq!(interrupted.wait().expect("it ends").code(), Some(130));
    assert!(wrenn.sandboxes().is_empty());

    let mut killed = sleeping(&wrenn);
    killed.kill().expect("it is killed");
    killed.wait().expect("it ends");
    // Their pipes would be among what is left.
    drop((interrupted, killed));
    eventually("the sandbox of a killed run is gone", || wrenn.sandboxes().is_empty());
    wrenn.wait_for_idle_end();
    before.assert_same_but_for(&HostState::of(&wrenn.test.data()), KEPT);
}

#[test]
fn a_killed_host_process_costs_no_sandbox() {
    let wrenn = Wrenn::new();
    let id = wrenn.ok(&["run", "--detach", "base"]);
    wrenn.ok(&["exec", &id, "sh", "-c", "echo kept > /root/note"]);
    let pid = host_process(&wrenn.test.data()).expect("a host process");
    assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("it runs").success());
    assert_eq!(wrenn.ok(&["exec", &id, "cat", "/root/note"]), "kept");
    wrenn.ok(&["rm", &id]);
    wrenn.wait_for_idle_end();
}

#[test]
fn a_terminal_is_lent_to_the_guest() {
    let wrenn = Wrenn::new();
    // `script` is the terminal that a person would sit at.
    let line =
        format!("stty rows 33 cols 99; {} run -it base -- sh -c 'tty; stty size'", program().display());
    let mut terminal = Command::new("script");
    terminal
        .args(["-qec", &line, "/dev/null"])
        .env("WRENN_DATA", wrenn.test.data())
        .env("WRENN_IDLE_SECONDS", "2");
    let output = terminal.stdin(Stdio::null()).output().expect("script runs");
    let printed = text(&output.stdout);
    assert!(printed.contains("/dev/pts/") && printed.contains("33 99"), "{printed:?}");
    wrenn.wait_for_idle_end();
}
