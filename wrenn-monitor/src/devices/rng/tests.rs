use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use wrenn_vmm::api::{RateLimiter, TokenBucket};

use super::*;
use crate::devices::virtio::chaos::chaos;
use crate::devices::virtio::testing::{BUFFERS, Driver, into, out};

fn driver() -> Driver {
    Driver::new(Rng::new(&EntropyDevice::default()))
}

#[test]
fn the_guest_gets_random_bytes_and_no_more_than_it_has_room_for() {
    let mut driver = driver();
    driver.put(BUFFERS, &[0xaa; 96]);
    let head = driver.post(0, &[into(BUFFERS, 40), into(BUFFERS + 48, 40)]);
    driver.notify(0);
    assert_eq!(driver.answers(0), [(head.into(), 80)]);
    assert!(driver.interrupted());
    let bytes = driver.get(BUFFERS, 96);
    assert_eq!((&bytes[40..48], &bytes[88..]), (&[0xaa; 8][..], &[0xaa; 8][..]));
    assert_ne!(bytes[..40], bytes[48..88], "40 random bytes are not the same twice");
    assert_ne!(bytes[..40], [0xaa; 40]);
}

#[test]
fn one_request_gets_a_bounded_amount() {
    let mut driver = driver();
    let large = driver.post(0, &[into(BUFFERS, 0x8_0000)]);
    let none = driver.post(0, &[into(BUFFERS, 0)]);
    let nothing_to_write = driver.post(0, &[out(BUFFERS, 64)]);
    driver.notify(0);
    let expected = [(large.into(), MAX_BYTES as u32), (none.into(), 0), (nothing_to_write.into(), 0)];
    assert_eq!(driver.answers(0), expected);
}

#[test]
fn a_broken_chain_stops_the_device() {
    let mut driver = driver();
    driver.post(0, &[into(0x30_0000, 64)]);
    driver.notify(0);
    assert!(driver.stopped());
    assert_eq!(driver.answers(0), []);
}

#[test]
fn a_limited_guest_waits_for_its_next_bytes() {
    let bucket = TokenBucket { size: 100, refill_time: 1000, one_time_burst: None };
    let limit = RateLimiter { bandwidth: Some(bucket), ops: None };
    let mut driver = Driver::new(Rng::new(&EntropyDevice { rate_limiter: Some(limit) }));
    let heads = [150, 10, 10].map(|len| driver.post(0, &[into(BUFFERS, len)]));
    driver.notify(0);
    // The first on credit, of which half a second's worth is owed.
    assert_eq!(driver.answers(0), [(heads[0].into(), 150)]);
    let begun = std::time::Instant::now();
    driver.turn_for(std::time::Duration::from_secs(20), |driver| driver.answered(0) == 3);
    assert!(begun.elapsed() >= std::time::Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(driver.answers(0), [(heads[1].into(), 10), (heads[2].into(), 10)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_the_entropy_device(chaos in chaos()) {
        let mut driver = driver();
        driver.suffer(&chaos, 1);
        let head = driver.post(0, &[into(BUFFERS, 8)]);
        driver.notify(0);
        prop_assert_eq!(driver.answers(0), [(head.into(), 8)]);
    }
}
