//! The server's program, with a host in its process.

use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use wrenn_core::Host;
use wrenn_host::HostClient;
use wrenn_server::Settings;
use wrenn_server::program::{AtEnd, HostPlace, Serve};

use crate::support::{Database, settings};

/// Waits until a request is answered with 200.
async fn until_ready(url: &str) {
    for _ in 0..300 {
        if reqwest::get(url).await.is_ok_and(|answer| answer.status() == 200) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{url} is not ready");
}

#[tokio::test]
async fn a_host_in_the_process_is_served_at_a_socket_too_and_is_gone_with_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: opening a host makes a table of the firewall, which needs root");
        return;
    }
    let (database, home) = (Database::create().await, TempDir::new().unwrap());
    let socket = home.path().join("host.sock");
    // It was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serve = || Serve {
        settings: Settings { listen: Some(address), ..settings(&database.url) },
        local_host: Some("local".to_owned()),
        local_host_socket: Some(socket.clone()),
        place: HostPlace { data: Some(home.path().join("data")), at_end: AtEnd::Destroy },
    };
    let host = || {
        let never = "/bin/false";
        Host::builder().run_dir(home.path().join("run")).monitor(never).pager(never).ready_slots(0)
    };
    let client = HostClient::builder(&format!("unix:{}", socket.display())).unwrap().build().unwrap();
    // Twice, as the first leaves nothing that is in the second's way.
    for _ in 0..2 {
        let (stop, stopped) = oneshot::channel::<()>();
        let program = tokio::spawn(serve().run(host(), async { drop(stopped.await) }));
        until_ready(&format!("http://{address}/ready")).await;
        assert_eq!(client.describe().await.unwrap().name, "local");
        assert_eq!(database.query("SELECT name || ' ' || endpoint FROM hosts"), ["local in-process"]);
        stop.send(()).unwrap();
        program.await.unwrap().unwrap();
        assert!(!socket.exists());
        assert!(client.describe().await.unwrap_err().is_unreachable());
    }
    // Where the server cannot be, the host is closed again.
    let mut nowhere = serve();
    nowhere.settings.database_url = Some("postgres://127.0.0.1:1/nowhere".into());
    nowhere.run(host(), std::future::pending()).await.unwrap_err();
    assert!(!socket.exists());
    host().data_dir(home.path().join("data")).open().await.unwrap().close().await.unwrap();
}
