//! What a snapshot keeps of a vCPU, and the order in which KVM wants it read and loaded.
//!
//! Reading: `mp_state` first, since asking for it delivers a pending INIT or SIPI and so changes the rest; events
//! last. Loading: CPUID first, since it decides what the rest may hold; registers; the local APIC before the
//! MSRs, which need its timer mode; events; the deadline timer last of all, lest it fires half way.
//!
//! Loading the MSRs writes to guest memory (the kvmclock pages), so memory must be there, and a fault server
//! serving, before.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::compat::{self, IncompatibleCpu};
use super::cpuid;
use super::msr::{self, MsrError};
use super::xsave;
use crate::vm::Vm;

/// The state of a vCPU could not be read or loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuStateError {
    #[error("{step} failed")]
    Step { step: &'static str, source: errno::Error },
    #[error(transparent)]
    Msr(#[from] MsrError),
    #[error("the processor's description has {entries} entries, more than KVM takes")]
    TooManyCpuidEntries { entries: usize },
    #[error("the snapshot does not fit this host")]
    Incompatible(#[from] IncompatibleCpu),
}

fn at(step: &'static str) -> impl Fn(errno::Error) -> VcpuStateError {
    move |source| VcpuStateError::Step { step, source }
}

/// One vCPU's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// A state with nothing in it, for tests of what holds one.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        Self {
            cpuid: vec![kvm_cpuid_entry2::default(); 3],
            tsc_khz: 2_000_000,
            mp_state: Default::default(),
            regs: Default::default(),
            sregs: Default::default(),
            xsave: vec![0; 1024],
            xcrs: Default::default(),
            debug_regs: Default::default(),
            lapic: Default::default(),
            msrs: vec![kvm_msr_entry::default(); 5],
            events: Default::default(),
        }
    }

    /// What the vCPU was told about its processor.
    pub(crate) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Reads the state of `vcpu`, which must be parked; `cpuid` is what it was given.
    pub(crate) fn read(
        vm: &Vm,
        vcpu: &VcpuFd,
        cpuid: &[kvm_cpuid_entry2],
        msr_indices: &[u32],
    ) -> Result<Self, VcpuStateError> {
        let mp_state = vcpu.get_mp_state().map_err(at("KVM_GET_MP_STATE"))?;
        let regs = vcpu.get_regs().map_err(at("KVM_GET_REGS"))?;
        let sregs = vcpu.get_sregs().map_err(at("KVM_GET_SREGS"))?;
        let xsave = xsave::get(vcpu, vm.xsave_size()).map_err(at("KVM_GET_XSAVE2"))?;
        let xcrs = vcpu.get_xcrs().map_err(at("KVM_GET_XCRS"))?;
        let debug_regs = vcpu.get_debug_regs().map_err(at("KVM_GET_DEBUGREGS"))?;
        let lapic = vcpu.get_lapic().map_err(at("KVM_GET_LAPIC"))?;
        let msrs = msr::read(vcpu, msr_indices)?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(at("KVM_GET_TSC_KHZ"))?;
        let events = vcpu.get_vcpu_events().map_err(at("KVM_GET_VCPU_EVENTS"))?;
        let cpuid = cpuid.to_vec();
        Ok(Self { cpuid, tsc_khz, mp_state, regs, sregs, xsave, xcrs, debug_regs, lapic, msrs, events })
    }

    /// Loads the state into `vcpu`, which must be new.
    pub(crate) fn load(&self, vm: &Vm, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        give_cpuid(vcpu, &self.cpuid)?;
        self.load_tsc_rate(vm, vcpu)?;
        vcpu.set_mp_state(self.mp_state).map_err(at("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(at("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs).map_err(at("KVM_SET_SREGS"))?;
        xsave::set(vcpu, &self.xsave, vm.xsave_size()).map_err(at("KVM_SET_XSAVE"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(at("KVM_SET_XCRS"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(at("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic).map_err(at("KVM_SET_LAPIC"))?;
        msr::write(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(at("KVM_SET_VCPU_EVENTS"))?;
        msr::write_deadline(vcpu, &self.msrs)?;
        // Tells the guest's watchdog that it was paused; a guest without kvmclock has nothing to tell.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }

    /// Makes the vCPU's clock run at the snapshot's rate. Where the host's is the same, nothing is set: KVM then
    /// need not convert, nor be able to.
    fn load_tsc_rate(&self, vm: &Vm, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let host = vcpu.get_tsc_khz().map_err(at("KVM_GET_TSC_KHZ"))?;
        if compat::same_rate(self.tsc_khz, host) {
            return Ok(());
        }
        if !vm.scales_tsc() {
            return Err(IncompatibleCpu::TscRate { snapshot: self.tsc_khz, host }.into());
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(at("KVM_SET_TSC_KHZ"))
    }
}

/// Tells a vCPU what its processor is.
pub(super) fn give_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), VcpuStateError> {
    let too_many = VcpuStateError::TooManyCpuidEntries { entries: entries.len() };
    let cpuid = cpuid::to_kvm(entries).ok_or(too_many)?;
    vcpu.set_cpuid2(&cpuid).map_err(at("KVM_SET_CPUID2"))
}

/// Puts a new vCPU where its processor's firmware would have left it.
pub(super) fn give_initial_msrs(vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
    Ok(msr::write_initial(vcpu)?)
}
