//! Failures and deaths at every point that pause, resume, snapshot, template and compaction pass.
//!
//! No list of points is kept here: an operation is run once to learn which points it passes, and then once more for each.

mod support;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use support::{HostState, TestHost};
use wrenn::{CompactionPolicy, Host, MiB, PausedSandbox, Sandbox, SandboxId};
use wrenn_base::fault::{self, Plan};
use wrenn_storage::{LayerDir, MemoryImage};

/// The smallest guest that boots: what is tested here does not depend on its size.
async fn boot(host: &Host) -> Sandbox {
    let sandbox = host.sandbox("debian").unwrap().memory(MiB(96)).create().await.expect("the sandbox boots");
    write(&sandbox, "0").await;
    sandbox
}

/// The guest's state, in memory and on disk: the file system of `/run` is memory.
async fn write(sandbox: &Sandbox, text: &str) {
    sandbox.exec(format!("echo {text} | tee /run/state > /root/state; sync")).await.expect("the guest answers");
}

async fn read(sandbox: &Sandbox) -> String {
    let text = sandbox.exec("cat /run/state /root/state").await.expect("the guest answers").stdout_text();
    let (memory, disk) = text.split_once('\n').expect("two lines");
    assert_eq!(memory, disk, "memory and disk are not of one instant");
    memory.to_owned()
}

