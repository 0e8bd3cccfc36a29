//! The file system that a contained monitor sees: planned here, made by the new process in [`super::sys`].
//!
//! ```text
//! /bin/<program>              the monitor, read-only
//! /dev/{kvm,net/tun,userfaultfd,urandom}   nodes of its own, as far as the machine has them
//! /run/wrenn/vm/root.disk     the disk
//! /lib, /usr/lib, …           for a program that is linked dynamically: the machine's libraries, read-only
//! and under their own paths   the API socket's directory, and what `Containment` names
//! ```
//!
//! It is a small tmpfs, read-only once it is complete. Device nodes are made anew, so that they can belong to the
//! monitor's user without anything changing for others.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dev, FileType};
use rustix::mount::{MountFlags, OpenTreeFlags, open_tree};

use crate::contain::{Containment, ContainmentError};
use crate::error::SetupStep;
use crate::spec::{DiskMount, ROOT_DISK_PATH, VM_DIR};

/// Devices that monitors open: KVM, the TAP, lazily loaded memory, and randomness (Firecracker).
const DEVICES: [&str; 4] = ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd", "/dev/urandom"];
/// Where the loader looks for libraries, and the file that says where else.
const LIBRARIES: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"];

/// One thing to be made; paths are the host's, below [`VM_DIR`], where the new root is put together.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) target: CString,
    pub(super) kind: EntryKind,
    /// The step that it is part of.
    pub(super) step: SetupStep,
}

#[derive(Debug)]
pub(super) enum EntryKind {
    Dir,
    Link {
        to: CString,
    },
    /// A device node that belongs to the monitor's user.
    Node {
        kind: FileType,
        device: Dev,
    },
    /// A file or directory of the host's: a mount of it that is nowhere yet. Made before the process is, which cannot
    /// reach everything any more (the running program itself, for one) once it has a mount namespace.
    Bind {
        tree: OwnedFd,
        directory: bool,
        flags: MountFlags,
    },
}

/// Everything that the root of one monitor is made of, outer directories first.
#[derive(Debug)]
pub(super) struct RootPlan {
    pub(super) entries: Vec<Entry>,
    /// The program, as it is called inside.
    pub(super) program: PathBuf,
    dirs: BTreeSet<PathBuf>,
}

const READ_ONLY: MountFlags = MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV);
const DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

impl RootPlan {
    /// Plans the root for `program`.
    pub(super) fn new(
        program: &Path,
        api_dir: &Path,
        disk: Option<&DiskMount>,
        containment: &Containment,
    ) -> Result<Self, ContainmentError> {
        let name = program.file_name().unwrap_or("monitor".as_ref());
        let inside = Path::new("/bin").join(name);
        let mut plan = Self { entries: Vec::new(), program: inside.clone(), dirs: BTreeSet::new() };
        plan.bind_at(program, &inside, READ_ONLY, SetupStep::BindFiles)?;
        if is_dynamic(program).map_err(ContainmentError::path("read", program))? {
            LIBRARIES.iter().try_for_each(|path| plan.library(Path::new(path)))?;
        }
        for device in DEVICES {
            if let Ok(found) = fs::metadata(device) {
                plan.node(Path::new(device), &found)?;
            }
        }
        plan.dir(Path::new(VM_DIR))?;
        if let Some(disk) = disk {
            plan.disk(&disk.source)?;
        }
        plan.bind(api_dir, DATA)?;
        for path in &containment.writable {
            plan.bind(path, DATA)?;
        }
        for path in &containment.readable {
            plan.bind(path, READ_ONLY | MountFlags::NOEXEC)?;
        }
        Ok(plan)
    }

    /// How many inodes a file system for all of it needs, its root included.
    pub(super) fn inodes(&self) -> usize {
        self.entries.len() + 1
    }

    fn push(&mut self, path: &Path, kind: EntryKind, step: SetupStep) -> Result<(), ContainmentError> {
        if let Some(parent) = path.parent() {
            self.dir(parent)?;
        }
        self.entries.push(Entry { target: c_path(&inside(path))?, kind, step });
        Ok(())
    }

    /// A directory, with those above it.
    fn dir(&mut self, path: &Path) -> Result<(), ContainmentError> {
        if path.parent().is_none() || !self.dirs.insert(path.to_owned()) {
            return Ok(());
        }
        self.push(path, EntryKind::Dir, SetupStep::FillRoot)
    }

    fn bind(&mut self, path: &Path, flags: MountFlags) -> Result<(), ContainmentError> {
        self.bind_at(path, path, flags, SetupStep::BindFiles)
    }

    fn bind_at(
        &mut self,
        source: &Path,
        at: &Path,
        flags: MountFlags,
        step: SetupStep,
    ) -> Result<(), ContainmentError> {
        let directory = fs::metadata(source).map_err(ContainmentError::path("open", source))?.is_dir();
        let how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree =
            open_tree(CWD, source, how).map_err(|e| ContainmentError::path("be shown", source)(e.into()))?;
        let kind = EntryKind::Bind { tree, directory, flags };
        self.push(at, kind, step)
    }

