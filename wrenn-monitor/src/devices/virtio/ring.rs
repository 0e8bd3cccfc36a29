//! One virtqueue in use (virtio 1.2, section 2.7, split rings).

use std::time::Duration;

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use super::chain::{Chain, ChainError};
use crate::devices::limiter::Limiter;
use crate::memory::GuestMemory;

/// How many requests of a queue are served before the main loop sees to others. A guest can refill a
/// queue as fast as it is drained, so this is what keeps the API answering.
pub(crate) const ROUND: usize = 64;

/// What is left after a queue was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// Nothing: the driver, or the host, will tell when there is more.
    All,
    /// Perhaps more: serve again soon.
    Some,
    /// More, which has to wait for so long.
    Later(Duration),
}

/// Why a queue cannot be served on: its driver broke the protocol.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("the ring is corrupt: {0}")]
    Queue(virtio_queue::Error),
    #[error("the ring is outside guest memory")]
    Memory(#[from] GuestMemoryError),
    #[error("a request cannot be understood")]
    Chain(#[from] ChainError),
    #[error("{0}")]
    Driver(&'static str),
}

impl From<virtio_queue::Error> for RingError {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Queue(error)
    }
}

/// A queue that its driver has set up, and the memory that it lies in.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    memory: GuestMemory,
    /// Whether a request was answered since the driver was last interrupted, and how.
    answered: Answered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Nothing,
    /// One by one: `virtio-queue` knows whether the driver wants to hear of them.
    Singly,
    /// Several at once, behind `virtio-queue`'s back: the driver is told in any case.
    Together,
}

impl Ring {
    /// A ring as the driver described it; refused if it does not lie in `memory`.
    pub(crate) fn new(state: QueueState, memory: &GuestMemory) -> Result<Self, RingError> {
        let queue = Queue::try_from(state)?;
        if !queue.is_valid(memory) {
            return Err(RingError::Driver("the ring is not ready, or not inside guest memory"));
        }
        Ok(Self { queue, memory: memory.clone(), answered: Answered::Nothing })
    }

    /// Where device and driver are.
    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Serves up to [`ROUND`] requests, as fast as `limiter` lets it, by `handle`, which returns how many bytes it wrote.
    pub(crate) fn serve(
        &mut self,
        limiter: &mut Limiter,
        mut handle: impl FnMut(&Chain<'_>) -> Result<u32, RingError>,
    ) -> Result<Served, RingError> {
        for _ in 0..ROUND {
            if let Some(pause) = limiter.pause() {
                return Ok(Served::Later(pause));
            }
            let Some(descriptors) = self.queue.iter(&self.memory)?.next() else {
                // The driver may have added a request just before it could know that it has to tell.
                if self.queue.enable_notification(&self.memory)? {
                    continue;
                }
                return Ok(Served::All);
            };
            let chain = Chain::walk(&self.memory, descriptors, self.queue.size())?;
            limiter.take(chain.readable.len() + chain.writable.len());
            let written = handle(&chain)?;
            self.queue.add_used(&self.memory, chain.head(), written)?;
            if self.answered == Answered::Nothing {
                self.answered = Answered::Singly;
            }
        }
        Ok(Served::Some)
    }

    /// Whether a request is waiting; if none is, the driver is asked to tell when one is.
    pub(crate) fn has_request(&mut self) -> Result<bool, RingError> {
        let waiting = self.queue.iter(&self.memory)?.next().is_some();
        if waiting {
            self.queue.go_to_previous_position();
            return Ok(true);
        }
        Ok(self.queue.enable_notification(&self.memory)?)
    }

    /// Hands the driver `data` in the writable parts of one waiting request, or of as many as it takes if
    /// `mergeable`. Their number is written into `data` first, at `count_at`, as a little-endian 16-bit number.
    ///
    /// `false`: too few requests are waiting, none was used, and the driver will tell when it adds one. Data
    /// that does not fit one request, where only one may be used, is dropped and the request answered as empty.
    pub(crate) fn deliver(
        &mut self,
        data: &mut [u8],
        count_at: usize,
        mergeable: bool,
    ) -> Result<bool, RingError> {
        let Self { queue, memory, .. } = self;
        let start = queue.next_avail();
        let limit = if mergeable { usize::from(queue.size()) } else { 1 };
        let mut chains: Vec<Chain<'_>> = Vec::new();
        let mut room = 0;
        while room < data.len() && chains.len() < limit {
            let mut next = queue.iter(&*memory)?.next();
            if next.is_none() && queue.enable_notification(&*memory)? {
                next = queue.iter(&*memory)?.next();
            }
            let Some(descriptors) = next else {
                queue.set_next_avail(start);
                return Ok(false);
            };
            let chain = Chain::walk(memory, descriptors, queue.size())?;
            room += chain.writable.len();
            chains.push(chain);
        }
        if room < data.len() && mergeable {
            return Err(RingError::Driver("a whole queue of receive buffers is too small for one frame"));
        }
        let fits = room >= data.len();
        data[count_at..count_at + 2].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let mut used = Vec::with_capacity(chains.len());
        let mut rest: &[u8] = if fits { data } else { &[] };
        for chain in &chains {
            let (here, after) = rest.split_at(rest.len().min(chain.writable.len()));
            // It fits by construction.
            let _ = chain.writable.write(0, here);
            used.push((chain.head(), here.len() as u32));
            rest = after;
        }
        self.publish(&used)?;
        Ok(true)
    }

    /// Answers requests so that the driver sees all of them or none.
    ///
    /// `virtio-queue` publishes one at a time, and a driver that polls would take the first of several
    /// merged buffers for a broken frame. So all but the last element are written by hand ahead of the index.
    fn publish(&mut self, used: &[(u16, u32)]) -> Result<(), RingError> {
        let Some(((last_head, last_len), before)) = used.split_last() else { return Ok(()) };
        let first = self.queue.next_used();
        for (i, (head, len)) in before.iter().enumerate() {
            if *head >= self.queue.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            let slot = first.wrapping_add(i as u16) % self.queue.size();
            let element = u64::from(*head) | u64::from(*len) << 32;
            // Header of two 16-bit fields, then elements of two 32-bit fields (section 2.7.8).
            let address = GuestAddress(self.queue.used_ring())
                .checked_add(4 + 8 * u64::from(slot))
                .ok_or(virtio_queue::Error::AddressOverflow)?;
            self.memory.write_obj(element.to_le(), address)?;
        }
        self.queue.set_next_used(first.wrapping_add(before.len() as u16));
        self.queue.add_used(&self.memory, *last_head, *last_len)?;
        if !before.is_empty() {
            self.answered = Answered::Together;
        } else if self.answered == Answered::Nothing {
            self.answered = Answered::Singly;
        }
        Ok(())
    }

    /// Whether the driver is to be interrupted for what was answered since the last call.
    pub(crate) fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        Ok(match std::mem::replace(&mut self.answered, Answered::Nothing) {
            Answered::Nothing => false,
            answered => self.queue.needs_notification(&self.memory)? || answered == Answered::Together,
        })
    }
}
