//! The checksum table of a layer: one CRC32C per 64 KiB block, in a file of its own beside it.
//!
//! A table of its own lets a reader check only the blocks it touches, and lets a layer stay a plain copy of
//! guest memory that can be mapped. The table's own checksum is in the manifest.

/// The bytes that one checksum covers.
pub(super) const BLOCK: usize = 64 * 1024;

const MAGIC: &[u8; 8] = b"WRENNSUM";
const VERSION: u32 = 1;
const HEADER: usize = 24;

/// The checksums of a layer's blocks, the last of which may be short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockSums {
    length: u64,
    sums: Vec<u32>,
}

impl BlockSums {
    /// The length of the file that [`encode`](Self::encode) makes for a layer of `length` bytes.
    pub(super) fn encoded_length(length: u64) -> u64 {
        HEADER as u64 + 4 * length.div_ceil(BLOCK as u64)
    }

    /// Whether `block` has the checksum of block number `index`.
    pub(super) fn matches(&self, index: u64, block: &[u8]) -> bool {
        self.sums[index as usize] == crc32c::crc32c(block)
    }

    /// The layer's length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn blocks(&self) -> u64 {
        self.sums.len() as u64
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 4 * self.sums.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        for sum in &self.sums {
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out
    }

    /// Reads the table of a layer of `length` bytes, or says what is wrong with it.
    pub(super) fn decode(file: &[u8], length: u64) -> Result<Self, &'static str> {
        if file.len() as u64 != Self::encoded_length(length) {
            return Err("their file has the wrong length");
        }
        let (header, table) = file.split_at(HEADER);
        let mut expected = MAGIC.to_vec();
        expected.extend_from_slice(&VERSION.to_le_bytes());
        expected.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        expected.extend_from_slice(&length.to_le_bytes());
        if header != expected {
            return Err("their file is of another kind, version or layer");
        }
        let sums = table.chunks_exact(4).map(|sum| u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]));
        Ok(Self { length, sums: sums.collect() })
    }
}

/// Computes a table from a layer's content, given from start to end.
#[derive(Debug)]
pub(super) struct BlockSummer {
    length: u64,
    sums: Vec<u32>,
    current: u32,
    filled: usize,
    zero_block: u32,
}

impl BlockSummer {
    pub(super) fn new() -> Self {
        let zero_block = crc32c::crc32c(&[0; BLOCK]);
        Self { length: 0, sums: Vec::new(), current: 0, filled: 0, zero_block }
    }

    /// The bytes seen so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Goes on with `bytes`.
    pub(super) fn data(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.current = crc32c::crc32c_append(self.current, now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BLOCK {
                self.close_block();
            }
        }
    }

    /// Goes on with `count` zero bytes, at no cost for whole blocks of them.
    pub(super) fn zeros(&mut self, mut count: u64) {
        const ZEROS: &[u8; 4096] = &[0; 4096];
        while count > 0 {
            if self.filled == 0 && count >= BLOCK as u64 {
                let blocks = count / BLOCK as u64;
                self.sums.resize(self.sums.len() + blocks as usize, self.zero_block);
                self.length += blocks * BLOCK as u64;
                count %= BLOCK as u64;
            } else {
                let step = count.min((BLOCK - self.filled) as u64).min(ZEROS.len() as u64);
                self.data(&ZEROS[..step as usize]);
                count -= step;
            }
        }
    }

    pub(super) fn finish(mut self) -> BlockSums {
        if self.filled > 0 {
            self.close_block();
        }
        BlockSums { length: self.length, sums: self.sums }
    }

    fn close_block(&mut self) {
        self.sums.push(self.current);
        self.current = 0;
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_zeros_sum_like_the_whole() {
        let mut content = vec![0u8; 5 * BLOCK + 4096];
        for (i, byte) in content.iter_mut().enumerate().take(BLOCK + 8192).skip(8192) {
            *byte = (i * 7) as u8;
        }
        let mut whole = BlockSummer::new();
        whole.data(&content);
        let whole = whole.finish();
        let mut pieces = BlockSummer::new();
        pieces.zeros(8192);
        for chunk in content[8192..BLOCK + 8192].chunks(5000) {
            pieces.data(chunk);
        }
        pieces.zeros((4 * BLOCK + 4096 - 8192) as u64);
        assert_eq!(pieces.length(), content.len() as u64);
        assert_eq!(pieces.finish(), whole);
        assert_eq!(whole.blocks(), 6);
        assert!(whole.matches(1, &content[BLOCK..2 * BLOCK]));
        assert!(!whole.matches(1, &content[..BLOCK]));
    }

    #[test]
    fn a_table_is_read_back_and_refused_when_anything_in_its_header_differs() {
        let mut summer = BlockSummer::new();
        summer.data(&[9; 3 * BLOCK]);
        let sums = summer.finish();
        let (file, length) = (sums.encode(), 3 * BLOCK as u64);
        assert_eq!(file.len() as u64, BlockSums::encoded_length(length));
        assert_eq!(BlockSums::decode(&file, length).unwrap(), sums);
        assert!(BlockSums::decode(&file[..file.len() - 1], length).is_err());
        assert!(BlockSums::decode(&file, length - 1).is_err());
        assert!(BlockSums::decode(&[], length).is_err());
        for at in 0..HEADER {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(BlockSums::decode(&bad, length).is_err(), "byte {at}");
        }
    }
}
