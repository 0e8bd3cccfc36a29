//! Bytes of any kind as a working set.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wrenn_storage::fuzzing::working_set(bytes));
