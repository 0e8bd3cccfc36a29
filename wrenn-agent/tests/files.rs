//! Files up and down: any size, whole or not at all.

mod support;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use support::{TestAgent, eventually, is_root};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wrenn_agent_api::{AgentError, GuestPath, Upload};

const PIECE: usize = 1 << 20;

/// Piece `n` of a large file; no two alike.
fn piece(n: usize) -> Bytes {
    let seed = Sha256::digest(n.to_le_bytes());
    seed.iter().copied().cycle().take(PIECE).collect()
}

fn hash_of(pieces: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    (0..pieces).for_each(|n| hash.update(piece(n)));
    hash.finalize().into()
}

#[tokio::test]
async fn large_files_pass_in_constant_memory() {
    const PIECES: usize = 300;
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large").display().to_string();
    for len in [None, Some((PIECES * PIECE) as u64)] {
        let pieces = stream::iter((0..PIECES).map(|n| Ok::<_, std::io::Error>(piece(n))));
        let written = client.write_file(path.as_str(), Upload::stream(pieces, len)).await.unwrap();
        assert_eq!(written.path, path);
    }
    let contents = client.read_file(path.as_str()).await.unwrap();
    assert_eq!(contents.len(), Some((PIECES * PIECE) as u64));
    let hash = contents
        .try_fold(Sha256::new(), |mut hash, piece| async move {
            hash.update(&piece);
            Ok(hash)
        })
        .await
        .unwrap();
    assert_eq!(<[u8; 32]>::from(hash.finalize()), hash_of(PIECES));
    assert!(agent.peak_memory() < 48 << 20, "{} bytes", agent.peak_memory());
}

#[tokio::test]
async fn a_large_form_passes_in_constant_memory() {
    const PIECES: usize = 150;
    let (agent, _client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    let head = "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    let tail = "\r\n--xyz--\r\n";
    let len = head.len() + PIECES * PIECE + tail.len();
    let mut socket = tokio::net::TcpStream::connect(agent.address).await.unwrap();
    let request = format!(
        "POST /files?path={} HTTP/1.1\r\nhost: agent\r\nx-access-token: token-of-the-test\r\nconnection: close\r\n\
         content-type: multipart/form-data; boundary=xyz\r\ncontent-length: {len}\r\n\r\n{head}",
        path.display()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    for n in 0..PIECES {
        socket.write_all(&piece(n)).await.unwrap();
    }
    socket.write_all(tail.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(<[u8; 32]>::from(Sha256::digest(std::fs::read(&path).unwrap())), hash_of(PIECES));
    assert!(agent.peak_memory() < 48 << 20, "{} bytes", agent.peak_memory());
}

#[tokio::test]
async fn a_slow_reader_of_a_file_costs_no_memory() {
    let (agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large").display().to_string();
    std::fs::File::create(&path).unwrap().set_len(500 << 20).unwrap();
    let mut readers: Vec<_> = Vec::new();
    for _ in 0..8 {
        readers.push(client.read_file(path.as_str()).await.unwrap());
    }
    for reader in &mut readers {
        reader.next().await.unwrap().unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(agent.peak_memory() < 48 << 20, "{} bytes", agent.peak_memory());
}

#[tokio::test]
async fn small_files_come_back_as_they_went() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for (name, contents) in [
        ("empty", vec![]),
        ("sub/dir/with spaces & äöü ?#%+", b"x".to_vec()),
        ("binary", (0..=255).collect()),
        ("a chunk", vec![7; 128 << 10]),
        ("a chunk and a bit", vec![7; (128 << 10) + 1]),
    ] {
        let written = client.write_file(at(name), contents.clone()).await.unwrap();
        assert_eq!(written.path, at(name));
        let file = client.read_file(at(name)).await.unwrap();
        assert_eq!((file.len(), file.is_empty()), (Some(contents.len() as u64), contents.is_empty()));
        assert_eq!(file.collect(1 << 20).await.unwrap(), contents, "{name}");
    }
    // Longer over shorter over longer.
    for contents in ["long contents", "short", "again something long"] {
        client.write_file(at("binary"), contents).await.unwrap();
        assert_eq!(std::fs::read_to_string(at("binary")).unwrap(), contents);
    }
    let error = client.read_file(at("a chunk")).await.unwrap().collect(1000).await.unwrap_err();
    assert!(matches!(&error, AgentError::Failed { code, .. } if code == "too_large"), "{error:?}");
    // Lexically cleaned, never above the root.
    let up = format!("/../..{}/x/../binary", dir.path().display());
    assert_eq!(client.write_file(up, "up").await.unwrap().path, at("binary"));
}

#[tokio::test]
async fn what_cannot_be_read_or_written_says_why() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("file"), "old").unwrap();
    let read = async |path: String| client.read_file(path).await.unwrap_err();
    assert!(matches!(read(at("missing")).await, AgentError::NotFound { .. }));
    assert!(matches!(read(at("file/below")).await, AgentError::NotFound { .. }));
    assert!(matches!(read(at("")).await, AgentError::InvalidArgument { .. }));
    assert!(matches!(read("/dev/zero".into()).await, AgentError::InvalidArgument { .. }));
    assert!(matches!(read(String::new()).await, AgentError::InvalidArgument { .. }));
    assert!(matches!(read("/a\0b".into()).await, AgentError::InvalidArgument { .. }));
    let write = async |path: String| client.write_file(path, vec![1; 5 << 20]).await.unwrap_err();
    assert!(matches!(write(at("")).await, AgentError::InvalidArgument { .. }));
    assert!(matches!(write(at("file/below")).await, AgentError::InvalidArgument { .. }));
    assert!(matches!(write(at(&"n".repeat(256))).await, AgentError::InvalidArgument { .. }));
    let nobody = GuestPath::new(at("x")).user("no-such-user");
    let error = client.write_file(nobody, "x").await.unwrap_err();
    assert!(matches!(error, AgentError::UnknownUser { .. }), "{error:?}");
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_upload_that_breaks_off_changes_nothing() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "old").unwrap();
    let entries = || std::fs::read_dir(dir.path()).unwrap().count();
    let name = path.display().to_string();
    // The caller's own source fails: its error comes back.
    let pieces = stream::iter([Ok(piece(0)), Err("the source broke")]);
    let error = client.write_file(name.as_str(), Upload::stream(pieces, None)).await.unwrap_err();
    assert!(matches!(error, AgentError::Upload { .. }), "{error:?}");
    eventually("the staged file is gone", || entries() == 1).await;
    // The call is dropped in the middle.
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(piece(1))).then(|piece| async {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        piece
    });
    let call = client.write_file(name.as_str(), Upload::stream(endless, None));
    tokio::select! {
        _ = call => panic!("an endless upload ended"),
        () = eventually("a staged file is there", || entries() == 2) => {}
    }
    eventually("the staged file is gone", || entries() == 1).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    // A length that does not fit what comes.
    let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"short"))]);
    client.write_file(name.as_str(), Upload::stream(pieces, Some(100))).await.unwrap_err();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
}

