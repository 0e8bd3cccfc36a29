//! Who needs an image.

use wrenn_core::ImageName;

use super::{Context, Result};

/// Refuses the removal of images that sandboxes or templates were made of: they could not be resumed.
pub(crate) async fn check_unused(context: &Context, images: &[ImageName]) -> Result<()> {
    let sandboxes = context.host().list().await?;
    let templates = context.host().templates().await?;
    for image in images {
        let sandbox = sandboxes.iter().find(|sandbox| sandbox.image == *image);
        let template = templates.iter().find(|template| template.image == *image);
        let user = sandbox
            .map(|sandbox| format!("sandbox {}", sandbox.id))
            .or_else(|| template.map(|template| format!("template {}", template.name)));
        if let Some(user) = user {
            return Err(format!("{user} was made of image {image}; --force removes it all the same").into());
        }
    }
    Ok(())
}
