//! The device-mapper backend: a persistent snapshot over a shared image.
//!
//! ```text
//!   wrenn-<host>-<sandbox>        snapshot, read-write: the disk
//!     ├─ origin: the image's loop device, or, for a disk larger than the image,
//!     │  wrenn-<host>-<sandbox>-base   linear over the image's loop device, then zero, read-only
//!     └─ store:  the cow file's loop device
//! ```
//!
//! The store is the kernel's persistent exception store, which `store.rs` can read too: before the kernel gets it,
//! since the kernel believes what it says, and to flatten a disk without mapping it.
//!
//! Invariant: the store has room for every chunk of the disk and all their metadata, so a guest that rewrites its whole
//! disk never fills it up. A store that overflows would invalidate the snapshot, and with it the sandbox.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wrenn_base::{Deadline, HostId, SandboxId, UndoList};

use super::clone::next_data;
use super::cow::{Geometry, Source, create_cow};
use super::flatten::Flattening;
use super::loops::LoopDevice;
use super::mapper::{Mapper, TableLine};
use super::node::DeviceNumber;
use super::store::{Changes, Layout, StoreError};
use super::{Attachment, CowFault, DiskError, DiskSpec, Mapped, node};

const SECTOR: u64 = 512;

/// The unit of copy-on-write, and of every request: device-mapper splits what is larger.
///
/// A compromise. With 4 KiB a guest's write of a block copies nothing and the store is smallest, but sequential reads
/// take twice the time of 16 KiB (measured; they are most of a boot). 64 KiB reads no faster than 16 KiB, and a store of
/// scattered writes is twice as large.
const CHUNK: u64 = 16 << 10;

/// How long a stale device of the same name may stay busy: its user was killed, and is only being reaped.
const STALE_LIMIT: Duration = Duration::from_secs(10);

/// What the names of all mapped devices of a host begin with.
pub(super) fn prefix(host: &HostId) -> String {
    format!("wrenn-{host}-")
}

/// The device-mapper names of one sandbox's disk.
#[derive(Debug, Clone)]
pub(super) struct Names {
    disk: String,
    base: String,
}

impl Names {
    pub(super) fn of(host: &HostId, sandbox: &SandboxId) -> Self {
        let disk = format!("{}{sandbox}", prefix(host));
        Self { base: format!("{disk}-base"), disk }
    }

    /// The sandbox that a device of this host belongs to.
    pub(super) fn sandbox_of(host: &HostId, device: &str) -> Option<SandboxId> {
        let rest = device.strip_prefix(&prefix(host))?;
        rest.strip_suffix("-base").unwrap_or(rest).parse().ok()
    }

    /// Removes both devices, the upper one first. Loop devices below clear themselves.
    pub(super) fn remove(&self, mapper: &Mapper, deadline: Deadline) -> Result<(), DiskError> {
        mapper.remove(&self.disk, deadline)?;
        mapper.remove(&self.base, deadline)
    }
}

/// How the store of such a disk is laid out.
fn layout(geometry: Geometry) -> Layout {
    Layout::new(CHUNK, geometry.disk)
}

/// Reads what was written to a disk, as its cow file has it, and checks all of it.
fn read_changes(cow: &Source, geometry: Geometry) -> Result<Changes, DiskError> {
    let layout = layout(geometry);
    let damaged = |source| DiskError::Damaged { cow: cow.path.clone(), source };
    let read = |chunk, buf: &mut [u8]| cow.file.read_exact_at(buf, chunk * CHUNK);
    let changes = Changes::read(layout, read).map_err(|error| match error {
        StoreError::Read(source) => DiskError::io("read", &cow.path)(source),
        StoreError::Fault(fault) => damaged(fault),
    })?;
    // A new file is one hole. One with content has lost its header and its list, and must not become a new one.
    if changes.are_new() {
        let content = next_data(&cow.file, 0, layout.store_len());
        if content.map_err(DiskError::io("read", &cow.path))?.is_some() {
            return Err(damaged(CowFault::HeaderLost));
        }
    }
    Ok(changes)
}

/// Gives `flattening` the disk: what was written from the cow file, and the rest from the image.
pub(super) fn flatten(
    spec: &DiskSpec<'_>,
    geometry: Geometry,
    flattening: &mut Flattening<'_>,
) -> Result<(), DiskError> {
    let cow = Source::open_cow(spec.cow, layout(geometry).store_len())?;
    let changes = read_changes(&cow, geometry)?;
    let image = Source::open(spec.image)?;
    let mut done = 0;
    for run in changes.runs() {
        take_unchanged(flattening, &image, geometry, done..run.disk.start)?;
        flattening.take(&cow, run.disk.clone(), run.at)?;
        done = run.disk.end;
    }
    take_unchanged(flattening, &image, geometry, done..geometry.disk)
}

/// Gives `flattening` a part of the disk that was never written. What lies beyond the image is zeros.
fn take_unchanged(
    flattening: &mut Flattening<'_>,
    image: &Source,
    geometry: Geometry,
    part: Range<u64>,
) -> Result<(), DiskError> {
    let part = part.start.min(geometry.image)..part.end.min(geometry.image);
    flattening.take(image, part.clone(), part.start)
}

