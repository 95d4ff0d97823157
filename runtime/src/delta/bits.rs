//! Bits of a patch: Rice codes, lowest bit first.
//!
//! Gaps between changed elements are nearly geometric, for which these codes are within 3 % of the entropy (R. F. Rice, "Some practical universal
//! noiseless coding techniques", JPL 79-22, 1979); and they need neither tables nor memory.

/// Ones after which a value follows as it is.
pub const ESCAPE: u32 = 24;
/// Bits of a gap that follows as it is.
pub const GAP_BITS: u32 = 32;

/// Reads bits; every read past the end gives `None`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// Number of the next bit.
    pub at: usize,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The next `count` bits, at most 64.
    fn take(&mut self, count: u32) -> Option<u64> {
        let mut value = 0;
        let mut have = 0;
        while have < count {
            let byte = u64::from(*self.bytes.get(self.at / 8)?) >> (self.at % 8);
            let fresh = (8 - (self.at % 8) as u32).min(count - have);
            value |= (byte & ((1 << fresh) - 1)) << have;
            have += fresh;
            self.at += fresh as usize;
        }
        Some(value)
    }

    /// A value in Rice's code: its quotient by 2^`k` in ones, a zero, the `k` bits that are left; or [`ESCAPE`] ones and `raw` bits.
    pub fn rice(&mut self, k: u32, raw: u32) -> Option<u64> {
        let mut quotient = 0u64;
        while self.take(1)? == 1 {
            quotient += 1;
            if quotient == u64::from(ESCAPE) {
                return self.take(raw);
            }
        }
        let rest = self.take(k)?;
        quotient.checked_shl(k).filter(|high| high >> k == quotient).map(|high| high | rest)
    }

    /// Whether fewer than eight bits are left, all of them zero.
    pub fn is_over(&self) -> bool {
        let left = (8 * self.bytes.len()).saturating_sub(self.at);
        left < 8 && self.bytes.last().is_none_or(|last| left == 0 || last >> (8 - left) == 0)
    }
}

/// The next number of a list: seven bits a byte, the lowest first, the highest bit set in all bytes but the last.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u64;
    for shift in [0, 7, 14, 21, 28] {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return u32::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn codes_are_those_of_the_text() {
        // 5 with k = 1: two ones, a zero, the bit 1; then 0 with k = 0: a zero; then 24 ones and 8 bits of 0xa5.
        let bytes = pack(&["1101", "0", &"1".repeat(24), "10100101"].concat());
        let mut reader = Bits::new(&bytes, 0);
        assert_eq!(reader.rice(1, 8), Some(5));
        assert_eq!(reader.rice(0, 8), Some(0));
        assert_eq!(reader.rice(3, 8), Some(0xa5));
        assert!(reader.is_over());
        assert_eq!(reader.rice(0, 8), Some(0), "what is left of the last byte");
        let mut cut = Bits::new(&bytes[..3], 5);
        assert_eq!(cut.rice(0, 8), None);
        assert_eq!(Bits::new(&[0x7f], 0).rice(63, 64), None, "beyond the end");
    }

    #[test]
    fn varints_are_bounded() {
        let mut bytes: &[u8] = &[0x00, 0x7f, 0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!([0; 4].map(|_| varint(&mut bytes)), [Some(0), Some(127), Some(128), Some(u32::MAX)]);
        for bad in [&[][..], &[0x80], &[0xff, 0xff, 0xff, 0xff, 0x10], &[0x80; 6]] {
            assert_eq!(varint(&mut &*bad), None, "{bad:?}");
        }
    }

    fn pack(bits: &str) -> Vec<u8> {
        let bits: Vec<u8> = bits.bytes().map(|b| b - b'0').collect();
        bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit)).collect()
    }
}
