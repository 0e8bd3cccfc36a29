//! From a request to an action: Firecracker's routes and bodies, and our own under `/wrenn`.

use serde::de::DeserializeOwned;
use wrenn_vmm::api::{
    Action as ActionBody, ActionType, BootSource, CachedLoad, Drive, EntropyDevice, Logger, MachineConfig,
    MemBackend, MemBackendType, NetworkInterface, RestoredHugePages, SnapshotCreate, SnapshotLoad, StateSave,
    VmStateUpdate,
};

use super::body::MachineConfigUpdate;
use crate::action::Action;

/// What a request turns out to be.
#[derive(Debug)]
pub(super) enum Routed {
    /// For the machine.
    Action(Box<Action>),
    /// `GET /version`, which needs no machine.
    Version,
    /// `GET /wrenn`: neither does this.
    Extensions,
}

/// Why a request is refused before the machine hears of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum RouteError {
    #[error("there is no {method} {path} in this API")]
    Unknown { method: String, path: String },
    #[error("the body is not what {route} takes")]
    Body { route: &'static str, source: serde_json::Error },
    #[error("{route} needs a body")]
    NoBody { route: &'static str },
    #[error("{route} takes no body")]
    UnexpectedBody { route: &'static str },
    #[error("the id {0:?} is not 1 to 64 letters, digits and '_'")]
    Id(String),
    #[error("the path names {path:?} and the body {body:?}: they must agree")]
    IdMismatch { path: String, body: String },
    #[error("nothing to change: name at least one field")]
    EmptyUpdate,
    #[error("a snapshot's memory is named once, by mem_backend or by mem_file_path")]
    MemoryBackend,
    #[error("{0} is not offered by wrenn-monitor")]
    NotOffered(&'static str),
}

type Handler = fn(&Call<'_>) -> Result<Routed, RouteError>;

/// Every route: method, path, and what it means. A path ends in `{…}` where the client puts an id.
const ROUTES: &[(&str, &str, Handler)] = &[
    ("GET", "/", |call| call.action(Action::DescribeInstance)),
    ("GET", "/version", |call| call.no_body().map(|()| Routed::Version)),
    ("GET", "/machine-config", |call| call.action(Action::DescribeMachine)),
    ("GET", "/vm/config", |call| call.action(Action::DescribeConfig)),
    ("PUT", "/machine-config", |call| Ok(Action::ConfigureMachine(call.body::<MachineConfig>()?).into())),
    ("PATCH", "/machine-config", update_machine),
    ("PUT", "/boot-source", |call| Ok(Action::ConfigureBoot(call.body::<BootSource>()?).into())),
    ("PUT", "/drives/{drive_id}", put_drive),
    ("PUT", "/network-interfaces/{iface_id}", put_network_interface),
    ("PUT", "/entropy", |call| Ok(Action::ConfigureEntropy(call.body::<EntropyDevice>()?).into())),
    ("PUT", "/logger", |call| Ok(Action::ConfigureLogger(call.body::<Logger>()?).into())),
    ("PUT", "/actions", act),
    ("PATCH", "/vm", |call| Ok(Action::SetState(call.body::<VmStateUpdate>()?.state).into())),
    ("PUT", "/snapshot/create", |call| Ok(Action::CreateSnapshot(call.body::<SnapshotCreate>()?).into())),
    ("PUT", "/snapshot/load", load_snapshot),
    ("GET", "/wrenn", |call| call.no_body().map(|()| Routed::Extensions)),
    ("PUT", "/wrenn/snapshot/save", |call| Ok(Action::SaveState(call.body::<StateSave>()?).into())),
    ("PUT", "/wrenn/snapshot/load", |call| Ok(Action::LoadCached(call.body::<CachedLoad>()?).into())),
];

/// Every method and path that is answered.
pub(crate) fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(method, path, _)| (*method, *path))
}

/// Finds out what a request asks for.
pub(super) fn route(method: &str, path: &str, body: &[u8]) -> Result<Routed, RouteError> {
    for (route_method, route, handler) in ROUTES {
        if *route_method != method {
            continue;
        }
        if let Some(id) = matches(route, path) {
            return handler(&Call { route, id, body });
        }
    }
    let clip = |text: &str| text.chars().take(100).collect();
    Err(RouteError::Unknown { method: clip(method), path: clip(path) })
}

/// The id that `path` has where `route` has its placeholder, empty if `route` has none; `None` if they differ.
fn matches<'p>(route: &str, path: &'p str) -> Option<&'p str> {
    match route.split_once('{') {
        None => (route == path).then_some(""),
        Some((prefix, _)) => path.strip_prefix(prefix).filter(|id| !id.contains('/')),
    }
}

