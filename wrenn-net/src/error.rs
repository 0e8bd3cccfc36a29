//! What can go wrong with a network slot, and the remedy.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use wrenn_base::HostId;

use crate::address::AddressPool;

/// Why a network or a slot could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The text or the numbers given are no pool that slots can be cut from.
    #[error("{pool:?} cannot be an address pool: {rule}")]
    InvalidPool {
        /// The pool as it was given.
        pool: String,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// The machine already routes part of the pool elsewhere.
    #[error("the address pool {pool} overlaps this machine's route to {route}: choose another pool")]
    PoolClash {
        /// The refused pool.
        pool: AddressPool,
        /// The route, as `address/prefix`.
        route: String,
    },

    /// An address that no guest could ask for names.
    #[error("{address} cannot be a guest's DNS server: {rule}")]
    InvalidDnsServer {
        /// The refused address.
        address: Ipv4Addr,
        /// The rule that it breaks.
        rule: &'static str,
    },

    /// The pool has no such slot.
    #[error("slot index {index} is out of range: the address pool {pool} has slots 1 to {last}")]
    IndexOutOfRange {
        /// The index asked for.
        index: u16,
        /// The pool in use.
        pool: AddressPool,
        /// The highest index it has.
        last: u16,
    },

    /// A slot of this process has the index, or its undo list has not run yet.
    #[error("slot index {index} of host {host} is still in use: choose another")]
    IndexInUse {
        /// The index asked for.
        index: u16,
        /// The host whose slots these are.
        host: HostId,
    },

    /// All indices that a pool may use are in use.
    #[error("all slot indices from {first} to {last} are in use: remove a slot, or give the pool more")]
    NoFreeIndex {
        /// The lowest index of the pool.
        first: u16,
        /// The highest one.
        last: u16,
    },

    /// The slot's undo list has run, or is running.
    #[error("the slot with index {index} is removed")]
    SlotGone {
        /// The index that it had.
        index: u16,
    },

    /// Another Wrenn host on this machine, or another program, has the index's address.
    #[error(
        "slot index {index} is taken: this machine already routes {address} elsewhere; choose another index or pool"
    )]
    IndexTaken {
        /// The index asked for.
        index: u16,
        /// The slot address that belongs to it.
        address: Ipv4Addr,
        /// The kernel's answer.
        source: io::Error,
    },

    /// An interface of the slot's name is not a slot's.
    #[error("the interface {name} exists and is {kind}, not a leftover of a slot: rename or remove it")]
    NameClash {
        /// The interface.
        name: String,
        /// What kind of interface the kernel says it is.
        kind: String,
    },

    /// The process lacks a capability.
    #[error("no permission to {step}: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed, run as root")]
    NotPermitted {
        /// What was being done, to what.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// `/dev/net/tun` cannot be opened.
    #[error(
        "could not open /dev/net/tun: load the module (`modprobe tun`); in a container, pass the device in"
    )]
    NoTun {
        /// The kernel's answer.
        source: io::Error,
    },

    /// The namespace could not be given its name in the file system.
    #[error(
        "could not keep a network namespace at {}: the directory must exist on a file system that allows mounts",
        .path.display()
    )]
    KeepNamespace {
        /// Where it was to be mounted.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The kernel refused a firewall table.
    #[error(
        "could not set up the nftables table {table}: the kernel needs nf_tables with inet, ct, fib, nat and masq"
    )]
    Firewall {
        /// The table's name.
        table: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// Any other step that the kernel refused.
    #[error("could not {step}")]
    Step {
        /// What was being done, to what.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl NetError {
    /// The error of a step without a variant of its own.
    pub(crate) fn step(step: impl Into<String>, source: io::Error) -> Self {
        Self::permitted_or(step, source, |step, source| Self::Step { step, source })
    }

    pub(crate) fn keep_namespace(path: PathBuf, source: io::Error) -> Self {
        let step = format!("keep a network namespace at {}", path.display());
        Self::permitted_or(step, source, |_, source| Self::KeepNamespace { path, source })
    }

    pub(crate) fn firewall(table: &str, source: io::Error) -> Self {
        let step = format!("set up the nftables table {table}");
        Self::permitted_or(step, source, |_, source| Self::Firewall { table: table.to_owned(), source })
    }

    pub(crate) fn tun(source: io::Error) -> Self {
        Self::permitted_or("open /dev/net/tun", source, |_, source| Self::NoTun { source })
    }

    /// A missing capability has one remedy, whichever step met it first.
    fn permitted_or(
        step: impl Into<String>,
        source: io::Error,
        otherwise: impl FnOnce(String, io::Error) -> Self,
    ) -> Self {
        let step = step.into();
        if source.kind() == io::ErrorKind::PermissionDenied {
            return Self::NotPermitted { step, source };
        }
        otherwise(step, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named_whatever_the_step() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        for error in [
            NetError::step("make tap0", denied()),
            NetError::firewall("wrenn", denied()),
            NetError::keep_namespace("/run/x".into(), denied()),
            NetError::tun(denied()),
        ] {
            assert!(matches!(error, NetError::NotPermitted { .. }), "{error:?}");
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        }
    }

    #[test]
    fn other_refusals_keep_their_own_remedy() {
        let absent = || io::Error::from_raw_os_error(libc::ENOENT);
        assert!(NetError::tun(absent()).to_string().contains("modprobe tun"));
        assert!(NetError::firewall("wrenn", absent()).to_string().contains("nf_tables"));
        assert!(NetError::keep_namespace("/run/x".into(), absent()).to_string().contains("/run/x"));
        assert_eq!(NetError::step("make tap0", absent()).to_string(), "could not make tap0");
    }
}
