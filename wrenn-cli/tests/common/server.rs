//! A registry on the loopback interface that does as a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const TOKEN: &str = "the-token";

/// What the registry is like.
#[derive(Clone, Default)]
pub(crate) struct Behaviour {
    /// Blobs and manifests by digest, and manifests by tag.
    pub(crate) content: BTreeMap<String, Vec<u8>>,
    /// The user and password that it wants, itself or where it sends for tokens.
    pub(crate) credentials: Option<(String, String)>,
    /// It wants a token.
    pub(crate) bearer: bool,
    /// Blobs are somewhere else.
    pub(crate) redirect: bool,
    /// Half of a blob is all that ever comes.
    pub(crate) stall: bool,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

struct Answer {
    status: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Registry {
    /// Serves until the test's process ends.
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (behaviour, log) = (behaviour.clone(), log.clone());
                thread::spawn(move || serve(stream.unwrap(), &behaviour, address, &log));
            }
        });
        Self { address, asked }
    }

    /// Where an image is, for the command.
    pub(crate) fn source(&self, name: &str) -> String {
        format!("docker://{}/test/image{name}", self.address)
    }

    /// The paths that were asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(mut stream: TcpStream, behaviour: &Behaviour, address: SocketAddr, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: BTreeMap<_, _> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned())))
        .collect();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    log.lock().unwrap().push(path.clone());
    let authorization = headers.get("authorization").map_or("", String::as_str);
    let answer = answer(behaviour, address, &path, authorization);
    let Answer { status, headers, body } = answer;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    if behaviour.stall && path.contains("/blobs/") && body.len() > 10_000 {
        let _ = stream.write_all(&body[..body.len() / 2]);
        thread::sleep(Duration::from_secs(3600));
    }
    let _ = stream.write_all(&body);
}

fn answer(behaviour: &Behaviour, address: SocketAddr, path: &str, authorization: &str) -> Answer {
    let plain = |status, body: &[u8]| Answer { status, headers: Vec::new(), body: body.to_vec() };
    let basic = behaviour
        .credentials
        .as_ref()
        .map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
    if path.starts_with("/token?") {
        assert!(
            path.contains("scope=repository%3Atest%2Fimage%3Apull")
                || path.contains("scope=repository:test/image:pull"),
            "{path}"
        );
        assert!(path.contains("service=a"), "{path}");
        return match basic {
            Some(basic) if basic != authorization => plain("401 Unauthorized", b"who are you?"),
            _ => plain("200 OK", format!(r#"{{"token":"{TOKEN}"}}"#).as_bytes()),
        };
    }
    if let Some(digest) = path.strip_prefix("/elsewhere/") {
        // What was meant for the registry must not come here.
        return match authorization {
            "" => plain("200 OK", &behaviour.content[digest]),
            _ => plain("400 Bad Request", b"too much was told"),
        };
    }
    let (wanted, challenge) = match (behaviour.bearer, &basic) {
        (true, _) => (
            format!("Bearer {TOKEN}"),
            format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"a service\""),
        ),
        (false, Some(basic)) => (basic.clone(), "WWW-Authenticate: Basic realm=\"a registry\"".to_owned()),
        (false, None) => (String::new(), String::new()),
    };
    if wanted != authorization {
        return Answer { status: "401 Unauthorized", headers: vec![challenge], body: b"{}".to_vec() };
    }
    let name = path.rsplit('/').next().unwrap();
    let Some(content) = behaviour.content.get(name).filter(|_| path.starts_with("/v2/test/image/")) else {
        return plain("404 Not Found", br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    };
    if behaviour.redirect && path.contains("/blobs/") {
        let location = format!("Location: http://localhost:{}/elsewhere/{name}", address.port());
        return Answer { status: "307 Temporary Redirect", headers: vec![location], body: Vec::new() };
    }
    plain("200 OK", content)
}
