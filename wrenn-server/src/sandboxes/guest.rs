//! What goes on inside of running sandboxes: a client of each guest's agent, and what its failures mean.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;
use wrenn_agent_api::{AgentClient, AgentError};

use super::{host_failed, host_of, host_unavailable, running};
use crate::api::{Code, Error};
use crate::app::App;
use crate::db::sandboxes::Sandbox;

/// So many clients are kept; with more, all are forgotten and made again as they are needed.
const MOST: usize = 4096;

/// Clients of agents, by sandbox, each for one version of its row: another token may follow from a change of state, and
/// connections never outlive one.
#[derive(Debug, Default)]
pub(crate) struct Agents(Mutex<HashMap<String, (i64, AgentClient)>>);

impl Agents {
    fn get(&self, row: &Sandbox) -> Option<AgentClient> {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(&row.id).filter(|(version, _)| *version == row.version).map(|(_, client)| client.clone())
    }

    fn put(&self, row: &Sandbox, client: AgentClient) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MOST {
            clients.clear();
        }
        clients.insert(row.id.clone(), (row.version, client));
    }

    /// Forgets a client that met with no answer.
    fn forget(&self, sandbox: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
    }
}

/// A client of the agent of a sandbox of the team, which has to run.
pub(crate) async fn agent(app: &App, team: Uuid, id: &str) -> Result<AgentClient, Error> {
    let row = running(app, team, id).await?;
    agent_of(app, &row).await
}

/// A client of the agent of a running sandbox.
pub(crate) async fn agent_of(app: &App, row: &Sandbox) -> Result<AgentClient, Error> {
    if let Some(client) = app.agents.get(row) {
        return Ok(client);
    }
    let host = host_of(app, &row.host).await?;
    let id = row.sandbox_id()?;
    let record = host.get(&id).await.map_err(|error| host_failed(&error))?;
    let token = record.token.ok_or_else(|| Code::WrongState.because("the sandbox does not run"))?;
    let client = host.agent(&id, token);
    app.agents.put(row, client.clone());
    Ok(client)
}

/// What a client is told of an agent's failure. The texts of the guest are tame already.
pub(crate) fn agent_failed(app: &App, sandbox: &str, error: &AgentError) -> Error {
    match error {
        AgentError::NotFound { message, .. } => Code::NotFound.because(message.clone()),
        AgentError::InvalidArgument { message, .. } | AgentError::UnknownUser { message, .. } => {
            Code::InvalidRequest.because(message.clone())
        }
        AgentError::NoSpace { message, .. } => Code::GuestDiskFull.because(message.clone()),
        AgentError::CommandTimeout => {
            Code::CommandTimeout.because("the command did not end in time and was killed")
        }
        AgentError::Failed { code, message, .. } => {
            let conflict = matches!(code.as_str(), "already_exists" | "failed_precondition");
            if conflict { Code::Conflict } else { Code::GuestFailed }.because(message.clone())
        }
        AgentError::Upload { .. } => Code::InvalidRequest.because("the body ended before its end"),
        error => {
            tracing::warn!(sandbox, %error, "a guest's agent does not answer as it should");
            app.agents.forget(sandbox);
            if error.is_unreachable() {
                return host_unavailable();
            }
            Code::GuestFailed.because("the sandbox's agent did not answer as it should")
        }
    }
}
