//! Servers for tests, and clients of them.

mod host;
mod postgres;

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wrenn_server::{Server, ServerError, Settings};

pub(crate) use self::host::TestHost;
pub(crate) use self::postgres::Database;

pub(crate) const PASSWORD: &str = "correct horse battery";

/// Settings for a server on that database; far more log-ins are let through than a test tries.
pub(crate) fn settings(database: &str) -> Settings {
    Settings {
        database_url: Some(database.into()),
        jwt_secret: Some("mJ5q0tLr8vWz2xYb7nKd4sPf9hGc3aEu".into()),
        auth_attempts_per_minute: Some(10_000),
        ..Settings::default()
    }
}

/// A server that serves, on a database of its own.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    client: reqwest::Client,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), ServerError>>,
    pub(crate) database: Database,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Another server on the same database.
    pub(crate) async fn beside(url: &str) -> Self {
        Self::start_on(Database::shared(url), |_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_on(Database::create().await, change).await
    }

    async fn start_on(database: Database, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings(&database.url);
        change(&mut settings);
        let server = Server::open(settings.resolve().unwrap()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(server.serve(listener, async {
            let _ = stopped.await;
        }));
        Self { address, client: reqwest::Client::new(), stop, served, database }
    }

    /// Stops the server, and with it the test where it does not stop as it should.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// Sends a request with an access token, and perhaps a body.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, token, None).await
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, token, Some(body)).await
    }

    /// Logs in; all tokens.
    pub(crate) async fn log_in(&self, email: &str) -> Value {
        let (status, tokens) =
            self.post("/v1/auth/login", "", json!({"email": email, "password": PASSWORD})).await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    }

    /// Makes an account and logs in; the access token.
    pub(crate) async fn account(&self, email: &str) -> String {
        let new = json!({"email": email, "password": PASSWORD, "name": "Somebody"});
        let (status, body) = self.post("/v1/auth/signup", "", new).await;
        assert_eq!((status.as_u16(), &body["status"]), (202, &json!("accepted")), "{body}");
        text(&self.log_in(email).await["access_token"])
    }

    /// An operator's access token.
    pub(crate) async fn operator(&self) -> String {
        let config = settings(&self.database.url).resolve().unwrap();
        let other = Server::open(config).await.unwrap();
        other.create_user("root@example.org", "Root", &PASSWORD.into(), true).await.unwrap();
        text(&self.log_in("root@example.org").await["access_token"])
    }

    /// The first team of who has the token.
    pub(crate) async fn team(&self, token: &str) -> String {
        let (status, me) = self.get("/v1/me", token).await;
        assert_eq!(status, 200, "{me}");
        text(&me["teams"][0]["id"])
    }
}

/// A host that nothing answers for.
pub(crate) const DEAD_HOST: &str = "dead";

impl TestServer {
    /// Enters a host that nothing answers for.
    pub(crate) fn dead_host(&self) {
        self.database.query(&format!(
            "INSERT INTO hosts (name, endpoint) VALUES ('{DEAD_HOST}', 'unix:/nonexistent/wrenn.sock')
             ON CONFLICT DO NOTHING"
        ));
    }

    /// Enters a sandbox of a team on the host that nothing answers for.
    pub(crate) fn enter_sandbox(&self, team: &str, id: &str, state: &str) {
        self.dead_host();
        // A task holds what is leased, for as long as any test.
        self.database.query(&format!(
            "INSERT INTO sandboxes (id, team_id, host, state, template, vcpus, memory_mib, on_timeout, lease_until,
                                    metadata)
             VALUES ('{id}', '{team}', '{DEAD_HOST}', '{state}', 'debian', 1, 256, 'destroy', now() + interval '1 hour',
                     '{{\"of\": \"{state}\"}}')"
        ));
    }
}

/// Waits until the query finds that.
pub(crate) async fn until(server: &TestServer, query: &str, expected: &str) {
    let mut found = Vec::new();
    for _ in 0..600 {
        found = server.database.query(query);
        if found == [expected] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{query}: {found:?}, and {expected:?} was waited for");
}

/// Sends a request and reads the answer, which is JSON or nothing.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    if text.is_empty() {
        return (status, Value::Null);
    }
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}, and no JSON: {text}")))
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// Asserts that an answer is an error with that status and code.
#[track_caller]
pub(crate) fn refused((status, body): (StatusCode, Value), expected: u16, code: &str) {
    assert_eq!((status.as_u16(), body["error"]["code"].as_str()), (expected, Some(code)), "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
}
