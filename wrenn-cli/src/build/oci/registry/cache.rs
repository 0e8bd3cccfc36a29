//! Blobs on disk, each named by its digest and whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use wrenn_core::image::Digest;
use wrenn_core::image::durable::{self, StagedDir};

use super::super::blob::{Part, Verified};
use super::super::{ImportError, document};
use super::client::Client;
use crate::interrupt;
use crate::progress::Step;

#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens a cache under `cache`, makes it where there is none, and sweeps what interrupted imports left.
    ///
    /// # Errors
    /// [`ImportError::Io`].
    pub(super) fn open(cache: &Path) -> Result<Self, ImportError> {
        let dir = cache.join("blobs/sha256");
        fs::create_dir_all(&dir).map_err(ImportError::io("create", &dir))?;
        durable::sweep(&dir).map_err(ImportError::io("sweep", &dir))?;
        Ok(Self { dir })
    }

    /// The blob with that digest: from the cache, or from the registry by way of the cache.
    ///
    /// # Errors
    /// [`ImportError::Digest`] or [`ImportError::Size`] where the registry sends something else, or what keeps it from
    /// sending or keeps us from writing.
    pub(super) fn fetch(
        &self,
        what: &str,
        client: &mut Client,
        size: u64,
        digest: &Digest,
    ) -> Result<Part, ImportError> {
        let target = self.dir.join(digest.as_str());
        let step = Step::of_bytes(what, size);
        if let Some(part) = kept(&target, size, digest) {
            step.done("fetched before");
            return Ok(part);
        }
        let name = format!("sha256:{digest}");
        let staged = StagedDir::create(&target).map_err(ImportError::io("stage", &target))?;
        let _watched = interrupt::watch_dir(staged.path());
        let path = staged.path().join("blob");
        let (url, body) = client.blob(&name)?;
        // One byte more than was promised is enough to tell.
        let mut body = Verified::new(body.take(size.saturating_add(1)));
        let mut file = File::create_new(&path).map_err(ImportError::io("create", &path))?;
        let mut buffer = vec![0; 128 << 10];
        let mut found = 0;
        loop {
            let length = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ImportError::Interrupted { url, source }),
            };
            file.write_all(&buffer[..length]).map_err(ImportError::io("write", &path))?;
            found += length as u64;
            step.advance(length as u64);
        }
        document::check_size(&name, size, found)?;
        body.finish(&name, digest)?;
        durable::rename(&path, &target).map_err(ImportError::io("keep", &target))?;
        step.done(&name);
        Part::whole(&target).map_err(ImportError::io("open", target))
    }
}

/// A blob that was fetched before. One that is damaged is as good as none.
fn kept(path: &Path, size: u64, digest: &Digest) -> Option<Part> {
    let part = Part::whole(path).ok().filter(|part| part.length() == size)?;
    let found = Digest::of(part.reader(), &mut |_| ()).ok()?;
    (found == *digest).then_some(part)
}
