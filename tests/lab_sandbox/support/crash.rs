//! What the tests of failures and of deaths share: a small guest with a state, and the points that an operation passes.

use std::collections::BTreeSet;
use std::future::Future;

use wrenn::{Host, PausedSandbox, RestoreOptions, Sandbox};
use wrenn_base::fault::{self, Plan};

use super::TestHost;

/// What may come after a resume, in the background.
pub(crate) const LATER: &[&str] = &["/working-set"];

/// A running sandbox in the state "0".
pub(crate) async fn start(test: &TestHost, host: &Host) -> Sandbox {
    let sandbox = super::base::sandbox(test, host).await;
    write(&sandbox, "0").await;
    sandbox
}

/// Where the guest's state is: the file system of `/run` is memory.
const PLACES: [&str; 2] = ["/run/state", "/root/state"];

/// Writes the guest's state, in memory and on disk. By way of the agent alone, as shells take long in an emulated guest.
pub(crate) async fn write(sandbox: &Sandbox, text: &str) {
    for place in PLACES {
        sandbox.files().write(place, text.to_owned()).await.expect("the guest answers");
    }
    sandbox.command("sync").output().await.expect("the guest answers");
}

pub(crate) async fn read(sandbox: &Sandbox) -> String {
    let [memory, disk] = places(sandbox).await;
    assert_eq!(memory, disk, "memory and disk are not of one instant");
    memory
}

/// What is in memory and what is on disk: not the same while somebody writes.
pub(crate) async fn places(sandbox: &Sandbox) -> [String; 2] {
    let mut found = PLACES.map(|_| String::new());
    for (place, text) in PLACES.into_iter().zip(&mut found) {
        let bytes = sandbox.files().read(place, 4096).await.expect("the guest answers");
        *text = String::from_utf8(bytes.to_vec()).expect("it is text");
    }
    found
}

pub(crate) async fn pause(sandbox: Sandbox) -> PausedSandbox {
    sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

pub(crate) async fn resume(paused: PausedSandbox) -> Sandbox {
    super::resume(paused, RestoreOptions::default()).await
}

/// Runs `operation` and answers at which points it is to fail: for each name the first time that it is passed.
pub(crate) async fn points<T>(what: &str, operation: impl Future<Output = T>) -> (T, Vec<usize>) {
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
pub(crate) async fn failing_at<T>(point: usize, operation: impl Future<Output = T>) -> (T, bool) {
    let guard = fault::arm(Plan::FailAt(point));
    let result = operation.await;
    (result, guard.passed().len() > point)
}
