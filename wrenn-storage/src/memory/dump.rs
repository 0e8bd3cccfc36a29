//! A dump of guest memory as a monitor writes it: raw, guest offset by guest offset, possibly sparse.
//!
//! What a hole means is the importer's business; this file finds holes and data, page by page, and refuses
//! file systems that cannot tell them apart.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use wrenn_base::fault;

use super::error::MemoryError;
use super::layers::LayerDir;
use super::staged::CHUNK;
use super::{PAGE, PAGE_SIZE};
use crate::durable;

/// File systems whose holes are exact at any time (`statfs(2)` magic numbers: ext2/3/4, tmpfs). Others, xfs
/// among them, reserve space ahead of a growing file and may tell it from data only once it is written back.
const EXACT_AT_ONCE: [u64; 2] = [0xef53, 0x0102_1994];

/// A dump, open.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) file: File,
    pub(super) path: PathBuf,
    length: u64,
}

impl Dump {
    /// Opens a dump, which has to be a plain file of the guest's size on the file system of `layers`.
    pub(super) fn open(path: &Path, guest_size: u64, layers: &LayerDir) -> Result<Self, MemoryError> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .map_err(MemoryError::io("open the dump", path))?;
        let found = file.metadata().map_err(MemoryError::io("look at the dump", path))?;
        if !found.is_file() {
            return Err(MemoryError::DumpKind { path: path.to_owned() });
        }
        if found.len() != guest_size {
            let path = path.to_owned();
            return Err(MemoryError::DumpLength { path, expected: guest_size, found: found.len() });
        }
        let dir = std::fs::metadata(layers.path())
            .map_err(MemoryError::io("look at the layer directory", layers.path()))?;
        if dir.dev() != found.dev() {
            let (dump, layers) = (path.to_owned(), layers.path().to_owned());
            return Err(MemoryError::OtherFileSystem { dump, layers });
        }
        Ok(Self { file, path: path.to_owned(), length: guest_size })
    }

    /// Makes sure that holes are exactly the pages that were never written.
    ///
    /// The writer's part is to give the file its length first, and neither to preallocate nor to read it.
    pub(super) fn settle_holes(&self) -> Result<(), MemoryError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let settled = settle(&self.file).map_err(MemoryError::io("write back the dump", &self.path))?;
        let seen = probe_holes(dir, settled).map_err(MemoryError::io("probe the file system of", dir))?;
        match seen {
            Some(reason) => Err(MemoryError::CoarseHoles { dir: dir.to_owned(), reason }),
            None => Ok(()),
        }
    }

    /// Reads everything that is not a hole, in whole pages and in order, and gives it to `chunk` with its
    /// offset.
    pub(super) fn scan(
        &self,
        mut chunk: impl FnMut(u64, &[u8]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let failed = |source| MemoryError::io("read the dump", &self.path)(source);
        let mut buf = vec![0; CHUNK];
        for range in data_ranges(&self.file, self.length) {
            let mut range = range.map_err(failed)?;
            while !range.is_empty() {
                let step = (range.end - range.start).min(CHUNK as u64) as usize;
                self.file.read_exact_at(&mut buf[..step], range.start).map_err(failed)?;
                chunk(range.start, &buf[..step])?;
                range.start += step as u64;
            }
        }
        Ok(())
    }

    /// Gives the space of a range back; it reads as zero from then on, as it does already.
    pub(super) fn punch(&self, range: Range<u64>) -> Result<(), MemoryError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let failed = MemoryError::io("punch a hole into the dump", &self.path);
        if let Err(e) = fault::point("storage.dump.punch") {
            return Err(failed(e));
        }
        match rustix::fs::fallocate(&self.file, flags, range.start, range.end - range.start) {
            // It costs space then, and nothing else.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => result.map_err(|e| failed(e.into())),
        }
    }

    /// Gives the dump a new name, durably.
    pub(super) fn rename(&self, to: &Path) -> Result<(), MemoryError> {
        durable::rename(&self.path, to).map_err(MemoryError::io("turn the dump into the layer", to))
    }
}

