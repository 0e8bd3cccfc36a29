//! Sizes with their unit in the type.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of mebibytes (2^20 bytes): the unit of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MiB(pub u32);

impl MiB {
    /// The same size in bytes.
    pub const fn bytes(self) -> Bytes {
        Bytes((self.0 as u64) << 20)
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<MiB> for Bytes {
    fn from(size: MiB) -> Self {
        size.bytes()
    }
}

impl fmt::Display for Bytes {
    /// With a binary unit and at most one decimal: `512 B`, `1.5 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if value.fract() == 0.0 {
            write!(f, "{value:.0} {}", UNITS[unit])
        } else {
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mebibytes_convert_and_print() {
        assert_eq!(MiB(256).bytes(), Bytes(268_435_456));
        assert_eq!(MiB(u32::MAX).bytes().get(), 4_503_599_626_321_920);
        assert_eq!(MiB(3).to_string(), "3 MiB");
    }

    #[test]
    fn bytes_print_with_the_unit_a_person_would_choose() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            (5 << 40, "5 TiB"),
            (1 << 60, "1048576 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
