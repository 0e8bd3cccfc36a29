//! A bound on how much passes between a guest and the network.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use crate::error::NetError;
use crate::netns::{self, Place};
use crate::policy;
use crate::slot::Slot;

/// Why a [`Bandwidth`] was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a slot cannot be bounded to {bytes_per_second} bytes per second: the least is {}, the most {}",
    Bandwidth::LEAST,
    Bandwidth::MOST
)]
#[non_exhaustive]
pub struct BandwidthError {
    /// The refused rate.
    pub bytes_per_second: u64,
}

/// How many bytes may pass in a second, each way for itself.
///
/// IP headers count. What is beyond is dropped, which TCP takes as a sign to slow down; a second's worth may come at
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Bandwidth(u64);

impl Bandwidth {
    /// 64 KiB, the largest packet that a guest's network card may be given as one.
    pub const LEAST: u64 = 64 << 10;
    /// 8 GiB, near to the most that the kernel can count.
    pub const MOST: u64 = 8 << 30;

    /// So many bytes per second.
    ///
    /// # Errors
    /// [`BandwidthError`] for fewer than [`Bandwidth::LEAST`] or more than [`Bandwidth::MOST`].
    pub const fn new(bytes_per_second: u64) -> Result<Self, BandwidthError> {
        match bytes_per_second {
            Self::LEAST..=Self::MOST => Ok(Self(bytes_per_second)),
            _ => Err(BandwidthError { bytes_per_second }),
        }
    }

    /// The number of bytes.
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl Slot {
    /// Bounds what passes between the guest and the network, or with `None` lifts the bound; slots begin without.
    ///
    /// What [`Slot::connect`] carries is not counted. Blocks for about a millisecond.
    ///
    /// # Errors
    /// [`NetError::SlotGone`] once the slot is removed; [`NetError::Firewall`], [`NetError::NotPermitted`] or
    /// [`NetError::Step`] with the old bound still in force.
    pub fn set_bandwidth(&self, bound: Option<Bandwidth>) -> Result<(), NetError> {
        let failed = |e| NetError::step(format!("enter the network namespace {}", self.netns().display()), e);
        let namespace = File::open(self.netns()).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => NetError::SlotGone { index: self.index() },
            _ => failed(e),
        })?;
        let change = || policy::bound(bound.map(Bandwidth::bytes_per_second)).commit();
        netns::within(Place::Existing(&namespace), change)
            .map_err(failed)?
            .map_err(|e| NetError::firewall(policy::SLOT_TABLE, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_cannot_work_are_refused() {
        for rate in [0, Bandwidth::LEAST - 1, Bandwidth::MOST + 1, u64::MAX] {
            let error = Bandwidth::new(rate).unwrap_err();
            assert!(error.to_string().contains("the least is 65536"), "{error}");
        }
        assert_eq!(Bandwidth::new(1 << 20).unwrap().bytes_per_second(), 1 << 20);
    }
}
