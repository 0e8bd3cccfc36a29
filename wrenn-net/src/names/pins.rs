//! Which addresses are open for one slot because a name stood for them, and until when.
//!
//! Two times: new connections may be made as long as an address is `fresh`; what connections there are by then go on
//! as long as it is `kept`, so that a long download does not end because nobody asked for its server's name again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hickory_proto::rr::Name;

use crate::named::{Named, Opening};

/// How long connections go on after the last answer with their address.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time for which an answer opens an address.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The most entries in a set of the firewall for one slot.
pub(crate) const MOST_PINS: usize = 256;

/// When what is open closes; it is kept for at least as long as it is fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) fresh: Instant,
    pub(crate) kept: Instant,
}

/// What is in the firewall's sets for one slot.
pub(crate) type Elements = BTreeMap<(Ipv4Addr, Opening), Times>;

/// What is open, by the address and the name that stood for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pins(BTreeMap<(Ipv4Addr, Name), Pin>);

#[derive(Debug, Clone)]
struct Pin {
    openings: BTreeSet<Opening>,
    times: Times,
    /// When it was last in an answer.
    told: Instant,
}

impl Pins {
    /// Opens `addresses`, for which `name` stands, for at least `time`; where there is no room, others are closed.
    pub(crate) fn add(
        &mut self,
        named: &Named,
        name: &Name,
        addresses: impl IntoIterator<Item = Ipv4Addr>,
        time: Duration,
        now: Instant,
    ) {
        let openings = named.openings(name);
        if openings.is_empty() {
            return;
        }
        let time = time.min(LONGEST);
        // Somewhat longer than needed: not every answer has to change the firewall.
        let fresh = now + time + time / 2;
        let times = Times { fresh, kept: fresh.max(now + KEPT) };
        for address in addresses.into_iter().filter(|&address| named.may_open(address)) {
            let pin = self.0.entry((address, name.to_lowercase()));
            let pin = pin.or_insert_with(|| Pin { openings: openings.clone(), times, told: now });
            pin.told = now;
            if pin.times.fresh < now + time {
                pin.times = times;
            }
        }
        self.bound(now);
    }

    fn bound(&mut self, now: Instant) {
        self.0.retain(|_, pin| pin.times.kept > now);
        let mut entries: usize = self.0.values().map(|pin| pin.openings.len()).sum();
        while entries > MOST_PINS {
            let oldest = self.0.iter().min_by_key(|(_, pin)| pin.told).map(|(key, _)| key.clone());
            let Some(pin) = oldest.and_then(|key| self.0.remove(&key)) else { return };
            entries -= pin.openings.len();
        }
    }

    /// What stays open under another policy.
    pub(crate) fn under(&self, named: &Named, now: Instant) -> Self {
        let stay = self.0.iter().filter(|((address, _), _)| named.may_open(*address));
        let stay =
            stay.map(|(key, pin)| (key.clone(), Pin { openings: named.openings(&key.1), ..pin.clone() }));
        let mut pins = Self(stay.filter(|(_, pin)| !pin.openings.is_empty()).collect());
        pins.bound(now);
        pins
    }

