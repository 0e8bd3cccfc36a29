//! Failures, and dropped futures, at every point that pause, resume, snapshot and template pass.
//!
//! No list of points is kept here: an operation is run once to learn which points it passes, and then once more for each
//! of them, the first time that it is passed. (Those of the memory layers are also tested one by one, without guests, where
//! layers are made.)

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use crate::support::crash::{LATER, failing_at, pause, points, read, resume, start, write};
use crate::support::{HostState, TestHost};
use wrenn::{Host, SandboxId};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_fails_gives_the_running_sandbox_back() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = resume(pause(start(&test, &host).await).await).await;
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
    let sandbox = start(&test, &host).await;
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
            // The points of the pause that was recorded with it.
            (Ok(sandbox), false) => pause(sandbox).await,
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
    let sandbox = start(&test, &host).await;
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
    let sandbox = start(&test, &host).await;
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
    let mut sandbox = start(&test, &host).await;
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
