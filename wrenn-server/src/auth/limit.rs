//! How often one may try to log in.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

/// Counts the attempts of addresses, and at accounts.
///
/// Both, as one address may try many accounts and many addresses one account. What they hold is bounded by
/// [`Limits::forget_old`], which is to be called now and then.
pub(crate) struct Limits {
    addresses: DefaultKeyedRateLimiter<IpAddr>,
    accounts: DefaultKeyedRateLimiter<[u8; 32]>,
    clock: DefaultClock,
}

impl Limits {
    pub(crate) fn new(per_minute: u32) -> Self {
        let quota = Quota::per_minute(NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN));
        Self {
            addresses: DefaultKeyedRateLimiter::dashmap(quota),
            accounts: DefaultKeyedRateLimiter::dashmap(quota),
            clock: DefaultClock::default(),
        }
    }

    /// Counts an attempt from an address; where there were too many, the seconds until the next is let through.
    pub(crate) fn check_address(&self, address: IpAddr) -> Result<(), u64> {
        self.addresses.check_key(&whose(address)).map_err(|until| self.seconds(&until))
    }

    /// Counts an attempt at an account, whether or not there is such a one.
    pub(crate) fn check_account(&self, email: &str) -> Result<(), u64> {
        self.accounts.check_key(&super::digest(email)).map_err(|until| self.seconds(&until))
    }

    /// Forgets those whose attempts are long over.
    pub(crate) fn forget_old(&self) {
        self.addresses.retain_recent();
        self.accounts.retain_recent();
    }

    fn seconds(&self, until: &governor::NotUntil<governor::clock::QuantaInstant>) -> u64 {
        until.wait_time_from(self.clock.now()).as_secs() + 1
    }
}

/// Whoever has one IPv6 address has the 64 bits below it too.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_runs_out_of_attempts_and_others_do_not() {
        let limits = Limits::new(3);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        assert!((0..3).all(|_| limits.check_address(one).is_ok()));
        assert!((1..=21).contains(&limits.check_address(one).unwrap_err()));
        assert!(limits.check_address("192.0.2.2".parse().unwrap()).is_ok());
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        let address = |text: &str| whose(text.parse().unwrap());
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:0:0:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }
}
