//! The reaper: every orphan goes, no status is lost, no status goes to the wrong one.

mod support;

use support::{TestAgent, children_of, eventually, finish, is_there, sh, shell};
use wrenn_agent_api::Command;

#[tokio::test]
async fn orphans_are_adopted_and_reaped() {
    let (agent, client) = TestAgent::claimed().await;
    // A daemon's double fork: the grandchild's parent is gone, it has a session of its own.
    let script = "setsid sh -c 'sleep 0.3' </dev/null >/dev/null 2>&1 & echo $!";
    let outcome = sh(&client, script).await;
    let orphan: u32 = String::from_utf8(outcome.stdout).unwrap().trim().parse().unwrap();
    eventually("the orphan is reaped", || !is_there(orphan)).await;
    eventually("no zombie stays", || children_of(agent.pid()).is_empty()).await;
}

#[tokio::test]
async fn no_status_is_lost_in_a_storm_of_orphans() {
    let (agent, client) = TestAgent::claimed().await;
    // Children that are dead before anybody can have noted them, among orphans that die all the time.
    let mut commands = tokio::task::JoinSet::new();
    for n in 0..300i32 {
        let client = client.clone();
        commands.spawn(async move {
            let command = match n % 3 {
                0 => shell(&format!("for i in 1 2 3 4 5; do (sleep 0.0$i &) ; done; exit {}", n % 200)),
                1 => shell(&format!("exit {}", n % 200)),
                _ => shell("kill -9 $$"),
            };
            let outcome = finish(client.start(command).await.unwrap()).await;
            let expected = if n % 3 == 2 { (-1, Some(9)) } else { (n % 200, None) };
            assert_eq!((outcome.exit_code, outcome.signal), expected, "command {n}");
        });
        if commands.len() >= 50 {
            commands.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = commands.join_next().await {
        done.unwrap();
    }
    eventually("no zombie stays", || children_of(agent.pid()).is_empty()).await;
}

#[tokio::test]
async fn fifty_at_once_are_fifty_different_ones() {
    let (_agent, client) = TestAgent::claimed().await;
    let streams = futures_util::future::join_all((0..50).map(|n| {
        let client = client.clone();
        async move {
            client.start(Command::new("sh").args(["-c", "cat; exit 5"]).stdin(true).tag(n.to_string())).await
        }
    }))
    .await;
    let streams: Vec<_> = streams.into_iter().map(Result::unwrap).collect();
    assert_eq!(client.list().await.unwrap().len(), 50);
    let feeding = futures_util::future::join_all(streams.iter().enumerate().map(|(n, stream)| {
        let (client, pid) = (client.clone(), stream.pid());
        async move {
            client.send_input(pid, format!("I am {n}")).await.unwrap();
            client.close_stdin(pid).await.unwrap();
        }
    }));
    feeding.await;
    for (n, stream) in streams.into_iter().enumerate() {
        let outcome = finish(stream).await;
        assert_eq!((outcome.stdout, outcome.exit_code), (format!("I am {n}").into_bytes(), 5));
    }
}

#[tokio::test]
async fn failed_starts_leave_no_zombie_and_stop_no_reaping() {
    let (agent, client) = TestAgent::claimed().await;
    for _ in 0..20 {
        client.start(Command::new("/nowhere/program")).await.unwrap_err();
    }
    assert_eq!(sh(&client, "(sleep 0.01 &); exit 9").await.exit_code, 9);
    eventually("no zombie stays", || children_of(agent.pid()).is_empty()).await;
}
