//! The host agent with guests: what a control plane asks of it, and what becomes of that when the control plane goes away.

use std::time::Duration;

use crate::support::{self, HostState, TestHost, base};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wrenn::{Host, ShutdownPolicy};
use wrenn_agent_api::{AgentClient, Command, ProcessEvent};
use wrenn_base::SandboxId;
use wrenn_host::{
    Branch, CreateSandbox, EventKind, HostClient, HostError, HostSecret, HostService, Listener, Reason,
    SandboxEvents, SandboxRecord, SandboxState, Source, Timeout, WatchEvent,
};

const NAME: &str = "host-1";
const LIMIT: Duration = Duration::from_secs(60);

/// A sandbox that comes up at once: of the template that all tests share.
fn request() -> CreateSandbox {
    CreateSandbox::new(SandboxId::random(), Source::Template("base".parse().unwrap()))
}

async fn start(test: &TestHost) -> (Host, HostService) {
    base::template(test).await;
    let host = test.open().await;
    let service = HostService::new(host.clone(), NAME).await.unwrap();
    (host, service)
}

async fn end(host: Host, service: HostService, policy: ShutdownPolicy) {
    let failures = service.shutdown(policy, LIMIT).await;
    assert!(failures.is_empty(), "{failures:?}");
    host.close().await.unwrap();
}

/// A client over TCP, which shows tokens.
async fn over_tcp(service: &HostService) -> HostClient {
    let secret = HostSecret::new([5; 32]).unwrap();
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    let (service, listener) = (service.clone(), Listener::tcp(socket, secret.clone()));
    tokio::spawn(async move { service.serve(listener, std::future::pending()).await });
    HostClient::builder(&endpoint).unwrap().secret(secret, NAME, "test").build().unwrap()
}

fn agent(client: &HostClient, sandbox: &SandboxRecord) -> AgentClient {
    client.agent(&sandbox.id, sandbox.token.clone().expect("one that runs has a token"))
}

/// What a line of shell prints.
async fn run(agent: &AgentClient, line: &str) -> String {
    let mut events = agent.start(Command::new("/bin/sh").arg("-c").arg(line)).await.unwrap();
    let mut printed = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        match event {
            ProcessEvent::Stdout(bytes) => printed.extend_from_slice(&bytes),
            ProcessEvent::End { exit_code, .. } => assert_eq!(exit_code, 0, "{line}"),
            _ => {}
        }
    }
    String::from_utf8(printed).unwrap().trim_end().to_owned()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, HostError>, reason: Reason) {
    let error = result.unwrap_err();
    assert_eq!(error.reason(), Some(reason), "{error:?}");
}

