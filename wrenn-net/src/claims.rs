//! Which slot indices are in use, and what the host's table says that the slots behind its links reach.
//!
//! Invariant: an index is in use from before anything of its slot exists until its undo list has run. The undo of a
//! slot can therefore never meet a younger slot of the same index. Claims are numbered, so that a handle, or an undo
//! that runs twice, does not take a younger slot for its own either.
//!
//! Invariant: a link with a policy of its own is in the host's table from before it exists until after it is gone: at
//! no time has its guest the default policy instead.
//!
//! Invariant: nobody waits for the resolver's thread or one of its tasks with the claims locked, as these lock them too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::Name;
use wrenn_base::Deadline;

use crate::egress::EgressPolicy;
use crate::error::NetError;
use crate::host::Shared;
use crate::link::Links;
use crate::named::Verdict;
use crate::names::{Ear, Pins, Resolver};
use crate::netns::{self, Place};
use crate::nft::{self, Transaction};
use crate::policy;
use crate::reach::Reach;

/// All claims of one host, and what the sets of its table hold, by the names of the links.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    last: u64,
    in_use: BTreeMap<u16, Claim>,
    /// Those among them that an earlier process made, and that nobody has taken over yet.
    kept: BTreeSet<u16>,
    /// Slots with the default policy are not among them.
    known: BTreeMap<String, Known>,
    /// Answers questions for names, since the first policy with any.
    resolver: Option<Resolver>,
    /// Where it listens, by the names of the links. Once there is one, it stays until its slot goes.
    ears: BTreeMap<String, Ear>,
}

/// What the table says about one link.
#[derive(Debug, Clone, Default)]
struct Known {
    reach: Reach,
    pins: Pins,
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    number: u64,
    /// Its slot's removal has begun.
    leaving: bool,
}

impl Shared {
    /// Locked while the table is being changed, so that the two never differ.
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks an index as in use, and returns the claim's number.
    pub(crate) fn claim(&self, index: u16) -> Result<u64, NetError> {
        let mut claims = self.claims();
        if claims.in_use.contains_key(&index) {
            return Err(NetError::IndexInUse { index, host: self.host.clone() });
        }
        claims.last += 1;
        let number = claims.last;
        claims.in_use.insert(index, Claim { number, leaving: false });
        Ok(number)
    }

    /// Marks the index of a slot that an earlier process made as in use, to be taken over.
    pub(crate) fn keep(&self, index: u16) -> Result<(), NetError> {
        self.claim(index)?;
        self.claims().kept.insert(index);
        Ok(())
    }

    /// The number of the claim on an index that was kept: for the first who asks.
    pub(crate) fn claim_kept(&self, index: u16) -> Result<u64, NetError> {
        let mut claims = self.claims();
        let claim = claims.kept.remove(&index).then(|| claims.in_use.get(&index)).flatten();
        claim.map(|claim| claim.number).ok_or(NetError::SlotGone { index })
    }

    /// Marks an index as free, unless the claim on it is another by now.
    pub(crate) fn release(&self, index: u16, number: u64) {
        let mut claims = self.claims();
        if claims.in_use.get(&index).is_some_and(|claim| claim.number == number) {
            claims.in_use.remove(&index);
        }
    }

    /// What `policy` comes to on this host; `None` is the default policy.
    fn reach_of(&self, policy: &EgressPolicy) -> Option<Reach> {
        let closed = [self.pool.range()];
        let reach = Reach::of(policy, &closed);
        (reach != Reach::of(&EgressPolicy::default(), &closed)).then_some(reach)
    }

    /// Gives the slot of a claim another policy in the host's table: all of it, or on an error nothing.
    pub(crate) fn set_egress(&self, index: u16, number: u64, policy: &EgressPolicy) -> Result<(), NetError> {
        let mut claims = self.claims();
        claims.check(index, number)?;
        let link = self.link_name(index);
        let new = self.reach_of(policy).map(|reach| {
            let pins = claims.known.get(&link).map(|known| known.pins.under(&reach.named, Instant::now()));
            Known { pins: pins.unwrap_or_default(), reach }
        });
        self.change(&mut claims, &link, new)
    }

    /// Answers the questions of a slot if its policy has names, and otherwise leaves them to the servers.
    pub(crate) fn hear(self: &Arc<Self>, index: u16, number: u64, netns: &Path) -> Result<(), NetError> {
        let mut claims = self.claims();
        claims.check(index, number)?;
        let link = self.link_name(index);
        let wanted = claims.known.get(&link).is_some_and(|known| !known.reach.named.is_empty());
        if claims.ears.get(&link).is_some_and(|ear| ear.redirected) == wanted {
            return Ok(());
        }
        let failed = |e| NetError::step(format!("answer the questions of {link} for names"), e);
        if wanted && !claims.ears.contains_key(&link) {
            let resolver = match claims.resolver.take() {
                Some(resolver) => resolver,
                None => Resolver::start(&self.namespace, self.dns.clone()).map_err(failed)?,
            };
            let ear = claims.resolver.insert(resolver).listen(self, index, number, netns).map_err(failed)?;
            claims.ears.insert(link.clone(), ear);
        }
        let redirect = || policy::redirect_questions(wanted).commit();
        let namespace = File::open(netns).map_err(failed)?;
        netns::within(Place::Existing(&namespace), redirect).and_then(|done| done).map_err(failed)?;
        claims.ears.entry(link).and_modify(|ear| ear.redirected = wanted);
        Ok(())
    }

