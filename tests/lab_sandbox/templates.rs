//! Templates and branches: many sandboxes that go on where one was.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{self, HostState, TestHost};
use wrenn::{
    Cause, Error, ErrorKind, Host, MiB, PausedSandbox, Prefetch, RestoreMode, RestoreOptions, Sandbox,
    SnapshotKind, Template, TemplateBuilder,
};

/// Keeps a number in memory only, and writes it to a file whenever it is asked to by a signal.
const COUNTER: &str = r#"
import os, signal, time
count = 0
with open('/run/counter.pid', 'w') as out: out.write(str(os.getpid()))
def tell(*_):
    with open('/run/count.new', 'w') as out: out.write(str(count))
    os.rename('/run/count.new', '/run/count')
signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    count += 1
    time.sleep(0.02)
"#;

async fn boot(host: &Host) -> Sandbox {
    let sandbox = host.sandbox("debian").unwrap().memory(MiB(128)).env("KEPT", "yes").create().await;
    let sandbox = sandbox.expect("the sandbox boots");
    sandbox.files().write("/root/counter.py", COUNTER).await.unwrap();
    drop(sandbox.command("python3").arg("/root/counter.py").spawn().await.unwrap());
    run(&sandbox, "until test -e /run/count; do sleep 0.1; done").await;
    sandbox
}

async fn run(sandbox: &Sandbox, line: &str) -> String {
    let output = sandbox.exec(line).await.expect("the guest answers");
    assert!(output.status.success(), "{line}: {}", output.stderr_text());
    output.stdout_text()
}

async fn count(sandbox: &Sandbox) -> u64 {
    let ask = "rm -f /run/count; kill -USR1 $(cat /run/counter.pid); \
               until test -e /run/count; do sleep 0.05; done; cat /run/count";
    run(sandbox, ask).await.parse().expect("a number")
}

