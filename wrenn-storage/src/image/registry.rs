//! The image registry: `<data>/images`.
//!
//! Failure paths: whatever goes wrong before an image's directory gets its name leaves the registry as it was.
//! A process that dies on the way leaves a staging name, which the next [`ImageRegistry::open`] sweeps.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use wrenn_base::{Bytes, ImageName};

use super::manifest::{self, Digest, FileRecord, IMAGE_FORMAT, ImageManifest, LONGEST};
use super::{ImageError, ext4};
use crate::durable::{self, StagedDir};

const MANIFEST: &str = "image.json";
const ROOTFS: &str = "rootfs.ext4";

/// Root images are whole blocks of this size, so that every disk backend can serve them.
const BLOCK: u64 = 4096;

/// The images registered under one data directory. Clones are cheap and equal.
#[derive(Debug, Clone)]
pub struct ImageRegistry {
    dir: PathBuf,
}

/// One registered image, as its manifest describes it and the file system confirms.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Image {
    /// The name it is registered under.
    pub name: ImageName,
    /// The ext4 file system: read-only, and never changed.
    pub rootfs: PathBuf,
    /// The size of that file system (the file is sparse: see [`allocated`](Image::allocated)).
    pub size: Bytes,
    /// The file system's digest: a copy-on-write disk fits the image with this digest only.
    pub digest: Digest,
    /// When it was registered.
    pub created: SystemTime,
    /// Where it came from, and what a process in it gets by default.
    pub details: ImageDetails,
    record: FileRecord,
}

/// Images by name, each with what is wrong with it if it cannot be used.
pub type ImageList = Vec<(ImageName, Result<Image, ImageError>)>;

/// Where an image came from, and what a process in it gets by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDetails {
    /// For people: what the image was made from.
    pub source: String,
    /// Environment variables of every process.
    pub env: BTreeMap<String, String>,
    /// The working directory, absolute.
    pub workdir: Option<String>,
    /// The user whom processes run as: a name or a number, perhaps with a group behind a colon.
    pub user: Option<String>,
    /// The program that the image is for, with its first arguments; empty where it is for none.
    pub entrypoint: Vec<String>,
    /// The arguments that follow where nobody gives others; without an entry point, a program and its arguments.
    pub cmd: Vec<String>,
    /// The ports on which that program listens, as `PORT/PROTOCOL`.
    pub exposed_ports: Vec<String>,
}

/// What [`ImageRegistry::register`] does where the name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collision {
    /// Refuse: images do not change.
    Refuse,
    /// Put the new image in the old one's place, in one step.
    ///
    /// Running sandboxes keep the old file, which they hold open. A paused one finds another [`Digest`] than its
    /// disk was made for, and must not be resumed on it.
    Replace,
}

/// An image in the making; dropping it removes it.
#[derive(Debug)]
pub struct StagedImage {
    name: ImageName,
    dir: StagedDir,
}

