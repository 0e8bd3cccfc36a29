//! Bodies sent with `Content-Encoding: gzip`, both ways.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use futures_util::{Stream, StreamExt, stream};

use super::{BoxError, HttpError};

/// How many compressed bytes are fed at once: at most a thousandfold comes out (deflate, RFC 1951).
const BITE: usize = 1024;

/// The plain bytes of a compressed stream, in pieces of at most about a megabyte.
pub(super) fn unpack(
    packed: impl Stream<Item = Result<Bytes, HttpError>> + Send + Unpin,
) -> impl Stream<Item = Result<Bytes, HttpError>> + Send {
    let decoder = GzDecoder::new(Vec::new());
    stream::try_unfold((packed, Bytes::new(), Some(decoder)), |(mut packed, mut bites, decoder)| async move {
        let Some(mut decoder) = decoder else { return Ok(None) };
        loop {
            if bites.is_empty() {
                match packed.next().await {
                    Some(more) => bites = more?,
                    None => {
                        // Checks the trailing checksum, too.
                        let rest = decoder.finish().map_err(broken)?;
                        return Ok(Some((rest.into(), (packed, bites, None))));
                    }
                }
            }
            let bite = bites.split_to(bites.len().min(BITE));
            decoder.write_all(&bite).map_err(broken)?;
            let plain = std::mem::take(decoder.get_mut());
            if !plain.is_empty() {
                return Ok(Some((plain.into(), (packed, bites, Some(decoder)))));
            }
        }
    })
}

/// How hard it is tried: quickly rather than tightly. The level below has no codes of its own, by which some bytes grow.
const LEVEL: u32 = 2;

/// Packs a stream as it comes.
pub(super) fn pack(
    plain: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
    let state = (Box::pin(plain), Some(encoder));
    stream::try_unfold(state, |(mut plain, encoder)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        loop {
            let Some(piece) = plain.next().await else {
                return Ok(Some((encoder.finish()?.into(), (plain, None))));
            };
            encoder.write_all(&piece?)?;
            let packed = std::mem::take(encoder.get_mut());
            if !packed.is_empty() {
                return Ok(Some((packed.into(), (plain, Some(encoder)))));
            }
        }
    })
}

fn broken(error: std::io::Error) -> HttpError {
    HttpError::bad_request(format!("the body is not whole gzip data: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip_of(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    async fn unpack_all(packed: Vec<u8>, frame: usize) -> Result<(Vec<u8>, usize), HttpError> {
        let frames: Vec<_> = packed.chunks(frame).map(|frame| Ok(Bytes::copy_from_slice(frame))).collect();
        let mut plain = Vec::new();
        let mut largest = 0;
        let mut pieces = Box::pin(unpack(stream::iter(frames)));
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            largest = largest.max(piece.len());
            plain.extend_from_slice(&piece);
        }
        Ok((plain, largest))
    }

    #[tokio::test]
    async fn unpacks_in_bounded_pieces() {
        let plain = vec![0; 30 << 20];
        let packed = gzip_of(&plain);
        assert!(packed.len() < 64 << 10);
        let (unpacked, largest) = unpack_all(packed, usize::MAX).await.unwrap();
        assert!(unpacked == plain);
        assert!(largest <= 2 << 20, "{largest}");
        let text: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        assert!(unpack_all(gzip_of(&text), 7).await.unwrap().0 == text);
        assert_eq!(unpack_all(gzip_of(b""), 1).await.unwrap().0, b"");
    }

    #[tokio::test]
    async fn refuses_what_is_cut_or_altered() {
        let packed = gzip_of(b"something to pack, something to pack");
        let mut altered = packed.clone();
        let at = altered.len() - 6;
        altered[at] ^= 1;
        for bad in [&packed[..packed.len() - 1], &packed[..12], &altered, b"plain text" as &[u8]] {
            assert!(unpack_all(bad.to_vec(), 5).await.is_err());
        }
    }

    #[tokio::test]
    async fn what_is_packed_unpacks() {
        let pieces: Vec<Bytes> =
            (0..50u32).map(|n| n.to_le_bytes().repeat(n as usize * 500).into()).collect();
        let plain: Vec<u8> = pieces.concat();
        let mut stream = Box::pin(pack(stream::iter(pieces.into_iter().map(Ok))));
        let mut packed = Vec::new();
        while let Some(piece) = stream.next().await {
            packed.extend_from_slice(&piece.unwrap());
        }
        assert!(packed.len() < plain.len() / 10);
        assert!(unpack_all(packed, 1000).await.unwrap().0 == plain);
        let broken = stream::iter([Ok(Bytes::from_static(b"x")), Err("it broke".into())]);
        let pieces: Vec<_> = pack(broken).collect().await;
        assert!(pieces.last().unwrap().is_err());
    }
}
