//! Kernel modules of the initramfs.
//!
//! `/modules.list` names one file a line, in the order in which to load them (dependencies first), with its
//! parameters behind it if it has any: `/lib/modules/virtio_net.ko napi_tx=1`. Empty lines and `#` comments count
//! for nothing. The files are plain ELF, not compressed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::{During, Failure};

/// Loads what `list` names. No list means no modules; a module that is there already is no error.
pub(super) fn load(list: &Path) -> Result<(), Failure> {
    let text = match fs::read_to_string(list) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.during(|| format!("read {}", list.display()))?,
    };
    for (path, parameters) in parse(&text) {
        load_one(path, parameters).during(|| format!("load the module {path}"))?;
    }
    Ok(())
}

fn load_one(path: &str, parameters: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, &CString::new(parameters)?, 0) {
        Err(Errno::EXIST) => Ok(()),
        // The file was there, so this is about symbols.
        Err(Errno::NOENT) => {
            Err(io::Error::other("it needs a module that comes later in the list, or not at all"))
        }
        result => Ok(result?),
    }
}

fn parse(list: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).map(|line| {
        let (path, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (path, parameters.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_comments_and_parameters() {
        let list = "# first\n/lib/modules/a.ko\n\n  /lib/modules/b.ko  x=1 y=2 # why\n";
        let modules: Vec<_> = parse(list).collect();
        assert_eq!(modules, [("/lib/modules/a.ko", ""), ("/lib/modules/b.ko", "x=1 y=2")]);
    }

    #[test]
    fn a_missing_list_is_empty_and_a_missing_module_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        load(&list).unwrap();
        fs::write(&list, "/nowhere/x.ko\n").unwrap();
        let failure = load(&list).unwrap_err().to_string();
        assert!(failure.starts_with("cannot load the module /nowhere/x.ko: No such file"), "{failure}");
    }
}
