//! What arguments of several commands are made of: parsed here, so that a mistake is told before anything is done.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use wrenn_core::MiB;

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(Self { name: name.into(), value: value.into() }),
            _ => Err("not of the form NAME=VALUE".into()),
        }
    }
}

/// A variable for a guest: `NAME=VALUE`, or `NAME` for what this program's environment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable(pub(crate) Pair);

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('=') || text.is_empty() {
            return text.parse().map(Self);
        }
        let value = std::env::var(text).map_err(|error| format!("{text}: {error}"))?;
        Ok(Self(Pair { name: text.into(), value }))
    }
}

/// A size of memory: MiB, or with a unit (`512m`, `2g`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemorySize(pub(crate) MiB);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &lower[digits.len()..] {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            unit => return Err(format!("{unit:?} is no unit: m or g is")),
        };
        let count: u32 = digits.parse().map_err(|_| format!("{text:?} is no size, as 512m or 2g are"))?;
        count.checked_mul(factor).map(|mib| Self(MiB(mib))).ok_or_else(|| format!("{text} is too much"))
    }
}

/// A port of the guest and where it is to be had on this machine: `8080:80`, `127.0.0.1:8080:80`, or `80` for any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortMapping {
    pub(crate) at: SocketAddr,
    pub(crate) guest: u16,
}

impl FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) => Ok(port),
            Err(_) => Err(format!("{text:?} is no port")),
        };
        let (host, guest) = match text.rsplit_once(':') {
            Some((host, guest)) => (Some(host), port(guest)?),
            None => (None, port(text)?),
        };
        if guest == 0 {
            return Err("a guest has no port 0".into());
        }
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let at = match host.map(|host| (host, host.rsplit_once(':'))) {
            None => SocketAddr::new(local, 0),
            Some((host, None)) => SocketAddr::new(local, port(host)?),
            Some((_, Some((address, host)))) => {
                let address = address.trim_start_matches('[').trim_end_matches(']');
                let address = address.parse().map_err(|_| format!("{address:?} is no address"))?;
                SocketAddr::new(address, port(host)?)
            }
        };
        Ok(Self { at, guest })
    }
}

/// A time as people write it: `30s`, `10m`, `1h30m`; a number alone is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

/// One end of a copy: a path here, or `SANDBOX:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Here(String),
    Guest { sandbox: String, path: String },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let here = || Ok(Self::Here(text.to_owned()));
        match text.split_once(':') {
            _ if text.is_empty() => Err("empty".into()),
            // `./a:b` is a path with a colon in it.
            Some((before, _)) if before.contains('/') || before.starts_with('.') => here(),
            Some((sandbox, path)) if !sandbox.is_empty() && !path.is_empty() => {
                Ok(Self::Guest { sandbox: sandbox.into(), path: path.into() })
            }
            Some(_) => Err("neither a path nor SANDBOX:PATH".into()),
            None => here(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr + PartialEq + std::fmt::Debug>(text: &str, expected: Option<T>) {
        assert_eq!(text.parse::<T>().ok(), expected, "{text:?}");
    }

    #[test]
    fn sizes() {
        let mib = |count| Some(MemorySize(MiB(count)));
        check("512", mib(512));
        check("512M", mib(512));
        check("2GiB", mib(2048));
        for wrong in ["", "m", "1t", "-1", "4194304g", "1.5g"] {
            check::<MemorySize>(wrong, None);
        }
    }

    #[test]
    fn ports() {
        let at = |address: &str, guest| Some(PortMapping { at: address.parse().unwrap(), guest });
        check("80", at("127.0.0.1:0", 80));
        check("8080:80", at("127.0.0.1:8080", 80));
        check("0.0.0.0:8080:80", at("0.0.0.0:8080", 80));
        check("[::1]:8080:80", at("[::1]:8080", 80));
        for wrong in ["", "0", "x", "1:", "host:1:2", "65536"] {
            check::<PortMapping>(wrong, None);
        }
    }

    #[test]
    fn ends_of_a_copy() {
        let guest =
            |sandbox: &str, path: &str| Some(Place::Guest { sandbox: sandbox.into(), path: path.into() });
        check("abc:/etc/hosts", guest("abc", "/etc/hosts"));
        check("abc:x:y", guest("abc", "x:y"));
        check("./abc:x", Some(Place::Here("./abc:x".into())));
        check("/tmp/a:b", Some(Place::Here("/tmp/a:b".into())));
        check("file", Some(Place::Here("file".into())));
        for wrong in ["", ":x", "abc:"] {
            check::<Place>(wrong, None);
        }
    }

    #[test]
    fn times_and_pairs() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("soon").is_err());
        check("a=b=c", Some(Pair { name: "a".into(), value: "b=c".into() }));
        check::<Pair>("=b", None);
        check::<Variable>("WRENN_NO_SUCH_VARIABLE", None);
    }
}
