//! Deaths of the process at every point that pause, resume, template and compaction pass: what is then on disk is the old
//! snapshot or the new one, whole, and the next host to open leaves nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::crash::{pause, points, read, resume, start, write};
use crate::support::{self, TestHost};
use wrenn::{CompactionPolicy, Host, PausedSandbox, ShutdownPolicy};
use wrenn_base::fault;
use wrenn_storage::{LayerDir, MemoryImage};

/// Every snapshot that the host knows can be read to its last byte.
async fn check_whole(test: &TestHost, host: &Host) -> usize {
    let stored = host.stored().await.unwrap();
    for id in &stored {
        let paused = host.paused(id).await.unwrap();
        let dir = test.data().join("sandboxes").join(id.as_str());
        let snapshot = dir.join("snapshots").join(paused.snapshot().generation.to_string());
        let layers = LayerDir::open(dir.join("layers")).unwrap();
        let image = MemoryImage::open(&snapshot.join("memory.manifest"), &layers).unwrap();
        image.verify().unwrap();
        assert_eq!(layers.list().unwrap(), image.layers_in_use(), "layers that nobody needs");
    }
    for name in host.templates().await.unwrap() {
        host.template(name.as_str()).unwrap().info().await.unwrap();
    }
    stored.len()
}

/// Runs `inner` in a process that dies at each of `points`, and looks at what is left; then once to its end.
async fn die_at(inner: &str, test: &TestHost, points: &[usize], states: &[&str]) {
    let (mut seen, mut went_on) = (BTreeSet::new(), 0);
    for (number, point) in points.iter().chain(&[usize::MAX]).enumerate() {
        let died = support::run_until_death(inner, test, *point);
        // A monitor that outlives the process is gone on with: every other time it does not.
        if number % 2 == 0 {
            support::kill_monitors_of(&test.data());
        }
        let host = test.open().await;
        assert_eq!(check_whole(test, &host).await, 1, "after a death at point {point}");
        let id = host.stored().await.unwrap().remove(0);
        let running = host.running(&id).await.ok();
        if let Some(sandbox) = &running {
            let state = read(sandbox).await;
            assert!(states.contains(&state.as_str()), "{state:?} goes on after a death at point {point}");
            went_on += 1;
        } else if number % 6 == 5 || !died {
            // Every byte was just read. That a guest goes on from them is seen at some of the points, as it takes long.
            let sandbox = resume(host.paused(&id).await.unwrap()).await;
            let state = read(&sandbox).await;
            assert!(states.contains(&state.as_str()), "{state:?} after a death at point {point}");
            seen.insert(state);
            drop(sandbox);
        }
        for name in host.templates().await.unwrap() {
            host.template(name.as_str()).unwrap().delete().await.unwrap();
        }
        // The next process begins with it.
        assert!(host.shutdown(ShutdownPolicy::LeaveRunning, Duration::from_secs(60)).await.is_empty());
        drop(running);
        host.close().await.unwrap();
    }
    println!("{inner} died at {} points; seen: {seen:?}; {went_on} went on", points.len());
}

/// A host with one sandbox, paused in the state "old".
async fn one_paused(test: &TestHost, host: &Host) -> PausedSandbox {
    let sandbox = start(test, host).await;
    write(&sandbox, "old").await;
    pause(sandbox).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_pause_leaves_the_old_snapshot_or_the_new_one() {
    let test = TestHost::new();
    let host = test.open().await;
    let sandbox = resume(one_paused(&test, &host).await).await;
    let (paused, points) = points("a pause", pause(sandbox)).await;
    drop(paused);
    host.close().await.unwrap();
    die_at("deaths::inner::pause", &test, &points, &["old", "new"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_resume_or_template_leaves_the_snapshot() {
    let test = TestHost::new();
    let host = test.open().await;
    let paused = one_paused(&test, &host).await;
    let (template, made) = points("a template", paused.to_template("t")).await;
    template.unwrap().delete().await.unwrap();
    let (sandbox, resumed) = points("a resume", resume(paused)).await;
    drop(sandbox);
    host.close().await.unwrap();
    die_at("deaths::inner::resume", &test, &resumed, &["old"]).await;
    die_at("deaths::inner::template", &test, &made, &["old"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_compaction_leaves_the_old_chain_or_the_new_one() {
    let test = TestHost::new();
    let host = test.open().await;
    // One more layer, so that there is something to merge.
    let sandbox = resume(one_paused(&test, &host).await).await;
    write(&sandbox, "new").await;
    let id = pause(sandbox).await.id().clone();
    host.close().await.unwrap();
    // Merging can be watched only once: it is watched on a copy.
    let copy = test.copy();
    let host = copy.builder().compaction(MERGE_ALL).open().await.unwrap();
    let paused = host.paused(&id).await.unwrap();
    let merged = async {
        paused.compact();
        paused.compacted().await;
    };
    let ((), points) = points("a compaction", merged).await;
    assert_eq!(host.paused(&id).await.unwrap().memory_usage().await.unwrap().layers, 1);
    drop(paused);
    host.close().await.unwrap();
    die_at("deaths::inner::compaction", &test, &points, &["new"]).await;
}

/// Merges whatever has more than one layer.
const MERGE_ALL: CompactionPolicy = CompactionPolicy { max_layers: 1, bytes_per_second: 1 << 30 };

/// What runs in a process of its own, which dies at a point.
mod inner {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pause() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let sandbox = match host.running(&id).await {
            Ok(sandbox) => sandbox,
            Err(_) => super::resume(host.paused(&id).await.unwrap()).await,
        };
        write(&sandbox, "new").await;
        fault::arm_from_env();
        drop(super::pause(sandbox).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn resume() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        drop(super::resume(paused).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn template() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.open().await;
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        paused.to_template("t").await.unwrap().delete().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn compaction() {
        let Some(test) = support::to_be_killed() else { return };
        let host = test.builder().compaction(MERGE_ALL).open().await.unwrap();
        let id = host.stored().await.unwrap().remove(0);
        let paused = host.paused(&id).await.unwrap();
        fault::arm_from_env();
        paused.compact();
        paused.compacted().await;
    }
}