impl StagedImage {
    /// Where the root file system is to be written.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join(ROOTFS)
    }

    /// The directory that an abrupt end leaves behind, to be removed by whoever can.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl ImageRegistry {
    /// Opens the registry under `data`, makes it where there is none, and sweeps what interrupted builds left.
    ///
    /// # Errors
    /// [`ImageError::Io`] where the directory cannot be made, read or swept.
    pub fn open(data: &Path) -> Result<Self, ImageError> {
        let dir = data.join("images");
        fs::create_dir_all(&dir).map_err(ImageError::io("create", &dir))?;
        let swept = durable::sweep(&dir).map_err(ImageError::io("sweep", &dir))?;
        if swept > 0 {
            tracing::info!(swept, dir = %dir.display(), "removed what interrupted image builds left");
        }
        Ok(Self { dir })
    }

    /// The image registered as `name`.
    ///
    /// Checks that its files are there and of the registered size; [`Image::verify`] reads them whole.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], or one that names the file which is damaged.
    pub fn get(&self, name: &ImageName) -> Result<Image, ImageError> {
        let dir = self.dir.join(name.as_str());
        let path = dir.join(MANIFEST);
        let Some(manifest) = manifest::read::<ImageManifest>(&path, IMAGE_FORMAT)? else {
            return Err(ImageError::NotFound { name: name.clone(), dir: self.dir.clone() });
        };
        let implausible = |reason| ImageError::Implausible { path: path.clone(), reason };
        if manifest.name != name.as_str() {
            return Err(implausible("it is another image's"));
        }
        let created =
            manifest::time_from_unix(manifest.created).ok_or_else(|| implausible("its time of creation"))?;
        let details = ImageDetails {
            source: manifest.source,
            env: manifest.env,
            workdir: manifest.workdir,
            user: manifest.user,
            entrypoint: manifest.entrypoint,
            cmd: manifest.cmd,
            exposed_ports: manifest.exposed_ports,
        };
        details.check().map_err(implausible)?;
        let rootfs = dir.join(ROOTFS);
        manifest.rootfs.check_size(&rootfs)?;
        Ok(Image {
            name: name.clone(),
            rootfs,
            size: Bytes(manifest.rootfs.bytes),
            digest: manifest.rootfs.sha256.clone(),
            created,
            details,
            record: manifest.rootfs,
        })
    }

    /// Every registered image by name, each with what is wrong with it if it cannot be used.
    ///
    /// # Errors
    /// [`ImageError::Io`] where the registry itself cannot be read.
    pub fn list(&self) -> Result<ImageList, ImageError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(ImageError::io("read", &self.dir))? {
            let entry = entry.map_err(ImageError::io("read", &self.dir))?;
            // Staging names are no image names, which keeps them out.
            names.extend(entry.file_name().to_str().and_then(|name| name.parse::<ImageName>().ok()));
        }
        names.sort();
        Ok(names.into_iter().map(|name| (name.clone(), self.get(&name))).collect())
    }

    /// Takes an image out of the registry and removes its files, damaged ones too.
    ///
    /// Running sandboxes keep the file, which they hold open; a paused one, or a template, cannot be resumed without it:
    /// whoever calls this looks for these first.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], or [`ImageError::Io`], where the image is as before, or has lost its name and what is left of it
    /// is swept by the next [`open`](Self::open).
    pub fn remove(&self, name: &ImageName) -> Result<(), ImageError> {
        let target = self.dir.join(name.as_str());
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound { name: name.clone(), dir: self.dir.clone() },
            _ => ImageError::Io { action: "remove", path: target.clone(), source },
        };
        let staged = StagedDir::create(&target).map_err(failed)?;
        // Its name is gone in one step, and what had it has the staging name, which goes with the value.
        let moved = renameat_with(CWD, &target, CWD, staged.path(), RenameFlags::EXCHANGE);
        moved.map_err(|errno| failed(errno.into()))?;
        fs::remove_dir(&target).map_err(failed)?;
        drop(staged);
        durable::sync_parent(&target).map_err(failed)
    }

    /// Begins an image: fill [`StagedImage::rootfs`], then [`register`](Self::register) it.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn stage(&self, name: &ImageName) -> Result<StagedImage, ImageError> {
        let target = self.dir.join(name.as_str());
        let dir = StagedDir::create(&target).map_err(ImageError::io("stage", &target))?;
        Ok(StagedImage { name: name.clone(), dir })
    }

    /// Registers a filled image: checks and measures its file system, makes it durable and read-only, and gives it
    /// its name in one step.
    ///
    /// `progress` is told the length of each piece read. Blocks for as long as the file system takes to be read
    /// and written out.
    ///
    /// # Errors
    /// [`ImageError::AlreadyRegistered`] where the name is taken and `collision` refuses, [`ImageError::NotAFileSystem`]
    /// and [`ImageError::NotWholeBlocks`] for what cannot be a root disk, [`ImageError::Implausible`] for details that
    /// make no sense, else [`ImageError::Io`]. The registry is as before, and the staged image is gone.
    pub fn register(
        &self,
        staged: StagedImage,
        details: ImageDetails,
        collision: Collision,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Image, ImageError> {
        let name = staged.name.clone();
        let target = self.dir.join(name.as_str());
        if collision == Collision::Refuse && target.exists() {
            return Err(ImageError::AlreadyRegistered { name });
        }
        let manifest_path = staged.dir.path().join(MANIFEST);
        details.check().map_err(|reason| ImageError::Implausible { path: manifest_path.clone(), reason })?;
        let rootfs = staged.rootfs();
        let record = measure_rootfs(&rootfs, progress)?;
        let manifest = ImageManifest {
            format: IMAGE_FORMAT,
            name: name.to_string(),
            rootfs: record,
            created: manifest::unix_now(),
            source: details.source,
            env: details.env,
            workdir: details.workdir,
            user: details.user,
            entrypoint: details.entrypoint,
            cmd: details.cmd,
            exposed_ports: details.exposed_ports,
        };
        seal(&manifest_path, &manifest)?;
        set_read_only(&rootfs)?;
        publish(staged.dir, &target, collision).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => ImageError::AlreadyRegistered { name: name.clone() },
            _ => ImageError::Io { action: "register", path: target.clone(), source },
        })?;
        self.get(&name)
    }
}

