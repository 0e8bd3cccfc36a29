//! Drives a microVM monitor process through the Firecracker REST API.
//!
//! - [`api`]: the REST schema as types, shared by the driver and the monitor (feature `api-types`, no I/O).
//! - [`MonitorProgram`]: which program to run; [`MonitorSpec`]: how to run it.
//! - [`Containment`]: what a monitor is held in, so that a guest which takes it over gains next to nothing;
//!   [`CgroupTree`]: how much of the machine it may use.
//! - [`MonitorProcess`]: one running monitor, watched until it is gone.
//! - [`Client`]: the REST API, typed.
//! - [`GuestMemory`]: what a monitor that offers it lets be read straight out of its address space.
//!
//! Nothing here knows which of the two programs (Firecracker, `wrenn-monitor`) it drives: both get the
//! same flags and the same requests. What only one of them offers is asked for first ([`Client::extensions`]).
//!
//! # Failure paths
//! - A monitor that dies is noticed by a thread of its own, not by a timeout: whoever waits gets
//!   [`VmmError::Exited`] with its status and the tail of its console.
//! - Every process is reaped exactly once, by that thread, whether or not its handle still exists.
//! - What a monitor answers or prints may be written by a guest that took it over: bodies are bounded,
//!   texts are clipped and stripped of control characters before they reach an error.
#![deny(unsafe_code)]

#[cfg(feature = "api-types")]
pub mod api;

#[cfg(feature = "driver")]
mod cgroup;
#[cfg(feature = "driver")]
mod client;
#[cfg(feature = "driver")]
mod console;
#[cfg(feature = "driver")]
mod contain;
#[cfg(feature = "driver")]
mod error;
#[cfg(feature = "driver")]
mod exit;
#[cfg(feature = "driver")]
mod launch;
#[cfg(feature = "driver")]
mod memory;
#[cfg(feature = "driver")]
mod pagemap;
#[cfg(feature = "driver")]
mod process;
#[cfg(feature = "driver")]
mod program;
#[cfg(feature = "driver")]
mod spec;
#[cfg(feature = "driver")]
#[allow(unsafe_code)]
// Other processes' memory: nothing the compiler can check.
mod sys;
#[cfg(feature = "driver")]
mod text;
#[cfg(feature = "driver")]
mod watch;

#[cfg(feature = "driver")]
pub use self::{
    cgroup::{CgroupError, CgroupTree, CgroupTreeSpec, Controller, Limits},
    client::{Client, Timeouts},
    contain::{Containment, ContainmentError},
    error::{SetupStep, VmmError},
    exit::{ExitCause, ExitReport, ExitStatus, GUEST_PANIC_EXIT_CODE},
    memory::{Freezer, GuestMemory, GuestRun, MemoryError},
    process::{Killer, MonitorProcess, MonitorTakeOver},
    program::MonitorProgram,
    spec::{DiskMount, MonitorSpec, ROOT_DISK_PATH, VM_DIR},
};
