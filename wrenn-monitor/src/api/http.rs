//! HTTP/1.1 as far as an API on a local socket needs it: requests in, responses out, no I/O.
//!
//! Whoever can open the socket already controls the machine, but not the monitor: input is bounded
//! ([`MAX_HEAD`], [`MAX_BODY`]), and what is not understood ends the connection with an error response.

use std::io::Write;

use serde::Serialize;
use wrenn_vmm::api::ApiError;

use crate::action::Fault;

/// The longest request line and headers together.
pub(super) const MAX_HEAD: usize = 8192;
/// The longest body: Firecracker's limit.
pub(super) const MAX_BODY: usize = 51_200;
const MAX_HEADERS: usize = 64;

/// One whole request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// The path alone; of a whole URI the rest is cut off.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    /// Whether the client wants to send more on this connection.
    pub(super) keep_alive: bool,
}

/// What the bytes at the start of a connection's input are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The beginning of a request. The client may wait for a `100 Continue` before it sends the rest.
    Partial { waits_for_continue: bool },
    /// A request, and the number of bytes that it takes.
    Whole(Request, usize),
}

/// Why a connection's input cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    #[error("this is no HTTP/1.1 request: {0}")]
    Syntax(httparse::Error),
    #[error("the request line and headers are longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    #[error("the body is {0} bytes long, and {MAX_BODY} is the limit")]
    BodyTooLong(u64),
    #[error("the length of the body is not clear: send one Content-Length, and no Transfer-Encoding")]
    BodyLength,
}

impl HttpError {
    /// What to answer before the connection is closed.
    pub(super) fn response(&self) -> Response {
        let status = if matches!(self, Self::BodyTooLong(_)) { Status::TooLarge } else { Status::BadRequest };
        Response::fault(status, self.to_string())
    }
}

/// Looks for a request at the start of `input`.
pub(super) fn parse(input: &[u8]) -> Result<Parsed, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(&input[..input.len().min(MAX_HEAD)]).map_err(HttpError::Syntax)? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial if input.len() >= MAX_HEAD => return Err(HttpError::HeadTooLong),
        httparse::Status::Partial => return Ok(Parsed::Partial { waits_for_continue: false }),
    };
    let body_len = body_len(head.headers)?;
    let Some(body) = input.get(head_len..head_len + body_len) else {
        let waits = input.len() == head_len && has_token(head.headers, "expect", "100-continue");
        return Ok(Parsed::Partial { waits_for_continue: waits });
    };
    let keep_alive = match head.version {
        Some(1) => !has_token(head.headers, "connection", "close"),
        _ => has_token(head.headers, "connection", "keep-alive"),
    };
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path(head.path.unwrap_or_default()).to_owned(),
        body: body.to_vec(),
        keep_alive,
    };
    Ok(Parsed::Whole(request, head_len + body_len))
}

fn values<'h>(headers: &'h [httparse::Header<'_>], name: &str) -> impl Iterator<Item = &'h [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    values(headers, name)
        .flat_map(|value| value.split(|b| *b == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn body_len(headers: &[httparse::Header<'_>]) -> Result<usize, HttpError> {
    let mut lengths = values(headers, "content-length");
    let length = lengths.next();
    if lengths.next().is_some() || values(headers, "transfer-encoding").next().is_some() {
        return Err(HttpError::BodyLength);
    }
    let Some(length) = length else { return Ok(0) };
    let digits = length.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::BodyLength);
    }
    let text = str::from_utf8(digits).map_err(|_| HttpError::BodyLength)?;
    let length = text.parse::<u64>().unwrap_or(u64::MAX);
    usize::try_from(length).ok().filter(|len| *len <= MAX_BODY).ok_or(HttpError::BodyTooLong(length))
}

/// The path of a request target, which may be a whole URI.
fn path(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// The statuses that are answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    NoContent,
    BadRequest,
    TooLarge,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::NoContent => "204 No Content",
            Self::BadRequest => "400 Bad Request",
            Self::TooLarge => "413 Payload Too Large",
        }
    }
}

/// One answer: a status, and a JSON body unless it has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: Status,
    pub(super) body: Vec<u8>,
}

