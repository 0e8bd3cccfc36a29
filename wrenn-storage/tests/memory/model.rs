//! A guest's memory as a plain vector, the dumps a monitor would write of it, and the images that are made of it.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wrenn_base::Bytes;
use wrenn_storage::{Imported, LayerDir, MemoryImage, RunKind, durable};

pub(crate) const PAGE: usize = 4096;

/// What happens to one page before a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// New content that the seed determines; not all zero.
    Fill(u8),
    /// New content of which only the last byte is not zero.
    LastByte(u8),
    /// Dirtied, and all zero now.
    Zero,
    /// Dirtied, with what it held already.
    Rewrite,
}

/// A guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest(pub(crate) Vec<u8>);

impl Guest {
    pub(crate) fn new(pages: usize) -> Self {
        Self(vec![0; pages * PAGE])
    }

    pub(crate) fn size(&self) -> Bytes {
        Bytes(self.0.len() as u64)
    }

    pub(crate) fn page(&self, page: usize) -> &[u8] {
        &self.0[page * PAGE..(page + 1) * PAGE]
    }

    pub(crate) fn apply(&mut self, page: usize, write: Write) {
        let content = &mut self.0[page * PAGE..(page + 1) * PAGE];
        match write {
            Write::Fill(seed) => {
                let mut state = u32::from(seed) * 2 + 1 + page as u32 * 0x1_0001;
                for byte in content {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = (state >> 24) as u8;
                }
            }
            Write::LastByte(byte) => {
                content.fill(0);
                content[PAGE - 1] = byte.max(1);
            }
            Write::Zero => content.fill(0),
            Write::Rewrite => {}
        }
    }

    /// A full dump: pages in `holes` are left out if they are zero, everything else is written.
    pub(crate) fn dump_full(&self, path: &Path, holes: impl Fn(usize) -> bool) {
        let file = File::create(path).unwrap();
        file.set_len(self.0.len() as u64).unwrap();
        for page in 0..self.0.len() / PAGE {
            if !(holes(page) && self.page(page).iter().all(|byte| *byte == 0)) {
                file.write_all_at(self.page(page), (page * PAGE) as u64).unwrap();
            }
        }
    }

    /// A diff dump: exactly `dirty` is written, the rest is a hole.
    pub(crate) fn dump_diff(&self, path: &Path, dirty: impl IntoIterator<Item = usize>) {
        let file = File::create(path).unwrap();
        file.set_len(self.0.len() as u64).unwrap();
        for page in dirty {
            file.write_all_at(self.page(page), (page * PAGE) as u64).unwrap();
        }
    }

    /// The whole memory through a writer, in pieces of `step` pages of which those that are zero and for which `left_out`
    /// says so are not given at all.
    pub(crate) fn put_full(
        &self,
        layers: &LayerDir,
        step: usize,
        left_out: impl Fn(usize) -> bool,
    ) -> Imported {
        let mut writer = MemoryImage::write_full(self.size(), layers).unwrap();
        for (piece, pages) in self.0.chunks(step * PAGE).enumerate() {
            if !(left_out(piece) && pages.iter().all(|byte| *byte == 0)) {
                writer.put((piece * step * PAGE) as u64, pages).unwrap();
            }
        }
        writer.finish().unwrap()
    }

    /// Exactly `pages` through a writer over `base`, in runs of at most `step` pages.
    pub(crate) fn put_diff(&self, base: &MemoryImage, pages: &BTreeSet<usize>, step: usize) -> Imported {
        let mut writer = base.write_diff().unwrap();
        let (pages, mut next) = (pages.iter().copied().collect::<Vec<_>>(), 0);
        while next < pages.len() {
            let first = pages[next];
            let run = pages[next..].iter().zip(first..).take_while(|(page, expected)| *page == expected);
            let run = run.count().min(step);
            writer.put((first * PAGE) as u64, &self.0[first * PAGE..(first + run) * PAGE]).unwrap();
            next += run;
        }
        writer.finish().unwrap()
    }

    /// Panics where `image` is not exactly this memory, by every way of reading it.
    pub(crate) fn check(&self, image: &MemoryImage) {
        let reader = image.reader();
        assert_eq!(image.guest_size(), self.size());
        let mut read = vec![0xee; self.0.len()];
        reader.read(0, &mut read).unwrap();
        self.compare(0, &read);
        let mut offset = 0;
        while offset < self.0.len() {
            let run = reader.lookup(offset as u64, u64::MAX);
            let len = run.len as usize;
            assert!(len >= PAGE && len.is_multiple_of(PAGE) && offset + len <= self.0.len(), "run of {len}");
            let expected = &self.0[offset..offset + len];
            if run.kind == RunKind::Zero {
                assert!(expected.iter().all(|byte| *byte == 0), "data at {offset:#x} is said to be zero");
            }
            let mut part = vec![0xee; len];
            reader.read(offset as u64, &mut part).unwrap();
            self.compare(offset, &part);
            offset += len;
        }
        if let Some(flat) = image.flat_layer() {
            self.compare(0, &std::fs::read(flat).unwrap());
        }
    }

    fn compare(&self, offset: usize, read: &[u8]) {
        for (index, page) in read.chunks(PAGE).enumerate() {
            let at = offset + index * PAGE;
            assert!(page == &self.0[at..at + page.len()], "the page at {at:#x} differs");
        }
    }
}

/// The names in a directory that a writer left staged.
pub(crate) fn staged(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(durable::STAGING_PREFIX)).collect()
}

/// A directory with layers and room for dumps and manifests.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    pub(crate) layers: LayerDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub(crate) fn below(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let layers = LayerDir::open(dir.path().join("layers")).unwrap();
        Self { dir, layers }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a diff of exactly the pages that `writes` are about, after they happened to `guest`.
    pub(crate) fn put_diff(
        &self,
        base: &MemoryImage,
        guest: &mut Guest,
        writes: &[(usize, Write)],
    ) -> Imported {
        for (page, write) in writes {
            guest.apply(*page, *write);
        }
        guest.put_diff(base, &writes.iter().map(|(page, _)| *page).collect(), 7)
    }

    pub(crate) fn full(&self, guest: &Guest) -> Imported {
        guest.dump_full(&self.path("dump"), |_| true);
        MemoryImage::import_full(&self.path("dump"), guest.size(), &self.layers).unwrap()
    }

    /// Writes and imports a diff after `writes` happened to `guest`.
    pub(crate) fn diff(&self, base: &MemoryImage, guest: &mut Guest, writes: &[(usize, Write)]) -> Imported {
        for (page, write) in writes {
            guest.apply(*page, *write);
        }
        guest.dump_diff(&self.path("diff"), writes.iter().map(|(page, _)| *page));
        base.import_diff(&self.path("diff")).unwrap()
    }
}
