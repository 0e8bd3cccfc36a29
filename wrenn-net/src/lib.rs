//! Network slots: one sandbox's namespace, TAP, veth pair, NAT and safe default egress.
//!
//! ```text
//!   guest 169.254.0.21 ── tap0 169.254.0.22 │ uplink (slot address) ══ veth ══ (host address) │ ── internet
//!                         └── the slot's namespace: forward, masquerade ──┘   └ the host: filter, masquerade ┘
//! ```
//!
//! The guest's side is the same in every slot ([`GuestNet`]), so that a clone of a snapshot finds the network it
//! remembers; what differs, one pair of addresses from an [`AddressPool`], is only seen by the host. [`HostNet`]
//! holds what all slots of one host id share (an nftables table whose rules do not grow with the slots), and
//! [`HostNet::slot`] makes one [`Slot`]. A [`SlotPool`] makes them ahead.
//!
//! # What a guest reaches
//! By default the internet, over IPv4. Dropped: private, shared, link-local (cloud metadata), loopback,
//! benchmarking, multicast and reserved ranges, every address of the host, every other slot, all IPv6, and whatever
//! has a forged source. The configured DNS servers are let through on port 53 even where they lie in such a range.
//! Nothing reaches a guest unasked, other than through [`Slot::connect`].
//!
//! An [`EgressPolicy`], given to [`HostNet::slot_with_egress`] or later to [`Slot::set_egress`], widens or narrows that
//! for one slot. It holds for each packet, those of connections there are as well, and changes in one transaction: at
//! no time does a packet get through that neither the old nor the new policy allows. No policy opens the host's own
//! addresses, other slots, IPv6, or a forged source. [`Slot::set_bandwidth`] bounds how much passes.
//!
//! A policy may allow names ([`AllowRule::to_name`]). What they stand for is opened as the guest asks for them: its
//! questions are answered by a resolver in this process, which [`HostNet`] runs from the first such policy on. It is one
//! thread, with two sockets for each slot that ever had names in its policy.
//!
//! # What it does to the host
//! `net.ipv4.ip_forward` is switched on and left on, because others may have come to need it meanwhile. Another
//! firewall's drop still counts: where one refuses forwarded packets by default (Docker does), it must let the links
//! named `w<host id>v*` through. Everything else goes when the undo list runs.
//!
//! # Failure and removal
//! Each step's undo is registered before the step; undos are idempotent and independent, so a list that runs in
//! full removes everything that can be removed and reports the rest. The leftovers of a killed process are cleaned
//! by the next slot or [`HostNet`] of the same name. All calls block for milliseconds; namespaces are entered only
//! by short-lived threads of this crate, so no thread of the caller ever changes its own.
//!
//! Invariant: no subprocess, and unsafe code only in `sys.rs`.
#![deny(unsafe_code)]

mod address;
mod allow;
mod bandwidth;
mod claims;
mod egress;
mod error;
mod host;
mod inside;
mod link;
mod name;
mod named;
mod names;
mod netns;
mod nft;
mod policy;
mod pool;
mod probe;
mod ranges;
mod reach;
mod slot;
mod stored;
#[allow(unsafe_code)]
mod sys;

pub use address::{AddressPool, GuestNet, MacAddr};
pub use allow::{AllowRule, Protocol};
pub use bandwidth::{Bandwidth, BandwidthError};
pub use egress::{Cidr, EgressError, EgressPolicy};
pub use error::NetError;
pub use host::{HostNet, HostNetSpec};
pub use name::NamePattern;
pub use pool::SlotPool;
pub use probe::probe;
pub use slot::{Slot, SlotSpec};
