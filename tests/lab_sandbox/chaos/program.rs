//! The program that does whatever it likes with its sandboxes, until it dies.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use wrenn::{Error, ErrorKind, Host, Sandbox, SandboxId};
use wrenn_base::fault::{self, Plan};

use super::expected::{Expected, Found, Random, recall, remember};
use super::{from_env, settle};
use crate::support::crash::{read, write};
use crate::support::small::Ballast;
use crate::support::{self, TestHost};

/// What it does at most, if it does not die before.
const STEPS: usize = 12;
const MOST_SANDBOXES: usize = 4;
/// More than an idle guest writes to its disk, and less than its memory takes.
const ROOM: u64 = 2 << 20;

/// A sandbox as the program knows it.
struct Known {
    /// What it was told last.
    value: String,
    /// Its latest snapshot.
    saved: Option<(u64, String)>,
    /// Its handle, while it runs.
    running: Option<Sandbox>,
    /// Its link was taken away: nobody can go on with it but this program.
    cut: bool,
}

impl Known {
    fn at_rest(&self) -> Found {
        match &self.saved {
            Some((generation, value)) => Found::Paused { generation: *generation, value: value.clone() },
            None => Found::Gone,
        }
    }

    /// What it is found as if the program dies while it does nothing.
    fn now(&self) -> Found {
        match self.running.is_some() && !self.cut {
            true => Found::Running { value: self.value.clone() },
            false => self.at_rest(),
        }
    }
}

struct Program {
    test: TestHost,
    host: Host,
    random: Random,
    known: BTreeMap<SandboxId, Known>,
    steps: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn program() {
    let Some(test) = support::to_be_killed() else { return };
    let seed = from_env("WRENN_CHAOS_SEED", 0);
    let mut random = Random(seed);
    let host = test.open().await;
    let mut known = BTreeMap::new();
    for (id, found) in Expected::load(&test.data()).sandboxes {
        known.insert(id.clone(), take_up(&test, &host, id, found.first().unwrap()).await);
    }
    // How it dies: at a point that it passes, at some moment, or by itself.
    match random.below(3) {
        0 => std::mem::forget(fault::arm(Plan::AbortAt(random.below(80)))),
        1 => {
            let after = Duration::from_millis(2000 + random.below(12_000) as u64);
            std::thread::spawn(move || {
                std::thread::sleep(after);
                support::kill(&std::process::id().to_string());
            });
        }
        _ => {}
    }
    let mut program = Program { test, host, random, known, steps: STEPS };
    while program.steps > 0 {
        program.steps -= 1;
        program.step().await;
    }
    println!("the program has done all it wanted to");
    support::kill(&std::process::id().to_string());
}

async fn take_up(test: &TestHost, host: &Host, id: SandboxId, found: &Found) -> Known {
    let mut known = Known { value: String::new(), saved: None, running: None, cut: false };
    if let Ok(paused) = host.paused(&id).await {
        let generation = paused.snapshot().generation;
        known.saved = Some((generation, recall(&test.data(), &id, generation)));
    }
    match found {
        Found::Running { value } => {
            known.running = Some(host.running(&id).await.unwrap());
            known.value = value.clone();
        }
        Found::Paused { value, .. } => known.value = value.clone(),
        Found::Gone => {}
    }
    known
}

impl Program {
    /// Writes down what may be found, where `id` may also be `others`, and `new` more may have been made.
    fn expect(&self, id: Option<&SandboxId>, others: &[Found], new: usize) {
        let mut sandboxes = BTreeMap::new();
        for (each, known) in &self.known {
            let more = others.iter().filter(|_| Some(each) == id).cloned();
            sandboxes.insert(each.clone(), [known.now()].into_iter().chain(more).collect());
        }
        Expected { sandboxes, new }.save(&self.test.data());
    }

