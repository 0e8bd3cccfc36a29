//! The Firecracker REST API over a Unix socket, typed.
//!
//! One request is under way at a time, as the monitors serve them. A call fails as
//! - [`VmmError::Fault`] where the monitor refused: nothing changed, except that Firecracker ends itself after
//!   a refused `PUT /snapshot/load`;
//! - [`VmmError::Exited`] where the monitor is gone;
//! - [`VmmError::NotListening`], [`VmmError::TimedOut`] or [`VmmError::Protocol`] where that is not known.
//!
//! No call is cancel safe in the sense that nothing happened: the monitor may finish what it was asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use hyperlocal::{UnixConnector, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;
use wrenn_base::BoxError;

use crate::api::{
    Action, ActionType, ApiError, BootSource, CachedLoad, Drive, EntropyDevice, Extensions, InstanceInfo,
    Logger, MachineConfig, NetworkInterface, SavedMemory, SnapshotCreate, SnapshotLoad, StateSave, Version,
    VmState, VmStateUpdate,
};
use crate::error::VmmError;
use crate::text::clip_line;
use crate::watch::ExitWatch;

/// The longest answer that is read, in bytes. Real ones are below 1 KiB.
const ANSWER_LIMIT: usize = 64 << 10;
/// How much of a fault message is kept, in characters.
const FAULT_LIMIT: usize = 1000;
/// How long the calls of a [`Client`] may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Questions and configuration. Ten seconds by default.
    pub configure: Duration,
    /// Boot, pause and resume. Thirty seconds by default.
    pub change_state: Duration,
    /// Writing or loading a snapshot. Five minutes by default: all of guest memory goes to disk.
    pub snapshot: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            configure: Duration::from_secs(10),
            change_state: Duration::from_secs(30),
            snapshot: Duration::from_secs(300),
        }
    }
}

/// A typed client of one monitor's REST API; clones share the connection.
///
/// Its calls need a Tokio runtime with I/O and time.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: HttpClient<UnixConnector, Full<Bytes>>,
    socket: PathBuf,
    timeouts: Timeouts,
    turn: Mutex<()>,
    exit: Option<ExitWatch>,
}

/// One request, before its body.
struct Call {
    method: Method,
    path: String,
    limit: Duration,
}

impl Call {
    fn new(method: Method, path: impl Into<String>, limit: Duration) -> Self {
        Self { method, path: path.into(), limit }
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn broken(&self, source: impl Into<BoxError>) -> VmmError {
        VmmError::Protocol { call: self.name(), source: source.into() }
    }
}

impl Client {
    /// A client of whatever listens on `socket`; it connects with its first call.
    pub fn new(socket: impl Into<PathBuf>, timeouts: Timeouts) -> Self {
        Self::build(socket.into(), timeouts, None)
    }

    /// A client that notices the end of the process it talks to.
    pub(crate) fn watched(socket: PathBuf, timeouts: Timeouts, exit: ExitWatch) -> Self {
        Self::build(socket, timeouts, Some(exit))
    }

    fn build(socket: PathBuf, timeouts: Timeouts, exit: Option<ExitWatch>) -> Self {
        let http = HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(UnixConnector);
        Self { inner: Arc::new(Inner { http, socket, timeouts, turn: Mutex::new(()), exit }) }
    }

    /// The API socket.
    pub fn socket(&self) -> &Path {
        &self.inner.socket
    }

    /// `GET /`: what the monitor is and what its machine does.
    ///
    /// # Errors
    /// As the module says.
    pub async fn get_info(&self) -> Result<InstanceInfo, VmmError> {
        self.get("/").await
    }

    /// `GET /version`: the monitor's version.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info).
    pub async fn get_version(&self) -> Result<Version, VmmError> {
        self.get("/version").await
    }

    /// `PUT /machine-config`: vCPUs and memory. Before boot only.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault where a value is out of range.
    pub async fn put_machine_config(&self, machine: &MachineConfig) -> Result<(), VmmError> {
        self.configure("/machine-config", machine).await
    }

    /// `PUT /boot-source`: kernel, initial RAM disk and command line. Before boot only.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault where a file cannot be opened.
    pub async fn put_boot_source(&self, source: &BootSource) -> Result<(), VmmError> {
        self.configure("/boot-source", source).await
    }

