//! Network namespaces with a name in the file system, and the threads that enter them.
//!
//! Invariant: a thread that enters a namespace is made for it and ends with it. A thread of the caller's must never
//! be moved: it would carry on in the wrong namespace after a panic.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;

use crate::sys;

/// More mounts on top of each other than any history of crashes leaves; it bounds the loop.
const STACKED_MOUNTS: usize = 64;

/// Where a thread is to work.
pub(crate) enum Place<'a> {
    /// In an existing namespace.
    Existing(&'a File),
    /// In a new one, which ends with the thread unless it is [`keep`]-ed.
    Fresh,
}

/// Runs `work` in `place`, on a thread of its own, and waits for it.
///
/// # Errors
/// Where there is no thread to be had or the namespace cannot be entered; `work` has not run then. A panic of `work`
/// is an error too.
pub(crate) fn within<T: Send>(place: Place<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter_and_work = || -> io::Result<T> {
        match place {
            Place::Existing(namespace) => enter(namespace)?,
            Place::Fresh => sys::unshare_network()?,
        }
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("wrenn-netns".into()).spawn_scoped(scope, enter_and_work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}

/// Starts a thread that works in a namespace for as long as it lives.
///
/// # Errors
/// Where there is no thread to be had. If the namespace cannot be entered, the thread ends and logs it.
pub(crate) fn spawn(
    namespace: File,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(move || match enter(&namespace) {
        Ok(()) => work(),
        Err(error) => tracing::error!(%error, "the host's network namespace cannot be entered"),
    })
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// The namespace of the calling thread.
pub(crate) fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Gives the calling thread's namespace the name `path`, under which it outlives the thread.
///
/// A failure may leave the file behind; [`remove`] takes it away.
pub(crate) fn keep(path: &Path) -> io::Result<()> {
    // The mount point must not exist: something mounted there would hide below this namespace for ever.
    drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
    Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", path)?)
}

/// Removes the name `path`; the namespace goes with its last process. Nothing there is success.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for _ in 0..STACKED_MOUNTS {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::INVAL) => break, // no mount point (any more)
            Err(e) => return Err(e.into()),
        }
    }
    // Monitors have mount namespaces of their own with copies of this mount, if it was there when they started.
    // Unlinking the mount point takes it from those too (Linux 3.18), so that they do not keep this namespace alive.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
