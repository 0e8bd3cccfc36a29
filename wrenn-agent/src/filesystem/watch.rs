//! A directory that is watched: the kernel's inotify events in the words of the wire.
//!
//! What nobody has read yet waits in the kernel's queue, which is bounded and says where it overflowed; what was read
//! and not taken waits in a [`Queue`].
//!
//! - **Below**: a watch sees one directory. A new one is given a watch of its own and then looked through: what was put
//!   into it in between is told as created. If the kernel tells of that as well, it is not told twice.
//! - **Uploads** are written beside their destination and moved there. They are told as if they had been written in
//!   place: that is what clients of this protocol expect.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use connectrpc::ConnectError;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use wrenn_agent_api::proto::filesystem::{EventType, FilesystemEvent};

use super::queue::Queue;
use super::{entry, io_error};
use crate::paths::Staging;
use crate::sys;
use crate::users::Names;

/// The most directories that one watch follows.
const MAX_DIRECTORIES: usize = 32 * 1024;

/// The most uploads whose move is half told at any time.
const MAX_MOVES: usize = 64;

/// What is to be watched, and how.
#[derive(Debug)]
pub(super) struct Subject {
    /// An absolute path.
    pub(super) path: String,
    pub(super) recursive: bool,
    pub(super) include_entry: bool,
    pub(super) allow_network_mounts: bool,
}

/// See above. Everything blocks for a moment.
pub(super) struct Watch {
    subject: Subject,
    inotify: Arc<AsyncFd<OwnedFd>>,
    /// The watched directories, by what they are called below the subject: nothing, for itself.
    directories: HashMap<i32, String>,
    /// What was told as created because it was found; the kernel's word of it may still come.
    found: HashSet<String>,
    /// Uploads that have left their first name, by the number that the kernel gives a move.
    moves: VecDeque<(u32, Staging)>,
    pub(super) queue: Queue,
}

