//! A full file system under a host: what needs room fails and says so, and no state is lost or left half made.

use crate::support::crash::{LATER, pause, read, resume, start, write};
use crate::support::small::Small;
use crate::support::{HostState, TestHost};
use wrenn::{Error, MiB};

/// How many bytes are left for an operation, from nothing to more than it needs.
const ROOM: [u64; 4] = [0, 1 << 20, 8 << 20, 80 << 20];

#[track_caller]
fn assert_full(error: &Error) {
    assert!(error.cleanup().is_empty(), "{error:?}");
    // The monitor, too, says it in words.
    assert!(format!("{error:?}").contains("No space left on device"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_what_needs_room_and_loses_nothing() {
    let small = Small::new(MiB(512));
    let test = TestHost::below(small.dir());
    let host = test.open().await;
    let mut sandbox = resume(pause(start(&test, &host).await).await).await;
    let mut failures = [0; 3];
    for (round, room) in ROOM.into_iter().enumerate() {
        let state = format!("snapshot{round}");
        write(&sandbox, &state).await;
        let before = HostState::of(&test.data()).while_running();
        let ballast = small.fill(room);
        match sandbox.snapshot("t").await {
            Ok(taken) => taken.template.delete().await.unwrap(),
            Err(e) => {
                assert_full(&e);
                failures[0] += 1;
            }
        }
        drop(ballast);
        before.assert_same_but_for(&HostState::of(&test.data()).while_running(), LATER);
        assert_eq!(read(&sandbox).await, state);

        let state = format!("pause{round}");
        write(&sandbox, &state).await;
        let before = HostState::of(&test.data()).while_running();
        let ballast = small.fill(room);
        let paused = match sandbox.pause().await {
            Ok(paused) => {
                drop(ballast);
                paused
            }
            Err(e) => {
                assert_full(&e.source);
                failures[1] += 1;
                drop(ballast);
                before.assert_same_but_for(&HostState::of(&test.data()).while_running(), LATER);
                let sandbox = *e.sandbox.expect("the sandbox runs on");
                assert_eq!(read(&sandbox).await, state);
                pause(sandbox).await
            }
        };

        let before = HostState::of(&test.data());
        let ballast = small.fill(room);
        sandbox = match paused.resume().await {
            Ok(sandbox) => {
                drop(ballast);
                sandbox
            }
            Err(e) => {
                assert_full(&e.source);
                failures[2] += 1;
                drop(ballast);
                before.assert_same_but_for(&HostState::of(&test.data()), LATER);
                resume(*e.paused).await
            }
        };
        assert_eq!(read(&sandbox).await, state);
    }
    println!("of {} snapshots, pauses and resumes each failed: {failures:?}", ROOM.len());
    assert!(failures[..2].iter().all(|failed| (1..ROOM.len()).contains(failed)), "{failures:?}");
    sandbox.destroy().await.unwrap();
    host.close().await.unwrap();
}
