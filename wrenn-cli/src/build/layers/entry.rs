//! What an entry's headers say, checked.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Timespec};
use tar::{EntryType, Header};

use super::error::EntryError::{self, Refused, TooLarge};
use super::pax;

/// No path is longer, as for the kernel.
const LONGEST_PATH: usize = 4095;
/// No component is longer, as for the kernel.
const LONGEST_NAME: usize = 255;
/// No extended header is longer: room for a path, a link's target and the largest attribute.
const LONGEST_EXTENSION: u64 = 256 << 10;
/// The attributes of one entry, values and names together: as much as the kernel takes for one.
const LARGEST_XATTRS: usize = 64 << 10;

/// What an entry is, with what only that kind has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file of so many bytes.
    File(u64),
    Directory,
    /// A symbolic link to anything.
    Symlink(OsString),
    /// One more name of the file at that path from the root.
    HardLink(PathBuf),
    /// A pipe or a device node, with a device's numbers.
    Node(FileType, u32, u32),
}

/// What a file has beside its name and its content.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
}

/// An entry without its content.
#[derive(Debug)]
pub(super) struct Head {
    /// Its place from the root: plain components, or none for the root itself.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
}

/// What the headers before an entry's own say about it.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl Extensions {
    /// Takes an entry that is an extension of the next one; `false` where it is an entry of its own.
    ///
    /// # Errors
    /// It is too long, comes twice, or cannot be read.
    pub(super) fn take(
        &mut self,
        kind: EntryType,
        size: u64,
        data: &mut dyn Read,
    ) -> Result<bool, EntryError> {
        let slot = match kind {
            EntryType::XHeader => &mut self.pax,
            EntryType::GNULongName => &mut self.long_name,
            EntryType::GNULongLink => &mut self.long_link,
            // Defaults for a whole archive: other tools' comments, which layers give no meaning to.
            EntryType::XGlobalHeader => return Ok(true),
            _ => return Ok(false),
        };
        if slot.is_some() {
            return Err(Refused("has two extended headers of one kind"));
        }
        if size > LONGEST_EXTENSION {
            return Err(TooLarge { what: "the bytes of its extended header", limit: LONGEST_EXTENSION });
        }
        let mut content = Vec::new();
        data.read_to_end(&mut content).map_err(EntryError::Archive)?;
        if content.len() as u64 != size {
            return Err(EntryError::Archive(std::io::ErrorKind::UnexpectedEof.into()));
        }
        if kind != EntryType::XHeader {
            // A C string.
            content.truncate(content.iter().position(|byte| *byte == 0).unwrap_or(content.len()));
        }
        *slot = Some(content);
        Ok(true)
    }
}

impl Head {
    /// An entry by its own header and those before it.
    ///
    /// # Errors
    /// [`EntryError::Refused`] or [`EntryError::TooLarge`] for what no honest layer has.
    pub(super) fn new(header: &Header, extensions: Extensions) -> Result<Self, EntryError> {
        let malformed = |_| Refused("has a malformed header");
        let mut name = extensions.long_name.unwrap_or_else(|| header.path_bytes().into_owned());
        let mut link = extensions.long_link.or_else(|| Some(header.link_name_bytes()?.into_owned()));
        let size = header.entry_size().map_err(malformed)?;
        let mut uid = header.uid().map_err(malformed)?;
        let mut gid = header.gid().map_err(malformed)?;
        // Times before 1970 are two's complements.
        let seconds = header.mtime().map_err(malformed)?.cast_signed();
        let mut mtime = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut xattrs = Vec::new();
        let mut xattr_bytes = 0;
        let no_number = || Refused("has a malformed number");
        for (key, value) in pax::records(extensions.pax.as_deref().unwrap_or_default())? {
            match key {
                b"path" => name = value.to_vec(),
                b"linkpath" => link = Some(value.to_vec()),
                b"uid" => uid = pax::number(value).ok_or_else(no_number)?,
                b"gid" => gid = pax::number(value).ok_or_else(no_number)?,
                b"mtime" => mtime = pax::time(value).ok_or_else(no_number)?,
                // Only files of 8 GiB and more have to say so here.
                b"size" if pax::number(value) != Some(size) => {
                    return Err(Refused("has two sizes, or 8 GiB and more"));
                }
                _ if key.starts_with(b"GNU.sparse.") => return Err(Refused("is stored sparsely")),
                _ => {
                    let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
                    xattr_bytes += attribute.len() + value.len();
                    if xattr_bytes > LARGEST_XATTRS {
                        return Err(TooLarge {
                            what: "the bytes of its attributes",
                            limit: LARGEST_XATTRS as u64,
                        });
                    }
                    if attribute.is_empty() || attribute.len() > LONGEST_NAME || attribute.contains(&0) {
                        return Err(Refused("has an attribute with an impossible name"));
                    }
                    xattrs.push((OsString::from_vec(attribute.to_vec()), value.to_vec()));
                }
            }
        }
        let owner = |id: u64| match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(Refused("has an owner that no system has")),
        };
        Ok(Self {
            path: place(&name)?,
            kind: kind(header, &name, link, size)?,
            attributes: Attributes {
                mode: header.mode().map_err(malformed)? & 0o7777,
                uid: owner(uid)?,
                gid: owner(gid)?,
                mtime,
                xattrs,
            },
        })
    }
}

