//! The contract with Firecracker's own API description: what the driver sends, what the types say, what the
//! monitor offers. Skipped, saying so, where the description is not at hand.

#[path = "../common/mod.rs"]
mod common;

mod driver;
mod monitor;
mod spec;
mod types;
