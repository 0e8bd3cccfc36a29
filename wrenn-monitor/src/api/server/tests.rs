use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use wrenn_vmm::api::{InstanceInfo, InstanceState};

use super::*;
use crate::action::{Action, channel};

/// A server on a socket of its own, with a machine that is never started.
fn serve() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let server = ApiServer::bind(&path).unwrap();
    let (sender, receiver) = channel().unwrap();
    // Both threads end with the test process.
    thread::spawn(move || server.run(&sender));
    thread::spawn(move || {
        loop {
            let Some(pending) = receiver.try_next() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            pending.answer_with(|action| match action {
                Action::DescribeInstance => Ok(Answer::Instance(InstanceInfo {
                    app_name: "wrenn-monitor".into(),
                    id: "test".into(),
                    state: InstanceState::NotStarted,
                    vmm_version: "1".into(),
                })),
                Action::ConfigureMachine(_) => Ok(Answer::Done),
                other => Err(Fault { message: format!("not now: {other:?}") }),
            });
        }
    });
    (dir, path)
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn put(path: &str, body: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Reads one response: its status line and its body.
fn response(stream: &mut UnixStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let len =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).expect("a whole body");
    (head.lines().next().unwrap().to_owned(), String::from_utf8(body).unwrap())
}

const MACHINE: &str = r#"{"vcpu_count":1,"mem_size_mib":128}"#;

#[test]
fn one_connection_takes_many_requests() {
    let (_dir, path) = serve();
    let mut stream = connect(&path);
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (status, body) = response(&mut stream);
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(body.contains(r#""state":"Not started""#), "{body}");
        stream.write_all(put("/machine-config", MACHINE).as_bytes()).unwrap();
        assert_eq!(response(&mut stream), ("HTTP/1.1 204 No Content".into(), String::new()));
    }
    // All at once, too.
    let many = format!("{}GET /version HTTP/1.1\r\n\r\n", put("/machine-config", MACHINE)).repeat(100);
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(many.as_bytes()).unwrap());
    for _ in 0..100 {
        assert_eq!(response(&mut stream).0, "HTTP/1.1 204 No Content");
        let (_, body) = response(&mut stream);
        assert_eq!(body, format!(r#"{{"firecracker_version":"{}"}}"#, env!("CARGO_PKG_VERSION")));
    }
    writing.join().unwrap();
}

#[test]
fn requests_come_in_any_pieces() {
    let (_dir, path) = serve();
    let mut stream = connect(&path);
    for byte in put("/machine-config", MACHINE).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(response(&mut stream).0, "HTTP/1.1 204 No Content");
}

#[test]
fn refusals_say_why_and_keep_the_connection() {
    let (_dir, path) = serve();
    let mut stream = connect(&path);
    for (request, part) in [
        (put("/boot-source", r#"{"kernel_image_path":"/k"}"#), "not now: ConfigureBoot"),
        (put("/boot-source", r#"{"kernel":"/k"}"#), "unknown field `kernel`"),
        ("DELETE /drives/a HTTP/1.1\r\n\r\n".into(), "there is no DELETE /drives/a"),
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        let (status, body) = response(&mut stream);
        assert_eq!(status, "HTTP/1.1 400 Bad Request");
        assert!(body.starts_with(r#"{"fault_message":""#) && body.contains(part), "{body}");
    }
}

#[test]
fn what_is_no_http_is_answered_once_and_closed() {
    let (_dir, path) = serve();
    let too_long = format!("PUT /logger HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    for (bytes, status) in [
        ("\u{1}\u{2}\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (too_long.as_str(), "HTTP/1.1 413 Payload Too Large"),
    ] {
        let mut stream = connect(&path);
        stream.write_all(bytes.as_bytes()).unwrap();
        assert_eq!(response(&mut stream).0, status);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed");
    }
    let mut stream = connect(&path);
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(response(&mut stream).0, "HTTP/1.1 200 OK");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed as asked");
}

#[test]
fn a_client_that_waits_to_be_asked_is_asked() {
    let (_dir, path) = serve();
    let mut stream = connect(&path);
    let head = format!(
        "PUT /machine-config HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        MACHINE.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(response(&mut stream).0, "HTTP/1.1 100 Continue");
    stream.write_all(MACHINE.as_bytes()).unwrap();
    assert_eq!(response(&mut stream).0, "HTTP/1.1 204 No Content");
}

#[test]
fn idle_and_half_finished_clients_keep_nobody_out() {
    let (_dir, path) = serve();
    // One that has begun a request, more idle ones than there are places, and some that are gone again.
    let mut begun = connect(&path);
    begun.write_all(b"GET / HT").unwrap();
    let idle: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| connect(&path)).collect();
    for stream in &idle[..5] {
        stream.shutdown(Shutdown::Both).unwrap();
    }
    let mut last = connect(&path);
    last.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(response(&mut last).0, "HTTP/1.1 200 OK");
    begun.write_all(b"TP/1.1\r\n\r\n").unwrap();
    assert_eq!(response(&mut begun).0, "HTTP/1.1 200 OK");
}

#[test]
fn a_socket_that_exists_is_not_taken_over() {
    let (_dir, path) = serve();
    let error = ApiServer::bind(&path).map(drop).unwrap_err();
    assert!(matches!(error, ApiServerError::InUse { .. }), "{error}");
    let error = ApiServer::bind(Path::new("/nowhere/api.sock")).map(drop).unwrap_err();
    assert!(matches!(error, ApiServerError::Bind { .. }), "{error}");
}
