//! State in memory and in files over many pauses: every byte is compared.

use crate::support::{self, TestHost};
use wrenn::{Host, MiB, PausedSandbox, RestoreOptions, Sandbox, SnapshotKind};

/// Holds 8 MiB in memory, changes a part of it (fills, zeroes, rewrites) when told to on a FIFO, and then writes
/// the whole of it to a file, and answers with its digest on another FIFO. Its random numbers are from a fixed seed.
const KEEPER: &str = r#"
import hashlib, os, random
PAGE, PAGES = 4096, 2048
rng = random.Random(20)
memory = bytearray(PAGE * PAGES)
for page in range(0, PAGES, 2):
    memory[page * PAGE:(page + 1) * PAGE] = rng.randbytes(PAGE)
def change():
    for _ in range(400):
        page = rng.randrange(PAGES)
        kind = rng.randrange(3)
        new = rng.randbytes(PAGE) if kind == 0 else bytes(PAGE) if kind == 1 else rng.randbytes(1) * PAGE
        memory[page * PAGE:(page + 1) * PAGE] = new
def tell(name):
    with open('/root/state.new', 'wb') as out: out.write(memory)
    os.rename('/root/state.new', '/root/state')
    with open('/run/answer', 'w') as out: out.write(name + ' ' + hashlib.sha256(memory).hexdigest())
while True:
    with open('/run/ask') as ask: what, name = ask.read().split()
    if what == 'change': change()
    tell(name)
"#;

/// Tells the keeper `what` to do and returns the digest of its memory, once the file has the same.
async fn tell(sandbox: &Sandbox, what: &str, name: &str) -> String {
    let line = format!(
        "echo {what} {name} > /run/ask; set -- $(cat /run/answer) $(sha256sum < /root/state); echo $1 $2 $3"
    );
    let answer = sandbox.exec(line).await.expect("the guest answers").stdout_text();
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!(words.len(), 3, "{answer:?}");
    assert_eq!(words[0], name, "an answer to another question");
    assert_eq!(words[1], words[2], "the file differs from the memory it was written from");
    words[1].to_owned()
}

async fn pause(sandbox: Sandbox) -> PausedSandbox {
    sandbox.pause().await.unwrap_or_else(|e| panic!("{:?}", e.source))
}

async fn five_rounds(host: &Host, vcpus: u8) {
    let sandbox = host
        .sandbox("debian")
        .unwrap()
        .vcpus(vcpus)
        .memory(MiB(192))
        .create()
        .await
        .expect("the sandbox boots");
    sandbox.files().write("/root/keeper.py", KEEPER).await.unwrap();
    assert!(sandbox.exec("mkfifo /run/ask /run/answer").await.unwrap().status.success());
    drop(sandbox.command("python3").arg("/root/keeper.py").spawn().await.unwrap());

    let mut paused = None;
    let mut running = Some(sandbox);
    for round in 0..5 {
        let sandbox = running.take().expect("it runs at the top of each round");
        let before = tell(&sandbox, "change", &format!("before{round}")).await;
        sandbox
            .exec("echo $(cat /root/rounds) more > /root/rounds.new; mv /root/rounds.new /root/rounds")
            .await
            .unwrap();
        let stopped = pause(sandbox).await;
        let expected = if round == 0 { SnapshotKind::Full } else { SnapshotKind::Diff };
        assert_eq!((stopped.snapshot().kind, stopped.snapshot().generation), (expected, round + 1));
        let sandbox = support::resume(stopped, RestoreOptions::default()).await;
        let after = tell(&sandbox, "keep", &format!("after{round}")).await;
        assert_eq!(after, before, "memory changed over pause {round} with {vcpus} vCPUs");
        let rounds = sandbox.exec("cat /root/rounds").await.unwrap().stdout_text();
        assert_eq!(rounds.matches("more").count() as u64, round + 1);
        running = Some(sandbox);
    }
    // The last one through the disk alone: dropped, found again, resumed.
    let sandbox = running.take().expect("it still runs");
    let before = tell(&sandbox, "change", "last").await;
    let id = sandbox.id().clone();
    paused.replace(pause(sandbox).await);
    drop(paused);
    assert_eq!(host.stored().await.unwrap(), std::slice::from_ref(&id));
    let sandbox = support::resume(host.paused(&id).await.unwrap(), RestoreOptions::default()).await;
    assert_eq!(tell(&sandbox, "keep", "found").await, before);
    sandbox.destroy().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_survives_five_rounds_with_one_vcpu() {
    let test = TestHost::new();
    let host = test.open().await;
    five_rounds(&host, 1).await;
    host.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_survives_five_rounds_with_two_vcpus() {
    let test = TestHost::new();
    let host = test.open().await;
    five_rounds(&host, 2).await;
    host.close().await.unwrap();
}
