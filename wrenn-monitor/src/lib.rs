//! A Firecracker-API-compatible virtual machine monitor on rust-vmm crates.
