//! A Firecracker-API-compatible virtual machine monitor on rust-vmm crates.

#![deny(unsafe_code)]
// The seams come first; each is used as the parts behind it arrive.
#![allow(dead_code)]

mod action;
mod bus;
mod exit;
mod file;
mod layout;
mod memory;
