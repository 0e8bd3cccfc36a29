//! The state file's outer form: what tells a whole, unaltered, readable state from everything else.
//!
//! ```text
//! offset  size
//!      0     8  magic "WRENNVMS"
//!      8     4  version of the body, little-endian, as all numbers
//!     12     4  CRC-32C of everything else: bytes 0 to 11, then 16 to the end
//!     16     8  length of the body
//!     24     …  the body: a postcard encoding of `MachineState`
//! ```
//!
//! The body is not self-describing, so every change to a type in it is a new version; a version is read by exactly
//! the monitors that know it. What else is refused, and how, is [`ContainerError`].

/// The first bytes of every state file.
const MAGIC: [u8; 8] = *b"WRENNVMS";
/// The version that this monitor writes, and the only one that it reads.
const VERSION: u32 = 2;
const HEADER: usize = 24;

/// The bytes of a file are no state of a machine, or not one that this monitor can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("it is no state file of wrenn-monitor")]
    Foreign,
    #[error(
        "it is of format version {found}, newer than the {VERSION} that this wrenn-monitor knows: use a newer one"
    )]
    Newer { found: u32 },
    #[error(
        "it is of format version {found}, which this wrenn-monitor no longer reads: use the one that wrote it"
    )]
    Older { found: u32 },
    #[error("it is truncated: {found} of {wanted} bytes are there")]
    Truncated { found: u64, wanted: u64 },
    #[error("it has {extra} bytes too many at its end")]
    Overlong { extra: u64 },
    #[error("it was altered or damaged: its checksum does not match")]
    Altered,
}

/// Wraps a body up.
pub(crate) fn wrap(body: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER + body.len());
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&[0; 4]);
    file.extend_from_slice(&(body.len() as u64).to_le_bytes());
    file.extend_from_slice(body);
    let checksum = checksum(&file).to_le_bytes();
    file[12..16].copy_from_slice(&checksum);
    file
}

/// Takes the body out again, if the file is one that this monitor wrote.
pub(crate) fn unwrap(file: &[u8]) -> Result<&[u8], ContainerError> {
    let found = file.len() as u64;
    let truncated = |wanted: usize| ContainerError::Truncated { found, wanted: wanted as u64 };
    let start = &file[..file.len().min(MAGIC.len())];
    if file.is_empty() {
        return Err(truncated(HEADER));
    }
    if !MAGIC.starts_with(start) {
        return Err(ContainerError::Foreign);
    }
    let (header, body) = file.split_at_checked(HEADER).ok_or_else(|| truncated(HEADER))?;
    match word(header, 8) {
        VERSION => {}
        found if found > VERSION => return Err(ContainerError::Newer { found }),
        found => return Err(ContainerError::Older { found }),
    }
    let wanted = u64::from(word(header, 16)) | u64::from(word(header, 20)) << 32;
    let held = body.len() as u64;
    if held < wanted {
        return Err(ContainerError::Truncated { found, wanted: wanted.saturating_add(HEADER as u64) });
    }
    if held > wanted {
        return Err(ContainerError::Overlong { extra: held - wanted });
    }
    if word(header, 12) != checksum(file) {
        return Err(ContainerError::Altered);
    }
    Ok(body)
}

fn checksum(file: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&file[..12]), &file[16..])
}

fn word(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of a header"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &[u8] = b"the state of a machine";

    #[test]
    fn a_body_comes_out_as_it_went_in() {
        assert_eq!(unwrap(&wrap(BODY)), Ok(BODY));
        assert_eq!(unwrap(&wrap(b"")), Ok(&b""[..]));
    }

    #[test]
    fn every_truncation_is_told_as_one() {
        let file = wrap(BODY);
        for len in 0..file.len() {
            assert!(matches!(unwrap(&file[..len]), Err(ContainerError::Truncated { .. })), "{len} bytes");
        }
    }

    #[test]
    fn foreign_newer_older_and_overlong_files_are_told_apart() {
        assert_eq!(unwrap(b"\x7fELF"), Err(ContainerError::Foreign));
        assert_eq!(unwrap(&[0; 100]), Err(ContainerError::Foreign));
        let with_version = |version: u32| {
            let mut file = wrap(BODY);
            file[8..12].copy_from_slice(&version.to_le_bytes());
            file
        };
        assert_eq!(unwrap(&with_version(VERSION + 1)), Err(ContainerError::Newer { found: VERSION + 1 }));
        assert_eq!(unwrap(&with_version(0)), Err(ContainerError::Older { found: 0 }));
        let overlong = [wrap(BODY), vec![0; 3]].concat();
        assert_eq!(unwrap(&overlong), Err(ContainerError::Overlong { extra: 3 }));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let file = wrap(BODY);
        for bit in 0..file.len() * 8 {
            let mut altered = file.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&altered).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            let file = if magic { [&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat() } else { bytes };
            let _ = unwrap(&file);
        }
    }
}
