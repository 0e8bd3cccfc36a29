//! The server's program with guests: sandboxes as clients of its API have them.

mod clients;
mod faults;
mod hosts;
mod lives;
#[allow(dead_code, reason = "the other program of tests uses all of it")]
#[path = "../server/support/postgres.rs"]
mod postgres;
mod previews;
mod streams;
mod support;
