//! The names of previews.

use wrenn_base::SandboxId;

/// A port of a sandbox, as a host name says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) port: u16,
    pub(crate) sandbox: SandboxId,
}

impl Name {
    /// Reads `PORT-SANDBOX.DOMAIN`, with or without the port of the server itself. `None`: it is another kind of name.
    pub(crate) fn parse(host: &str, domain: &str) -> Option<Self> {
        let host = match host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => host,
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let label = host.strip_suffix(domain)?.strip_suffix('.')?;
        let (port, sandbox) = label.split_once('-')?;
        // One notation for each port.
        if port.starts_with('0') || !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Self { port: port.parse().ok()?, sandbox: sandbox.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_port_and_sandbox() {
        let expected = Name { port: 8000, sandbox: "0123456789abcdef".parse().unwrap() };
        for host in [
            "8000-0123456789abcdef.example.org",
            "8000-0123456789abcdef.example.org:8080",
            "8000-0123456789ABCDEF.Example.ORG.",
        ] {
            assert_eq!(Name::parse(host, "example.org"), Some(expected.clone()), "{host}");
        }
    }

    #[test]
    fn other_names_are_none() {
        for host in [
            "example.org",
            ".example.org",
            "0-0123456789abcdef.example.org",
            "08000-0123456789abcdef.example.org",
            "+8000-0123456789abcdef.example.org",
            "65536-0123456789abcdef.example.org",
            "8000-0123456789abcde.example.org",
            "8000-0123456789abcdef.evil-example.org",
            "8000-0123456789abcdef.example.org.evil.org",
            "x.8000-0123456789abcdef.example.org",
            "8000-0123456789abcdefexample.org",
            "[::1]:8080",
            "",
        ] {
            assert_eq!(Name::parse(host, "example.org"), None, "{host}");
        }
    }
}
