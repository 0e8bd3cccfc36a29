//! The working set: the pages that a guest touched first after it was resumed, in the order in which it did.
//!
//! It is a hint, kept in a file beside the memory image, for whoever prefetches at the next resume. `FORMAT.md`
//! specifies the file. It is untrusted like every other: it is small by rule, its count is checked before memory is
//! taken for it, and whatever is wrong with it is a typed error.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use wrenn_base::Bytes;

use crate::durable;
use crate::memory::{PAGE_SIZE, pages_of};

const MAGIC: &[u8; 8] = b"WRENNWSE";
const VERSION: u32 = 1;
const HEADER: usize = 28;
const RUN: usize = 8;
const CRC: usize = 4;

/// The most runs that a working set has: what is touched late is hardly worth the wait for it.
const MAX_RUNS: usize = 1 << 20;

/// Neighbouring pages of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// The first page, counted in pages of 4 KiB from the start of the guest's memory.
    pub first: u32,
    /// The number of pages, at least 1.
    pub pages: u32,
}

impl PageRun {
    /// The page behind the last one.
    pub fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.pages)
    }
}

/// The pages that a guest touched, in the order of their first touch.
///
/// ```
/// use wrenn_base::Bytes;
/// use wrenn_storage::{PageRun, WorkingSet};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("working-set");
/// let touched = [PageRun { first: 9, pages: 1 }, PageRun { first: 10, pages: 2 }, PageRun { first: 3, pages: 1 }];
/// let set = WorkingSet::new(Bytes(1 << 20), touched)?;
/// assert_eq!(set.runs(), [PageRun { first: 9, pages: 3 }, PageRun { first: 3, pages: 1 }]);
/// assert_eq!(WorkingSet::load(&path)?, None);
/// set.save(&path)?;
/// assert_eq!(WorkingSet::load(&path)?, Some(set));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    guest_pages: u32,
    runs: Vec<PageRun>,
}

/// Why bytes are no working set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkingSetFault {
    /// They are something else.
    #[error("its first bytes are not those of a working set")]
    Foreign,
    /// A later version wrote them.
    #[error("it has version {found}, and this build reads up to {supported}")]
    Newer {
        /// The version stated.
        found: u32,
        /// The last version that this build reads.
        supported: u32,
    },
    /// They are more or fewer than they say.
    #[error("it is {found} bytes long instead of {expected}")]
    Length {
        /// The length that the content states (at least, where even the header is cut).
        expected: u64,
        /// The length found.
        found: u64,
    },
    /// The checksum does not match.
    #[error("it was altered since it was written: its checksum does not match")]
    Altered,
    /// The content makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// A working set's file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkingSetError {
    /// The operating system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is no working set; it may be removed, as the next resume records another.
    #[error("the working set {} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: WorkingSetFault,
    },
}

impl WorkingSetError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, WorkingSetFault> {
    Err(WorkingSetFault::Invalid(reason.into()))
}

impl WorkingSet {
    /// Takes runs in the order of their first touch, and joins those of which one goes on where the one before ended.
    ///
    /// Of more than 2^20 runs the last ones are left out.
    ///
    /// # Errors
    /// [`WorkingSetFault::Invalid`] where no guest has that size, a run is empty or leaves the guest, or the runs
    /// together have more pages than the guest.
    pub fn new(
        guest_size: Bytes,
        touched: impl IntoIterator<Item = PageRun>,
    ) -> Result<Self, WorkingSetFault> {
        let mut checked = Checked::new(guest_size.get())?;
        let mut runs = Vec::<PageRun>::new();
        for next in touched {
            checked.admit(next)?;
            if let Some(last) = runs.last_mut().filter(|last| last.end() == u64::from(next.first)) {
                last.pages += next.pages;
            } else if runs.len() < MAX_RUNS {
                runs.push(next);
            } else {
                break;
            }
        }
        Ok(Self { guest_pages: checked.guest_pages, runs })
    }

    /// The runs, in the order of their first touch.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// The size of the memory of the guest that this is the working set of.
    pub fn guest_size(&self) -> Bytes {
        Bytes(u64::from(self.guest_pages) * PAGE_SIZE)
    }

