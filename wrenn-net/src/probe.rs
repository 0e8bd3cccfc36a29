//! Whether this machine can have slots at all.

use crate::address::AddressPool;
use crate::error::NetError;
use crate::netns::{self, Place};
use crate::policy;

const TABLE: &str = "wrenn_probe";

/// Makes the host's firewall rules in a network namespace of their own, which ends with them.
///
/// Blocks for some 10 milliseconds. The kernel may load modules for it; nothing else of the machine changes.
///
/// # Errors
/// [`NetError::NotPermitted`], [`NetError::Step`] where there can be no namespace, [`NetError::Firewall`] where the
/// kernel refuses the rules.
pub fn probe() -> Result<(), NetError> {
    let rules = || {
        policy::host_table(TABLE, "wprobev", AddressPool::default(), &[], &[])
            .commit()
            .map_err(|e| NetError::firewall(TABLE, e))
    };
    netns::within(Place::Fresh, rules).map_err(|e| NetError::step("make a network namespace", e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_for_slots_works_for_the_probe() {
        match probe() {
            Ok(()) => {}
            Err(NetError::NotPermitted { .. }) => println!("SKIP: root is needed"),
            Err(error) => panic!("{error:?}"),
        }
    }
}
