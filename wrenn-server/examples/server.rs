//! A program with the whole server in it: the API, the page that describes it, and a host of sandboxes.
//!
//! It needs PostgreSQL (`DATABASE_URL`) and, as all of this library, a machine that can run sandboxes. Then:
//!
//! ```sh
//! curl -d '{"email":"ada@example.org","password":"correct horse battery"}' -H 'content-type: application/json' \
//!     http://127.0.0.1:8080/v1/auth/signup
//! ```

use std::time::Duration;

use wrenn_core::{Host, ShutdownPolicy};
use wrenn_host::HostService;
use wrenn_server::{Server, Settings};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = Settings {
        database_url: Some(std::env::var("DATABASE_URL")?.into()),
        // Signs with a secret that is made up at each start. Elsewhere give `jwt_secret`.
        dev: Some(true),
        ..Settings::default()
    };
    let config = settings.resolve()?;
    let listener = tokio::net::TcpListener::bind(config.listen).await?;

    // The sandboxes of this machine are in this program's hands, and the server is their host's client.
    let host = Host::builder().open().await?;
    let service = HostService::new(host.clone(), "here").await?;
    let server = Server::open_with(config, [("here".to_owned(), service.client())]).await?;

    println!("http://{}/docs", listener.local_addr()?);
    server.serve(listener, async { drop(tokio::signal::ctrl_c().await) }).await?;

    let failures = service.shutdown(ShutdownPolicy::DestroyAll, Duration::from_secs(60)).await;
    for failure in failures {
        eprintln!("{}: {}", failure.sandbox, failure.error);
    }
    Ok(host.close().await?)
}
