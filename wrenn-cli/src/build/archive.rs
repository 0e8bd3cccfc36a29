//! Unpacking a tar archive that somebody gave us.
//!
//! It is unpacked by root, so nothing in it may reach outside of the directory it is unpacked to: an entry with `..` in
//! its name has the whole archive refused, and the `tar` crate refuses to write through a symbolic link that leads
//! out. Leading slashes are dropped, as everywhere. Device nodes and pipes are left out: a guest has its devices from
//! its own kernel.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path};

use tar::{Archive, EntryType};

use super::BuildError;
use crate::progress::Step;

/// The pipe buffer's size, and enough to tell every format by.
const PEEK: usize = 64 << 10;

/// Unpacks the tar archive `archive` (plain, gzip or zstd; a pipe will do) into the directory `root`, and returns how
/// many device nodes and pipes were left out.
///
/// # Errors
/// [`BuildError::NotASource`] for another file, [`BuildError::HostileArchive`] or [`BuildError::Archive`] for one that
/// cannot be unpacked as it is. `root` then holds a part of it.
pub(crate) fn unpack(archive: &Path, root: &Path) -> Result<usize, BuildError> {
    let step = Step::begin(format!("unpacking {}", archive.display()));
    let file = File::open(archive).map_err(BuildError::io("open", archive))?;
    let plain = decompress(file).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => BuildError::NotASource { path: archive.to_owned() },
        _ => BuildError::Archive { path: archive.to_owned(), source },
    })?;
    let mut unpacker = Unpacker { archive, root, step: &step, files: 0, left_out: 0 };
    unpacker.run(plain)?;
    let (files, left_out) = (unpacker.files, unpacker.left_out);
    step.done(&format!("{files} entries, {left_out} device nodes left out"));
    Ok(left_out)
}

struct Unpacker<'a> {
    archive: &'a Path,
    root: &'a Path,
    step: &'a Step,
    files: usize,
    left_out: usize,
}

impl Unpacker<'_> {
    fn run(&mut self, plain: Box<dyn Read>) -> Result<(), BuildError> {
        let path = self.archive.to_owned();
        let broken = |source| BuildError::Archive { path: path.clone(), source };
        let root_user = rustix::process::geteuid().is_root();
        let mut tar = Archive::new(plain);
        tar.set_preserve_permissions(true);
        tar.set_preserve_ownerships(root_user);
        tar.set_unpack_xattrs(root_user);
        let mut directories = Vec::new();
        for entry in tar.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            self.check(&entry)?;
            match entry.header().entry_type() {
                EntryType::Block | EntryType::Char | EntryType::Fifo => {
                    self.left_out += 1;
                    continue;
                }
                // Last, and from the inside out: a directory may be one that nobody can write to.
                EntryType::Directory => {
                    directories.push(entry);
                    continue;
                }
                _ => self.place(&mut entry)?,
            }
        }
        directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
        for mut entry in directories {
            self.place(&mut entry)?;
        }
        if self.files == 0 {
            return Err(broken(io::Error::new(io::ErrorKind::UnexpectedEof, "there is nothing in it")));
        }
        Ok(())
    }

    /// Refuses names that no honest archive has.
    fn check<R: Read>(&self, entry: &tar::Entry<'_, R>) -> Result<(), BuildError> {
        let name = entry.path_bytes();
        let refuse = |reason| BuildError::HostileArchive {
            path: self.archive.to_owned(),
            entry: String::from_utf8_lossy(&name).chars().take(200).collect(),
            reason,
        };
        let leads_out = |path: &Path| path.components().any(|part| part == Component::ParentDir);
        let path = entry.path().map_err(|_| refuse("has no usable name"))?;
        if leads_out(&path) {
            return Err(refuse("leads out of the archive"));
        }
        if entry.header().entry_type() == EntryType::Link {
            let target = entry.link_name().ok().flatten().ok_or_else(|| refuse("links to nothing"))?;
            if target.is_absolute() || leads_out(&target) {
                return Err(refuse("links to a file outside of the archive"));
            }
        }
        Ok(())
    }

    fn place<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), BuildError> {
        self.step.note(&String::from_utf8_lossy(&entry.path_bytes()));
        entry
            .unpack_in(self.root)
            .map_err(|source| BuildError::Archive { path: self.archive.to_owned(), source })?;
        self.files += 1;
        Ok(())
    }
}

/// The plain tar stream in `file`, told by its content; `InvalidData` where it is none.
fn decompress(file: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(PEEK, file);
    let (start, file) = peek(file)?;
    Ok(match &start[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(file)?),
        // POSIX and GNU archives alike say so at offset 257 of their first header.
        _ if start.get(257..262) == Some(b"ustar") => Box::new(file),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no archive")),
    })
}

/// The first 512 bytes, or fewer if that is all, and a stream that still has them.
fn peek(mut file: impl BufRead + 'static) -> io::Result<(Vec<u8>, impl BufRead + 'static)> {
    let mut start = Vec::new();
    file.by_ref().take(512).read_to_end(&mut start)?;
    Ok((start.clone(), io::Cursor::new(start).chain(file)))
}
