//! Whether a snapshot's processors can exist on this host.
//!
//! KVM loads any CPUID; a guest that then uses an instruction this host lacks dies much later, of an invalid
//! opcode. So each feature bit that the snapshot's processors have is asked of the host first.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

/// A snapshot was taken on a processor that this host cannot stand in for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IncompatibleCpu {
    #[error("it was taken on a processor by {snapshot:?}, and this one is by {host:?}")]
    Vendor { snapshot: String, host: String },
    #[error("this host's processor or KVM lacks what the guest was told it has: {missing}")]
    Features { missing: MissingFeatures },
    #[error(
        "its vCPUs count time at {snapshot} kHz, this host's processor at {host} kHz, and KVM cannot convert here"
    )]
    TscRate { snapshot: u32, host: u32 },
}

/// The feature bits that a host lacks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MissingFeatures(Vec<(FeatureWord, u32)>);

impl fmt::Display for MissingFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (word, bits)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            let FeatureWord { function, index, register, .. } = word;
            write!(f, "{separator}CPUID {function:#x}.{index} {register:?} bits {bits:#x}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A register of CPUID that holds feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FeatureWord {
    function: u32,
    index: u32,
    register: Register,
    /// Bits that the monitor sets itself, or that follow the guest's control registers.
    ours: u32,
}

const fn word(function: u32, index: u32, register: Register, ours: u32) -> FeatureWord {
    FeatureWord { function, index, register, ours }
}

const WORDS: [FeatureWord; 15] = [
    // TSC deadline, OSXSAVE, hypervisor.
    word(0x1, 0, Register::Ecx, 1 << 24 | 1 << 27 | 1 << 31),
    // APIC, HTT.
    word(0x1, 0, Register::Edx, 1 << 9 | 1 << 28),
    word(0x7, 0, Register::Ebx, 0),
    // OSPKE.
    word(0x7, 0, Register::Ecx, 1 << 4),
    word(0x7, 0, Register::Edx, 0),
    word(0x7, 1, Register::Eax, 0),
    word(0x7, 2, Register::Edx, 0),
    // The extended state that there is, and how it can be saved.
    word(0xd, 0, Register::Eax, 0),
    word(0xd, 1, Register::Eax, 0),
    word(0x4000_0001, 0, Register::Eax, 0),
    // CmpLegacy.
    word(0x8000_0001, 0, Register::Ecx, 1 << 1),
    word(0x8000_0001, 0, Register::Edx, 1 << 9),
    word(0x8000_0007, 0, Register::Edx, 0),
    word(0x8000_0008, 0, Register::Ebx, 0),
    word(0x8000_0021, 0, Register::Eax, 0),
];

/// Checks the processors of a snapshot against what this host can offer.
pub(crate) fn check(snapshot: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Result<(), IncompatibleCpu> {
    let (theirs, ours) = (vendor(snapshot), vendor(host));
    if theirs != ours {
        return Err(IncompatibleCpu::Vendor { snapshot: theirs, host: ours });
    }
    let lacking = |word: &FeatureWord| bits(snapshot, *word) & !bits(host, *word) & !word.ours;
    let missing: Vec<_> =
        WORDS.iter().map(|word| (*word, lacking(word))).filter(|(_, bits)| *bits != 0).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(IncompatibleCpu::Features { missing: MissingFeatures(missing) })
    }
}

/// Whether vCPUs that count time at `snapshot` kHz keep time well enough at `host` kHz: the tolerance is the
/// 250 parts in a million that KVM itself allows.
pub(crate) fn same_rate(snapshot: u32, host: u32) -> bool {
    u64::from(snapshot.abs_diff(host)) * 1_000_000 <= u64::from(host) * 250
}

fn bits(entries: &[kvm_cpuid_entry2], word: FeatureWord) -> u32 {
    let leaf = entries.iter().find(|entry| (entry.function, entry.index) == (word.function, word.index));
    leaf.map_or(0, |leaf| match word.register {
        Register::Eax => leaf.eax,
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    })
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let leaf = entries.iter().find(|entry| entry.function == 0);
    let registers = leaf.map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    String::from_utf8_lossy(&registers.map(u32::to_le_bytes).concat()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(vendor: &[u8; 12], features: u32, extended: u32) -> Vec<kvm_cpuid_entry2> {
        let part = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        vec![
            kvm_cpuid_entry2 { function: 0, ebx: part(0), edx: part(4), ecx: part(8), ..Default::default() },
            kvm_cpuid_entry2 { function: 1, ecx: features, ..Default::default() },
            kvm_cpuid_entry2 { function: 7, ebx: extended, ..Default::default() },
        ]
    }

    #[test]
    fn a_host_with_more_will_do_and_one_with_less_will_not() {
        let (small, large) = (processor(b"GenuineIntel", 0b11, 1), processor(b"GenuineIntel", 0b111, 5));
        assert_eq!(check(&small, &small), Ok(()));
        assert_eq!(check(&small, &large), Ok(()));
        let refused = check(&large, &small).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "this host's processor or KVM lacks what the guest was told it has: \
             CPUID 0x1.0 Ecx bits 0x4, CPUID 0x7.0 Ebx bits 0x4"
        );
    }

    #[test]
    fn bits_of_the_monitors_own_are_not_asked_of_the_host() {
        let snapshot = processor(b"GenuineIntel", 1 << 31 | 1 << 24 | 1 << 27, 0);
        assert_eq!(check(&snapshot, &processor(b"GenuineIntel", 0, 0)), Ok(()));
    }

    #[test]
    fn another_vendor_will_not_do() {
        let refused =
            check(&processor(b"AuthenticAMD", 0, 0), &processor(b"GenuineIntel", 0, 0)).unwrap_err();
        let IncompatibleCpu::Vendor { snapshot, host } = refused else { panic!("{refused}") };
        assert_eq!((snapshot.as_str(), host.as_str()), ("AuthenticAMD", "GenuineIntel"));
        assert!(check(&[], &processor(b"GenuineIntel", 0, 0)).is_err());
    }

    #[test]
    fn clocks_may_differ_by_250_parts_in_a_million() {
        assert!(same_rate(2_000_500, 2_000_000));
        assert!(!same_rate(2_000_501, 2_000_000));
        assert!(!same_rate(u32::MAX, 1));
        assert!(!same_rate(1, 0));
    }
}
