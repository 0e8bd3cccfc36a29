//! Bytes of any kind as a memory image's manifest.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wrenn_storage::fuzzing::manifest(bytes));
