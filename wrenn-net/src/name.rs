//! Patterns of DNS names: one name, or all names below one.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};

use crate::egress::EgressError;

/// The longest name that DNS has, written without its last dot.
const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;

/// A DNS name, or with `*.` in front all names below it, at any depth and without the name itself.
///
/// Upper and lower case are the same. A name in another script is written as DNS has it (`xn--…`).
///
/// ```
/// # use wrenn_net::NamePattern;
/// let api: NamePattern = "API.example.com".parse()?;
/// assert_eq!(api.to_string(), "api.example.com");
/// let all: NamePattern = "*.example.com".parse()?;
/// assert!(all.matches("a.b.example.com") && !all.matches("example.com") && !all.matches("badexample.com"));
/// assert!("*".parse::<NamePattern>().is_err() && "a.*.com".parse::<NamePattern>().is_err());
/// # Ok::<(), wrenn_net::EgressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    /// Lower-case labels with dots between.
    domain: String,
    /// It is the names below the domain that are meant.
    below: bool,
}

impl NamePattern {
    /// Whether `name`, written with or without its last dot, is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.covers(name.rsplit('.').map(str::as_bytes))
    }

    /// Whether a name from a DNS message is one of those meant.
    pub(crate) fn matches_wire(&self, name: &Name) -> bool {
        self.covers(name.iter().rev())
    }

    /// `labels` are a name's, the last one first.
    fn covers<'a>(&self, mut labels: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut domain = self.domain.rsplit('.').map(str::as_bytes);
        domain.all(|label| labels.next().is_some_and(|asked| asked.eq_ignore_ascii_case(label)))
            && labels.next().is_some() == self.below
    }
}

impl FromStr for NamePattern {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let refuse =
            |rule| Err(EgressError::InvalidName { name: text.chars().take(LONGEST).collect(), rule });
        let (domain, below) = text.strip_prefix("*.").map_or((text, false), |domain| (domain, true));
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        if domain.parse::<Ipv4Addr>().is_ok() || domain.parse::<Ipv6Addr>().is_ok() {
            return refuse("it is an address, for which there are rules of their own");
        }
        if domain.len() > LONGEST {
            return refuse("it has at most 253 characters");
        }
        if domain.contains('*') {
            return refuse("a star stands for all labels in front of a name, as in *.example.com");
        }
        if !domain.split('.').all(is_label) {
            return refuse(
                "its labels have 1 to 63 letters, digits, hyphens (not at an end) or underscores, all of them ASCII",
            );
        }
        Ok(Self { domain: domain.to_ascii_lowercase(), below })
    }
}

fn is_label(label: &str) -> bool {
    (1..=LONGEST_LABEL).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_itself_and_a_star_what_is_below() {
        for (of, name, expected) in [
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.Com.", true),
            ("example.com", "www.example.com", false),
            ("example.com", "com", false),
            ("example.com", "", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.c.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "notexample.com", false),
            ("*.example.com", "example.com.evil.net", false),
            ("*.com", "example.com", true),
        ] {
            assert_eq!(pattern(of).matches(name), expected, "{of} {name}");
            let wire = Name::from_ascii(name).unwrap();
            assert_eq!(pattern(of).matches_wire(&wire), expected, "{of} {name} in a message");
        }
    }

    /// A dot inside a label of a message is no border between labels.
    #[test]
    fn labels_with_dots_in_them_are_no_way_in() {
        let sly = Name::from_labels([&b"www.example"[..], b"com"]).unwrap();
        assert!(
            !pattern("*.example.com").matches_wire(&sly) && !pattern("www.example.com").matches_wire(&sly)
        );
        let zero = Name::from_labels([&b"www\0"[..], b"example", b"com"]).unwrap();
        assert!(
            !pattern("www.example.com").matches_wire(&zero) && pattern("*.example.com").matches_wire(&zero)
        );
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_rule() {
        let long = format!("{}.com", "a".repeat(64));
        let longer = vec!["abcdefg"; 32].join(".");
        for text in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            ".a",
            "a..",
            "*.*.a",
            "a.*",
            "*a.com",
            "exämple.com",
            "a b",
            "-a.com",
            "a-.com",
            "a/b",
            "1.2.3.4",
            "::1",
            "example.com:443",
            "https://example.com",
            &long,
            &longer,
        ] {
            let error = text.parse::<NamePattern>().unwrap_err();
            assert!(matches!(error, EgressError::InvalidName { .. }), "{text}: {error:?}");
        }
        for (text, printed) in
            [("A.b-c.D.", "a.b-c.d"), ("*.X", "*.x"), ("_srv.a1", "_srv.a1"), ("localhost", "localhost")]
        {
            assert_eq!(pattern(text).to_string(), printed);
        }
    }
}
