//! Filling a page cache before there is a process to serve from it.

use std::ops::Range;

use wrenn_base::Bytes;

use crate::cache::PageCache;
use crate::error::UffdError;
use crate::prefetch::{Cursor, Prefetch};
use crate::source::{PAGE_SIZE, RunKind};

impl PageCache {
    /// Reads what `prefetch` asks for into the cache, at most `limit` bytes, for as long as `wanted` says so, and returns
    /// how many pages that were.
    ///
    /// For the time in which the process that is to be served is still being started. A
    /// [`FaultServer`](crate::FaultServer) with the same wish, started meanwhile, goes on from there: no page is read
    /// twice. Zero pages are left to it. Blocks; `wanted` is asked before each read of at most 2 MiB.
    ///
    /// # Errors
    /// [`UffdError::Source`] and [`UffdError::Cache`]: what was read until then is in the cache.
    pub fn warm(
        &self,
        prefetch: Prefetch,
        limit: Bytes,
        wanted: impl Fn() -> bool,
    ) -> Result<u64, UffdError> {
        let mut cursor = Cursor::new(prefetch, self.source().len() / PAGE_SIZE, limit.0);
        let (mut buffer, mut read) = (Vec::new(), 0);
        while let Some(chunk) = cursor.next().filter(|_| wanted()) {
            let (kind, run) = self.run_of(&chunk);
            let missing = Some(run.clone()).filter(|_| kind == RunKind::Data);
            let Some(missing) = missing.and_then(|run| self.next_unclaimed(run)) else {
                cursor.advance(run.end, 0);
                continue;
            };
            let pages = missing.start..missing.end.min(missing.start + cursor.budget());
            self.claim(pages.clone());
            let filled = self.read_in(&pages, &mut buffer);
            if filled.is_err() {
                self.unclaim(pages.clone());
            }
            read += filled?;
            cursor.advance(pages.end, pages.end - pages.start);
        }
        Ok(read)
    }

    /// What the first of these pages are made of, and how many they are.
    fn run_of(&self, pages: &Range<u64>) -> (RunKind, Range<u64>) {
        let most = pages.end - pages.start;
        let run = self.source().lookup(pages.start * PAGE_SIZE, most * PAGE_SIZE);
        (run.kind, pages.start..pages.start + (run.len / PAGE_SIZE).clamp(1, most))
    }

    fn read_in(&self, pages: &Range<u64>, buffer: &mut Vec<u8>) -> Result<u64, UffdError> {
        let (offset, len) = (pages.start * PAGE_SIZE, ((pages.end - pages.start) * PAGE_SIZE) as usize);
        if let Some(content) = self.source().resident(offset, len).filter(|found| found.len() == len) {
            return self.fill(pages.start, content);
        }
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let content = &mut buffer[..len];
        self.source().read(offset, content).map_err(|source| UffdError::Source { offset, source })?;
        self.fill(pages.start, content)
    }
}
