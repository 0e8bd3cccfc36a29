//! The message by which a process hands its memory over.
//!
//! `cargo fuzz run handshake` in `wrenn-uffd`; on a stable toolchain
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run handshake --sanitizer none`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wrenn_uffd::fuzzing::handshake(input));
