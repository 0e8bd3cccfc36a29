//! Commands, as a host runs them.

mod support;

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use support::{Outcome, PATIENCE, TestAgent, eventually, finish, is_root, is_there, sh, shell};
use wrenn_agent_api::{AgentError, Channel, Command, ProcessEvent, Selector, Signal, TerminalSize};

#[tokio::test]
async fn output_status_and_order() {
    let (_agent, client) = TestAgent::claimed().await;
    let outcome = sh(&client, "echo out; echo err >&2; exit 3").await;
    assert_eq!((outcome.stdout, outcome.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
    assert_eq!((outcome.exit_code, outcome.signal, outcome.status.as_str()), (3, None, "exit status 3"));

    let mut stream = client.start(shell("echo x")).await.unwrap();
    let pid = stream.pid();
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        events.push(event);
    }
    assert!(matches!(events[0], ProcessEvent::Start { pid: first, .. } if first == pid));
    assert_eq!(events[1], ProcessEvent::Stdout(Bytes::from_static(b"x\n")));
    assert!(
        matches!(&events[2], ProcessEvent::End { exit_code: 0, status, .. } if status == "exit status 0")
    );
    assert_eq!(events.len(), 3);
    assert_eq!(stream.next().await.unwrap(), None);

    let killed = sh(&client, "kill -SEGV $$").await;
    assert_eq!((killed.exit_code, killed.signal), (-1, Some(11)));
    assert_eq!(killed.status, "signal: segmentation fault");
}

#[tokio::test]
async fn invalid_utf8_passes_unchanged() {
    let (_agent, client) = TestAgent::claimed().await;
    let outcome = sh(&client, r"printf '\377\000\376\n'; printf '\200' >&2").await;
    assert_eq!((outcome.stdout, outcome.stderr), (vec![255, 0, 254, 10], vec![128]));
}

/// What `yes 0123456789abcdef | head -c len` prints.
fn hash_of_lines(len: usize) -> [u8; 32] {
    let block = b"0123456789abcdef\n".repeat(1 << 16);
    let mut hash = Sha256::new();
    let mut left = len;
    while left > 0 {
        let part = left.min(block.len());
        hash.update(&block[..part]);
        left -= part;
    }
    hash.finalize().into()
}

#[tokio::test]
async fn a_slow_reader_slows_the_command_and_loses_nothing() {
    const LEN: usize = 200 << 20;
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let script = format!("yes 0123456789abcdef | head -c {LEN}; touch {}", done.display());
    let mut stream = client.start(shell(&script)).await.unwrap();
    // Nobody reads: the command must be stuck with nearly all of it unwritten. Sockets and pipes hold less.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!done.exists());
    let mut hash = Sha256::new();
    let (mut len, mut chunks) = (0, 0);
    while let Some(event) = stream.next().await.unwrap() {
        match event {
            ProcessEvent::Stdout(bytes) => {
                assert!(bytes.len() <= 32 << 10);
                hash.update(&bytes);
                len += bytes.len();
                chunks += 1;
                if chunks % 1000 == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                assert!(!done.exists() || LEN - len < 64 << 20, "the command ran ahead of its reader");
            }
            ProcessEvent::End { exit_code, .. } => assert_eq!(exit_code, 0),
            _ => {}
        }
    }
    assert_eq!(len, LEN);
    assert_eq!(<[u8; 32]>::from(hash.finalize()), hash_of_lines(LEN));
    assert!(agent.peak_memory() < 48 << 20, "{} bytes", agent.peak_memory());
}

#[tokio::test]
async fn a_command_survives_its_caller_and_its_output_is_drained() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    // First it is stuck because its caller does not read; then the caller goes.
    let script = format!(
        "yes | head -c 30000000; until test -e {0}; do sleep 0.05; done; yes | head -c 30000000; touch {1}",
        go.display(),
        done.display()
    );
    let stream = client.start(shell(&script)).await.unwrap();
    let pid = stream.pid();
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(stream);
    std::fs::write(&go, "").unwrap();
    eventually("the command finishes with nobody listening", || done.exists()).await;
    eventually("it is gone", || !is_there(pid)).await;
}

