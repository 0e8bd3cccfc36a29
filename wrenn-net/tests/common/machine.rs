//! A guest with a whole IP stack: a namespace of its own whose network card is the other end of the slot's TAP device.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::common::{run, sys, within, within_new_namespace, within_path};

pub(crate) struct Machine {
    namespace: File,
    done: Arc<AtomicBool>,
    wire: Option<JoinHandle<()>>,
}

impl Machine {
    /// Takes the TAP in the namespace `netns`, as a monitor does.
    pub(crate) fn attach(netns: &Path) -> Self {
        let tap = || {
            let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("the TUN driver");
            sys::attach_tap(&tun).expect("a free TAP");
            tun
        };
        let (card, namespace) = within_new_namespace(|| {
            let card = tap();
            run("ip", &["link", "set", "lo", "up"]);
            run("ip", &["link", "set", "tap0", "address", "06:00:a9:fe:00:15", "up"]);
            run("ip", &["address", "add", "169.254.0.21/30", "dev", "tap0"]);
            run("ip", &["route", "add", "default", "via", "169.254.0.22"]);
            (card, File::open("/proc/thread-self/ns/net").expect("its namespace"))
        });
        let tap = within_path(netns, tap);
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let wire = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                carry(&tap, &card);
            }
        });
        Self { namespace, done, wire: Some(wire) }
    }

    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace, work)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(wire) = self.wire.take() {
            wire.join().expect("the wire");
        }
    }
}

/// Carries a frame each way, if there are any.
fn carry(one: &File, other: &File) {
    let mut ends = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
    let moment = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    poll(&mut ends, Some(&moment)).expect("to poll");
    let ready: Vec<_> = ends.iter().map(|end| end.revents().contains(PollFlags::IN)).collect();
    for (ready, (mut from, mut to)) in ready.into_iter().zip([(one, other), (other, one)]) {
        if ready {
            let mut frame = [0; 4096];
            let length = from.read(&mut frame).expect("a frame");
            // A card that is not up yet loses it.
            let _ = to.write(&frame[..length]);
        }
    }
}
