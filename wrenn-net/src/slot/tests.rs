//! Creation made to fail after each of its steps: whatever was done by then is taken back.

use std::sync::Mutex;
use std::time::Duration;

use wrenn_base::{Reaper, SandboxId, UndoList};

use super::SlotSpec;
use crate::allow::AllowRule;
use crate::egress::EgressPolicy;
use crate::error::NetError;
use crate::host::{HostNet, HostNetSpec};
use crate::netns::{self, Place};

#[path = "../../tests/common/mod.rs"]
mod common;

const LIMIT: Duration = Duration::from_secs(30);

/// How many checkpoints a creation passes before it fails, and where it did.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Plan>);

#[derive(Debug, Default)]
struct Plan {
    fail_after: Option<usize>,
    passed: usize,
    failed_at: Option<&'static str>,
}

impl Faults {
    pub(crate) fn pass(&self, done: &'static str) -> Result<(), NetError> {
        let mut plan = self.0.lock().unwrap();
        if plan.fail_after == Some(plan.passed) {
            plan.failed_at = Some(done);
            return Err(NetError::step(format!("go on after: {done}"), std::io::Error::other("injected")));
        }
        plan.passed += 1;
        Ok(())
    }

    fn plan(&self, fail_after: usize) {
        *self.0.lock().unwrap() = Plan { fail_after: Some(fail_after), ..Plan::default() };
    }

    fn failed_at(&self) -> Option<&'static str> {
        self.0.lock().unwrap().failed_at
    }
}

/// Fails a creation after each step in turn, without and with a policy of its own, and lets `take_back` undo it.
fn fail_everywhere(take_back: impl Fn(UndoList, &Reaper) + Send + Sync) {
    let rule = AllowRule::to("10.0.0.0/8".parse().unwrap()).ports(1..=99);
    let name = AllowRule::to_name("example.com".parse().unwrap());
    for policy in [
        EgressPolicy::default(),
        EgressPolicy::internet().allow(rule).unwrap(),
        EgressPolicy::deny_all().allow(name).unwrap(),
    ] {
        fail_with(&policy, &take_back);
    }
}

fn fail_with(policy: &EgressPolicy, take_back: &(impl Fn(UndoList, &Reaper) + Send + Sync)) {
    common::on_scratch_host(|host| {
        let mut host_undo = host.undo();
        let net = HostNet::open(HostNetSpec::new(host.id.clone(), host.netns_dir()), &mut host_undo).unwrap();
        // The resolver stays, once there is one.
        let mut undo = host.undo();
        net.slot_with_egress(SlotSpec { sandbox: SandboxId::random(), index: 6 }, policy, &mut undo).unwrap();
        take_back(undo, &host.reaper);
        let before = host.state();
        let mut steps = Vec::new();
        loop {
            net.shared.faults.plan(steps.len());
            let mut undo = host.undo();
            let spec = SlotSpec { sandbox: SandboxId::random(), index: 5 };
            let made = net.slot_with_egress(spec, policy, &mut undo);
            let failed_at = net.shared.faults.failed_at();
            assert_eq!(made.is_err(), failed_at.is_some(), "{made:?}");
            take_back(undo, &host.reaper);
            assert_eq!(host.state(), before, "after {failed_at:?}");
            match failed_at {
                Some(step) => steps.push(step),
                None => break,
            }
        }
        for step in [
            "leftovers cleaned",
            "egress set",
            "namespace kept",
            "TAP made",
            "veth pair made",
            "address claimed",
            "questions heard",
        ] {
            assert!(steps.contains(&step), "never failed after {step}: {steps:?}");
        }
        assert!(host_undo.run(LIMIT).is_empty());
    });
}

#[test]
fn a_failure_after_any_step_is_taken_back() {
    fail_everywhere(|undo, _| {
        let failures = undo.run(LIMIT);
        assert!(failures.is_empty(), "{failures:#?}");
    });
}

#[test]
fn cancellation_after_any_step_is_taken_back() {
    fail_everywhere(|undo, reaper| {
        drop(undo);
        assert!(reaper.wait_idle(LIMIT));
    });
}

#[test]
fn a_panic_in_the_namespace_is_an_error() {
    common::on_scratch_host(|_| {
        let ours = common::run("ip", &["-o", "link"]);
        let error = netns::within(Place::Fresh, || panic!("a bug")).map(|(): ()| ()).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert_eq!(common::run("ip", &["-o", "link"]), ours, "the thread that called has moved");
    });
}
