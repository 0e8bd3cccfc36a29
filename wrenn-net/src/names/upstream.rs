//! The servers to which questions are passed on.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::Question;

/// How long a guest waits for an answer of any kind. Below the 5 seconds after which most clients ask again.
const LIMIT: Duration = Duration::from_secs(4);
/// How long one server is waited for before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most questions of all slots that are under way at a time: each has a socket.
const MOST_UNDER_WAY: usize = 256;

/// The servers of a host; questions to them come from the namespace of the thread that asks.
#[derive(Debug)]
pub(crate) struct Upstream {
    servers: Vec<Ipv4Addr>,
    /// Waiting is in turn, so that a slot which asks much holds up the others by its bounded share only.
    under_way: Semaphore,
}

impl Upstream {
    pub(crate) fn new(servers: Vec<Ipv4Addr>) -> Self {
        Self { servers, under_way: Semaphore::new(MOST_UNDER_WAY) }
    }

    /// The first good answer of a server, or else a bad one, or none within the limit.
    pub(crate) async fn ask(&self, question: &Question) -> Option<Message> {
        timeout(LIMIT, self.ask_in_turn(question)).await.ok().flatten()
    }

    async fn ask_in_turn(&self, question: &Question) -> Option<Message> {
        let _permit = self.under_way.acquire().await.ok()?;
        let mut bad = None;
        // Twice around: a datagram may have been lost.
        for &server in self.servers.iter().chain(&self.servers) {
            match timeout(PATIENCE, ask_one(server, question)).await {
                Ok(Ok(answer)) if is_good(&answer) => return Some(answer),
                Ok(Ok(answer)) if bad.is_some() => return Some(answer),
                Ok(Ok(answer)) => bad = Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a DNS server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a DNS server is silent"),
            }
        }
        bad
    }
}

fn is_good(answer: &Message) -> bool {
    matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

async fn ask_one(server: Ipv4Addr, question: &Question) -> io::Result<Message> {
    let server = SocketAddrV4::new(server, 53);
    let answer = ask_by_udp(server, question).await?;
    if answer.metadata.truncation { ask_by_tcp(server, question).await } else { Ok(answer) }
}

async fn ask_by_udp(server: SocketAddrV4, question: &Question) -> io::Result<Message> {
    let (id, packet) = numbered(question)?;
    // A port and a number that nobody can guess, and nothing is taken from any other address.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(&packet).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = question.answered_by(&buffer[..length], id) {
            return Ok(answer);
        }
    }
}

async fn ask_by_tcp(server: SocketAddrV4, question: &Question) -> io::Result<Message> {
    let (id, packet) = numbered(question)?;
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, &packet).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    question.answered_by(&answer, id).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn numbered(question: &Question) -> io::Result<(u16, Vec<u8>)> {
    question.passed_on().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Writes a message behind its length, as it goes over TCP.
pub(crate) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one piece: some clients do not wait for the rest.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
