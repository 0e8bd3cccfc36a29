//! The pager's process: a thread for each connection, and the first one, which waits until nobody needs it.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use crate::engine::Engine;
use crate::protocol::{Reply, Request, receive, send};

/// How long one who has connected may take to say what for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the listener rests where it cannot accept, as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the pager to its end.
///
/// Its standard input is the socket that it is to listen at, as [`PagerClient::start`](crate::PagerClient::start) has it.
pub fn run() -> ExitCode {
    let level = std::env::var("WRENN_PAGER_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .init();
    match listener() {
        Ok(listener) => {
            let engine = Arc::new(Engine::default());
            let accepting = Arc::clone(&engine);
            thread::spawn(move || accept(&accepting, &listener));
            engine.wait_until_idle();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("wrenn-pager is started by the programs that need it: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The socket that this process was given, in a session that no terminal ends.
fn listener() -> io::Result<UnixListener> {
    // One that leads its session already is no worse off.
    let _ = rustix::process::setsid();
    let socket = rustix::io::dup(rustix::stdio::stdin())?;
    let listener = UnixListener::from(socket);
    listener.local_addr()?;
    Ok(listener)
}

fn accept(engine: &Arc<Engine>, listener: &UnixListener) {
    loop {
        let served = listener.accept().and_then(|(stream, _)| {
            let engine = Arc::clone(engine);
            thread::Builder::new().name("request".into()).spawn(move || talk(&engine, &stream))
        });
        if let Err(error) = served {
            tracing::warn!(%error, "a connection could not be served");
            thread::sleep(ACCEPT_PAUSE);
        }
    }
}

fn talk(engine: &Arc<Engine>, stream: &UnixStream) {
    // What breaks off here is the other side's affair.
    let _ = answer(engine, stream);
}

fn answer(engine: &Arc<Engine>, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match receive(stream)? {
        None => Ok(()),
        Some(Request::Keep) => keep(engine, stream),
        Some(request) => send(stream, &engine.answer(request)),
    }
}

/// Goes on for as long as the other side keeps its end open. If it goes on beyond that, it says so; if not, the
/// connection is closed by the end of the process.
fn keep(engine: &Arc<Engine>, stream: &UnixStream) -> io::Result<()> {
    let keeper = engine.keep();
    // Whatever goes wrong here is the same as that the other side has gone.
    let kept = send(stream, &Reply::Done).and_then(|()| stream.set_read_timeout(None));
    let _ = kept.and_then(|()| receive::<Request>(stream));
    if keeper.leave() {
        return send(stream, &Reply::Done);
    }
    // This is where the process ends.
    thread::sleep(PATIENCE);
    Ok(())
}