/// What a client that waits for it gets before it sends its body.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Response {
    /// Done, and nothing to tell.
    pub(super) fn done() -> Self {
        Self { status: Status::NoContent, body: Vec::new() }
    }

    /// `value` as JSON.
    pub(super) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: Status::Ok, body },
            // A path that is not UTF-8 has no JSON form.
            Err(error) => Self::fault(Status::BadRequest, Fault::from_error(&error).to_string()),
        }
    }

    /// What was wrong.
    pub(super) fn fault(status: Status, fault_message: String) -> Self {
        let body = serde_json::to_vec(&ApiError { fault_message }).unwrap_or_default();
        Self { status, body }
    }

    /// Appends the response as it goes over the wire.
    pub(super) fn write(&self, output: &mut Vec<u8>, keep_alive: bool) {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        // Writing to a vector does not fail.
        let _ = write!(
            output,
            "HTTP/1.1 {}\r\nServer: wrenn-monitor\r\nConnection: {connection}\r\n",
            self.status.line()
        );
        if self.status != Status::NoContent {
            let _ =
                write!(output, "Content-Type: application/json\r\nContent-Length: {}\r\n", self.body.len());
        }
        output.extend(b"\r\n");
        output.extend(&self.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn whole(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Ok(Parsed::Whole(request, len)) => {
                assert_eq!(len, text.len());
                request
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_taken_once_it_is_whole() {
        let text = "PUT /actions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n{  }";
        let request = whole(text);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/actions"));
        assert_eq!((request.body.as_slice(), request.keep_alive), (&b"{  }"[..], true));
        for len in 0..text.len() {
            let partial = Parsed::Partial { waits_for_continue: false };
            assert_eq!(parse(&text.as_bytes()[..len]), Ok(partial), "{len}");
        }
        let two = format!("{text}GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(parse(two.as_bytes()), Ok(Parsed::Whole(_, len)) if len == text.len()));
    }

    #[test]
    fn the_client_says_whether_it_stays() {
        for (text, stays) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: Upgrade, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", true),
        ] {
            assert_eq!(whole(text).keep_alive, stays, "{text}");
        }
        assert_eq!(whole("GET http://localhost/version HTTP/1.1\r\n\r\n").path, "/version");
        assert_eq!(whole("GET http://localhost HTTP/1.1\r\n\r\n").path, "/");
    }

    #[test]
    fn a_client_that_waits_is_told_to_go_on() {
        let head = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(parse(head.as_bytes()), Ok(Parsed::Partial { waits_for_continue: true }));
        let begun = format!("{head}{{");
        assert_eq!(parse(begun.as_bytes()), Ok(Parsed::Partial { waits_for_continue: false }));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let long_head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        for (text, error) in [
            (long_head.as_str(), HttpError::HeadTooLong),
            (many.as_str(), HttpError::Syntax(httparse::Error::TooManyHeaders)),
            ("GET / HTTP/3\r\n\r\n", HttpError::Syntax(httparse::Error::Version)),
            ("PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n", HttpError::BodyTooLong(51_201)),
            (
                "PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                HttpError::BodyTooLong(u64::MAX),
            ),
            ("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", HttpError::BodyLength),
            ("PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n", HttpError::BodyLength),
            ("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", HttpError::BodyLength),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", HttpError::BodyLength),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(error), "{}", &text[..text.len().min(80)]);
        }
        assert_eq!(HttpError::BodyTooLong(1).response().status, Status::TooLarge);
    }

    #[test]
    fn a_response_has_a_body_only_where_it_may() {
        let mut wire = Vec::new();
        Response::done().write(&mut wire, true);
        let expected = "HTTP/1.1 204 No Content\r\nServer: wrenn-monitor\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(String::from_utf8(wire).unwrap(), expected);
        let mut wire = Vec::new();
        Response::fault(Status::BadRequest, "no \"x\"".into()).write(&mut wire, false);
        let text = String::from_utf8(wire).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 28\r\n\r\n{\"fault_message\":\"no \\\"x\\\"\"}"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
            let mut request = b"PUT / HTTP/1.1\r\n".to_vec();
            request.extend(&bytes);
            let _ = parse(&request);
        }
    }
}
