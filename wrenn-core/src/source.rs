//! Joins the two siblings that must not know each other: a memory image as the fault server's page source.

use wrenn_base::BoxError;
use wrenn_storage::MemoryReader;
use wrenn_uffd::{PageSource, Run, RunKind};

pub(crate) struct ImagePages(pub(crate) MemoryReader);

impl PageSource for ImagePages {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn lookup(&self, offset: u64, max: u64) -> Run {
        let run = self.0.lookup(offset, max);
        let kind = match run.kind {
            wrenn_storage::RunKind::Zero => RunKind::Zero,
            wrenn_storage::RunKind::Data => RunKind::Data,
        };
        Run { kind, len: run.len }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        self.0.read(offset, buf).map_err(Into::into)
    }
}