    /// `PUT /drives/{id}`: a block device. Before boot only.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), [`VmmError::InvalidRequest`] for an id that no path can hold, and a fault where
    /// the file cannot be opened.
    pub async fn put_drive(&self, drive: &Drive) -> Result<(), VmmError> {
        self.configure(&resource("/drives/", &drive.drive_id)?, drive).await
    }

    /// `PUT /network-interfaces/{id}`: a network interface on a TAP device. Before boot only.
    ///
    /// # Errors
    /// As [`put_drive`](Self::put_drive), for the TAP device.
    pub async fn put_network_interface(&self, interface: &NetworkInterface) -> Result<(), VmmError> {
        self.configure(&resource("/network-interfaces/", &interface.iface_id)?, interface).await
    }

    /// `PUT /entropy`: a source of random numbers. Before boot only.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info).
    pub async fn put_entropy(&self, device: &EntropyDevice) -> Result<(), VmmError> {
        self.configure("/entropy", device).await
    }

    /// `PUT /logger`: where the monitor's own log goes. Once, before boot.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault where the file cannot be opened.
    pub async fn put_logger(&self, logger: &Logger) -> Result<(), VmmError> {
        self.configure("/logger", logger).await
    }

    /// `PUT /actions` with `InstanceStart`: boots the configured machine; returns once its vCPUs run.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault where the machine cannot be made; nothing runs then.
    pub async fn start_instance(&self) -> Result<(), VmmError> {
        let call = Call::new(Method::PUT, "/actions", self.inner.timeouts.change_state);
        self.send(&call, &Action { action_type: ActionType::InstanceStart }).await
    }

    /// `PATCH /vm` with `Paused`: parks the vCPUs.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault before boot.
    pub async fn pause(&self) -> Result<(), VmmError> {
        self.set_state(VmState::Paused).await
    }

    /// `PATCH /vm` with `Resumed`: lets the vCPUs run again.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<(), VmmError> {
        self.set_state(VmState::Resumed).await
    }

    async fn set_state(&self, state: VmState) -> Result<(), VmmError> {
        let call = Call::new(Method::PATCH, "/vm", self.inner.timeouts.change_state);
        self.send(&call, &VmStateUpdate { state }).await
    }

    /// `PUT /snapshot/create`: writes the paused machine's state and memory. It stays paused.
    ///
    /// The files are the monitor's to create and are not durable until the caller has synced them. A diff must not be
    /// written over the file that the machine was loaded from: Firecracker accepts that, and ruins both.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault where a file cannot be written; what is in the files is of no use then.
    pub async fn create_snapshot(&self, snapshot: &SnapshotCreate) -> Result<(), VmmError> {
        let call = Call::new(Method::PUT, "/snapshot/create", self.inner.timeouts.snapshot);
        self.send(&call, snapshot).await
    }

    /// `PUT /snapshot/load`: makes the machine anew from a snapshot. Before boot only.
    ///
    /// Firecracker before 1.13 knows `track_dirty_pages` by its former name only, and gets it under that.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), and a fault where the snapshot does not fit. Firecracker ends itself after one: use a new
    /// process to try again.
    pub async fn load_snapshot(&self, snapshot: &SnapshotLoad) -> Result<(), VmmError> {
        let call = Call::new(Method::PUT, "/snapshot/load", self.inner.timeouts.snapshot);
        match self.send(&call, snapshot).await {
            // A body that could not be read did nothing, so it may be sent again.
            Err(VmmError::Fault { fault_message, .. })
                if snapshot.track_dirty_pages
                    && fault_message.contains("unknown field `track_dirty_pages`") =>
            {
                let former = SnapshotLoad {
                    track_dirty_pages: false,
                    enable_diff_snapshots: true,
                    ..snapshot.clone()
                };
                self.send(&call, &former).await
            }
            answer => answer,
        }
    }

