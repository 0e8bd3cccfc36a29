//! Sandboxes as their users have them, with guests. One program: each would bring all of the library along.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine, and break it, with its own tools")]

mod chaos;
mod cli;
mod commands;
mod containment;
mod crash;
mod deaths;
mod disks;
mod examples;
mod faults;
mod full;
mod host;
mod lifecycle;
mod lifetime;
mod machine;
mod many;
mod metrics;
mod network;
mod oracle;
mod recovery;
mod rounds;
mod support;
mod templates;