    /// What becomes of a question of the slot with an index.
    pub(crate) fn verdict(&self, index: u16, name: &Name) -> Verdict {
        let claims = self.claims();
        let known = claims.known.get(&self.link_name(index));
        known.map_or(Verdict::Refused, |known| known.reach.named.verdict(name))
    }

    /// Opens those of `addresses`, for which `name` stands, that the policy of a claim's slot allows. Returns what its
    /// guest may be told: these, and what it reaches anyway.
    pub(crate) fn pin(
        &self,
        index: u16,
        number: u64,
        name: &Name,
        addresses: &[Ipv4Addr],
        time: Duration,
    ) -> Result<Vec<Ipv4Addr>, NetError> {
        let mut claims = self.claims();
        claims.check(index, number)?;
        let link = self.link_name(index);
        let Some(mut known) = claims.known.get(&link).cloned() else { return Ok(Vec::new()) };
        let named = &known.reach.named;
        let opens = named.verdict(name) == Verdict::Opens;
        let open = |&address: &Ipv4Addr| opens && named.may_open(address);
        known.pins.add(
            named,
            name,
            addresses.iter().copied().filter(open),
            time.max(self.least_pin),
            Instant::now(),
        );
        let told = addresses.iter().copied().filter(|it| open(it) || known.reach.has(*it)).collect();
        self.change(&mut claims, &link, Some(known))?;
        Ok(told)
    }

    /// Ends what answers questions for names, for all slots.
    pub(crate) fn end_resolver(&self, deadline: Deadline) -> Result<(), NetError> {
        let resolver = {
            let mut claims = self.claims();
            claims.ears.clear();
            claims.resolver.take()
        };
        let failed = |e| NetError::step("end the resolver for names", e);
        resolver.map_or(Ok(()), |resolver| resolver.end(deadline).map_err(failed))
    }

    /// Takes what is said about the slot of a claim from the table; from then on it stays like that.
    pub(crate) fn end_egress(&self, index: u16, number: u64, deadline: Deadline) -> Result<(), NetError> {
        let link = self.link_name(index);
        let ear = {
            let mut claims = self.claims();
            match claims.in_use.get_mut(&index) {
                Some(claim) if claim.number == number => claim.leaving = true,
                _ => return Ok(()),
            }
            claims.ears.remove(&link)
        };
        let ended = ear.map_or(Ok(()), |ear| ear.end(deadline));
        self.forget_reach(&link)?;
        ended.map_err(|e| NetError::step(format!("end the answers to questions of {link}"), e))
    }

    /// Takes what is said about a link from the table, once the link is gone.
    pub(crate) fn forget_reach(&self, link: &str) -> Result<(), NetError> {
        let mut claims = self.claims();
        if !claims.known.contains_key(link) {
            return Ok(());
        }
        let failed = |e| NetError::step(format!("remove the egress rules of {link}"), e);
        // Without them a guest that is still there would have the default policy.
        if self.on_host(|| Links::open().find(link).map_err(failed))?.is_some() {
            return Err(failed(io::Error::other("its link is still there, and they hold its guest back")));
        }
        let Err(error) = self.change(&mut claims, link, None) else { return Ok(()) };
        if self.on_host(|| nft::has_table(&self.table()).map_err(failed))? {
            return Err(error);
        }
        claims.known.remove(link);
        Ok(())
    }

    /// Notes links whose slots a killed process left, and which the table keeps from reaching anything.
    pub(crate) fn cut_off(&self, links: Vec<String>) {
        self.claims().known.extend(links.into_iter().map(|link| (link, Known::default())));
    }

    /// The links in the table that belong to no slot of this process.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        let claims = self.claims();
        let ours: Vec<_> = claims.in_use.keys().map(|&index| self.link_name(index)).collect();
        claims.known.keys().filter(|link| !ours.contains(link)).cloned().collect()
    }

    fn change(&self, claims: &mut Claims, link: &str, new: Option<Known>) -> Result<(), NetError> {
        let (old, known) = (claims.known.get(link), new.as_ref());
        let (was, is) = (old.map(|known| &known.reach), known.map(|known| &known.reach));
        let pins = |known: Option<&Known>| known.map(|known| known.pins.elements()).unwrap_or_default();
        let (before, after) = (pins(old), pins(known));
        if was != is || before != after {
            let table = self.table();
            self.on_host(|| {
                let mut change = Transaction::on(&table);
                policy::change(&mut change, link, was, is);
                policy::change_pins(&mut change, link, &before, &after, Instant::now());
                change.commit().map_err(|e| NetError::firewall(&table, e))
            })?;
        }
        match new {
            Some(known) => claims.known.insert(link.to_owned(), known),
            None => claims.known.remove(link),
        };
        Ok(())
    }
}

impl Claims {
    /// Whether the slot of a claim is there, and is to stay.
    fn check(&self, index: u16, number: u64) -> Result<(), NetError> {
        match self.in_use.get(&index) {
            Some(claim) if claim.number == number && !claim.leaving => Ok(()),
            _ => Err(NetError::SlotGone { index }),
        }
    }
}
