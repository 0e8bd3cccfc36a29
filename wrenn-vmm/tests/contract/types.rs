//! The types against the description: the same fields, the same choices, the same optionality.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wrenn_vmm::api::*;

use crate::spec::Spec;

/// Holds one request type against its definition.
fn hold<T: Serialize + DeserializeOwned + Debug>(spec: &Spec, name: &str) {
    let schema = spec.definition(name);
    let known: BTreeSet<&str> = schema.properties.keys().map(String::as_str).collect();
    let error = serde_json::from_value::<T>(json!({ "no such field": 0 })).unwrap_err().to_string();
    assert_eq!(quoted(&error).into_iter().skip(1).collect::<BTreeSet<_>>(), known, "{name}: {error}");
    for body in spec.bodies(schema) {
        let read: T =
            serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("{name}: {body}: {error}"));
        let written = serde_json::to_value(&read).expect("every type can be written");
        spec.check(schema, &written, name).unwrap();
        for field in &schema.required {
            let mut body = body.clone();
            body.as_object_mut().unwrap().remove(field);
            let error = serde_json::from_value::<T>(body).expect_err(field).to_string();
            assert!(error.contains(&format!("missing field `{field}`")), "{name}: {error}");
        }
    }
}

/// What stands in backquotes: `serde` lists the fields or choices it knows so.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Holds an enumeration against the choices of a property.
fn hold_choices<T: DeserializeOwned + Debug>(spec: &Spec, definition: &str, property: Option<&str>) {
    let schema = spec.definition(definition);
    let schema = property.map_or(schema, |property| &schema.properties[property]);
    let choices = spec.samples(schema);
    let choices: BTreeSet<&str> = choices.iter().map(|choice| choice.as_str().unwrap()).collect();
    let error = serde_json::from_value::<T>(json!("no such choice")).unwrap_err().to_string();
    assert_eq!(quoted(&error).into_iter().skip(1).collect::<BTreeSet<_>>(), choices, "{definition}: {error}");
}

#[test]
fn request_types_have_the_descriptions_fields_and_no_others() {
    let Some(spec) = Spec::load() else { return };
    hold::<MachineConfig>(&spec, "MachineConfiguration");
    hold::<BootSource>(&spec, "BootSource");
    hold::<Drive>(&spec, "Drive");
    hold::<NetworkInterface>(&spec, "NetworkInterface");
    hold::<EntropyDevice>(&spec, "EntropyDevice");
    hold::<RateLimiter>(&spec, "RateLimiter");
    hold::<TokenBucket>(&spec, "TokenBucket");
    hold::<Logger>(&spec, "Logger");
    hold::<Action>(&spec, "InstanceActionInfo");
    hold::<VmStateUpdate>(&spec, "Vm");
    hold::<SnapshotCreate>(&spec, "SnapshotCreateParams");
    hold::<SnapshotLoad>(&spec, "SnapshotLoadParams");
    hold::<MemBackend>(&spec, "MemoryBackend");
    hold::<NetworkOverride>(&spec, "NetworkOverride");
    hold::<VsockOverride>(&spec, "VsockOverride");
}

#[test]
fn enumerations_have_the_descriptions_choices_and_no_others() {
    let Some(spec) = Spec::load() else { return };
    hold_choices::<CpuTemplate>(&spec, "CpuTemplate", None);
    hold_choices::<HugePages>(&spec, "MachineConfiguration", Some("huge_pages"));
    hold_choices::<CacheType>(&spec, "Drive", Some("cache_type"));
    hold_choices::<IoEngine>(&spec, "Drive", Some("io_engine"));
    hold_choices::<ActionType>(&spec, "InstanceActionInfo", Some("action_type"));
    hold_choices::<VmState>(&spec, "Vm", Some("state"));
    hold_choices::<SnapshotType>(&spec, "SnapshotCreateParams", Some("snapshot_type"));
    hold_choices::<MemBackendType>(&spec, "MemoryBackend", Some("backend_type"));
    hold_choices::<RestoredHugePages>(&spec, "SnapshotLoadParams", Some("huge_pages"));
    hold_choices::<InstanceState>(&spec, "InstanceInfo", Some("state"));
    // Read in any case, so its error is its own; `hold` has read every choice of it already.
    use LogLevel::*;
    for level in [Off, Error, Warning, Info, Debug, Trace] {
        let logger = json!({ "level": level });
        spec.check(spec.definition("Logger"), &logger, "Logger").unwrap();
    }
}

#[test]
fn answer_types_conform() {
    let Some(spec) = Spec::load() else { return };
    let check = |name: &str, value: Value| spec.check(spec.definition(name), &value, name).unwrap();
    for state in [InstanceState::NotStarted, InstanceState::Running, InstanceState::Paused] {
        let info = InstanceInfo { app_name: "a".into(), id: "b".into(), state, vmm_version: "1".into() };
        check("InstanceInfo", serde_json::to_value(info).unwrap());
    }
    check("FirecrackerVersion", serde_json::to_value(Version { firecracker_version: "1".into() }).unwrap());
    check("Error", serde_json::to_value(ApiError { fault_message: "no".into() }).unwrap());
    check("MachineConfiguration", serde_json::to_value(MachineConfig::default()).unwrap());
}
