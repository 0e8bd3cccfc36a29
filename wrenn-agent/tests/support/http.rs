//! Raw HTTP/1.1, to see what is on the wire.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer, its body freed of the chunked encoding.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A header's value; fails the test if it comes twice.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        let first = found.next();
        assert!(found.next().is_none(), "{name} comes twice");
        first.map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body.escape_ascii()))
    }

    /// The envelopes of a Connect stream: flags and contents.
    pub(crate) fn envelopes(&self) -> Vec<(u8, serde_json::Value)> {
        let mut envelopes = Vec::new();
        let mut rest = self.body.as_slice();
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            envelopes.push((rest[0], serde_json::from_slice(&rest[5..5 + len]).unwrap()));
            rest = &rest[5 + len..];
        }
        envelopes
    }
}

/// Sends a request with exactly these header lines and reads the answer. The body goes as one chunk if the
/// headers say so.
pub(crate) async fn send(address: SocketAddr, request_line: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut request = format!("{request_line} HTTP/1.1\r\nhost: {address}\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    let chunked = headers.contains(&"transfer-encoding: chunked");
    if !chunked && !body.is_empty() {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    let mut bytes = request.into_bytes();
    if chunked {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    } else {
        bytes.extend_from_slice(body);
    }
    socket.write_all(&bytes).await.unwrap();
    read_answer(&mut socket).await
}

async fn read_answer(socket: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = find(&bytes, b"\r\n\r\n") {
            break at;
        }
        assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0, "closed within the head");
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut body = bytes.split_off(head_end + 4);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: Vec::new() };
    if answer.header("transfer-encoding") == Some("chunked") {
        while find(&body, b"0\r\n\r\n").is_none_or(|at| at + 5 != body.len()) {
            assert_ne!(socket.read_buf(&mut body).await.unwrap(), 0, "closed within the body");
        }
        answer.body = dechunk(&body);
    } else {
        let len: usize = answer.header("content-length").unwrap_or("0").parse().unwrap();
        while body.len() < len {
            assert_ne!(socket.read_buf(&mut body).await.unwrap(), 0, "closed within the body");
        }
        answer.body = body;
    }
    answer
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = find(bytes, b"\r\n").unwrap();
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        if len == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[line + 2..line + 2 + len]);
        bytes = &bytes[line + 2 + len + 2..];
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A message in a Connect envelope.
pub(crate) fn envelope(json: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(json.len() as u32).to_be_bytes());
    bytes.extend_from_slice(json.as_bytes());
    bytes
}
