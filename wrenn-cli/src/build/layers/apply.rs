//! Applying layers, one on top of the other.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::entry::{Attributes, Extensions, Head, Kind};
use super::error::EntryError::{self, Refused, TooLarge};
use super::tree::{Dir, Missing, Tree};
use super::{LayerError, Limits, Unpacked};

/// A file whose name begins so hides the one with the rest of its name.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";

/// A root directory to which layers are applied from the lowest up.
///
/// Directories get their attributes at the very end ([`finish`](Self::finish)), since filling them changes their times and
/// may be what their modes forbid.
#[derive(Debug)]
pub(crate) struct Unpacker {
    tree: Tree,
    limits: Limits,
    /// Whether files can be given away.
    privileged: bool,
    bytes: u64,
    unpacked: Unpacked,
    /// What the layer that is being applied has made, by its path without links.
    made: HashSet<PathBuf>,
    /// What it has hidden of the layers below.
    hidden: HashSet<PathBuf>,
    directories: BTreeMap<PathBuf, Attributes>,
    /// The last layer.
    layer: String,
    buffer: Vec<u8>,
}

impl Unpacker {
    /// Layers are to be unpacked into the directory `root`, which should be empty and no one else's to write to.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub(crate) fn new(root: &Path, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            tree: Tree::open(root)?,
            limits,
            privileged: rustix::process::geteuid().is_root(),
            bytes: 0,
            unpacked: Unpacked::default(),
            made: HashSet::new(),
            hidden: HashSet::new(),
            directories: BTreeMap::new(),
            layer: String::new(),
            buffer: vec![0; 256 << 10],
        })
    }

    /// Applies a layer: `archive` is the plain tar stream, which is read to its end. `layer` names it in errors.
    ///
    /// # Errors
    /// [`LayerError`], which names the entry. The root then holds a part of the layer and is of no use.
    pub(crate) fn apply(&mut self, layer: &str, archive: &mut dyn Read) -> Result<(), LayerError> {
        layer.clone_into(&mut self.layer);
        self.made.clear();
        self.hidden.clear();
        let read = Cell::new(self.bytes);
        let mut at = String::new();
        let result = self.unpack(Counted { inner: archive, read: &read, limit: self.limits.bytes }, &mut at);
        self.bytes = read.get();
        result.map_err(|source| LayerError {
            layer: layer.to_owned(),
            entry: at,
            source: match source {
                EntryError::Archive(_) if self.bytes > self.limits.bytes => {
                    TooLarge { what: "the bytes of all layers", limit: self.limits.bytes }
                }
                source => source,
            },
        })
    }

    /// Gives all directories the attributes that the topmost layer which has them says.
    ///
    /// # Errors
    /// [`LayerError`], which names the directory.
    pub(crate) fn finish(mut self) -> Result<Unpacked, LayerError> {
        // From the inside out: an ordinary user cannot get through a directory that is closed.
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            self.finish_directory(&path, &attributes).map_err(|source| LayerError {
                layer: self.layer.clone(),
                entry: path.to_string_lossy().into_owned(),
                source,
            })?;
        }
        Ok(self.unpacked)
    }

    fn finish_directory(&mut self, path: &Path, attributes: &Attributes) -> Result<(), EntryError> {
        let Some(dir) = self.tree.walk(path, Missing::Stop)? else { return Ok(()) };
        let fd = dir.reopen().map_err(EntryError::io("open the directory"))?;
        self.set_attributes(fd.as_fd(), attributes)
    }

    fn unpack(&mut self, archive: Counted<'_>, at: &mut String) -> Result<(), EntryError> {
        let mut archive = tar::Archive::new(archive);
        let mut extensions = Extensions::default();
        for entry in archive.entries().map_err(EntryError::Archive)?.raw(true) {
            let mut entry = entry.map_err(EntryError::Archive)?;
            self.unpacked.entries += 1;
            if self.unpacked.entries > self.limits.entries {
                return Err(TooLarge { what: "the entries of all layers", limit: self.limits.entries });
            }
            let (kind, size) = (entry.header().entry_type(), entry.size());
            *at = String::from_utf8_lossy(&entry.header().path_bytes()).into_owned();
            if extensions.take(kind, size, &mut entry)? {
                continue;
            }
            let head = Head::new(entry.header(), std::mem::take(&mut extensions))?;
            *at = head.path.to_string_lossy().into_owned();
            self.place(&head, &mut entry)?;
        }
        // What follows the end of the archive counts, for its digest too.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(EntryError::Archive)?;
        Ok(())
    }

    fn place(&mut self, head: &Head, data: &mut dyn Read) -> Result<(), EntryError> {
        let Some(name) = head.path.file_name() else {
            if head.kind != Kind::Directory {
                return Err(Refused("has the root's place and is no directory"));
            }
            self.directories.insert(PathBuf::new(), head.attributes.clone());
            return Ok(());
        };
        let parent = head.path.parent().unwrap_or(Path::new(""));
        match parent.iter().find_map(|part| part.as_bytes().strip_prefix(WHITEOUT)) {
            None => {}
            // Bookkeeping of old tools, and of no meaning to others.
            Some(part) if part.starts_with(WHITEOUT) => return Ok(()),
            Some(_) => return Err(Refused("lies beneath a whiteout")),
        }
        match name.as_bytes().strip_prefix(WHITEOUT) {
            None => self.make(head, parent, name, data),
            Some(b".wh..opq") => self.hide_all(parent),
            Some(hidden) if hidden.starts_with(WHITEOUT) => Ok(()),
            Some(b"" | b"." | b"..") => Err(Refused("hides what no directory has")),
            Some(hidden) => self.hide(parent, OsStr::from_bytes(hidden)),
        }
    }

    /// Removes `name` as lower layers have it.
    fn hide(&mut self, parent: &Path, name: &OsStr) -> Result<(), EntryError> {
        let Some(dir) = self.tree.walk(parent, Missing::Stop)? else { return Ok(()) };
        let path = dir.path.join(name);
        // Once and for all: the layer's own files are not looked through for each time that it says so.
        if self.hidden.insert(path.clone()) {
            let made = &self.made;
            dir.remove(name, &|path| made.contains(path)).map_err(EntryError::io("hide what is below it"))?;
            self.forget_directories(&path);
        }
        Ok(())
    }

    /// Removes everything in a directory that lower layers have.
    fn hide_all(&mut self, parent: &Path) -> Result<(), EntryError> {
        let Some(dir) = self.tree.walk(parent, Missing::Stop)? else { return Ok(()) };
        if self.hidden.insert(dir.path.join(OPAQUE)) {
            for name in dir.names().map_err(EntryError::io("list the directory"))? {
                self.hide(&dir.path, &name)?;
            }
        }
        Ok(())
    }

    /// Removes whatever has the place of an entry.
    fn clear(&mut self, dir: &Dir, name: &OsStr) -> Result<(), EntryError> {
        dir.remove(name, &|_| false).map_err(EntryError::io("remove what it replaces"))?;
        let path = dir.path.join(name);
        self.made.remove(&path);
        self.forget_directories(&path);
        Ok(())
    }

    /// Forgets the attributes of the directories at and below `path` that were removed.
    fn forget_directories(&mut self, path: &Path) {
        let below = self.directories.range(path.to_owned()..).map(|(dir, _)| dir);
        let gone: Vec<_> = below
            .take_while(|dir| dir.starts_with(path))
            .filter(|dir| !self.made.contains(*dir))
            .cloned()
            .collect();
        for dir in gone {
            self.directories.remove(&dir);
        }
    }

    fn make(
        &mut self,
        head: &Head,
        parent: &Path,
        name: &OsStr,
        data: &mut dyn Read,
    ) -> Result<(), EntryError> {
        let Some(dir) = self.tree.walk(parent, Missing::Make)? else {
            return Err(Refused("lies in a directory that cannot be made"));
        };
        let path = dir.path.join(name);
        match &head.kind {
            Kind::Directory => {
                if !dir.has_dir(name) {
                    self.clear(&dir, name)?;
                }
                dir.make_dir(name).map_err(EntryError::io("make the directory"))?;
                self.directories.insert(path.clone(), head.attributes.clone());
            }
            Kind::HardLink(target) => self.link(&dir, name, target)?,
            Kind::File(size) => {
                self.clear(&dir, name)?;
                self.write(&dir, name, *size, &head.attributes, data)?;
            }
            Kind::Symlink(target) => {
                self.clear(&dir, name)?;
                fs::symlinkat(target.as_os_str(), &dir.fd, name).map_err(EntryError::io("make the link"))?;
                self.set_name_attributes(&dir, name, &head.attributes)?;
            }
            Kind::Node(kind, major, minor) => {
                self.clear(&dir, name)?;
                self.make_node(&dir, name, *kind, fs::makedev(*major, *minor), &head.attributes)?;
            }
        }
        self.made.insert(path);
        Ok(())
    }

    fn write(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        size: u64,
        attributes: &Attributes,
        data: &mut dyn Read,
    ) -> Result<(), EntryError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&dir.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(EntryError::io("make the file"))?;
        let mut file = File::from(file);
        let mut left = size;
        while left > 0 {
            let length = match data.read(&mut self.buffer) {
                Ok(0) => return Err(EntryError::Archive(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(EntryError::Archive(error)),
            };
            file.write_all(&self.buffer[..length]).map_err(EntryError::io("write the file"))?;
            left = left.saturating_sub(length as u64);
        }
        self.set_attributes(file.as_fd(), attributes)
    }

    /// Makes one more name for the file at `target`, which a lower layer or this one has.
    fn link(&mut self, dir: &Dir, name: &OsStr, target: &Path) -> Result<(), EntryError> {
        let missing = Refused("links to a file that is not there");
        let (Some(parent), Some(target)) = (target.parent(), target.file_name()) else {
            return Err(Refused("links to the root"));
        };
        let Some(from) = self.tree.walk(parent, Missing::Stop)? else { return Err(missing) };
        if from.has_dir(target) {
            return Err(Refused("is a hard link to a directory"));
        }
        if from.path == dir.path && target == name {
            return Ok(());
        }
        self.clear(dir, name)?;
        match fs::linkat(&from.fd, target, &dir.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(missing),
            result => result.map_err(EntryError::io("make the hard link")),
        }
    }

    fn make_node(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        kind: FileType,
        device: u64,
        attributes: &Attributes,
    ) -> Result<(), EntryError> {
        match fs::mknodat(&dir.fd, name, kind, Mode::RUSR | Mode::WUSR, device) {
            Err(Errno::PERM) => {
                self.unpacked.left_out += 1;
                return Ok(());
            }
            result => result.map_err(EntryError::io("make the node"))?,
        }
        self.set_name_attributes(dir, name, attributes)?;
        // Follows links, but what has the name is the node that was just made.
        fs::chmodat(&dir.fd, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())
            .map_err(EntryError::io("set the mode"))
    }

    /// Sets the owner and the time of what cannot be opened without effects of its own.
    fn set_name_attributes(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), EntryError> {
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            fs::chownat(&dir.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(EntryError::io("set the owner"))?;
        }
        // Links and nodes have none in use: the kernel allows them no attributes of users.
        self.unpacked.left_out += attributes.xattrs.len() as u64;
        fs::utimensat(&dir.fd, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(EntryError::io("set the time"))
    }

    fn set_attributes(&mut self, fd: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), EntryError> {
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            fs::fchown(fd, Some(uid), Some(gid)).map_err(EntryError::io("set the owner"))?;
        }
        // After the owner, whose change takes capabilities and set-user-ID bits away; and before the mode, which may not
        // let an ordinary user set them.
        for (name, value) in &attributes.xattrs {
            match fs::fsetxattr(fd, name.as_os_str(), value, XattrFlags::empty()) {
                Err(Errno::PERM | Errno::NOTSUP) => self.unpacked.left_out += 1,
                result => result.map_err(EntryError::io("set an attribute"))?,
            }
        }
        fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).map_err(EntryError::io("set the mode"))?;
        fs::futimens(fd, &times(attributes)).map_err(EntryError::io("set the time"))
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    Timestamps { last_access: attributes.mtime, last_modification: attributes.mtime }
}

/// A stream that ends with an error past a limit, which counts what other streams gave before.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    read: &'a Cell<u64>,
    limit: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.read.set(self.read.get().saturating_add(length as u64));
        if self.read.get() > self.limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(length) }
    }
}
