//! `wrenn image …`

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use wrenn_core::image::{Collision, Image, ImageDetails, ImageError, ImageRegistry, StagedImage};
use wrenn_core::{Bytes, ImageName, MiB};

use crate::build::{self, BuildError, RootSize};
use crate::progress::Step;
use crate::{guest, interrupt};

/// The image that is made without a source.
const DEBIAN: &str = "debian";

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an image: `debian`, or any name from a directory or a tar archive.
    Build(BuildArgs),
    /// List the images.
    Ls,
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

pub(crate) fn run(data: &Path, command: ImageCommand) -> Result<(), BuildError> {
    match command {
        ImageCommand::Build(args) => build_image(data, &args),
        ImageCommand::Ls => list(data),
    }
}

fn build_image(data: &Path, args: &BuildArgs) -> Result<(), BuildError> {
    let registry = ImageRegistry::open(data)?;
    match registry.get(&args.name) {
        Ok(image) if !args.force => {
            if args.from.is_some() {
                return Err(ImageError::AlreadyRegistered { name: args.name.clone() }.into());
            }
            eprintln!(
                "wrenn: image {} is there ({}); --force makes it anew",
                image.name, image.details.source
            );
        }
        Err(error) if !args.force && !matches!(error, ImageError::NotFound { .. }) => {
            return Err(error.into());
        }
        _ => make(&registry, args)?,
    }
    if args.no_guest { Ok(()) } else { guest::ensure(data, &args.guest) }
}

fn make(registry: &ImageRegistry, args: &BuildArgs) -> Result<(), BuildError> {
    let staged = registry.stage(&args.name)?;
    let watched = interrupt::watch_dir(staged.path());
    let size = args.size.map_or(RootSize::Free(MiB(args.free)), |size| RootSize::Exact(MiB(size)));
    let scratch = staged.path().join("scratch");
    let tree = scratch.join("root");
    std::fs::create_dir(&scratch).map_err(BuildError::io("create", &scratch))?;
    let source = match &args.from {
        Some(from) if from.is_dir() => {
            build::make_ext4(from, &staged.rootfs(), size)?;
            format!("directory {}", from.display())
        }
        Some(from) => {
            std::fs::create_dir(&tree).map_err(BuildError::io("create", &tree))?;
            build::unpack(from, &tree)?;
            build::make_ext4(&tree, &staged.rootfs(), size)?;
            format!("archive {}", from.display())
        }
        None if args.name.as_str() == DEBIAN => {
            build::bootstrap(&tree, &scratch, &args.include)?;
            build::make_ext4(&tree, &staged.rootfs(), size)?;
            std::iter::once("Debian bookworm, minimal")
                .chain(args.include.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join(" + ")
        }
        None => return Err(BuildError::NoRecipe { name: args.name.to_string() }),
    };
    std::fs::remove_dir_all(&scratch).map_err(BuildError::io("remove", &scratch))?;
    let details = ImageDetails { source, ..ImageDetails::default() };
    let image = interrupt::finish(watched, || register(registry, staged, details, args.force))?;
    eprintln!("wrenn: image {} is ready: {}", image.name, image.rootfs.display());
    Ok(())
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

fn list(data: &Path) -> Result<(), BuildError> {
    let images = ImageRegistry::open(data)?.list()?;
    let mut out = String::new();
    if images.is_empty() {
        eprintln!("wrenn: no images in {}; `wrenn image build debian` makes one", data.display());
    } else {
        out.push_str(&format!("{:<20} {:>10} {:>10}  {:<8} SOURCE\n", "NAME", "SIZE", "ON DISK", "AGE"));
    }
    for (name, image) in images {
        match image {
            Ok(image) => {
                let taken = std::fs::metadata(&image.rootfs).map_or(0, |meta| meta.blocks() * 512);
                out.push_str(&format!(
                    "{:<20} {:>10} {:>10}  {:<8} {}\n",
                    name.as_str(),
                    image.size.to_string(),
                    Bytes(taken).to_string(),
                    age(image.created),
                    image.details.source
                ));
            }
            Err(error) => out.push_str(&format!("{:<20} {error}\n", name.as_str())),
        }
    }
    // A reader that has seen enough is no failure.
    let _ = std::io::stdout().write_all(out.as_bytes());
    Ok(())
}

/// How long ago, in the one unit that a person would use.
fn age(created: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(created).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
