//! What a person writes for the place of an image.

use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::distribution::Reference;

/// Where an image is, in the notation of other tools for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageSource {
    /// What `docker save` writes; with several images, one of them by repository and tag.
    DockerArchive { path: PathBuf, name: Option<String> },
    /// An OCI image layout, as a directory or in a tar archive; with several images, one of them by its name.
    OciLayout { path: PathBuf, name: Option<String> },
    /// A repository of a registry.
    Registry(Reference),
}

impl FromStr for ImageSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(reference) = text.strip_prefix("docker://") {
            return reference.parse().map(Self::Registry).map_err(|error| format!("{reference}: {error}"));
        }
        let (kind, place) = text.split_once(':').unwrap_or((text, ""));
        let (path, name) = match place.split_once(':') {
            Some((path, name)) => (PathBuf::from(path), Some(name.to_owned())),
            None => (PathBuf::from(place), None),
        };
        if path.as_os_str().is_empty() || name.as_ref().is_some_and(String::is_empty) {
            return Err(NOTATION.to_owned());
        }
        match kind {
            "docker-archive" => Ok(Self::DockerArchive { path, name }),
            "oci" | "oci-archive" => Ok(Self::OciLayout { path, name }),
            _ => Err(NOTATION.to_owned()),
        }
    }
}

const NOTATION: &str =
    "it is none of docker-archive:PATH[:NAME:TAG], oci:PATH[:TAG] and docker://REGISTRY/REPOSITORY[:TAG]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_others_refused() {
        let parse = |text: &str| text.parse::<ImageSource>();
        let archive = |path: &str, name: Option<&str>| {
            Ok(ImageSource::DockerArchive { path: path.into(), name: name.map(str::to_owned) })
        };
        assert_eq!(parse("docker-archive:/tmp/a.tar"), archive("/tmp/a.tar", None));
        assert_eq!(parse("docker-archive:a.tar:busybox:1.36"), archive("a.tar", Some("busybox:1.36")));
        let layout = ImageSource::OciLayout { path: "dir".into(), name: Some("v1".into()) };
        assert_eq!(parse("oci:dir:v1"), Ok(layout));
        let Ok(ImageSource::Registry(reference)) = parse("docker://busybox") else { panic!() };
        assert_eq!(reference.whole(), "docker.io/library/busybox:latest");
        let Ok(ImageSource::Registry(reference)) = parse("docker://localhost:5000/a/b:c") else { panic!() };
        assert_eq!((reference.registry(), reference.repository()), ("localhost:5000", "a/b"));
        for none in ["", "busybox", "oci:", "oci::tag", "oci:dir:", "docker://", "docker://A B", "ftp:x"] {
            assert!(parse(none).is_err(), "{none}");
        }
    }
}
