//! What the machine is and what it boots: `/machine-config` and `/boot-source`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::is_false;

/// The body of `PUT /machine-config`, and the answer of `GET /machine-config`.
///
/// ```
/// use wrenn_vmm::api::MachineConfig;
/// let machine = MachineConfig { vcpu_count: 2, mem_size_mib: 256, ..MachineConfig::default() };
/// assert!(!machine.track_dirty_pages);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The number of vCPUs, 1 to 32; even or 1 with `smt`.
    pub vcpu_count: u8,
    /// The guest's memory in MiB.
    pub mem_size_mib: usize,
    /// Whether the guest sees its vCPUs as pairs of hardware threads.
    #[serde(default, skip_serializing_if = "is_false")]
    pub smt: bool,
    /// Whether pages that the guest writes are logged, which diff snapshots need to be small.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// A static CPU template (deprecated in Firecracker).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// The host pages that back guest memory; absent means [`HugePages::None`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

impl Default for MachineConfig {
    /// What a monitor has before it is configured: one vCPU and 128 MiB.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            cpu_template: None,
            huge_pages: None,
        }
    }
}

/// The host pages that back guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    None,
    /// Transparent huge pages, by `madvise(MADV_HUGEPAGE)`.
    Transparent,
    /// Explicit hugetlbfs pages of 2 MiB.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Firecracker's static CPU templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are all there is to say: they are AWS instance families.
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    /// The host's CPU as it is.
    #[default]
    None,
}

/// The body of `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel image on the host.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; absent means the monitor's default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}
