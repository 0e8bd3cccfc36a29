//! The database is gone, or a client means no good.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wrenn_server::{Server, ServerError};

use crate::support::{Database, TestServer, refused, settings};

#[tokio::test]
async fn a_server_without_its_database_does_not_start_and_says_where_it_looked() {
    let settings = settings("postgres://wrenn:hunter2@127.0.0.1:1/nowhere");
    let begun = Instant::now();
    let error = Server::open(settings.resolve().unwrap()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let ServerError::Database(error) = &error else { panic!("{error:?}") };
    assert!(error.to_string().contains("127.0.0.1:1/nowhere"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn a_database_that_goes_midway_is_told_and_comes_back() {
    let server = TestServer::start().await;
    let token = server.account("ada@example.org").await;
    server.database.take_away();
    refused(server.get("/v1/me", &token).await, 503, "database_unavailable");
    refused(server.get("/ready", "").await, 503, "database_unavailable");
    assert_eq!(server.get("/health", "").await.0, 200);
    server.database.give_back();
    assert_eq!(server.get("/ready", "").await.0, 200);
    assert_eq!(server.get("/v1/me", &token).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn servers_may_start_at_the_same_time_on_a_new_database() {
    let database = Database::create().await;
    let open = || Server::open(settings(&database.url).resolve().unwrap());
    let (one, two, three) = tokio::join!(open(), open(), open());
    for server in [one, two, three] {
        server.unwrap();
    }
}

/// Everything that the server answers to raw bytes, until it closes the connection.
async fn raw(server: &TestServer, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may close before all is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn headers_that_come_slowly_or_never_end_the_connection() {
    let server = TestServer::start_with(|settings| settings.header_timeout = Some(1)).await;
    let begun = Instant::now();
    for slow in ["", "GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        raw(&server, slow.as_bytes()).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(server.get("/health", "").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn headers_that_are_huge_or_many_are_refused() {
    let server = TestServer::start().await;
    let huge = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-many: 1\r\n".repeat(1000));
    for bytes in [huge, many] {
        let answer = raw(&server, bytes.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert!(raw(&server, b"\x16\x03\x01\x00 this is no HTTP\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert_eq!(server.get("/health", "").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_ends_before_its_end_is_nobodys_log_in() {
    let server = TestServer::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(server.get("/health", "").await.0, 200);
    server.stop().await;
}
