//! Messages of both sides, whole and damaged.

use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn packet(asked: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(name(asked), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn question(asked: &str, payload: Option<u16>, transport: Transport) -> Question {
    match Question::read(&packet(asked, RecordType::A, payload), transport) {
        Read::Question(question) => question,
        other => panic!("{other:?}"),
    }
}

fn address(of: &str, ttl: u32, n: u32) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A(Ipv4Addr::from_bits(0x0909_0000 + n))))
}

fn upstream(question: &Question, records: impl IntoIterator<Item = Record>) -> Message {
    let (id, sent) = question.passed_on().unwrap();
    let sent = Message::from_vec(&sent).unwrap();
    assert_eq!((sent.metadata.id, sent.metadata.recursion_desired), (id, true));
    let mut answer = Message::response(id, OpCode::Query);
    answer.add_queries(sent.queries).add_answers(records);
    answer
}

#[test]
fn only_what_answers_the_question_is_taken_for_the_answer() {
    let question = question("a.com", None, Transport::Udp);
    let answer = upstream(&question, [address("a.com", 60, 1)]);
    let id = answer.metadata.id;
    let taken = |answer: &Message| question.answered_by(&answer.to_vec().unwrap(), id).is_some();
    assert!(taken(&answer));
    let altered = |alter: fn(&mut Message)| {
        let mut answer = answer.clone();
        alter(&mut answer);
        taken(&answer)
    };
    assert!(!altered(|answer| answer.metadata.id ^= 1), "another number");
    assert!(!altered(|answer| answer.metadata.message_type = MessageType::Query), "a question");
    assert!(!altered(|answer| answer.queries[0].name = name("b.com")), "another name");
    assert!(!altered(|answer| answer.queries[0].query_type = RecordType::MX), "another kind");
    assert!(!altered(|answer| answer.queries.clear()), "no question");
    assert!(question.answered_by(b"", id).is_none());
}

#[test]
fn answers_have_the_size_that_their_client_takes() {
    let records = || (0..100).map(|n| address("a.com", u32::MAX, n));
    for (payload, transport, whole) in [
        (None, Transport::Udp, false),
        (Some(0), Transport::Udp, false),
        (Some(u16::MAX), Transport::Udp, false),
        (None, Transport::Tcp, true),
    ] {
        let question = question("a.com", payload, transport);
        let packet = question.answer(upstream(&question, records()));
        let answer = Message::from_vec(&packet).unwrap();
        assert_eq!((answer.metadata.truncation, answer.answers.len() == 100), (!whole, whole));
        assert_eq!(answer.edns.is_some(), payload.is_some());
        assert!(answer.answers.iter().all(|record| record.ttl == LONGEST_TTL));
    }
    let question = question("a.com", Some(u16::MAX), Transport::Udp);
    let packet = question.answer(upstream(&question, records().take(60)));
    assert!(packet.len() > 512 && !Message::from_vec(&packet).unwrap().metadata.truncation);
}

#[test]
fn an_answer_keeps_the_chain_of_its_question() {
    let alias = |of: &str, to: &str| Record::from_rdata(name(of), 60, RData::CNAME(CNAME(name(to))));
    let question = question("a.com", None, Transport::Tcp);
    let mut message = upstream(
        &question,
        [
            address("c.com", 60, 1),
            alias("b.com", "C.com"),
            alias("A.com", "b.com"),
            // Round in a circle, and aside.
            alias("c.com", "a.com"),
            address("stray.com", 600, 2),
            address("b.com", 90, 3),
            Record::from_rdata(name("c.com"), 60, RData::AAAA(AAAA([0; 8].map(|n: u16| n).into()))),
        ],
    );
    tidy(&mut message, &question.query.name);
    let (addresses, ttl) = addresses(&message);
    assert_eq!(addresses, [Ipv4Addr::new(9, 9, 0, 1), Ipv4Addr::new(9, 9, 0, 3)]);
    assert_eq!((ttl, message.answers.len()), (90, 5));
    keep_addresses(&mut message, |address| address == Ipv4Addr::new(9, 9, 0, 3));
    assert_eq!(message.answers.len(), 4);
}

#[test]
fn addresses_of_one_answer_are_bounded() {
    let question = question("a.com", None, Transport::Tcp);
    let mut message = upstream(&question, (0..999).map(|n| address("a.com", 60, n)));
    tidy(&mut message, &question.query.name);
    assert_eq!(message.answers.len(), MOST_ADDRESSES);
}

/// A packet that begins as questions do.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let whole = packet("www.example.com", RecordType::A, Some(1232));
    let flips = proptest::collection::vec((0..whole.len(), any::<u8>()), 0..8);
    let damaged = (flips, 0..=whole.len()).prop_map(move |(flips, length)| {
        let mut packet = whole.clone();
        flips.into_iter().for_each(|(at, byte)| packet[at] = byte);
        packet.truncate(length);
        packet
    });
    prop_oneof![damaged, proptest::collection::vec(any::<u8>(), 0..600)]
}

proptest! {
    #[test]
    fn whatever_a_guest_sends_it_gets_an_answer_or_nothing(packet in hostile()) {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = match Question::read(&packet, transport) {
                Read::Question(question) => {
                    prop_assert!(question.passed_on().is_some());
                    question.refuse(ResponseCode::Refused)
                }
                Read::Answer(answer) => answer,
                Read::Nothing => continue,
            };
            // An answer to it, no longer than what came by much: nobody's floods are made larger here.
            prop_assert_eq!(&answer[..2], &packet[..2]);
            prop_assert!(answer[2] & 0x80 != 0 && answer.len() <= packet.len() + 11);
        }
    }

    #[test]
    fn whatever_a_server_says_what_is_told_is_written_anew(
        flips in proptest::collection::vec((12..400usize, any::<u8>()), 0..12),
    ) {
        let question = question("a.com", Some(1232), Transport::Udp);
        let mut answer = upstream(&question, (0..20).map(|n| address("a.com", 60, n)));
        let id = answer.metadata.id;
        answer.add_authorities([address("com", 60, 99)]);
        let mut packet = answer.to_vec().unwrap();
        for (at, byte) in flips {
            let length = packet.len();
            packet[at % length] = byte;
        }
        if let Some(mut message) = question.answered_by(&packet, id) {
            tidy(&mut message, &question.query.name);
            prop_assert!(addresses(&message).0.len() <= MOST_ADDRESSES);
            let told = question.answer(message);
            prop_assert!(told.len() <= 1232 && Message::from_vec(&told).is_ok());
        }
    }
}