pub(super) fn attach(
    mapper: &Arc<Mapper>,
    names: &Names,
    spec: &DiskSpec<'_>,
    geometry: Geometry,
    undo: &mut UndoList,
) -> Result<(PathBuf, Arc<Attachment>), DiskError> {
    let length = layout(geometry).store_len();
    let existing = match Source::open_cow(spec.cow, length) {
        Err(DiskError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        result => Some(result?),
    };
    names.remove(mapper, Deadline::after(STALE_LIMIT))?;
    // Only now: until then it may have been written to.
    if let Some(cow) = &existing {
        read_changes(cow, geometry)?;
    }
    let existed = existing.is_some();
    let (node, attachment) = register_undo(mapper, names, spec.cow, undo);
    if !existed {
        // A store of nothing but zeros is a new one to the kernel.
        create_cow(spec.cow, |file| file.set_len(length))?;
    }
    let result = map(mapper, names, spec, geometry).and_then(|number| provide(number, &node));
    if result.is_err() && !existed {
        // Gone before its loop device is, which then shows a deleted file until the undo has run.
        let _ = std::fs::remove_file(spec.cow);
    }
    result.map(|device| (device, attachment))
}

/// The disk that an earlier process attached.
pub(super) fn take_over(
    mapper: &Arc<Mapper>,
    names: &Names,
    cow: &Path,
    undo: &mut UndoList,
) -> Result<(PathBuf, Arc<Attachment>), DiskError> {
    let (node, attachment) = register_undo(mapper, names, cow, undo);
    Ok((provide(mapper.number(&names.disk)?, &node)?, attachment))
}

/// A node for the disk's device: the system's, or else the one at `node`.
fn provide(number: DeviceNumber, node: &Path) -> Result<PathBuf, DiskError> {
    let name = format!("dm-{}", number.minor);
    let provided = node::provide(&name, number, node).map_err(DiskError::io("make the device node", node));
    provided.map(|(device, _ours)| device)
}

/// Registers what takes the devices away, and the node that is made where the system makes none.
fn register_undo(
    mapper: &Arc<Mapper>,
    names: &Names,
    cow: &Path,
    undo: &mut UndoList,
) -> (PathBuf, Arc<Attachment>) {
    let mut node = cow.as_os_str().to_owned();
    node.push(".dev");
    let node = PathBuf::from(node);
    let attachment = Arc::new(Attachment(
        Some(Mapped { mapper: Arc::clone(mapper), names: names.clone(), node: Some(node.clone()) }).into(),
    ));
    let undone = Arc::clone(&attachment);
    undo.push(format!("root disk {}", names.disk), move |deadline| Ok(undone.release(deadline)?));
    (node, attachment)
}

/// Stacks the devices, lowest first, and returns the disk's number.
fn map(
    mapper: &Mapper,
    names: &Names,
    spec: &DiskSpec<'_>,
    geometry: Geometry,
) -> Result<DeviceNumber, DiskError> {
    // Both stay open until the devices above them have them open too.
    let image = LoopDevice::shared(spec.image, spec.cow)?;
    let store = LoopDevice::exclusive(spec.cow)?;
    let origin = if geometry.disk == geometry.image {
        image.number()
    } else {
        mapper.create(&names.base, &base_table(image.number(), geometry), true)?
    };
    let table = TableLine {
        sectors: geometry.disk / SECTOR,
        target: "snapshot",
        parameters: format!("{origin} {} P {}", store.number(), CHUNK / SECTOR),
    };
    let disk = mapper.create(&names.disk, &[table], false)?;
    // A store that was invalidated is loaded all the same, and then fails every read.
    let state = mapper.status(&names.disk)?;
    if !state.starts_with(|first: char| first.is_ascii_digit()) {
        let source = CowFault::Refused { state };
        return Err(DiskError::Damaged { cow: spec.cow.to_owned(), source });
    }
    Ok(disk)
}

fn base_table(image: DeviceNumber, geometry: Geometry) -> [TableLine; 2] {
    let beyond = geometry.disk - geometry.image;
    [
        TableLine { sectors: geometry.image / SECTOR, target: "linear", parameters: format!("{image} 0") },
        TableLine { sectors: beyond / SECTOR, target: "zero", parameters: String::new() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_leads_back_to_its_sandbox() {
        let (host, sandbox) = (HostId::random(), SandboxId::random());
        let names = Names::of(&host, &sandbox);
        assert_eq!(Names::sandbox_of(&host, &names.disk), Some(sandbox.clone()));
        assert_eq!(Names::sandbox_of(&host, &names.base), Some(sandbox));
        assert_eq!(Names::sandbox_of(&host, &format!("{}probe", prefix(&host))), None);
        assert_eq!(Names::sandbox_of(&HostId::random(), &names.disk), None);
        // The kernel's limit is 128 with the final zero.
        assert!(names.base.len() < 128);
    }
}
