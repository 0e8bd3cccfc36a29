//! The fault server against real userfaultfds: this process's own, and those of children that are killed.
//!
//! Needs the right to make a userfaultfd that serves the kernel's accesses too; tests skip without it.

mod ahead;
mod cache;
mod children;
mod failing;
#[allow(unsafe_code)]
#[path = "forking/sys.rs"]
mod forking;
mod guest;
mod hostile;
mod pages;
mod peer;
mod sources;
#[allow(unsafe_code)]
#[path = "../../examples/plain_process/sys.rs"]
mod sys;
