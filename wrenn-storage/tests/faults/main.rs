//! Every operation that changes what is on disk fails, and dies, at each point that it passes.
//!
//! An operation is first run once to learn its points. Then, for each point, it is run on fresh files and fails there:
//! the error is returned, nothing is left staged, the image on disk is a whole one, and a second attempt succeeds. And
//! it is run in a child process that dies there: whoever opens the files next finds the old image or the new one, whole,
//! and after the usual clean-up nothing else.

#![allow(clippy::disallowed_methods, reason = "a process that dies is a process of its own")]

#[path = "../memory/model.rs"]
mod model;
mod operations;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use wrenn_base::fault::{self, Plan};

use operations::{OPERATIONS, Operation};

/// A plan holds for the whole process, so only one test may have one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const OPERATION: &str = "WRENN_FAULT_OPERATION";
const DIRECTORY: &str = "WRENN_FAULT_DIRECTORY";

/// In memory: what a process that dies leaves is the same there, and syncing costs nothing.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// The points that `operation` passes, in order.
fn points(operation: &Operation) -> Vec<&'static str> {
    let dir = scratch();
    (operation.prepare)(dir.path());
    let plan = fault::arm(Plan::Record);
    (operation.run)(dir.path()).unwrap();
    let passed = plan.passed();
    drop(plan);
    let found = operations::check(dir.path());
    assert_eq!(found, operation.leaves, "{}", operation.name);
    passed
}

fn fails_at_each_point(operation: &Operation) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let points = points(operation);
    assert!(points.len() >= operation.least_points, "{}: {points:?}", operation.name);
    for (number, point) in points.iter().enumerate() {
        let what = format!("{} failing at {number}, {point}", operation.name);
        let dir = scratch();
        (operation.prepare)(dir.path());
        let plan = fault::arm(Plan::FailAt(number));
        let error = (operation.run)(dir.path()).expect_err(&what);
        assert_eq!(plan.passed().get(number), Some(point), "{what}: the fault fired");
        drop(plan);
        let text = operations::chain(&*error);
        assert!(text.contains("injected fault"), "{what}: {text}");
        assert_eq!(operations::staged_anywhere(dir.path()), Vec::<String>::new(), "{what}");
        operations::check_dump(dir.path());
        let found = operations::check(dir.path());
        assert!(found == operation.starts_with || found == operation.leaves, "{what}: {found:?}");
        if (operation.can_repeat)(dir.path()) {
            (operation.run)(dir.path()).unwrap_or_else(|e| panic!("{what}, then again: {e}"));
            assert_eq!(operations::check(dir.path()), operation.leaves, "{what}, then again");
        }
    }
}

fn survives_death_at_each_point(operation: &Operation) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, point) in points(operation).iter().enumerate() {
        let what = format!("{} dying at {number}, {point}", operation.name);
        let dir = scratch();
        (operation.prepare)(dir.path());
        let said = die(operation, dir.path(), number);
        assert!(said.contains(&format!("point {number}, {point}")), "{what}: {said}");
        let found = operations::check(dir.path());
        assert!(found == operation.starts_with || found == operation.leaves, "{what}: {found:?}");
        if (operation.can_repeat)(dir.path()) {
            (operation.run)(dir.path()).unwrap_or_else(|e| panic!("{what}, then again: {e}"));
            assert_eq!(operations::check(dir.path()), operation.leaves, "{what}, then again");
        }
    }
}

/// Runs the operation in a process that dies at point `number`, and returns what it said.
fn die(operation: &Operation, dir: &Path, number: usize) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "the_child", "--nocapture"])
        .env("WRENN_FAULT", format!("abort:{number}"))
        .env(OPERATION, operation.name)
        .env(DIRECTORY, dir)
        .output()
        .unwrap();
    assert!(!child.status.success(), "{} did not die at point {number}", operation.name);
    String::from_utf8_lossy(&child.stderr).into_owned()
}

#[test]
#[ignore = "it is the process that the other tests let die"]
fn the_child() {
    let (Some(name), Some(dir)) = (std::env::var_os(OPERATION), std::env::var_os(DIRECTORY)) else {
        panic!("this is run by the other tests only");
    };
    let operation = OPERATIONS.iter().find(|operation| *operation.name == *name).unwrap();
    fault::arm_from_env();
    (operation.run)(Path::new(&dir)).unwrap();
}

fn named(name: &str) -> &'static Operation {
    OPERATIONS.iter().find(|operation| operation.name == name).unwrap()
}

macro_rules! operation_tests {
    ($($test:ident),* $(,)?) => {$(
        mod $test {
            #[test]
            fn fails_at_each_point() {
                super::fails_at_each_point(super::named(stringify!($test)));
            }

            #[test]
            fn survives_death_at_each_point() {
                super::survives_death_at_each_point(super::named(stringify!($test)));
            }
        }
    )*

        #[test]
        fn every_operation_is_tested() {
            let tested = [$(stringify!($test)),*];
            assert_eq!(OPERATIONS.map(|operation| operation.name), tested);
        }
    };
}

operation_tests! {
    write_full,
    write_diff,
    import_full,
    import_diff,
    compact,
    link,
    working_set,
    snapshot,
    prune,
    flatten,
}
