//! DNS messages: what a guest asks, what is passed on, and what the guest is told.
//!
//! What comes in is hostile: it is parsed by the library, looked at here, and never sent on. Questions and answers
//! are always written anew.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// What fits into a packet everywhere (DNS flag day 2020): larger answers go over TCP.
const UDP_PAYLOAD: u16 = 1232;
/// What every client takes (RFC 1035).
const LEAST_PAYLOAD: u16 = 512;
/// More addresses of one answer are left out of it.
const MOST_ADDRESSES: usize = 16;
/// The longest time to live that a guest is told, in seconds: a day.
const LONGEST_TTL: u32 = 24 * 60 * 60;
const HEADER: usize = 12;

/// How a question came, and hence how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// One question of a guest's.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) query: Query,
    id: u16,
    recursion: bool,
    checking_disabled: bool,
    dnssec: bool,
    edns: bool,
    /// The most bytes that an answer may have.
    room: usize,
}

/// What a packet turned out to be.
#[derive(Debug)]
pub(crate) enum Read {
    Question(Question),
    /// No question, and this is the answer.
    Answer(Vec<u8>),
    /// Not even worth an answer.
    Nothing,
}

impl Question {
    pub(crate) fn read(packet: &[u8], transport: Transport) -> Read {
        const ANSWER: u8 = 0x80;
        // To answer an answer could go on for ever.
        if packet.len() < HEADER || packet[2] & ANSWER != 0 {
            return Read::Nothing;
        }
        let id = u16::from_be_bytes([packet[0], packet[1]]);
        let op_code = OpCode::from_u8(packet[2] >> 3 & 0xf);
        let refuse = |code| match Message::error_msg(id, op_code, code).to_vec() {
            Ok(answer) => Read::Answer(answer),
            Err(_) => Read::Nothing,
        };
        if op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let Ok(message) = Message::from_vec(packet) else { return refuse(ResponseCode::FormErr) };
        let [query] = &message.queries[..] else { return refuse(ResponseCode::FormErr) };
        let edns = message.edns.as_ref();
        let payload = edns.map_or(LEAST_PAYLOAD, Edns::max_payload).clamp(LEAST_PAYLOAD, UDP_PAYLOAD);
        let question = Self {
            query: query.clone(),
            id,
            recursion: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            dnssec: edns.is_some_and(|edns| edns.flags().dnssec_ok),
            edns: edns.is_some(),
            room: match transport {
                Transport::Udp => payload.into(),
                Transport::Tcp => u16::MAX.into(),
            },
        };
        if query.query_class != DNSClass::IN || is_transfer(query.query_type) {
            return Read::Answer(question.refuse(ResponseCode::Refused));
        }
        Read::Question(question)
    }

    /// What is sent upstream, under a number that nobody can guess, and that number.
    pub(crate) fn passed_on(&self) -> Option<(u16, Vec<u8>)> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(self.dnssec);
        message.set_edns(edns);
        Some((message.metadata.id, message.to_vec().ok()?))
    }

    /// `packet`, if it is the answer to what was sent under the number `id`.
    pub(crate) fn answered_by(&self, packet: &[u8], id: u16) -> Option<Message> {
        let message = Message::from_vec(packet).ok()?;
        let [query] = &message.queries[..] else { return None };
        let ours = message.metadata.id == id
            && message.metadata.message_type == MessageType::Response
            && query.name == self.query.name
            && query.query_type == self.query.query_type
            && query.query_class == self.query.query_class;
        ours.then_some(message)
    }

    /// The answer without any records.
    pub(crate) fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        self.written(self.head(code)).unwrap_or_default()
    }

    /// The answer with the records of `upstream`.
    pub(crate) fn answer(&self, upstream: Message) -> Vec<u8> {
        let mut message = self.head(upstream.metadata.response_code);
        message.metadata.authentic_data = upstream.metadata.authentic_data;
        message.answers = upstream.answers;
        // It says for how long there is no such name.
        message.authorities = upstream.authorities;
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = record.ttl.min(LONGEST_TTL);
        }
        match self.written(message) {
            Some(answer) if answer.len() <= self.room => answer,
            _ => {
                let mut short = self.head(upstream.metadata.response_code);
                short.metadata.truncation = true;
                self.written(short).unwrap_or_default()
            }
        }
    }

    fn head(&self, code: ResponseCode) -> Message {
        let mut message = Message::error_msg(self.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(self.dnssec);
            message.set_edns(edns);
        }
        message
    }

    fn written(&self, message: Message) -> Option<Vec<u8>> {
        message.to_vec().ok()
    }
}

/// Zone transfers are more than one message, and for servers among themselves.
fn is_transfer(kind: RecordType) -> bool {
    matches!(kind, RecordType::AXFR | RecordType::IXFR)
}

/// Takes out of an answer what its question was not about, and all but so many addresses.
pub(crate) fn tidy(message: &mut Message, asked: &Name) {
    let chain = chain(&message.answers, asked);
    let mut addresses = 0;
    message.answers.retain(|record| match record.data {
        RData::A(_) => {
            addresses += 1;
            addresses <= MOST_ADDRESSES && chain.contains(&record.name)
        }
        RData::AAAA(_) => false,
        _ => true,
    });
}

/// The name asked for and all that it is an alias of.
fn chain(answers: &[Record], asked: &Name) -> Vec<Name> {
    const LONGEST: usize = 16;
    let mut chain = vec![asked.clone()];
    // Aliases may come in any order.
    while let Some(next) = answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if chain.contains(&record.name) && !chain.contains(&target.0) => Some(&target.0),
        _ => None,
    }) {
        chain.push(next.clone());
        if chain.len() == LONGEST {
            break;
        }
    }
    chain
}

/// The addresses in an answer, and the longest time to live of one, in seconds.
pub(crate) fn addresses(message: &Message) -> (Vec<Ipv4Addr>, u32) {
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some((address.0, record.ttl.min(LONGEST_TTL))),
        _ => None,
    });
    let (addresses, ttls): (Vec<_>, Vec<_>) = addresses.unzip();
    (addresses, ttls.into_iter().max().unwrap_or_default())
}

/// Leaves of the addresses in an answer only those for which `told` says so.
pub(crate) fn keep_addresses(message: &mut Message, told: impl Fn(Ipv4Addr) -> bool) {
    message.answers.retain(|record| match &record.data {
        RData::A(address) => told(address.0),
        _ => true,
    });
}

#[cfg(test)]
mod tests;
