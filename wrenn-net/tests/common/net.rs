//! Short names for what most tests do. Apart from the scratch host, which the unit tests use as well.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::Duration;

use wrenn_base::{SandboxId, UndoList};
use wrenn_net::{HostNet, HostNetSpec, SlotSpec};

use super::common::Host;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn open(host: &Host, undo: &mut UndoList) -> HostNet {
    HostNet::open(HostNetSpec::new(host.id.clone(), host.netns_dir()), undo).unwrap()
}

pub(crate) fn spec(index: u16) -> SlotSpec {
    SlotSpec { sandbox: SandboxId::random(), index }
}

/// Runs a list all of whose undos must succeed.
pub(crate) fn removed(undo: UndoList) {
    let failures = undo.run(LIMIT);
    assert!(failures.is_empty(), "{failures:#?}");
}
