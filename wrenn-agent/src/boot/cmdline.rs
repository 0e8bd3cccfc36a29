//! The kernel command line, as far as it is the agent's.
//!
//! ```text
//! wrenn.root=/dev/vda  wrenn.ip=169.254.0.21/30  wrenn.gw=169.254.0.22  wrenn.dns=1.1.1.1,8.8.8.8  wrenn.hostname=box
//! ```
//! All are optional but the first has a default. Without `wrenn.ip` there is only the loopback interface.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::machine::is_hostname;

/// What the host decided about this guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The device of the root file system.
    pub(super) root: PathBuf,
    /// The address of `eth0` and the length of its network's prefix.
    pub(super) address: Option<(Ipv4Addr, u8)>,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) hostname: Option<String>,
}

impl Settings {
    /// Reads the `wrenn.` words; others are the kernel's. The error is a sentence.
    pub(super) fn parse(cmdline: &str) -> Result<Self, String> {
        let mut settings =
            Self { root: "/dev/vda".into(), address: None, gateway: None, dns: Vec::new(), hostname: None };
        for word in cmdline.split_whitespace() {
            let Some((name, value)) = word.strip_prefix("wrenn.").and_then(|word| word.split_once('='))
            else {
                continue;
            };
            settings.set(name, value).ok_or_else(|| format!("{word:?} is malformed"))?;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "root" => self.root = value.starts_with("/dev/").then(|| value.into())?,
            "ip" => {
                let (address, prefix) = value.split_once('/')?;
                let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
                self.address = Some((address.parse().ok()?, prefix));
            }
            "gw" => self.gateway = Some(value.parse().ok()?),
            "dns" => {
                let servers = value.split(',').filter(|server| !server.is_empty());
                self.dns = servers.map(|server| server.parse().ok()).collect::<Option<_>>()?;
            }
            "hostname" => self.hostname = is_hostname(value).then(|| Some(value.to_owned()))?,
            // A newer host's word.
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_words_among_the_kernels() {
        let settings = Settings::parse(
            "console=ttyS0 quiet wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=1.1.1.1,::1 panic=-1 \
             wrenn.hostname=i0abc wrenn.root=/dev/vdb wrenn.new=thing wrenn.flag root=/dev/sda\n",
        )
        .unwrap();
        assert_eq!(settings.root, PathBuf::from("/dev/vdb"));
        assert_eq!(settings.address, Some((Ipv4Addr::new(169, 254, 0, 21), 30)));
        assert_eq!(settings.gateway, Some(Ipv4Addr::new(169, 254, 0, 22)));
        assert_eq!(settings.dns, ["1.1.1.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(settings.hostname.as_deref(), Some("i0abc"));
        let none = Settings::parse("").unwrap();
        assert_eq!((none.root, none.address, none.dns), ("/dev/vda".into(), None, vec![]));
    }

    #[test]
    fn names_what_is_malformed() {
        for bad in [
            "wrenn.ip=1.2.3.4",
            "wrenn.ip=1.2.3.4/33",
            "wrenn.ip=1.2.3.4/0",
            "wrenn.ip=x/24",
            "wrenn.gw=",
            "wrenn.dns=1.1.1.1,x",
            "wrenn.hostname=a_b",
            "wrenn.root=vda",
        ] {
            assert!(Settings::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}
