//! Many clients of a server at once, each with one call after the other: list, get, and a command in one of a few sandboxes.
//!
//! `cargo bench -p wrenn-server --bench load -- --url http://127.0.0.1:8080 --key wrn_…`, against a server that somebody
//! started. It makes its sandboxes, removes them, and exits with 1 if any call failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Arguments {
    /// Where the server is.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// An API key.
    #[arg(long, env = "WRENN_API_KEY")]
    key: String,
    /// Clients that call at the same time.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// For so long, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Sandboxes that commands run in.
    #[arg(long, default_value_t = 3)]
    sandboxes: usize,
    /// Of so many calls one runs a command; the others list and get in turn.
    #[arg(long, default_value_t = 10)]
    exec_every: usize,
    /// What sandboxes are made of.
    #[arg(long, default_value = "debian")]
    template: String,
    /// Cargo says so to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A server, and who calls it.
struct Api {
    client: Client,
    url: String,
    key: String,
}

impl Api {
    /// One call to its end; what is answered, if that is a success.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, String> {
        let mut request =
            self.client.request(method.clone(), format!("{}{path}", self.url)).header("x-api-key", &self.key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| format!("{method} {path}: {error:?}"))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| format!("{method} {path}: {error:?}"))?;
        if !status.is_success() {
            return Err(format!("{method} {path}: {status} {text}"));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn sandbox(&self, template: &str) -> Result<String, String> {
        let new = json!({"template": template, "memory_mib": 128, "timeout_seconds": 0});
        let made = self.call(Method::POST, "/v1/sandboxes", Some(new)).await?;
        made["id"].as_str().map(ToOwned::to_owned).ok_or_else(|| format!("no id: {made}"))
    }
}

/// How long the calls of each kind took, and what went wrong.
#[derive(Default)]
struct Seen {
    took: BTreeMap<&'static str, Vec<Duration>>,
    errors: Vec<String>,
}

impl Seen {
    fn add(&mut self, kind: &'static str, took: Duration, result: Result<(), String>) {
        match result {
            Ok(()) => self.took.entry(kind).or_default().push(took),
            Err(error) => self.errors.push(error),
        }
    }

    fn merge(&mut self, other: Self) {
        for (kind, took) in other.took {
            self.took.entry(kind).or_default().extend(took);
        }
        self.errors.extend(other.errors);
    }
}

/// One client: its calls follow each other until the end.
async fn calls(
    api: Arc<Api>,
    sandboxes: Arc<[String]>,
    turn: Arc<AtomicUsize>,
    every: usize,
    end: Instant,
) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < end {
        let n = turn.fetch_add(1, Ordering::Relaxed);
        let id = &sandboxes[(n / every) % sandboxes.len()];
        let began = Instant::now();
        let (kind, result) = if n.is_multiple_of(every) {
            let command = json!({"command": ["true"]});
            let done = api.call(Method::POST, &format!("/v1/sandboxes/{id}/exec"), Some(command)).await;
            (
                "exec",
                done.and_then(|done| if done["exit_code"] == 0 { Ok(()) } else { Err(format!("{done}")) }),
            )
        } else if n.is_multiple_of(2) {
            ("list", api.call(Method::GET, "/v1/sandboxes", None).await.map(drop))
        } else {
            ("get", api.call(Method::GET, &format!("/v1/sandboxes/{id}"), None).await.map(drop))
        };
        seen.add(kind, began.elapsed(), result);
    }
    seen
}

fn report(seen: &mut Seen, elapsed: Duration) {
    println!("{:<6} {:>8} {:>8} {:>9} {:>9} {:>9}", "call", "number", "per s", "p50 ms", "p99 ms", "max ms");
    for (kind, took) in &mut seen.took {
        took.sort_unstable();
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        let per_second = took.len() as f64 / elapsed.as_secs_f64();
        println!(
            "{kind:<6} {:>8} {per_second:>8.1} {:>9.1} {:>9.1} {:>9.1}",
            took.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    println!("errors {:>8}", seen.errors.len());
    for error in seen.errors.iter().take(10) {
        println!("  {error}");
    }
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let arguments = Arguments::parse();
    let _ = arguments.bench;
    let client =
        Client::builder().timeout(Duration::from_secs(120)).build().map_err(|error| error.to_string())?;
    let api = Arc::new(Api { client, url: arguments.url, key: arguments.key });
    let mut sandboxes = Vec::new();
    for _ in 0..arguments.sandboxes.max(1) {
        sandboxes.push(api.sandbox(&arguments.template).await?);
    }
    let sandboxes: Arc<[String]> = sandboxes.into();
    println!(
        "{} clients for {} s, {} sandboxes, a command in every {}th call",
        arguments.clients, arguments.seconds, arguments.sandboxes, arguments.exec_every
    );
    let began = Instant::now();
    let end = began + Duration::from_secs(arguments.seconds);
    let turn = Arc::new(AtomicUsize::new(0));
    let clients = (0..arguments.clients)
        .map(|_| calls(api.clone(), sandboxes.clone(), turn.clone(), arguments.exec_every.max(1), end))
        .collect::<JoinSet<_>>();
    let mut seen = Seen::default();
    clients.join_all().await.into_iter().for_each(|of_one| seen.merge(of_one));
    report(&mut seen, began.elapsed());
    for id in sandboxes.iter() {
        api.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await?;
    }
    if seen.errors.is_empty() { Ok(()) } else { Err(format!("{} calls failed", seen.errors.len())) }
}