/// A request that has found its route.
struct Call<'r> {
    route: &'static str,
    id: &'r str,
    body: &'r [u8],
}

impl Call<'_> {
    fn action(&self, action: Action) -> Result<Routed, RouteError> {
        self.no_body().map(|()| action.into())
    }

    fn no_body(&self) -> Result<(), RouteError> {
        if self.body.is_empty() { Ok(()) } else { Err(RouteError::UnexpectedBody { route: self.route }) }
    }

    fn body<T: DeserializeOwned>(&self) -> Result<T, RouteError> {
        if self.body.is_empty() {
            return Err(RouteError::NoBody { route: self.route });
        }
        serde_json::from_slice(self.body).map_err(|source| RouteError::Body { route: self.route, source })
    }

    /// Checks the path's id against the body's.
    fn check_id(&self, body: &str) -> Result<(), RouteError> {
        let valid = self.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !valid || !(1..=64).contains(&self.id.len()) {
            return Err(RouteError::Id(self.id.chars().take(100).collect()));
        }
        if self.id != body {
            let body = body.chars().take(100).collect();
            return Err(RouteError::IdMismatch { path: self.id.to_owned(), body });
        }
        Ok(())
    }
}

impl From<Action> for Routed {
    fn from(action: Action) -> Self {
        Self::Action(Box::new(action))
    }
}

fn update_machine(call: &Call<'_>) -> Result<Routed, RouteError> {
    let update: MachineConfigUpdate = call.body()?;
    if update.is_empty() { Err(RouteError::EmptyUpdate) } else { Ok(Action::UpdateMachine(update).into()) }
}

fn put_drive(call: &Call<'_>) -> Result<Routed, RouteError> {
    let drive: Drive = call.body()?;
    call.check_id(&drive.drive_id)?;
    Ok(Action::ConfigureDrive(drive).into())
}

fn put_network_interface(call: &Call<'_>) -> Result<Routed, RouteError> {
    let interface: NetworkInterface = call.body()?;
    call.check_id(&interface.iface_id)?;
    Ok(Action::ConfigureNetwork(interface).into())
}

fn act(call: &Call<'_>) -> Result<Routed, RouteError> {
    match call.body::<ActionBody>()?.action_type {
        ActionType::InstanceStart => Ok(Action::StartInstance.into()),
        ActionType::FlushMetrics => Err(RouteError::NotOffered("FlushMetrics")),
        ActionType::SendCtrlAltDel => Err(RouteError::NotOffered("SendCtrlAltDel")),
    }
}

/// Folds the deprecated spellings into the current ones.
fn load_snapshot(call: &Call<'_>) -> Result<Routed, RouteError> {
    let mut load: SnapshotLoad = call.body()?;
    load.mem_backend = match (load.mem_backend.take(), load.mem_file_path.take()) {
        (Some(backend), None) => Some(backend),
        (None, Some(backend_path)) => Some(MemBackend { backend_type: MemBackendType::File, backend_path }),
        _ => return Err(RouteError::MemoryBackend),
    };
    load.track_dirty_pages |= std::mem::take(&mut load.enable_diff_snapshots);
    if load.vsock_override.is_some() {
        return Err(RouteError::NotOffered("vsock_override"));
    }
    if !matches!(load.huge_pages, None | Some(RestoredHugePages::Snapshot | RestoredHugePages::None)) {
        return Err(RouteError::NotOffered("huge_pages at restore"));
    }
    Ok(Action::LoadSnapshot(Box::new(load)).into())
}

#[cfg(test)]
mod tests {
    use wrenn_vmm::api::{SnapshotType, VmState};

    use super::*;
    use crate::action::Fault;

    fn refusal(method: &str, path: &str, body: &str) -> String {
        let error = route(method, path, body.as_bytes()).expect_err("must be refused");
        Fault::from_error(&error).message
    }

