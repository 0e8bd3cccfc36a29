//! `wrenn port-forward`, and what `wrenn run -p` does.

use std::net::SocketAddr;

use clap::Args;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use wrenn_core::SandboxId;
use wrenn_host::HostClient;

use super::{Context, Result};
use crate::args::PortMapping;

/// How many connections one port carries at once; more wait.
const MOST_CONNECTIONS: usize = 256;

#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The sandbox's id, or the beginning of it.
    sandbox: String,
    /// A port of the guest, and where it is to be had; `80` is at any free port.
    #[arg(required = true, value_name = "[[ADDRESS:]PORT:]GUEST-PORT")]
    ports: Vec<PortMapping>,
}

pub(crate) async fn run(context: &Context, args: ForwardArgs) -> Result<()> {
    let sandbox = context.find_running(&args.sandbox).await?;
    let _forwards = Forwards::open(context, &sandbox.id, &args.ports).await?;
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// Ports of a guest that are open on this machine as long as this lives.
pub(crate) struct Forwards {
    _tasks: JoinSet<()>,
}

impl Forwards {
    /// Opens all of them, or none, and says on standard error where they are.
    ///
    /// # Errors
    /// An address is taken, or not this machine's.
    pub(crate) async fn open(context: &Context, id: &SandboxId, ports: &[PortMapping]) -> Result<Self> {
        let mut open = Vec::new();
        for port in ports {
            let listener = TcpListener::bind(port.at).await;
            let listener = listener.map_err(|error| format!("cannot listen at {}: {error}", port.at))?;
            open.push((listener.local_addr()?, listener, port.guest));
        }
        let mut tasks = JoinSet::new();
        for (address, listener, guest) in open {
            eprintln!("wrenn: port {guest} of the guest is at {address}");
            tasks.spawn(carry_all(listener, context.host().clone(), id.clone(), guest));
        }
        Ok(Self { _tasks: tasks })
    }
}

async fn carry_all(listener: TcpListener, host: HostClient, id: SandboxId, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((client, from)) => drop(connections.spawn(carry(host.clone(), id.clone(), port, client, from))),
                Err(error) => tracing::warn!(port, %error, "a connection was not taken"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(host: HostClient, id: SandboxId, port: u16, mut client: TcpStream, from: SocketAddr) {
    // A connection that breaks is the affair of its two ends.
    match host.tunnel(&id, port).await {
        Ok(mut guest) => drop(copy_bidirectional(&mut client, &mut guest).await),
        Err(error) => eprintln!("wrenn: a connection from {from} was closed: {error}"),
    }
}
