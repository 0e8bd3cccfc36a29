//! The client against peers that answer badly, slowly or not at all: real sockets, hostile answers.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::block_on;
use common::peer::{Peer, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wrenn_vmm::api::{Drive, SnapshotLoad};
use wrenn_vmm::{Client, Timeouts, VmmError};

/// What one call comes to where the peer sends `bytes` and hangs up.
fn against_bytes(bytes: &'static [u8]) -> VmmError {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("peer.sock");
        let listener = listen(&socket);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(bytes).await;
            }
        });
        Client::new(&socket, Timeouts::default()).get_info().await.unwrap_err()
    })
}

fn against_answer(status: u16, body: String) -> VmmError {
    block_on(async {
        let peer = Peer::start(move |_| (status, body.clone()));
        Client::new(&peer.socket, Timeouts::default()).get_info().await.unwrap_err()
    })
}

#[test]
fn nobody_listening_is_its_own_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("no.sock");
    let client = Client::new(&socket, Timeouts::default());
    let error = block_on(client.get_info()).unwrap_err();
    assert!(matches!(&error, VmmError::NotListening { call, .. } if call == "GET /"), "{error:?}");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = block_on(client.get_info()).unwrap_err();
    assert!(matches!(&error, VmmError::NotListening { .. }), "refused counts as well: {error:?}");
}

#[test]
fn what_is_no_answer_is_a_protocol_error() {
    for bytes in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"app_name\":"]
    {
        let error = against_bytes(bytes);
        assert!(matches!(&error, VmmError::Protocol { call, .. } if call == "GET /"), "{error:?}");
    }
    for body in ["", "[]", r#"{"app_name":"a","id":"b","state":"Flying","vmm_version":"1"}"#] {
        let error = against_answer(200, body.into());
        assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");
    }
    let endless = format!(r#"{{"app_name":"{}"}}"#, "x".repeat(1 << 20));
    assert!(matches!(against_answer(200, endless), VmmError::Protocol { .. }));
}

#[test]
fn a_fault_carries_the_monitors_words_made_harmless() {
    let error = against_answer(400, r#"{"fault_message":"no\u001b[31m such\nthing"}"#.into());
    let VmmError::Fault { call, status, fault_message } = &error else { panic!("{error:?}") };
    assert_eq!((call.as_str(), status.as_u16(), fault_message.as_str()), ("GET /", 400, "no[31m such thing"));
    assert_eq!(error.to_string(), "GET /: the monitor refused (400 Bad Request): no[31m such thing");
    let error = against_answer(500, "<html>sorry</html>".into());
    assert!(matches!(&error, VmmError::Fault { fault_message, .. } if fault_message == "<html>sorry</html>"));
    let error = against_answer(400, format!(r#"{{"fault_message":"{}"}}"#, "x".repeat(60_000)));
    assert!(error.to_string().len() < 2000);
}

#[test]
fn a_peer_that_never_answers_runs_into_the_limit_of_its_call() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("peer.sock");
        let _listener = listen(&socket);
        let mut timeouts = Timeouts::default();
        timeouts.change_state = Duration::from_millis(50);
        let error = Client::new(&socket, timeouts).resume().await.unwrap_err();
        assert!(
            matches!(&error, VmmError::TimedOut { call, limit } if call == "PATCH /vm" && *limit == timeouts.change_state),
            "{error:?}"
        );
    });
}

#[test]
fn one_request_is_under_way_at_a_time() {
    block_on(async {
        let busy = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (in_peer, seen) = (Arc::clone(&busy), Arc::clone(&most));
        let peer = Peer::start(move |_| {
            seen.fetch_max(in_peer.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            in_peer.fetch_sub(1, Ordering::SeqCst);
            (204, String::new())
        });
        let client = Client::new(&peer.socket, Timeouts::default());
        let calls = (0..8).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.pause().await })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert_eq!(peer.requests().len(), 8);
        assert!(peer.requests().iter().all(|request| request.host == "localhost"));
    });
}

#[test]
fn ids_cannot_leave_their_place_in_the_path() {
    block_on(async {
        let peer = Peer::start(|_| (204, String::new()));
        let client = Client::new(&peer.socket, Timeouts::default());
        for id in ["", "../vm", "a/b", "a?b", "a b", "ä", &"x".repeat(65)] {
            let drive = Drive { drive_id: id.to_owned(), ..Drive::default() };
            let error = client.put_drive(&drive).await.unwrap_err();
            assert!(matches!(&error, VmmError::InvalidRequest { what: "the id", .. }), "{error:?}");
        }
        assert!(peer.requests().is_empty());
    });
}

#[test]
fn an_older_firecracker_gets_the_former_name_of_dirty_tracking() {
    block_on(async {
        let peer = Peer::start(|request| {
            if request.json().get("track_dirty_pages").is_some() {
                let fault = "unknown field `track_dirty_pages`, expected one of `enable_diff_snapshots`";
                return (400, serde_json::json!({ "fault_message": fault }).to_string());
            }
            (204, String::new())
        });
        let client = Client::new(&peer.socket, Timeouts::default());
        let load =
            SnapshotLoad { snapshot_path: "/s".into(), track_dirty_pages: true, ..SnapshotLoad::default() };
        client.load_snapshot(&load).await.unwrap();
        let last = peer.requests().pop().unwrap().json();
        assert_eq!(last, serde_json::json!({ "snapshot_path": "/s", "enable_diff_snapshots": true }));
        assert_eq!(peer.requests().len(), 2);
    });
}
