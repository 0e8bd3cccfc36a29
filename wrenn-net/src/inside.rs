//! The half of a slot that lives in its namespace: built by a thread that is in it already.
//!
//! Nothing here needs an undo of its own: it is all gone with the namespace, and the veth pair with its host's end.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;

use crate::address::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, GUEST_PREFIX, Pair};
use crate::error::NetError;
use crate::host::{self, Shared};
use crate::link::{End, Links};
use crate::netns;
use crate::policy;
use crate::slot::{Plan, TAP, UPLINK, disable_ipv6};
use crate::sys;

/// Builds everything up to the other end of the veth pair.
pub(crate) fn build(shared: &Shared, plan: &Plan) -> Result<(), NetError> {
    netns::keep(&plan.netns).map_err(|e| NetError::keep_namespace(plan.netns.clone(), e))?;
    shared.checkpoint("namespace kept")?;
    configure().map_err(|e| step("configure", plan, e))?;
    shared.checkpoint("namespace configured")?;

    let mut links = Links::open();
    let loopback = links.index("lo").map_err(|e| step("find lo in", plan, e))?;
    links.set_up(loopback).map_err(|e| step("bring up lo in", plan, e))?;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(NetError::tun)?;
    sys::make_persistent_tap(&tun, TAP).map_err(|e| step("make tap0 in", plan, e))?;
    drop(tun);
    shared.checkpoint("TAP made")?;
    address_tap(&mut links).map_err(|e| step("set up tap0 in", plan, e))?;
    shared.checkpoint("TAP up")?;

    let here = End { name: UPLINK, mac: Plan::mac(plan.pair.slot) };
    let there = End { name: &plan.link, mac: Plan::mac(plan.pair.host) };
    links
        .add_veth(here, there, shared.namespace.as_fd())
        .map_err(|e| NetError::step(format!("make the veth pair {}", plan.link), e))?;
    shared.checkpoint("veth pair made")?;
    // The rules are there before the first packet can pass.
    policy::slot_table().commit().map_err(|e| NetError::firewall(policy::SLOT_TABLE, e))?;
    shared.checkpoint("rules made")?;
    address_uplink(&mut links, plan.pair).map_err(|e| step("set up the uplink in", plan, e))?;
    shared.checkpoint("uplink up")
}

fn configure() -> io::Result<()> {
    // For the interfaces there are and for those to come.
    disable_ipv6("all")?;
    disable_ipv6("default")?;
    host::forward_packets()
}

fn address_tap(links: &mut Links) -> io::Result<()> {
    let index = links.index(TAP)?;
    links.set_up_as(index, GATEWAY_MAC)?;
    links.add_address(index, GATEWAY, GUEST_PREFIX)?;
    // Spares the first connection to a restored guest a round of ARP.
    links.add_neighbour(index, GUEST, GUEST_MAC)
}

fn address_uplink(links: &mut Links, pair: Pair) -> io::Result<()> {
    let index = links.index(UPLINK)?;
    links.set_up(index)?;
    links.add_address(index, pair.slot, Pair::PREFIX)?;
    links.add_default_route(index, pair.host)
}

fn step(what: &str, plan: &Plan, source: io::Error) -> NetError {
    NetError::step(format!("{what} the network namespace {}", plan.netns.display()), source)
}
