//! Which slot indices are in use, and what the host's table says that the slots behind its links reach.
//!
//! Invariant: an index is in use from before anything of its slot exists until its undo list has run. The undo of a
//! slot can therefore never meet a younger slot of the same index. Claims are numbered, so that a handle, or an undo
//! that runs twice, does not take a younger slot for its own either.
//!
//! Invariant: a link with a policy of its own is in the host's table from before it exists until after it is gone: at
//! no time has its guest the default policy instead.

use std::collections::BTreeMap;
use std::io;
use std::sync::{MutexGuard, PoisonError};

use crate::egress::EgressPolicy;
use crate::error::NetError;
use crate::host::Shared;
use crate::link::Links;
use crate::nft;
use crate::policy;
use crate::reach::Reach;

/// All claims of one host, and what the sets of its table hold, by the names of the links.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    last: u64,
    in_use: BTreeMap<u16, Claim>,
    /// Slots with the default policy are not among them.
    reaches: BTreeMap<String, Reach>,
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

    /// Gives the slot of a claim another policy: all of it, or on an error nothing.
    pub(crate) fn set_egress(&self, index: u16, number: u64, policy: &EgressPolicy) -> Result<(), NetError> {
        let mut claims = self.claims();
        match claims.in_use.get(&index) {
            Some(claim) if claim.number == number && !claim.leaving => {}
            _ => return Err(NetError::SlotGone { index }),
        }
        self.change(&mut claims, &self.link_name(index), self.reach_of(policy))
    }

    /// Takes what is said about the slot of a claim from the table; from then on it stays like that.
    pub(crate) fn end_egress(&self, index: u16, number: u64) -> Result<(), NetError> {
        {
            let mut claims = self.claims();
            match claims.in_use.get_mut(&index) {
                Some(claim) if claim.number == number => claim.leaving = true,
                _ => return Ok(()),
            }
        }
        self.forget_reach(&self.link_name(index))
    }

    /// Takes what is said about a link from the table, once the link is gone.
    pub(crate) fn forget_reach(&self, link: &str) -> Result<(), NetError> {
        let mut claims = self.claims();
        if !claims.reaches.contains_key(link) {
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
        claims.reaches.remove(link);
        Ok(())
    }

    /// Notes links whose slots a killed process left, and which the table keeps from reaching anything.
    pub(crate) fn cut_off(&self, links: Vec<String>) {
        self.claims().reaches.extend(links.into_iter().map(|link| (link, Reach::default())));
    }

    /// The links in the table that belong to no slot of this process.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        let claims = self.claims();
        let ours: Vec<_> = claims.in_use.keys().map(|&index| self.link_name(index)).collect();
        claims.reaches.keys().filter(|link| !ours.contains(link)).cloned().collect()
    }

    fn change(&self, claims: &mut Claims, link: &str, new: Option<Reach>) -> Result<(), NetError> {
        let old = claims.reaches.get(link);
        if old == new.as_ref() {
            return Ok(());
        }
        let table = self.table();
        self.on_host(|| {
            let change = policy::change(&table, link, old, new.as_ref());
            change.commit().map_err(|e| NetError::firewall(&table, e))
        })?;
        match new {
            Some(reach) => claims.reaches.insert(link.to_owned(), reach),
            None => claims.reaches.remove(link),
        };
        Ok(())
    }
}
