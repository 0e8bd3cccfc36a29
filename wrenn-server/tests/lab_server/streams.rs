//! Commands and terminals over WebSockets.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::{Api, eventually, text};

/// A WebSocket on a sandbox's stream.
struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What a stream said, until its end.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    terminal: Vec<u8>,
    events: Vec<Value>,
}

impl Socket {
    /// Opens it as a page in a browser does, with the token as a subprotocol.
    async fn open(api: &Api, sandbox: &str, start: Value) -> Self {
        let url = format!("ws://127.0.0.1:{}/v1/sandboxes/{sandbox}/stream", api.port);
        let mut request = url.into_client_request().unwrap();
        let protocols = format!("wrenn, wrenn.token.{}", api.token);
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
        let (socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "wrenn");
        let mut socket = Self(socket);
        socket.say(start).await;
        socket
    }

    async fn say(&mut self, said: Value) {
        self.0.send(Message::text(said.to_string())).await.unwrap();
    }

    async fn write(&mut self, input: &[u8]) {
        self.0.send(Message::binary(input.to_vec())).await.unwrap();
    }

    /// Hears until the end, or until what was heard is enough.
    async fn hear(&mut self, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = Heard::default();
        while !enough(&heard) {
            match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => match bytes[0] {
                    1 => heard.stdout.extend_from_slice(&bytes[1..]),
                    2 => heard.stderr.extend_from_slice(&bytes[1..]),
                    3 => heard.terminal.extend_from_slice(&bytes[1..]),
                    other => panic!("output of kind {other}"),
                },
                Some(Ok(Message::Text(text))) => heard.events.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => break,
            }
        }
        heard
    }
}

pub(crate) async fn a_command_is_followed_and_fed(api: Api) {
    let id = api.sandbox(json!({})).await;
    let start = json!({"command": "cat; echo done >&2; exit 7", "stdin": true});
    let mut socket = Socket::open(&api, &id, start).await;
    // More than all buffers on the way hold: whoever fed it before taking its output would wait for ever.
    let piece: Vec<u8> = (0..=255).cycle().take(512 << 10).collect();
    let (mut sink, mut stream) = (&mut socket.0).split();
    let feed = async {
        for _ in 0..4 {
            sink.send(Message::binary(piece.clone())).await.unwrap();
        }
        sink.send(Message::text(json!({"close_stdin": true}).to_string())).await.unwrap();
    };
    let take = async {
        let (mut stdout, mut events) = (Vec::new(), Vec::new());
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 1 => stdout.extend_from_slice(&bytes[1..]),
                Message::Text(text) => events.push(serde_json::from_str::<Value>(&text).unwrap()),
                _ => {}
            }
        }
        (stdout, events)
    };
    let ((), (stdout, events)) = tokio::join!(feed, take);
    assert!(stdout == piece.repeat(4), "{} bytes came back", stdout.len());
    assert_eq!(events[0]["event"], "started");
    assert_eq!(events[1], json!({"event": "exited", "exit_code": 7, "signal": null}));
}

pub(crate) async fn a_terminal_has_a_size_that_changes(api: Api) {
    let id = api.sandbox(json!({})).await;
    let start = json!({"command": ["/bin/sh"], "terminal": {"columns": 80, "rows": 24}});
    let mut socket = Socket::open(&api, &id, start).await;
    socket.write(b"stty size\n").await;
    socket.hear(|heard| String::from_utf8_lossy(&heard.terminal).contains("24 80")).await;
    socket.say(json!({"resize": {"columns": 100, "rows": 30}})).await;
    socket.write(b"stty size\n").await;
    socket.hear(|heard| String::from_utf8_lossy(&heard.terminal).contains("30 100")).await;
    socket.write(b"exit 5\n").await;
    let heard = socket.hear(|_| false).await;
    assert_eq!(heard.events.last().unwrap()["exit_code"], 5);
}

pub(crate) async fn a_command_whose_client_leaves_runs_on_and_is_attached_to(api: Api) {
    let id = api.sandbox(json!({})).await;
    let start = json!({"command": "echo begun; while [ ! -e /root/go ]; do sleep 0.2; done; echo went on; sleep 2; exit 4"});
    let mut socket = Socket::open(&api, &id, start).await;
    let heard = socket.hear(|heard| heard.stdout == b"begun\n").await;
    let pid = heard.events[0]["pid"].as_u64().unwrap();
    drop(socket);
    api.run(&id, "touch /root/go").await;
    eventually("it wrote, followed by nobody", async || {
        let processes = api.get(&format!("/v1/sandboxes/{id}/processes")).await;
        processes["processes"].as_array().unwrap().iter().any(|process| process["pid"] == json!(pid))
    })
    .await;
    let mut socket = Socket::open(&api, &id, json!({"attach": pid})).await;
    let heard = socket.hear(|_| false).await;
    assert!(String::from_utf8_lossy(&heard.stdout).contains("went on"), "{:?}", heard.stdout);
    assert_eq!(heard.events.last().unwrap()["exit_code"], 4);
}

pub(crate) async fn what_is_wrong_is_said_before_the_end(api: Api) {
    let id = api.sandbox(json!({})).await;
    for (start, code) in [
        (json!({}), "invalid_request"),
        (json!({"command": "true", "attach": 1}), "invalid_request"),
        (json!({"command": "true", "terminal": {"columns": 0, "rows": 1}}), "invalid_request"),
        (json!({"attach": 4_000_000}), "not_found"),
        (json!([]), "invalid_request"),
    ] {
        let mut socket = Socket::open(&api, &id, start.clone()).await;
        let heard = socket.hear(|_| false).await;
        let last = heard.events.last().unwrap();
        assert_eq!(
            (text(&last["event"]), text(&last["code"])),
            ("error".to_owned(), code.to_owned()),
            "{start}"
        );
    }
}
