//! Which part of a file a request asks for (RFC 9110, sections 13 and 14), and in which encoding it takes it.

use std::time::SystemTime;

use hyper::HeaderMap;
use hyper::header::{ACCEPT_ENCODING, HeaderName, IF_RANGE, RANGE};

/// What of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Whole,
    /// From one byte to another, both included; the last may lie behind the end.
    Part(u64, u64),
    /// The last so many bytes.
    Tail(u64),
}

/// What a request's headers ask for. One range is served; what is broken, or more than one, asks for everything.
pub(super) fn wanted(headers: &HeaderMap, modified: Option<SystemTime>) -> Wanted {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(condition) = text(IF_RANGE)
        && modified.map(httpdate::fmt_http_date).as_deref() != Some(condition)
    {
        return Wanted::Whole;
    }
    text(RANGE).and_then(parse).unwrap_or(Wanted::Whole)
}

fn parse(text: &str) -> Option<Wanted> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    // `parse` would take a plus sign.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", tail) => Some(Wanted::Tail(number(tail)?)),
        (first, "") => Some(Wanted::Part(number(first)?, u64::MAX)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Wanted::Part(first, last))
        }
    }
}

impl Wanted {
    /// The first byte and how many from there of a file of `length` bytes; nothing, if it has none of them.
    pub(super) fn of(self, length: u64) -> Option<(u64, u64)> {
        match self {
            Self::Whole => Some((0, length)),
            Self::Part(first, _) if first >= length => None,
            Self::Part(first, last) => Some((first, last.min(length - 1) - first + 1)),
            Self::Tail(0) => None,
            Self::Tail(bytes) => Some((length.saturating_sub(bytes), bytes.min(length))),
        }
    }
}

/// How contents are to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    /// The request takes none that there is.
    None,
}

/// The encoding that a request takes: as it is, unless it asks for gzip and nothing else. The link is local.
pub(super) fn encoding(headers: &HeaderMap) -> Encoding {
    let (mut gzip, mut identity, mut any, mut others) = (None, None, None, false);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for coding in value.to_str().unwrap_or("").split(',') {
            let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
            let quality =
                quality.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0);
            let takes = quality > 0.0;
            match name.trim().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => gzip = Some(takes),
                "identity" => identity = Some(takes),
                "*" => any = Some(takes),
                "" => {}
                _ => others |= takes,
            }
        }
    }
    let only_gzip = gzip == Some(true) && identity.is_none() && any.is_none() && !others;
    if !only_gzip && identity.or(any).unwrap_or(true) {
        Encoding::Identity
    } else if gzip.or(any) == Some(true) {
        Encoding::Gzip
    } else {
        Encoding::None
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn one_range_is_understood() {
        let of = |range: &str, length| wanted(&headers(&[("range", range)]), None).of(length);
        assert_eq!(of("bytes=0-4", 10), Some((0, 5)));
        assert_eq!(of("bytes=8-100", 10), Some((8, 2)));
        assert_eq!(of("Bytes = 3 -", 10), Some((3, 7)));
        assert_eq!(of("bytes=-3", 10), Some((7, 3)));
        assert_eq!(of("bytes=-30", 10), Some((0, 10)));
        assert_eq!(of("bytes=9-99999999999999999999", 10), Some((9, 1)));
        for none in ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(of(none, 10), None, "{none}");
        }
        for whole in
            ["bytes=5-2", "bytes=0-1,3-4", "items=0-1", "bytes=+1-2", "bytes=a-b", "bytes=-", "bytes", ""]
        {
            assert_eq!(of(whole, 10), Some((0, 10)), "{whole}");
        }
    }

    #[test]
    fn a_range_may_depend_on_the_file_being_the_same() {
        let modified = Some(UNIX_EPOCH + Duration::from_millis(784_111_777_500));
        let range = |condition| headers(&[("range", "bytes=1-2"), ("if-range", condition)]);
        assert_eq!(wanted(&range("Sun, 06 Nov 1994 08:49:37 GMT"), modified), Wanted::Part(1, 2));
        for other in ["Sun, 06 Nov 1994 08:49:38 GMT", "\"tag\"", ""] {
            assert_eq!(wanted(&range(other), modified), Wanted::Whole, "{other}");
        }
    }

    #[test]
    fn gzip_is_for_those_who_take_nothing_else() {
        let of = |value: &str| encoding(&headers(&[("accept-encoding", value)]));
        assert_eq!(encoding(&HeaderMap::new()), Encoding::Identity);
        for identity in
            ["gzip, deflate", "zstd,gzip,br", "identity", "*", "gzip, identity;q=0.1", "", "gzip;q=0"]
        {
            assert_eq!(of(identity), Encoding::Identity, "{identity}");
        }
        for gzip in ["gzip", "GZIP;q=0.5", "gzip, identity;q=0", "gzip, *;q=0", "*, identity;q=0"] {
            assert_eq!(of(gzip), Encoding::Gzip, "{gzip}");
        }
        for none in ["identity;q=0", "*;q=0", "br, identity;q=0", "gzip;q=0, *;q=0"] {
            assert_eq!(of(none), Encoding::None, "{none}");
        }
    }
}
