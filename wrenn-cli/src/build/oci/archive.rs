//! The files of an image that lie in a directory or in a tar archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::blob::{Part, decompress};
use super::{ImportError, document};
use crate::progress::Step;

/// No archive of an image has more members.
const MOST_MEMBERS: usize = 100_000;

/// Named files, readable in any order.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// The members of an archive; `None` for a directory.
    members: Option<HashMap<PathBuf, Member>>,
}

#[derive(Debug)]
enum Member {
    File(Part),
    /// Another name of a member: old versions of Docker save equal layers once.
    Link(PathBuf),
}

impl Files {
    pub(super) fn in_dir(path: &Path) -> Self {
        Self { path: path.to_owned(), members: None }
    }

    /// The members of a tar archive. One that is packed (gzip, zstd) is unpacked to `scratch` first, and may have
    /// `limit` bytes.
    ///
    /// # Errors
    /// [`ImportError::NotAnImage`] for what is no archive, else [`ImportError::Io`].
    pub(super) fn in_archive(path: &Path, scratch: &Path, limit: u64) -> Result<Self, ImportError> {
        let packed = Part::whole(path).map_err(ImportError::io("open", path))?;
        let mut magic = Vec::new();
        let read = ImportError::io("read", path);
        packed.reader().take(4).read_to_end(&mut magic).map_err(read)?;
        let content = match magic[..] {
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] => unpack(path, &packed, scratch, limit)?,
            _ => packed,
        };
        let members = members(&content).map_err(|error| ImportError::NotAnImage {
            path: path.to_owned(),
            reason: format!("it is no tar archive ({error})"),
        })?;
        Ok(Self { path: path.to_owned(), members: Some(members) })
    }

    /// The directory or archive.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file by its name, which must be one beneath the directory.
    ///
    /// # Errors
    /// [`ImportError::NotAnImage`] where it is not there, [`ImportError::Io`] where it cannot be read.
    pub(super) fn open(&self, name: &str) -> Result<Part, ImportError> {
        let missing = || self.not_an_image(format!("it has no {name}"));
        let plain = normal(Path::new(name)).ok_or_else(missing)?;
        let Some(members) = &self.members else {
            let path = self.path.join(plain);
            return match Part::whole(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
                result => result.map_err(ImportError::io("open", path)),
            };
        };
        let member = match members.get(&plain) {
            Some(Member::Link(target)) => members.get(target),
            member => member,
        };
        match member {
            Some(Member::File(part)) => Ok(part.clone()),
            _ => Err(missing()),
        }
    }

    /// A document by its name.
    ///
    /// # Errors
    /// As [`open`](Self::open), or [`ImportError::Refused`] where it is too long.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let part = self.open(name)?;
        if part.length() > document::LONGEST {
            return Err(document::refused(name, "it is too long for a document"));
        }
        let mut content = Vec::new();
        part.reader().read_to_end(&mut content).map_err(ImportError::io("read", &self.path))?;
        Ok(content)
    }

    pub(super) fn not_an_image(&self, reason: impl Into<String>) -> ImportError {
        ImportError::NotAnImage { path: self.path.clone(), reason: reason.into() }
    }
}

fn unpack(path: &Path, packed: &Part, scratch: &Path, limit: u64) -> Result<Part, ImportError> {
    let step = Step::begin(format!("unpacking {}", path.display()));
    let target = scratch.join("archive.tar");
    let mut plain =
        decompress(packed.reader()).map_err(ImportError::io("unpack", path))?.take(limit.saturating_add(1));
    let mut file = File::create_new(&target).map_err(ImportError::io("create", &target))?;
    let length = io::copy(&mut plain, &mut file).map_err(ImportError::io("unpack", path))?;
    if length > limit {
        return Err(document::refused(&path.display().to_string(), "it is too large for an image"));
    }
    step.done("");
    Part::whole(&target).map_err(ImportError::io("open", target))
}

/// The members of an archive that can be of interest. Their names fit into plain headers, so extended ones are passed over.
fn members(archive: &Part) -> io::Result<HashMap<PathBuf, Member>> {
    let mut members = HashMap::new();
    let mut tar = tar::Archive::new(archive.reader());
    for entry in tar.entries_with_seek()?.raw(true) {
        let entry = entry?;
        let header = entry.header();
        let Some(name) = normal(&entry.path()?) else { continue };
        let (start, length) = (entry.raw_file_position(), header.entry_size()?);
        let linked = || entry.link_name().ok().flatten();
        let member = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => archive.within(start, length).map(Member::File),
            EntryType::Link => linked().and_then(|target| normal(&target)).map(Member::Link),
            EntryType::Symlink => {
                let beside = name.parent().unwrap_or(Path::new("")).to_owned();
                linked().and_then(|target| normal(&beside.join(target))).map(Member::Link)
            }
            _ => None,
        };
        if let Some(member) = member {
            members.insert(name, member);
        }
        if members.len() > MOST_MEMBERS {
            return Err(io::Error::other("it has too many members"));
        }
    }
    if members.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(members) }
}

/// A name without `.` and `..`; `None` where it is absolute or leads out.
fn normal(name: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return None,
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_plain_and_stay_inside() {
        let plain = |name: &str| normal(Path::new(name));
        assert_eq!(plain("./a//b"), Some("a/b".into()));
        assert_eq!(plain("a/../b"), Some("b".into()));
        for out in ["..", "../a", "a/../../b", "/a"] {
            assert_eq!(plain(out), None, "{out}");
        }
    }
}
