//! The host agent: the sandboxes of one machine, offered to a control plane over Connect RPC.
//!
//! `HostService` (feature `service`) serves a `wrenn_core::Host` over TCP, TLS, a Unix socket or within the process;
//! `HostClient` (feature `client`) calls it. `proto/host.proto` has the wire.
//!
//! A sandbox's life is tied to its host, never to a request: an operation that began comes to its end whoever waits for it.
//!
//! # Bytes to a guest
//! There are no calls for commands, terminals, files and previews. A *tunnel* is a TCP connection to a port of the
//! guest: `GET /tunnel/{sandbox}/{port}` with `Upgrade: wrenn-tunnel`, answered with 101 and then bytes both ways. The guest's agent
//! is behind one of these ports and has a protocol for all of this (`wrenn-agent-api`); a second one in between would
//! have to copy each of its calls, and could only lose what it says. `HostClient::agent` gives the agent's client.
//!
//! # Who may call
//! Over TCP whoever shows a host token ([`HostSecret`]) or, where the host asks for it, a client certificate. A Unix
//! socket's permissions say who may connect. `/health` answers everybody.
#![forbid(unsafe_code)]

#[cfg_attr(all(), allow(dead_code, reason = "one side writes, the other reads"))]
mod reason;
mod token;
#[cfg_attr(all(), allow(dead_code, reason = "one side writes, the other reads"))]
mod types;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "service")]
mod service;

#[cfg(feature = "client")]
pub use client::{
    BadEndpoint, ClientTls, HostClient, HostClientBuilder, HostError, SandboxEvents, Tunnel, WatchEvent,
};
pub use reason::Reason;
#[cfg(feature = "service")]
pub use service::{BadTls, HostService, Listener, MutualTls, ServerTls};
pub use token::{BadSecret, BadToken, Caller, HostSecret};
pub use types::{
    Branch, CreateSandbox, Description, Egress, EgressRule, EventKind, Malformed, OnTimeout, Paused,
    Protocol, SandboxEvent, SandboxRecord, SandboxState, Source, Stats, TakenSnapshot, TemplateRecord,
    Timeout,
};

pub use wrenn_agent_api::transport::Connection;

/// What a tunnel's request asks to be upgraded to.
pub const TUNNEL_PROTOCOL: &str = "wrenn-tunnel";

/// Code generated from `proto/host.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    rust_2018_idioms,
    clippy::all,
    clippy::pedantic
)]
mod generated {
    connectrpc::include_generated!();
}
pub(crate) use generated::wrenn::host::v1 as pb;