    #[track_caller]
    fn action(method: &str, path: &str, body: &str) -> Action {
        match route(method, path, body.as_bytes()) {
            Ok(Routed::Action(action)) => *action,
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    #[test]
    fn each_route_gives_its_action() {
        let debug = |method, path, body| format!("{:?}", action(method, path, body));
        assert_eq!(debug("GET", "/", ""), "DescribeInstance");
        assert_eq!(debug("GET", "/machine-config", ""), "DescribeMachine");
        assert_eq!(debug("GET", "/vm/config", ""), "DescribeConfig");
        assert!(matches!(route("GET", "/version", b""), Ok(Routed::Version)));
        assert_eq!(debug("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#), "StartInstance");
        assert!(matches!(action("PATCH", "/vm", r#"{"state":"Paused"}"#), Action::SetState(VmState::Paused)));
        let body = r#"{"drive_id":"root_1","is_root_device":true,"path_on_host":"/x"}"#;
        assert!(
            matches!(action("PUT", "/drives/root_1", body), Action::ConfigureDrive(d) if d.drive_id == "root_1")
        );
        let body = r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#;
        assert!(matches!(action("PUT", "/network-interfaces/eth0", body), Action::ConfigureNetwork(_)));
        assert!(matches!(
            action("PATCH", "/machine-config", r#"{"vcpu_count":2}"#),
            Action::UpdateMachine(_)
        ));
        let body = r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#;
        assert!(matches!(action("PUT", "/snapshot/create", body),
            Action::CreateSnapshot(c) if c.snapshot_type == SnapshotType::Full));
    }

    #[test]
    fn unknown_paths_and_methods_are_refused() {
        for (method, path) in [
            ("GET", "/actions"),
            ("POST", "/actions"),
            ("PUT", "/"),
            ("GET", "/machine-config/"),
            ("PUT", "/drives"),
            ("PUT", "/drives/a/b"),
            ("GET", "/version?x=1"),
            ("put", "/entropy"),
        ] {
            let refusal = refusal(method, path, "");
            assert_eq!(refusal, format!("there is no {method} {path} in this API"));
        }
    }

    #[test]
    fn bodies_are_checked() {
        for (method, path, body, part) in [
            ("PUT", "/machine-config", "", "PUT /machine-config needs a body".split_once(' ').unwrap().1),
            ("PUT", "/machine-config", "{", "the body is not what /machine-config takes: EOF"),
            ("PUT", "/boot-source", r#"{"kernel_image_path":"/k","kernel":"x"}"#, "unknown field `kernel`"),
            ("PUT", "/boot-source", "{}", "missing field `kernel_image_path`"),
            ("PATCH", "/machine-config", "{}", "nothing to change"),
            ("PATCH", "/vm", r#"{"state":"Gone"}"#, "unknown variant `Gone`"),
            ("GET", "/", "{}", "takes no body"),
            ("GET", "/version", "{}", "takes no body"),
            ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#, "FlushMetrics is not offered"),
            ("PUT", "/drives/", r#"{"drive_id":"","is_root_device":true}"#, "the id \"\""),
            ("PUT", "/drives/a-b", r#"{"drive_id":"a-b","is_root_device":true}"#, "the id \"a-b\""),
            ("PUT", "/drives/a", r#"{"drive_id":"b","is_root_device":true}"#, "they must agree"),
            ("PUT", "/network-interfaces/a", r#"{"iface_id":"b","host_dev_name":"t"}"#, "they must agree"),
        ] {
            let refusal = refusal(method, path, body);
            assert!(refusal.contains(part), "{method} {path} {body}: {refusal}");
        }
    }

    #[test]
    fn a_snapshot_names_its_memory_once() {
        let load = |body| match action("PUT", "/snapshot/load", body) {
            Action::LoadSnapshot(load) => load,
            other => panic!("{other:?}"),
        };
        let old = load(r#"{"snapshot_path":"/s","mem_file_path":"/m","enable_diff_snapshots":true}"#);
        let new = load(
            r#"{"snapshot_path":"/s","mem_backend":{"backend_type":"File","backend_path":"/m"},"track_dirty_pages":true}"#,
        );
        assert_eq!(old, new);
        for body in [
            r#"{"snapshot_path":"/s"}"#,
            r#"{"snapshot_path":"/s","mem_file_path":"/m","mem_backend":{"backend_type":"Uffd","backend_path":"/u"}}"#,
        ] {
            assert!(refusal("PUT", "/snapshot/load", body).contains("named once"));
        }
        let body = r#"{"snapshot_path":"/s","mem_file_path":"/m","huge_pages":"2M"}"#;
        assert!(refusal("PUT", "/snapshot/load", body).contains("not offered"));
    }
}
