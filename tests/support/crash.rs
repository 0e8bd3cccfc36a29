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

/// The guest's state, in memory and on disk: the file system of `/run` is memory.
pub(crate) async fn write(sandbox: &Sandbox, text: &str) {
    sandbox
        .exec(format!("echo {text} | tee /run/state > /root/state; sync"))
        .await
        .expect("the guest answers");
}

pub(crate) async fn read(sandbox: &Sandbox) -> String {
    let text = sandbox.exec("cat /run/state /root/state").await.expect("the guest answers").stdout_text();
    let (memory, disk) = text.split_once('\n').expect("two lines");
    assert_eq!(memory, disk, "memory and disk are not of one instant");
    memory.to_owned()
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