    fn node(&mut self, path: &Path, like: &Metadata) -> Result<(), ContainmentError> {
        let kind = match like.file_type().is_block_device() {
            true => FileType::BlockDevice,
            false => FileType::CharacterDevice,
        };
        self.push(path, EntryKind::Node { kind, device: like.rdev() }, SetupStep::MakeDevices)
    }

    fn disk(&mut self, source: &Path) -> Result<(), ContainmentError> {
        let found = fs::metadata(source).map_err(ContainmentError::path("open", source))?;
        let at = Path::new(ROOT_DISK_PATH);
        match found.file_type().is_block_device() {
            true => self.node(at, &found),
            false => self.bind_at(source, at, DATA, SetupStep::BindDisk),
        }
    }

    /// A place of libraries, where the machine has it; on many machines some are only links to others.
    fn library(&mut self, path: &Path) -> Result<(), ContainmentError> {
        let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
        if !found.is_symlink() {
            return self.bind(path, READ_ONLY);
        }
        let to = fs::read_link(path).map_err(ContainmentError::path("read", path))?;
        self.push(path, EntryKind::Link { to: c_path(&to)? }, SetupStep::FillRoot)
    }
}

/// Where `path` of the new root is while that is being made.
fn inside(path: &Path) -> PathBuf {
    Path::new(VM_DIR).join(path.strip_prefix("/").unwrap_or(path))
}

fn c_path(path: &Path) -> Result<CString, ContainmentError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| ContainmentError::path("open", path)(e.into()))
}

/// Whether the program needs a loader and with it libraries: an ELF file that names one (`PT_INTERP`).
fn is_dynamic(program: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = File::open(program)?;
    let mut header = [0; 64];
    match file.read_exact_at(&mut header, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        result => result?,
    }
    // ELF, 64 bit, little-endian. Of anything else, a script for one, nobody can say what it needs.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Ok(false);
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let table = u64::from_le_bytes(header[32..40].try_into().expect("eight bytes"));
    let (size, count) = (u64::from(half(54)), u64::from(half(56)));
    for n in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, table.saturating_add(n * size))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is planned; nothing without root, who alone may make mounts.
    fn plan(disk: Option<PathBuf>, edit: impl FnOnce(&mut Containment)) -> Option<Vec<(String, EntryKind)>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: mounts need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let mut containment = Containment::new(1000);
        edit(&mut containment);
        let disk = disk.map(|source| DiskMount { source });
        let plan = RootPlan::new(&program, Path::new("/tmp"), disk.as_ref(), &containment).unwrap();
        assert_eq!(plan.program, Path::new("/bin/vmm"));
        let outside = |target: &CString| {
            let target = target.to_str().unwrap().strip_prefix(VM_DIR).unwrap();
            target.to_owned()
        };
        Some(plan.entries.into_iter().map(|entry| (outside(&entry.target), entry.kind)).collect())
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_only_once() {
        let entries = plan(Some("/etc/passwd".into()), |it| it.readable = vec!["/usr/share/doc".into()]);
        let Some(entries) = entries else { return };
        let mut seen = BTreeSet::from([String::new()]);
        for (path, _) in &entries {
            let parent = path.rsplit_once('/').unwrap().0;
            assert!(seen.contains(parent), "{parent} is missing for {path}");
            assert!(seen.insert(path.clone()), "{path} is there twice");
        }
        for path in ["/bin/vmm", "/tmp", "/usr/share/doc", ROOT_DISK_PATH] {
            assert!(seen.contains(path), "{path}: {seen:?}");
        }
        assert!(!seen.contains("/lib"), "a script gets no libraries");
    }

    #[test]
    fn only_data_can_be_written_and_only_programs_be_run() {
        let flags_of = |wanted: &str, entries: &[(String, EntryKind)]| {
            entries.iter().find_map(|(path, kind)| match kind {
                EntryKind::Bind { flags, .. } if path == wanted => Some(*flags),
                _ => None,
            })
        };
        let entries = plan(Some("/etc/passwd".into()), |it| it.readable = vec!["/usr/share".into()]);
        let Some(entries) = entries else { return };
        assert_eq!(flags_of("/bin/vmm", &entries), Some(READ_ONLY));
        assert_eq!(flags_of("/usr/share", &entries), Some(READ_ONLY | MountFlags::NOEXEC));
        for data in ["/tmp", ROOT_DISK_PATH] {
            assert_eq!(flags_of(data, &entries), Some(DATA), "{data}");
        }
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        let mut elf = vec![0; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        (elf[54], elf[56], elf[64]) = (56, 2, 1);
        fs::write(&file, &elf).unwrap();
        assert!(!is_dynamic(&file).unwrap());
        elf[64 + 56] = 3;
        fs::write(&file, &elf).unwrap();
        assert!(is_dynamic(&file).unwrap());
        fs::write(&file, "#!/bin/sh").unwrap();
        assert!(!is_dynamic(&file).unwrap());
        elf.truncate(100);
        fs::write(&file, &elf).unwrap();
        assert_eq!(is_dynamic(&file).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
