//! From a distribution's bzImage to the ELF inside it.
//!
//! A bzImage is a small decompressor and a compressed vmlinux. Booting the vmlinux saves the decompression at every
//! boot. Where it lies is said by the setup header of the Linux/x86 boot protocol (the kernel's
//! Documentation/arch/x86/boot.rst), version 2.08 and later.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::BuildError;

/// No kernel, compressed or not, is larger.
const LARGEST: u64 = 512 << 20;

/// Writes the uncompressed ELF kernel of `image`, itself one or a bzImage, to `elf`.
///
/// # Errors
/// [`BuildError::NoKernel`], saying what it is instead.
pub(crate) fn extract_elf(image: &Path, elf: &Path) -> Result<u64, BuildError> {
    let no_kernel = |reason: String| BuildError::NoKernel { path: image.to_owned(), reason };
    let mut file = Vec::new();
    File::open(image)
        .and_then(|file_| file_.take(LARGEST).read_to_end(&mut file))
        .map_err(BuildError::io("read", image))?;
    if file.starts_with(b"\x7fELF") {
        fs::write(elf, &file).map_err(BuildError::io("write", elf))?;
        return Ok(file.len() as u64);
    }
    let payload = payload(&file).map_err(|reason| no_kernel(reason.to_owned()))?;
    let mut stream = decompress(payload).map_err(no_kernel)?.take(LARGEST);
    let mut start = [0; 4];
    stream.read_exact(&mut start).map_err(|error| no_kernel(format!("its payload is damaged: {error}")))?;
    if &start != b"\x7fELF" {
        return Err(no_kernel("its payload is not an ELF file".to_owned()));
    }
    let mut out = File::create(elf).map_err(BuildError::io("create", elf))?;
    io::copy(&mut (&start[..]).chain(stream), &mut out)
        .map_err(|error| no_kernel(format!("its payload cannot be unpacked: {error}")))
}

/// The compressed kernel within a bzImage.
fn payload(image: &[u8]) -> Result<&[u8], &'static str> {
    let word = |at: usize| {
        image.get(at..at + 4).map(|bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither an ELF file nor a bzImage");
    }
    let (Some(setup_sectors), Some(version)) = (image.get(0x1f1), image.get(0x206..0x208)) else {
        return Err("it is truncated");
    };
    if u16::from_le_bytes([version[0], version[1]]) < 0x0208 {
        return Err("it is too old: its boot protocol does not say where its payload is");
    }
    // For old boot loaders' sake 0 means 4.
    let setup_sectors = if *setup_sectors == 0 { 4 } else { u64::from(*setup_sectors) };
    let (Some(offset), Some(length)) = (word(0x248), word(0x24c)) else { return Err("it is truncated") };
    let start = (setup_sectors + 1) * 512 + offset;
    let range = usize::try_from(start).ok().zip(usize::try_from(start + length).ok());
    range.and_then(|(start, end)| image.get(start..end)).ok_or("it is truncated")
}

/// A reader of what is compressed in `data`, by whatever its magic number says.
///
/// Kernels have their unpacked size behind it, in four bytes. Only lz4's old format, which kernels use, has no end of its
/// own that would keep them apart.
pub(super) fn decompress(data: &[u8]) -> Result<Box<dyn Read + '_>, String> {
    Ok(match data {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(data)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::bufread::XzDecoder::new(data)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(
            zstd::Decoder::with_buffer(BufReader::new(data))
                .map_err(|error| error.to_string())?
                .single_frame(),
        ),
        [0x02, 0x21, 0x4c, 0x18, stream @ ..] => {
            let end = data.len() - stream.len().min(4);
            Box::new(lz4_flex::frame::FrameDecoder::new(&data[..end]))
        }
        [0x5d, 0, 0, ..] => return Err(unsupported("lzma")),
        [b'B', b'Z', b'h', ..] => return Err(unsupported("bzip2")),
        [0x89, b'L', b'Z', b'O', ..] => return Err(unsupported("lzo")),
        _ => return Err("its compression is unknown".to_owned()),
    })
}

fn unsupported(method: &str) -> String {
    format!(
        "it is compressed with {method}; gzip, lz4, xz and zstd can be unpacked here, or give an uncompressed vmlinux"
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A bzImage with `payload` behind three setup sectors.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4 * 512 + 100];
        image[0x1f1] = 3;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&100_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows");
        image
    }

    fn extract(image: &[u8]) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("bz"), dir.path().join("elf"));
        fs::write(&from, image).unwrap();
        match extract_elf(&from, &to) {
            Ok(len) => {
                let elf = fs::read(&to).unwrap();
                assert_eq!(elf.len() as u64, len);
                Ok(elf)
            }
            Err(BuildError::NoKernel { reason, .. }) => Err(reason),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_elf_comes_out_whatever_it_was_packed_with() {
        let elf: Vec<u8> = b"\x7fELF"
            .iter()
            .copied()
            .chain((0..3_000_000_u32).flat_map(|n| (n / 9).to_le_bytes()))
            .collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf).unwrap();
        // The old frame format, by hand: its magic number, then blocks of 8 MiB at most with their lengths.
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        for block in elf.chunks(8 << 20).map(lz4_flex::block::compress) {
            lz4.extend_from_slice(&(block.len() as u32).to_le_bytes());
            lz4.extend_from_slice(&block);
        }
        for mut packed in
            [gzip.finish().unwrap(), lz4, xz.finish().unwrap(), zstd::encode_all(&elf[..], 1).unwrap()]
        {
            // The kernel's build appends the unpacked size.
            packed.extend_from_slice(&(elf.len() as u32).to_le_bytes());
            assert!(extract(&bz_image(&packed)).unwrap() == elf);
            let half = packed.len() / 2;
            assert!(extract(&bz_image(&packed[..half])).unwrap_err().contains("payload"));
        }
        assert!(extract(&elf).unwrap() == elf, "an ELF stays what it is");
    }

    #[test]
    fn what_is_no_kernel_is_described() {
        let refused = |image: &[u8], reason: &str| {
            let found = extract(image).unwrap_err();
            assert!(found.contains(reason), "{found}");
        };
        refused(b"", "neither");
        refused(b"#!/bin/sh", "neither");
        let mut cut = bz_image(b"\x1f\x8b");
        cut[0x24c] = 200;
        refused(&cut, "truncated");
        refused(&bz_image(b"\x89LZO"), "lzo");
        refused(&bz_image(&[0x02, 0x21, 0x4c, 0x18, 0]), "payload");
        refused(&bz_image(b"nothing known"), "unknown");
        refused(&bz_image(&zstd::encode_all(&b"not an elf"[..], 1).unwrap()), "not an ELF");
        let mut old = bz_image(b"");
        old[0x206..0x208].copy_from_slice(&0x0206_u16.to_le_bytes());
        refused(&old, "too old");
    }
}
