//! What the guest's processors say of themselves.
//!
//! The base is what KVM supports on this host; changed are the topology (each vCPU a core of one package, or
//! pairs of them hardware threads with `smt`), what KVM leaves to the monitor, and what this monitor does not
//! carry through a snapshot and therefore hides.
//!
//! Sources: Intel SDM volume 2A "CPUID", AMD APM volume 3 appendix E, the kernel's `virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::errno;

/// Leaf 1 ECX: nested virtualisation, whose state is not saved.
const VMX: u32 = 1 << 5;
/// Leaf 1 ECX: the TSC deadline timer, which KVM reports as a capability instead.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package has several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: as `HTT` (AMD).
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x8000_0001 ECX: nested virtualisation, whose state is not saved (AMD).
const SVM: u32 = 1 << 2;
/// Leaf 0x4000_0001 EAX: asynchronous page faults. A page promised to a task in one process would have to be
/// delivered by another after a restore.
const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// How the vCPUs are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Topology {
    /// The number of vCPUs, at least one.
    pub(crate) vcpus: u8,
    /// Whether two make a core.
    pub(crate) smt: bool,
}

impl Topology {
    fn threads_per_core(self) -> u32 {
        if self.smt && self.vcpus > 1 { 2 } else { 1 }
    }

    /// The bits of an APIC id that tell vCPUs apart.
    fn id_bits(self) -> u32 {
        bits_for(u32::from(self.vcpus))
    }
}

/// The bits that number `count` things.
fn bits_for(count: u32) -> u32 {
    u32::BITS - (count - 1).leading_zeros()
}

/// What the host's KVM can offer to a guest.
#[derive(Debug)]
pub(crate) struct HostCpuid {
    pub(crate) entries: Vec<kvm_cpuid_entry2>,
    tsc_deadline: bool,
}

impl HostCpuid {
    /// Asks KVM.
    pub(crate) fn read(kvm: &Kvm) -> Result<Self, errno::Error> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { entries: supported.as_slice().to_vec(), tsc_deadline })
    }

    /// What the vCPU `index` of a new machine is given.
    pub(crate) fn for_vcpu(&self, index: u8, topology: Topology) -> Vec<kvm_cpuid_entry2> {
        let dropped = |function: u32| matches!(function, 0xb | 0x1f | 0x8000_0026);
        let mut entries: Vec<_> =
            self.entries.iter().copied().filter(|entry| !dropped(entry.function)).collect();
        for entry in &mut entries {
            match entry.function {
                0x1 => self.feature_leaf(entry, index, topology),
                0x4 | 0x8000_001d => cache_leaf(entry, topology),
                // Performance counters: not carried through a snapshot.
                0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                0x4000_0001 => entry.eax &= !ASYNC_PF,
                0x8000_0001 => {
                    entry.ecx &= !(SVM | CMP_LEGACY);
                    entry.ecx |= if topology.vcpus > 1 && self.is_amd() { CMP_LEGACY } else { 0 };
                }
                0x8000_0008 if self.is_amd() => {
                    entry.ecx = (topology.id_bits() << 12) | (u32::from(topology.vcpus) - 1);
                }
                0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                0x8000_001e => {
                    let threads = topology.threads_per_core();
                    entry.eax = u32::from(index);
                    entry.ebx = ((threads - 1) << 8) | (u32::from(index) / threads);
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
        if highest >= 0xb {
            entries.extend(topology_leaves(index, topology));
        }
        entries
    }

    fn feature_leaf(&self, entry: &mut kvm_cpuid_entry2, index: u8, topology: Topology) {
        entry.ebx = entry.ebx & 0xffff | u32::from(topology.vcpus) << 16 | u32::from(index) << 24;
        entry.ecx = entry.ecx & !VMX | HYPERVISOR;
        if self.tsc_deadline {
            entry.ecx |= TSC_DEADLINE;
        }
        entry.edx &= !HTT;
        if topology.vcpus > 1 {
            entry.edx |= HTT;
        }
    }

    fn is_amd(&self) -> bool {
        // "AuthenticAMD" and "HygonGenuine" by their EBX.
        let vendor = self.entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.ebx);
        [*b"Auth", *b"Hygo"].map(u32::from_le_bytes).contains(&vendor)
    }
}

/// Says how many vCPUs share a cache: a core's threads up to level 2, all from level 3 on.
fn cache_leaf(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let vcpus = u32::from(topology.vcpus);
    let sharing = if (entry.eax >> 5) & 0x7 <= 2 { topology.threads_per_core() } else { vcpus };
    entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14;
    if entry.function == 0x4 {
        entry.eax |= (vcpus / topology.threads_per_core() - 1) << 26;
    }
}

/// Leaf 0xb: a level of threads, a level of cores, and the end.
fn topology_leaves(index: u8, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let leaf = |level: u32, kind: u32, bits: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: count,
        ecx: kind << 8 | level,
        edx: u32::from(index),
        ..Default::default()
    };
    let threads = topology.threads_per_core();
    [
        leaf(0, 1, bits_for(threads), threads),
        leaf(1, 2, topology.id_bits(), topology.vcpus.into()),
        leaf(2, 0, 0, 0),
    ]
}

