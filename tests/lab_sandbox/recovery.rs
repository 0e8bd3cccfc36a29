//! The program that owns a host is killed, or leaves its sandboxes running, and another goes on with them.

use std::time::Duration;

use crate::support::crash::{pause, read, resume, write};
use crate::support::{self, HostState, TestHost};
use wrenn::{Cause, ErrorKind, Host, OnTimeout, RestoreOptions, SandboxId, SandboxState, ShutdownPolicy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_of_a_killed_program_run_on() {
    let test = TestHost::new();
    drop(test.open().await);
    let before = HostState::of(&test.data());
    let told = support::run_and_kill("recovery::inner::with_running_sandboxes", &test);
    let ids: Vec<SandboxId> = told.iter().map(|id| id.parse().unwrap()).collect();
    let [booted, resumed, spawned, killed] = ids.as_slice() else { panic!("{told:?}") };

    let host = test.open().await;
    // One that was booted and never paused, with a process that counted on while nobody was there.
    let booted = host.running(booted).await.unwrap();
    assert_eq!(read(&booted).await, "booted");
    let count = booted.exec("cat /run/count; sleep 1; cat /run/count").await.unwrap().stdout_text();
    let counts: Vec<u64> = count.lines().map(|line| line.parse().unwrap()).collect();
    assert!(counts[0] > 0 && counts[1] > counts[0], "its process runs: {counts:?}");
    assert_eq!(booted.metadata().get("name").map(String::as_str), Some("booted"));
    let taken = host.running(booted.id()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Busy, "one user at a time: {taken:?}");

    // One that was resumed: pages that it never touched come from the pager, which the program did not take along.
    let resumed = host.running(resumed).await.unwrap();
    assert_eq!(read(&resumed).await, "changed");
    let sum = resumed.exec("cat /run/ballast | sha256sum").await.unwrap().stdout_text();
    assert_eq!(sum, resumed.exec("cat /root/sum").await.unwrap().stdout_text());
    assert!(resumed.fault_stats().await.unwrap().faults > 0);
    write(&resumed, "after").await;
    // A diff on the snapshot that the killed program resumed it from.
    let paused = pause(resumed).await;
    assert_eq!(paused.snapshot().generation, 2);
    let resumed = resume(paused).await;
    assert_eq!(read(&resumed).await, "after");
    let sum = resumed.exec("cat /run/ballast | sha256sum").await.unwrap().stdout_text();
    assert_eq!(sum, resumed.exec("cat /root/sum").await.unwrap().stdout_text());

    // One that was made from a template, which is gone by now: it has no snapshot of its own to be a diff on.
    let spawned = host.running(spawned).await.unwrap();
    assert_eq!(read(&spawned).await, "spawned");
    let spawned = resume(pause(spawned).await).await;
    assert_eq!(read(&spawned).await, "spawned");

    // One whose monitor did not live: it is where it was paused last.
    let dead = host.running(killed).await.unwrap_err();
    assert!(matches!(dead.cause(), Cause::NotRunning { .. }), "{dead:?}");
    let back = resume(host.paused(killed).await.unwrap()).await;
    assert_eq!(read(&back).await, "paused");

    for sandbox in [booted, resumed, spawned, back] {
        sandbox.destroy().await.unwrap();
    }
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
    assert!(support::pagers(&test.data()).is_empty(), "the pager went with the last that it served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_that_are_left_run_on_until_somebody_asks_for_them() {
    let test = TestHost::new();
    drop(test.open().await);
    let before = HostState::of(&test.data());
    let host = test.open().await;
    let sandbox = resume(pause(support::crash::start(&test, &host).await).await).await;
    write(&sandbox, "left").await;
    let id = sandbox.id().clone();
    let failed = host.shutdown(ShutdownPolicy::LeaveRunning, Duration::from_secs(10)).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(read(&sandbox).await, "left", "a handle can be used until the host is closed");
    drop(sandbox);
    host.close().await.unwrap();

    // Who opens the host and does not ask for it changes nothing.
    let host = test.open().await;
    assert_eq!(host.get(&id).await.unwrap().state, SandboxState::Running);
    host.close().await.unwrap();
    drop(test.open().await);

    let host = test.open().await;
    let sandbox = host.running(&id).await.unwrap();
    assert_eq!(read(&sandbox).await, "left");
    sandbox.set_timeout(Some(Duration::from_secs(3600)), OnTimeout::Destroy);
    drop(sandbox);
    // Its handle was dropped: it is where it was paused last.
    let state = || async { host.get(&id).await.unwrap().state };
    while state().await != SandboxState::Paused {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    host.paused(&id).await.unwrap().destroy().await.unwrap();
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
    assert!(support::pagers(&test.data()).is_empty(), "the pager went with the last that it served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pager_that_dies_ends_the_sandboxes_that_it_served_and_the_next_is_served_by_another() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = resume(pause(support::crash::start(&test, &host).await).await).await;
    let id = sandbox.id().clone();
    for pid in support::pagers(&test.data()) {
        support::kill(&pid);
    }
    sandbox.exited().await;
    let error = sandbox.exec("true").await.unwrap_err();
    let Cause::Paging { why, .. } = error.cause() else { panic!("{error:?}") };
    assert!(why.contains("pager"), "{why}");
    drop(sandbox);
    let paused = loop {
        match host.paused(&id).await.unwrap().resume_with(RestoreOptions::default()).await {
            Ok(sandbox) => break pause(sandbox).await,
            Err(e) if e.source.kind() == ErrorKind::Busy => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(e) => panic!("{:?}", e.source),
        }
    };
    paused.destroy().await.unwrap();
    host.close().await.unwrap();
}

/// What runs in a process of its own, and dies.
mod inner {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn with_running_sandboxes() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let booted = boot(&host).await;
        let counting = "nohup sh -c 'n=0; while :; do n=$((n+1)); echo $n > /run/count.new; mv /run/count.new /run/count; \
                        sleep 0.05; done' > /dev/null 2>&1 &";
        booted.exec(counting).await.unwrap();

        let parent = support::crash::start(&test, &host).await;
        // Much that is not touched before the program is gone.
        let ballast = "head -c 24M /dev/urandom > /run/ballast; sha256sum < /run/ballast > /root/sum; sync";
        parent.exec(ballast).await.unwrap();
        let paused = pause(parent).await;
        let template = paused.to_template("short-lived").await.unwrap();
        let spawned = template.spawn(1).await.unwrap().remove(0);
        template.delete().await.unwrap();
        write(&spawned, "spawned").await;
        let resumed = resume(paused).await;
        write(&resumed, "changed").await;

        let killed = support::crash::start(&test, &host).await;
        write(&killed, "paused").await;
        let killed = resume(pause(killed).await).await;
        write(&killed, "lost").await;

        support::kill(&killed.monitor_pid().to_string());
        killed.exited().await;
        support::ready_to_be_killed(&[booted.id(), resumed.id(), spawned.id(), killed.id()]);
    }

    async fn boot(host: &Host) -> wrenn::Sandbox {
        let builder = host.sandbox("debian").unwrap().memory(wrenn::MiB(128)).metadata("name", "booted");
        let sandbox = builder.create().await.unwrap();
        write(&sandbox, "booted").await;
        sandbox
    }
}
