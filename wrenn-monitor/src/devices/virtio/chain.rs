//! One request: a descriptor chain, walked once and checked.
//!
//! The descriptor table lies in guest memory and may change at any moment. It is read exactly once; what
//! comes out is a list of memory slices inside guest memory, in whose *content* alone the guest still has a hand.
//!
//! Failure paths: a chain that breaks the protocol (virtio 1.2, section 2.7.5) is a [`ChainError`]. There is
//! no telling what its driver meant, so it is never served in part.

use std::ops::Range;

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use crate::memory::GuestMemory;

/// A contiguous piece of guest memory.
pub(crate) type GuestSlice<'m> = VolatileSlice<'m, BS<'m, AtomicBitmap>>;

/// How a descriptor chain broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("descriptor chain {0} is empty, broken off, or longer than 4 GiB")]
    Broken(u16),
    #[error("descriptor chain {0} has more descriptors than its queue")]
    TooLong(u16),
    #[error("descriptor chain {0} has a readable descriptor after a writable one")]
    OutOfOrder(u16),
    #[error("descriptor chain {head} reaches outside guest memory, at {address:#x}")]
    OutsideMemory { head: u16, address: u64 },
}

/// A request's buffers: first what the device reads, then what it writes.
#[derive(Debug)]
pub(crate) struct Chain<'m> {
    head: u16,
    /// What the driver wrote for the device.
    pub(crate) readable: Buffers<'m>,
    /// What the device is to write for the driver.
    pub(crate) writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Reads `descriptors`, of which there may be at most `limit`.
    pub(crate) fn walk(
        memory: &'m GuestMemory,
        descriptors: DescriptorChain<&GuestMemory>,
        limit: u16,
    ) -> Result<Self, ChainError> {
        let head = descriptors.head_index();
        let mut chain = Self { head, readable: Buffers::default(), writable: Buffers::default() };
        let (mut count, mut ended, mut writing) = (0, false, false);
        for descriptor in descriptors {
            count += 1;
            if count > limit {
                return Err(ChainError::TooLong(head));
            }
            // `virtio-queue` ends a chain silently where it finds it broken. The last descriptor tells.
            ended = !descriptor.has_next();
            if writing && !descriptor.is_write_only() {
                return Err(ChainError::OutOfOrder(head));
            }
            writing = descriptor.is_write_only();
            let (buffers, access) = match writing {
                true => (&mut chain.writable, Permissions::Write),
                false => (&mut chain.readable, Permissions::Read),
            };
            let address = descriptor.addr();
            buffers
                .push(memory, address, descriptor.len() as usize, access)
                .map_err(|_| ChainError::OutsideMemory { head, address: address.0 })?;
        }
        if ended { Ok(chain) } else { Err(ChainError::Broken(head)) }
    }

    /// The index by which the driver knows the request.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }
}

/// A sequence of guest memory slices that is used as if it were one.
#[derive(Debug, Default)]
pub(crate) struct Buffers<'m> {
    slices: Vec<GuestSlice<'m>>,
    len: usize,
}

/// More was asked of a request than the driver gave it room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request is too short")]
pub(crate) struct TooShort;

impl<'m> Buffers<'m> {
    fn push(
        &mut self,
        memory: &'m GuestMemory,
        address: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> Result<(), vm_memory::GuestMemoryError> {
        for slice in memory.get_slices(address, len, access)? {
            self.slices.push(slice?);
        }
        self.len += len;
        Ok(())
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pieces, none of them empty.
    pub(crate) fn slices(&self) -> &[GuestSlice<'m>] {
        &self.slices
    }

    /// The bytes in `range`.
    pub(crate) fn part(&self, range: Range<usize>) -> Result<Buffers<'m>, TooShort> {
        if range.start > range.end || range.end > self.len {
            return Err(TooShort);
        }
        let mut part = Buffers { slices: Vec::new(), len: range.len() };
        let mut start = 0;
        for slice in &self.slices {
            let end = start + slice.len();
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                part.slices.push(slice.subslice(from - start, to - from).map_err(|_| TooShort)?);
            }
            start = end;
        }
        Ok(part)
    }

    /// Copies the bytes from `at` on to `data`, which must all be there.
    pub(crate) fn read(&self, at: usize, data: &mut [u8]) -> Result<(), TooShort> {
        let part = self.part(at..at.checked_add(data.len()).ok_or(TooShort)?)?;
        let mut rest = data;
        for slice in &part.slices {
            let (here, after) = rest.split_at_mut(slice.len());
            slice.read_slice(here, 0).map_err(|_| TooShort)?;
            rest = after;
        }
        Ok(())
    }

    /// Copies `data` to the bytes from `at` on, for which there must be room.
    pub(crate) fn write(&self, at: usize, data: &[u8]) -> Result<(), TooShort> {
        let part = self.part(at..at.checked_add(data.len()).ok_or(TooShort)?)?;
        let mut rest = data;
        for slice in &part.slices {
            let (here, after) = rest.split_at(slice.len());
            slice.write_slice(here, 0).map_err(|_| TooShort)?;
            rest = after;
        }
        Ok(())
    }
}
