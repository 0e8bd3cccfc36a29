//! Failures and deaths at every point that pause, resume, snapshot, template and compaction pass.
//!
//! No list of points is kept here: an operation is run once to learn which points it passes, and then once more for each
//! of them, the first time that it is passed. (Those of the memory layers are also tested one by one, without guests, where
//! layers are made.)

mod support;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use support::{HostState, TestHost};
use wrenn::{CompactionPolicy, Host, MiB, PausedSandbox, RestoreOptions, Sandbox, SandboxId};
use wrenn_base::fault::{self, Plan};
use wrenn_storage::{LayerDir, MemoryImage};

/// What may come after a resume, in the background.
const LATER: &[&str] = &["/working-set"];

/// The smallest guest that boots: what is tested here does not depend on its size.
async fn boot(host: &Host) -> Sandbox {
    let sandbox = host.sandbox("debian").unwrap().memory(MiB(96)).create().await.expect("the sandbox boots");
    write(&sandbox, "0").await;
    sandbox
}

/// The guest's state, in memory and on disk: the file system of `/run` is memory.
async fn write(sandbox: &Sandbox, text: &str) {
    sandbox
        .exec(format!("echo {text} | tee /run/state > /root/state; sync"))
        .await
        .expect("the guest answers");
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
    support::resume(paused, RestoreOptions::default()).await
}

/// Runs `operation` and answers at which points it is to fail: for each name the first time that it is passed.
async fn points<T>(what: &str, operation: impl Future<Output = T>) -> (T, Vec<usize>) {
    let guard = fault::arm(Plan::Record);
    let result = operation.await;
    let passed = guard.passed();
    drop(guard);
    let mut names = BTreeSet::new();
    let first = (0..passed.len()).filter(|point| names.insert(passed[*point])).collect::<Vec<_>>();
    println!("{what} passes {} points; of these {}: {names:?}", passed.len(), first.len());
    assert!(first.len() >= 5, "{what} passes too few points: {passed:?}");
    (result, first)
}

