//! What a snapshot keeps of the machine outside its vCPUs: interrupt controllers and the paravirtual clock.

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_irqchip,
};
use serde::{Deserialize, Serialize};

use super::{Vm, VmError, at};

/// The order in which a state lists the interrupt controllers.
const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A saved machine state that is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved interrupt controllers are not the two PICs and the IOAPIC")]
pub(crate) struct VmStateError;

/// The machine's interrupt controllers and clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VmState {
    controllers: [kvm_irqchip; 3],
    clock: kvm_clock_data,
}

impl VmState {
    /// Whether the time of day at which it was saved is known, so that the guest's clock can be advanced.
    pub(crate) fn knows_time(&self) -> bool {
        self.clock.flags & KVM_CLOCK_REALTIME != 0
    }

    /// A state with nothing in it, for tests of what holds one.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let mut state = Self { controllers: Default::default(), clock: Default::default() };
        for (controller, id) in state.controllers.iter_mut().zip(CONTROLLERS) {
            controller.chip_id = id;
        }
        state
    }

    /// Checks what cannot be left to KVM: that each controller's state is loaded into that controller.
    pub(crate) fn check(&self) -> Result<(), VmStateError> {
        let matches = self.controllers.iter().zip(CONTROLLERS).all(|(state, id)| state.chip_id == id);
        if matches { Ok(()) } else { Err(VmStateError) }
    }
}

impl Vm {
    /// Reads the machine's state; no vCPU may run.
    pub(crate) fn save(&self) -> Result<VmState, VmError> {
        let mut controllers = [kvm_irqchip::default(); 3];
        for (state, id) in controllers.iter_mut().zip(CONTROLLERS) {
            state.chip_id = id;
            self.fd.get_irqchip(state).map_err(at("KVM_GET_IRQCHIP"))?;
        }
        let clock = self.fd.get_clock().map_err(at("KVM_GET_CLOCK"))?;
        Ok(VmState { controllers, clock })
    }

    /// Loads a checked state; the vCPUs must have theirs already, because a pending interrupt of the IOAPIC goes
    /// to a local APIC at once.
    ///
    /// With `advance_clock`, for a state that [knows its time](VmState::knows_time), the guest's clock goes on by the
    /// time that passed since the snapshot, else it continues where it stood.
    pub(crate) fn restore(&self, state: &VmState, advance_clock: bool) -> Result<(), VmError> {
        for controller in &state.controllers {
            self.fd.set_irqchip(controller).map_err(at("KVM_SET_IRQCHIP"))?;
        }
        let mut clock = state.clock;
        // KVM sets flags that it does not take back; of those it does, only this one is wanted.
        clock.flags &= if advance_clock { KVM_CLOCK_REALTIME } else { 0 };
        self.fd.set_clock(&clock).map_err(at("KVM_SET_CLOCK"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_in_the_wrong_place_are_refused() {
        let mut state = VmState::sample();
        assert_eq!(state.check(), Ok(()));
        state.controllers.swap(0, 2);
        assert_eq!(state.check(), Err(VmStateError));
    }
}