#[tokio::test]
async fn input_reaches_the_command() {
    let (_agent, client) = TestAgent::claimed().await;
    let input: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let stream = client.start(Command::new("cat").stdin(true)).await.unwrap();
    let pid = stream.pid();
    // The writer waits for the reader: both at once.
    let (outcome, ()) = tokio::join!(finish(stream), async {
        client.send_input(pid, input.clone()).await.unwrap();
        client.send_input(pid, Bytes::from_static(b"end")).await.unwrap();
        client.close_stdin(pid).await.unwrap();
        // Idempotent, while it runs.
        match client.close_stdin(pid).await {
            Ok(()) | Err(AgentError::NotFound { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    });
    assert_eq!(outcome.stdout.len(), input.len() + 3);
    assert!(outcome.stdout.strip_suffix(b"end").unwrap() == input);

    // Without input it is /dev/null; sending is an error that says so.
    assert_eq!(sh(&client, "cat; echo end").await.stdout, b"end\n");
    let stream = client.start(Command::new("sleep").arg("1000")).await.unwrap();
    let error = client.send_input(stream.pid(), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(&error, AgentError::Failed { code, .. } if code == "internal"), "{error:?}");
    client.send_signal(stream.pid(), Signal::Kill).await.unwrap();
    // And to a command that closed its own input.
    let stream = client.start(shell("exec <&-; echo closed; exec sleep 1000").stdin(true)).await.unwrap();
    let pid = stream.pid();
    let mut events = stream;
    while !matches!(events.next().await.unwrap(), Some(ProcessEvent::Stdout(_))) {}
    let error = client.send_input(pid, Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, AgentError::Failed { .. }), "{error:?}");
    client.send_signal(pid, Signal::Kill).await.unwrap();
}

#[tokio::test]
async fn signals_reach_the_whole_group() {
    let (_agent, client) = TestAgent::claimed().await;
    for (signal, number, status) in
        [(Signal::Kill, 9, "signal: killed"), (Signal::Terminate, 15, "signal: terminated")]
    {
        let mut stream = client.start(shell("sleep 1000 & echo $!; wait")).await.unwrap();
        let pid = stream.pid();
        let child = loop {
            if let Some(ProcessEvent::Stdout(line)) = stream.next().await.unwrap() {
                break String::from_utf8(line.to_vec()).unwrap().trim().parse().unwrap();
            }
        };
        client.send_signal(pid, signal).await.unwrap();
        let outcome = finish(stream).await;
        assert_eq!((outcome.signal, outcome.status.as_str()), (Some(number), status));
        eventually("the shell's child is gone, too", || !is_there(child)).await;
        let error = client.send_signal(pid, signal).await.unwrap_err();
        assert!(matches!(error, AgentError::NotFound { .. }), "{error:?}");
    }
    let error = client.send_signal(999_999_999, Signal::Kill).await.unwrap_err();
    assert!(matches!(error, AgentError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn running_commands_are_listed_and_can_be_attached_to() {
    let (_agent, client) = TestAgent::claimed().await;
    assert_eq!(client.list().await.unwrap().len(), 0);
    let command = Command::new("cat").arg("-").env("A", "1").cwd("/tmp").tag("the cat").stdin(true);
    let first = client.start(command).await.unwrap();
    let pid = first.pid();
    let list = client.list().await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].pid, list[0].program.as_str(), &list[0].args), (pid, "cat", &vec!["-".to_owned()]));
    assert_eq!((list[0].tag.as_deref(), list[0].cwd.as_deref()), (Some("the cat"), Some("/tmp")));
    assert_eq!(list[0].envs["A"], "1");

    let second = client.attach(Selector::Tag("the cat".into())).await.unwrap();
    assert_eq!(second.pid(), pid);
    client.send_input(pid, Bytes::from_static(b"meow")).await.unwrap();
    client.close_stdin(pid).await.unwrap();
    let (first, second) = tokio::join!(finish(first), finish(second));
    assert_eq!(first.stdout, b"meow");
    assert_eq!(first, second);
    // It is not running, but its end can still be learned.
    assert_eq!(client.list().await.unwrap().len(), 0);
    let late = finish(client.attach(pid).await.unwrap()).await;
    assert_eq!(late, Outcome { stdout: vec![], ..first });
    let error = client.attach(999_999_999).await.unwrap_err();
    assert!(matches!(error, AgentError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn a_time_limit_kills_also_when_nobody_listens() {
    let (_agent, client) = TestAgent::claimed().await;
    let limited = || shell("sleep 1000 & echo said; sleep 1000").timeout(Duration::from_millis(500));
    let mut stream = client.start(limited()).await.unwrap();
    let pid = stream.pid();
    let mut said = Vec::new();
    let error = loop {
        match stream.next().await {
            Ok(Some(ProcessEvent::Start { .. })) => {}
            Ok(Some(ProcessEvent::Stdout(bytes))) => said.extend_from_slice(&bytes),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(said, b"said\n");
    assert!(matches!(error, AgentError::CommandTimeout), "{error:?}");
    eventually("it was killed", || !is_there(pid)).await;
    let pid = client.start(limited()).await.unwrap().pid();
    eventually("it was killed with nobody listening", || !is_there(pid)).await;
    // One that makes it is not touched.
    let outcome = finish(client.start(shell("echo made it").timeout(PATIENCE)).await.unwrap()).await;
    assert_eq!((outcome.stdout, outcome.exit_code), (b"made it\n".to_vec(), 0));
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_does_not_keep_the_end() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let alive = dir.path().join("alive");
    // The child holds both pipes and writes to them long after the end.
    let script = format!("(sleep 1; echo late; echo late >&2; touch {}) & echo now", alive.display());
    let outcome = tokio::time::timeout(PATIENCE, sh(&client, &script)).await.unwrap();
    assert_eq!((outcome.stdout, outcome.exit_code), (b"now\n".to_vec(), 0));
    eventually("the child was not killed by a closed pipe", || alive.exists()).await;
    // A child that never stops writing.
    let mut stream = client.start(shell("yes & echo $! >&2; exit 7")).await.unwrap();
    let (mut noise, mut code) = (Vec::new(), None);
    while let Some(event) = stream.next().await.unwrap() {
        match event {
            ProcessEvent::Stderr(bytes) => noise.extend_from_slice(&bytes),
            ProcessEvent::End { exit_code, .. } => code = Some(exit_code),
            _ => {}
        }
    }
    assert_eq!(code, Some(7));
    let noisy: i32 = String::from_utf8(noise).unwrap().trim().parse().unwrap();
    let noisy = rustix::process::Pid::from_raw(noisy).unwrap();
    rustix::process::kill_process(noisy, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn what_was_written_before_the_exit_arrives_before_the_end() {
    let (_agent, client) = TestAgent::claimed().await;
    // The last write fills the pipe and is followed by the exit at once; the reader is late.
    for _ in 0..20 {
        let mut stream = client.start(shell("head -c 65536 /dev/zero; sleep 1000 & exit 0")).await.unwrap();
        let mut len = 0;
        while let Some(event) = stream.next().await.unwrap() {
            if let ProcessEvent::Stdout(bytes) = event {
                len += bytes.len();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(len, 65536);
    }
    // A straggler of a pipeline.
    let outcome = sh(&client, "seq 1 100000 | (cat; sleep 0.05; echo tail) & exit 0").await;
    assert!(outcome.stdout.ends_with(b"100000\ntail\n"));
}

#[tokio::test]
async fn environment_directory_and_their_order() {
    let (_agent, client) = TestAgent::claimed().await;
    let env = [("A", "sandbox"), ("B", "sandbox")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    client.init(wrenn_agent_api::Init::default().env(env)).await.unwrap();
    let command = Command::new("env").env("B", "call").env("C", "with spaces\nand lines");
    let outcome = finish(client.start(command).await.unwrap()).await;
    let text = String::from_utf8(outcome.stdout).unwrap();
    for line in ["A=sandbox", "B=call", "C=with spaces", "and lines"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(text.lines().any(|line| line.starts_with("PATH=")) && text.contains("\nHOME="));
    // Nothing of the agent's own environment.
    assert!(!text.contains("CARGO"), "{text}");

    let pwd = |command: Command| async { finish(client.start(command).await.unwrap()).await.stdout };
    assert_eq!(pwd(shell("pwd").cwd("/usr/bin/../lib")).await, b"/usr/lib\n");
    let home = String::from_utf8(sh(&client, "echo $HOME").await.stdout).unwrap();
    assert_eq!(pwd(shell("pwd")).await, home.as_bytes());
    client.init(wrenn_agent_api::Init::default().default_workdir("/tmp")).await.unwrap();
    assert_eq!(pwd(shell("pwd")).await, b"/tmp\n");
    assert_eq!(pwd(shell("pwd").cwd("~")).await, home.as_bytes());
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let (_agent, client) = TestAgent::claimed().await;
    let refused = |command: Command| async { client.start(command).await.unwrap_err() };
    for (command, words) in [
        (Command::new("no-such-program"), "cannot run 'no-such-program': No such file"),
        (Command::new("/etc/passwd"), "cannot run '/etc/passwd': Permission denied"),
        (Command::new(""), "`cmd` is empty"),
        (Command::new("true").cwd("/nope"), "cwd '/nope' does not exist"),
        (Command::new("true").cwd("/etc/passwd"), "cwd '/etc/passwd' does not exist"),
        (Command::new("true").arg("a\0b"), "NUL"),
        (Command::new("true").env("A=B", "c"), "no environment variable"),
    ] {
        match refused(command).await {
            AgentError::InvalidArgument { message, .. } => assert!(message.contains(words), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    let error = refused(Command::new("true").user("no-such-user")).await;
    assert!(matches!(error, AgentError::UnknownUser { .. }), "{error:?}");
    // None of it left a process behind.
    assert_eq!(client.list().await.unwrap().len(), 0);
}

#[tokio::test]
async fn commands_run_as_who_they_should() {
    if !is_root() {
        eprintln!("SKIP: only root can run commands as others");
        return;
    }
    let (_agent, client) = TestAgent::claimed().await;
    let script = "id -u; id -g; id -G; echo $USER $LOGNAME $HOME";
    let who = |command: Command| async {
        String::from_utf8(finish(client.start(command).await.unwrap()).await.stdout).unwrap()
    };
    let nobody = who(shell(script).user("nobody")).await;
    let lines: Vec<_> = nobody.lines().collect();
    assert_eq!(lines[0], "65534");
    assert_eq!(lines[3], "nobody nobody /nonexistent");
    // The groups of this process are not those of the user.
    assert_eq!(lines[1], lines[2]);
    assert!(who(shell(script).user("root")).await.starts_with("0\n0\n"));
    client.init(wrenn_agent_api::Init::default().default_user("nobody")).await.unwrap();
    assert!(who(shell(script)).await.starts_with("65534\n"));
    // A directory that the user may not enter is no place to run in.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let closed = dir.path().to_str().unwrap();
    let error = client.start(shell("pwd").cwd(closed)).await.unwrap_err();
    assert!(matches!(error, AgentError::InvalidArgument { .. }), "{error:?}");
}

#[tokio::test]
async fn each_command_leads_a_session_and_inherits_three_descriptors() {
    let (_agent, client) = TestAgent::claimed().await;
    let outcome = sh(&client, "echo $$ $(ps -o sid=,pgid= -p $$); exec ls /proc/self/fd").await;
    let text = String::from_utf8(outcome.stdout).unwrap();
    let mut lines = text.lines();
    let ids: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // The fourth is the directory that ls reads.
    assert_eq!(lines.collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn what_was_missed_comes_to_who_asks() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    let script = format!(
        "echo first; until test -e {0}; do sleep 0.02; done; echo out; echo err >&2; touch {1}; exec cat",
        go.display(),
        done.display()
    );
    let mut stream = client.start(shell(&script).stdin(true)).await.unwrap();
    let pid = stream.pid();
    assert!(!stream.is_terminal());
    stream.next().await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ProcessEvent::Stdout(Bytes::from_static(b"first\n"))));
    drop(stream);
    // Its end of the connection must be gone, too.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(&go, "").unwrap();
    eventually("it has printed with nobody listening", || done.exists()).await;
    let plain = client.attach(pid).await.unwrap();
    let again = client.attach_with_missed(pid).await.unwrap();
    client.send_input(pid, "live").await.unwrap();
    client.close_stdin(pid).await.unwrap();
    let (plain, again) = tokio::join!(finish(plain), finish(again));
    assert_eq!((plain.stdout, plain.stderr), (b"live".to_vec(), vec![]));
    assert_eq!((again.stdout, again.stderr), (b"out\nlive".to_vec(), b"err\n".to_vec()));
}

#[tokio::test]
async fn of_much_that_was_missed_the_last_comes_and_the_rest_is_counted() {
    const LEN: usize = 3_000_000;
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script =
        format!("until test -e {}; do sleep 0.02; done; seq -f %09.0f 300000; printf e >&2", go.display());
    let stream = client.start(shell(&script)).await.unwrap();
    let pid = stream.pid();
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(&go, "").unwrap();
    eventually("it is over", || !is_there(pid)).await;
    let mut stream = client.attach_with_missed(Selector::Pid(pid)).await.unwrap();
    let (mut lost, mut stdout, mut stderr) = (0, Vec::new(), Vec::new());
    while let Some(event) = stream.next().await.unwrap() {
        match event {
            ProcessEvent::Lost { channel, bytes, .. } => {
                assert_eq!((channel, stdout.len(), lost), (Channel::Stdout, 0, 0));
                lost = bytes as usize;
            }
            ProcessEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            ProcessEvent::End { exit_code, .. } => assert_eq!(exit_code, 0),
            _ => {}
        }
    }
    let all: String = (1..=LEN / 10).map(|n| format!("{n:09}\n")).collect();
    assert_eq!((lost + stdout.len(), stderr.as_slice()), (LEN, &b"e"[..]));
    assert!(lost > 2_000_000 && stdout == all.as_bytes()[lost..], "{lost}");
    assert!(agent.peak_memory() < 48 << 20, "{} bytes", agent.peak_memory());
}

#[tokio::test]
async fn a_terminal_that_changes_its_size() {
    let (_agent, client) = TestAgent::claimed().await;
    let size = TerminalSize { columns: 100, rows: 30 };
    let command = shell("stty size; while read line; do echo \"<$line>\"; stty size; done").terminal(size);
    let mut stream = client.start(command).await.unwrap();
    let pid = stream.pid();
    assert!(stream.is_terminal());
    let mut text = String::new();
    let mut until = async |stream: &mut wrenn_agent_api::ProcessStream, what: &str| {
        while !text.contains(what) {
            match stream.next().await.unwrap().unwrap() {
                ProcessEvent::Terminal(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                ProcessEvent::Start { .. } => {}
                other => panic!("{other:?}, after {text}"),
            }
        }
        text.clear();
    };
    until(&mut stream, "30 100\r\n").await;
    client.resize(pid, TerminalSize { columns: 33, rows: 7 }).await.unwrap();
    client.send_terminal_input(pid, "typed\n").await.unwrap();
    until(&mut stream, "<typed>\r\n7 33\r\n").await;
    // Echoed while nobody looks.
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send_terminal_input(pid, "unseen\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut stream = client.attach_with_missed(pid).await.unwrap();
    assert!(stream.is_terminal());
    until(&mut stream, "<unseen>\r\n7 33\r\n").await;
    assert!(matches!(client.send_input(pid, "x").await, Err(AgentError::InvalidArgument { .. })));
    client.send_terminal_input(pid, "\u{4}").await.unwrap();
    assert_eq!(finish(stream).await.exit_code, 0);
    let cat = client.start(Command::new("cat").stdin(true)).await.unwrap();
    let refused = client.resize(cat.pid(), size).await;
    assert!(matches!(refused, Err(AgentError::InvalidArgument { .. })), "{refused:?}");
    client.send_signal(cat.pid(), Signal::Kill).await.unwrap();
}