/// The next thing that happens to a sandbox.
async fn next(events: &mut SandboxEvents, id: &SandboxId) -> EventKind {
    let drawn = async {
        loop {
            match events.next().await.unwrap().expect("the host goes on") {
                WatchEvent::Sandbox(event) if event.sandbox == *id => return event.kind,
                WatchEvent::Sandbox(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(LIMIT, drawn).await.expect("something happens within a minute")
}

/// Waits until a sandbox is in a state.
async fn until(client: &HostClient, id: &SandboxId, state: SandboxState) -> SandboxRecord {
    let reached = async {
        loop {
            match client.get(id).await {
                Ok(sandbox) if sandbox.state == state => return sandbox,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, reached).await.expect("it comes about within a minute")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_leads_a_sandbox_through_its_life() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let before = HostState::of(&test.data());
    let client = over_tcp(&service).await;

    let mut wanted = request();
    wanted.hostname = Some("box".into());
    wanted.env.insert("GREETING".into(), "hello".into());
    wanted.metadata.insert("user".into(), "7".into());
    let sandbox = client.create(wanted.clone()).await.unwrap();
    assert_eq!((&sandbox.id, sandbox.state), (&wanted.id, SandboxState::Running));
    assert_eq!((sandbox.template.as_ref().unwrap().as_str(), sandbox.metadata.len()), ("base", 1));
    assert!(sandbox.created.unwrap().elapsed().unwrap() < LIMIT);
    let guest = agent(&client, &sandbox);
    assert_eq!(run(&guest, "echo $GREETING; cat /proc/sys/kernel/hostname").await, "hello\nbox");

    // The same again is the same sandbox, another of that id is none.
    let again = client.create(wanted.clone()).await.unwrap();
    assert_eq!(again.token.unwrap().reveal(), sandbox.token.as_ref().unwrap().reveal());
    let other = CreateSandbox { hostname: None, ..wanted.clone() };
    refused(client.create(other).await, Reason::AlreadyExists);
    let described = client.describe().await.unwrap();
    assert_eq!((described.active, described.vcpus_committed, described.memory_committed.0), (1, 1, 128));

    run(&guest, "echo kept > /root/file").await;
    assert!(client.stats(&wanted.id).await.unwrap().memory_resident.get() > 1 << 20);
    assert!(client.console(&wanted.id, 100).await.unwrap().len() <= 100);

    let paused = client.pause(&wanted.id).await.unwrap();
    assert_eq!((paused.sandbox.state, paused.generation), (SandboxState::Paused, 1));
    assert!(paused.sandbox.token.is_none() && paused.memory_written.get() > 0);
    assert_eq!(client.pause(&wanted.id).await.unwrap().memory_written.get(), 0, "it was paused already");
    refused(client.tunnel(&wanted.id, 80).await, Reason::NotRunning);
    refused(client.stats(&wanted.id).await, Reason::NotRunning);
    refused(client.snapshot(&wanted.id, &"t".parse().unwrap()).await, Reason::NotRunning);

    let timeout = Timeout::pause(Duration::from_secs(3600));
    let resumed = client.resume(&wanted.id, Some(timeout)).await.unwrap();
    assert_eq!((resumed.state, resumed.timeout), (SandboxState::Running, timeout));
    assert!(resumed.expires.is_some());
    assert_eq!(run(&agent(&client, &resumed), "cat /root/file").await, "kept");
    let changed = client.set_timeout(&wanted.id, Timeout::default()).await.unwrap();
    assert_eq!((changed.timeout, changed.expires), (Timeout::default(), None));

    client.destroy(&wanted.id).await.unwrap();
    refused(client.get(&wanted.id).await, Reason::NoSuchSandbox);
    refused(client.destroy(&wanted.id).await, Reason::NoSuchSandbox);
    before.while_running().assert_same(&HostState::of(&test.data()).while_running());
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_come_of_templates_and_of_running_ones() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = service.client();
    let parent = client.create(request()).await.unwrap();
    run(&agent(&client, &parent), "echo here > /run/mark").await;

    let name = "taken".parse().unwrap();
    let taken = client.snapshot(&parent.id, &name).await.unwrap();
    assert_eq!((&taken.template.name, taken.template.memory.0), (&name, 128));
    refused(client.snapshot(&parent.id, &name).await, Reason::AlreadyExists);
    let names: Vec<_> = client.templates().await.unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["base".parse().unwrap(), name.clone()]);
    let of_template = CreateSandbox { source: Source::Template(name.clone()), ..request() };
    let child = client.create(of_template).await.unwrap();
    assert_eq!(child.template, Some(name.clone()));
    assert_eq!(run(&agent(&client, &child), "cat /run/mark").await, "here");
    client.delete_template(&name).await.unwrap();
    refused(client.delete_template(&name).await, Reason::NoSuchTemplate);

    let mut branch = Branch::new(parent.id.clone(), vec![SandboxId::random(), SandboxId::random()]);
    branch.metadata.insert("attempt".into(), "2".into());
    branch.timeout = Some(Timeout::destroy(Duration::from_secs(3600)));
    let children = client.branch(branch.clone()).await.unwrap();
    for (child, id) in children.iter().zip(&branch.children) {
        assert_eq!((&child.id, child.state), (id, SandboxState::Running));
        assert_eq!((child.metadata["attempt"].as_str(), child.timeout), ("2", branch.timeout.unwrap()));
        assert_eq!(run(&agent(&client, child), "cat /run/mark").await, "here");
    }
    let again = client.branch(branch.clone()).await.unwrap();
    assert_eq!(again.len(), 2, "the same again makes nothing");
    refused(client.branch(Branch { metadata: [].into(), ..branch }).await, Reason::AlreadyExists);
    assert_eq!(client.list().await.unwrap().len(), 4);

    client.drain(true).await.unwrap();
    refused(client.branch(Branch::new(parent.id.clone(), vec![SandboxId::random()])).await, Reason::Draining);
    client.pause(&parent.id).await.unwrap();
    refused(client.resume(&parent.id, None).await, Reason::Draining);
    client.drain(false).await.unwrap();
    for sandbox in client.list().await.unwrap() {
        client.destroy(&sandbox.id).await.unwrap();
    }
    drop(client);
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_carry_bytes_both_ways_to_their_ends() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = over_tcp(&service).await;
    let sandbox = client.create(request()).await.unwrap();
    let guest = agent(&client, &sandbox);
    let server = "import socket\n\
                  server = socket.create_server(('', 8000))\n\
                  open('/run/serves', 'w').close()\n\
                  while True:\n\
                  \x20   with server.accept()[0] as client:\n\
                  \x20       text = b''\n\
                  \x20       while piece := client.recv(65536): text += piece\n\
                  \x20       client.sendall(text[::-1])\n";
    let server = guest.start(Command::new("python3").arg("-c").arg(server)).await.unwrap();
    run(&guest, "until test -e /run/serves; do sleep 0.1; done").await;

    let text: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (mut from, mut to) = tokio::io::split(client.tunnel(&sandbox.id, 8000).await.unwrap());
    let sent = text.clone();
    let send = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        // Only now does the other side answer.
        to.shutdown().await.unwrap();
    });
    let mut answer = Vec::new();
    from.read_to_end(&mut answer).await.unwrap();
    send.await.unwrap();
    answer.reverse();
    assert!(answer == text, "{} bytes came back of {}", answer.len(), text.len());

    refused(client.tunnel(&sandbox.id, 8001).await, Reason::PortClosed);
    // One that is open when the sandbox is paused ends.
    let mut open = client.tunnel(&sandbox.id, 8000).await.unwrap();
    open.write_all(b"x").await.unwrap();
    client.pause(&sandbox.id).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, open.read(&mut [0; 16])).await.expect("it ends");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    drop(server);
    client.destroy(&sandbox.id).await.unwrap();
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_through_a_tunnel_keeps_a_sandbox_from_its_timeout() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = service.client();
    let mut events = client.watch().await.unwrap();
    let sandbox = client.create(request()).await.unwrap();
    let guest = agent(&client, &sandbox);
    client.set_timeout(&sandbox.id, Timeout::pause(Duration::from_secs(6))).await.unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        run(&guest, "true").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(client.get(&sandbox.id).await.unwrap().state, SandboxState::Running);
    loop {
        match next(&mut events, &sandbox.id).await {
            EventKind::Paused => break,
            EventKind::Destroyed => panic!("it was to be paused"),
            _ => {}
        }
    }
    assert_eq!(client.get(&sandbox.id).await.unwrap().state, SandboxState::Paused);
    let resumed = client.resume(&sandbox.id, Some(Timeout::default())).await.unwrap();
    assert_eq!(run(&agent(&client, &resumed), "echo again").await, "again");
    client.destroy(&sandbox.id).await.unwrap();
    drop((client, guest, events));
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_watches_is_told_in_order() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = over_tcp(&service).await;
    let mut events = client.watch().await.unwrap();
    let sandbox = client.create(request()).await.unwrap();
    client.pause(&sandbox.id).await.unwrap();
    client.resume(&sandbox.id, None).await.unwrap();
    client.destroy(&sandbox.id).await.unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&EventKind::Destroyed) {
        told.push(next(&mut events, &sandbox.id).await);
    }
    use EventKind::{Destroyed, Paused, Pausing, Running, Starting, Stopping};
    // At rest it may be told to be what it was by the time somebody looked.
    assert_eq!(told.iter().filter(|kind| **kind == Running).count(), 2, "{told:?}");
    let first = [Starting, Running, Pausing, Stopping, Paused];
    assert_eq!(told[..5], first, "{told:?}");
    assert_eq!(told[5..], [Starting, Running, Stopping, Destroyed], "{told:?}");
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_begun_goes_on_without_its_caller() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = over_tcp(&service).await;
    let mut events = client.watch().await.unwrap();
    let wanted = request();
    let id = wanted.id.clone();

    let (caller, asked) = (client.clone(), wanted.clone());
    let creating = tokio::spawn(async move { caller.create(asked).await });
    assert_eq!(next(&mut events, &id).await, EventKind::Starting);
    creating.abort();
    assert!(creating.await.unwrap_err().is_cancelled(), "it was under way");
    // Asked again, it is the one that is being made.
    let sandbox = client.create(wanted).await.unwrap();
    assert_eq!(run(&agent(&client, &sandbox), "echo here > /root/mark; echo here").await, "here");
    assert_eq!(next(&mut events, &id).await, EventKind::Running);

    let (caller, name) = (client.clone(), id.clone());
    let pausing = tokio::spawn(async move { caller.pause(&name).await });
    assert_eq!(next(&mut events, &id).await, EventKind::Pausing);
    pausing.abort();
    assert!(pausing.await.unwrap_err().is_cancelled(), "it was under way");
    until(&client, &id, SandboxState::Paused).await;

    let (caller, name) = (client.clone(), id.clone());
    let resuming = tokio::spawn(async move { caller.resume(&name, None).await });
    while next(&mut events, &id).await != EventKind::Starting {}
    resuming.abort();
    assert!(resuming.await.unwrap_err().is_cancelled(), "it was under way");
    let resumed = until(&client, &id, SandboxState::Running).await;
    assert_eq!(run(&agent(&client, &resumed), "cat /root/mark").await, "here");
    client.destroy(&id).await.unwrap();
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_ends_by_itself_goes_back_to_its_snapshot_or_is_no_more() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = service.client();
    let mut events = client.watch().await.unwrap();
    let sandbox = client.create(request()).await.unwrap();
    assert!(support::kill_first_monitor(LIMIT));
    let mut told = Vec::new();
    while told.last() != Some(&EventKind::Destroyed) {
        told.push(next(&mut events, &sandbox.id).await);
    }
    assert!(told.iter().any(|kind| matches!(kind, EventKind::GuestEnded { .. })), "{told:?}");
    refused(client.get(&sandbox.id).await, Reason::NoSuchSandbox);

    let sandbox = client.create(request()).await.unwrap();
    run(&agent(&client, &sandbox), "echo kept > /root/file").await;
    client.pause(&sandbox.id).await.unwrap();
    client.resume(&sandbox.id, None).await.unwrap();
    assert!(support::kill_first_monitor(LIMIT));
    until(&client, &sandbox.id, SandboxState::Paused).await;
    let resumed = client.resume(&sandbox.id, None).await.unwrap();
    assert_eq!(run(&agent(&client, &resumed), "cat /root/file").await, "kept");
    client.destroy(&sandbox.id).await.unwrap();
    drop((client, events));
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_host_agent_has_what_an_earlier_one_left() {
    let test = TestHost::new();
    let (host, service) = start(&test).await;
    let client = service.client();
    let (running, paused) = (request(), request());
    client.create(running.clone()).await.unwrap();
    client.create(paused.clone()).await.unwrap();
    client.pause(&paused.id).await.unwrap();
    drop(client);
    end(host, service, ShutdownPolicy::LeaveRunning).await;

    let host = test.open().await;
    let service = HostService::new(host.clone(), NAME).await.unwrap();
    let client = service.client();
    let mut states: Vec<_> =
        client.list().await.unwrap().into_iter().map(|one| (one.id, one.state)).collect();
    let mut expected =
        vec![(running.id.clone(), SandboxState::Running), (paused.id.clone(), SandboxState::Paused)];
    states.sort_by(|a, b| a.0.cmp(&b.0));
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(states, expected);
    // Whoever asks again, as the answer was lost, is told of it.
    let sandbox = client.create(running.clone()).await.unwrap();
    assert_eq!(run(&agent(&client, &sandbox), "echo here").await, "here");
    assert_eq!(client.create(paused.clone()).await.unwrap().state, SandboxState::Paused);
    client.destroy(&running.id).await.unwrap();
    client.destroy(&paused.id).await.unwrap();
    drop(client);
    end(host, service, ShutdownPolicy::DestroyAll).await;
}

/// In a process of its own: is killed while it makes a sandbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn makes_a_sandbox_until_it_is_killed() {
    let Some(test) = support::to_be_killed() else { return };
    let host = test.open().await;
    let service = HostService::new(host, NAME).await.unwrap();
    let client = service.client();
    let mut events = client.watch().await.unwrap();
    let wanted = request();
    let id = wanted.id.clone();
    tokio::spawn(async move { client.create(wanted).await });
    assert_eq!(next(&mut events, &id).await, EventKind::Starting);
    support::ready_to_be_killed(&[&id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_agent_that_is_killed_while_it_makes_a_sandbox_leaves_none_half_made() {
    let test = TestHost::new();
    base::template(&test).await;
    let told = support::run_and_kill("host::makes_a_sandbox_until_it_is_killed", &test);
    let id: SandboxId = told[0].parse().unwrap();

    let host = test.open().await;
    let service = HostService::new(host.clone(), NAME).await.unwrap();
    let client = service.client();
    // It had come to run, or it is gone: whoever asks again has it in either case.
    for sandbox in client.list().await.unwrap() {
        assert_eq!((&sandbox.id, sandbox.state), (&id, SandboxState::Running));
    }
    let sandbox = client.create(CreateSandbox { id: id.clone(), ..request() }).await.unwrap();
    assert_eq!(run(&agent(&client, &sandbox), "echo here").await, "here");
    client.destroy(&id).await.unwrap();
    drop(client);
    end(host, service, ShutdownPolicy::DestroyAll).await;
}