    /// As the firewall has it. What it has taken out itself by now may be among it.
    pub(crate) fn elements(&self) -> Elements {
        let mut elements = Elements::new();
        for ((address, _), Pin { openings, times, .. }) in &self.0 {
            for &opening in openings {
                let of = elements.entry((*address, opening)).or_insert(*times);
                of.fresh = of.fresh.max(times.fresh);
                of.kept = of.kept.max(times.kept);
            }
        }
        elements
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::allow::{AllowRule, Protocol};
    use crate::egress::EgressPolicy;

    const MINUTE: Duration = Duration::from_secs(60);

    fn named(rules: &[(&str, u16)]) -> Named {
        let mut policy = EgressPolicy::deny_all().deny("1.2.3.0/24".parse().unwrap()).unwrap();
        for &(name, port) in rules {
            let rule = AllowRule::to_name(name.parse().unwrap()).protocol(Protocol::Tcp);
            policy = policy.allow(rule.ports(port..=port)).unwrap();
        }
        Named::of(&policy, &[])
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn ports(pins: &Pins, address: [u8; 4]) -> Vec<u16> {
        let here = pins.elements().into_keys().filter(|(of, _)| *of == Ipv4Addr::from(address));
        let port = |opening| match opening {
            Opening::Port { port, .. } => port,
            Opening::Everything => panic!("no rule is for everything"),
        };
        here.map(|(_, opening)| port(opening)).collect()
    }

    #[test]
    fn names_that_share_an_address_open_their_own_ports_each_for_its_time() {
        let (named, now) = (named(&[("a.com", 1), ("b.com", 2)]), Instant::now());
        let mut pins = Pins::default();
        pins.add(&named, &name("a.com"), [[9, 9, 9, 9].into()], MINUTE, now);
        assert_eq!(ports(&pins, [9, 9, 9, 9]), [1]);
        pins.add(&named, &name("B.com"), [[9, 9, 9, 9].into()], 10 * MINUTE, now);
        let elements = pins.elements();
        let fresh: Vec<_> = elements.values().map(|times| times.fresh - now).collect();
        assert_eq!(fresh, [MINUTE + MINUTE / 2, 15 * MINUTE]);
        assert!(elements.values().all(|times| times.kept - now == KEPT));
    }

    #[test]
    fn closed_addresses_and_other_names_open_nothing() {
        let named = named(&[("a.com", 1)]);
        let mut pins = Pins::default();
        let closed = [[10, 0, 0, 1], [169, 254, 169, 254], [127, 0, 0, 1], [1, 2, 3, 4]].map(Ipv4Addr::from);
        pins.add(&named, &name("a.com"), closed, MINUTE, Instant::now());
        pins.add(&named, &name("b.com"), [[9, 9, 9, 9].into()], MINUTE, Instant::now());
        assert!(pins.elements().is_empty(), "{pins:?}");
    }

    #[test]
    fn what_is_fresh_enough_is_left_alone() {
        let (named, now) = (named(&[("a.com", 1)]), Instant::now());
        let mut pins = Pins::default();
        let add = |pins: &mut Pins, now| {
            pins.add(&named, &name("a.com"), [[9, 9, 9, 9].into()], MINUTE, now);
            pins.elements()
        };
        let first = add(&mut pins, now);
        assert_eq!(add(&mut pins, now + MINUTE / 2), first);
        let renewed = add(&mut pins, now + MINUTE / 2 + Duration::from_secs(1));
        assert!(renewed.values().next().unwrap().fresh > first.values().next().unwrap().fresh);
    }

    #[test]
    fn a_change_of_policy_keeps_what_stays_allowed() {
        let now = Instant::now();
        let mut pins = Pins::default();
        let before = named(&[("a.com", 1), ("b.com", 2)]);
        pins.add(&before, &name("a.com"), [[8, 8, 8, 8].into()], MINUTE, now);
        pins.add(&before, &name("b.com"), [[9, 9, 9, 9].into()], MINUTE, now);
        let after = pins.under(&named(&[("a.com", 1)]), now);
        assert_eq!((ports(&after, [8, 8, 8, 8]), ports(&after, [9, 9, 9, 9])), (vec![1], vec![]));
        let after = pins.under(&named(&[("a.com", 7), ("*.b.com", 2)]), now);
        assert_eq!((ports(&after, [8, 8, 8, 8]), ports(&after, [9, 9, 9, 9])), (vec![7], vec![]));
        let closed = EgressPolicy::deny_all().deny("8.0.0.0/8".parse().unwrap()).unwrap();
        let closed = closed.allow(AllowRule::to_name("a.com".parse().unwrap())).unwrap();
        assert!(pins.under(&Named::of(&closed, &[]), now).elements().is_empty());
        assert!(pins.under(&Named::default(), now).elements().is_empty());
    }

    #[test]
    fn the_newest_stay_where_there_is_no_room() {
        let (named, start) = (named(&[("*.a.com", 1)]), Instant::now());
        let mut pins = Pins::default();
        for n in 0..1000u32 {
            let address = Ipv4Addr::from_bits(0x0808_0000 + n);
            let now = start + Duration::from_secs(n.into());
            pins.add(&named, &name(&format!("n{n}.a.com")), [address], MINUTE, now);
        }
        let addresses: Vec<_> = pins.elements().into_keys().map(|(address, _)| address.to_bits()).collect();
        assert_eq!(addresses, (0x0808_0000 + 744..0x0808_0000 + 1000).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn whatever_is_answered_the_pins_are_bounded_and_allowed(
            answers in proptest::collection::vec((0..4usize, 0..99u32, 1..32u32, prop_oneof![0..100_000u64, Just(u64::MAX)]), 0..60),
        ) {
            let named = named(&[("a.com", 1), ("*.a.com", 2), ("*.com", 3)]);
            let (mut pins, mut now) = (Pins::default(), Instant::now());
            for (which, first, count, seconds) in answers {
                let asked = name(["a.com", "x.a.com", "b.com", "c.net"][which]);
                let addresses = (first..first + count).map(|n| Ipv4Addr::from_bits(0x0102_02e0 + n));
                pins.add(&named, &asked, addresses, Duration::from_secs(seconds), now);
                now += Duration::from_secs(seconds.min(100_000));
                let elements = pins.elements();
                prop_assert!(elements.len() <= MOST_PINS);
                prop_assert!(elements.values().all(|times| times.fresh <= times.kept));
                prop_assert!(elements.keys().all(|(address, _)| named.may_open(*address)));
            }
        }
    }
}
