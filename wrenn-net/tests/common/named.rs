//! A host with one slot, a guest in it, and a DNS server on the internet.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use wrenn_net::{AllowRule, EgressPolicy, Protocol};

use super::common::{Host, run};
use super::machine::Machine;
use super::nameserver::{NameServer, Says, addresses, exchange, question};
use super::world::{RESOLVER, World, nothing};

/// Which nobody answers but the host's resolver.
pub(crate) const ANY_SERVER: Ipv4Addr = Ipv4Addr::new(8, 8, 4, 4);

pub(crate) struct Named<'a> {
    pub(crate) world: World<'a>,
    pub(crate) machine: Machine,
    pub(crate) server: NameServer,
}

/// The mark, and port 443 by TCP of these names.
pub(crate) fn to_names(names: &[&str]) -> EgressPolicy {
    names.iter().fold(nothing(), |policy, name| policy.allow(https(name)).unwrap())
}

pub(crate) fn https(name: &str) -> AllowRule {
    AllowRule::to_name(name.parse().unwrap()).protocol(Protocol::Tcp).ports(443..=443)
}

impl<'a> Named<'a> {
    /// With all `addresses` on the internet.
    pub(crate) fn new(
        host: &'a Host,
        addresses: &[Ipv4Addr],
        policy: &EgressPolicy,
        says: impl Fn(&str, RecordType) -> Says + Send + Sync + 'static,
    ) -> Self {
        Self::pinning(host, addresses, policy, Duration::from_secs(60), says)
    }

    pub(crate) fn pinning(
        host: &'a Host,
        addresses: &[Ipv4Addr],
        policy: &EgressPolicy,
        least: Duration,
        says: impl Fn(&str, RecordType) -> Says + Send + Sync + 'static,
    ) -> Self {
        let world = World::of(host, addresses, policy, |spec| spec.least_pin = least);
        let server = NameServer::start(&world.internet, RESOLVER, says);
        let machine = Machine::attach(world.slot.netns());
        Self { world, machine, server }
    }

    /// What the guest is told.
    pub(crate) fn ask(&self, name: &str, kind: RecordType) -> Message {
        let answer = self.machine.inside(|| exchange(ANY_SERVER, &question(name, kind, Some(1232))));
        Message::from_vec(&answer).unwrap()
    }

    pub(crate) fn code(&self, name: &str) -> ResponseCode {
        self.ask(name, RecordType::A).metadata.response_code
    }

    pub(crate) fn addresses(&self, name: &str) -> Vec<Ipv4Addr> {
        addresses(&self.ask(name, RecordType::A))
    }

    /// What a set of the host's table holds.
    pub(crate) fn set(&self, set: &str) -> String {
        run("nft", &["list", "set", "inet", &self.world.table(), set])
    }

    pub(crate) fn remove(self) {
        drop((self.machine, self.server));
        self.world.remove();
    }
}
