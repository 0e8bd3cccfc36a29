//! Drives a microVM monitor process through the Firecracker REST API.
