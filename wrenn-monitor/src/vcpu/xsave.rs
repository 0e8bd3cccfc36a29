//! A vCPU's extended state (x87, SSE, AVX and whatever came later): 4096 bytes, or more where the processor and
//! the guest's rights go further (`KVM_CAP_XSAVE2`).

use kvm_bindings::{Xsave, kvm_xsave, kvm_xsave2};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::sys;

/// The words of the part that every processor has.
const BASE_WORDS: usize = size_of::<kvm_xsave>() / 4;

/// Reads the state, `size` bytes of it ([`crate::vm::Vm::xsave_size`]).
pub(super) fn get(vcpu: &VcpuFd, size: usize) -> Result<Vec<u32>, errno::Error> {
    if size <= size_of::<kvm_xsave>() {
        // Kernels before 5.17 have no other call.
        return Ok(vcpu.get_xsave()?.region.to_vec());
    }
    let mut xsave = buffer(kvm_xsave::default(), size)?;
    sys::get_xsave(vcpu, &mut xsave, size)?;
    let base = xsave.as_fam_struct_ref().xsave.region;
    Ok(base.iter().chain(xsave.as_slice()).copied().collect())
}

/// Loads a state of any size up to `size` bytes; what it does not have is zero.
///
/// # Errors
/// `EINVAL` for a larger one, among those of KVM: this host could not hold all of it.
pub(super) fn set(vcpu: &VcpuFd, words: &[u32], size: usize) -> Result<(), errno::Error> {
    if words.len() < BASE_WORDS || words.len() * 4 > size {
        return Err(errno::Error::new(libc::EINVAL));
    }
    let (base, extra) = words.split_at(BASE_WORDS);
    let mut header = kvm_xsave::default();
    header.region.copy_from_slice(base);
    let mut xsave = buffer(header, size)?;
    xsave.as_mut_slice()[..extra.len()].copy_from_slice(extra);
    sys::set_xsave(vcpu, &xsave, size)
}

fn buffer(xsave: kvm_xsave, size: usize) -> Result<Xsave, errno::Error> {
    let len = (size - size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::from_header(kvm_xsave2 { len, xsave }).map_err(|_| errno::Error::new(libc::ENOMEM))
}
