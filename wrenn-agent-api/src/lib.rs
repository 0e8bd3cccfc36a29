//! What host and guest agent say to each other: messages, routes, and the host's client.
//!
//! The wire is that of the E2B guest agent: Connect RPC (binary protobuf or JSON) for commands and
//! directories, plain HTTP for file contents and housekeeping, HTTP/1.1 over TCP on port [`AGENT_PORT`]. [`proto`] is generated from `proto/*.proto`;
//! [`http`] holds the bodies of the plain routes; `AgentClient` (feature `client`) is what a host uses.
//!
//! Both sides treat the other as hostile: bodies and messages are bounded, nothing that arrives can panic.
#![forbid(unsafe_code)]

pub mod http;
mod token;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
pub mod transport;

#[cfg(feature = "client")]
pub use client::{
    AgentClient, AgentError, Channel, Command, Dial, FileEvent, FileEventKind, FileInfo, FileKind,
    FileStream, GuestPath, Init, ProcessEvent, ProcessInfo, ProcessStream, Selector, Signal, TerminalSize,
    Upload, WatchOptions, WatchStream, WrittenFile,
};
pub use token::{AccessToken, InvalidToken};

/// The TCP port that the agent listens on inside the guest.
pub const AGENT_PORT: u16 = 49983;

/// The header that carries the [`AccessToken`].
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";

/// The header that asks for a `keepalive` event after so many idle seconds of a command's stream.
pub const KEEPALIVE_HEADER: &str = "keepalive-ping-interval";

/// The most that one output event of a command carries, in bytes.
pub const MAX_OUTPUT_CHUNK: usize = 32 * 1024;

/// Code generated from `proto/*.proto`: one module per protobuf package.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    rust_2018_idioms,
    clippy::all,
    clippy::pedantic
)]
pub mod proto {
    connectrpc::include_generated!();
}
