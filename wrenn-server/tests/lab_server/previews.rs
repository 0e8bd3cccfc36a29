//! What listens in a sandbox, at a name of its own.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Api, eventually};

/// A server that echoes bodies, answers in pieces, and gives its connection to another protocol; with what there is of Python
/// in the guest's image, which has no `http`.
const SERVER: &str = r#"
import socket, threading, time
def serve(connection):
    file = connection.makefile("rb")
    while line := file.readline():
        method, path, _ = line.decode().split()
        headers = {}
        while line := file.readline().strip():
            name, value = line.decode().split(":", 1)
            headers[name.lower()] = value.strip()
        if headers.get("upgrade") == "echo":
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
            while data := file.readline():
                connection.sendall(data.upper())
        elif method == "POST":
            body = file.read(int(headers["content-length"]))
            connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for word in [path, headers["host"]]:
                connection.sendall(b"%x\r\n%s\r\n" % (len(word), word.encode())); time.sleep(0.2)
            connection.sendall(b"0\r\n\r\n")
listener = socket.create_server(("", 8000))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

pub(crate) async fn requests_reach_what_listens_at_a_port(api: Api) {
    let id = api.sandbox(json!({})).await;
    let put =
        api.request(Method::PUT, &format!("/v1/sandboxes/{id}/files?path=/root/server.py")).body(SERVER);
    assert_eq!(put.send().await.unwrap().status(), 200);
    api.run(&id, "setsid python3 /root/server.py >/dev/null 2>&1 </dev/null &").await;
    let host = format!("8000-{id}.preview.test");
    let client = reqwest::Client::new();
    let ask =
        |method: Method, host: &str, path: &str| client.request(method, api.url(path)).header("host", host);
    eventually("it listens", async || {
        ask(Method::GET, &host, "/").send().await.is_ok_and(|response| response.status() == 200)
    })
    .await;
    let page = ask(Method::GET, &host, "/a/b?c=d").send().await.unwrap().text().await.unwrap();
    assert_eq!(page, format!("/a/b?c=d{host}"));
    let body = vec![7_u8; 3_000_000];
    let posted = ask(Method::POST, &host, "/").body(body.clone()).send().await.unwrap();
    assert_eq!(posted.status(), 201);
    assert!(posted.bytes().await.unwrap() == body);

    for (host, status, code) in [
        (format!("8001-{id}.preview.test"), 502, "port_closed"),
        (format!("49983-{id}.preview.test"), 403, "forbidden"),
        ("8000-0000000000000000.preview.test".to_owned(), 404, "not_found"),
    ] {
        let response = ask(Method::GET, &host, "/").send().await.unwrap();
        assert_eq!(response.status(), status, "{host}");
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], code, "{host}");
    }
    upgrade(&api, &host).await;
    api.call(Method::POST, &format!("/v1/sandboxes/{id}/pause"), None, 200).await;
    assert_eq!(ask(Method::GET, &host, "/").send().await.unwrap().status(), 409);
}

/// A connection that is given to another protocol passes bytes both ways.
async fn upgrade(api: &Api, host: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    let read = async |stream: &mut TcpStream, heard: &mut Vec<u8>, end: &[u8]| {
        let reading = async {
            while !heard.windows(end.len()).any(|window| window == end) {
                assert_ne!(stream.read_buf(heard).await.unwrap(), 0, "it ended");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.expect("an answer in time");
    };
    read(&mut stream, &mut heard, b"\r\n\r\n").await;
    assert!(heard.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&heard));
    stream.write_all(b"hello\n").await.unwrap();
    read(&mut stream, &mut heard, b"HELLO\n").await;
}
