//! What an image's configuration says about the processes in it.

use wrenn_core::image::ImageDetails;

use super::Image;

/// The image's defaults, in the terms of our own record.
///
/// What Docker ignores is left out: variables without a name or a `=`, and empty texts that mean "none".
pub(super) fn details(image: &Image) -> ImageDetails {
    let source = image.source.clone();
    let Some(config) = image.config.config() else {
        return ImageDetails { source, ..ImageDetails::default() };
    };
    let env = config.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    let present = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    // Relative ones begin at the root.
    let absolute = |dir: String| if dir.starts_with('/') { dir } else { format!("/{dir}") };
    let mut exposed_ports = config.exposed_ports().clone().unwrap_or_default();
    exposed_ports.sort();
    ImageDetails {
        source,
        env: env
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        workdir: present(config.working_dir()).map(absolute),
        user: present(config.user()),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        exposed_ports,
    }
}
