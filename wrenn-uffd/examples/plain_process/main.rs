//! Serves a plain process's memory: no virtual machine, no fork. The process maps memory, registers it with a
//! userfaultfd and sends that to a fault server, here in the same process, whose pages are computed on
//! demand. What was touched is recorded, and the next one finds it there before it asks.
//!
//! `cargo run -p wrenn-uffd --example plain_process` (needs root, or vm.unprivileged_userfaultfd=1)

#[allow(unsafe_code)]
mod sys;

use std::error::Error;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};
use wrenn_base::BoxError;
use wrenn_uffd::{FaultServer, FaultServerOptions, PageRun, PageSource, Prefetch, Run, RunKind};

use crate::sys::Mapping;

const PAGE: u64 = 4096;

/// Sixteen pages that hold their own number, then sixteen of zeros, and so on.
struct Stripes {
    len: u64,
}

impl PageSource for Stripes {
    fn len(&self) -> u64 {
        self.len
    }

    fn lookup(&self, offset: u64, max: u64) -> Run {
        const STRIPE: u64 = 16 * PAGE;
        let kind = if (offset / STRIPE).is_multiple_of(2) { RunKind::Data } else { RunKind::Zero };
        Run { kind, len: max.min(STRIPE - offset % STRIPE) }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        for (i, page) in buf.chunks_mut(PAGE as usize).enumerate() {
            page.fill((offset / PAGE) as u8 + i as u8);
        }
        Ok(())
    }
}

/// The monitor's part of the protocol: one JSON array, with the userfaultfd beside it.
fn hand_over(socket: &Path, memory: &Mapping, uffd: &Uffd) -> Result<UnixStream, Box<dyn Error>> {
    let stream = UnixStream::connect(socket)?;
    let message = format!(
        r#"[{{"base_host_virt_addr":{},"size":{},"offset":0,"page_size":{PAGE},"page_size_kib":{PAGE}}}]"#,
        memory.address(),
        memory.len(),
    );
    let fds = [uffd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::empty())?;
    Ok(stream)
}

/// Has memory served, touches some pages, and returns what was recorded of that.
fn serve_and_touch(prefetch: Prefetch) -> Result<Vec<PageRun>, Box<dyn Error>> {
    let memory = Mapping::new(1024 * PAGE as usize)?;
    let uffd = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .require_features(FeatureFlags::EVENT_REMOVE)
        .create()?;
    uffd.register(memory.pointer(), memory.len())?;

    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("uffd.sock");
    let source = Arc::new(Stripes { len: memory.len() as u64 });
    let wanted = match &prefetch {
        Prefetch::Runs(runs) => runs.iter().map(|run| run.pages).sum(),
        _ => 0,
    };
    let options = FaultServerOptions { record: true, prefetch, ..FaultServerOptions::default() };
    let server = FaultServer::listen(&socket, source, options)?;
    let _connection = hand_over(&socket, &memory, &uffd)?;
    while server.stats().prefetched < wanted {
        std::thread::yield_now();
    }

    for page in [0, 1, 500, 17, 1023] {
        let mut bytes = [0; 2];
        memory.read(page * PAGE as usize, &mut bytes);
        println!("page {page:>4} begins with {bytes:?}");
    }
    println!("ended: {:?}", server.stop());
    let stats = server.stats();
    println!(
        "{} faults; {} of {} pages filled, {} of them ahead; {} bytes copied, {} zeroed; half of the answers \
         took at most {:?}",
        stats.faults,
        stats.pages,
        stats.pages_total,
        stats.prefetched,
        stats.bytes_copied,
        stats.bytes_zeroed,
        stats.latency_within(0.5),
    );
    Ok(server.recording())
}

fn main() -> Result<(), Box<dyn Error>> {
    let recorded = serve_and_touch(Prefetch::None)?;
    println!("recorded: {recorded:?}\nand again, with that prefetched:");
    serve_and_touch(Prefetch::Runs(recorded))?;
    Ok(())
}
