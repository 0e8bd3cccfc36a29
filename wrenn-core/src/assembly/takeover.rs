//! Going on with a machine that an earlier process started: the same undo list, and nothing made anew.

use std::sync::Arc;

use wrenn_net::Slot;
use wrenn_storage::RootDisk;
use wrenn_vmm::api::InstanceState;
use wrenn_vmm::{MonitorProcess, MonitorTakeOver};

use super::{Assembly, Parts, disk_changes};
use crate::error::Cause;
use crate::instance::Origin;
use crate::journal::Journal;
use crate::lifecycle::Step;
use crate::machine::{Live, UNDO_LIMIT};
use crate::paging::Reserved;
use crate::recovery::{clear, origin};
use crate::step::{blocking, building};

impl Assembly {
    /// Takes the machine over that `journal` tells of, and lets its guest go on; also returns what its next snapshot builds
    /// on.
    ///
    /// Whatever fails, the undo list ends it, as it would have ended a machine of this process's.
    pub(crate) async fn take_over(&mut self, journal: &Journal) -> Result<(Live, Option<Origin>), Cause> {
        self.claim(Step::Resume)?;
        // All of it is there, and has to go should one part of it fail: so the undo of each is registered before any failure
        // counts.
        let mut dirs = Ok(());
        if journal.origin.is_none_or(|generation| generation == 0) {
            // It has no snapshot to go back to.
            dirs = self.data_that_is_there().await;
        }
        let run_dir = self.run_dir().await;
        let disk = self.disk_that_is_there().await;
        let slot = self.slot_that_is_there(journal.slot).await;
        let reserved = Reserved::new(&self.identity.id, &mut self.undo);
        let pager = self.host.pagers.found().filter(|_| journal.paged);
        let paging = pager.map(|pager| Arc::new(reserved.taken_over(pager)));
        let monitor = self.monitor_that_is_there(journal).await;
        dirs.and(run_dir)?;
        let (disk, slot, monitor) = (disk?, slot?, monitor?);
        match &paging {
            Some(paging) => paging.watch_over(monitor.killer())?,
            None if journal.paged => {
                let why = "the pager has ended".to_owned();
                return Err(Cause::Paging { id: self.identity.id.clone(), why });
            }
            None => {}
        }
        let (monitor, origin) = self.go_on(monitor, journal).await?;
        let image = journal.image.clone();
        let parts = Parts { monitor, disk, image, slot, reads_memory: journal.reads_memory };
        let live = self.live(parts, paging, None);
        live.greet_agent(&journal.token).await?;
        Ok((live, origin))
    }

    /// Has the guest run, whatever the earlier process was at, and removes what that left.
    async fn go_on(
        &self,
        monitor: MonitorProcess,
        journal: &Journal,
    ) -> Result<(MonitorProcess, Option<Origin>), Cause> {
        if monitor.client().get_info().await?.state == InstanceState::Paused {
            monitor.client().resume().await?;
        }
        let (journal, dirs) = (journal.clone(), self.identity.dirs.clone());
        blocking(move || {
            // A copy of the monitor whose memory was being read ends with the connection that it was read by.
            monitor.settle_memory(UNDO_LIMIT)?;
            let origin = origin(&journal, &dirs)?;
            clear(&dirs, origin.as_ref())?;
            Ok((monitor, origin))
        })
        .await
    }

    async fn data_that_is_there(&mut self) -> Result<(), Cause> {
        let dir = self.identity.dirs.store.path().to_owned();
        self.data_step = Some(self.directory("the sandbox's data directory", dir, 0o700).await?);
        Ok(())
    }

    async fn disk_that_is_there(&mut self) -> Result<RootDisk, Cause> {
        let (host, identity, reaper) =
            (Arc::clone(&self.host), self.identity.clone(), self.host.reaper.clone());
        building(&mut self.undo, &reaper, move |undo| {
            let cow = disk_changes(&identity.dirs, undo);
            Ok(host.disks.take_over(&identity.id, &cow, undo)?)
        })
        .await
    }

    async fn slot_that_is_there(&mut self, index: u16) -> Result<Slot, Cause> {
        let (host, policy) = (Arc::clone(&self.host), self.identity.spec.network.clone());
        let reaper = self.host.reaper.clone();
        building(&mut self.undo, &reaper, move |undo| {
            let slot = host.slots().take_over(index, &policy.egress, undo)?;
            slot.set_bandwidth(policy.bandwidth)?;
            Ok(slot)
        })
        .await
    }

    async fn monitor_that_is_there(&mut self, journal: &Journal) -> Result<MonitorProcess, Cause> {
        let dirs = &self.identity.dirs;
        let spec = MonitorTakeOver {
            id: journal.id.clone(),
            process: journal.monitor.clone(),
            api_socket: dirs.api_socket(),
            console_log: dirs.console(),
            user: journal.user,
            cgroup: self.host.cells.cgroup_of(&journal.spec),
        };
        let reaper = self.host.reaper.clone();
        Ok(building(&mut self.undo, &reaper, move |undo| MonitorProcess::take_over(spec, undo)).await?)
    }
}
