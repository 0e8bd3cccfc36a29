//! Blobs: parts of files, compared with digests and unpacked as they are read.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use wrenn_core::image::Digest;

use super::ImportError;

/// A part of a file; clones and readers have places of their own in it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl Part {
    pub(super) fn new(file: Arc<File>, start: u64, length: u64) -> Self {
        Self { file, start, length }
    }

    /// A whole file, which must be a regular one: others may have no end.
    pub(super) fn whole(path: &Path) -> io::Result<Self> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, length))
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// A part of this part; `None` where it does not lie within.
    pub(super) fn within(&self, start: u64, length: u64) -> Option<Self> {
        if start.checked_add(length)? > self.length {
            return None;
        }
        Some(Self { file: self.file.clone(), start: self.start + start, length })
    }

    pub(super) fn reader(&self) -> PartReader {
        PartReader { part: self.clone(), at: 0 }
    }
}

/// Reads a [`Part`] from its beginning.
#[derive(Debug)]
pub(super) struct PartReader {
    part: Part,
    at: u64,
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.length - self.at).unwrap_or(usize::MAX);
        let end = buffer.len().min(left);
        let length = self.part.file.read_at(&mut buffer[..end], self.part.start + self.at)?;
        if length == 0 && end > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for PartReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
            SeekFrom::End(offset) => self.part.length.checked_add_signed(offset),
        };
        // Further than the end there is nothing.
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?.min(self.part.length);
        Ok(self.at)
    }
}

/// A stream whose digest is taken as it is read.
pub(super) struct Verified<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Verified<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Compares what was read with its digest. `what` it is is for the error.
    ///
    /// # Errors
    /// [`ImportError::Digest`].
    pub(super) fn finish(self, what: &str, expected: &Digest) -> Result<(), ImportError> {
        let found = hex(self.hash);
        if found == expected.as_str() {
            return Ok(());
        }
        Err(ImportError::Digest { what: what.to_owned(), expected: expected.to_string(), found })
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// The digest of a blob in memory, as descriptors have it.
pub(super) fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(Sha256::new_with_prefix(blob)))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares a whole blob in memory with its digest.
///
/// # Errors
/// [`ImportError::Digest`].
pub(super) fn check(what: &str, blob: &[u8], expected: &Digest) -> Result<(), ImportError> {
    let mut verified = Verified::new(io::empty());
    verified.hash.update(blob);
    verified.finish(what, expected)
}

/// What is packed in `input`: gzip and zstd are told by their magic numbers, anything else is plain already.
pub(super) fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(64 << 10, input);
    let mut start = Vec::new();
    input.by_ref().take(4).read_to_end(&mut start)?;
    let magic: [u8; 4] = std::array::from_fn(|at| start.get(at).copied().unwrap_or_default());
    let input = Cursor::new(start).chain(input);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_part_is_read_from_its_beginning_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let part = Part::new(Arc::new(file), 2, 6);
        let text = |part: &Part| io::read_to_string(part.reader());
        assert_eq!(text(&part).unwrap(), "234567");
        assert_eq!(text(&part.within(1, 5).unwrap()).unwrap(), "34567");
        assert!(part.within(1, 6).is_none() && part.within(u64::MAX, 2).is_none());
        let mut reader = part.reader();
        assert_eq!(reader.seek(SeekFrom::End(-1)).unwrap(), 5);
        assert_eq!(reader.seek(SeekFrom::Current(100)).unwrap(), 6);
        assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
        let cut = Part::new(part.file.clone(), 8, 5);
        assert_eq!(text(&cut).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
