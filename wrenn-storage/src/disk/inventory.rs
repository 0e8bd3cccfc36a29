//! What the kernel holds at this moment, as sysfs shows it: for finding orphans, and for tests that compare a host
//! before and after.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wrenn_base::HostId;

const BLOCK_DEVICES: &str = "/sys/block";

/// The loop devices whose backing file lies under `dir`, each with that file.
///
/// A file that was deleted is listed under the path it had, with the kernel's ` (deleted)` after it.
///
/// # Errors
/// The kernel's list of block devices cannot be read.
pub fn loop_devices_under(dir: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let dir = dir.canonicalize()?;
    let mut found = Vec::new();
    for (name, backing) in block_attributes("loop", "loop/backing_file")? {
        let backing = PathBuf::from(backing);
        if backing.starts_with(&dir) {
            found.push((Path::new("/dev").join(name), backing));
        }
    }
    Ok(found)
}

/// The names of the mapped devices that belong to a host, of this process or of any other.
///
/// # Errors
/// The kernel's list of block devices cannot be read.
pub fn mapped_devices_of(host: &HostId) -> io::Result<Vec<String>> {
    let prefix = super::snapshot::prefix(host);
    let mut names: Vec<_> = block_attributes("dm-", "dm/name")?
        .into_iter()
        .map(|(_, name)| name)
        .filter(|name| name.starts_with(&prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// An attribute of every block device with such a name that has it, as `(device, value)`.
pub(super) fn block_attributes(prefix: &str, attribute: &str) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(BLOCK_DEVICES)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with(prefix) {
            continue;
        }
        // A device can go away while we look, and a free loop device has no backing file.
        if let Ok(value) = fs::read_to_string(entry.path().join(attribute)) {
            found.push((name, value.trim_end_matches('\n').to_owned()));
        }
    }
    Ok(found)
}
