//! A DNS server on the internet, which says what a test wants it to, and how a guest asks one.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::common::{Internet, PATIENCE, within};

const MOMENT: Duration = Duration::from_millis(20);

/// What it says to a question: records, or nothing at all.
pub(crate) type Says = Option<(ResponseCode, Vec<Record>)>;

type Saying = Box<dyn Fn(&str, RecordType) -> Says + Send + Sync>;

pub(crate) struct NameServer {
    done: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// `says` gets the name, in lower case and without its last dot, and the kind of record.
    pub(crate) fn start(
        internet: &Internet,
        address: Ipv4Addr,
        says: impl Fn(&str, RecordType) -> Says + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = within(&internet.namespace, || {
            (UdpSocket::bind((address, 53)).unwrap(), TcpListener::bind((address, 53)).unwrap())
        });
        udp.set_read_timeout(Some(MOMENT)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let zone = Arc::new(Zone { says: Box::new(says), asked: Arc::clone(&asked) });
        let (ended, by_udp) = (Arc::clone(&done), Arc::clone(&zone));
        let udp = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                if let Some(answer) = by_udp.answer(&buffer[..length], 1232) {
                    udp.send_to(&answer, from).unwrap();
                }
            }
        });
        let ended = Arc::clone(&done);
        let tcp = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok((stream, _)) = tcp.accept() else {
                    std::thread::sleep(MOMENT);
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                if let Some(answer) = zone.answer(&read_message(&stream).unwrap(), usize::MAX) {
                    write_message(&stream, &answer).unwrap();
                }
            }
        });
        Self { done, asked, threads: vec![udp, tcp] }
    }

    /// The names that it was asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the DNS server");
        }
    }
}

struct Zone {
    says: Saying,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Zone {
    fn answer(&self, packet: &[u8], room: usize) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).unwrap();
        let query = question.queries[0].clone();
        let name = query.name.to_ascii().to_lowercase().trim_end_matches('.').to_owned();
        self.asked.lock().unwrap().push(name.clone());
        let (code, records) = (self.says)(&name, query.query_type)?;
        let mut answer = Message::error_msg(question.metadata.id, OpCode::Query, code);
        answer.add_query(query).add_answers(records);
        let packet = answer.to_vec().unwrap();
        Some(if packet.len() > room { answer.truncate().to_vec().unwrap() } else { packet })
    }
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

pub(crate) fn a(of: &str, ttl: u32, address: Ipv4Addr) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A(address)))
}

pub(crate) fn aaaa(of: &str) -> Record {
    Record::from_rdata(name(of), 60, RData::AAAA(AAAA("2001:db8::1".parse().unwrap())))
}

pub(crate) fn cname(of: &str, to: &str) -> Record {
    Record::from_rdata(name(of), 60, RData::CNAME(CNAME(name(to))))
}

pub(crate) fn txt(of: &str, text: &str) -> Record {
    Record::from_rdata(name(of), 60, RData::TXT(TXT::new(vec![text.into()])))
}

pub(crate) fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

pub(crate) fn question(of: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(of), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// Sends packets to a server until one is answered. To be called where the guest is.
pub(crate) fn exchange(server: Ipv4Addr, packet: &[u8]) -> Vec<u8> {
    let start = Instant::now();
    loop {
        // Another port each time: as the first questions go out, the card may not be up yet.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((server, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
        socket.send(packet).unwrap();
        let mut buffer = [0; 4096];
        match socket.recv(&mut buffer) {
            Ok(length) => return buffer[..length].to_vec(),
            Err(e) => assert!(start.elapsed() < PATIENCE, "no answer from {server}: {e}"),
        }
    }
}

pub(crate) fn ask_by_tcp(server: Ipv4Addr, packets: &[Vec<u8>]) -> Vec<Message> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((server, 53)), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let exchange = |packet: &Vec<u8>| {
        write_message(&stream, packet).unwrap();
        Message::from_vec(&read_message(&stream).unwrap()).unwrap()
    };
    packets.iter().map(exchange).collect()
}

fn read_message(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(mut stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(&[&(message.len() as u16).to_be_bytes(), message].concat())
}