impl Image {
    /// What the file system takes on disk: its file is sparse.
    ///
    /// # Errors
    /// [`ImageError::Io`] where it cannot be asked for.
    pub fn allocated(&self) -> Result<Bytes, ImageError> {
        let meta = fs::metadata(&self.rootfs).map_err(ImageError::io("look at", &self.rootfs))?;
        Ok(Bytes(meta.blocks() * 512))
    }

    /// Reads the whole file system and compares it with its digest.
    ///
    /// # Errors
    /// [`ImageError::DigestMismatch`] or [`ImageError::SizeMismatch`] where it changed, else [`ImageError::Io`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), ImageError> {
        self.record.check_content(&self.rootfs, progress)
    }
}

impl ImageDetails {
    /// What makes no sense, if anything.
    fn check(&self) -> Result<(), &'static str> {
        let plain = |text: &str| !text.contains('\0');
        if self
            .env
            .iter()
            .any(|(key, value)| key.is_empty() || key.contains('=') || !plain(key) || !plain(value))
        {
            return Err("its environment");
        }
        if self.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/') || !plain(dir)) {
            return Err("its working directory is not an absolute path");
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || !plain(user)) {
            return Err("its user");
        }
        if !self.entrypoint.iter().chain(&self.cmd).all(|arg| plain(arg)) {
            return Err("its entry point or its command");
        }
        if !self.exposed_ports.iter().all(|port| !port.is_empty() && plain(port)) {
            return Err("its ports");
        }
        Ok(())
    }
}

fn measure_rootfs(rootfs: &Path, progress: &mut dyn FnMut(u64)) -> Result<FileRecord, ImageError> {
    let file = File::open(rootfs).map_err(ImageError::io("open", rootfs))?;
    if !ext4::is_ext4(&file).map_err(ImageError::io("read", rootfs))? {
        return Err(ImageError::NotAFileSystem { path: rootfs.to_owned() });
    }
    let record = FileRecord::of(rootfs, progress)?;
    if !record.bytes.is_multiple_of(BLOCK) {
        return Err(ImageError::NotWholeBlocks { path: rootfs.to_owned(), size: Bytes(record.bytes) });
    }
    Ok(record)
}

/// Writes a manifest, read-only.
pub(super) fn seal(path: &Path, manifest: &impl serde::Serialize) -> Result<(), ImageError> {
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|source| ImageError::Manifest { path: path.to_owned(), source })?;
    text.push(b'\n');
    // Or it could not be read back, when there is no way back any more.
    if text.len() as u64 > LONGEST {
        return Err(ImageError::Implausible { path: path.to_owned(), reason: "it is too long" });
    }
    fs::write(path, text).map_err(ImageError::io("write", path))?;
    set_read_only(path)
}

/// Takes a file's write permissions away. (Root can write still; what matters is that no program of ours does.)
pub(super) fn set_read_only(path: &Path) -> Result<(), ImageError> {
    fs::set_permissions(path, Permissions::from_mode(0o444)).map_err(ImageError::io("protect", path))
}

/// Gives a staged directory its name, or exchanges it with the one that has it.
pub(super) fn publish(staged: StagedDir, target: &Path, collision: Collision) -> io::Result<()> {
    fs::set_permissions(staged.path(), Permissions::from_mode(0o755))?;
    if collision == Collision::Refuse || !target.exists() {
        return staged.commit();
    }
    for entry in fs::read_dir(staged.path())? {
        File::open(entry?.path())?.sync_all()?;
    }
    durable::sync_dir(staged.path())?;
    match renameat_with(CWD, staged.path(), CWD, target, RenameFlags::EXCHANGE) {
        // Somebody removed the old one in the meantime.
        Err(Errno::NOENT) => return staged.commit(),
        result => result?,
    }
    // The staging name now holds the old directory, which goes with it.
    drop(staged);
    durable::sync_parent(target)
}
