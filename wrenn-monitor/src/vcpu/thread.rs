//! A vCPU's thread: in and out of the guest until it is told to park or end.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::gate::{Gate, Order};
use super::sys::KickTarget;
use crate::bus::Bus;
use crate::exit::{ExitReason, ExitSignal};

/// The thread's stack: exits are handled without recursion, and a small stack makes a quick start.
const STACK: usize = 128 * 1024;

/// What all vCPUs of a machine share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) gate: Arc<Gate>,
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) exit: ExitSignal,
}

/// Why a vCPU left the guest for good, or for now.
enum Left {
    /// It was kicked, and is not to run now.
    Ordered,
    Ended(ExitReason),
}

/// Starts the thread of vCPU `index`; it parks at the gate. `prepare` runs first in it, and ends it by failing.
pub(super) fn start(
    index: u8,
    vcpu: Arc<Mutex<VcpuFd>>,
    shared: Shared,
    prepare: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let body = move || {
        match prepare() {
            Ok(()) => run(index, &vcpu, &shared),
            Err(what) => shared.exit.raise(ExitReason::VcpuFailed { vcpu: index, what }),
        }
        shared.gate.retire();
    };
    thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK).spawn(body)
}

/// Runs the guest whenever it is to run. The vCPU is locked while the guest runs and free while it is parked, so
/// that the main thread can read its state.
fn run(index: u8, vcpu: &Mutex<VcpuFd>, shared: &Shared) {
    while shared.gate.park() {
        let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        match run_until_ordered(index, &mut vcpu, shared) {
            // Tells the guest's watchdog that it was paused; a guest without kvmclock has nothing to tell.
            Left::Ordered => drop(vcpu.kvmclock_ctrl()),
            Left::Ended(reason) => return shared.exit.raise(reason),
        }
    }
}

fn run_until_ordered(index: u8, vcpu: &mut VcpuFd, shared: &Shared) -> Left {
    // From here on a kick is noticed, so the order is looked at afterwards.
    let mut target = KickTarget::new(vcpu);
    while shared.gate.order() == Order::Run {
        if let Err(reason) = run_until_kicked(index, target.vcpu(), shared) {
            return Left::Ended(reason);
        }
        target.vcpu().set_kvm_immediate_exit(0);
    }
    Left::Ordered
}

/// Runs the guest and serves its exits until a kick.
fn run_until_kicked(index: u8, vcpu: &mut VcpuFd, shared: &Shared) -> Result<(), ExitReason> {
    let failed = |what: String| ExitReason::VcpuFailed { vcpu: index, what };
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => shared.ports.write(port.into(), data),
            Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
            Ok(VcpuExit::Shutdown) => return Err(ExitReason::TripleFault { vcpu: index }),
            Ok(VcpuExit::SystemEvent(kind, _)) => return Err(system_event(index, kind)),
            Ok(VcpuExit::Intr) => {}
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(failed(format!("the processor refused to enter the guest, reason {reason:#x}")));
            }
            Ok(exit) => return Err(failed(format!("{exit:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR => return Ok(()),
                // A vCPU that waited to be started, and may have been.
                libc::EAGAIN => {}
                _ => return Err(failed(format!("KVM_RUN failed: {error}"))),
            },
        }
    }
}

fn system_event(index: u8, kind: u32) -> ExitReason {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => ExitReason::GuestShutdown,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => ExitReason::GuestReset,
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => ExitReason::GuestPanic,
        other => ExitReason::VcpuFailed { vcpu: index, what: format!("system event {other}") },
    }
}
