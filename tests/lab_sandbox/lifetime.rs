//! Sandboxes that time out, that are listed, told of, and ended with their host.

use std::time::Duration;

use crate::support::crash::LATER;
use crate::support::{self, HostState, TestHost, base};
use wrenn::{
    Cause, ErrorKind, EventKind, Events, Host, MiB, OnTimeout, RestoreOptions, Sandbox, SandboxId,
    SandboxState, ShutdownPolicy, Template,
};
use wrenn_base::fault::{self, Plan};

/// Longer than whatever a test waits for may take in an emulated machine.
const LONG: Duration = Duration::from_secs(120);

async fn template(test: &TestHost, host: &Host) -> Template {
    let sandbox = base::sandbox_with(test, host, |it| it.metadata("origin", "template")).await;
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let template = paused.to_template("t").await.unwrap();
    paused.destroy().await.unwrap();
    template
}

async fn spawn(template: &Template, timeout: Option<Duration>, then: OnTimeout) -> Sandbox {
    let spawned = template.builder().timeout(timeout, then).metadata("test", "lifetime").spawn(1).await;
    spawned.unwrap().remove(0)
}

/// Draws events until one is as wanted; panics with those that came if none is.
async fn wait_for(events: &mut Events, id: &SandboxId, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
    let mut seen = Vec::new();
    let found = tokio::time::timeout(LONG, async {
        loop {
            let event = events.next().await.expect("none is lost").expect("the host is there");
            if event.sandbox == *id && wanted(&event.kind) {
                return event.kind;
            }
            seen.push(event);
        }
    });
    found.await.unwrap_or_else(|_| panic!("it did not come; what came: {seen:#?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sandboxes_expire_and_busy_ones_do_not() {
    let test = TestHost::new();
    let host = test.open().await;
    let template = template(&test, &host).await;
    let before = HostState::of(&test.data());
    let mut events = host.events();
    let second = Some(Duration::from_secs(1));

    let doomed = spawn(&template, second, OnTimeout::Destroy).await;
    let id = doomed.id().clone();
    wait_for(&mut events, &id, |kind| *kind == EventKind::Expired { then: OnTimeout::Destroy }).await;
    wait_for(&mut events, &id, |kind| matches!(kind, EventKind::State { to: None, .. })).await;
    let error = doomed.exec("true").await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Expired { then: OnTimeout::Destroy, .. }), "{error:?}");
    assert_eq!(host.get(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    doomed.destroy().await.unwrap();

    // As long as somebody waits for a command it is at work, and after that for its timeout.
    let sandbox = spawn(&template, second, OnTimeout::Pause).await;
    let id = sandbox.id().clone();
    sandbox.exec("echo kept > /root/kept; sleep 4; echo done").await.unwrap();
    assert_eq!(sandbox.state(), SandboxState::Running);
    wait_for(&mut events, &id, |kind| *kind == EventKind::Paused { generation: 1 }).await;
    let error = sandbox.files().read("/root/kept", 10).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Expired { then: OnTimeout::Pause, .. }), "{error:?}");
    let info = host.get(&id).await.unwrap();
    assert_eq!((info.state, info.timeout), (SandboxState::Paused, second));
    // The handle finds it where it is.
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    sandbox.set_timeout(None, OnTimeout::Destroy);
    assert_eq!(sandbox.exec("cat /root/kept").await.unwrap().stdout_text(), "kept");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(sandbox.exec("echo on").await.unwrap().stdout_text(), "on");

    // A shorter time counts from when it was set, and is kept with the snapshot.
    sandbox.set_timeout(second, OnTimeout::Pause);
    wait_for(&mut events, &id, |kind| *kind == EventKind::Paused { generation: 2 }).await;
    sandbox.destroy().await.unwrap();
    assert_eq!(host.get(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    before.assert_same_but_for(&HostState::of(&test.data()), LATER);
    drop((template, events));
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_at_a_timeout_that_fails_leaves_the_sandbox_running() {
    let test = TestHost::new();
    let host = test.open().await;
    let template = template(&test, &host).await;
    let sandbox = spawn(&template, None, OnTimeout::Pause).await;
    sandbox.exec("echo kept > /run/kept").await.unwrap();
    let mut events = host.events();
    // The first answer has the working set kept in the background, which must not meet the fault.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let fault = fault::arm(Plan::FailAt(0));
    sandbox.set_timeout(Some(Duration::from_secs(1)), OnTimeout::Pause);
    let failed =
        wait_for(&mut events, sandbox.id(), |kind| matches!(kind, EventKind::ExpiryFailed { .. })).await;
    drop(fault);
    let EventKind::ExpiryFailed { again_in: Some(pause), .. } = failed else { panic!("{failed:?}") };
    assert!(pause >= Duration::from_secs(10), "{pause:?}");
    assert_eq!(sandbox.exec("cat /run/kept").await.unwrap().stdout_text(), "kept");
    // It is tried again by itself.
    wait_for(&mut events, sandbox.id(), |kind| matches!(kind, EventKind::Paused { .. })).await;
    sandbox.destroy().await.unwrap();
    drop((template, events));
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_are_listed_told_of_and_shut_down() {
    let test = TestHost::new();
    let host = test.open().await;
    let template = template(&test, &host).await;
    let mut events = host.events();
    let one = spawn(&template, Some(LONG * 100), OnTimeout::Pause).await;
    let two = spawn(&template, None, OnTimeout::Destroy).await;
    let started = EventKind::State { from: Some(SandboxState::Resuming), to: Some(SandboxState::Running) };
    wait_for(&mut events, one.id(), |kind| *kind == started).await;

    let listed = host.list().await.unwrap();
    let mut ids = vec![one.id().clone(), two.id().clone()];
    ids.sort();
    assert_eq!(listed.iter().map(|info| info.id.clone()).collect::<Vec<_>>(), ids);
    let info = host.get(one.id()).await.unwrap();
    assert_eq!((info.state, info.memory, info.vcpus), (SandboxState::Running, MiB(128), 1));
    assert!(info.expires_in.is_some_and(|left| left <= LONG * 100));
    let labels: Vec<_> = info.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("origin", "template"), ("test", "lifetime")]);
    assert_eq!(host.get(two.id()).await.unwrap().expires_in, None);

    // A guest that ends by itself is told of.
    assert!(support::kill(&two.monitor_pid().to_string()));
    wait_for(&mut events, two.id(), |kind| matches!(kind, EventKind::GuestEnded { .. })).await;
    drop(two);

    one.exec("echo kept > /root/kept").await.unwrap();
    let failures = host.shutdown(ShutdownPolicy::PauseAll, LONG).await;
    assert!(failures.is_empty(), "{failures:?}");
    let error = one.exec("true").await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Expired { .. }), "{error:?}");
    let id = one.id().clone();
    drop(one);
    assert_eq!(host.list().await.unwrap().len(), 1, "the other one had no snapshot");
    let one = support::resume(host.paused(&id).await.unwrap(), RestoreOptions::default()).await;
    assert_eq!(one.exec("cat /root/kept").await.unwrap().stdout_text(), "kept");
    assert!(host.shutdown(ShutdownPolicy::DestroyAll, LONG).await.is_empty());
    drop(one);
    assert_eq!(host.list().await.unwrap(), []);
    drop((template, events));
    host.close().await.unwrap();
}