    /// How much memory the runs are together.
    pub fn size(&self) -> Bytes {
        Bytes(self.runs.iter().map(|run| u64::from(run.pages) * PAGE_SIZE).sum())
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.runs.len() * RUN + CRC);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        out.extend_from_slice(&self.guest_size().get().to_le_bytes());
        out.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        for run in &self.runs {
            out.extend_from_slice(&run.first.to_le_bytes());
            out.extend_from_slice(&run.pages.to_le_bytes());
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// A [`WorkingSetFault`] for each thing that can be wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, WorkingSetFault> {
        let count = decode_header(bytes)?;
        let (covered, crc) = bytes.split_at(bytes.len() - CRC);
        if u32_at(crc, 0) != crc32c::crc32c(covered) {
            return Err(WorkingSetFault::Altered);
        }
        if u32_at(bytes, 8) != VERSION {
            return invalid(format!("there is no version {}", u32_at(bytes, 8)));
        }
        if u64::from(u32_at(bytes, 12)) != PAGE_SIZE {
            return invalid(format!("its page size is {}, not {PAGE_SIZE}", u32_at(bytes, 12)));
        }
        let mut checked = Checked::new(u64::from(u32_at(bytes, 16)) | u64::from(u32_at(bytes, 20)) << 32)?;
        if count > MAX_RUNS {
            return invalid(format!("it has {count} runs; there may be {MAX_RUNS}"));
        }
        let runs = covered[HEADER..].chunks_exact(RUN).map(|run| {
            let run = PageRun { first: u32_at(run, 0), pages: u32_at(run, 4) };
            checked.admit(run).map(|()| run)
        });
        let runs = runs.collect::<Result<_, _>>()?;
        Ok(Self { guest_pages: checked.guest_pages, runs })
    }

    /// Writes the working set to `path`, atomically and durably, replacing one that is there.
    ///
    /// # Errors
    /// [`WorkingSetError::Io`]; the file is then as before, or (where only the directory could not be synced) the
    /// new one.
    pub fn save(&self, path: &Path) -> Result<(), WorkingSetError> {
        durable::write(path, &self.encode()).map_err(WorkingSetError::io("save the working set", path))
    }

    /// Reads the working set at `path`; `None` where there is no such file.
    ///
    /// # Errors
    /// [`WorkingSetError::Unusable`], [`WorkingSetError::Io`].
    pub fn load(path: &Path) -> Result<Option<Self>, WorkingSetError> {
        let failed = |source| WorkingSetError::io("read the working set", path)(source);
        let unusable = |source| WorkingSetError::Unusable { path: path.to_owned(), source };
        // Whatever lies under the name: never follow a link, never wait for a pipe's writer.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(failed)?,
        };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(unusable(WorkingSetFault::Foreign));
        }
        let most = (HEADER + MAX_RUNS * RUN + CRC) as u64;
        if found.len() > most {
            return Err(unusable(WorkingSetFault::Length { expected: most, found: found.len() }));
        }
        let mut bytes = Vec::with_capacity(found.len() as usize);
        // A file that grows meanwhile is cut, which its checksum tells.
        file.take(most).read_to_end(&mut bytes).map_err(failed)?;
        Self::decode(&bytes).map(Some).map_err(unusable)
    }
}

/// Looks at what every version has, and whether the length is that of the runs; returns their number.
fn decode_header(bytes: &[u8]) -> Result<usize, WorkingSetFault> {
    let (known, found) = (bytes.len().min(MAGIC.len()), bytes.len() as u64);
    if bytes[..known] != MAGIC[..known] {
        return Err(WorkingSetFault::Foreign);
    }
    // A later version may lay out everything after its number anew, so this comes before any other check.
    if bytes.len() >= 12 && u32_at(bytes, 8) > VERSION {
        return Err(WorkingSetFault::Newer { found: u32_at(bytes, 8), supported: VERSION });
    }
    if bytes.len() < HEADER {
        return Err(WorkingSetFault::Length { expected: (HEADER + CRC) as u64, found });
    }
    let count = u32_at(bytes, 24);
    let expected = (HEADER + CRC) as u64 + RUN as u64 * u64::from(count);
    if found == expected { Ok(count as usize) } else { Err(WorkingSetFault::Length { expected, found }) }
}

/// What runs have to keep to.
struct Checked {
    guest_pages: u32,
    total: u64,
}

impl Checked {
    fn new(guest_size: u64) -> Result<Self, WorkingSetFault> {
        match pages_of(guest_size) {
            Some(guest_pages) => Ok(Self { guest_pages, total: 0 }),
            None => invalid(format!("no guest has {guest_size} bytes")),
        }
    }

    fn admit(&mut self, run: PageRun) -> Result<(), WorkingSetFault> {
        self.total += u64::from(run.pages);
        if run.pages == 0 || run.end() > u64::from(self.guest_pages) {
            return invalid(format!(
                "{} pages from page {} on do not lie within a guest of {} pages",
                run.pages, run.first, self.guest_pages
            ));
        }
        if self.total > u64::from(self.guest_pages) {
            return invalid(format!("its runs have more than the {} pages of the guest", self.guest_pages));
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests;
