//! Drives a microVM monitor process through the Firecracker REST API.
//!
//! - [`api`]: the REST schema as types, shared by the driver and the monitor (feature `api-types`, no I/O).
#![deny(unsafe_code)]

#[cfg(feature = "api-types")]
pub mod api;
