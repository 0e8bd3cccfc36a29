//! Guest memory: one or two regions of host memory around the hole for devices.
//!
//! Every region carries a bitmap of the pages that the *monitor* wrote (KVM's log has those that the guest
//! wrote). `vm-memory` marks what goes through its own accessors; whoever lets the kernel write by pointer
//! (a block read, a packet received) calls [`mark_dirty`] afterwards.

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The guest's memory; clones share it.
pub(crate) type GuestMemory = GuestMemoryMmap<AtomicBitmap>;
/// One contiguous piece of guest memory.
pub(crate) type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// Notes that the monitor wrote `len` bytes at `address` past `vm-memory`'s accessors.
///
/// What lies outside guest memory is ignored: nothing can have been written there.
pub(crate) fn mark_dirty(memory: &GuestMemory, address: GuestAddress, len: usize) {
    let (mut address, mut left) = (address, len as u64);
    while left > 0 {
        let Some((region, offset)) = memory.to_region_addr(address) else { return };
        let here = left.min(region.len() - offset.raw_value());
        region.bitmap().mark_dirty(offset.raw_value() as usize, here as usize);
        let Some(next) = address.checked_add(here) else { return };
        (address, left) = (next, left - here);
    }
}
