//! The REST schema: Firecracker's JSON bodies as types, for both ends of the socket. No I/O.
//!
//! Source: Firecracker's API description (`firecracker.yaml`, version 1.17). Names, spelling and
//! optionality are its own; a contract test compares them where that file is at hand. What is not in it, our own
//! extensions (see [`Extensions`]), is in a module of its own.
//!
//! Invariants:
//! - Types that are sent to a monitor refuse unknown fields when read, as Firecracker does: a misspelt
//!   option is an error, never silently ignored.
//! - Types that a monitor answers with ignore unknown fields, so that a newer one can say more.
//! - An absent option is left out of the JSON, never written as `null`.
//! - These types check form only. Ranges and combinations (33 vCPUs, two memory backends) are the
//!   monitor's to refuse, with a `fault_message`.

mod device;
mod extension;
mod instance;
mod machine;
mod snapshot;

pub use device::{CacheType, Drive, EntropyDevice, IoEngine, NetworkInterface, RateLimiter, TokenBucket};
pub use extension::{CachedLoad, Extensions, MemoryRegion, SavedMemory, StateSave};
pub use instance::{
    Action, ActionType, ApiError, InstanceInfo, InstanceState, LogLevel, Logger, UnknownLogLevel, Version,
    VmState, VmStateUpdate,
};
pub use machine::{BootSource, CpuTemplate, HugePages, MachineConfig};
pub use snapshot::{
    MemBackend, MemBackendType, NetworkOverride, RestoredHugePages, SnapshotCreate, SnapshotLoad,
    SnapshotType, VsockOverride,
};

/// For `skip_serializing_if` on switches whose absence means "off".
fn is_false(switch: &bool) -> bool {
    !switch
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;

    /// Reads `json`, writes it again and expects the very same document.
    #[track_caller]
    fn round_trip<T: Serialize + DeserializeOwned>(json: &str) -> T {
        let value: T = serde_json::from_str(json).unwrap();
        let written = serde_json::to_value(&value).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(json).unwrap());
        value
    }

    #[test]
    fn bodies_keep_what_they_were_given_and_write_no_null() {
        let machine: MachineConfig = round_trip(r#"{"vcpu_count":2,"mem_size_mib":256}"#);
        assert_eq!(machine, MachineConfig { vcpu_count: 2, mem_size_mib: 256, ..Default::default() });
        let huge: MachineConfig =
            round_trip(r#"{"vcpu_count":1,"mem_size_mib":2,"huge_pages":"2M","smt":true}"#);
        assert_eq!(huge.huge_pages, Some(HugePages::Hugetlbfs2M));
        round_trip::<Drive>(
            r#"{"drive_id":"a","is_root_device":false,"path_on_host":"/x","is_read_only":true,
                "rate_limiter":{"ops":{"size":1,"refill_time":100}}}"#,
        );
        round_trip::<InstanceInfo>(r#"{"app_name":"a","id":"b","state":"Not started","vmm_version":"1"}"#);
        round_trip::<SnapshotLoad>(
            r#"{"snapshot_path":"/s","mem_backend":{"backend_type":"Uffd","backend_path":"/u"},
                "network_overrides":[{"iface_id":"eth0","host_dev_name":"tap0"}],"resume_vm":true}"#,
        );
        round_trip::<EntropyDevice>("{}");
    }

    #[test]
    fn requests_refuse_unknown_fields_and_missing_ones() {
        #[track_caller]
        fn refused<T: DeserializeOwned>(json: &str, why: &str) {
            let error = serde_json::from_str::<T>(json).err().expect("must be refused").to_string();
            assert!(error.contains(why), "{error}");
        }
        refused::<MachineConfig>(r#"{"vcpu_count":2,"mem_size_mib":256,"cpus":1}"#, "unknown field `cpus`");
        refused::<MachineConfig>(r#"{"vcpu_count":2}"#, "missing field `mem_size_mib`");
        refused::<MachineConfig>(r#"{"vcpu_count":256,"mem_size_mib":1}"#, "invalid value");
        refused::<Drive>(r#"{"drive_id":"a"}"#, "missing field `is_root_device`");
        refused::<EntropyDevice>(r#"{"rate_limiter":{"bytes":{}}}"#, "unknown field `bytes`");
        refused::<Action>(r#"{"action_type":"Fly"}"#, "unknown variant `Fly`");
        refused::<Logger>(r#"{"level":"loud"}"#, "unknown log level \"loud\"");
    }

    #[test]
    fn answers_may_say_more_than_is_known() {
        let error: ApiError = serde_json::from_str(r#"{"fault_message":"no","hint":"x"}"#).unwrap();
        assert_eq!(error.fault_message, "no");
        assert_eq!(serde_json::from_str::<ApiError>("{}").unwrap().fault_message, "");
    }

    #[test]
    fn an_absent_snapshot_type_is_full_and_log_levels_ignore_case() {
        let create: SnapshotCreate =
            serde_json::from_str(r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#).unwrap();
        assert_eq!(create.snapshot_type, SnapshotType::Full);
        for (text, level) in
            [("warn", LogLevel::Warning), ("WARNING", LogLevel::Warning), ("off", LogLevel::Off)]
        {
            assert_eq!(text.parse(), Ok(level));
        }
        assert_eq!(serde_json::to_string(&LogLevel::Warning).unwrap(), "\"Warning\"");
    }
}
