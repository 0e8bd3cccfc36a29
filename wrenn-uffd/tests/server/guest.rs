//! Memory that is served, whatever it is served from: a process's part, several of which this one can play.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use userfaultfd::{FeatureFlags, Uffd};
use wrenn_uffd::{Backing, FaultServer, FaultServerOptions};

use super::peer::{Image, PAGE, Scratch, eventually, hand_over, join, page_of, uffd_or_skip};
use super::sys::Mapping;

/// An image without a zero page.
pub(crate) fn all_data(pages: usize) -> Arc<Image> {
    Arc::new(Image((0..pages * PAGE).map(|i| (i / PAGE * 3 + i) as u8 | 1).collect()))
}

/// A process's memory, and its server.
pub(crate) struct Guest {
    pub(crate) server: FaultServer,
    pub(crate) memory: Mapping,
    // Open until the server has ended.
    pub(crate) uffd: Uffd,
    _scratch: Scratch,
}

impl Guest {
    /// Of an image of `pages` pages. `None` where there is no userfaultfd, which is printed.
    pub(crate) fn start(
        backing: impl Into<Backing>,
        pages: usize,
        options: FaultServerOptions,
    ) -> Option<Self> {
        let (uffd, scratch) = (uffd_or_skip(FeatureFlags::EVENT_REMOVE)?, Scratch::new());
        let backing = backing.into();
        let cached = matches!(backing, Backing::Cache(_));
        let server = FaultServer::listen(&scratch.socket(), backing, options).unwrap();
        let memory = if cached {
            join(&scratch.socket(), &uffd).2
        } else {
            let memory = Mapping::new(pages * PAGE).unwrap();
            hand_over(&scratch.socket(), &[(&memory, 0)], &uffd);
            memory
        };
        Some(Self { server, memory, uffd, _scratch: scratch })
    }

    pub(crate) fn wait_for_prefetched(&self, pages: u64) {
        eventually("pages are prefetched", || self.server.stats().prefetched >= pages);
    }

    /// Whether the kernel has an event that the server has not read.
    pub(crate) fn has_news(&self) -> bool {
        let mut fds = [PollFd::new(&self.uffd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    /// Reads pages and compares them with an image's.
    pub(crate) fn check(&self, image: &Image, pages: impl IntoIterator<Item = usize>) {
        for page in pages {
            assert!(page_of(&self.memory, page) == image.page(page), "page {page}");
        }
    }
}
