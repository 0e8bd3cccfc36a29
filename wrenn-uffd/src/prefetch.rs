//! Pages that are filled before anybody touches them, and the record of which were touched.

use std::ops::Range;
use std::sync::Mutex;

use crate::shared::lock;

/// The pages of 4 KiB that are read and copied at once, and the alignment of such a piece in the image.
pub(crate) const CHUNK_PAGES: u64 = 512;

/// The most runs that are recorded: 4 MiB of them.
const MAX_RECORDED: usize = 256 * 1024;

/// A run of an image's pages of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// The number of the first page: its offset in the image divided by 4096.
    pub first: u64,
    /// How many pages there are.
    pub pages: u64,
}

/// What a server fills without being asked: see
/// [`FaultServerOptions::prefetch`](crate::FaultServerOptions::prefetch).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prefetch {
    /// Nothing.
    #[default]
    None,
    /// The whole image, from its beginning.
    All,
    /// These runs, in this order: what [`FaultServer::recording`](crate::FaultServer::recording) gave an
    /// earlier time.
    ///
    /// What lies outside the image is ignored, and so is all that comes after as many pages as the image has.
    Runs(Vec<PageRun>),
}

/// How far a prefetch has come.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// In the order in which they are to be filled, the next one last.
    runs: Vec<Range<u64>>,
    /// How many more pages with content may be copied.
    budget: u64,
}

impl Cursor {
    /// Takes a caller's wish for an image of `pages` pages; `limit` is in bytes.
    pub(crate) fn new(prefetch: Prefetch, pages: u64, limit: u64) -> Self {
        let mut runs: Vec<Range<u64>> = match prefetch {
            Prefetch::None => Vec::new(),
            Prefetch::All => vec![0..pages],
            Prefetch::Runs(runs) => within(&runs, pages),
        };
        runs.reverse();
        Self { runs, budget: limit / crate::source::PAGE_SIZE }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.runs.is_empty() || self.budget == 0
    }

    /// The next pages to be looked at, which lie in one chunk.
    pub(crate) fn next(&self) -> Option<Range<u64>> {
        let run = self.runs.last().filter(|_| self.budget > 0)?;
        let chunk_end = (run.start / CHUNK_PAGES + 1) * CHUNK_PAGES;
        Some(run.start..run.end.min(chunk_end))
    }

    /// The most pages with content that may be copied next.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Goes on at `page`, which is in the run that is under way or at its end.
    pub(crate) fn advance(&mut self, page: u64, copied: u64) {
        self.budget = self.budget.saturating_sub(copied);
        if let Some(run) = self.runs.last_mut() {
            run.start = page;
            if run.is_empty() {
                self.runs.pop();
            }
        }
    }

    /// Gives up.
    pub(crate) fn finish(&mut self) {
        self.runs = Vec::new();
    }
}

/// Runs cut to an image, with neighbours that follow each other made one.
fn within(runs: &[PageRun], pages: u64) -> Vec<Range<u64>> {
    let mut cut: Vec<Range<u64>> = Vec::new();
    let mut left = pages;
    for run in runs {
        let len = run.pages.min(pages.saturating_sub(run.first)).min(left);
        if len == 0 {
            continue;
        }
        left -= len;
        match cut.last_mut() {
            Some(last) if last.end == run.first => last.end += len,
            _ => cut.push(run.first..run.first + len),
        }
    }
    cut
}

/// The runs that were filled because somebody touched them, in that order.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    runs: Mutex<Vec<PageRun>>,
}

impl Recorder {
    pub(crate) fn add(&self, pages: Range<u64>) {
        let mut runs = lock(&self.runs);
        let count = pages.end - pages.start;
        let has_room = runs.len() < MAX_RECORDED;
        match runs.last_mut() {
            Some(last) if last.first + last.pages == pages.start => last.pages += count,
            _ if has_room => runs.push(PageRun { first: pages.start, pages: count }),
            _ => {}
        }
    }

    pub(crate) fn runs(&self) -> Vec<PageRun> {
        lock(&self.runs).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, pages: u64) -> PageRun {
        PageRun { first, pages }
    }

    #[test]
    fn hostile_runs_are_cut_to_the_image() {
        for (runs, cut) in [
            (vec![run(0, 0), run(10, 5), run(15, 5), run(3, 1)], vec![10..20, 3..4]),
            (vec![run(100, 1), run(u64::MAX, u64::MAX), run(99, u64::MAX)], vec![99..100]),
            (vec![run(0, u64::MAX), run(0, 50)], vec![0..100]),
            (vec![run(90, 10), run(0, 60), run(0, 60), run(5, 5)], vec![90..100, 0..60, 0..30]),
            (vec![], vec![]),
        ] {
            assert_eq!(within(&runs, 100), cut, "{runs:?}");
        }
    }

    #[test]
    fn a_cursor_goes_through_aligned_chunks_in_order_within_its_budget() {
        let runs = Prefetch::Runs(vec![run(500, 600), run(3, 4)]);
        let mut cursor = Cursor::new(runs, 2000, 700 * 4096);
        let mut seen = Vec::new();
        while let Some(chunk) = cursor.next() {
            let copied = (chunk.end - chunk.start).min(cursor.budget());
            cursor.advance(chunk.end, copied);
            seen.push(chunk);
        }
        assert_eq!(seen, [500..512, 512..1024, 1024..1100, 3..7]);
        assert!(cursor.is_done());
        let mut poor = Cursor::new(Prefetch::All, 2000, 4096 * 10 + 5);
        assert_eq!(poor.next(), Some(0..512));
        poor.advance(10, 10);
        assert_eq!((poor.next(), poor.is_done()), (None, true));
        assert!(Cursor::new(Prefetch::None, 2000, u64::MAX).is_done());
    }

    #[test]
    fn records_are_joined_and_bounded() {
        let recorder = Recorder::default();
        for pages in [16..32, 32..33, 0..16, 16..17, 90..91] {
            recorder.add(pages);
        }
        assert_eq!(recorder.runs(), [run(16, 17), run(0, 17), run(90, 1)]);
        for page in 0..MAX_RECORDED as u64 + 10 {
            recorder.add(page * 2..page * 2 + 1);
        }
        assert_eq!(recorder.runs().len(), MAX_RECORDED);
    }
}
