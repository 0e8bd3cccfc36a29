//! Bodies that only the monitor needs: the driver never sends or reads them.

use serde::{Deserialize, Serialize};
use wrenn_vmm::api::{
    BootSource, CpuTemplate, Drive, EntropyDevice, HugePages, Logger, MachineConfig, NetworkInterface,
};

/// The body of `PATCH /machine-config`: what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfigUpdate {
    pub(crate) vcpu_count: Option<u8>,
    pub(crate) mem_size_mib: Option<usize>,
    pub(crate) smt: Option<bool>,
    pub(crate) track_dirty_pages: Option<bool>,
    pub(crate) cpu_template: Option<CpuTemplate>,
    pub(crate) huge_pages: Option<HugePages>,
}

impl MachineConfigUpdate {
    /// Whether it would change nothing at all, which is refused as a mistake.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `config` with what this update names replaced.
    pub(crate) fn applied_to(&self, config: &MachineConfig) -> MachineConfig {
        MachineConfig {
            vcpu_count: self.vcpu_count.unwrap_or(config.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(config.mem_size_mib),
            smt: self.smt.unwrap_or(config.smt),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(config.track_dirty_pages),
            cpu_template: self.cpu_template.or(config.cpu_template),
            huge_pages: self.huge_pages.or(config.huge_pages),
        }
    }
}

/// The answer of `GET /vm/config`: everything that was configured.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct VmConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) boot_source: Option<BootSource>,
    pub(crate) machine_config: MachineConfig,
    pub(crate) drives: Vec<Drive>,
    pub(crate) network_interfaces: Vec<NetworkInterface>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entropy: Option<EntropyDevice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logger: Option<Logger>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let before = MachineConfig { vcpu_count: 2, mem_size_mib: 256, smt: true, ..Default::default() };
        let update: MachineConfigUpdate = serde_json::from_str(r#"{"mem_size_mib":512}"#).unwrap();
        assert_eq!(update.applied_to(&before), MachineConfig { mem_size_mib: 512, ..before.clone() });
        assert!(!update.is_empty());
        assert!(serde_json::from_str::<MachineConfigUpdate>("{}").unwrap().is_empty());
        assert!(serde_json::from_str::<MachineConfigUpdate>(r#"{"memory":1}"#).is_err());
    }

    #[test]
    fn the_configuration_is_written_with_the_names_of_the_api() {
        let config = VmConfig { entropy: Some(EntropyDevice::default()), ..Default::default() };
        let json = serde_json::to_value(&config).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["drives", "entropy", "machine-config", "network-interfaces"]);
    }
}
