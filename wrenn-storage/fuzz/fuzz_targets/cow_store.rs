//! Bytes of any kind as a cow file's header and lists of changes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wrenn_storage::fuzzing::cow_store(bytes));
