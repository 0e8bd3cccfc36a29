//! The calls that have one answer.

use bytes::Bytes;
use wrenn_base::{SandboxId, TemplateName};

use super::{HostClient, HostError};
use crate::pb;
use crate::types::{
    Branch, CreateSandbox, Description, Malformed, Paused, SandboxRecord, Stats, TakenSnapshot,
    TemplateRecord, Timeout,
};

/// How many sandboxes one page of a list has at the most.
const PAGE: u32 = 500;

impl HostClient {
    /// What the host is and has.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn describe(&self) -> Result<Description, HostError> {
        const CALL: &str = "describing a host";
        let answer = self
            .unary(CALL, async |host| Ok(host.describe(pb::DescribeRequest::default()).await?.into_owned()))
            .await?;
        read(CALL, Description::of_wire(answer))
    }

    /// Makes a sandbox, and returns once its agent answers. Where the same was asked for before, and is there, that is it;
    /// where that is still under way, this waits for it.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::Reason::AlreadyExists) if the id is taken by another sandbox;
    /// [`NoSuchImage`](crate::Reason::NoSuchImage), [`NoSuchTemplate`](crate::Reason::NoSuchTemplate),
    /// [`InvalidArgument`](crate::Reason::InvalidArgument), [`Draining`](crate::Reason::Draining). Nothing is left then.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the host: the sandbox comes to be.
    pub async fn create(&self, request: CreateSandbox) -> Result<SandboxRecord, HostError> {
        const CALL: &str = "creating a sandbox";
        let request = request.into_wire();
        let answer =
            self.unary(CALL, async |host| Ok(host.create(request).await?.into_owned().sandbox)).await?;
        sandbox(CALL, answer.into_option())
    }

    /// A sandbox as it is.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox).
    pub async fn get(&self, id: &SandboxId) -> Result<SandboxRecord, HostError> {
        const CALL: &str = "looking at a sandbox";
        let request = pb::GetRequest { id: id.as_str().into() };
        let answer = self.unary(CALL, async |host| Ok(host.get(request).await?.into_owned().sandbox)).await?;
        sandbox(CALL, answer.into_option())
    }

    /// All sandboxes of the host, running and paused, in the order of their ids. What comes or goes meanwhile may or may
    /// not be among them.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn list(&self) -> Result<Vec<SandboxRecord>, HostError> {
        const CALL: &str = "listing sandboxes";
        let mut all: Vec<SandboxRecord> = Vec::new();
        loop {
            let after = all.last().map(|last| last.id.as_str().to_owned()).unwrap_or_default();
            let request = pb::ListRequest { after: after.clone(), limit: PAGE };
            let page = self.unary(CALL, async |host| Ok(host.list(request).await?.into_owned())).await?;
            for one in page.sandboxes {
                all.push(read(CALL, SandboxRecord::of_wire(one))?);
            }
            if !page.more {
                return Ok(all);
            }
            // A host that goes in circles would keep us for ever.
            if all.last().is_none_or(|last| last.id.as_str() <= after.as_str()) {
                return Err(HostError::protocol(CALL, "a page does not come after the one before"));
            }
        }
    }

    /// Pauses a running sandbox to disk. One that is paused already stays so, which is no error.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox); [`GuestEnded`](crate::Reason::GuestEnded); or it could not be
    /// written, and runs on.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the pause.
    pub async fn pause(&self, id: &SandboxId) -> Result<Paused, HostError> {
        const CALL: &str = "pausing a sandbox";
        let request = pb::PauseRequest { id: id.as_str().into() };
        let answer = self.unary(CALL, async |host| Ok(host.pause(request).await?.into_owned())).await?;
        Ok(Paused {
            sandbox: sandbox(CALL, answer.sandbox.into_option())?,
            generation: answer.generation,
            memory_written: wrenn_base::Bytes(answer.memory_written_bytes),
        })
    }

    /// Resumes a paused sandbox, and returns once its agent answers. One that runs already runs on, which is no error.
    ///
    /// With a `timeout` it has that from now on, in either case.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox), [`Draining`](crate::Reason::Draining); or it could not be resumed,
    /// and stays paused.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the host.
    pub async fn resume(&self, id: &SandboxId, timeout: Option<Timeout>) -> Result<SandboxRecord, HostError> {
        const CALL: &str = "resuming a sandbox";
        let timeout = timeout.map(Timeout::to_wire).into();
        let request = pb::ResumeRequest { id: id.as_str().into(), timeout };
        let answer =
            self.unary(CALL, async |host| Ok(host.resume(request).await?.into_owned().sandbox)).await?;
        sandbox(CALL, answer.into_option())
    }

    /// Makes sandboxes that go on where a running one is, which runs on. All or none, in the order of their ids in the
    /// request.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox), [`NotRunning`](crate::Reason::NotRunning);
    /// [`AlreadyExists`](crate::Reason::AlreadyExists) if a child's id is taken; [`Draining`](crate::Reason::Draining).
    ///
    /// # Cancel safety
    /// A dropped future does not stop the host.
    pub async fn branch(&self, request: Branch) -> Result<Vec<SandboxRecord>, HostError> {
        const CALL: &str = "branching a sandbox";
        let request = request.into_wire();
        let answer =
            self.unary(CALL, async |host| Ok(host.branch(request).await?.into_owned().sandboxes)).await?;
        answer.into_iter().map(|child| read(CALL, SandboxRecord::of_wire(child))).collect()
    }

    /// Removes a sandbox, running or paused, with all that is kept of it.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox); [`Cleanup`](crate::Reason::Cleanup) if it is gone, but left something
    /// on the host.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the removal.
    pub async fn destroy(&self, id: &SandboxId) -> Result<(), HostError> {
        let request = pb::DestroyRequest { id: id.as_str().into() };
        self.unary("destroying a sandbox", async |host| host.destroy(request).await.map(drop)).await
    }

    /// Sets how long a running sandbox may be idle, from now on, and what becomes of it then.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox), [`NotRunning`](crate::Reason::NotRunning).
    pub async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<SandboxRecord, HostError> {
        const CALL: &str = "setting a timeout";
        let request = pb::SetTimeoutRequest { id: id.as_str().into(), timeout: timeout.to_wire().into() };
        let answer =
            self.unary(CALL, async |host| Ok(host.set_timeout(request).await?.into_owned().sandbox)).await?;
        sandbox(CALL, answer.into_option())
    }

    /// Makes a template of a running sandbox, which runs on.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox), [`NotRunning`](crate::Reason::NotRunning);
    /// [`AlreadyExists`](crate::Reason::AlreadyExists) if there is a template of that name.
    ///
    /// # Cancel safety
    /// A dropped future does not stop it: the template is made.
    pub async fn snapshot(&self, id: &SandboxId, name: &TemplateName) -> Result<TakenSnapshot, HostError> {
        const CALL: &str = "taking a snapshot";
        let request = pb::SnapshotRequest { id: id.as_str().into(), name: name.as_str().into() };
        let answer = self.unary(CALL, async |host| Ok(host.snapshot(request).await?.into_owned())).await?;
        let template = answer
            .template
            .into_option()
            .ok_or_else(|| HostError::protocol(CALL, "there is no template in it"))?;
        Ok(TakenSnapshot {
            template: read(CALL, TemplateRecord::of_wire(template))?,
            stopped: std::time::Duration::from_micros(answer.stopped_us),
            memory_written: wrenn_base::Bytes(answer.memory_written_bytes),
        })
    }

    /// The templates of the host.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn templates(&self) -> Result<Vec<TemplateRecord>, HostError> {
        const CALL: &str = "listing templates";
        let answer = self
            .unary(CALL, async |host| {
                Ok(host.list_templates(pb::ListTemplatesRequest::default()).await?.into_owned())
            })
            .await?;
        answer.templates.into_iter().map(|one| read(CALL, TemplateRecord::of_wire(one))).collect()
    }

    /// Removes a template. Sandboxes that were made from it stay whole.
    ///
    /// # Errors
    /// [`NoSuchTemplate`](crate::Reason::NoSuchTemplate); [`Busy`](crate::Reason::Busy) while sandboxes are being made
    /// from it.
    pub async fn delete_template(&self, name: &TemplateName) -> Result<(), HostError> {
        let request = pb::DeleteTemplateRequest { name: name.as_str().into() };
        self.unary("removing a template", async |host| host.delete_template(request).await.map(drop)).await
    }

    /// What a running sandbox uses of the host.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox), [`NotRunning`](crate::Reason::NotRunning).
    pub async fn stats(&self, id: &SandboxId) -> Result<Stats, HostError> {
        let request = pb::StatsRequest { id: id.as_str().into() };
        let answer = self
            .unary("counting what a sandbox uses", async |host| Ok(host.stats(request).await?.into_owned()))
            .await?;
        Ok(Stats::of_wire(&answer))
    }

    /// The last bytes of a running sandbox's console log, at most `most` of them and 64 KiB. A guest wrote them: they are not
    /// safe to print.
    ///
    /// # Errors
    /// [`NoSuchSandbox`](crate::Reason::NoSuchSandbox), [`NotRunning`](crate::Reason::NotRunning).
    pub async fn console(&self, id: &SandboxId, most: u32) -> Result<Bytes, HostError> {
        let request = pb::ConsoleRequest { id: id.as_str().into(), max_bytes: most };
        self.unary("reading a console", async |host| Ok(host.console(request).await?.into_owned().log)).await
    }

    /// Begins draining, or ends it: a host that drains takes no new sandboxes. Returns how many have a machine there.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn drain(&self, drain: bool) -> Result<u32, HostError> {
        let request = pb::DrainRequest { drain };
        self.unary("draining a host", async |host| Ok(host.drain(request).await?.into_owned().active)).await
    }
}

fn read<T>(call: &'static str, read: Result<T, Malformed>) -> Result<T, HostError> {
    read.map_err(|error| HostError::malformed(call, &error))
}

fn sandbox(call: &'static str, wire: Option<pb::Sandbox>) -> Result<SandboxRecord, HostError> {
    let wire = wire.ok_or_else(|| HostError::protocol(call, "there is no sandbox in it"))?;
    read(call, SandboxRecord::of_wire(wire))
}
