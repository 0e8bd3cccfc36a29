//! How large a machine may be: the same rules for what the API asks for and what a snapshot brings.

use crate::layout::MAX_VIRTIO_DEVICES;

/// The most vCPUs, as in Firecracker.
pub(crate) const MAX_VCPUS: usize = 32;

/// A machine of a size that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitError {
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {count}")]
    Vcpus { count: usize },
    #[error("with SMT a machine has one vCPU or an even number of them, not {count}")]
    OddVcpus { count: usize },
    #[error("a machine has at least 1 MiB of memory")]
    NoMemory,
    #[error("{asked} MiB of memory are more than the {host} MiB that this host has")]
    MoreThanHost { asked: usize, host: u64 },
    #[error("a machine has at most {MAX_VIRTIO_DEVICES} drives, interfaces and other devices, not {count}")]
    Devices { count: usize },
}

/// Whether a machine can have `count` vCPUs.
pub(crate) fn check_vcpus(count: usize, smt: bool) -> Result<(), LimitError> {
    if !(1..=MAX_VCPUS).contains(&count) {
        return Err(LimitError::Vcpus { count });
    }
    if smt && count > 1 && count % 2 == 1 {
        return Err(LimitError::OddVcpus { count });
    }
    Ok(())
}

/// Whether a machine on this host can have `mib` MiB of memory.
pub(crate) fn check_memory(mib: usize) -> Result<(), LimitError> {
    if mib == 0 {
        return Err(LimitError::NoMemory);
    }
    let host = crate::vm::host_memory() >> 20;
    if mib as u64 > host {
        return Err(LimitError::MoreThanHost { asked: mib, host });
    }
    Ok(())
}

/// Whether a machine can have `count` virtio devices.
pub(crate) fn check_virtio_devices(count: usize) -> Result<(), LimitError> {
    if count > MAX_VIRTIO_DEVICES { Err(LimitError::Devices { count }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_one_to_thirty_two_and_even_with_smt() {
        for (count, smt, fits) in [
            (0, false, false),
            (1, true, true),
            (3, true, false),
            (3, false, true),
            (32, true, true),
            (33, false, false),
        ] {
            assert_eq!(check_vcpus(count, smt).is_ok(), fits, "{count} {smt}");
        }
    }

    #[test]
    fn memory_is_some_and_not_more_than_the_hosts() {
        assert_eq!(check_memory(0), Err(LimitError::NoMemory));
        assert_eq!(check_memory(128), Ok(()));
        assert!(matches!(check_memory(usize::MAX), Err(LimitError::MoreThanHost { asked: usize::MAX, .. })));
    }

    #[test]
    fn devices_are_bounded_by_interrupt_lines() {
        assert_eq!(check_virtio_devices(MAX_VIRTIO_DEVICES), Ok(()));
        assert!(check_virtio_devices(MAX_VIRTIO_DEVICES + 1).is_err());
    }
}
