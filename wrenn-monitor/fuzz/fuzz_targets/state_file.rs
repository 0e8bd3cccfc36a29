//! The state of a machine, as a monitor finds it on disk.
//!
//! `cargo fuzz run state_file` in `wrenn-monitor`; on a stable toolchain
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run state_file --sanitizer none`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wrenn_monitor::fuzzing::state_file(input));
