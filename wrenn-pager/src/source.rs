//! Joins the two siblings that must not know each other: a memory image as the fault server's page source.

use wrenn_base::BoxError;
use wrenn_storage::MemoryReader;
use wrenn_uffd::{PageSource, Run, RunKind};

pub(crate) struct ImagePages(pub(crate) MemoryReader);

impl PageSource for ImagePages {
    fn len(&self) -> u64 {
        self.0.len()
    }

    /// A run goes on over the borders of layers: all of them are files at hand, and a fault that stopped there would bring
    /// less the more often a guest was paused.
    fn lookup(&self, offset: u64, max: u64) -> Run {
        let first = self.0.lookup(offset, max);
        let mut len = first.len;
        while len < max {
            let next = self.0.lookup(offset + len, max - len);
            if next.len == 0 || next.kind != first.kind {
                break;
            }
            len += next.len;
        }
        let kind = match first.kind {
            wrenn_storage::RunKind::Zero => RunKind::Zero,
            wrenn_storage::RunKind::Data => RunKind::Data,
        };
        Run { kind, len }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxError> {
        self.0.read(offset, buf).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use wrenn_base::Bytes;
    use wrenn_storage::{LayerDir, MemoryImage};

    use super::*;

    #[test]
    fn a_run_goes_on_over_layers_and_ends_with_its_kind() {
        const PAGE: u64 = 4096;
        let dir = tempfile::tempdir().unwrap();
        let layers = LayerDir::open(dir.path().join("layers")).unwrap();
        let mut full = MemoryImage::write_full(Bytes(8 * PAGE), &layers).unwrap();
        full.put(0, &[1; 5 * PAGE as usize]).unwrap();
        let full = full.finish().unwrap().image;
        let mut diff = full.write_diff().unwrap();
        diff.put(2 * PAGE, &[2; PAGE as usize]).unwrap();
        let pages = ImagePages(diff.finish().unwrap().image.reader());
        assert_eq!(pages.lookup(0, 8 * PAGE), Run { kind: RunKind::Data, len: 5 * PAGE });
        assert_eq!(pages.lookup(PAGE, 2 * PAGE), Run { kind: RunKind::Data, len: 2 * PAGE });
        assert_eq!(pages.lookup(5 * PAGE, 3 * PAGE), Run { kind: RunKind::Zero, len: 3 * PAGE });
    }
}