impl Watch {
    /// Begins to watch. Must be called within the runtime.
    pub(super) fn begin(subject: Subject) -> Result<Self, ConnectError> {
        let path = &subject.path;
        let metadata = fs::metadata(path).map_err(|e| io_error(path, &e))?;
        if !metadata.is_dir() {
            return Err(ConnectError::invalid_argument(format!("path '{path}' is no directory")));
        }
        if !subject.allow_network_mounts && is_on_network(path) {
            return Err(ConnectError::invalid_argument(format!(
                "path '{path}' is on a network file system, where changes made elsewhere are not seen"
            )));
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| match e {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
                ConnectError::resource_exhausted("too many directories are watched already")
            }
            e => ConnectError::internal(format!("cannot watch: {e}")),
        })?;
        let inotify =
            sys::watch(inotify).map_err(|e| ConnectError::internal(format!("cannot watch: {e}")))?;
        let mut watch = Self {
            subject,
            inotify: Arc::new(inotify),
            directories: HashMap::new(),
            found: HashSet::new(),
            moves: VecDeque::new(),
            queue: Queue::default(),
        };
        watch.follow(String::new(), false)?;
        Ok(watch)
    }

    /// What becomes readable when there is something to [`pump`](Self::pump).
    pub(super) fn inotify(&self) -> Arc<AsyncFd<OwnedFd>> {
        self.inotify.clone()
    }

    /// Takes over what the kernel has, until about `limit` events wait; says whether that was all.
    pub(super) fn pump(&mut self, limit: usize) -> bool {
        let inotify = self.inotify.clone();
        let mut buffer = [MaybeUninit::uninit(); 8 * 1024];
        let mut reader = Reader::new(inotify.get_ref(), &mut buffer);
        let mut names = None;
        loop {
            if reader.is_buffer_empty() && self.queue.len() >= limit {
                return false;
            }
            match reader.next() {
                Ok(event) => {
                    self.take(event.wd(), event.events(), event.cookie(), event.file_name(), &mut names);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // What was done before something was found has all been told by now.
                    self.found.clear();
                    return true;
                }
                Err(e) => {
                    self.queue.fail(ConnectError::internal(format!("cannot read what changed: {e}")));
                    return true;
                }
            }
        }
    }

    fn take(
        &mut self,
        wd: i32,
        what: ReadFlags,
        cookie: u32,
        name: Option<&CStr>,
        names: &mut Option<Names>,
    ) {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.queue.lose();
            return;
        }
        // Of one that is not watched any more something may still be queued.
        let Some(directory) = self.directories.get(&wd) else { return };
        if what.contains(ReadFlags::IGNORED) {
            self.directories.remove(&wd);
            return;
        }
        let Some(name) = name else {
            // Of those below, the directory that they are in tells the same.
            if directory.is_empty() && what.contains(ReadFlags::DELETE_SELF) {
                self.tell(".", EventType::EVENT_TYPE_REMOVE, names);
            } else if directory.is_empty() && what.contains(ReadFlags::MOVE_SELF) {
                self.tell(".", EventType::EVENT_TYPE_RENAME, names);
            }
            return;
        };
        let name = name.to_string_lossy();
        let path = join(directory, &name);
        if let Some(staging) = Staging::of(&name) {
            if what.contains(ReadFlags::MOVED_FROM) {
                self.moves.truncate(MAX_MOVES - 1);
                self.moves.push_front((cookie, staging));
            }
            return;
        }
        let upload = if what.contains(ReadFlags::MOVED_TO) { self.upload(cookie) } else { None };
        match upload {
            Some(staging) => self.tell_upload(&path, staging, names),
            None => self.tell_of(path, what, names),
        }
    }

    /// The upload whose move has this number.
    fn upload(&mut self, cookie: u32) -> Option<Staging> {
        let at = self.moves.iter().position(|(other, _)| *other == cookie)?;
        self.moves.remove(at).map(|(_, staging)| staging)
    }

    fn tell_upload(&mut self, path: &str, staging: Staging, names: &mut Option<Names>) {
        match staging {
            Staging::New if self.found.remove(path) => {}
            Staging::New => self.tell(path, EventType::EVENT_TYPE_CREATE, names),
            Staging::Over => self.tell(path, EventType::EVENT_TYPE_WRITE, names),
        }
        self.tell(path, EventType::EVENT_TYPE_CHMOD, names);
        self.tell(path, EventType::EVENT_TYPE_WRITE, names);
    }

    fn tell_of(&mut self, path: String, what: ReadFlags, names: &mut Option<Names>) {
        let directory = what.contains(ReadFlags::ISDIR) && self.subject.recursive;
        if what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            if self.found.remove(&path) {
                return;
            }
            self.tell(&path, EventType::EVENT_TYPE_CREATE, names);
            if directory && let Err(error) = self.follow(path, true) {
                self.queue.fail(error);
            }
        } else if what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.found.remove(&path);
            if directory && what.contains(ReadFlags::MOVED_FROM) {
                self.leave(&path);
            }
            let moved = what.contains(ReadFlags::MOVED_FROM);
            let kind = if moved { EventType::EVENT_TYPE_RENAME } else { EventType::EVENT_TYPE_REMOVE };
            self.tell(&path, kind, names);
        } else if what.contains(ReadFlags::MODIFY) {
            self.tell(&path, EventType::EVENT_TYPE_WRITE, names);
        } else if what.contains(ReadFlags::ATTRIB) {
            self.tell(&path, EventType::EVENT_TYPE_CHMOD, names);
        }
    }

    fn tell(&mut self, path: &str, kind: EventType, names: &mut Option<Names>) {
        let gone = matches!(kind, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME);
        let entry = if self.subject.include_entry && !gone {
            let full = join(&self.subject.path, path);
            let own = fs::symlink_metadata(&full).ok();
            own.map(|own| entry::entry(&full, &own, names.get_or_insert_with(Names::read)))
        } else {
            None
        };
        self.queue.push(FilesystemEvent { name: path.to_owned(), r#type: kind.into(), entry: entry.into() });
    }

    /// Watches a directory, and, if it is to be, all below it. With `tell`, what is in it is told as created.
    ///
    /// An error is that the subject itself cannot be watched, or that there are too many below.
    fn follow(&mut self, directory: String, tell: bool) -> Result<(), ConnectError> {
        let mut names = None;
        let mut waiting = vec![directory];
        while let Some(directory) = waiting.pop() {
            let path = join(&self.subject.path, &directory);
            match self.add(&path, directory.is_empty()) {
                Ok(wd) => drop(self.directories.insert(wd, directory.clone())),
                Err(Errno::NOSPC | Errno::NOMEM) => return Err(self.too_many()),
                // Gone again, or another thing by now: the kernel tells.
                Err(_) if !directory.is_empty() => continue,
                Err(e) => return Err(io_error(&path, &e.into())),
            }
            if self.directories.len() > MAX_DIRECTORIES {
                return Err(self.too_many());
            }
            if !self.subject.recursive {
                return Ok(());
            }
            for child in fs::read_dir(&path).into_iter().flatten().flatten() {
                let name = child.file_name().to_string_lossy().into_owned();
                if Staging::of(&name).is_some() {
                    continue;
                }
                let Ok(kind) = child.file_type() else { continue };
                let inside = join(&directory, &name);
                if tell {
                    self.tell(&inside, EventType::EVENT_TYPE_CREATE, &mut names);
                    if kind.is_file() && child.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                        self.tell(&inside, EventType::EVENT_TYPE_WRITE, &mut names);
                    }
                    // Where events are lost anyway it makes no difference.
                    if self.queue.is_whole() {
                        self.found.insert(inside.clone());
                    }
                }
                if kind.is_dir() {
                    waiting.push(inside);
                }
            }
        }
        Ok(())
    }

    fn add(&self, path: &str, subject: bool) -> rustix::io::Result<i32> {
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        if !subject {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        inotify::add_watch(self.inotify.get_ref(), path, flags)
    }

    /// Watches a directory that was moved away no more, nor what is below it: it may be anywhere.
    fn leave(&mut self, directory: &str) {
        let inside = |path: &str| {
            path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let gone: Vec<i32> =
            self.directories.iter().filter(|(_, path)| inside(path)).map(|(wd, _)| *wd).collect();
        for wd in gone {
            self.directories.remove(&wd);
            // It may be gone by itself.
            let _ = inotify::remove_watch(self.inotify.get_ref(), wd);
        }
    }

    fn too_many(&self) -> ConnectError {
        let path = &self.subject.path;
        ConnectError::resource_exhausted(format!(
            "path '{path}' has more directories below than can be watched"
        ))
    }
}

/// A name below a directory, which may be the one that all names are relative to.
fn join(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", name) => name.to_owned(),
        (directory, "" | ".") => directory.to_owned(),
        ("/", name) => format!("/{name}"),
        (directory, name) => format!("{directory}/{name}"),
    }
}

/// Whether what is at `path` may be changed by others than this machine's kernel.
fn is_on_network(path: &str) -> bool {
    // NFS, SMB and CIFS, FUSE, 9P, Ceph, AFS, Coda: linux/magic.h and the file systems' own sources.
    const KINDS: [i64; 9] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x6573_5546,
        0x0102_1997,
        0x00c3_6400,
        0x5346_414f,
        0x7375_7245,
    ];
    // 32 bits, whatever their sign.
    rustix::fs::statfs(path).is_ok_and(|fs| KINDS.contains(&(fs.f_type & 0xffff_ffff)))
}
