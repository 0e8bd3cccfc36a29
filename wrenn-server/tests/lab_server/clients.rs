//! What clients of one server do at a time, each with an account and a sandbox of its own: a server, its database and its host
//! take longer to start than most of this takes.

use std::pin::Pin;
use std::rc::Rc;

use tokio::sync::Semaphore;

use crate::support::{Api, Server};
use crate::{faults, lives, previews, streams};

/// So many sandboxes the lab's processors are enough for.
const AT_A_TIME: usize = 3;

type Part = (&'static str, fn(Api) -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! part {
    ($module:ident::$name:ident) => {
        (stringify!($name), |api| Box::pin($module::$name(api)))
    };
}

fn parts() -> Vec<Part> {
    vec![
        part!(lives::a_sandbox_goes_through_its_whole_life),
        part!(lives::commands_take_bytes_and_give_bytes),
        part!(lives::files_are_moved_in_and_out_and_about),
        part!(lives::one_key_makes_one_sandbox),
        part!(lives::an_idle_sandbox_is_paused_and_the_api_says_why),
        part!(previews::requests_reach_what_listens_at_a_port),
        part!(streams::a_command_is_followed_and_fed),
        part!(streams::a_terminal_has_a_size_that_changes),
        part!(streams::a_command_whose_client_leaves_runs_on_and_is_attached_to),
        part!(streams::what_is_wrong_is_said_before_the_end),
        part!(faults::a_pause_that_began_comes_to_its_end_without_its_client),
        part!(faults::a_guest_that_ends_by_itself_is_over),
    ]
}

#[tokio::test]
async fn many_clients_do_all_that_the_api_offers() {
    // Closures that are asynchronous and borrow make futures of one thread.
    tokio::task::LocalSet::new().run_until(all_parts()).await;
}

async fn all_parts() {
    let server = Server::start().await;
    let room = Rc::new(Semaphore::new(AT_A_TIME));
    let mut running = Vec::new();
    for (name, part) in parts() {
        let (server, room) = (server.clone(), room.clone());
        let task = tokio::task::spawn_local(async move {
            let _permit = room.acquire().await.unwrap();
            println!("{name} …");
            part(Api::of(&server, &name.replace('_', "-")).await).await;
            println!("{name}: ok");
        });
        running.push((name, task));
    }
    let mut failed = Vec::new();
    for (name, task) in running {
        if task.await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}; their panics are above");
}
