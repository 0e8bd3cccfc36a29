//! The working set's file of format version 1: every later build has to read it, and write it the same.

use std::fs;
use std::path::Path;

use wrenn_base::Bytes;
use wrenn_storage::{PageRun, WorkingSet};

#[test]
fn the_golden_file_is_read_and_written_the_same() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/working-set-v1");
    let runs = [(9, 3), (3, 1), (63, 1), (20, 7)].map(|(first, pages)| PageRun { first, pages });
    let set = WorkingSet::load(&path).unwrap().unwrap();
    assert_eq!(set, WorkingSet::new(Bytes(64 * 4096), runs).unwrap());
    assert_eq!(set.runs(), runs);
    assert!(set.encode() == fs::read(&path).unwrap());
}
