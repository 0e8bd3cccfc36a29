//! Which kernel modules a guest needs, and in which order they load.
//!
//! What a module depends on is in the module itself (its `.modinfo` section, where `depmod` reads it too), so that a
//! package which was only unpacked, never installed, will do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use super::{BuildError, payload};

/// What the virtual machine's devices need.
const NEEDED: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_net", "ext4"];
/// What is used where the kernel has it: randomness from the host, and telling it of a panic.
const WELCOME: [&str; 2] = ["virtio_rng", "pvpanic_mmio"];

/// No module is larger, compressed or not.
const LARGEST: u64 = 64 << 20;

/// One module, uncompressed.
#[derive(Debug)]
pub(crate) struct Module {
    /// With underscores, as the kernel calls it.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// Loads the modules that a guest needs from `dir` (`lib/modules/RELEASE`), dependencies first.
///
/// # Errors
/// [`BuildError::NoModule`] where the kernel neither has one built in nor as a file.
pub(crate) fn guest_modules(dir: &Path) -> Result<Vec<Module>, BuildError> {
    let mut tree = Tree::open(dir)?;
    for name in NEEDED {
        tree.load(name)?;
    }
    for name in WELCOME {
        if tree.files.contains_key(name) {
            tree.load(name)?;
        }
    }
    Ok(tree.loaded)
}

struct Tree {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    /// What need not be loaded: built in, or in `loaded` already.
    present: BTreeSet<String>,
    loaded: Vec<Module>,
}

impl Tree {
    fn open(dir: &Path) -> Result<Self, BuildError> {
        let mut files = BTreeMap::new();
        let mut open = vec![dir.join("kernel")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).map_err(BuildError::io("read", &dir))? {
                let entry = entry.map_err(BuildError::io("read", &dir))?;
                let kind = entry.file_type().map_err(BuildError::io("read", entry.path()))?;
                if kind.is_dir() {
                    open.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        let builtin = dir.join("modules.builtin");
        let present = fs::read_to_string(&builtin)
            .map_err(BuildError::io("read", &builtin))?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        Ok(Self { dir: dir.to_owned(), files, present, loaded: Vec::new() })
    }

    /// Appends a module, after what it depends on.
    fn load(&mut self, name: &str) -> Result<(), BuildError> {
        // Before its dependencies, so that a circle ends.
        if !self.present.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self
            .files
            .get(name)
            .ok_or_else(|| BuildError::NoModule { path: self.dir.clone(), module: name.to_owned() })?;
        let content = read_module(path)?;
        let depends =
            depends(&content).map_err(|source| BuildError::BadModule { path: path.clone(), source })?;
        for other in depends {
            self.load(&other)?;
        }
        self.loaded.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

/// The kernel's name for the module in a file, `None` for another file.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end))?;
    Some(name.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>, BuildError> {
    let file = fs::read(path).map_err(BuildError::io("read", path))?;
    if path.extension().is_some_and(|extension| extension == "ko") {
        return Ok(file);
    }
    let mut content = Vec::new();
    payload::decompress(&file)
        .map_err(std::io::Error::other)
        .and_then(|stream| stream.take(LARGEST).read_to_end(&mut content))
        .map_err(BuildError::io("unpack", path))?;
    Ok(content)
}

/// The names that a module's `.modinfo` lists as `depends=a,b`.
fn depends(module: &[u8]) -> Result<Vec<String>, object::Error> {
    let file = object::File::parse(module)?;
    let info = file
        .section_by_name_bytes(b".modinfo")
        .map(|section| section.data())
        .transpose()?
        .unwrap_or_default();
    Ok(info
        .split(|byte| *byte == 0)
        .filter_map(|field| field.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_files_give_the_kernels_names() {
        for (file, name) in [
            ("kernel/drivers/char/hw_random/virtio-rng.ko", Some("virtio_rng")),
            ("virtio_net.ko.xz", Some("virtio_net")),
            ("a.ko.zst", Some("a")),
            ("modules.order", None),
            ("x.ko.tmp", None),
        ] {
            assert_eq!(module_name(Path::new(file)).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(depends(b"text").is_err());
        assert!(depends(b"").is_err());
    }
}
