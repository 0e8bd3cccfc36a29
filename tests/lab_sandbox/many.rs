//! Many sandboxes at once, paused and running, with several users at work on them: nothing leaks and nothing is stuck.
//!
//! A short form of what `WRENN_MANY=100,16,500` does: so many paused, so many running, so many operations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::support::crash::{pause, read, resume, write};
use crate::support::{HostState, TestHost};
use futures_util::StreamExt as _;
use futures_util::stream;
use wrenn::{Host, MiB, Sandbox, SandboxId, SandboxState};

/// How many users are at work.
const USERS: usize = 4;

/// How many are paused, how many run, and how much is done with them.
fn size() -> [usize; 3] {
    let text = std::env::var("WRENN_MANY").unwrap_or_else(|_| "6,2,24".to_owned());
    let numbers: Vec<usize> = text.split(',').map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("WRENN_MANY is three numbers with commas")
}

/// A sandbox that one user has at a time.
enum Mine {
    Paused(SandboxId, String),
    Running(Box<Sandbox>, String),
}

struct World {
    host: Host,
    free: Mutex<Vec<Mine>>,
    /// How many may run.
    most: usize,
    running: Mutex<usize>,
}

impl World {
    /// One of those that nobody has, whichever the number comes to.
    fn take(&self, number: u64) -> Mine {
        let mut free = self.free.lock().unwrap();
        let index = number as usize % free.len();
        free.swap_remove(index)
    }

    fn give_back(&self, mine: Mine) {
        self.free.lock().unwrap().push(mine);
    }

    /// Whether one more may run; if so it counts.
    fn one_more_runs(&self) -> bool {
        let mut running = self.running.lock().unwrap();
        let may = *running < self.most;
        *running += usize::from(may);
        may
    }

    async fn operate(&self, number: u64) {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        match (mixed % 8, self.take(mixed >> 8)) {
            (0, mine) => {
                let listed = self.host.list().await.unwrap();
                assert!(listed.iter().any(|info| info.id == *id(&mine)));
                self.give_back(mine);
            }
            (1, mine) => {
                let state = self.host.get(id(&mine)).await.unwrap().state;
                let expected = match mine {
                    Mine::Paused(..) => SandboxState::Paused,
                    Mine::Running(..) => SandboxState::Running,
                };
                assert_eq!(state, expected);
                self.give_back(mine);
            }
            (_, Mine::Paused(id, value)) if self.one_more_runs() => {
                let sandbox = resume(self.host.paused(&id).await.unwrap()).await;
                assert_eq!(read(&sandbox).await, value);
                self.give_back(Mine::Running(Box::new(sandbox), value));
            }
            (2..=4, Mine::Running(sandbox, value)) => {
                assert_eq!(read(&sandbox).await, value);
                let value = format!("v{number}");
                write(&sandbox, &value).await;
                self.give_back(Mine::Running(sandbox, value));
            }
            (_, Mine::Running(sandbox, value)) => {
                let id = pause(*sandbox).await.id().clone();
                *self.running.lock().unwrap() -= 1;
                self.give_back(Mine::Paused(id, value));
            }
            (_, paused) => self.give_back(paused),
        }
    }
}

fn id(mine: &Mine) -> &SandboxId {
    match mine {
        Mine::Paused(id, _) => id,
        Mine::Running(sandbox, _) => sandbox.id(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sandboxes_are_worked_on_side_by_side() {
    let [paused, running, operations] = size();
    let test = TestHost::new();
    test.open().await.close().await.unwrap();
    let before = HostState::of(&test.data());
    let host = test.open().await;
    let parent = host.sandbox("debian").unwrap().memory(MiB(80)).create().await.unwrap();
    write(&parent, "born").await;
    let template = pause(parent).await.to_template("small").await.unwrap();
    let made = stream::iter(0..paused + running)
        .map(|number| {
            let template = &template;
            async move {
                let sandbox = template.spawn(1).await.unwrap().remove(0);
                match number < paused {
                    true => Mine::Paused(pause(sandbox).await.id().clone(), "born".to_owned()),
                    false => Mine::Running(Box::new(sandbox), "born".to_owned()),
                }
            }
        })
        .buffer_unordered(USERS)
        .collect::<Vec<_>>()
        .await;
    println!("{paused} are paused, {running} run");
    let world =
        World { host: host.clone(), free: Mutex::new(made), most: running, running: Mutex::new(running) };
    let world = Arc::new(world);
    stream::iter(0..operations as u64)
        .for_each_concurrent(USERS, |number| {
            let world = Arc::clone(&world);
            async move { world.operate(number).await }
        })
        .await;

    // Every one of them is where it was left, and holds what it was told last.
    let states: BTreeMap<_, _> =
        host.list().await.unwrap().into_iter().map(|info| (info.id, info.state)).collect();
    // The parent is paused, too.
    assert_eq!(states.len(), paused + running + 1);
    let runs = states.values().filter(|state| **state == SandboxState::Running).count();
    assert_eq!(runs, *world.running.lock().unwrap(), "{states:?}");
    assert_eq!(states.len() - runs, states.values().filter(|it| **it == SandboxState::Paused).count());
    println!("{operations} operations: {runs} run at the end");
    let mut world = Arc::into_inner(world).expect("nobody is at work any more");
    for mine in world.free.get_mut().unwrap().drain(..) {
        if let Mine::Running(sandbox, value) = mine {
            assert_eq!(read(&sandbox).await, value);
            sandbox.destroy().await.unwrap();
        }
    }
    drop(world);
    for id in host.stored().await.unwrap() {
        host.paused(&id).await.unwrap().destroy().await.unwrap();
    }
    template.delete().await.unwrap();
    drop(template);
    host.close().await.unwrap();
    before.assert_same(&HostState::of(&test.data()));
}
