//! Keeps symbols out of the program: it lives in the memory of every guest, and in every snapshot.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
}
