//! Every input that the fuzzers start from, through the functions that they fuzz.

use std::fs;
use std::path::Path;

use wrenn_storage::fuzzing;

/// Runs `target` on every file of its corpus, and on each with every byte changed in three ways.
fn check(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let mut input = fs::read(entry.unwrap().path()).unwrap();
        assert!(input.len() <= 1024, "inputs are small, so that this is done at once");
        target(&input);
        for at in 0..input.len() {
            for mask in [1, 0x80, 0xff] {
                input[at] ^= mask;
                target(&input);
                input[at] ^= mask;
            }
            target(&input[..at]);
        }
        inputs += 1;
    }
    assert!(inputs >= 12, "the corpus of {name} has {inputs} inputs");
}

#[test]
fn manifests() {
    check("manifest", fuzzing::manifest);
}

#[test]
fn working_sets() {
    check("working_set", fuzzing::working_set);
}

#[test]
fn cow_stores() {
    check("cow_store", fuzzing::cow_store);
}