/// The entries as KVM takes them; `None` if there are more than it takes.
pub(crate) fn to_kvm(entries: &[kvm_cpuid_entry2]) -> Option<CpuId> {
    CpuId::from_entries(entries).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn host(vendor: &[u8; 4]) -> HostCpuid {
        let entries = vec![
            entry(0, 0, [0x1f, u32::from_le_bytes(*vendor), 0, 0]),
            entry(1, 0, [0, 0x1234_0800, VMX, HTT]),
            entry(4, 0, [0x21 | 0xfff << 14, 1, 2, 3]),
            entry(4, 3, [0x63 | 0xfff << 14, 1, 2, 3]),
            entry(0xa, 0, [1, 2, 3, 4]),
            entry(0xb, 0, [9, 9, 9, 9]),
            entry(0x1f, 0, [9, 9, 9, 9]),
            entry(0x4000_0001, 0, [u32::MAX, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, SVM | CMP_LEGACY, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x7777, 0]),
            entry(0x8000_001e, 0, [7, 7, 7, 7]),
        ];
        HostCpuid { entries, tsc_deadline: true }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries.iter().filter(|entry| (entry.function, entry.index) == (function, index));
        let entry = *found.next().expect("the leaf is there");
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    #[test]
    fn the_topology_is_that_of_the_machine() {
        let entries = host(b"Genu").for_vcpu(2, Topology { vcpus: 4, smt: true });
        assert_eq!(find(&entries, 1, 0).ebx, 0x0204_0800);
        assert_eq!(find(&entries, 1, 0).edx & HTT, HTT);
        assert_eq!(find(&entries, 4, 0).eax, 0x21 | 1 << 14 | 1 << 26);
        assert_eq!(find(&entries, 4, 3).eax, 0x63 | 3 << 14 | 1 << 26);
        let level = |index| {
            let leaf = find(&entries, 0xb, index);
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
        };
        assert_eq!([level(0), level(1), level(2)], [(1, 2, 0x100, 2), (2, 4, 0x201, 2), (0, 0, 2, 2)]);
        assert!(!entries.iter().any(|entry| entry.function == 0x1f));
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx, 0);
    }

    #[test]
    fn amd_tells_its_topology_in_leaves_of_its_own() {
        let entries = host(b"Auth").for_vcpu(1, Topology { vcpus: 3, smt: false });
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx, CMP_LEGACY);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x2002);
        let leaf = find(&entries, 0x8000_001e, 0);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx), (1, 1, 0));
    }

    #[test]
    fn what_no_snapshot_carries_is_hidden() {
        let entries = host(b"Genu").for_vcpu(0, Topology { vcpus: 1, smt: true });
        assert_eq!(find(&entries, 1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(find(&entries, 1, 0).edx, 0);
        assert_eq!(find(&entries, 0xa, 0).eax, 0);
        assert_eq!(find(&entries, 0x4000_0001, 0).eax, !ASYNC_PF);
    }

    #[test]
    fn bits_number_what_they_count() {
        assert_eq!([1, 2, 3, 4, 5, 32].map(bits_for), [0, 1, 2, 2, 3, 5]);
    }
}
