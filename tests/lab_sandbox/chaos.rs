//! Chaos: a program does whatever it likes with its sandboxes while monitors and the pager are killed, links vanish, system
//! calls fail and the disk is full, until the program itself dies. After each such round another process opens the host, and
//! everything is where it must be: what ran runs, what was paused is paused and whole, and nothing else is on the machine.
//!
//! Everything that is done follows from a seed, but for the moments at which things happen. `WRENN_CHAOS_ROUNDS` makes it
//! longer, `WRENN_CHAOS_SEED` another one.

mod expected;
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::support::crash::{places, read, write};
use crate::support::small::Small;
use crate::support::{self, HostState, TestHost, base};
use expected::{Expected, Found, Random};
use wrenn::{ErrorKind, Host, MiB, RestoreOptions, Sandbox, SandboxId, SandboxState, ShutdownPolicy};
use wrenn_storage::{LayerDir, MemoryImage};

const ROUNDS: u64 = 4;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Sees to what a round left: every sandbox is as it may be. Returns what each is, and those that run.
async fn look(
    test: &TestHost,
    host: &Host,
    random: &mut Random,
) -> (BTreeMap<SandboxId, Found>, Vec<Sandbox>) {
    let expected = Expected::load(&test.data());
    let (mut found, mut running) = (BTreeMap::new(), Vec::new());
    for info in host.list().await.unwrap() {
        let is = match info.state {
            SandboxState::Running => {
                let sandbox = host.running(&info.id).await.unwrap();
                let value = running_value(&sandbox, expected.sandboxes.get(&info.id)).await;
                running.push(sandbox);
                Found::Running { value }
            }
            SandboxState::Paused => look_at_paused(test, host, &info.id, random, &expected).await,
            other => panic!("{} is {other:?} although nobody is at work", info.id),
        };
        if let Some(allowed) = expected.sandboxes.get(&info.id) {
            assert!(allowed.contains(&is), "{} is {is:?}, not one of {allowed:?}", info.id);
        }
        found.insert(info.id, is);
    }
    for (id, allowed) in &expected.sandboxes {
        assert!(
            found.contains_key(id) || allowed.contains(&Found::Gone),
            "{id} is gone, not one of {allowed:?}"
        );
    }
    let new = found.keys().filter(|id| !expected.sandboxes.contains_key(id)).count();
    assert!(new <= expected.new, "{new} sandboxes that nobody made: {found:?}");
    (found, running)
}

/// A running sandbox's value. Where the program died as it wrote one, that is finished.
async fn running_value(sandbox: &Sandbox, allowed: Option<&BTreeSet<Found>>) -> String {
    let Some(allowed) = allowed else {
        // Just born, with or without its first value.
        write(sandbox, "born").await;
        return "born".to_owned();
    };
    let [memory, disk] = places(sandbox).await;
    if memory != disk {
        let both = [&memory, &disk].map(|value| Found::Running { value: value.clone() });
        assert!(
            both.iter().all(|is| allowed.contains(is)),
            "{both:?} is half of something else than {allowed:?}"
        );
        write(sandbox, &memory).await;
    }
    memory
}

/// A paused sandbox's every byte is read; now and then it is resumed as well.
async fn look_at_paused(
    test: &TestHost,
    host: &Host,
    id: &SandboxId,
    random: &mut Random,
    expected: &Expected,
) -> Found {
    let paused = host.paused(id).await.unwrap();
    let generation = paused.snapshot().generation;
    let dir = test.data().join("sandboxes").join(id.as_str());
    let layers = LayerDir::open(dir.join("layers")).unwrap();
    let manifest = dir.join(format!("snapshots/{generation}/memory.manifest"));
    MemoryImage::open(&manifest, &layers).unwrap().verify().unwrap();
    let of_generation =
        |found: &&Found| matches!(found, Found::Paused { generation: it, .. } if *it == generation);
    let known = expected.sandboxes.get(id).and_then(|allowed| allowed.iter().find(of_generation));
    match known {
        Some(known) if random.below(3) > 0 => known.clone(),
        _ => {
            let sandbox = support::resume(paused, RestoreOptions::default()).await;
            let value = read(&sandbox).await;
            drop(sandbox);
            settle(host, id).await;
            Found::Paused { generation, value }
        }
    }
}

/// Waits until a sandbox whose handle was dropped is at rest, or gone.
async fn settle(host: &Host, id: &SandboxId) {
    loop {
        match host.get(id).await {
            Ok(info) if info.state != SandboxState::Paused => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Ok(_) => return,
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            Err(e) => panic!("{e:?}"),
        }
    }
}

/// What is on the machine is what the running sandboxes stand on, to the last link.
fn look_at_machine(test: &TestHost, running: usize) {
    let state = HostState::of(&test.data());
    let of_each = ["device-mapper", "link", "mount"];
    let counts: Vec<_> = of_each.iter().map(|kind| (*kind, state.count(kind))).collect();
    assert!(
        counts.iter().all(|(_, count)| *count == running),
        "{running} run, and there are {counts:?}: {state:?}"
    );
    let journals = std::fs::read_dir(test.data().join("sandboxes")).unwrap().flatten();
    let journals = journals.filter(|dir| dir.path().join("running.json").exists()).count();
    assert_eq!(journals, running, "what is written of running sandboxes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_everything_is_where_it_must_be() {
    let small = Small::new(MiB(1024));
    let test = TestHost::below(small.dir());
    test.open().await.close().await.unwrap();
    expected::begin(&test.data());
    let before = HostState::of(&test.data());
    base::template(&test).await;
    let (seed, rounds) = (from_env("WRENN_CHAOS_SEED", 1), from_env("WRENN_CHAOS_ROUNDS", ROUNDS));
    let mut random = Random(seed);
    for round in 0..rounds {
        let status = support::again("chaos::program::program", &test)
            .env("WRENN_CHAOS_SEED", (seed * 1000 + round).to_string())
            .status()
            .unwrap();
        println!("round {round}: the program ended by {status}");
        assert!(status.success() || matches!(status.signal(), Some(6 | 9)), "the program failed: {status}");
        let host = test.open().await;
        let (found, running) = look(&test, &host, &mut random).await;
        println!("round {round}: {found:?}");
        let exactly = |is: &Found| BTreeSet::from([is.clone()]);
        let sandboxes = found.iter().map(|(id, is)| (id.clone(), exactly(is))).collect();
        Expected { sandboxes, new: 0 }.save(&test.data());
        let count = running.len();
        look_at_machine(&test, count);
        // The next program goes on with them, or nobody does.
        let policy = match round + 1 == rounds {
            true => ShutdownPolicy::DestroyAll,
            false => ShutdownPolicy::LeaveRunning,
        };
        assert!(host.shutdown(policy, Duration::from_secs(60)).await.is_empty());
        drop(running);
        if round + 1 == rounds {
            for id in host.stored().await.unwrap() {
                host.paused(&id).await.unwrap().destroy().await.unwrap();
            }
        }
        host.close().await.unwrap();
        look_at_machine(&test, if round + 1 == rounds { 0 } else { count });
    }
    let host = test.open().await;
    host.template("base").unwrap().delete().await.unwrap();
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}
