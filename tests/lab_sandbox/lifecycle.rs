//! Whole sandboxes, from boot to destruction, and that the machine is afterwards as it was before.

use crate::support::{self, HostState, TestHost, base};
use wrenn::{ErrorKind, Host, MiB, Prefetch, ProcessEvent, RestoreOptions, Sandbox, Subject, Verdict};

async fn small(host: &Host) -> Sandbox {
    host.sandbox("debian").unwrap().memory(MiB(128)).create().await.expect("the sandbox boots")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_runs_sandboxes_passes_the_preflight() {
    let test = TestHost::new();
    let before = HostState::of(&test.data());
    let found = test.builder().preflight().await.unwrap();
    assert!(found.is_ready(), "{:#?}", found.checks());
    let images = found.of(Subject::Images).unwrap();
    assert_eq!((images.verdict, images.found.as_str()), (Verdict::Good, "debian"));
    before.assert_same(&HostState::of(&test.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_runs_commands_and_keeps_files() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = host
        .sandbox("debian")
        .unwrap()
        .memory(MiB(128))
        .env("GREETING", "hello")
        .create()
        .await
        .expect("the sandbox boots");

    let output = sandbox.exec("echo $GREETING; echo problem >&2; exit 3").await.unwrap();
    assert_eq!((output.stdout_text().as_str(), output.stderr_text().as_str()), ("hello", "problem"));
    assert_eq!(output.status.code(), Some(3));
    let host_name = sandbox.exec("cat /proc/sys/kernel/hostname").await.unwrap();
    assert_eq!(host_name.stdout_text(), sandbox.id().as_str());

    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    sandbox.files().write("/srv/deep/blob", content.clone()).await.unwrap();
    let sum = sandbox.exec("sha256sum < /srv/deep/blob; stat -c %s /srv/deep/blob").await.unwrap();
    assert!(sum.stdout_text().ends_with("\n3000000"), "{}", sum.stdout_text());
    assert_eq!(sandbox.files().read("/srv/deep/blob", 4_000_000).await.unwrap(), content);

    let refused = sandbox.files().read("/no/such/file", 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    let refused = sandbox.command("/no/such/program").output().await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound), "{refused:?}");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_command_is_fed_signalled_and_watched() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = base::sandbox(&test, &host).await;
    let mut cat = sandbox.command("cat").stdin_piped().spawn().await.unwrap();
    assert!(matches!(cat.next().await.unwrap(), Some(ProcessEvent::Start { .. })));
    cat.write_stdin("through the pipe\n").await.unwrap();
    assert_eq!(cat.next().await.unwrap(), Some(ProcessEvent::Stdout("through the pipe\n".into())));
    cat.close_stdin().await.unwrap();
    match cat.next().await.unwrap() {
        Some(ProcessEvent::End { exit_code, .. }) => assert_eq!(exit_code, 0),
        other => panic!("{other:?}"),
    }
    assert_eq!(cat.next().await.unwrap(), None);

    let mut sleep = sandbox.command("sleep").arg("1000").spawn().await.unwrap();
    assert!(matches!(sleep.next().await.unwrap(), Some(ProcessEvent::Start { .. })));
    sleep.signal(wrenn::Signal::Kill).await.unwrap();
    match sleep.next().await.unwrap() {
        Some(ProcessEvent::End { signal, .. }) => assert_eq!(signal, Some(9)),
        other => panic!("{other:?}"),
    }
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_one_after_the_other_leave_nothing() {
    let test = TestHost::new();
    // The runtime's own threads and descriptors come with the first blocking call: let them come first.
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    let while_open = HostState::of(&test.data());
    for round in 0..20 {
        // The two ways to create one; booting takes several times as long in an emulated machine.
        let sandbox = match round % 10 {
            0 => small(&host).await,
            _ => base::sandbox(&test, &host).await,
        };
        let output = sandbox.exec(format!("echo {round}")).await.unwrap();
        assert_eq!(output.stdout_text(), round.to_string());
        sandbox.destroy().await.unwrap();
        while_open.assert_same(&HostState::of(&test.data()));
    }
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_at_once_leave_nothing() {
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    let (a, b, c, d) = tokio::join!(small(&host), small(&host), small(&host), small(&host));
    for sandbox in [&a, &b, &c, &d] {
        let name = sandbox.exec("hostname || cat /proc/sys/kernel/hostname").await.unwrap();
        assert_eq!(name.stdout_text(), sandbox.id().as_str());
    }
    let (a, b, c, d) = tokio::join!(a.destroy(), b.destroy(), c.destroy(), d.destroy());
    for result in [a, b, c, d] {
        result.unwrap();
    }
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_sandbox_and_a_dropped_creation_leave_nothing() {
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    drop(small(&host).await);
    for millis in [1, 30, 200, 1000] {
        let creation = host.sandbox("debian").unwrap().memory(MiB(128)).create();
        let cut_short = tokio::time::timeout(std::time::Duration::from_millis(millis), creation).await;
        drop(cut_short);
    }
    // Closing waits for work that the drops found under way, and for what they left to the reaper.
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_returns_early_leaves_nothing() {
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    {
        let host = test.open().await;
        let _sandbox = base::sandbox(&test, &host).await;
        // As after an error in `main`: the sandbox goes first, then the last handle of the host.
    }
    before.assert_same(&HostState::of(&test.data()));
}

#[test]
fn what_a_killed_program_left_goes_when_its_host_is_opened_again() {
    let test = TestHost::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { test.open().await.close().await.unwrap() });
    let before = HostState::of(&test.data());
    let ids = support::run_and_kill("lifecycle::inner::two_sandboxes_until_killed", &test);
    let [paused, unsaved] = ids.as_slice() else { panic!("{ids:?}") };
    before.assert_differs(&HostState::of(&test.data()), "device-mapper");
    // Were they to live, they would be gone on with.
    support::kill_monitors_of(&test.data());

    runtime.block_on(async {
        let host = test.open().await;
        assert_eq!(host.stored().await.unwrap(), [paused.parse().unwrap()]);
        let lost = host.paused(&unsaved.parse().unwrap()).await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::NotFound);
        let stored = host.paused(&paused.parse().unwrap()).await.unwrap();
        let sandbox = stored.resume().await.unwrap_or_else(|e| panic!("{:?}", e.source));
        assert_eq!(sandbox.exec("cat /root/note").await.unwrap().stdout_text(), "before the pause");
        sandbox.destroy().await.unwrap();
        host.close().await.unwrap();
    });
    before.assert_same(&HostState::of(&test.data()));
}

/// Whoever serves a guest's faults may go while the kernel waits for a page on the guest's behalf.
#[test]
fn a_monitor_whose_program_and_pager_are_killed_ends_in_the_midst_of_faults() {
    let test = TestHost::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { test.open().await.close().await.unwrap() });
    let before = HostState::of(&test.data());
    let told = support::run_and_kill("lifecycle::inner::a_guest_that_faults_until_killed", &test);
    let [pid] = told.as_slice() else { panic!("{told:?}") };
    for pager in support::pagers(&test.data()) {
        support::kill(&pager);
    }
    support::eventually(&format!("monitor {pid} is gone"), || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    runtime.block_on(async {
        let host = test.open().await;
        for id in host.stored().await.unwrap() {
            host.paused(&id).await.unwrap().destroy().await.unwrap();
        }
        host.close().await.unwrap();
    });
    before.assert_same(&HostState::of(&test.data()));
}

/// What runs in a program of its own, started by the tests above.
mod inner {
    use super::*;

    /// Has a guest running that touches all of its memory, which has just begun to come back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_guest_that_faults_until_killed() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let sandbox = base::sandbox(&test, &host).await;
        let hold = "import os, signal\n\
             held = bytearray(os.urandom(4096)) * 12000\n\
             open('/run/holds', 'w').close()\n\
             while True:\n\
             \x20   signal.sigwait([signal.SIGUSR1])\n\
             \x20   for page in range(0, len(held), 4096): held[page] ^= 1\n";
        sandbox.files().write("/root/hold.py", hold).await.unwrap();
        let pid = sandbox.command("python3").arg("/root/hold.py").spawn().await.unwrap().pid();
        sandbox.exec("until test -e /run/holds; do sleep 0.1; done").await.unwrap();
        let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
        let options = RestoreOptions { prefetch: Prefetch::None, ..RestoreOptions::default() };
        let sandbox = support::resume(paused, options).await;
        sandbox.exec(format!("kill -USR1 {pid}")).await.unwrap();
        support::tell_and_wait(&sandbox.monitor_pid().to_string());
    }

    /// Has two sandboxes running, one of them with a snapshot, and waits to be killed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_sandboxes_until_killed() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let sandbox = base::sandbox(&test, &host).await;
        sandbox.exec("echo before the pause > /root/note").await.unwrap();
        let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
        let resumed = paused.resume().await.unwrap_or_else(|e| panic!("{:?}", e.source));
        resumed.exec("echo after the pause > /root/note; sync").await.unwrap();
        let unsaved = small(&host).await;
        support::ready_to_be_killed(&[resumed.id(), unsaved.id()]);
    }
}
