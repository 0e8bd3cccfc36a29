//! What each action means, before there is a machine and once there is one.
//!
//! ```text
//!   before boot ──StartInstance──► machine ── pause, resume, snapshot
//!        └────────LoadSnapshot───────┘
//! ```
//!
//! An action that fails leaves the phase as it was: a machine that did not start can be configured differently and
//! started again, one that could not be saved can be resumed.

use event_manager::{EventManager, SubscriberOps};
use wrenn_vmm::api::{
    CachedLoad, InstanceInfo, InstanceState, MemBackendType, RestoredHugePages, SnapshotLoad, VmState,
};

use crate::action::{Action, Answer, Fault, Outcome};
use crate::api::VmConfig;
use crate::logger::{self, LoggerError};
use crate::machine::{Host, LoadError, Machine, MemorySource, Origin, SaveError, StartError, Subscriber};
use crate::vcpu::VcpuError;
use crate::vm::Vm;

mod resources;

use resources::{ConfigError, Resources};

const APP_NAME: &str = "wrenn-monitor";

/// The main loop's event manager.
pub(crate) type Events = EventManager<Subscriber>;

/// An action that was refused, or failed.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    #[error("The requested operation is not supported before starting the microVM.")]
    NotBeforeStart,
    #[error("The requested operation is not supported after starting the microVM.")]
    NotAfterStart,
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    LoadAfterConfiguring,
    #[error("the request says nothing of where the snapshot's memory is")]
    NoMemoryBackend,
    #[error("wrenn-monitor does not offer {option}: leave it out")]
    Unsupported { option: &'static str },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the log could not be set up")]
    Logger(#[from] LoggerError),
    #[error("the microVM could not be started")]
    Start(#[from] StartError),
    #[error("the snapshot could not be loaded")]
    Load(#[from] LoadError),
    #[error("the microVM could not be paused")]
    Pause(#[source] VcpuError),
    #[error("the snapshot could not be taken")]
    Save(#[from] SaveError),
    #[error("the microVM's devices could not be watched")]
    Watch(#[from] std::io::Error),
}

enum Phase {
    BeforeBoot(Box<Resources>),
    Machine(Box<Machine>),
}

/// Performs actions, one after the other, on the main thread.
pub(crate) struct Controller {
    instance: String,
    host: Host,
    phase: Phase,
    /// A virtual machine made ahead: making one takes longer than all the rest of a restore.
    prepared: Option<Vm>,
    /// What the machine was configured as; nothing for one that was restored.
    configured: VmConfig,
}

impl Controller {
    pub(crate) fn new(instance: String, host: Host) -> Self {
        let phase = Phase::BeforeBoot(Box::default());
        Self { instance, host, phase, prepared: None, configured: VmConfig::default() }
    }

    /// Makes a virtual machine ahead of the request that will need it. A failure is left to that request, which
    /// tries again and tells its sender.
    pub(crate) fn prepare(&mut self) {
        match Vm::create() {
            Ok(vm) => self.prepared = Some(vm),
            Err(error) => log::warn!("{}", Fault::from_error(&error)),
        }
    }

    /// Performs `action`; what a new machine needs to be run is added to `events`.
    pub(crate) fn perform(&mut self, action: Action, events: &mut Events) -> Outcome {
        let outcome = match &mut self.phase {
            Phase::BeforeBoot(_) => self.before_boot(action, events),
            Phase::Machine(_) => self.with_machine(action),
        };
        outcome.map_err(|error| Fault::from_error(&error))
    }

    fn before_boot(&mut self, action: Action, events: &mut Events) -> Result<Answer, ActionError> {
        let Phase::BeforeBoot(resources) = &mut self.phase else { return Err(ActionError::NotAfterStart) };
        match action {
            Action::DescribeInstance => return Ok(self.describe(InstanceState::NotStarted)),
            Action::DescribeConfig => return Ok(Answer::Config(Box::new(resources.describe()))),
            Action::DescribeMachine => return Ok(Answer::Machine(resources.machine().clone())),
            Action::ConfigureMachine(config) => resources.set_machine(config)?,
            Action::UpdateMachine(update) => resources.set_machine(update.applied_to(resources.machine()))?,
            Action::ConfigureBoot(source) => resources.set_boot(source)?,
            Action::ConfigureDrive(drive) => resources.set_drive(drive)?,
            Action::ConfigureNetwork(network) => resources.set_network(network)?,
            Action::ConfigureEntropy(entropy) => resources.set_entropy(entropy)?,
            Action::ConfigureLogger(config) => logger::configure(&config)?,
            Action::StartInstance => self.start(events)?,
            Action::LoadSnapshot(request) => self.load(&request, events)?,
            Action::LoadCached(request) => self.load_cached(&request, events)?,
            Action::SetState(_) | Action::CreateSnapshot(_) | Action::SaveState(_) => {
                return Err(ActionError::NotBeforeStart);
            }
        }
        Ok(Answer::Done)
    }

    fn with_machine(&mut self, action: Action) -> Result<Answer, ActionError> {
        let Phase::Machine(machine) = &mut self.phase else { return Err(ActionError::NotBeforeStart) };
        match action {
            Action::DescribeInstance => {
                let state = if machine.is_paused() { InstanceState::Paused } else { InstanceState::Running };
                return Ok(self.describe(state));
            }
            Action::DescribeConfig => {
                let machine_config = machine.config().clone();
                return Ok(Answer::Config(Box::new(VmConfig { machine_config, ..self.configured.clone() })));
            }
            Action::DescribeMachine => return Ok(Answer::Machine(machine.config().clone())),
            Action::SetState(VmState::Paused) => machine.pause().map_err(ActionError::Pause)?,
            Action::SetState(VmState::Resumed) => machine.resume(),
            Action::CreateSnapshot(request) => machine.save(&request)?,
            Action::SaveState(request) => return Ok(Answer::Memory(machine.save_state(&request)?)),
            Action::ConfigureMachine(_)
            | Action::UpdateMachine(_)
            | Action::ConfigureBoot(_)
            | Action::ConfigureDrive(_)
            | Action::ConfigureNetwork(_)
            | Action::ConfigureEntropy(_)
            | Action::ConfigureLogger(_)
            | Action::StartInstance
            | Action::LoadSnapshot(_)
            | Action::LoadCached(_) => return Err(ActionError::NotAfterStart),
        }
        Ok(Answer::Done)
    }

    fn describe(&self, state: InstanceState) -> Answer {
        Answer::Instance(InstanceInfo {
            app_name: APP_NAME.to_owned(),
            id: self.instance.clone(),
            state,
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn start(&mut self, events: &mut Events) -> Result<(), ActionError> {
        let Phase::BeforeBoot(resources) = &mut self.phase else { return Err(ActionError::NotAfterStart) };
        let (prepared, host) = (self.prepared.take(), &self.host);
        let mut machine = resources.start(|plan| -> Result<_, ActionError> {
            let vm = prepared.map_or_else(Vm::create, Ok).map_err(StartError::Vm)?;
            Ok(Machine::boot(vm, plan, host)?)
        })?;
        self.configured = resources.describe();
        watch(&machine, events)?;
        machine.resume();
        self.phase = Phase::Machine(Box::new(machine));
        log::info!("the microVM has started");
        Ok(())
    }

    fn load(&mut self, request: &SnapshotLoad, events: &mut Events) -> Result<(), ActionError> {
        if request.vsock_override.is_some() {
            return Err(ActionError::Unsupported { option: "vsock devices" });
        }
        if !matches!(request.huge_pages, None | Some(RestoredHugePages::Snapshot | RestoredHugePages::None)) {
            return Err(ActionError::Unsupported { option: "huge pages" });
        }
        let backend = request.mem_backend.as_ref().ok_or(ActionError::NoMemoryBackend)?;
        let origin = Origin {
            state: &request.snapshot_path,
            memory: match backend.backend_type {
                MemBackendType::File => MemorySource::File(&backend.backend_path),
                MemBackendType::Uffd => MemorySource::FaultServer(&backend.backend_path),
            },
            track_dirty_pages: request.track_dirty_pages,
            network_overrides: &request.network_overrides,
            clock_realtime: request.clock_realtime,
        };
        self.restore(&origin, request.resume_vm, events)
    }

    fn load_cached(&mut self, request: &CachedLoad, events: &mut Events) -> Result<(), ActionError> {
        let origin = Origin {
            state: &request.snapshot_path,
            memory: MemorySource::Cache(&request.cache_socket),
            track_dirty_pages: false,
            network_overrides: &request.network_overrides,
            clock_realtime: false,
        };
        self.restore(&origin, request.resume_vm, events)
    }

    fn restore(&mut self, origin: &Origin<'_>, resume: bool, events: &mut Events) -> Result<(), ActionError> {
        let Phase::BeforeBoot(resources) = &mut self.phase else { return Err(ActionError::NotAfterStart) };
        if !resources.is_untouched() {
            return Err(ActionError::LoadAfterConfiguring);
        }
        let prepared = &mut self.prepared;
        let vm = || prepared.take().map_or_else(Vm::create, Ok);
        let mut machine = Machine::restore(vm, origin, &self.host)?;
        watch(&machine, events)?;
        if resume {
            machine.resume();
        }
        self.phase = Phase::Machine(Box::new(machine));
        log::info!("the microVM was restored from {}", origin.state.display());
        Ok(())
    }
}

/// Has the main loop run what belongs to `machine`.
fn watch(machine: &Machine, events: &mut Events) -> Result<(), ActionError> {
    for subscriber in machine.subscribers()? {
        events.add_subscriber(subscriber);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