async fn pause(sandbox: Sandbox) -> PausedSandbox {
    sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

async fn resume(paused: PausedSandbox, options: RestoreOptions) -> Sandbox {
    support::resume(paused, options).await
}

#[track_caller]
fn expect<T>(result: Result<T, Error>, kind: ErrorKind, word: &str) {
    let Err(error) = result else { panic!("it must be refused: {word}") };
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(format!("{error:?}").contains(word), "{word:?} is not in: {error:?}");
}

/// Children of one snapshot share no identity and no randomness, and know the time.
async fn check_apart(children: &[Sandbox]) {
    let mut seen = BTreeSet::new();
    for child in children {
        // The first command that is answered already has fresh randomness.
        let random = run(child, "head -c 16 /dev/urandom | od -An -tx1").await;
        let python =
            run(child, "python3 -c 'import random; print(random.random(), random.getrandbits(64))'").await;
        let name = run(child, "cat /proc/sys/kernel/hostname").await;
        assert_eq!(name, child.id().as_str());
        assert_eq!(run(child, "echo $KEPT").await, "yes");
        let guest: u64 = run(child, "date +%s").await.parse().unwrap();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(host.abs_diff(guest) < 60, "the guest's clock says {guest}, the host's {host}");
        for value in [random, python, name] {
            assert!(seen.insert(value.clone()), "{value} was seen in another child");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_makes_sandboxes_of_their_own() {
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    let paused = pause(boot(&host).await).await;
    for bad in ["", "..", "a/b", "a..b", "-a", &"x".repeat(65)] {
        expect(paused.to_template(bad).await, ErrorKind::InvalidInput, "template name");
        expect(host.template(bad), ErrorKind::InvalidInput, "template name");
    }
    let missing = host.template("counter").unwrap();
    expect(missing.spawn(1).await, ErrorKind::NotFound, "no template counter");
    expect(missing.info().await, ErrorKind::NotFound, "counter");
    expect(missing.delete().await, ErrorKind::NotFound, "counter");

    let template = paused.to_template("counter").await.unwrap();
    expect(paused.to_template("counter").await, ErrorKind::Busy, "template counter already");
    assert_eq!(host.templates().await.unwrap(), ["counter".parse().unwrap()]);
    let info = template.info().await.unwrap();
    assert_eq!((info.vcpus, info.memory, info.image.as_str()), (1, MiB(128), "debian"));
    assert!(info.allocated.get() > 1 << 20, "{info:?}");
    expect(template.builder().vcpus(2).spawn(1).await, ErrorKind::InvalidInput, "vcpus is 1 in the snapshot");
    expect(template.builder().memory(MiB(256)).spawn(1).await, ErrorKind::InvalidInput, "memory is 128 MiB");
    expect(template.builder().env("A=B", "c").spawn(1).await, ErrorKind::InvalidInput, "env");
    assert!(template.spawn(0).await.unwrap().is_empty());

    // The template outlives what it was made of, and its children outlive it.
    paused.destroy().await.unwrap();
    let same = template.builder().vcpus(1).memory(MiB(128)).env("OWN", "too");
    let children = spawn(same, 2).await;
    check_apart(&children).await;
    assert_eq!(run(&children[0], "echo $OWN").await, "too");
    run(&children[0], "echo first > /root/who").await;
    run(&children[1], "test ! -e /root/who && echo second > /root/who").await;
    template.delete().await.unwrap();
    assert_eq!(host.templates().await.unwrap(), []);
    assert_eq!(run(&children[0], "cat /root/who").await, "first");

    let [first, second] = <[Sandbox; 2]>::try_from(children).unwrap();
    let counted = count(&first).await;
    let paused = pause(first).await;
    assert_eq!(paused.snapshot().kind, SnapshotKind::Diff);
    second.destroy().await.unwrap();
    let first = resume(paused, RestoreOptions::default()).await;
    assert_eq!(run(&first, "cat /root/who").await, "first");
    assert!(count(&first).await > counted, "it went on counting");
    first.destroy().await.unwrap();
    drop((missing, template));
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_sandbox_is_snapshot_and_branched() {
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    // Booted, then resumed: the two ways in which its memory can be had.
    let parent = boot(&host).await;
    run(&parent, "echo before > /root/note").await;
    let taken = parent.snapshot("at-boot").await.unwrap();
    println!("stopped for {:?}, {} written", taken.stopped, taken.memory_written);
    run(&parent, "echo after > /root/note").await;
    let at_boot = count(&parent).await;
    let child = one(&taken.template).await;
    assert_eq!(run(&child, "cat /root/note").await, "before");
    assert!(count(&child).await > 0);
    child.destroy().await.unwrap();

    let parent = resume(pause(parent).await, RestoreOptions::default()).await;
    assert_eq!(run(&parent, "cat /root/note").await, "after");
    run(&parent, "echo branch > /root/note").await;
    let counted = count(&parent).await;
    assert!(counted > at_boot, "the parent ran on");
    let children = parent.branch(3).await.unwrap();
    assert_eq!(children.len(), 3);
    run(&parent, "echo parent > /root/note").await;
    check_apart(&children).await;
    for child in &children {
        assert_eq!(run(child, "cat /root/note").await, "branch");
        assert!(count(child).await >= counted);
        run(child, "echo child > /root/note").await;
    }
    assert_eq!(run(&parent, "cat /root/note").await, "parent");
    assert!(count(&parent).await > counted, "the parent ran on");
    // A child of a branch has a life of its own, and so has the parent's next pause.
    let mut children = children.into_iter();
    let child = resume(pause(children.next().unwrap()).await, RestoreOptions::default()).await;
    assert_eq!(run(&child, "cat /root/note").await, "child");
    let grandchildren = child.branch(1).await.unwrap();
    assert_eq!(run(&grandchildren[0], "cat /root/note").await, "child");
    let parent = pause(parent).await;
    assert_eq!(parent.snapshot().kind, SnapshotKind::Diff);
    let parent = resume(parent, RestoreOptions::default()).await;
    assert_eq!(run(&parent, "cat /root/note").await, "parent");
    for sandbox in children.chain(grandchildren).chain([child, parent]) {
        sandbox.destroy().await.unwrap();
    }
    taken.template.delete().await.unwrap();
    drop(taken);
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}

async fn one(template: &Template) -> Sandbox {
    spawn(template.builder(), 1).await.remove(0)
}

async fn spawn(builder: TemplateBuilder, count: usize) -> Vec<Sandbox> {
    builder.spawn(count).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_comes_back_in_every_mode() {
    let test = TestHost::new();
    let host = test.open().await;
    let paused = pause(boot(&host).await).await;
    let template = paused.to_template("t").await.unwrap();
    let file = RestoreOptions { mode: RestoreMode::File, ..RestoreOptions::default() };
    let sandbox = resume(paused, file).await;
    assert!(sandbox.fault_stats().await.is_none(), "a file is mapped by the kernel alone");
    count(&sandbox).await;
    // What was mapped from a file is paused as a diff of it, and then is in two layers.
    let paused = pause(sandbox).await;
    assert_eq!(paused.snapshot().kind, SnapshotKind::Diff);
    let refused = paused.resume_with(file).await.unwrap_err();
    assert!(matches!(refused.source.cause(), Cause::NotOneLayer { layers: 2, .. }), "{:?}", refused.source);
    let all = RestoreOptions { prefetch: Prefetch::All, ..RestoreOptions::default() };
    let sandbox = resume(*refused.paused, all).await;
    count(&sandbox).await;
    sandbox.destroy().await.unwrap();

    // The first child teaches what a resume needs; the next one, alone again, is given that ahead.
    let cold = one(&template).await;
    run(&cold, "true").await;
    let cold_stats = cold.fault_stats().await.unwrap();
    assert_eq!(cold_stats.prefetched, 0);
    cold.destroy().await.unwrap();
    let kept = test.data().join("templates/t/snapshots/1/working-set");
    for _ in 0..100 {
        if kept.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let warm = one(&template).await;
    run(&warm, "true").await;
    let warm_stats = warm.fault_stats().await.unwrap();
    println!("cold: {cold_stats:?}\nwarm: {warm_stats:?}");
    assert!(warm_stats.prefetched > 0);
    assert!(warm_stats.faults < cold_stats.faults, "{} and {}", warm_stats.faults, cold_stats.faults);
    // A second child beside it finds in the cache what the first one brought.
    let sibling = one(&template).await;
    run(&sibling, "true").await;
    let shared = sibling.fault_stats().await.unwrap();
    println!("sibling: {shared:?}");
    assert!(shared.faults < cold_stats.faults);
    // A working set that is no such file is not needed, and who shares nothing has it all to fetch.
    std::fs::write(&kept, b"something else").unwrap();
    let alone = RestoreOptions { share_memory: false, ..RestoreOptions::default() };
    let again = spawn(template.builder().restore(alone), 1).await.remove(0);
    run(&again, "true").await;
    assert!(again.fault_stats().await.unwrap().bytes_copied > shared.bytes_copied);
    for sandbox in [warm, sibling, again] {
        sandbox.destroy().await.unwrap();
    }
    drop(template);
    host.close().await.unwrap();
}
