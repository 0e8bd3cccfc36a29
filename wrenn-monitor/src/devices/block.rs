//! A disk: virtio-blk (virtio 1.2, section 5.2) on a file or block device of the host.
//!
//! Requests are served one after the other by `preadv` and `pwritev`, straight from and to guest memory.
//!
//! Failure paths: a request that makes no sense, or that the host cannot fulfil, is answered with an error
//! status. Only one without room for a status stops the device.

mod request;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use wrenn_vmm::api::{CacheType, Drive, IoEngine};

use super::limiter::{Limiter, LimiterState};
use super::virtio::{DeviceState, Ring, RingError, Served, VirtioDevice};

/// The unit of the protocol, whatever the disk's own sectors are.
const SECTOR: u64 = 512;
const QUEUE_SIZES: &[u16] = &[256];
/// The most data descriptors in one request: a queue's worth, less header and status.
const MAX_SEGMENTS: u32 = 254;

/// Why a drive cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BlockError {
    #[error("drive {drive:?} cannot be opened at {}", path.display())]
    Open { drive: String, path: PathBuf, source: io::Error },
    #[error("drive {drive:?} cannot be on {}: it is neither a regular file nor a block device", path.display())]
    NotADisk { drive: String, path: PathBuf },
    #[error("drive {drive:?} has no path_on_host")]
    NoPath { drive: String },
    #[error("drive {drive:?} asks for {option}, which wrenn-monitor does not offer: leave it out")]
    Unsupported { drive: String, option: &'static str },
    #[error(
        "drive {drive:?} had {expected} sectors when its state was saved, and {} has {found}",
        path.display()
    )]
    Shrunk { drive: String, path: PathBuf, expected: u64, found: u64 },
}

/// What a snapshot keeps of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockState {
    drive_id: String,
    path: PathBuf,
    read_only: bool,
    /// Whether a flush is offered and reaches the host's disk.
    writeback: bool,
    sectors: u64,
    limits: LimiterState,
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Block {
    state: BlockState,
    file: File,
    limiter: Limiter,
}

impl Block {
    /// Opens the drive's file.
    ///
    /// # Errors
    /// If there is none that can be read (and, unless the drive is read-only, written), or the drive asks for
    /// something that is not offered.
    pub(crate) fn open(drive: &Drive) -> Result<Self, BlockError> {
        let id = drive.drive_id.clone();
        let unsupported = [
            (drive.socket.is_some(), "a vhost-user socket"),
            (drive.io_engine == Some(IoEngine::Async), "the Async I/O engine"),
        ];
        if let Some((_, option)) = unsupported.into_iter().find(|(asked, _)| *asked) {
            return Err(BlockError::Unsupported { drive: id, option });
        }
        let Some(path) = drive.path_on_host.clone() else { return Err(BlockError::NoPath { drive: id }) };
        let read_only = drive.is_read_only.unwrap_or(false);
        let (file, bytes) = open_disk(&id, &path, read_only)?;
        if bytes % SECTOR != 0 {
            log::warn!(
                "drive {id:?}: the last {} bytes of {} are no whole sector and stay hidden from the guest",
                bytes % SECTOR,
                path.display()
            );
        }
        let writeback = drive.cache_type == Some(CacheType::Writeback);
        let limiter = Limiter::new(drive.rate_limiter.as_ref());
        let (sectors, limits) = (bytes / SECTOR, limiter.save());
        let state = BlockState { drive_id: id, path, read_only, writeback, sectors, limits };
        Ok(Self { state, file, limiter })
    }

    /// Opens the file of a saved drive. A file that has grown is taken; the guest sees the size that it knows.
    pub(super) fn restore(state: BlockState) -> Result<Self, BlockError> {
        let (file, bytes) = open_disk(&state.drive_id, &state.path, state.read_only)?;
        let found = bytes / SECTOR;
        if found < state.sectors {
            let BlockState { drive_id: drive, path, sectors: expected, .. } = state;
            return Err(BlockError::Shrunk { drive, path, expected, found });
        }
        let limiter = Limiter::restore(state.limits);
        Ok(Self { state, file, limiter })
    }

    /// What the guest reads as the disk's serial number: the drive's id, cut or filled up with zeroes.
    fn serial(&self) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in serial.iter_mut().zip(self.state.drive_id.bytes()) {
            *to = from;
        }
        serial
    }

    fn flush(&self) -> io::Result<()> {
        if self.state.writeback && !self.state.read_only { self.file.sync_data() } else { Ok(()) }
    }
}

/// Opens `path`, and gives its size in bytes.
fn open_disk(drive: &str, path: &Path, read_only: bool) -> Result<(File, u64), BlockError> {
    let failed = |source| BlockError::Open { drive: drive.to_owned(), path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        // Opening a pipe would wait for its other end; on disks the flag means nothing.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlockError::NotADisk { drive: drive.to_owned(), path: path.to_owned() });
    }
    // A block device's metadata says nothing of its size; its end does.
    let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, bytes))
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX;
        if self.state.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        if self.state.writeback {
            features |= 1 << VIRTIO_BLK_F_FLUSH;
        }
        features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// The first three fields of `virtio_blk_config`: capacity, `size_max` (not offered), `seg_max`.
    fn config_space(&self) -> Vec<u8> {
        let mut config = self.state.sectors.to_le_bytes().to_vec();
        config.extend(0u32.to_le_bytes());
        config.extend(MAX_SEGMENTS.to_le_bytes());
        config
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn serve(&mut self, _index: usize, ring: &mut Ring) -> Result<Served, RingError> {
        // Taken out, as a request borrows the disk.
        let mut limiter = std::mem::take(&mut self.limiter);
        let served = ring.serve(&mut limiter, |chain| request::serve(self, chain));
        self.limiter = limiter;
        served
    }

    fn is_limited(&self) -> bool {
        self.limiter.limits()
    }

    fn save(&self) -> io::Result<DeviceState> {
        self.flush()?;
        Ok(DeviceState::Block(self.state.clone()))
    }
}

#[cfg(test)]
mod tests;