    /// `GET /wrenn`: what the monitor offers beside Firecracker's API; nothing where it does not know the question.
    ///
    /// # Errors
    /// As [`get_info`](Self::get_info), without the fault.
    pub async fn extensions(&self) -> Result<Option<Extensions>, VmmError> {
        match self.get("/wrenn").await {
            Err(VmmError::Fault { .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// `PUT /wrenn/snapshot/save`: writes the paused machine's state, and says where its memory is. It stays paused.
    ///
    /// The file is not durable until the caller has synced it.
    ///
    /// # Errors
    /// As [`create_snapshot`](Self::create_snapshot).
    pub async fn save_state(&self, save: &StateSave) -> Result<SavedMemory, VmmError> {
        let call = Call::new(Method::PUT, "/wrenn/snapshot/save", self.inner.timeouts.change_state);
        self.ask(&call, save).await
    }

    /// `PUT /wrenn/snapshot/load`: makes the machine anew from a snapshot, over a memory cache. Before boot only.
    ///
    /// # Errors
    /// As [`load_snapshot`](Self::load_snapshot).
    pub async fn load_cached(&self, load: &CachedLoad) -> Result<(), VmmError> {
        let call = Call::new(Method::PUT, "/wrenn/snapshot/load", self.inner.timeouts.snapshot);
        self.send(&call, load).await
    }

    /// [`get_info`](Self::get_info) for whoever asks again and again until somebody listens.
    pub(crate) async fn probe(&self) -> Result<InstanceInfo, VmmError> {
        let call = Call::new(Method::GET, "/", self.inner.timeouts.configure);
        read(&call, &self.exchange(&call, Bytes::new()).await?)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, VmmError> {
        let call = Call::new(Method::GET, path, self.inner.timeouts.configure);
        read(&call, &self.perform(&call, Bytes::new()).await?)
    }

    async fn configure(&self, path: &str, body: &impl Serialize) -> Result<(), VmmError> {
        self.send(&Call::new(Method::PUT, path, self.inner.timeouts.configure), body).await
    }

    async fn send(&self, call: &Call, body: &impl Serialize) -> Result<(), VmmError> {
        self.perform(call, encode(call, body)?).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(&self, call: &Call, body: &impl Serialize) -> Result<T, VmmError> {
        read(call, &self.perform(call, encode(call, body)?).await?)
    }

    /// One exchange; where the connection broke because the process ended, the error says that instead.
    async fn perform(&self, call: &Call, body: Bytes) -> Result<Bytes, VmmError> {
        let error = match self.exchange(call, body).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match &self.inner.exit {
            Some(exit) => Err(exit.explain(error, &call.name()).await),
            None => Err(error),
        }
    }

    async fn exchange(&self, call: &Call, body: Bytes) -> Result<Bytes, VmmError> {
        let _turn = self.inner.turn.lock().await;
        let answered = timeout(call.limit, self.roundtrip(call, body)).await;
        let (status, answer) =
            answered.map_err(|_| VmmError::TimedOut { call: call.name(), limit: call.limit })??;
        tracing::trace!(call = %call.name(), %status, "monitor answered");
        if status.is_success() {
            return Ok(answer);
        }
        // Not every failing program has the manners to answer in JSON.
        let fault = serde_json::from_slice::<ApiError>(&answer).map(|fault| fault.fault_message);
        let fault = fault.unwrap_or_else(|_| String::from_utf8_lossy(&answer).into_owned());
        let fault_message = clip_line(&fault, FAULT_LIMIT);
        Err(VmmError::Fault { call: call.name(), status, fault_message })
    }

    async fn roundtrip(&self, call: &Call, body: Bytes) -> Result<(StatusCode, Bytes), VmmError> {
        let mut request = Request::builder()
            .method(&call.method)
            .uri(Uri::new(&self.inner.socket, &call.path))
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| call.broken(error))?;
        let response = self.inner.http.request(request).await.map_err(|error| {
            if error.is_connect() {
                let socket = self.inner.socket.clone();
                return VmmError::NotListening { call: call.name(), socket, source: error.into() };
            }
            call.broken(error)
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        Ok((status, body.map_err(|error| call.broken(error))?.to_bytes()))
    }
}

fn encode(call: &Call, body: &impl Serialize) -> Result<Bytes, VmmError> {
    let body = serde_json::to_vec(body).map_err(|error| VmmError::InvalidRequest {
        call: call.name(),
        what: "the body",
        value: error.to_string(),
        rule: "paths must be UTF-8, as JSON is",
    })?;
    Ok(body.into())
}

fn read<T: DeserializeOwned>(call: &Call, answer: &[u8]) -> Result<T, VmmError> {
    serde_json::from_slice(answer).map_err(|error| call.broken(error))
}

/// The path of one drive or interface; its id must not be able to leave its place in the path.
fn resource(collection: &str, id: &str) -> Result<String, VmmError> {
    let valid =
        !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !valid {
        return Err(VmmError::InvalidRequest {
            call: format!("PUT {collection}"),
            what: "the id",
            value: clip_line(id, 80),
            rule: "it is 1 to 64 letters, digits and '_'",
        });
    }
    Ok(format!("{collection}{id}"))
}