#[tokio::test]
async fn a_full_disk_says_so() {
    if !is_root() {
        eprintln!("SKIP: only root can mount a small file system");
        return;
    }
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    if let Err(e) =
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), c"size=4m")
    {
        eprintln!("SKIP: no small file system: {e}");
        return;
    }
    let path = dir.path().join("file").display().to_string();
    client.write_file(path.as_str(), "fits").await.unwrap();
    let pieces = stream::iter((0..64).map(|n| Ok::<_, std::io::Error>(piece(n))));
    let error = client.write_file(path.as_str(), Upload::stream(pieces, None)).await;
    let contents = std::fs::read_to_string(&path);
    let entries = std::fs::read_dir(dir.path()).unwrap().count();
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = error.unwrap_err();
    assert!(matches!(error, AgentError::NoSpace { .. }), "{error:?}");
    assert_eq!((contents.unwrap().as_str(), entries), ("fits", 1));
}

#[tokio::test]
async fn files_belong_to_their_user() {
    use std::os::unix::fs::MetadataExt;
    if !is_root() {
        eprintln!("SKIP: only root can give files away");
        return;
    }
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/file");
    let name = path.display().to_string();
    client.write_file(GuestPath::new(name).user("nobody"), "x").await.unwrap();
    let owner = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.uid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner(&path), (65534, 0o644));
    assert_eq!(owner(path.parent().unwrap()), (65534, 0o755));
}

#[tokio::test]
async fn a_part_of_a_file() {
    let (_agent, client) = TestAgent::claimed().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").display().to_string();
    std::fs::write(&path, b"0123456789").unwrap();
    for (first, len, part) in [(0, Some(3), "012"), (7, None, "789"), (9, Some(100), "9")] {
        let stream = client.read_file_part(path.as_str(), first, len).await.unwrap();
        assert_eq!(stream.len(), Some(part.len() as u64));
        assert_eq!(stream.collect(100).await.unwrap(), part);
    }
    for (path, first, len) in
        [(path.as_str(), 10, None), (&path, 0, Some(0)), ("/proc/self/stat", 0, Some(1))]
    {
        let refused = client.read_file_part(path, first, len).await.unwrap_err();
        assert!(matches!(refused, AgentError::InvalidArgument { .. }), "{path}: {refused:?}");
    }
}
