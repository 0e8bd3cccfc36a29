//! One slot's questions, from its sockets to its answers.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::message::{Question, Read, Transport, addresses, keep_addresses, tidy};
use super::resolver::Client;
use super::upstream::write_message;
use crate::named::Verdict;

/// The most datagrams of one slot that are being answered; others wait in the socket, and what finds no room is lost.
const MOST_QUESTIONS: usize = 32;
/// The most TCP connections of one slot.
const MOST_CONNECTIONS: usize = 16;
/// How long a TCP connection may be idle, or wait for its client.
const IDLE: Duration = Duration::from_secs(10);
/// A longer packet is no question.
const LONGEST_QUESTION: usize = 4096;
/// After a failure of a socket, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

type Work<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

/// Answers what comes to a slot's sockets, until it is dropped.
pub(crate) async fn serve(client: Client, udp: UdpSocket, tcp: TcpListener) {
    let (client, udp) = (&client, &udp);
    let (mut questions, mut connections) = (Work::new(), Work::new());
    let mut buffer = [0; LONGEST_QUESTION];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut buffer), if questions.len() < MOST_QUESTIONS => match received {
                Ok((length, from)) => {
                    let packet = buffer[..length].to_vec();
                    questions.push(Box::pin(answer_datagram(client, udp, packet, from)));
                }
                Err(_) => sleep(PAUSE).await,
            },
            accepted = tcp.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((stream, _)) => connections.push(Box::pin(async move {
                    // It ends as the client, or its patience, does.
                    let _ = answer_connection(client, stream).await;
                })),
                Err(_) => sleep(PAUSE).await,
            },
            Some(()) = questions.next() => {}
            Some(()) = connections.next() => {}
        }
    }
}

async fn answer_datagram(client: &Client, udp: &UdpSocket, packet: Vec<u8>, from: SocketAddr) {
    if let Some(answer) = answer(client, &packet, Transport::Udp).await {
        // One that cannot be sent is one that was lost.
        let _ = udp.send_to(&answer, from).await;
    }
}

async fn answer_connection(client: &Client, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        if usize::from(length) > LONGEST_QUESTION {
            return Ok(());
        }
        let mut packet = vec![0; length.into()];
        timeout(IDLE, stream.read_exact(&mut packet)).await??;
        let Some(answer) = answer(client, &packet, Transport::Tcp).await else { return Ok(()) };
        timeout(IDLE, write_message(&mut stream, &answer)).await??;
    }
}

/// The answer to a packet, if it deserves any. What it tells is open by then.
async fn answer(client: &Client, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let question = match Question::read(packet, transport) {
        Read::Question(question) => question,
        Read::Answer(answer) => return Some(answer),
        Read::Nothing => return None,
    };
    let name = &question.query.name;
    let verdict = client.verdict(name);
    if verdict == Verdict::Refused {
        return Some(question.refuse(ResponseCode::Refused));
    }
    // Guests have no IPv6. That there is no such address makes them ask for the other kind at once.
    if question.query.query_type == RecordType::AAAA {
        return Some(question.refuse(ResponseCode::NoError));
    }
    let Some(mut message) = client.upstream().ask(&question).await else {
        return Some(question.refuse(ResponseCode::ServFail));
    };
    tidy(&mut message, name);
    if verdict == Verdict::Opens {
        let (addresses, seconds) = addresses(&message);
        match client.pin(name, &addresses, Duration::from_secs(seconds.into())) {
            Ok(told) => keep_addresses(&mut message, |address| told.contains(&address)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an address could not be opened");
                return Some(question.refuse(ResponseCode::ServFail));
            }
        }
    }
    Some(question.answer(message))
}
