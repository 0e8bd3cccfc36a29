//! Where a sandbox may run: nowhere that its owner may not.
//!
//! A sandbox's cgroup is not below its owner's, so it would escape a `cpuset` that confines the owner. What the owner may
//! use is therefore copied, and afterwards compared: the kernel takes less than it is told where a cgroup above allows
//! less, and falls back to what that one has where nothing would be left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{CgroupError, mount_point, read, write};

/// What a cpuset holds: its file's name, and what to call it.
const SETS: [(&str, &str); 2] = [("cpuset.cpus", "CPUs"), ("cpuset.mems", "memory nodes")];

/// Copies the cpuset of this process to the cgroup `dir`, where that has one.
pub(super) fn confine(dir: &Path) -> Result<(), CgroupError> {
    if !dir.join(SETS[0].0).exists() {
        return Ok(());
    }
    let own = own_cgroup()?;
    for (file, what) in SETS {
        copy(&own, dir, file, what)?;
    }
    Ok(())
}

fn copy(own: &Path, dir: &Path, file: &str, what: &'static str) -> Result<(), CgroupError> {
    let effective = format!("{file}.effective");
    // A cgroup without the controller uses what the next one above it does.
    let holder = own.ancestors().map(|level| level.join(&effective)).find(|path| path.exists());
    let holder = holder.unwrap_or_else(|| own.join(&effective));
    let allowed = read(&holder)?;
    write(&dir.join(file), allowed.trim())?;
    let path = dir.join(&effective);
    let got = read(&path)?;
    if members(&got, &path)?.is_subset(&members(&allowed, &holder)?) {
        return Ok(());
    }
    let (got, own) = (got.trim().to_owned(), allowed.trim().to_owned());
    Err(CgroupError::Unconfined { dir: dir.to_owned(), what, got, own })
}

/// The directory of this process's cgroup.
fn own_cgroup() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/cgroup");
    let text = read(path)?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or_else(|| CgroupError::Foreign { path: path.to_owned(), text: text.clone() })?;
    Ok(mount_point()?.join(own))
}

/// The numbers in a list such as `0-3,7`.
fn members(list: &str, path: &Path) -> Result<BTreeSet<u32>, CgroupError> {
    let number = |text: &str| text.parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(number(first)?..=number(last)?),
        None => number(part).map(|only| only..=only),
    };
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    let ranges: Option<Vec<_>> = parts.map(range).collect();
    let foreign = || CgroupError::Foreign { path: path.to_owned(), text: list.to_owned() };
    Ok(ranges.ok_or_else(foreign)?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lists_of_numbers_are_read() {
        let read = |text| members(text, Path::new("list")).map(|set| set.into_iter().collect::<Vec<_>>());
        assert_eq!(read("0-2,7\n").unwrap(), [0, 1, 2, 7]);
        assert!(read("\n").unwrap().is_empty());
        for bad in ["a", "1-", "1,,x", "-"] {
            assert!(matches!(read(bad), Err(CgroupError::Foreign { .. })), "{bad}");
        }
    }

    /// What the kernel would say, in plain files: the cgroup of the sandbox may use `effective`.
    fn copied(allowed: &str, effective: &str) -> (String, Result<(), CgroupError>) {
        let dir = tempfile::tempdir().unwrap();
        let (own, sandbox) = (dir.path().join("above/own"), dir.path().join("sandbox"));
        fs::create_dir_all(&own).unwrap();
        fs::create_dir(&sandbox).unwrap();
        fs::write(dir.path().join("above/cpuset.cpus.effective"), allowed).unwrap();
        fs::write(sandbox.join("cpuset.cpus.effective"), effective).unwrap();
        let result = copy(&own, &sandbox, "cpuset.cpus", "CPUs");
        (fs::read_to_string(sandbox.join("cpuset.cpus")).unwrap(), result)
    }

    #[test]
    fn what_confines_the_owner_confines_the_sandbox() {
        let (written, result) = copied("1-3\n", "1-2\n");
        assert_eq!(written, "1-3", "what the next cgroup above has counts");
        result.unwrap();
        let (_, result) = copied("1\n", "0-1\n");
        assert!(matches!(result, Err(CgroupError::Unconfined { what: "CPUs", .. })), "{result:?}");
    }
}
