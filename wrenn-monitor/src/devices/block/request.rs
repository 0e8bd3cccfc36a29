//! One request of a disk (virtio 1.2, section 5.2.6): header, data, status.

use std::io;
use std::os::fd::AsFd;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::{Block, SECTOR};
use crate::action::Fault;
use crate::devices::sys;
use crate::devices::virtio::{Buffers, Chain, RingError, TooShort};
use crate::logger::GUEST;

/// Type (le32), reserved, sector (le64).
const HEADER: usize = 16;

/// Why a request was answered with an error status.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the request has no whole header, or too little room for its answer")]
    Form(#[from] TooShort),
    #[error("{sectors} sectors from sector {sector} are not on the disk, or not whole")]
    OutsideDisk { sector: u64, sectors: u64 },
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("request type {0} is not known")]
    Unknown(u32),
    #[error("the host's disk failed")]
    Host(#[from] io::Error),
}

/// Serves `chain`, and returns how many bytes of it were written.
pub(super) fn serve(disk: &Block, chain: &Chain<'_>) -> Result<u32, RingError> {
    let Some(room) = chain.writable.len().checked_sub(1) else {
        return Err(RingError::Driver("a disk request has no room for its status"));
    };
    let (status, written) = match perform(disk, chain, room) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(error) => {
            log::warn!(target: GUEST, "drive {:?}: {}", disk.state.drive_id, Fault::from_error(&error));
            let unknown = matches!(error, RequestError::Unknown(_));
            (if unknown { VIRTIO_BLK_S_UNSUPP } else { VIRTIO_BLK_S_IOERR }, 0)
        }
    };
    // The last byte, which is there.
    let _ = chain.writable.write(room, &[status as u8]);
    Ok(written as u32 + 1)
}

/// Does what `chain` asks, with `room` bytes for the answer; returns how many were used.
fn perform(disk: &Block, chain: &Chain<'_>, room: usize) -> Result<usize, RequestError> {
    let mut header = [0u8; HEADER];
    chain.readable.read(0, &mut header)?;
    let [kind, _reserved, low, high] = words(header);
    let sector = u64::from(low) | u64::from(high) << 32;
    match kind {
        VIRTIO_BLK_T_IN => {
            let into = chain.writable.part(0..room)?;
            let offset = locate(disk, sector, into.len())?;
            transfer(&into, offset, |part, offset| sys::read_at(disk.file.as_fd(), part, offset))?;
            Ok(into.len())
        }
        VIRTIO_BLK_T_OUT => {
            let from = chain.readable.part(HEADER..chain.readable.len())?;
            let offset = locate(disk, sector, from.len())?;
            if disk.state.read_only {
                return Err(RequestError::ReadOnly);
            }
            transfer(&from, offset, |part, offset| sys::write_at(disk.file.as_fd(), part, offset))?;
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH => {
            disk.flush()?;
            Ok(0)
        }
        VIRTIO_BLK_T_GET_ID => {
            let serial = disk.serial();
            if room < serial.len() {
                return Err(TooShort.into());
            }
            chain.writable.write(0, &serial)?;
            Ok(serial.len())
        }
        other => Err(RequestError::Unknown(other)),
    }
}

fn words(header: [u8; HEADER]) -> [u32; 4] {
    let (words, _) = header.as_chunks::<4>();
    [0, 1, 2, 3].map(|i: usize| u32::from_le_bytes(words[i]))
}

/// The byte offset of `len` bytes from `sector` on, all of which are whole sectors of the disk.
fn locate(disk: &Block, sector: u64, len: usize) -> Result<u64, RequestError> {
    let (len, sectors) = (len as u64, (len as u64).div_ceil(SECTOR));
    let end = sector.checked_add(sectors);
    if len.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= disk.state.sectors) {
        Ok(sector * SECTOR)
    } else {
        Err(RequestError::OutsideDisk { sector, sectors })
    }
}

/// Moves all of `data` to or from `offset`, however many calls it takes.
fn transfer(
    data: &Buffers<'_>,
    offset: u64,
    mut step: impl FnMut(&Buffers<'_>, u64) -> io::Result<usize>,
) -> Result<(), RequestError> {
    let mut done = 0;
    while done < data.len() {
        let rest = data.part(done..data.len())?;
        match step(&rest, offset + done as u64) {
            // The file is shorter than it was.
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(moved) => done += moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
