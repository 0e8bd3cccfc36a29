//! Commands, terminals and files of a sandbox, as its user has them. Each test boots or resumes one sandbox.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wrenn::{
    Channel, ErrorKind, FileEventKind, FileKind, FileWatch, Host, ProcessEvent, Sandbox, Signal, WatchOptions,
};

use crate::support::{TestHost, base};

/// How long a test waits for what must come, in a machine that may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(120);

async fn begin() -> (TestHost, Host, Sandbox) {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = base::sandbox(&test, &host).await;
    (test, host, sandbox)
}

async fn end(host: Host, sandbox: Sandbox) {
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipes_carry_any_bytes_both_ways() {
    let (_test, host, sandbox) = begin().await;
    // More than everything on the way holds, so that both ends must go at the same pace.
    let input: Vec<u8> = (0..5_000_000u32).flat_map(|n| (n % 65_521).to_le_bytes()).take(5_000_000).collect();
    let mut cat =
        sandbox.command("sh").args(["-c", "echo begun >&2; cat"]).stdin_piped().spawn().await.unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (cat.take_stdin().unwrap(), cat.take_stdout().unwrap(), cat.take_stderr().unwrap());
    assert!(cat.take_stdin().is_none() && cat.take_stdout().is_none() && cat.take_stderr().is_none());
    let (mut output, mut noise) = (Vec::new(), String::new());
    let writing = async {
        stdin.write_all(&input).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let (read, noisy, ()) = in_time(async {
        tokio::join!(stdout.read_to_end(&mut output), stderr.read_to_string(&mut noise), writing)
    })
    .await;
    read.unwrap();
    noisy.unwrap();
    assert!(output == input, "{} of {} bytes", output.len(), input.len());
    assert_eq!(noise, "begun\n");
    assert!(cat.wait().await.unwrap().success());
    assert!(cat.wait().await.unwrap().success(), "it can be asked again");
    let gone = stdin.write(b"x").await.unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::BrokenPipe);

    let every_byte: Vec<u8> = (0..=255).collect();
    let output = sandbox
        .exec(r"i=0; while [ $i -lt 256 ]; do printf \\$(printf %03o $i); i=$((i+1)); done")
        .await
        .unwrap();
    assert_eq!(output.stdout, every_byte);

    // Input that nobody took is closed, and dropped input as well: either command would wait for ever.
    let sort = sandbox.command("sort").stdin_piped().spawn().await.unwrap();
    assert_eq!(in_time(sort.wait_with_output()).await.unwrap().stdout, b""[..]);
    let mut sort = sandbox.command("sort").stdin_piped().spawn().await.unwrap();
    let mut stdin = sort.take_stdin().unwrap();
    stdin.write_all(b"b\na\n").await.unwrap();
    drop(stdin);
    assert_eq!(in_time(sort.wait_with_output()).await.unwrap().stdout, b"a\nb\n"[..]);

    let mut sleep = sandbox.command("sleep").arg("1000").spawn().await.unwrap();
    sleep.signal(Signal::Terminate).await.unwrap();
    assert_eq!(in_time(sleep.wait()).await.unwrap().signal(), Some(15));
    end(host, sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_stops_the_command() {
    let (_test, host, sandbox) = begin().await;
    const LEN: usize = 32 << 20;
    let script = format!("head -c {LEN} /dev/zero; touch /tmp/done");
    let mut process = sandbox.command("sh").args(["-c", &script]).spawn().await.unwrap();
    let mut stdout = process.take_stdout().unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!sandbox.files().exists("/tmp/done").await.unwrap(), "it ran ahead of its reader");
    let mut read = 0;
    while let Some(piece) = in_time(stdout.next_piece()).await.unwrap() {
        read += piece.len();
    }
    assert_eq!(read, LEN);
    assert!(process.wait().await.unwrap().success());
    assert!(sandbox.files().exists("/tmp/done").await.unwrap());

    // One that is dropped does not.
    let mut process = sandbox.command("sh").args(["-c", &script]).spawn().await.unwrap();
    drop(process.take_stdout());
    assert!(in_time(process.wait()).await.unwrap().success());
    end(host, sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_process_survives_and_what_was_missed_comes() {
    let (_test, host, sandbox) = begin().await;
    // It counts until it is told to stop, and says a lot at the end.
    let script = "n=0; until [ -e /tmp/stop ]; do echo $n; n=$((n+1)); sleep 0.2; done; \
        seq -f %09.0f 100000 >&2; touch /tmp/said; echo end; cat";
    let mut counter =
        sandbox.command("sh").args(["-c", script]).tag("counter").stdin_piped().spawn().await.unwrap();
    let pid = counter.pid();
    let first = loop {
        match in_time(counter.next()).await.unwrap().unwrap() {
            ProcessEvent::Stdout(piece) => break piece,
            event => assert!(matches!(event, ProcessEvent::Start { .. }), "{event:?}"),
        }
    };
    assert!(first.starts_with(b"0\n"), "{first:?}");
    drop(counter);
    let paused = sandbox.pause().await.unwrap();
    let sandbox = paused.resume().await.unwrap();
    let listed = sandbox.processes().await.unwrap();
    let listed = listed.iter().find(|process| process.pid == pid).expect("it is there as before");
    assert_eq!((listed.tag.as_deref(), listed.program.as_str()), (Some("counter"), "sh"));

    // What it printed with nobody attached comes first, in order and without a gap.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut attached = sandbox.attach("counter").await.unwrap();
    let mut seen = String::new();
    while seen.lines().count() < 4 {
        match in_time(attached.next()).await.unwrap().unwrap() {
            ProcessEvent::Stdout(piece) => seen.push_str(std::str::from_utf8(&piece).unwrap()),
            event => assert!(matches!(event, ProcessEvent::Start { .. }), "{event:?}"),
        }
    }
    let numbers: Vec<u32> = seen.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    drop(attached);

    // More than is kept: the last of it comes, and how much is missing.
    sandbox.files().write("/tmp/stop", "").await.unwrap();
    in_time(async {
        while !sandbox.files().exists("/tmp/said").await.unwrap() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    let mut attached = sandbox.attach(pid).await.unwrap();
    let mut stdin = attached.take_stdin().unwrap();
    stdin.write_all(b"farewell").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (mut lost, mut stdout, mut stderr) = (0, Vec::new(), Vec::new());
    while let Some(event) = in_time(attached.next()).await.unwrap() {
        match event {
            ProcessEvent::Lost { channel: Channel::Stderr, bytes, .. } => lost += bytes,
            ProcessEvent::Stdout(piece) => stdout.extend_from_slice(&piece),
            ProcessEvent::Stderr(piece) => stderr.extend_from_slice(&piece),
            _ => {}
        }
    }
    assert!(stdout.ends_with(b"end\nfarewell"), "{:?}", String::from_utf8_lossy(&stdout));
    assert_eq!(lost + stderr.len() as u64, 1_000_000);
    assert!(lost > 500_000 && stderr.ends_with(b"000100000\n"), "{lost} lost");
    assert!(attached.wait().await.unwrap().success());
    let refused = sandbox.attach(999_999u32).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    end(host, sandbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_echoes_and_changes_its_size() {
    let (_test, host, sandbox) = begin().await;
    let mut terminal = sandbox.pty().size(100, 30).env("PS1", "$ ").spawn().await.unwrap();
    let pid = terminal.pid();
    let mut seen = String::new();
    // A person waits for the prompt too.
    shows(&mut terminal, &mut seen, "# ").await;
    // The size is asked for by a word that is not in what was typed.
    in_time(terminal.write_all(b"echo first-$(stty size | tr ' ' x); tty\n")).await.unwrap();
    shows(&mut terminal, &mut seen, "first-30x100").await;
    shows(&mut terminal, &mut seen, "/dev/pts/").await;
    assert!(seen.contains("echo first-$(stty"), "it echoes: {seen}");
    terminal.resize(33, 7).await.unwrap();
    in_time(terminal.write_all(b"echo second-$(stty size | tr ' ' x)\n")).await.unwrap();
    shows(&mut terminal, &mut seen, "second-7x33").await;
    // Ctrl-C ends what runs in the foreground, and not the shell.
    in_time(terminal.write_all(b"sleep 1000\n")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    in_time(terminal.write_all(b"\x03")).await.unwrap();
    // What is typed ahead of the signal's effect may be thrown away with it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    in_time(terminal.write_all(b"echo still-$((40+2))\n")).await.unwrap();
    shows(&mut terminal, &mut seen, "still-42").await;
    // It goes on without anybody, and is found again.
    drop(terminal);
    let mut terminal = sandbox.attach(pid).await.unwrap().into_terminal().unwrap();
    in_time(terminal.write_all(b"echo again-$((40+2)); exit 5\n")).await.unwrap();
    seen.clear();
    shows(&mut terminal, &mut seen, "again-42").await;
    let mut rest = Vec::new();
    in_time(terminal.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(in_time(terminal.wait()).await.unwrap().code(), Some(5));

    let mut ended = sandbox.pty().command("sh").args(["-c", "exit 3"]).spawn().await.unwrap();
    assert_eq!(in_time(ended.wait()).await.unwrap().code(), Some(3));
    end(host, sandbox).await;
}

async fn shows(terminal: &mut wrenn::Terminal, seen: &mut String, what: &str) {
    let mut buffer = [0; 4096];
    while !seen.contains(what) {
        let read = in_time(terminal.read(&mut buffer)).await.unwrap();
        assert_ne!(read, 0, "it ended without {what}: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_listed_made_moved_watched_and_removed() {
    let (_test, host, sandbox) = begin().await;
    let files = sandbox.files();
    let made = files.mkdir("/srv/tree/deep").await.unwrap();
    assert_eq!((made.kind, made.path.as_str()), (FileKind::Directory, "/srv/tree/deep"));
    assert!(files.mkdir("/srv/tree/deep").await.is_err());
    let mut watch = files.watch("/srv/tree", WatchOptions::new().recursive(true)).await.unwrap();
    files.write("/srv/tree/deep/file", "12345").await.unwrap();
    for kind in [FileEventKind::Create, FileEventKind::Attributes, FileEventKind::Write] {
        assert_eq!(next(&mut watch).await, ("deep/file".to_owned(), kind));
    }
    let file = files.stat("/srv/tree/deep/file").await.unwrap();
    assert_eq!((file.kind, file.size, file.mode, file.owner.as_str()), (FileKind::File, 5, 0o644, "root"));
    sandbox.exec("ln -s deep/file /srv/tree/link").await.unwrap();
    assert_eq!(next(&mut watch).await, ("link".to_owned(), FileEventKind::Create));
    let link = files.stat("/srv/tree/link").await.unwrap();
    assert_eq!((link.kind, link.link_target.as_deref()), (FileKind::File, Some("/srv/tree/deep/file")));
    let names =
        |listed: Vec<wrenn::FileInfo>| -> Vec<String> { listed.into_iter().map(|file| file.name).collect() };
    assert_eq!(names(files.list("/srv/tree").await.unwrap()), ["deep", "link"]);
    assert_eq!(names(files.list_deep("/srv/tree", 2).await.unwrap()), ["deep", "file", "link"]);
    // Within one directory that exists, and into one that does not yet.
    files.rename("/srv/tree/deep/file", "/srv/tree/moved").await.unwrap();
    assert_eq!(next(&mut watch).await, ("deep/file".to_owned(), FileEventKind::Rename));
    assert_eq!(next(&mut watch).await, ("moved".to_owned(), FileEventKind::Create));
    files.rename("/srv/tree/moved", "/srv/elsewhere/file").await.unwrap();
    assert_eq!(next(&mut watch).await, ("moved".to_owned(), FileEventKind::Rename));
    assert!(!files.exists("/srv/tree/moved").await.unwrap());
    assert_eq!(files.read("/srv/elsewhere/file", 10).await.unwrap(), b"12345"[..]);
    let part = files.open_part("/srv/elsewhere/file", 1, Some(3)).await.unwrap();
    assert_eq!(part.collect(10).await.unwrap(), b"234"[..]);
    files.remove("/srv/tree").await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|(name, _)| name != ".") {
        told.push(next(&mut watch).await);
    }
    assert!(told.iter().all(|(_, kind)| *kind == FileEventKind::Remove), "{told:?}");
    files.remove("/srv/tree").await.unwrap();
    assert_eq!(files.stat("/srv/tree").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(files.list("/srv/tree").await.unwrap_err().kind(), ErrorKind::NotFound);
    let refused = files.watch("/srv/tree", WatchOptions::new()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    // A watch says when its guest is gone.
    let mut watch = files.watch("/srv", WatchOptions::new()).await.unwrap();
    sandbox.destroy().await.unwrap();
    assert!(in_time(watch.next()).await.is_err());
    host.close().await.unwrap();
}

async fn next(watch: &mut FileWatch) -> (String, FileEventKind) {
    let event = in_time(watch.next()).await.unwrap().expect("it goes on");
    (event.name, event.kind)
}
