//! The device-mapper backend: a persistent snapshot over a shared image.
//!
//! ```text
//!   wrenn-<host>-<sandbox>        snapshot, read-write: the disk
//!     ├─ origin: the image's loop device, or, for a disk larger than the image,
//!     │  wrenn-<host>-<sandbox>-base   linear over the image's loop device, then zero, read-only
//!     └─ store:  the cow file's loop device
//! ```
//!
//! The store is the kernel's persistent exception store (drivers/md/dm-snap-persistent.c): one header chunk, then
//! areas of one metadata chunk that lists as many data chunks as it has 16-byte entries.
//!
//! Invariant: the store has room for every chunk of the disk and all their metadata, so a guest that rewrites its whole
//! disk never fills it up. A store that overflows would invalidate the snapshot, and with it the sandbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wrenn_base::{Deadline, HostId, SandboxId, UndoList};

use super::loops::LoopDevice;
use super::mapper::{Mapper, TableLine};
use super::node::DeviceNumber;
use super::{Attachment, DiskError, DiskSpec, Geometry, Mapped, cow_exists, create_cow, node};

const SECTOR: u64 = 512;

/// The unit of copy-on-write, and of every request: device-mapper splits what is larger.
///
/// A compromise. With 4 KiB a guest's write of a block copies nothing and the store is smallest, but sequential reads
/// take twice the time of 16 KiB (measured; they are most of a boot). 64 KiB reads no faster than 16 KiB, and a store of
/// scattered writes is twice as large.
const CHUNK: u64 = 16 << 10;

/// How many data chunks one metadata chunk lists: its entries are two 64-bit numbers.
const CHUNKS_PER_AREA: u64 = CHUNK / 16;

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

/// The length of a store in which every chunk of a disk of `disk` bytes can be rewritten.
fn store_len(disk: u64) -> u64 {
    let data = disk.div_ceil(CHUNK);
    // One area more than are used: when an area is full, the kernel clears the next one's metadata at once.
    let metadata = data.div_ceil(CHUNKS_PER_AREA) + 1;
    let header = 1;
    (header + data + metadata) * CHUNK
}

pub(super) fn attach(
    mapper: &Arc<Mapper>,
    names: &Names,
    spec: &DiskSpec<'_>,
    geometry: Geometry,
    undo: &mut UndoList,
) -> Result<(PathBuf, Arc<Attachment>), DiskError> {
    let length = store_len(geometry.disk);
    let existed = cow_exists(spec.cow, length)?;
    names.remove(mapper, Deadline::after(STALE_LIMIT))?;
    let mut node = spec.cow.as_os_str().to_owned();
    node.push(".dev");
    let node = PathBuf::from(node);
    let attachment = Arc::new(Attachment(
        Some(Mapped { mapper: Arc::clone(mapper), names: names.clone(), node: Some(node.clone()) }).into(),
    ));
    let undone = Arc::clone(&attachment);
    undo.push(format!("root disk {}", names.disk), move |deadline| Ok(undone.release(deadline)?));
    if !existed {
        // A store of nothing but zeros is a new one to the kernel.
        create_cow(spec.cow, |file| file.set_len(length))?;
    }
    let result = map(mapper, names, spec, geometry).and_then(|number| {
        let name = format!("dm-{}", number.minor);
        node::provide(&name, number, &node).map_err(DiskError::io("make the device node", &node))
    });
    if result.is_err() && !existed {
        // Gone before its loop device is, which then shows a deleted file until the undo has run.
        let _ = std::fs::remove_file(spec.cow);
    }
    result.map(|(device, _ours)| (device, attachment))
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
        return Err(DiskError::Damaged { cow: spec.cow.to_owned(), state });
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

    /// What the kernel's allocation does with a store: chunk 0 is the header; chunk 1, and the first of every further
    /// area, is metadata; data goes everywhere else, in order.
    fn chunks_used_by(exceptions: u64) -> u64 {
        let (mut next, mut left) = (1, exceptions);
        let stride = CHUNKS_PER_AREA + 1;
        while left > 0 {
            if next % stride != 1 {
                left -= 1;
            }
            next += 1;
        }
        // The area after the last full one is cleared as soon as that is full.
        let cleared = 1 + exceptions / CHUNKS_PER_AREA * stride;
        next.max(cleared + 1)
    }

    #[test]
    fn a_store_has_room_for_every_chunk_of_its_disk() {
        for chunks in (1..5000).chain([262_144, 262_143, 262_145]) {
            let room = store_len(chunks * CHUNK) / CHUNK;
            let used = chunks_used_by(chunks);
            assert!(room >= used, "{chunks} chunks: {room} < {used}");
            assert!(room <= used + 2, "{chunks} chunks: {room} is wasteful for {used}");
            assert_eq!(
                store_len(chunks * CHUNK - super::super::BLOCK),
                room * CHUNK,
                "a part of a chunk takes one"
            );
        }
    }

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