/// Runs `operation` with a fault at `point`, and answers whether that was met.
async fn failing_at<T>(point: usize, operation: impl Future<Output = T>) -> (T, bool) {
    let guard = fault::arm(Plan::FailAt(point));
    let result = operation.await;
    (result, guard.passed().len() > point)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_fails_gives_the_running_sandbox_back() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = resume(pause(boot(&host).await).await).await;
    let (paused, points) = points("a pause", pause(sandbox)).await;
    let mut sandbox = resume(paused).await;
    let mut failed = 0;
    for point in &points {
        let state = format!("pause{point}");
        write(&sandbox, &state).await;
        let before = HostState::of(&test.data()).while_running();
        sandbox = match failing_at(*point, sandbox.pause()).await {
            (Err(e), true) => {
                assert!(format!("{:?}", e.source).contains("injected fault"), "{:?}", e.source);
                let sandbox = *e.sandbox.expect("the sandbox runs on");
                before.assert_same_but_for(&HostState::of(&test.data()).while_running(), LATER);
                failed += 1;
                sandbox
            }
            // Past the commit a fault is no failure of the pause.
            (Ok(paused), _) => resume(paused).await,
            (Err(e), false) => panic!("{:?}", e.source),
        };
        assert_eq!(read(&sandbox).await, state, "after a fault at point {point}");
    }
    println!("{failed} of {} faults failed the pause", points.len());
    assert!(failed * 2 > points.len());
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_that_fails_keeps_the_paused_sandbox() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = boot(&host).await;
    write(&sandbox, "paused").await;
    let (sandbox, points) = points("a resume", resume(pause(sandbox).await)).await;
    let mut paused = pause(sandbox).await;
    let before = HostState::of(&test.data());
    for point in points {
        paused = match failing_at(point, paused.resume()).await {
            (Err(e), true) => {
                assert!(format!("{:?}", e.source).contains("injected fault"), "{:?}", e.source);
                assert!(e.source.cleanup().is_empty(), "{:?}", e.source);
                before.assert_same_but_for(&HostState::of(&test.data()), LATER);
                *e.paused
            }
            // The points of the pause that was recorded with it, and a guest that fell over.
            (Ok(sandbox), false) => pause(sandbox).await,
            (Err(e), false) if support::is_excused(&e.source) => *e.paused,
            (result, met) => {
                panic!("point {point} was met: {met}; {:?}", result.map(drop).map_err(|e| e.source))
            }
        };
    }
    let sandbox = resume(paused).await;
    assert_eq!(read(&sandbox).await, "paused");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_or_template_that_fails_leaves_none() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = boot(&host).await;
    let template = || host.template("t").unwrap();
    let (taken, snapshot) = points("a snapshot", sandbox.snapshot("t")).await;
    drop(taken.unwrap());
    template().delete().await.unwrap();
    write(&sandbox, "first").await;
    let before = HostState::of(&test.data()).while_running();
    for point in snapshot {
        let state = format!("snapshot{point}");
        write(&sandbox, &state).await;
        let (result, met) = failing_at(point, sandbox.snapshot("t")).await;
        assert!(met, "point {point} was not met");
        if result.is_ok() {
            template().delete().await.unwrap();
        }
        assert_eq!(host.templates().await.unwrap(), []);
        before.assert_same(&HostState::of(&test.data()).while_running());
        assert_eq!(read(&sandbox).await, state, "after a fault at point {point}");
    }
    let paused = pause(sandbox).await;
    let before = HostState::of(&test.data());
    let (made, points) = points("a template", paused.to_template("t")).await;
    drop(made.unwrap());
    template().delete().await.unwrap();
    for point in points {
        let (result, met) = failing_at(point, paused.to_template("t")).await;
        assert!(met, "point {point} was not met");
        if result.is_ok() {
            template().delete().await.unwrap();
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
            before.assert_same_but_for(&HostState::of(&test.data()), LATER);
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

/// Runs `inner` in a process that dies at each of `points`, and looks at what is left; then once to its end.
async fn die_at(inner: &str, test: &TestHost, points: &[usize], states: &[&str]) {
    let mut seen = BTreeSet::new();
    for (number, point) in points.iter().chain(&[usize::MAX]).enumerate() {
        let died = support::run_until_death(inner, test, *point);
        let host = test.open().await;
        assert_eq!(check_whole(test, &host).await, 1, "after a death at point {point}");
        // Every byte was just read. That a guest goes on from them is seen at some of the points, as it takes long.
        if number % 6 == 5 || !died {
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
    }
    println!("{inner} died at {} points; seen: {seen:?}", points.len());
}

/// A host with one sandbox, paused in the state "old".
async fn one_paused(host: &Host) -> PausedSandbox {
    let sandbox = boot(host).await;
    write(&sandbox, "old").await;
    pause(sandbox).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_pause_leaves_the_old_snapshot_or_the_new_one() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = resume(one_paused(&host).await).await;
    let (paused, points) = points("a pause", pause(sandbox)).await;
    drop(paused);
    host.close().await.unwrap();
    die_at("inner::pause", &test, &points, &["old", "new"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_resume_or_template_leaves_the_snapshot() {
    let test = TestHost::new();
    let host = test.open().await;
    let paused = one_paused(&host).await;
    let (template, made) = points("a template", paused.to_template("t")).await;
    template.unwrap().delete().await.unwrap();
    let (sandbox, resumed) = points("a resume", resume(paused)).await;
    drop(sandbox);
    host.close().await.unwrap();
    die_at("inner::resume", &test, &resumed, &["old"]).await;
    die_at("inner::template", &test, &made, &["old"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_compaction_leaves_the_old_chain_or_the_new_one() {
    let test = TestHost::new();
    let host = test.open().await;
    // One more layer, so that there is something to merge.
    let sandbox = resume(one_paused(&host).await).await;
    write(&sandbox, "new").await;
    let id = pause(sandbox).await.id().clone();
    host.close().await.unwrap();
    // Merging can be watched only once: it is watched on a copy.
    let copy = test.copy();
    let host = copy.builder().compaction(MERGE_ALL).open().await.unwrap();
    let paused = host.paused(&id).await.unwrap();
    let merged = async {
        paused.compact();
        paused.compacted().await;
    };
    let ((), points) = points("a compaction", merged).await;
    assert_eq!(host.paused(&id).await.unwrap().memory_usage().await.unwrap().layers, 1);
    drop(paused);
    host.close().await.unwrap();
    die_at("inner::compaction", &test, &points, &["new"]).await;
}

/// Merges whatever has more than one layer.
const MERGE_ALL: CompactionPolicy = CompactionPolicy { max_layers: 1, bytes_per_second: 1 << 30 };

/// What runs in a process of its own, which dies at a point.
mod inner {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pause() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let sandbox = super::resume(host.paused(&id).await.unwrap()).await;
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
        let host = test.builder().compaction(MERGE_ALL).open().await.unwrap();
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        paused.compact();
        paused.compacted().await;
    }
}
