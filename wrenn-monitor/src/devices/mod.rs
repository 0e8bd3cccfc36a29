//! The machine's devices.
//!
//! ```text
//!  vCPU threads                         main thread (event loop)
//!  ┌───────────────────────────┐        ┌─────────────────────────────────┐
//!  │ VirtioMmio (registers)    │ rings  │ Worker (virtio::worker)         │
//!  │ Serial, PvPanic, I8042    │ ─────► │  Block, Net, Rng: serve rings   │
//!  └───────────────────────────┘        └─────────────────────────────────┘
//!          ▲ one lock each      notify eventfds ▲   ▼ irq eventfd
//! ```
//!
//! Invariants:
//! - All virtio I/O happens on the main thread, which also performs API actions. Requests are served to
//!   their end before the loop goes on, so whenever an action runs (a snapshot, say), no request is in flight.
//! - Lock order: a transport's lock, then its worker's. A worker never takes its transport's.
//! - Nothing that a guest writes makes a device panic, loop without bound or allocate more than a queue's
//!   worth of descriptors. A request that can be answered with an error is; a driver that breaks the ring
//!   protocol gets `DEVICE_NEEDS_RESET` and is served no further until it resets the device.

mod block;
mod i8042;
mod limiter;
mod net;
mod pvpanic;
mod rng;
mod serial;
mod sys;
mod virtio;

pub(crate) use block::{Block, BlockError};
pub(crate) use i8042::I8042;
pub(crate) use net::{Net, NetError};
pub(crate) use pvpanic::PvPanic;
pub(crate) use rng::Rng;
pub(crate) use serial::{Serial, SerialState};
pub(crate) use virtio::{RestoreDeviceError, VirtioDevice, VirtioMmio, VirtioMmioState, Worker};