fn kind(header: &Header, name: &[u8], link: Option<Vec<u8>>, size: u64) -> Result<Kind, EntryError> {
    let link = || match &link {
        Some(target) if !target.is_empty() && target.len() <= LONGEST_PATH && !target.contains(&0) => {
            Ok(target)
        }
        _ => Err(Refused("links to nothing")),
    };
    let node = |kind| {
        let number = |number: std::io::Result<Option<u32>>| {
            number.ok().flatten().ok_or(Refused("is a device without numbers"))
        };
        Ok(Kind::Node(kind, number(header.device_major())?, number(header.device_minor())?))
    };
    match header.entry_type() {
        // Archives from before there was a type for directories.
        EntryType::Regular if name.ends_with(b"/") => Ok(Kind::Directory),
        EntryType::Regular | EntryType::Continuous => Ok(Kind::File(size)),
        EntryType::Directory => Ok(Kind::Directory),
        EntryType::Symlink => Ok(Kind::Symlink(OsString::from_vec(link()?.clone()))),
        EntryType::Link => Ok(Kind::HardLink(place(link()?)?)),
        EntryType::Char => node(FileType::CharacterDevice),
        EntryType::Block => node(FileType::BlockDevice),
        EntryType::Fifo => Ok(Kind::Node(FileType::Fifo, 0, 0)),
        EntryType::GNUSparse => Err(Refused("is stored sparsely")),
        _ => Err(Refused("is of an unknown kind")),
    }
}

/// The place of `name` from the root. Leading slashes are dropped, as everywhere.
fn place(name: &[u8]) -> Result<PathBuf, EntryError> {
    if name.len() > LONGEST_PATH {
        return Err(TooLarge { what: "the bytes of its path", limit: LONGEST_PATH as u64 });
    }
    if name.contains(&0) {
        return Err(Refused("has an impossible name"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) if part.len() > LONGEST_NAME => {
                return Err(TooLarge { what: "the bytes of its name", limit: LONGEST_NAME as u64 });
            }
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return Err(Refused("leads out of the root")),
            _ => {}
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_beneath_the_root() {
        for (name, expected) in
            [("a/b", "a/b"), ("./a//b/", "a/b"), ("/etc/passwd", "etc/passwd"), ("./", "")]
        {
            assert_eq!(place(name.as_bytes()).unwrap(), Path::new(expected), "{name}");
        }
        for name in ["..", "../a", "a/../b", "a/..", "/../a", "a\0b"] {
            assert!(matches!(place(name.as_bytes()), Err(Refused(_))), "{name}");
        }
        assert!(matches!(place(&[b'a'; 256]), Err(TooLarge { .. })));
        assert!(matches!(place(&b"a/".repeat(3000)), Err(TooLarge { .. })));
    }
}
