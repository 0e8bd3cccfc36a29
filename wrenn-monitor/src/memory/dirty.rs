//! Which pages changed since the last snapshot that succeeded.

use std::ops::Deref;

use vm_memory::GuestMemoryBackend;
use vm_memory::mmap::MmapRegion;

use super::{GuestMemory, PageSet, map};

/// The changed pages of each region, in order.
///
/// Both logs it draws from (KVM's, and the regions' bitmaps) are emptied by reading, so what they said is kept
/// here until a snapshot holds it: one that fails loses nothing.
#[derive(Debug)]
pub(crate) struct DirtyPages {
    pending: Vec<PageSet>,
}

impl DirtyPages {
    /// Nothing has changed yet.
    pub(crate) fn none(guest: &GuestMemory) -> Self {
        Self { pending: guest.iter().map(|region| PageSet::empty(map::pages_of(region))).collect() }
    }

    /// Adds what changed since the last call; `take_log` empties KVM's log of a region, given its index and size.
    ///
    /// # Errors
    /// Those of `take_log`; what was collected before stays collected.
    pub(crate) fn collect<E>(
        &mut self,
        guest: &GuestMemory,
        mut take_log: impl FnMut(u32, usize) -> Result<Vec<u64>, E>,
    ) -> Result<(), E> {
        for (slot, (region, pending)) in (0..).zip(guest.iter().zip(&mut self.pending)) {
            let mapping: &MmapRegion<_> = region.deref();
            pending.insert_words(&mapping.bitmap().get_and_reset());
            pending.insert_words(&take_log(slot, mapping.size())?);
        }
        Ok(())
    }

    /// What changed, region by region.
    pub(crate) fn pages(&self) -> &[PageSet] {
        &self.pending
    }

    /// What changed is safe in a snapshot.
    pub(crate) fn forget(&mut self, guest: &GuestMemory) {
        *self = Self::none(guest);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Memory, regions_of};

    #[test]
    fn both_logs_are_merged_and_kept_until_forgotten() {
        let memory = Memory::fresh(&regions_of(1 << 20)).unwrap();
        let guest = memory.guest();
        let mut dirty = DirtyPages::none(guest);
        guest.write_obj(1u8, GuestAddress(0x3000)).unwrap();
        let log = |slot, size| {
            assert_eq!((slot, size), (0, 1 << 20));
            Ok::<_, ()>(vec![1 << 9, 0, 0, 0])
        };
        dirty.collect(guest, log).unwrap();
        dirty.collect(guest, |_, _| Ok::<_, ()>(vec![0; 4])).unwrap();
        assert_eq!(dirty.pages()[0].runs(9).collect::<Vec<_>>(), [3..4, 9..10]);
        dirty.forget(guest);
        assert_eq!(dirty.pages()[0].len(), 0);
    }

    #[test]
    fn a_failing_log_loses_nothing() {
        let memory = Memory::fresh(&regions_of(1 << 20)).unwrap();
        let mut dirty = DirtyPages::none(memory.guest());
        memory.guest().write_obj(1u8, GuestAddress(0)).unwrap();
        assert_eq!(dirty.collect(memory.guest(), |_, _| Err("broken")), Err("broken"));
        assert_eq!(dirty.pages()[0].len(), 1);
    }
}
