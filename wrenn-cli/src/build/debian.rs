//! A minimal Debian, by mmdebstrap.

use std::fs;
use std::path::{Path, PathBuf};

use super::sources::{self, Sources};
use super::{BuildError, require_root};
use crate::progress::Step;
use crate::tool::{Tool, option};

/// What is there beyond the essential packages (bash and coreutils among them) and apt.
const PACKAGES: &str = "python3-minimal";

/// The user whom commands may run as: contracts with clients name it.
const USER: &str = "user";
const USER_ID: &str = "1000";

/// mmdebstrap's own hook that has bin, lib and sbin be links into /usr from the start. Without it the package that
/// makes them so later stays installed, and brings all of Perl.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// Documentation and translations are left out, now and whenever a guest installs something.
const LEFT_OUT: [&str; 4] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Puts a minimal Debian, and `extra` packages, into the new directory `root`. `scratch` is for temporary files.
///
/// # Errors
/// [`BuildError::NotRoot`], [`BuildError::MissingTool`] or mmdebstrap's own failure.
pub(crate) fn bootstrap(root: &Path, scratch: &Path, extra: &[String]) -> Result<(), BuildError> {
    require_root("making a Debian image")?;
    let tool = Tool::find_contained("mmdebstrap", "mmdebstrap")?;
    let step = Step::begin(format!("installing Debian {}", sources::RELEASE));
    let sources = Sources::of_this_machine(&step)?;
    let packages =
        std::iter::once(PACKAGES).chain(extra.iter().map(String::as_str)).collect::<Vec<_>>().join(",");
    let mut tool = tool
        .args(["--mode=root", "--variant=apt", "--format=directory"])
        .arg(option("--include", packages))
        .args(LEFT_OUT.map(|pattern| option("--dpkgopt", pattern)))
        .args(sources.settings.iter().map(|setting| option("--aptopt", setting)))
        .arg(format!(
            "--customize-hook=chroot \"$1\" useradd --uid {USER_ID} --user-group --create-home --shell /bin/bash {USER}"
        ))
        .env("TMPDIR", scratch);
    if Path::new(MERGED_USR).is_dir() {
        tool = tool.arg(option("--hook-dir", MERGED_USR));
    }
    tool.arg(sources::RELEASE).arg(root).args(&sources.lines).run(&step)?;
    forget_this_machine(root)?;
    step.done("");
    Ok(())
}

/// Takes out what is this machine's and not the image's: its name, its resolver, its mirrors (whose addresses may hold
/// passwords) and how to reach them.
fn forget_this_machine(root: &Path) -> Result<(), BuildError> {
    let etc = root.join("etc");
    let mut removed: Vec<PathBuf> = vec![etc.join("apt/apt.conf.d/99mmdebstrap"), etc.join("machine-id")];
    let lists = etc.join("apt/sources.list.d");
    for entry in fs::read_dir(&lists).map_err(BuildError::io("read", &lists))? {
        removed.push(entry.map_err(BuildError::io("read", &lists))?.path());
    }
    for path in removed {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(BuildError::io("remove", path)(error));
            }
            _ => {}
        }
    }
    for (file, content) in [
        ("apt/sources.list", sources::PUBLIC),
        ("hostname", "wrenn\n"),
        ("hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
        ("resolv.conf", ""),
        // Empty: whoever boots it makes one.
        ("machine-id", ""),
    ] {
        let path = etc.join(file);
        fs::write(&path, content).map_err(BuildError::io("write", path))?;
    }
    Ok(())
}
