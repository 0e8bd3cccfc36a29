//! Firecracker's REST API on a Unix socket.
//!
//! ```text
//!  socket ──bytes──► http ──Request──► route ──Action──► main loop
//!         ◄─bytes── http ◄──Response── server ◄─Outcome──┘
//! ```
//!
//! One thread serves all connections, one request after the other: an action that takes its time (a
//! snapshot) makes the next request wait. JSON and HTTP end here; see [`crate::action`] for what goes on.
//!
//! Answers: 204 for what was done, 200 with a body for what was asked, 400 with `fault_message` for whatever
//! is wrong: an unknown path or method, a body that does not parse or has an unknown field, an action in the
//! wrong phase, or one that failed.

mod body;
mod http;
mod route;
mod server;

pub(crate) use body::{MachineConfigUpdate, VmConfig};
pub(crate) use route::routes;
pub(crate) use server::ApiServer;
