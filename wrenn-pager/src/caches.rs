//! The page caches of memory images in use: one for each image, shared by all machines that run on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use wrenn_storage::{ImageIdentity, MemoryImage};
use wrenn_uffd::{PageCache, UffdError};

use crate::source::ImagePages;

/// A cache lives as long as some machine uses it.
#[derive(Debug, Default)]
pub(crate) struct PageCaches(Mutex<HashMap<ImageIdentity, Weak<PageCache>>>);

impl PageCaches {
    /// The cache of `image`.
    pub(crate) fn of(&self, image: &MemoryImage) -> Result<Arc<PageCache>, UffdError> {
        let mut caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = image.identity();
        if let Some(cache) = caches.get(&identity).and_then(Weak::upgrade) {
            return Ok(cache);
        }
        caches.retain(|_, cache| cache.strong_count() > 0);
        let cache = PageCache::new(Arc::new(ImagePages(image.reader())))?;
        caches.insert(identity, Arc::downgrade(&cache));
        Ok(cache)
    }
}