    fn pick(&mut self, running: bool) -> Option<SandboxId> {
        let fit = |known: &&Known| known.running.is_some() == running;
        let ids: Vec<_> = self.known.iter().filter(|(_, it)| fit(it)).map(|(id, _)| id.clone()).collect();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len())].clone())
    }

    async fn step(&mut self) {
        let what = self.random.below(20);
        let id = self.pick(what < 14);
        println!("step {what} with {id:?}");
        match (what, id) {
            (0..=2, Some(id)) => self.change(&id).await,
            (3..=5, Some(id)) => self.pause(&id, "plainly").await,
            (6..=7, Some(id)) => self.pause(&id, "with a fault").await,
            (8, Some(id)) => self.pause(&id, "on a full disk").await,
            (9, Some(id)) => self.branch(&id).await,
            (10, Some(id)) => self.kill_monitor(&id).await,
            (11, Some(id)) => self.cut(&id).await,
            (12, Some(_)) => self.kill_pager().await,
            (13, Some(id)) => self.destroy(&id).await,
            (14..=16, Some(id)) => self.resume(&id, false).await,
            (17..=18, Some(id)) => self.resume(&id, true).await,
            _ if self.known.len() < MOST_SANDBOXES => self.spawn().await,
            _ => {}
        }
        self.expect(None, &[], 0);
    }

    async fn spawn(&mut self) {
        self.expect(None, &[], 1);
        let spawned = self.host.template("base").unwrap().spawn(1).await;
        let sandbox = spawned.unwrap().remove(0);
        self.enter(sandbox, "born").await;
    }

    async fn branch(&mut self, id: &SandboxId) {
        if self.known.len() >= MOST_SANDBOXES {
            return;
        }
        self.expect(None, &[], 1);
        let children = self.known[id].running.as_ref().unwrap().branch(1).await;
        let value = self.known[id].value.clone();
        let child = children.unwrap().remove(0);
        assert_eq!(read(&child).await, value);
        self.enter(child, &value).await;
    }

    async fn enter(&mut self, sandbox: Sandbox, value: &str) {
        write(&sandbox, value).await;
        let id = sandbox.id().clone();
        let known = Known { value: value.to_owned(), saved: None, running: Some(sandbox), cut: false };
        self.known.insert(id, known);
    }

    async fn change(&mut self, id: &SandboxId) {
        let value = format!("v{}", self.random.below(1 << 30));
        self.expect(Some(id), &[Found::Running { value: value.clone() }], 0);
        let known = self.known.get_mut(id).unwrap();
        let sandbox = known.running.as_ref().unwrap();
        assert_eq!(read(sandbox).await, known.value);
        write(sandbox, &value).await;
        known.value = value;
    }

    async fn pause(&mut self, id: &SandboxId, how: &str) {
        let known = &self.known[id];
        let generation = known.saved.as_ref().map_or(0, |(generation, _)| *generation) + 1;
        remember(&self.test.data(), id, generation, &known.value);
        let paused = Found::Paused { generation, value: known.value.clone() };
        self.expect(Some(id), &[paused], 0);
        let point = self.random.below(40);
        let sandbox = self.known.get_mut(id).unwrap().running.take().unwrap();
        let result = {
            let _fault = (how == "with a fault").then(|| fault::arm(Plan::FailAt(point)));
            let _ballast = (how == "on a full disk").then(|| self.fill());
            sandbox.pause().await
        };
        let known = self.known.get_mut(id).unwrap();
        match result {
            Ok(paused) => {
                assert_eq!(paused.snapshot().generation, generation);
                known.saved = Some((generation, known.value.clone()));
                known.cut = false;
            }
            Err(error) => {
                assert_ne!(how, "plainly", "{:?}", error.source);
                clean(&error.source);
                println!("the pause failed: {}", error.source);
                known.running = error.sandbox.map(|sandbox| *sandbox);
                let sandbox = known.running.as_ref().expect("its guest runs on");
                assert_eq!(read(sandbox).await, known.value);
            }
        }
    }

    fn fill(&self) -> Ballast {
        Ballast::of(self.test.data().parent().unwrap(), ROOM)
    }

    async fn resume(&mut self, id: &SandboxId, with_a_fault: bool) {
        let known = &self.known[id];
        let (_, value) = known.saved.clone().unwrap();
        self.expect(Some(id), &[Found::Running { value: value.clone() }], 0);
        let point = self.random.below(30);
        let paused = self.host.paused(id).await.unwrap();
        let result = {
            let _fault = with_a_fault.then(|| fault::arm(Plan::FailAt(point)));
            paused.resume().await
        };
        match result {
            Ok(sandbox) => {
                let known = self.known.get_mut(id).unwrap();
                known.value = read(&sandbox).await;
                assert_eq!(known.value, value);
                known.running = Some(sandbox);
            }
            Err(error) => {
                assert!(with_a_fault, "{:?}", error.source);
                clean(&error.source);
                println!("the resume failed: {}", error.source);
                settle(&self.host, id).await;
            }
        }
    }

    async fn destroy(&mut self, id: &SandboxId) {
        let at_rest = self.known[id].at_rest();
        self.expect(Some(id), &[at_rest, Found::Gone], 0);
        let known = self.known.get_mut(id).unwrap();
        known.running.take().unwrap().destroy().await.unwrap();
        self.known.remove(id);
    }

    /// Its monitor is killed: it is where it was paused last.
    async fn kill_monitor(&mut self, id: &SandboxId) {
        let at_rest = self.known[id].at_rest();
        self.expect(Some(id), &[at_rest], 0);
        let sandbox = self.known.get_mut(id).unwrap().running.take().unwrap();
        support::kill(&sandbox.monitor_pid().to_string());
        let error = sandbox.exec("true").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GuestEnded, "{error:?}");
        self.fell(id, sandbox).await;
    }

    /// The link of its slot is taken away. It still does what it is told; only nobody could go on with it.
    async fn cut(&mut self, id: &SandboxId) {
        let at_rest = self.known[id].at_rest();
        self.expect(Some(id), &[at_rest], 0);
        let known = self.known.get_mut(id).unwrap();
        let sandbox = known.running.as_ref().unwrap();
        let route = Command::new("ip").args(["-o", "route", "get", &sandbox.address().to_string()]).output();
        let route = String::from_utf8(route.unwrap().stdout).unwrap();
        if let Some((_, link)) = route.split_once(" dev ").filter(|_| !known.cut) {
            let link = link.split(' ').next().unwrap();
            assert!(Command::new("ip").args(["link", "del", link]).status().unwrap().success());
        }
        known.cut = true;
        assert_eq!(read(sandbox).await, known.value);
    }

    async fn kill_pager(&mut self) {
        // All of them are resumed or made from others, and need it.
        for id in self.known.keys().cloned().collect::<Vec<_>>() {
            self.known.get_mut(&id).unwrap().cut = true;
        }
        let both: BTreeMap<_, _> = self
            .known
            .iter()
            .map(|(id, known)| {
                let running = Found::Running { value: known.value.clone() };
                let runs = known.running.is_some().then_some(running);
                (id.clone(), runs.into_iter().chain([known.at_rest()]).collect())
            })
            .collect();
        Expected { sandboxes: both, new: 0 }.save(&self.test.data());
        for pid in support::pagers(&self.test.data()) {
            support::kill(&pid);
        }
        for id in self.known.keys().cloned().collect::<Vec<_>>() {
            let known = self.known.get_mut(&id).unwrap();
            known.cut = false;
            if let Some(sandbox) = known.running.take() {
                sandbox.exited().await;
                let error = sandbox.exec("true").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::GuestEnded, "{error:?}");
                self.fell(&id, sandbox).await;
            }
        }
    }

    /// A sandbox has lost its machine.
    async fn fell(&mut self, id: &SandboxId, sandbox: Sandbox) {
        drop(sandbox);
        settle(&self.host, id).await;
        let known = self.known.get_mut(id).unwrap();
        known.cut = false;
        match &known.saved {
            Some((_, value)) => known.value = value.clone(),
            None => drop(self.known.remove(id)),
        }
    }
}

/// Whatever fails, it has left nothing.
#[track_caller]
fn clean(error: &Error) {
    assert!(error.cleanup().is_empty(), "{error:?}");
}
