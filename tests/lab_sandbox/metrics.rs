//! What a host tells of its work: metrics through the facade, and what a sandbox uses.

use std::collections::BTreeMap;

use crate::support::{self, TestHost, base};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use wrenn::{RestoreOptions, metrics};

/// Each metric with its labels in order, and what has been added to it since the last look; of a histogram how many values
/// came.
fn seen(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let taken = snapshotter.snapshot().into_vec().into_iter();
    let named = taken.map(|(key, _, _, value)| {
        let mut labels: Vec<_> =
            key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(level) => level.0,
            DebugValue::Histogram(values) => values.len() as f64,
        };
        (format!("{} {}", key.key().name(), labels.join(" ")), value)
    });
    named.collect()
}

/// Alone in its binary: a process has one recorder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandboxs_life_is_measured() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().expect("no other recorder is there");
    metrics::describe();
    let test = TestHost::new();
    let host = test.builder().ready_slots(1).open().await.unwrap();
    let sandbox = base::sandbox(&test, &host).await;

    let before = sandbox.usage().await.unwrap();
    assert!(before.memory_resident.get() > 1 << 20, "{before:?}");
    let work =
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 3000000 /dev/urandom > /root/more; sync";
    sandbox.exec(work).await.unwrap();
    // To whom does not matter: it is counted as it leaves.
    sandbox.exec("bash -c 'head -c 1200 /dev/zero > /dev/udp/203.0.113.9/9'").await.unwrap();
    let after = sandbox.usage().await.unwrap();
    assert!(after.cpu > before.cpu, "{before:?} {after:?}");
    assert!(after.disk_allocated.get() >= before.disk_allocated.get() + 3_000_000, "{before:?} {after:?}");
    assert!(after.network_sent.get() >= before.network_sent.get() + 1200, "{before:?} {after:?}");

    let running = seen(&snapshotter);
    assert_eq!(running["wrenn_sandboxes state=running"], 1.0);
    assert!(running.contains_key("wrenn_operation_seconds operation=spawn outcome=ok"), "{running:#?}");
    let paused = sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source));
    let sandbox = support::resume(paused, RestoreOptions::default()).await;
    assert!(support::kill(&sandbox.monitor_pid().to_string()));
    sandbox.exited().await;
    assert!(sandbox.usage().await.is_err(), "of a guest that has ended");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();

    let seen = seen(&snapshotter);
    for operation in ["pause", "resume", "destroy"] {
        let name = format!("wrenn_operation_seconds operation={operation} outcome=ok");
        assert!(seen.contains_key(&name), "{name}: {seen:#?}");
    }
    for phase in ["disk", "network", "monitor", "load", "agent"] {
        let name = format!("wrenn_phase_seconds operation=resume outcome=ok phase={phase}");
        assert!(seen.contains_key(&name), "{name}: {seen:#?}");
    }
    for state in ["resuming", "running", "pausing", "stopping"] {
        let name = format!("wrenn_sandboxes state={state}");
        assert_eq!(running.get(&name).unwrap_or(&0.0) + seen[&name], 0.0, "{name}: {seen:#?}");
    }
    assert!(seen["wrenn_faults_total "] > 0.0 && seen["wrenn_fault_pages_total "] > 0.0, "{seen:#?}");
    assert!(seen["wrenn_memory_written_bytes_total kind=diff"] > 0.0, "{seen:#?}");
}
