//! Root disks that are copies. Needs no privileges.

mod common;

use wrenn_base::HostId;
use wrenn_storage::{BackendChoice, BackendKind, RootDisks};

#[test]
fn the_copy_backend_does_what_a_backend_does() {
    common::conformance(BackendChoice::Copy);
}

#[test]
fn probing_answers_with_a_backend_or_with_what_is_missing() {
    let host = HostId::random();
    let copy = RootDisks::probe(&host, BackendChoice::Copy).unwrap();
    assert_eq!(copy.backend(), BackendKind::Copy);
    let auto = RootDisks::probe(&host, BackendChoice::Auto).unwrap();
    match RootDisks::probe(&host, BackendChoice::DeviceMapper) {
        Ok(disks) => {
            assert_eq!(disks.backend(), BackendKind::DeviceMapper);
            assert_eq!(auto.backend(), BackendKind::DeviceMapper);
        }
        Err(error) => {
            assert_eq!(auto.backend(), BackendKind::Copy);
            let message = error.to_string();
            assert!(message.contains("device-mapper") && message.contains("modprobe"), "{message}");
            assert!(std::error::Error::source(&error).is_some());
        }
    }
}
