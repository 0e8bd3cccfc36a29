//! Device-mapper devices by ioctl.
//!
//! Every request asks udev to keep its rules off our devices: no probing of guests' file systems, which would hold a
//! device open just when it is to be removed, and no links under /dev/mapper. Where udev runs, the `devicemapper`
//! crate waits for it to have seen a change (for that, udev needs the rules of Debian's package `dmsetup`).

use std::io;

use devicemapper::errors::Error as CoreError;
use devicemapper::{DM, DevId, DmError, DmFlags, DmName, DmOptions, DmUdevFlags};
use wrenn_base::{Deadline, HostId};

use super::node::DeviceNumber;
use super::{DiskError, busy, snapshot};

/// The targets that root disks are made of, each with parameters that a table may be tried with.
///
/// Trying makes the kernel load the target's module. Parameters that are refused do that too.
const TARGETS: [(&str, &str); 3] = [("linear", ""), ("zero", ""), ("snapshot", "")];

/// One line of a device's table: length in sectors, target and its parameters. Lines follow one another.
pub(super) struct TableLine {
    pub(super) sectors: u64,
    pub(super) target: &'static str,
    pub(super) parameters: String,
}

/// The kernel's device-mapper.
pub(super) struct Mapper {
    dm: DM,
}

impl std::fmt::Debug for Mapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mapper")
    }
}

impl Mapper {
    /// Opens device-mapper and checks that it has, or can load, what root disks need.
    pub(super) fn probe(host: &HostId) -> Result<Self, DiskError> {
        let missing = |missing| move |source| DiskError::NoDeviceMapper { missing, source };
        // By hand first: the crate keeps only the text of this error.
        std::fs::File::open("/dev/mapper/control")
            .map_err(missing("/dev/mapper/control cannot be opened"))?;
        let dm = DM::new().map_err(into_io).map_err(missing("/dev/mapper/control cannot be opened"))?;
        let mapper = Self { dm };
        mapper.dm.version().map_err(into_io).map_err(missing("it does not answer"))?;
        for (target, parameters) in TARGETS {
            mapper.load_target(host, target, parameters).map_err(missing("a target is missing"))?;
        }
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(missing("/dev/loop-control cannot be opened"))?;
        Ok(mapper)
    }

    fn load_target(&self, host: &HostId, target: &str, parameters: &str) -> io::Result<()> {
        if self.has_target(target)? {
            return Ok(());
        }
        let name = format!("{}probe", snapshot::prefix(host));
        let id = dm_name(&name)?;
        // One that a killed process left will do.
        let _ = self.dm.device_create(id, None, quiet(DmFlags::empty()));
        let table = [(0, 8, target.to_owned(), parameters.to_owned())];
        let _ = self.dm.table_load(&DevId::Name(id), &table, quiet(DmFlags::empty()));
        self.dm.device_remove(&DevId::Name(id), quiet(DmFlags::empty())).map_err(into_io)?;
        if self.has_target(target)? {
            return Ok(());
        }
        Err(io::Error::other(format!("the kernel has no device-mapper target {target:?}")))
    }

    fn has_target(&self, target: &str) -> io::Result<bool> {
        let known = self.dm.list_versions().map_err(into_io)?;
        Ok(known.iter().any(|(name, ..)| name == target))
    }

    /// Makes a device, active, from its table. On failure there is no such device.
    pub(super) fn create(
        &self,
        name: &str,
        table: &[TableLine],
        read_only: bool,
    ) -> Result<DeviceNumber, DiskError> {
        let failed = |action| {
            move |error| DiskError::Mapper { action, device: name.to_owned(), source: into_io(error) }
        };
        let flags = if read_only { DmFlags::DM_READONLY } else { DmFlags::empty() };
        let dm = dm_name(name).map_err(|source| DiskError::Mapper {
            action: "name",
            device: name.to_owned(),
            source,
        })?;
        let id = DevId::Name(dm);
        self.dm.device_create(dm, None, quiet(flags)).map_err(failed("create"))?;
        let mut start = 0;
        let lines: Vec<_> = table
            .iter()
            .map(|line| {
                let begin = start;
                start += line.sectors;
                (begin, line.sectors, line.target.to_owned(), line.parameters.clone())
            })
            .collect();
        let active =
            self.dm.table_load(&id, &lines, quiet(flags)).map_err(failed("load the table of")).and_then(
                |_| self.dm.device_suspend(&id, quiet(DmFlags::empty())).map_err(failed("activate")),
            );
        match active {
            Ok(info) => {
                let device = info.device();
                Ok(DeviceNumber { major: device.major, minor: device.minor })
            }
            Err(error) => {
                // Nobody can have opened it yet.
                let _ = self.dm.device_remove(&id, quiet(DmFlags::empty()));
                Err(error)
            }
        }
    }

    /// The first target's own account of how it is.
    pub(super) fn status(&self, name: &str) -> Result<String, DiskError> {
        let failed = |source| DiskError::Mapper { action: "ask", device: name.to_owned(), source };
        let id = dm_name(name).map_err(failed)?;
        let (_, lines) = self
            .dm
            .table_status(&DevId::Name(id), quiet(DmFlags::empty()))
            .map_err(|error| failed(into_io(error)))?;
        Ok(lines.into_iter().next().map(|(.., status)| status).unwrap_or_default())
    }

    /// The number of a device that is there.
    pub(super) fn number(&self, name: &str) -> Result<DeviceNumber, DiskError> {
        let failed = |source| DiskError::Mapper { action: "find", device: name.to_owned(), source };
        let id = DevId::Name(dm_name(name).map_err(failed)?);
        let device = self.dm.device_info(&id).map_err(|error| failed(into_io(error)))?.device();
        Ok(DeviceNumber { major: device.major, minor: device.minor })
    }

    /// Removes a device; one that is not there is fine. Waits while it is in use, until the deadline.
    pub(super) fn remove(&self, name: &str, deadline: Deadline) -> Result<(), DiskError> {
        let failed = |source| DiskError::Mapper { action: "remove", device: name.to_owned(), source };
        let id = DevId::Name(dm_name(name).map_err(failed)?);
        match busy::while_busy(deadline, || self.try_remove(&id)) {
            Err(source) if source.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            Err(source) if busy::is_busy(&source) => Err(DiskError::Busy { device: name.to_owned(), source }),
            result => result.map_err(failed),
        }
    }

    fn try_remove(&self, id: &DevId<'_>) -> io::Result<()> {
        // The crate's remove sleeps for most of a second when a device is busy. Asking first costs next to nothing.
        if self.dm.device_info(id).map_err(into_io)?.open_count() > 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.dm.device_remove(id, quiet(DmFlags::empty())).map_err(into_io).map(drop)
    }
}

fn dm_name(name: &str) -> io::Result<&DmName> {
    DmName::new(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
}

fn quiet(flags: DmFlags) -> DmOptions {
    DmOptions::default().set_flags(flags).set_udev_flags(
        DmUdevFlags::DM_UDEV_DISABLE_DM_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_DISK_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_OTHER_RULES_FLAG,
    )
}

/// The kernel's answer alone: the crate's own account fills half a page with both headers.
fn into_io(error: DmError) -> io::Error {
    match error {
        DmError::Core(CoreError::Ioctl(.., errno)) => io::Error::from_raw_os_error(*errno as i32),
        other => io::Error::other(other.to_string()),
    }
}
