//! The records of an extended header: `LENGTH KEY=VALUE\n`, one behind the other.
//!
//! Format: POSIX.1-2001, "pax Extended Header". The length, in decimal digits, is the whole record's, so that a value can
//! hold any byte.

use rustix::fs::Timespec;

use super::error::EntryError;

/// A record's key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// The keys and values of all records.
///
/// # Errors
/// [`EntryError::Refused`] where anything does not fit.
pub(super) fn records(mut data: &[u8]) -> Result<Vec<Record<'_>>, EntryError> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let (record, rest) =
            first_record(data).ok_or(EntryError::Refused("has a malformed extended header"))?;
        records.push(record);
        data = rest;
    }
    Ok(records)
}

fn first_record(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = data.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(&data[..space])?).ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), &data[length..]))
}

/// A number in decimal digits and nothing else.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A time in seconds since 1970 with an optional sign and fraction, of which nanoseconds are kept.
pub(super) fn time(text: &[u8]) -> Option<Timespec> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(number(whole)?).ok()?;
    let digits: Vec<u8> = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
    let nanoseconds = i64::try_from(number(&digits)?).ok()?;
    // The fraction counts upwards from the second before.
    let (tv_sec, tv_nsec) = match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_any_byte_and_nothing_malformed() {
        assert_eq!(records(b"12 path=a/b\n").unwrap(), [(&b"path"[..], &b"a/b"[..])]);
        let mut record = b" SCHILY.xattr.user.x=\n9 \0=\n\n".to_vec();
        let length = record.len() + 2;
        record.splice(0..0, length.to_string().into_bytes());
        record.extend_from_slice(b"7 a=bc\n");
        let found = records(&record).unwrap();
        assert_eq!(found[0], (&b"SCHILY.xattr.user.x"[..], &b"\n9 \0=\n"[..]));
        assert_eq!(found[1], (&b"a"[..], &b"bc"[..]));
        for malformed in [
            &b"12 path=a/b"[..],
            b"13 path=a/b\n",
            b"99999999999999999999999 a=b\n",
            b"3 a=b\n",
            b"0 a=b\n",
            b"-7 a=b\n",
            b"+7 a=b\n",
            b"6 abc\n",
            b"\n",
            b"\0\0\0",
        ] {
            assert!(records(malformed).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        let parts = |text: &str| time(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(parts("12"), Some((12, 0)));
        assert_eq!(parts("12.5"), Some((12, 500_000_000)));
        assert_eq!(parts("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(parts("-3.25"), Some((-4, 750_000_000)));
        assert_eq!(parts("-3"), Some((-3, 0)));
        for no_time in ["", ".", "-", "1e3", "1.x", "99999999999999999999"] {
            assert_eq!(parts(no_time), None, "{no_time}");
        }
    }
}
