//! The client against servers that behave badly, or not at all.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wrenn_agent_api::{AccessToken, AgentClient, AgentError, Command, Dial, ProcessEvent};

/// A client of `address` that counts its dials.
fn client(address: SocketAddr) -> (AgentClient, Arc<AtomicUsize>) {
    let dials = Arc::new(AtomicUsize::new(0));
    let count = dials.clone();
    let dial: Dial = Arc::new(move || -> Pin<Box<dyn Future<Output = _> + Send>> {
        count.fetch_add(1, Ordering::SeqCst);
        Box::pin(TcpStream::connect(address))
    });
    (AgentClient::new(dial, AccessToken::new("t").unwrap()), dials)
}

/// A server that gives each request it reads to `answer`, one after the other on a connection, as long as that
/// has something to say; then it closes the connection.
async fn server(answer: impl Fn(usize) -> Option<&'static str> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    let requests = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (answer, requests) = (answer.clone(), requests.clone());
            tokio::spawn(async move {
                while read_request(&mut socket).await.is_ok() {
                    match answer(requests.fetch_add(1, Ordering::SeqCst)) {
                        Some(text) => socket.write_all(text.as_bytes()).await.unwrap(),
                        None => return,
                    }
                }
            });
        }
    });
    address
}

/// Reads one request, its body included.
async fn read_request(socket: &mut TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    loop {
        if socket.read_buf(&mut text).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let request = String::from_utf8_lossy(&text);
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Ok(request.into_owned());
            }
        }
    }
}

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn connections_are_used_again_until_reset() {
    let (client, dials) = client(server(|_| Some(NO_CONTENT)).await);
    for _ in 0..5 {
        client.health().await.unwrap();
    }
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    client.clone().reset();
    client.health().await.unwrap();
    assert_eq!(dials.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_pooled_connection_that_died_idle_is_replaced() {
    // Each connection serves one request, and is closed without a word at the next idle moment.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, dials) = client(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await.unwrap();
            socket.write_all(NO_CONTENT.as_bytes()).await.unwrap();
        }
    });
    for n in 1..=10 {
        client.health().await.unwrap();
        assert_eq!(dials.load(Ordering::SeqCst), n);
        // The close has arrived by now, or arrives while the next request is being sent: both must do.
        tokio::time::sleep(Duration::from_millis(n as u64)).await;
    }
}

#[tokio::test]
async fn nobody_there() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (client, _) = client(gone);
    for error in [client.health().await.unwrap_err(), client.start(Command::new("x")).await.unwrap_err()] {
        assert!(matches!(error, AgentError::Unreachable { .. }) && error.is_unreachable(), "{error:?}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("refused"), "{source}");
        assert!(!error.to_string().contains(&source));
    }
}

#[tokio::test]
async fn somebody_who_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, _) = client(listener.local_addr().unwrap());
    let client = client.with_time_limit(Duration::from_millis(200));
    for error in [
        client.health().await.unwrap_err(),
        client.list().await.unwrap_err(),
        client.start(Command::new("x")).await.unwrap_err(),
        client.read_file("/x").await.unwrap_err(),
    ] {
        assert!(matches!(error, AgentError::Timeout { .. }) && error.is_unreachable(), "{error:?}");
    }
    // Nor a dial that hangs.
    let dial: Dial =
        Arc::new(|| -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(std::future::pending()) });
    let client = AgentClient::new(dial, AccessToken::new("t").unwrap());
    let error = client.with_time_limit(Duration::from_millis(100)).health().await.unwrap_err();
    assert!(matches!(error, AgentError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn somebody_who_hangs_up() {
    let (client, dials) = client(server(|_| None).await);
    for error in [
        client.health().await.unwrap_err(),
        client.list().await.unwrap_err(),
        client.start(Command::new("x")).await.unwrap_err(),
        client.read_file("/x").await.unwrap_err(),
        client.write_file("/x", "contents").await.unwrap_err(),
    ] {
        assert!(matches!(error, AgentError::Disconnected { .. }), "{error:?}");
    }
    // The requests were read, so none may be sent twice.
    assert_eq!(dials.load(Ordering::SeqCst), 5);
}

/// A server whose connections each read one request, give the next answer, and close.
async fn canned(answers: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await.unwrap();
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_file_that_is_cut_short_is_no_file() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
    let (client, _) = client(canned(vec![cut.into()]).await);
    let file = client.read_file("/x").await.unwrap();
    assert_eq!(file.len(), Some(100));
    let error = file.collect(1000).await.unwrap_err();
    assert!(matches!(error, AgentError::Disconnected { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stream_that_ends_too_early() {
    // StartResponse{1: ProcessEvent{1: StartEvent{1: 7}}}, in a Connect envelope.
    const START: &str = "\0\0\0\0\x06\n\x04\n\x02\x08\x07";
    const END: &str = "\x02\0\0\0\x02{}";
    let answer = |length: usize, body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/connect+proto\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    let whole = |body: &str| answer(body.len(), body);
    // Before the first event: the connection breaks; the body ends; the stream ends.
    let answers = vec![answer(100, ""), whole(""), whole(END)];
    let (early, _) = client(canned(answers).await);
    for kind in ["disconnected", "disconnected", "protocol"] {
        assert_eq!(kind_of(&early.start(Command::new("x")).await.unwrap_err()), kind);
    }
    // After it, in the same three ways; and what is no envelope at all.
    let answers = vec![
        answer(100, START),
        whole(START),
        whole(&format!("{START}{END}")),
        whole(&format!("{START}{START}{END}")),
        whole(&format!("{START}\0\x7f\x7f\x7f\x7fx")),
    ];
    let (late, _) = client(canned(answers).await);
    for kind in ["disconnected", "disconnected", "protocol", "protocol", "other"] {
        let mut stream = late.start(Command::new("x")).await.unwrap();
        assert_eq!(stream.pid(), 7);
        assert!(matches!(stream.next().await, Ok(Some(ProcessEvent::Start { pid: 7, .. }))));
        assert_eq!(kind_of(&stream.next().await.unwrap_err()), kind);
        assert_eq!(stream.next().await.unwrap(), None);
    }
}

fn kind_of(error: &AgentError) -> &'static str {
    match error {
        AgentError::Disconnected { .. } => "disconnected",
        AgentError::Protocol { .. } => "protocol",
        AgentError::NotFound { .. } => "not found",
        _ => "other",
    }
}

#[tokio::test]
async fn somebody_else() {
    for (answer, kind) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "protocol"),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>", "protocol"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 26\r\n\r\n{\"code\":404,\"message\":\"m\"}", "not found"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "disconnected"),
    ] {
        let (client, _) = client(server(move |_| Some(answer)).await);
        let error = client.health().await.unwrap_err();
        assert_eq!(kind_of(&error), kind, "{error:?}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_not_collected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, _) = client(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_request(&mut socket).await.unwrap();
        let mut text = "HTTP/1.1 200 OK\r\n\r\n".to_owned();
        while socket.write_all(text.as_bytes()).await.is_ok() {
            text = "x".repeat(65536);
        }
    });
    let error = client.metrics().await.unwrap_err();
    assert!(matches!(error, AgentError::Protocol { .. }), "{error:?}");
}
