//! A sandbox's network as its user sees it: what the guest may reach, and how its ports are reached.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use wrenn_agent_api::{AGENT_PORT, AccessToken, AgentClient};
use wrenn_net::{Bandwidth, EgressPolicy, NetError, Slot};

use crate::error::{Cause, Error};
use crate::machine::Live;
use crate::ports::GuestStream;
use crate::restore::Contact;
use crate::sandbox::Sandbox;
use crate::step::blocking;

/// How long one connection to a guest's port may take to be made.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long one attempt to reach the agent may take.
const AGENT_DIAL_LIMIT: Duration = Duration::from_secs(5);
/// How many connections a published port carries at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 1024;
/// How long the listener of a published port rests where it cannot accept, as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What passes between a guest and the network. It travels with the sandbox's snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkPolicy {
    pub(crate) egress: EgressPolicy,
    /// Absent: as much as the network carries.
    pub(crate) bandwidth: Option<Bandwidth>,
}

/// A running machine's slot, and the policy that is in force there.
pub(crate) struct Network {
    pub(crate) slot: Slot,
    policy: Mutex<NetworkPolicy>,
}

impl Network {
    /// `policy` is in force on `slot`.
    pub(crate) fn new(slot: Slot, policy: NetworkPolicy) -> Self {
        Self { slot, policy: Mutex::new(policy) }
    }

    /// A client of the guest's agent, whose connections begin inside the sandbox's network namespace.
    pub(crate) fn agent(&self, contact: Contact, token: &AccessToken) -> AgentClient {
        let slot = Arc::new(self.slot.clone());
        let dial = move || {
            let (slot, contact) = (Arc::clone(&slot), contact.clone());
            Box::pin(async move {
                let connected = slot.connect(AGENT_PORT, AGENT_DIAL_LIMIT).await;
                if connected.is_ok() {
                    contact.made();
                }
                connected
            }) as _
        };
        AgentClient::new(Arc::new(dial), token.clone())
    }

    /// The policy in force now.
    pub(crate) fn policy(&self) -> NetworkPolicy {
        self.lock().clone()
    }

    /// Blocks. Locked throughout, so that what is kept is what was set last.
    fn set_egress(&self, egress: EgressPolicy) -> Result<(), NetError> {
        let mut policy = self.lock();
        self.slot.set_egress(&egress)?;
        policy.egress = egress;
        Ok(())
    }

    /// As [`set_egress`](Self::set_egress).
    fn set_bandwidth(&self, bandwidth: Option<Bandwidth>) -> Result<(), NetError> {
        let mut policy = self.lock();
        self.slot.set_bandwidth(bandwidth)?;
        policy.bandwidth = bandwidth;
        Ok(())
    }

    /// Each of its values is set whole, so a panic elsewhere leaves it sound.
    fn lock(&self) -> MutexGuard<'_, NetworkPolicy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    pub(crate) async fn connect(&self, port: u16) -> Result<TcpStream, Cause> {
        let failed = |source| Cause::Port { id: self.identity.id.clone(), port, source };
        self.while_alive(async { self.network.slot.connect(port, DIAL_LIMIT).await.map_err(failed) }).await
    }
}

/// Refuses ports that no service of the guest's can be reached at.
pub(crate) fn check_port(port: u16) -> Result<(), Cause> {
    let why = match port {
        0 => "0 is no port that a service can listen on",
        AGENT_PORT => "it is the agent's own, by which the sandbox is controlled",
        _ => return Ok(()),
    };
    Err(Cause::InvalidSpec { what: "port", why: format!("{port}: {why}") })
}

