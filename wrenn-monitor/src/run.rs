//! The process: which threads there are, and what the main one does until the machine ends.
//!
//! Start-up is arranged to be quick: the API's socket is bound in its own thread, while this one makes a virtual
//! machine ahead of the first request. System calls are restricted thread by thread, each when it has been set up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use event_manager::{EventOps, EventSet, Events as FdEvents, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::action::{self, ActionReceiver, ActionSender, Fault};
use crate::api::ApiServer;
use crate::args::Args;
use crate::controller::{Controller, Events};
use crate::exit::{ExitReason, ExitSignal};
use crate::logger::{self, LoggerError};
use crate::machine::Host;
use crate::seccomp::{self, SeccompError, Thread};

/// The API thread's stack: requests are small and parsed without deep recursion.
const API_STACK: usize = 256 * 1024;

/// The monitor could not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the log could not be set up")]
    Logger(#[from] LoggerError),
    #[error("the process lacks what it takes to run: file descriptors or threads")]
    Resources(#[from] std::io::Error),
    #[error("the event loop failed")]
    Events(#[from] event_manager::Error),
    #[error("the monitor is not safe to run")]
    Seccomp(#[from] SeccompError),
}

/// Serves the API, and runs a machine, until the machine ends.
pub(crate) fn run(args: Args) -> Result<ExitReason, RunError> {
    logger::start(&args.id, &args.logger)?;
    let exit = ExitSignal::new()?;
    let (sender, receiver) = action::channel()?;
    let socket = args.api_sock.clone();
    start_api(args.api_sock, sender, args.seccomp, exit.clone())?;
    let mut controller = Controller::new(args.id, Host { exit: exit.clone(), seccomp: args.seccomp });
    controller.prepare();
    let mut events = Events::new()?;
    for event in [receiver.event(), exit.event()] {
        events.add_subscriber(Arc::new(Mutex::new(Wake(event.try_clone()?))));
    }
    if args.seccomp {
        seccomp::apply(Thread::Main)?;
    }
    let reason = serve(&mut controller, &receiver, &exit, &mut events)?;
    if !matches!(reason, ExitReason::ApiFailed { .. }) {
        // It is ours. Nothing is lost if it has gone already.
        let _ = std::fs::remove_file(socket);
    }
    Ok(reason)
}

fn serve(
    controller: &mut Controller,
    actions: &ActionReceiver,
    exit: &ExitSignal,
    events: &mut Events,
) -> Result<ExitReason, RunError> {
    loop {
        events.run()?;
        while let Some(pending) = actions.try_next() {
            pending.answer_with(|action| controller.perform(action, events));
        }
        if let Some(reason) = exit.reason() {
            return Ok(reason);
        }
    }
}

fn start_api(
    socket: PathBuf,
    actions: ActionSender,
    restricted: bool,
    exit: ExitSignal,
) -> std::io::Result<()> {
    let body = move || {
        if let Err(error) = serve_api(&socket, &actions, restricted) {
            exit.raise(ExitReason::ApiFailed { what: Fault::from_error(&*error).message });
        }
    };
    thread::Builder::new().name("api".to_owned()).stack_size(API_STACK).spawn(body)?;
    Ok(())
}

fn serve_api(
    socket: &Path,
    actions: &ActionSender,
    restricted: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let server = ApiServer::bind(socket)?;
    if restricted {
        seccomp::apply(Thread::Api)?;
    }
    Ok(server.run(actions)?)
}

/// Wakes the main loop, which then looks by itself what happened.
struct Wake(EventFd);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _events: FdEvents, _ops: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(FdEvents::new(&self.0, EventSet::IN)) {
            log::error!("the main loop cannot be woken: {error}");
        }
    }
}
