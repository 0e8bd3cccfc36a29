//! Model-specific registers: those a new vCPU starts with, and all that a snapshot keeps.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::errno;

/// The timer that fires when the TSC reaches its value: loaded last of all, lest it fires half way.
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_MISC_ENABLE, whose bit 0 is "fast strings".
const MISC_ENABLE: u32 = 0x1a0;
/// IA32_MTRR_DEF_TYPE: memory type ranges on (bit 11), write-back (6) where none says otherwise.
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// A register could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MsrError {
    #[error("KVM refuses the value {value:#x} for model-specific register {index:#x}")]
    Refused { index: u32, value: u64 },
    #[error("the model-specific registers could not be {verb}")]
    Kvm { verb: &'static str, source: errno::Error },
}

/// The registers of KVM that make up a vCPU's state on this host.
pub(crate) fn indices(kvm: &Kvm) -> Result<Vec<u32>, errno::Error> {
    Ok(kvm.get_msr_index_list()?.as_slice().to_vec())
}

/// Reads the registers `indices`; those that this vCPU does not have are left out.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, MsrError> {
    let mut entries = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let wanted: Vec<_> = left
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
            .collect();
        let mut msrs = list(&wanted)?;
        let read = vcpu.get_msrs(&mut msrs).map_err(|source| MsrError::Kvm { verb: "read", source })?;
        entries.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first that it cannot read.
        let skipped = usize::from(read < wanted.len());
        left = &left[read + skipped..];
    }
    Ok(entries)
}

/// Loads `entries`, all but the deadline timer.
pub(super) fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), MsrError> {
    let entries: Vec<_> = entries.iter().copied().filter(|entry| entry.index != TSC_DEADLINE).collect();
    write_all(vcpu, &entries)
}

/// Loads the deadline timer, if `entries` has it.
pub(super) fn write_deadline(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), MsrError> {
    let deadline: Vec<_> = entries.iter().copied().filter(|entry| entry.index == TSC_DEADLINE).collect();
    write_all(vcpu, &deadline)
}

/// Loads what firmware would have set before it starts a kernel.
pub(super) fn write_initial(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    write_all(vcpu, &[entry(MISC_ENABLE, 1), entry(MTRR_DEF_TYPE, 1 << 11 | 6)])
}

fn write_all(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), MsrError> {
    let mut left = entries;
    while !left.is_empty() {
        let batch = &left[..left.len().min(KVM_MAX_MSR_ENTRIES)];
        let written =
            vcpu.set_msrs(&list(batch)?).map_err(|source| MsrError::Kvm { verb: "loaded", source })?;
        let mut done = written;
        if let Some(refused) = batch.get(written) {
            // A register that cannot be written but has the value already is as good as loaded.
            let now = read(vcpu, &[refused.index])?;
            if now.first().map(|entry| entry.data) != Some(refused.data) {
                return Err(MsrError::Refused { index: refused.index, value: refused.data });
            }
            done += 1;
        }
        left = &left[done..];
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, MsrError> {
    Msrs::from_entries(entries)
        .map_err(|_| MsrError::Kvm { verb: "listed", source: errno::Error::new(libc::E2BIG) })
}
