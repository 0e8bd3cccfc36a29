//! Drivers gone mad, for property tests: any descriptor table, any available ring.

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{BUFFERS, Descriptor, Driver, MEMORY};

/// What a mad driver writes before it notifies.
#[derive(Debug, Clone)]
pub(in crate::devices) struct Chaos {
    descriptors: Vec<Descriptor>,
    heads: Vec<u16>,
    /// Added to the number of heads for the available index.
    surplus: u16,
    content: Vec<u8>,
}

/// Anything, with a liking for what is nearly right.
pub(in crate::devices) fn chaos() -> impl Strategy<Value = Chaos> {
    let address = prop_oneof![
        4 => BUFFERS..BUFFERS + 0x1000,
        1 => Just(MEMORY[0].1 as u64 - 8),
        1 => MEMORY[1].0..MEMORY[1].0 + 0x1000,
        // The rings themselves.
        1 => 0x1_0000u64..0x1_4000,
        1 => Just(u64::MAX - 8),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![3 => 0u32..64, 2 => Just(16), 2 => Just(512), 1 => 0u32..0x3000, 1 => any::<u32>()];
    let descriptor = (address, len, 0u16..8, prop_oneof![8 => 0u16..32, 1 => any::<u16>()])
        .prop_map(|(address, len, flags, next)| Descriptor { address, len, flags, next });
    let head = prop_oneof![8 => 0u16..32, 1 => any::<u16>()];
    let surplus = prop_oneof![8 => Just(0u16), 1 => any::<u16>()];
    // Small numbers at the start look like request types.
    let content = (0u8..12, vec(any::<u8>(), 64)).prop_map(|(kind, mut bytes)| {
        bytes[..8].copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        bytes[9..16].fill(0);
        bytes
    });
    (vec(descriptor, 32), vec(head, 1..40), surplus, content)
        .prop_map(|(descriptors, heads, surplus, content)| Chaos { descriptors, heads, surplus, content })
}

impl Driver {
    /// Does as `chaos` says in every queue. The device must come to rest (`turn` sees to that) and be as new
    /// after a reset, which it is when this returns.
    pub(in crate::devices) fn suffer(&mut self, chaos: &Chaos, queues: usize) {
        for queue in 0..queues {
            self.put(BUFFERS, &chaos.content);
            for (index, descriptor) in chaos.descriptors.iter().enumerate() {
                self.put_descriptor(queue, index as u16, *descriptor);
            }
            for head in &chaos.heads {
                self.offer(queue, *head);
            }
            let [_, available, _] = self.rings(queue);
            let index = (chaos.heads.len() as u16).wrapping_add(chaos.surplus);
            self.memory.write_obj(index, GuestAddress(available + 2)).unwrap();
            self.notify(queue);
        }
        self.bring_up(u64::MAX);
        assert!(!self.stopped());
    }
}
