//! The addresses of a slot: the guest's, which never vary, and the pair that the pool gives to each index.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::error::NetError;
use crate::ranges::Range;

/// The guest's address in every sandbox.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The address of the TAP device, the guest's gateway.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// The prefix length of the network that guest and gateway share.
pub(crate) const GUEST_PREFIX: u8 = 30;
/// The guest's hardware address: locally administered (06), with its IPv4 address behind.
pub(crate) const GUEST_MAC: MacAddr = MacAddr([6, 0, 169, 254, 0, 21]);
/// The TAP's hardware address. It is fixed because a restored guest still has it in its neighbour table.
pub(crate) const GATEWAY_MAC: MacAddr = MacAddr([6, 0, 169, 254, 0, 22]);

/// An Ethernet hardware address; prints as `06:00:a9:fe:00:15`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The network as the guest sees it: what to put on its command line and into the monitor's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestNet {
    /// The guest's own address.
    pub ip: Ipv4Addr,
    /// The prefix length of its network.
    pub prefix: u8,
    /// Its default gateway.
    pub gateway: Ipv4Addr,
    /// Its hardware address. The host's side of the TAP takes it for granted and never asks by ARP.
    pub mac: MacAddr,
    /// The DNS servers it may ask.
    pub dns: Vec<Ipv4Addr>,
}

impl GuestNet {
    /// The same in every slot but for the DNS servers.
    pub fn new(dns: Vec<Ipv4Addr>) -> Self {
        Self { ip: GUEST, prefix: GUEST_PREFIX, gateway: GATEWAY, mac: GUEST_MAC, dns }
    }
}

/// The two ends of a slot's veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The host's end, even.
    pub(crate) host: Ipv4Addr,
    /// The namespace's end, odd: the address that the host routes and translates.
    pub(crate) slot: Ipv4Addr,
}

impl Pair {
    /// Both ends are a network of their own (RFC 3021).
    pub(crate) const PREFIX: u8 = 31;
}

/// The block of addresses that slots get their veth addresses from: two (a /31) for each slot index.
///
/// Guests never see them and no packet leaves the host with one. The first and the last pair stay unused, as they
/// hold the block's network and broadcast address.
///
/// ```
/// # use wrenn_net::AddressPool;
/// let pool: AddressPool = "10.200.0.0/16".parse()?;
/// assert_eq!(pool.last_index(), 32766);
/// # Ok::<(), wrenn_net::NetError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    base: Ipv4Addr,
    prefix: u8,
}

impl AddressPool {
    /// `198.19.0.0/16`: half of what RFC 2544 sets aside for benchmarks, hence neither on the internet nor in
    /// anybody's address plan.
    pub const DEFAULT: Self = Self { base: Ipv4Addr::new(198, 19, 0, 0), prefix: 16 };

    /// The block `base/prefix`.
    ///
    /// # Errors
    /// [`NetError::InvalidPool`] unless the prefix is 16 to 29 bits, `base` is the block's first address, and the
    /// block lies in unicast space outside 169.254.0.0/16, where the guests are.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, NetError> {
        let refuse = |rule| Err(NetError::InvalidPool { pool: format!("{base}/{prefix}"), rule });
        if !(16..=29).contains(&prefix) {
            return refuse("its prefix length is 16 to 29");
        }
        if Range::cidr(base, prefix).first != base.to_bits() {
            return refuse("it begins with the first address of its block");
        }
        let octet = base.octets()[0];
        if octet == 0 || octet >= 224 || base.is_loopback() || base.is_link_local() {
            return refuse("it is unicast, and neither loopback nor link-local");
        }
        Ok(Self { base, prefix })
    }

    /// The highest slot index; the lowest is 1.
    pub const fn last_index(self) -> u16 {
        // 16 bits of prefix, the least there are, leave 32768 pairs.
        ((1u32 << (31 - self.prefix)) - 2) as u16
    }

    pub(crate) const fn range(self) -> Range {
        Range::cidr(self.base, self.prefix)
    }

    pub(crate) fn pair(self, index: u16) -> Result<Pair, NetError> {
        if index == 0 || index > self.last_index() {
            return Err(NetError::IndexOutOfRange { index, pool: self, last: self.last_index() });
        }
        let host = self.base.to_bits() + 2 * u32::from(index);
        Ok(Pair { host: host.into(), slot: (host + 1).into() })
    }
}

impl Default for AddressPool {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for AddressPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for AddressPool {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let parsed =
            text.split_once('/').and_then(|(base, prefix)| Some((base.parse().ok()?, prefix.parse().ok()?)));
        let Some((base, prefix)) = parsed else {
            let pool = text.chars().take(80).collect();
            return Err(NetError::InvalidPool { pool, rule: "it is written like 198.19.0.0/16" });
        };
        Self::new(base, prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_stay_inside_the_pool_and_never_overlap() {
        for text in ["198.19.0.0/16", "10.1.2.0/24", "10.0.0.8/29"] {
            let pool: AddressPool = text.parse().unwrap();
            let mut before = pool.range().first + 1;
            for index in 1..=pool.last_index() {
                let pair = pool.pair(index).unwrap();
                assert!(pair.host.to_bits() > before, "{text} {index}");
                assert_eq!(pair.host.to_bits() ^ 1, pair.slot.to_bits(), "{text} {index}: not one /31");
                assert!(pool.range().contains(pair.slot));
                before = pair.slot.to_bits();
            }
            assert_eq!(before + 2, pool.range().last, "{text}: the last pair stays unused");
        }
    }

    #[test]
    fn indices_outside_the_pool_are_refused_with_the_bounds() {
        let pool = AddressPool::DEFAULT;
        assert_eq!(pool.last_index(), 32766);
        for index in [0, 32767, u16::MAX] {
            let error = pool.pair(index).unwrap_err();
            assert!(error.to_string().contains("1 to 32766"), "{error}");
        }
    }

    #[test]
    fn pools_that_cannot_work_are_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "/16",
            "10.0.0.0/15",
            "10.0.0.0/30",
            "10.0.0.0/-1",
            "10.0.0.1/16",
            "::/16",
            "0.0.0.0/16",
            "127.0.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/16",
            "255.255.0.0/16",
            "10.0.0.0/999",
        ] {
            let error = text.parse::<AddressPool>().unwrap_err();
            assert!(matches!(error, NetError::InvalidPool { .. }), "{text}: {error:?}");
        }
        assert_eq!("10.200.0.0/16".parse::<AddressPool>().unwrap().to_string(), "10.200.0.0/16");
    }

    #[test]
    fn hardware_addresses_print_as_usual() {
        assert_eq!(MacAddr([6, 0, 169, 254, 0, 21]).to_string(), "06:00:a9:fe:00:15");
    }
}