/// Neighbouring pages of one kind in a chunk of `len` bytes, with the run's position in bytes.
pub(crate) fn page_runs<K: PartialEq>(
    len: usize,
    kind_of: impl Fn(Range<usize>) -> K,
) -> impl Iterator<Item = (K, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut kinds = (start..len).step_by(PAGE).map(|page| kind_of(page..(page + PAGE).min(len)));
        let kind = kinds.next()?;
        let end = (start + PAGE * (1 + kinds.take_while(|next| *next == kind).count())).min(len);
        let run = start..end;
        start = end;
        Some((kind, run))
    })
}

/// The parts of a file of `length` bytes that are not holes, widened to whole pages, in order.
fn data_ranges(file: &File, length: u64) -> impl Iterator<Item = io::Result<Range<u64>>> + '_ {
    let mut position = 0;
    std::iter::from_fn(move || {
        let found = next_data(file, position, length).transpose()?;
        // After an error there is nothing sensible to go on from.
        position = found.as_ref().map_or(length, |range| range.end);
        Some(found)
    })
}

fn next_data(file: &File, position: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    if position >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Err(Errno::NXIO) => return Ok(None),
        result => result?,
    };
    if start >= length {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    let start = (start - start % PAGE_SIZE).max(position);
    Ok(Some(start..end.next_multiple_of(PAGE_SIZE).min(length)))
}

/// Writes a file back where only that makes its holes exact; true where it did.
fn settle(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type as u64;
    if EXACT_AT_ONCE.contains(&kind) {
        return Ok(false);
    }
    file.sync_data()?;
    Ok(true)
}

/// Writes single pages into a sparse file in `dir` and says what is wrong with the holes between them, if
/// anything.
fn probe_holes(dir: &Path, settle: bool) -> io::Result<Option<String>> {
    const LENGTH: u64 = 1 << 20;
    const WRITTEN: [u64; 3] = [16 * PAGE_SIZE, 18 * PAGE_SIZE, 128 * PAGE_SIZE];
    let file = tempfile::tempfile_in(dir)?;
    file.set_len(LENGTH)?;
    for (number, offset) in WRITTEN.into_iter().enumerate() {
        // One page's content is zero: some file systems turn that into a hole.
        let content = if number == 1 { 0 } else { 0xa5 };
        file.write_all_at(&[content; PAGE], offset)?;
    }
    if settle {
        file.sync_data()?;
    }
    let seen = data_ranges(&file, LENGTH).collect::<io::Result<Vec<_>>>()?;
    let expected = WRITTEN.map(|offset| offset..offset + PAGE_SIZE);
    Ok((seen != expected).then(|| format!("of single pages written at {WRITTEN:?} it reports {seen:?}")))
}

#[cfg(test)]
mod tests {
    use super::super::is_zero;
    use super::*;

    fn zero_runs(chunk: &[u8]) -> impl Iterator<Item = (bool, Range<usize>)> + '_ {
        page_runs(chunk.len(), |page| is_zero(&chunk[page]))
    }

    #[test]
    fn runs_of_pages_split_where_zero_begins_and_ends() {
        let mut chunk = vec![0u8; 6 * PAGE];
        chunk[PAGE] = 1;
        chunk[3 * PAGE - 1] = 1;
        chunk[5 * PAGE + 77] = 1;
        let runs: Vec<_> =
            zero_runs(&chunk).map(|(zero, run)| (zero, run.start / PAGE, run.end / PAGE)).collect();
        assert_eq!(runs, [(true, 0, 1), (false, 1, 3), (true, 3, 5), (false, 5, 6)]);
        assert_eq!(zero_runs(&[]).count(), 0);
        assert_eq!(zero_runs(&[7; 2 * PAGE]).count(), 1);
    }

    #[test]
    fn data_is_found_in_whole_pages_between_holes() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        file.set_len(64 * PAGE_SIZE).unwrap();
        assert_eq!(data_ranges(&file, 64 * PAGE_SIZE).count(), 0);
        for page in [3, 4, 9, 63] {
            file.write_all_at(&[1; PAGE], page * PAGE_SIZE).unwrap();
        }
        let ranges: Vec<_> = data_ranges(&file, 64 * PAGE_SIZE)
            .map(|range| range.map(|range| (range.start / PAGE_SIZE, range.end / PAGE_SIZE)).unwrap())
            .collect();
        assert_eq!(ranges, [(3, 5), (9, 10), (63, 64)]);
    }
}
