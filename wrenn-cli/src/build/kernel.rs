//! The guest's kernel, from Debian's package: unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};

use wrenn_core::image::Digest;
use wrenn_core::image::durable::{self, StagedDir};

use super::modules::{self, Module};
use super::{BuildError, payload};
use crate::interrupt;
use crate::progress::Step;
use crate::tool::Tool;

/// Debian's kernel for virtual machines: the newest of its packages is what this one depends on.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel package on disk.
#[derive(Debug)]
pub(crate) struct KernelPackage {
    deb: PathBuf,
}

impl KernelPackage {
    /// The package in a file.
    pub(crate) fn in_file(deb: &Path) -> Self {
        Self { deb: deb.to_owned() }
    }

    /// The machine's current cloud kernel, downloaded to `cache` unless it is there.
    ///
    /// # Errors
    /// [`BuildError::UnknownPackage`] where apt knows none, or the tools' own failures.
    pub(crate) fn fetch(cache: &Path) -> Result<Self, BuildError> {
        let step = Step::begin("finding the kernel package");
        let package = resolve(&step)?;
        let offer = Offer::ask(&package, &step)?;
        let deb = cache.join(&offer.file);
        if offer.is_in(&deb) {
            step.done(&format!("{package}, downloaded before"));
            return Ok(Self { deb });
        }
        step.done(&package);
        let step = Step::begin("downloading the kernel package");
        fs::create_dir_all(cache).map_err(BuildError::io("create", cache))?;
        durable::sweep(cache).map_err(BuildError::io("sweep", cache))?;
        let staged = StagedDir::create(&deb).map_err(BuildError::io("stage", &deb))?;
        let _watched = interrupt::watch_dir(staged.path());
        Tool::find("apt-get", "apt")?
            // Apt's own user could not write here, and says so at length.
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", &package])
            .current_dir(staged.path())
            .run(&step)?;
        let downloaded = staged.path().join(&offer.file);
        durable::rename(&downloaded, &deb).map_err(BuildError::io("keep", &downloaded))?;
        step.done(&offer.file);
        Ok(Self { deb })
    }

    /// Its file's name, for people.
    pub(crate) fn name(&self) -> String {
        self.deb.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Unpacks it under `scratch`.
    ///
    /// # Errors
    /// [`BuildError::NoKernel`] where it holds none.
    pub(crate) fn unpack(&self, scratch: &Path) -> Result<UnpackedKernel, BuildError> {
        let step = Step::begin(format!("unpacking {}", self.name()));
        let root = scratch.join("kernel");
        Tool::find("dpkg-deb", "dpkg")?.arg("--extract").arg(&self.deb).arg(&root).run(&step)?;
        let none = |reason: &str| BuildError::NoKernel { path: self.deb.clone(), reason: reason.to_owned() };
        let boot = root.join("boot");
        let (release, image) = fs::read_dir(&boot)
            .map_err(|_| none("it has no /boot"))?
            .flatten()
            .find_map(|entry| {
                let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
                Some((release, entry.path()))
            })
            .ok_or_else(|| none("it has no /boot/vmlinuz-*"))?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|dir| root.join(dir).join(&release))
            .into_iter()
            .find(|dir| dir.is_dir())
            .ok_or_else(|| none("it has no modules"))?;
        step.done(&release);
        Ok(UnpackedKernel { release, image, modules })
    }
}

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct UnpackedKernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    image: PathBuf,
    modules: PathBuf,
}

impl UnpackedKernel {
    /// Writes the uncompressed kernel to `elf` and returns its length.
    ///
    /// # Errors
    /// [`BuildError::NoKernel`].
    pub(crate) fn write_elf(&self, elf: &Path) -> Result<u64, BuildError> {
        payload::extract_elf(&self.image, elf)
    }

    /// The modules that guests need, in the order to load them.
    ///
    /// # Errors
    /// [`BuildError::NoModule`].
    pub(crate) fn guest_modules(&self) -> Result<Vec<Module>, BuildError> {
        modules::guest_modules(&self.modules)
    }
}

/// The package that the meta package stands for at present.
fn resolve(step: &Step) -> Result<String, BuildError> {
    let unknown = || BuildError::UnknownPackage { package: META_PACKAGE.to_owned() };
    let answer = Tool::find("apt-cache", "apt")?.args(["depends", META_PACKAGE]).run(step);
    let answer = match answer {
        // That is how it says that it does not know the package.
        Err(BuildError::ToolFailed { .. }) => return Err(unknown()),
        answer => answer?,
    };
    dependency(&String::from_utf8_lossy(&answer)).ok_or_else(unknown)
}

fn dependency(answer: &str) -> Option<String> {
    let package = answer.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))?;
    Some(format!("linux-image-{package}"))
}

/// What apt would download.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    file: String,
    bytes: u64,
    sha256: Option<String>,
}

impl Offer {
    fn ask(package: &str, step: &Step) -> Result<Self, BuildError> {
        let answer =
            Tool::find("apt-get", "apt")?.args(["-q", "download", "--print-uris", package]).run(step)?;
        Self::parse(&String::from_utf8_lossy(&answer))
            .ok_or_else(|| BuildError::UnknownPackage { package: package.to_owned() })
    }

    /// One line: `'URI' FILE BYTES SHA256:DIGEST`.
    fn parse(answer: &str) -> Option<Self> {
        let line = answer.lines().find(|line| line.starts_with('\''))?;
        let mut fields = line.rsplit_once("' ")?.1.split(' ');
        let file = fields.next().filter(|file| !file.contains('/') && file.ends_with(".deb"))?.to_owned();
        let bytes = fields.next()?.parse().ok()?;
        let sha256 = fields.next().and_then(|digest| digest.strip_prefix("SHA256:")).map(str::to_owned);
        Some(Self { file, bytes, sha256 })
    }

    /// Whether `deb` is it, whole.
    fn is_in(&self, deb: &Path) -> bool {
        let same_size = fs::metadata(deb).is_ok_and(|meta| meta.len() == self.bytes);
        let same = |expected: &String| {
            fs::File::open(deb)
                .and_then(|file| Digest::of(file, &mut |_| ()))
                .is_ok_and(|digest| digest.as_str() == expected)
        };
        same_size && self.sha256.as_ref().is_some_and(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_answers_are_understood() {
        let answer = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(dependency(answer).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n  Depends: something-else\n"), None);
        let answer = "'http://deb.debian.org/x/a_1%3a2_amd64.deb' a_1%3a2_amd64.deb 267 SHA256:ab12\n";
        let offer = Offer { file: "a_1%3a2_amd64.deb".into(), bytes: 267, sha256: Some("ab12".into()) };
        assert_eq!(Offer::parse(answer), Some(offer));
        for wrong in ["", "'uri'", "'uri' ../a.deb 1 SHA256:x", "'uri' a.deb many", "'uri' a.rpm 1"] {
            assert_eq!(Offer::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_cached_package_is_used_only_if_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("a.deb");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let offer = Offer { file: "a.deb".into(), bytes: 3, sha256: Some(sha256) };
        assert!(!offer.is_in(&deb));
        for (content, whole) in [("abc", true), ("ab", false), ("abd", false)] {
            fs::write(&deb, content).unwrap();
            assert_eq!(offer.is_in(&deb), whole, "{content}");
        }
        let unknown = Offer { sha256: None, ..offer };
        assert!(!unknown.is_in(&deb));
    }
}
