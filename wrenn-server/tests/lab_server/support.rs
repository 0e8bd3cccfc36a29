//! The programs, run as an operator runs them, and a client of their API.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::postgres::Database;

/// How long anything may take that an emulated guest does.
const PATIENCE: Duration = Duration::from_secs(240);

/// A program that is ended with this value.
pub(crate) struct Program(Child);

impl Program {
    #[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-server"));
        command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
        Self(command.spawn().expect("the program starts"))
    }

    /// Kills it, as a machine that fails would.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    /// Tells it to stop, so that it leaves nothing.
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(0)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// A data directory with the machine's images.
pub(crate) struct Data(TempDir);

impl Data {
    #[expect(clippy::disallowed_methods, reason = "copies by reflink")]
    pub(crate) fn new() -> Self {
        let scratch = std::env::var_os("WRENN_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let directory = tempfile::tempdir_in(scratch).unwrap();
        let shared =
            PathBuf::from(std::env::var_os("WRENN_TEST_DATA").expect("lab/runner sets WRENN_TEST_DATA"));
        for part in ["images", "guest"] {
            let mut copy = Command::new("cp");
            let copied =
                copy.args(["-a", "--reflink=auto"]).arg(shared.join(part)).arg(directory.path()).status();
            assert!(copied.unwrap().success(), "{part} is missing: run `make image`");
        }
        Self(directory)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

/// A host agent that is a process of its own.
pub(crate) struct HostAgent {
    data: Data,
    program: Option<Program>,
}

impl HostAgent {
    pub(crate) fn start() -> Self {
        let mut host = Self { data: Data::new(), program: None };
        host.run();
        host
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix:{}/host.sock", self.data.path())
    }

    pub(crate) fn run(&mut self) {
        let socket = format!("{}/host.sock", self.data.path());
        let arguments = ["host", "one", "--unix", &socket, "--data", self.data.path(), "--at-end", "destroy"];
        self.program = Some(Program::start(&arguments, &[]));
    }

    pub(crate) fn kill(&mut self) {
        self.program.take().unwrap().kill();
    }
}

/// A server that serves, with a host.
pub(crate) struct Server {
    port: u16,
    /// Ended before what it works with.
    _program: Program,
    _database: Database,
    _data: Option<Data>,
}

impl Server {
    /// A server with a host in its process.
    pub(crate) async fn start() -> Arc<Self> {
        let data = Data::new();
        let path = data.path().to_owned();
        let local = ["--local-host", "here", "--data", &path, "--at-end", "destroy"];
        Self::serve(&local, Some(data)).await
    }

    /// A server with a host elsewhere.
    pub(crate) async fn with_host(host: &HostAgent) -> Arc<Self> {
        Self::serve(&["--hosts", &format!("one={}", host.endpoint())], None).await
    }

    async fn serve(more: &[&str], data: Option<Data>) -> Arc<Self> {
        let database = Database::create().await;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = format!("127.0.0.1:{port}");
        let mut arguments = vec!["serve", "--listen", &listen, "--domain", "preview.test"];
        arguments.extend(["--auth-attempts-per-minute", "1000"]);
        arguments.extend(more);
        let secret = "mJ5q0tLr8vWz2xYb7nKd4sPf9hGc3aEu";
        let environment = [("DATABASE_URL", database.url.as_str()), ("WRENN_JWT_SECRET", secret)];
        let program = Program::start(&arguments, &environment);
        let ready = format!("http://127.0.0.1:{port}/ready");
        eventually("the server is ready", async || {
            reqwest::get(&ready).await.is_ok_and(|response| response.status() == 200)
        })
        .await;
        eventually("there is a host", async || {
            database.query("SELECT count(*) FROM hosts WHERE up AND images <> '{}'") == ["1"]
        })
        .await;
        Arc::new(Self { port, _program: program, _database: database, _data: data })
    }
}

/// A client of a server, with an account of its own.
pub(crate) struct Api {
    pub(crate) port: u16,
    client: reqwest::Client,
    pub(crate) token: String,
    _server: Arc<Server>,
}

impl Api {
    pub(crate) async fn of(server: &Arc<Server>, who: &str) -> Self {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let mut api = Self { port: server.port, client, token: String::new(), _server: server.clone() };
        let account = json!({"email": format!("{who}@example.org"), "password": "correct horse battery"});
        api.call(Method::POST, "/v1/auth/signup", Some(account.clone()), 202).await;
        let tokens = api.call(Method::POST, "/v1/auth/login", Some(account), 200).await;
        api.token = text(&tokens["access_token"]);
        api
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, self.url(path));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// Sends a request, and returns what it is answered with.
    pub(crate) async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends a request that has to be answered with that status.
    #[track_caller]
    pub(crate) fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        status: u16,
    ) -> impl Future<Output = Value> {
        let place = std::panic::Location::caller();
        let request = format!("{method} {path}");
        let answer = self.answer(method, path, body);
        async move {
            let (found, body) = answer.await;
            assert_eq!(found.as_u16(), status, "{request} at {place}: {body}");
            body
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None, 200).await
    }

    /// Makes a sandbox; its id.
    pub(crate) async fn sandbox(&self, more: Value) -> String {
        let mut new = json!({"template": "debian", "timeout_seconds": 0});
        new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.call(Method::POST, "/v1/sandboxes", Some(new), 201).await;
        assert_eq!(made["state"], "running", "{made}");
        text(&made["id"])
    }

    /// Runs a line of shell to its end; its output.
    pub(crate) async fn run(&self, sandbox: &str, line: &str) -> String {
        let path = format!("/v1/sandboxes/{sandbox}/exec");
        let result = self.call(Method::POST, &path, Some(json!({"command": line})), 200).await;
        assert_eq!(result["exit_code"], 0, "{line}: {result}");
        text(&result["stdout"])
    }

    pub(crate) async fn state(&self, sandbox: &str) -> String {
        let (status, found) = self.answer(Method::GET, &format!("/v1/sandboxes/{sandbox}"), None).await;
        if status == 404 { "gone".to_owned() } else { text(&found["state"]) }
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The directories of sandboxes in a host's data.
pub(crate) fn kept(host: &HostAgent) -> Vec<String> {
    let sandboxes = Path::new(host.data.path()).join("sandboxes");
    let entries = std::fs::read_dir(sandboxes).map(|entries| entries.flatten().collect::<Vec<_>>());
    entries.unwrap_or_default().iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
