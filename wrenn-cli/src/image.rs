//! `wrenn images …`

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;
use wrenn_core::image::{Collision, Image, ImageDetails, ImageError, ImageRegistry, StagedImage};
use wrenn_core::{Bytes, ImageName, MiB};

use crate::build::{self, Access, BuildError, ImageSource, RootSize};
use crate::output::{Format, Table, span};
use crate::progress::Step;
use crate::{guest, interrupt};

/// The image that is made without a source.
const DEBIAN: &str = "debian";

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image: `debian`, or any name from a directory or a tar archive.
    Build(BuildArgs),
    /// Make an image of a container's: from an archive of `docker save`, an OCI image layout or a registry.
    Import(ImportArgs),
    /// The same from a registry, under the last part of its name there.
    Pull(PullArgs),
    /// List the images.
    Ls,
    /// Remove images.
    Rm(RemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The image's name.
    name: ImageName,
    /// A directory, or a tar archive (plain, gzip or zstd), with the root file system's content.
    #[arg(long, value_name = "DIR|TAR")]
    from: Option<PathBuf>,
    /// More packages for `debian`.
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', conflicts_with = "from")]
    include: Vec<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The image's name.
    name: ImageName,
    /// `docker-archive:PATH[:NAME:TAG]` for what `docker save` writes; `oci:PATH[:TAG]` for an OCI image layout, a
    /// directory or a tar archive; `docker://REGISTRY/REPOSITORY[:TAG][@DIGEST]` for a registry, Docker Hub if none is
    /// named. Of an image for several kinds of machines, linux/amd64 is taken.
    #[arg(verbatim_doc_comment)]
    source: ImageSource,
    /// The user to a registry that wants one.
    #[arg(long, requires = "password_file", value_name = "USER")]
    username: Option<String>,
    /// A file whose first line is that user's password.
    #[arg(long, requires = "username", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Ask the registry without encryption. One on this machine's loopback interface always is.
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`; of Docker Hub if no registry is named.
    reference: String,
    /// The image's name here.
    #[arg(long)]
    name: Option<ImageName>,
    /// Ask the registry without encryption. One on this machine's loopback interface always is.
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) names: Vec<ImageName>,
    /// Even where sandboxes or templates can then no longer be resumed.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What every way to an image has in common.
#[derive(Debug, Args)]
struct Options {
    /// Room for the guest's own files, in MiB. It takes no space until it is used.
    #[arg(long, value_name = "MIB", default_value_t = 384)]
    free: u32,
    /// The whole size of the file system, in MiB, instead of its content's and --free.
    #[arg(long, value_name = "MIB", conflicts_with = "free")]
    size: Option<u32>,
    /// Replace an image of that name. A sandbox paused on the old one can no longer be resumed.
    #[arg(long)]
    force: bool,
    /// Do not look after the kernel and the initramfs as well.
    #[arg(long)]
    no_guest: bool,
    #[command(flatten)]
    guest: guest::GuestArgs,
}

impl PullArgs {
    /// The same as an import.
    fn into_import(self) -> Result<ImportArgs, BuildError> {
        let Self { reference, name, plain_http, options } = self;
        let source: ImageSource =
            format!("docker://{reference}").parse().map_err(|why| BuildError::NotAReference { why })?;
        let name = match name {
            Some(name) => name,
            None => name_of(&reference).map_err(|why| BuildError::NotAReference { why })?,
        };
        Ok(ImportArgs { name, source, username: None, password_file: None, plain_http, options })
    }
}

/// The last part of a repository's name.
fn name_of(reference: &str) -> Result<ImageName, String> {
    let repository = reference.split_once('@').map_or(reference, |(repository, _)| repository);
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let name = last.split_once(':').map_or(last, |(name, _)| name);
    name.parse()
        .map_err(|why| format!("{name:?} can be no image's name here, so give one with --name: {why}"))
}

/// Makes, lists and removes images. Who needs one that is to be removed was asked before.
pub(crate) fn run(data: &Path, format: Format, command: ImageCommand) -> Result<(), BuildError> {
    match command {
        ImageCommand::Build(args) => build_image(data, &args),
        ImageCommand::Import(args) => import_image(data, &args),
        ImageCommand::Pull(args) => import_image(data, &args.into_import()?),
        ImageCommand::Ls => list(data, format),
        ImageCommand::Rm(args) => remove(data, format, &args.names),
    }
}

/// What `--json` says of an image.
#[derive(Debug, Serialize)]
struct View {
    name: String,
    size_bytes: Option<u64>,
    allocated_bytes: Option<u64>,
    /// Seconds since 1970.
    created: Option<u64>,
    source: Option<String>,
    /// Why it cannot be used.
    error: Option<String>,
}

impl View {
    fn of(name: &ImageName, image: &Result<Image, ImageError>) -> Self {
        let good = image.as_ref().ok();
        Self {
            name: name.to_string(),
            size_bytes: good.map(|image| image.size.0),
            allocated_bytes: good.and_then(|image| image.allocated().ok()).map(|size| size.0),
            created: good.and_then(|image| Some(image.created.duration_since(UNIX_EPOCH).ok()?.as_secs())),
            source: good.map(|image| image.details.source.clone()),
            error: image.as_ref().err().map(ToString::to_string),
        }
    }

    fn line(&self, table: &mut Table) {
        let size = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| Bytes(bytes).to_string());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let age = self.created.map_or_else(String::new, |at| span(now.saturating_sub(at)));
        let about = self.error.as_ref().or(self.source.as_ref()).cloned().unwrap_or_default();
        table.line([self.name.clone(), size(self.size_bytes), size(self.allocated_bytes), age, about]);
    }
}

fn list(data: &Path, format: Format) -> Result<(), BuildError> {
    let images = ImageRegistry::open(data)?.list()?;
    if images.is_empty() {
        eprintln!("wrenn: no images in {}; `wrenn images build debian` makes one", data.display());
    }
    let views: Vec<View> = images.iter().map(|(name, image)| View::of(name, image)).collect();
    let printed = format.print(&views, |views| {
        let mut table = Table::new(["NAME", "SIZE", "ON DISK", "AGE", "SOURCE"]);
        views.iter().for_each(|view| view.line(&mut table));
        if views.is_empty() { String::new() } else { table.render() }
    });
    printed.map_err(BuildError::io("write", "standard output"))
}

fn remove(data: &Path, format: Format, names: &[ImageName]) -> Result<(), BuildError> {
    let registry = ImageRegistry::open(data)?;
    for name in names {
        registry.remove(name)?;
    }
    let text = |names: &&[ImageName]| names.iter().map(|name| format!("{name}\n")).collect();
    format.print(&names, text).map_err(BuildError::io("write", "standard output"))
}

fn build_image(data: &Path, args: &BuildArgs) -> Result<(), BuildError> {
    let registry = ImageRegistry::open(data)?;
    match registry.get(&args.name) {
        Ok(image) if !args.options.force => {
            if args.from.is_some() {
                return Err(ImageError::AlreadyRegistered { name: args.name.clone() }.into());
            }
            eprintln!(
                "wrenn: image {} is there ({}); --force makes it anew",
                image.name, image.details.source
            );
        }
        Err(error) if !args.options.force && !matches!(error, ImageError::NotFound { .. }) => {
            return Err(error.into());
        }
        _ => make(&registry, &args.name, &args.options, |place| fill(place, args))?,
    }
    args.options.ensure_guest(data)
}

fn import_image(data: &Path, args: &ImportArgs) -> Result<(), BuildError> {
    // Or everything in the image would belong to whoever imports it.
    build::require_root("importing an image")?;
    let registry = ImageRegistry::open(data)?;
    match registry.get(&args.name) {
        Ok(_) if !args.options.force => {
            return Err(ImageError::AlreadyRegistered { name: args.name.clone() }.into());
        }
        Err(error) if !args.options.force && !matches!(error, ImageError::NotFound { .. }) => {
            return Err(error.into());
        }
        _ => {}
    }
    let access = args.access()?;
    make(&registry, &args.name, &args.options, |place| {
        std::fs::create_dir(place.tree).map_err(BuildError::io("create", place.tree))?;
        let details = build::import(&args.source, &access, &data.join("cache"), place.scratch, place.tree)?;
        build::make_ext4(place.tree, place.rootfs, args.options.root_size())?;
        Ok(details)
    })?;
    args.options.ensure_guest(data)
}

/// Where an image is made.
struct Place<'a> {
    /// A directory for what is needed meanwhile.
    scratch: &'a Path,
    /// Free for the root directory.
    tree: &'a Path,
    /// Where the file system is to be.
    rootfs: &'a Path,
}

/// Stages an image, has it filled and registers it.
fn make(
    registry: &ImageRegistry,
    name: &ImageName,
    options: &Options,
    fill: impl FnOnce(&Place<'_>) -> Result<ImageDetails, BuildError>,
) -> Result<(), BuildError> {
    let staged = registry.stage(name)?;
    let watched = interrupt::watch_dir(staged.path());
    let scratch = staged.path().join("scratch");
    std::fs::create_dir(&scratch).map_err(BuildError::io("create", &scratch))?;
    let details = fill(&Place { scratch: &scratch, tree: &scratch.join("root"), rootfs: &staged.rootfs() })?;
    std::fs::remove_dir_all(&scratch).map_err(BuildError::io("remove", &scratch))?;
    let image = interrupt::finish(watched, || register(registry, staged, details, options.force))?;
    eprintln!("wrenn: image {} is ready: {}", image.name, image.rootfs.display());
    Ok(())
}

/// Fills an image with what `wrenn images build` is to build.
fn fill(place: &Place<'_>, args: &BuildArgs) -> Result<ImageDetails, BuildError> {
    let (tree, size) = (place.tree, args.options.root_size());
    let source = match &args.from {
        Some(from) if from.is_dir() => {
            build::make_ext4(from, place.rootfs, size)?;
            format!("directory {}", from.display())
        }
        Some(from) => {
            std::fs::create_dir(tree).map_err(BuildError::io("create", tree))?;
            build::unpack(from, tree)?;
            build::make_ext4(tree, place.rootfs, size)?;
            format!("archive {}", from.display())
        }
        None if args.name.as_str() == DEBIAN => {
            build::bootstrap(tree, place.scratch, &args.include)?;
            build::make_ext4(tree, place.rootfs, size)?;
            std::iter::once("Debian bookworm, minimal")
                .chain(args.include.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join(" + ")
        }
        None => return Err(BuildError::NoRecipe { name: args.name.to_string() }),
    };
    Ok(ImageDetails { source, ..ImageDetails::default() })
}

impl Options {
    fn root_size(&self) -> RootSize {
        self.size.map_or(RootSize::Free(MiB(self.free)), |size| RootSize::Exact(MiB(size)))
    }

    fn ensure_guest(&self, data: &Path) -> Result<(), BuildError> {
        if self.no_guest { Ok(()) } else { guest::ensure(data, &self.guest) }
    }
}

impl ImportArgs {
    fn access(&self) -> Result<Access, BuildError> {
        let credentials = match (&self.username, &self.password_file) {
            (Some(user), Some(path)) => {
                let text = std::fs::read_to_string(path).map_err(BuildError::io("read", path))?;
                let password = text.lines().next().filter(|line| !line.is_empty());
                let password = password.ok_or_else(|| BuildError::NoPassword { path: path.clone() })?;
                Some((user.clone(), password.to_owned()))
            }
            _ => None,
        };
        Ok(Access { credentials, plain_http: self.plain_http })
    }
}

fn register(
    registry: &ImageRegistry,
    staged: StagedImage,
    details: ImageDetails,
    replace: bool,
) -> Result<Image, BuildError> {
    let rootfs = staged.rootfs();
    let size = std::fs::metadata(&rootfs).map_err(BuildError::io("read", &rootfs))?.len();
    let collision = if replace { Collision::Replace } else { Collision::Refuse };
    let step = Step::of_bytes("registering", size);
    let image = registry.register(staged, details, collision, &mut |bytes| step.advance(bytes))?;
    step.done(&format!("sha256 {}", image.digest));
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn pulled_images_have_the_last_part_of_their_names() {
        for text in
            ["busybox", "busybox:1.36", "docker.io/library/busybox@sha256:abc", "localhost:5000/a/busybox:x"]
        {
            assert_eq!(name_of(text).map(|name| name.to_string()), Ok("busybox".to_owned()), "{text}");
        }
        assert!(name_of("a/UPPER CASE").is_err());
    }
}
