//! One thing in the file system, described.
//!
//! Of a link, type, size, mode and time are those of what it leads to, permissions and owner its own.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use connectrpc::ConnectError;
use wrenn_agent_api::proto::filesystem as pb;
use wrenn_agent_api::proto::filesystem::FileType as Kind;

use super::io_error;
use crate::paths;
use crate::users::Names;

/// Where uploads store their metadata.
const METADATA_PREFIX: &str = "user.e2b.";

/// Describes what is at `path`, an absolute one.
pub(super) fn describe(path: &str) -> Result<pb::EntryInfo, ConnectError> {
    let own = fs::symlink_metadata(path).map_err(|e| not_there(path, &e))?;
    Ok(entry(path, &own, &Names::read()))
}

/// What lies below a file is not there, rather than a bad path: that is what clients ask about.
fn not_there(path: &str, error: &io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::NotADirectory => ConnectError::not_found(format!("path '{path}' does not exist")),
        _ => io_error(path, error),
    }
}

/// The description of `path`, whose own metadata are `own`.
pub(super) fn entry(path: &str, own: &Metadata, names: &Names) -> pb::EntryInfo {
    let link = own.file_type().is_symlink();
    let text = if link { fs::read_link(path).ok() } else { None };
    let target = if link { fs::metadata(path).ok() } else { None };
    let shown = target.as_ref().unwrap_or(own);
    let kind = match shown.file_type() {
        kind if kind.is_dir() => Kind::FILE_TYPE_DIRECTORY,
        kind if kind.is_symlink() => Kind::FILE_TYPE_SYMLINK,
        _ => Kind::FILE_TYPE_FILE,
    };
    pb::EntryInfo {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        r#type: kind.into(),
        path: path.to_owned(),
        size: shown.size().try_into().unwrap_or(i64::MAX),
        mode: shown.mode() & 0o777,
        permissions: permissions(own.file_type(), own.mode()),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        modified_time: timestamp(shown).into(),
        symlink_target: text.as_deref().and_then(|text| link_target(path, text)),
        link_text: text.map(|text| text.into_os_string().into_vec().into()),
        metadata: if shown.is_file() { metadata(path).into_iter().collect() } else { Default::default() },
    }
}

/// Where a link that says `text` leads, as an absolute path.
fn link_target(path: &str, text: &Path) -> Option<String> {
    let parent = Path::new(path).parent()?;
    Some(paths::resolve(&parent.join(text).to_string_lossy(), "/"))
}

// The generated type has one more field or none, by the features that the workspace's other crates switch on.
#[allow(clippy::needless_update)]
fn timestamp(of: &Metadata) -> buffa_types::google::protobuf::Timestamp {
    buffa_types::google::protobuf::Timestamp {
        seconds: of.mtime(),
        // 0 to 999,999,999 by stat(2).
        nanos: of.mtime_nsec() as i32,
        ..Default::default()
    }
}

/// As Go's `fs.FileMode` prints it, which clients of this protocol know: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`.
fn permissions(kind: FileType, mode: u32) -> String {
    let marks = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'L'),
        (kind.is_block_device() || kind.is_char_device(), 'D'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (kind.is_char_device(), 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
    if text.is_empty() {
        text.push('-');
    }
    for (bit, letter) in (0..9).rev().zip("rwxrwxrwx".chars()) {
        text.push(if mode & 1 << bit != 0 { letter } else { '-' });
    }
    text
}

/// The extended attributes that hold metadata; none where they cannot be read.
fn metadata(path: &str) -> HashMap<String, String> {
    // The kernel's limit of a list of names, and of a value.
    const MAX: usize = 64 * 1024;
    let mut names = vec![0; MAX];
    let Ok(len) = rustix::fs::listxattr(path, &mut names[..]) else { return HashMap::new() };
    let mut value = vec![0; MAX];
    let names = names[..len].split_inclusive(|byte| *byte == 0);
    let pairs = names.filter_map(|name| {
        let name = CStr::from_bytes_with_nul(name).ok()?;
        let key = name.to_str().ok()?.strip_prefix(METADATA_PREFIX)?;
        let len = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
        Some((key.to_owned(), String::from_utf8_lossy(&value[..len]).into_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn permissions_read_as_go_prints_them() {
        let kind = |path: &str| fs::symlink_metadata(path).unwrap().file_type();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("f"), "").unwrap();
        symlink("f", at("l")).unwrap();
        assert_eq!(permissions(kind(&at("f")), 0o100_644), "-rw-r--r--");
        assert_eq!(permissions(kind(&at("f")), 0o104_755), "urwxr-xr-x");
        assert_eq!(permissions(kind(&at("l")), 0o120_777), "Lrwxrwxrwx");
        assert_eq!(permissions(kind("/"), 0o041_777), "dtrwxrwxrwx");
        assert_eq!(permissions(kind("/dev/null"), 0o020_666), "Dcrw-rw-rw-");
    }

    #[test]
    fn links_show_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("file"), "12345").unwrap();
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o640)).unwrap();
        for (link, target) in [("link", "file"), ("up", "../nowhere/.."), ("broken", "nothing")] {
            symlink(target, at(link)).unwrap();
        }
        let file = describe(&at("file")).unwrap();
        assert_eq!((file.name.as_str(), file.size, file.mode), ("file", 5, 0o640));
        assert_eq!((file.permissions.as_str(), file.symlink_target), ("-rw-r-----", None));
        assert_eq!(file.link_text, None);
        let link = describe(&at("link")).unwrap();
        assert_eq!((link.r#type.as_known(), link.size, link.mode), (Some(Kind::FILE_TYPE_FILE), 5, 0o640));
        assert_eq!((link.permissions.as_str(), link.symlink_target), ("Lrwxrwxrwx", Some(at("file"))));
        assert_eq!(link.link_text.as_deref(), Some(&b"file"[..]));
        assert_eq!(describe(&at("up")).unwrap().link_text.as_deref(), Some(&b"../nowhere/.."[..]));
        let broken = describe(&at("broken")).unwrap();
        assert_eq!(broken.r#type.as_known(), Some(Kind::FILE_TYPE_SYMLINK));
        assert_eq!(describe(&at("nothing")).unwrap_err().code, connectrpc::ErrorCode::NotFound);
        assert_eq!(describe(&at("file/x")).unwrap_err().code, connectrpc::ErrorCode::NotFound);
    }
}