async fn pause(sandbox: Sandbox) -> PausedSandbox {
    sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

async fn resume(paused: PausedSandbox) -> Sandbox {
    paused.resume().await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

/// Says which points an operation passed; a handful at least, or nothing is tested here.
fn note(what: &str, passed: &[&'static str]) -> usize {
    let names: BTreeSet<_> = passed.iter().collect();
    println!("{what} passes {} points: {names:?}", passed.len());
    assert!(passed.len() >= 5, "{what} passes too few points: {passed:?}");
    passed.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_fails_gives_the_running_sandbox_back() {
    let test = TestHost::new();
    let host = test.open().await;
    let mut sandbox = resume(pause(boot(&host).await).await).await;
    let snapshot = HostState::of(&test.data());
    let mut failed = 0;
    for point in 0.. {
        let state = format!("pause{point}");
        write(&sandbox, &state).await;
        let guard = fault::arm(Plan::FailAt(point));
        let result = sandbox.pause().await;
        let passed = guard.passed();
        drop(guard);
        match result {
            Err(e) => {
                assert!(format!("{:?}", e.source).contains("injected fault"), "{:?}", e.source);
                sandbox = *e.sandbox.expect("the sandbox runs on");
                assert_eq!(read(&sandbox).await, state, "after a fault at {:?}", passed.last());
                snapshot.assert_same(&HostState::of(&test.data()));
                failed += 1;
            }
            // Past the commit a fault is no failure of the pause; past the last point there was no fault.
            Ok(paused) => {
                sandbox = resume(paused).await;
                assert_eq!(read(&sandbox).await, state);
                note("a pause", &passed);
                break;
            }
        }
    }
    assert!(failed >= 8, "only {failed} points failed the pause");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_that_fails_keeps_the_paused_sandbox() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = boot(&host).await;
    write(&sandbox, "paused").await;
    let mut paused = pause(sandbox).await;
    let before = HostState::of(&test.data());
    for point in 0.. {
        let guard = fault::arm(Plan::FailAt(point));
        let result = paused.resume().await;
        let passed = guard.passed();
        drop(guard);
        match result {
            Err(e) => {
                assert!(format!("{:?}", e.source).contains("injected fault"), "{:?}", e.source);
                assert!(e.source.cleanup().is_empty(), "{:?}", e.source);
                before.assert_same(&HostState::of(&test.data()));
                paused = *e.paused;
            }
            Ok(sandbox) => {
                assert_eq!(note("a resume", &passed), point);
                assert_eq!(read(&sandbox).await, "paused");
                sandbox.destroy().await.unwrap();
                break;
            }
        }
    }
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_or_template_that_fails_leaves_none() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = boot(&host).await;
    let before = HostState::of(&test.data());
    for point in 0.. {
        let state = format!("snapshot{point}");
        write(&sandbox, &state).await;
        let guard = fault::arm(Plan::FailAt(point));
        let result = sandbox.snapshot("t").await;
        let passed = guard.passed();
        drop(guard);
        assert_eq!(read(&sandbox).await, state, "after a fault at {:?}", passed.last());
        if result.is_err() {
            assert_eq!(host.templates().await.unwrap(), []);
            before.assert_same(&HostState::of(&test.data()));
        } else {
            host.template("t").unwrap().delete().await.unwrap();
            if point >= note("a snapshot", &passed) {
                break;
            }
        }
    }
    before.assert_same(&HostState::of(&test.data()));
    let paused = pause(sandbox).await;
    let before = HostState::of(&test.data());
    for point in 0.. {
        let guard = fault::arm(Plan::FailAt(point));
        let result = paused.to_template("t").await;
        let passed = guard.passed();
        drop(guard);
        if result.is_ok() {
            host.template("t").unwrap().delete().await.unwrap();
            if point >= note("a template", &passed) {
                break;
            }
        }
        before.assert_same(&HostState::of(&test.data()));
    }
    paused.destroy().await.unwrap();
    host.close().await.unwrap();
}

/// A future that is polled a number of times and then dropped.
struct Dropped<F> {
    future: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> Future for Dropped<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.future.as_mut().poll(context).map(Some)
    }
}

async fn dropped_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    pin!(Dropped { future: Box::pin(future), polls }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_dropped_at_any_await_keeps_the_paused_sandbox() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = boot(&host).await;
    write(&sandbox, "paused").await;
    let id = pause(sandbox).await.id().clone();
    let before = HostState::of(&test.data());
    let mut dropped = 0;
    for polls in 1.. {
        let paused = host.paused(&id).await.unwrap();
        let resumed = dropped_after(polls, paused.resume()).await;
        let Some(result) = resumed else {
            dropped += 1;
            settle(&host, &id).await;
            before.assert_same(&HostState::of(&test.data()));
            continue;
        };
        let sandbox = result.unwrap_or_else(|e| panic!("{:?}", e.source));
        assert_eq!(read(&sandbox).await, "paused");
        sandbox.destroy().await.unwrap();
        break;
    }
    println!("a resume was dropped at {dropped} awaits");
    assert!(dropped >= 8);
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_or_snapshot_dropped_at_any_await_comes_to_its_end() {
    let test = TestHost::new();
    let host = test.open().await;
    let mut sandbox = boot(&host).await;
    for polls in 1.. {
        let snapshot = dropped_after(polls, sandbox.snapshot("t")).await;
        assert_eq!(read(&sandbox).await, "0");
        // What was begun ends by itself: the template is there, whole, or was never begun.
        let done = snapshot.is_some();
        drop(sandbox.snapshot("after").await.unwrap());
        for name in host.templates().await.unwrap() {
            let template = host.template(name.as_str()).unwrap();
            template.info().await.unwrap();
            template.delete().await.unwrap();
        }
        if done {
            break;
        }
    }
    let id = sandbox.id().clone();
    for polls in 1.. {
        write(&sandbox, &format!("pause{polls}")).await;
        let paused = dropped_after(polls, sandbox.pause()).await;
        let done = paused.is_some();
        drop(paused);
        settle(&host, &id).await;
        sandbox = resume(host.paused(&id).await.unwrap()).await;
        assert_eq!(read(&sandbox).await, format!("pause{polls}"));
        if done {
            break;
        }
    }
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

/// Waits until nothing of a cancelled call goes on: the sandbox can be claimed again.
async fn settle(host: &Host, id: &SandboxId) {
    for _ in 0..3000 {
        if let Ok(paused) = host.paused(id).await
            && paused.to_template("settled").await.is_ok()
        {
            return host.template("settled").unwrap().delete().await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("sandbox {id} does not become free");
}

/// Every snapshot that the host knows can be read to its last byte.
async fn check_whole(test: &TestHost, host: &Host) -> usize {
    let stored = host.stored().await.unwrap();
    for id in &stored {
        let paused = host.paused(id).await.unwrap();
        let dir = test.data().join("sandboxes").join(id.as_str());
        let snapshot = dir.join("snapshots").join(paused.snapshot().generation.to_string());
        let layers = LayerDir::open(dir.join("layers")).unwrap();
        let image = MemoryImage::open(&snapshot.join("memory.manifest"), &layers).unwrap();
        image.verify().unwrap();
        assert_eq!(layers.list().unwrap(), image.layers_in_use(), "layers that nobody needs");
    }
    for name in host.templates().await.unwrap() {
        host.template(name.as_str()).unwrap().info().await.unwrap();
    }
    stored.len()
}

/// Runs `inner` in a process that dies at each of the points it passes, and looks at what is left.
async fn die_everywhere(inner: &str, test: &TestHost, states: &[&str]) {
    let mut seen = BTreeSet::new();
    for point in 0.. {
        let died = support::run_until_death(inner, test, point);
        let host = test.open().await;
        assert_eq!(check_whole(test, &host).await, 1, "after a death at point {point}");
        // Resuming takes long: at some of the points it is enough.
        if point % 5 == 0 || !died {
            let id = host.stored().await.unwrap().remove(0);
            let sandbox = resume(host.paused(&id).await.unwrap()).await;
            let state = read(&sandbox).await;
            assert!(states.contains(&state.as_str()), "{state:?} after a death at point {point}");
            seen.insert(state);
            drop(sandbox);
        }
        for name in host.templates().await.unwrap() {
            host.template(name.as_str()).unwrap().delete().await.unwrap();
        }
        host.close().await.unwrap();
        if !died {
            println!("{inner} died at {point} points; seen: {seen:?}");
            assert!(point >= 5, "only {point} points");
            return;
        }
    }
}

async fn one_paused(test: &TestHost, state: &str) {
    let host = test.open().await;
    let sandbox = boot(&host).await;
    write(&sandbox, state).await;
    drop(pause(sandbox).await);
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_pause_leaves_the_old_snapshot_or_the_new_one() {
    let test = TestHost::new();
    one_paused(&test, "old").await;
    die_everywhere("inner::pause", &test, &["old", "new"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_resume_or_template_leaves_the_snapshot() {
    let test = TestHost::new();
    one_paused(&test, "old").await;
    die_everywhere("inner::resume", &test, &["old"]).await;
    die_everywhere("inner::template", &test, &["old"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_compaction_leaves_the_old_chain_or_the_new_one() {
    let test = TestHost::new();
    one_paused(&test, "old").await;
    // One more layer, so that there is something to merge.
    let host = test.open().await;
    let id = host.stored().await.unwrap().remove(0);
    let sandbox = resume(host.paused(&id).await.unwrap()).await;
    write(&sandbox, "new").await;
    drop(pause(sandbox).await);
    host.close().await.unwrap();
    die_everywhere("inner::compaction", &test, &["new"]).await;
}

/// What runs in a process of its own, which dies at a point.
mod inner {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pause() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let sandbox = resume(host.paused(&id).await.unwrap()).await;
        write(&sandbox, "new").await;
        fault::arm_from_env();
        drop(super::pause(sandbox).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn resume() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        drop(super::resume(paused).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn template() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        paused.to_template("t").await.unwrap().delete().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn compaction() {
        let Some(test) = support::to_be_killed() else { return };
        let policy = CompactionPolicy { max_layers: 1, ..CompactionPolicy::default() };
        let host = test.builder().compaction(policy).open().await.unwrap();
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        paused.compact();
        paused.compacted().await;
    }
}
