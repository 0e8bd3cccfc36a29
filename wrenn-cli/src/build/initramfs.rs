//! The initramfs: a cpio archive (format "newc", the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! ```text
//! /init               the agent
//! /modules.list       the modules to load, in order, by path
//! /lib/modules/*.ko
//! /dev/console        so that the first process has standard streams
//! /dev /proc /sys /sysroot
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use cpio::newc::{self, Builder, ModeFileType};

use super::modules::Module;
use super::{Agent, BuildError};

/// `/dev/console` (the kernel's Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

/// Writes the initramfs to `path`.
///
/// # Errors
/// [`BuildError::Io`].
pub(crate) fn write_initramfs(path: &Path, agent: &Agent, modules: &[Module]) -> Result<(), BuildError> {
    File::create(path)
        .and_then(|file| write(BufWriter::new(file), &agent.program, modules)?.flush())
        .map_err(BuildError::io("write", path))
}

fn write<W: Write>(mut out: W, agent: &[u8], modules: &[Module]) -> io::Result<W> {
    for dir in ["dev", "proc", "sys", "sysroot", "lib", "lib/modules"] {
        let entry = Builder::new(dir).mode(0o755).set_mode_file_type(ModeFileType::Directory);
        out = entry.write(out, 0).finish()?;
    }
    let console = Builder::new("dev/console")
        .mode(0o600)
        .rdev_major(CONSOLE.0)
        .rdev_minor(CONSOLE.1)
        .set_mode_file_type(ModeFileType::Char);
    out = console.write(out, 0).finish()?;
    out = file(out, "init", 0o755, agent)?;
    let mut list = String::new();
    for module in modules {
        let path = format!("lib/modules/{}.ko", module.name);
        out = file(out, &path, 0o644, &module.content)?;
        list.push_str(&format!("/{path}\n"));
    }
    out = file(out, "modules.list", 0o644, list.as_bytes())?;
    newc::trailer(out)
}

fn file<W: Write>(out: W, name: &str, mode: u32, content: &[u8]) -> io::Result<W> {
    let len = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut entry = Builder::new(name).mode(mode).set_mode_file_type(ModeFileType::Regular).write(out, len);
    entry.write_all(content)?;
    entry.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_archive_holds_what_the_agent_and_the_kernel_expect() {
        let modules: Vec<_> = ["virtio_ring", "virtio"]
            .map(|name| Module { name: name.to_owned(), content: name.as_bytes().to_vec() })
            .into();
        let archive = write(Vec::new(), b"agent!", &modules).unwrap();
        let mut rest = &archive[..];
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            found.push((entry.name().to_owned(), entry.mode(), content));
            if entry.name() == "dev/console" {
                assert_eq!((entry.rdev_major(), entry.rdev_minor()), (5, 1));
            }
            rest = reader.finish().unwrap();
        }
        let find = |name: &str| found.iter().find(|(found, ..)| found == name).unwrap();
        assert_eq!(find("init").1, 0o100_755);
        assert_eq!(find("init").2, "agent!");
        assert_eq!(find("dev/console").1, 0o020_600);
        assert_eq!(find("sysroot").1, 0o040_755);
        assert_eq!(find("lib/modules/virtio.ko").2, "virtio");
        assert_eq!(find("modules.list").2, "/lib/modules/virtio_ring.ko\n/lib/modules/virtio.ko\n");
        // A directory comes before what lies in it, or the kernel drops that.
        let place = |name: &str| found.iter().position(|(found, ..)| found == name).unwrap();
        assert!(place("lib") < place("lib/modules") && place("lib/modules") < place("lib/modules/virtio.ko"));
        assert!(place("dev") < place("dev/console"));
    }
}