impl Sandbox {
    /// Connects to a TCP port of the guest.
    ///
    /// What listens only on the guest's loopback interface is not reached.
    ///
    /// # Errors
    /// Port 0 and the agent's own are refused ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)); nobody
    /// listens there, or does not answer within ten seconds ([`Cause::Port`]); the guest ended.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn connect(&self, port: u16) -> Result<TcpStream, Error> {
        check_port(port)?;
        Ok(self.live().connect(port).await?)
    }

    /// Publishes a TCP port of the guest at an address of the host, and port 0 takes a free one.
    ///
    /// ```no_run
    /// # async fn example(sandbox: wrenn_core::Sandbox) -> Result<(), wrenn_core::Error> {
    /// let published = sandbox.publish(8000, ([127, 0, 0, 1], 0).into()).await?;
    /// println!("http://{}", published.address());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Port 0 of the guest and the agent's own are refused
    /// ([`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)); `address` cannot be listened at. Nothing is
    /// published then. A connection that nobody in the guest takes is closed.
    ///
    /// # Cancel safety
    /// A dropped future publishes nothing.
    pub async fn publish(&self, port: u16, address: SocketAddr) -> Result<PublishedPort, Error> {
        check_port(port)?;
        let failed = |source| Cause::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let live = Arc::clone(self.live());
        let task = self.runtime().spawn(async move {
            tokio::select! {
                () = forward(&live, port, listener) => {}
                _ = live.monitor.exited() => {}
            }
        });
        Ok(PublishedPort { address, port, task })
    }

    /// Changes what the guest may reach, at once and for the connections that it has as well; see
    /// [`SandboxBuilder::egress`](crate::SandboxBuilder::egress).
    ///
    /// # Errors
    /// The firewall could not be changed: the old policy is in force. Or the new one, which is in force then, could not be
    /// written down for a process that may find the sandbox running later.
    ///
    /// # Cancel safety
    /// A dropped future leaves one of the two in force, whole.
    pub async fn set_egress(&self, policy: EgressPolicy) -> Result<(), Error> {
        self.change_network(|network| network.set_egress(policy)).await
    }

    /// Bounds what passes between the guest and the network, each way for itself, or lifts the bound.
    ///
    /// # Errors
    /// The firewall could not be changed: the old bound is in force.
    ///
    /// # Cancel safety
    /// A dropped future leaves one of the two in force.
    pub async fn set_bandwidth(&self, bound: Option<Bandwidth>) -> Result<(), Error> {
        self.change_network(move |network| network.set_bandwidth(bound)).await
    }

    async fn change_network(
        &self,
        change: impl FnOnce(&Network) -> Result<(), NetError> + Send + 'static,
    ) -> Result<(), Error> {
        let live = Arc::clone(self.live());
        let changed = blocking(move || {
            change(&live.network)?;
            live.journal.refresh(&live)
        });
        Ok(changed.await?)
    }

    /// What the guest may reach.
    pub fn egress(&self) -> EgressPolicy {
        self.live().network.policy().egress
    }

    /// The address that the host knows the guest by, until it is paused or ends.
    pub fn address(&self) -> Ipv4Addr {
        self.live().network.slot.address()
    }
}

/// A port of a guest that is reached at an address of the host, for as long as this is kept and the sandbox runs.
///
/// Dropping it closes the address and the connections that it carries.
#[derive(Debug)]
pub struct PublishedPort {
    address: SocketAddr,
    port: u16,
    task: JoinHandle<()>,
}

impl PublishedPort {
    /// Where on the host it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The guest's port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PublishedPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries connections to the guest; ends, and they with it, when it is dropped.
async fn forward(live: &Arc<Live>, port: u16, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < MOST_CONNECTIONS;
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((client, _)) => {
                    let live = Arc::clone(live);
                    connections.spawn(async move { carry(&live, port, client).await });
                }
                Err(e) => {
                    tracing::warn!(port, error = %e, "a published port cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(live: &Live, port: u16, mut client: TcpStream) {
    match live.connect(port).await {
        // How a connection ends is between the two that have it.
        Ok(guest) => {
            let mut guest = GuestStream::new(guest, live.clock.clone());
            drop(copy_bidirectional(&mut client, &mut guest).await);
        }
        Err(e) => tracing::debug!(port, error = %e, "nobody in the guest took a connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_port_is_never_reached() {
        for port in [0, AGENT_PORT] {
            assert!(matches!(check_port(port), Err(Cause::InvalidSpec { what: "port", .. })), "{port}");
        }
        for port in [1, 80, AGENT_PORT - 1, u16::MAX] {
            check_port(port).unwrap();
        }
    }

    #[test]
    fn policies_are_kept_as_they_are() {
        let bandwidth = Some(Bandwidth::new(1 << 20).unwrap());
        let policy = NetworkPolicy { egress: EgressPolicy::deny_all(), bandwidth };
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<NetworkPolicy>(&text).unwrap(), policy, "{text}");
        assert!(serde_json::from_str::<NetworkPolicy>(r#"{"egress":{},"bandwidth":null}"#).is_err());
    }
}
