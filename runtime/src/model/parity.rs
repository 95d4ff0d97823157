//! The parity of a file: one byte for each 64-bit word of its data, which corrects any flipped bit of the 72 and reveals any two.
//!
//! A code of Hsiao's kind (M. Y. Hsiao, "A class of optimal minimum odd-weight-column SEC-DED codes", IBM J. Res. Dev. 14, 1970): every
//! column of the check matrix has an odd number of ones and no two are alike, so that two flips never look like one. Its 64
//! columns are all 56 of three ones and 8 of five, ordered so that no table is needed: the column of bit `j` of byte `b` is
//! `PATTERNS[b]` rotated left by `j`. Every row has 26 ones.

/// Columns of the lowest bits of the eight bytes of a word; the first seven stand for all columns of three ones, by rotation.
const PATTERNS: [u8; 8] = [0x07, 0x0b, 0x13, 0x23, 0x43, 0x15, 0x25, 0x1f];

/// `MASKS[k]` has the bytes of a word whose pattern has bit `k`; no pattern has bit 7.
const MASKS: [u64; 7] = {
    let mut masks = [0; 7];
    let mut k = 0;
    while k < 7 {
        let mut b = 0;
        while b < 8 {
            if PATTERNS[b] >> k & 1 == 1 {
                masks[k] |= 0xff << (8 * b);
            }
            b += 1;
        }
        k += 1;
    }
    masks
};

/// Bytes of data for each byte of parity.
pub const WORD_BYTES: usize = 8;

/// The parity byte of a word: the sum, modulo 2, of the columns of its ones.
pub fn parity_of(word: u64) -> u8 {
    let mut parity = 0;
    for (mask, k) in MASKS.iter().zip(0u32..) {
        // The sum of the bytes under the mask.
        let mut sum = word & mask;
        sum ^= sum >> 32;
        sum ^= sum >> 16;
        sum ^= sum >> 8;
        parity ^= (sum as u8).rotate_left(k);
    }
    parity
}

/// The parity bytes of the eight words of a line, four times as fast as one by one: the bytes at the same place of all words are brought
/// together, so that each operation serves eight words.
pub fn parity_of_line(line: &[u8; 64]) -> [u8; 8] {
    let mut rows = [0u64; 8];
    rows.iter_mut().zip(line.as_chunks::<8>().0).for_each(|(row, bytes)| *row = u64::from_le_bytes(*bytes));
    // Transposes 8 x 8 bytes, halves of halves: then byte `i` of row `b` is byte `b` of word `i`.
    for (half, mask) in [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ff_u64)] {
        for pair in rows.chunks_exact_mut(2 * half) {
            let (upper, lower) = pair.split_at_mut(half);
            for (a, b) in upper.iter_mut().zip(lower) {
                let swap = (*a >> (8 * half) ^ *b) & mask;
                *b ^= swap;
                *a ^= swap << (8 * half);
            }
        }
    }
    let mut parity = 0;
    for k in 0..7 {
        let bytes = rows.iter().zip(PATTERNS).filter(|(_, pattern)| pattern >> k & 1 == 1);
        let sum = bytes.fold(0, |sum, (row, _)| sum ^ row);
        // Each byte rotated left by k.
        let low = 0x0101_0101_0101_0101 * (0xff >> k);
        parity ^= (sum & low) << k | (sum & !low) >> (8 - k);
    }
    parity.to_le_bytes()
}

/// What a word and its parity byte say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// They fit each other.
    Clean,
    /// This bit of the word is flipped, 0 to 63.
    Data(u8),
    /// This bit of the parity byte is flipped, 0 to 7.
    Parity(u8),
    /// More than one bit is flipped: two always end here, three and more mostly.
    Lost,
}

/// Finds the flipped bit of a word and its parity byte.
pub fn decode(word: u64, parity: u8) -> Decoded {
    let syndrome = parity_of(word) ^ parity;
    match syndrome.count_ones() {
        0 => Decoded::Clean,
        1 => Decoded::Parity(syndrome.trailing_zeros() as u8),
        _ => {
            let columns = PATTERNS.iter().zip(0u8..).flat_map(|(p, b)| (0..8u8).map(move |j| (p, 8 * b + j)));
            let mut found = columns.filter(|&(p, bit)| p.rotate_left(u32::from(bit % 8)) == syndrome);
            found.next().map_or(Decoded::Lost, |(_, bit)| Decoded::Data(bit))
        }
    }
}

/// Bytes of data in a file of `length` bytes with parity; `None` if no such file has this length.
pub(crate) const fn data_bytes(length: usize) -> Option<usize> {
    const UNIT: usize = super::ALIGNMENT + super::ALIGNMENT / WORD_BYTES;
    if length.is_multiple_of(UNIT) && length > 0 { Some(length / UNIT * super::ALIGNMENT) } else { None }
}

/// Index of the first word of `data` that does not fit its byte of `parity`.
pub(crate) fn first_unfit(data: &[u8], parity: &[u8]) -> Option<usize> {
    let (lines, _) = data.as_chunks::<64>();
    let line =
        lines.iter().zip(parity.as_chunks::<8>().0).position(|(line, parity)| parity_of_line(line) != *parity)?;
    let (words, parity) = (lines.get(line)?.as_chunks::<WORD_BYTES>().0, parity.get(8 * line..)?);
    let unfit = words.iter().zip(parity).position(|(word, &parity)| parity_of(u64::from_le_bytes(*word)) != parity);
    unfit.map(|word| 8 * line + word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check matrix as `docs/model-file.md` lists it, column by column, bit 0 of byte 0 first.
    const COLUMNS: [u8; 64] = [
        0x07, 0x0e, 0x1c, 0x38, 0x70, 0xe0, 0xc1, 0x83, 0x0b, 0x16, 0x2c, 0x58, 0xb0, 0x61, 0xc2, 0x85, 0x13, 0x26,
        0x4c, 0x98, 0x31, 0x62, 0xc4, 0x89, 0x23, 0x46, 0x8c, 0x19, 0x32, 0x64, 0xc8, 0x91, 0x43, 0x86, 0x0d, 0x1a,
        0x34, 0x68, 0xd0, 0xa1, 0x15, 0x2a, 0x54, 0xa8, 0x51, 0xa2, 0x45, 0x8a, 0x25, 0x4a, 0x94, 0x29, 0x52, 0xa4,
        0x49, 0x92, 0x1f, 0x3e, 0x7c, 0xf8, 0xf1, 0xe3, 0xc7, 0x8f,
    ];

    fn words() -> impl Iterator<Item = u64> {
        (0..40u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i << 61).chain([0, u64::MAX])
    }

    #[test]
    fn the_matrix_is_hsiaos() {
        let mut seen = [false; 256];
        let mut rows = [0; 8];
        for column in COLUMNS {
            assert!(column.count_ones() % 2 == 1 && column.count_ones() > 1 && !seen[usize::from(column)]);
            seen[usize::from(column)] = true;
            rows.iter_mut().enumerate().for_each(|(i, row)| *row += column >> i & 1);
        }
        assert_eq!(rows, [26; 8], "rows of equal weight");
        assert_eq!(COLUMNS.iter().filter(|c| c.count_ones() == 3).count(), 56, "all columns of three ones");
    }

    #[test]
    fn parity_is_the_sum_of_the_columns() {
        for word in words() {
            let sum = (0..64).filter(|i| word >> i & 1 == 1).fold(0, |sum, i| sum ^ COLUMNS[i]);
            assert_eq!(parity_of(word), sum, "{word:#x}");
        }
    }

    #[test]
    fn a_line_is_its_words() {
        for first in 0u64..200 {
            let line: [u8; 64] =
                core::array::from_fn(|i| (first.wrapping_mul(0x9e37_79b9).wrapping_add(i as u64 * 197) >> 3) as u8);
            let words = line.as_chunks().0.iter().map(|word| parity_of(u64::from_le_bytes(*word)));
            assert!(words.eq(parity_of_line(&line)), "{line:?}");
        }
    }

    #[test]
    fn every_flip_is_found_and_every_pair_is_lost() {
        for word in words() {
            let parity = parity_of(word);
            let flipped = |bit: u8, (word, parity): (u64, u8)| {
                if bit < 64 { (word ^ 1 << bit, parity) } else { (word, parity ^ 1 << (bit - 64)) }
            };
            assert_eq!(decode(word, parity), Decoded::Clean);
            for one in 0..72 {
                let (w, p) = flipped(one, (word, parity));
                let expected = if one < 64 { Decoded::Data(one) } else { Decoded::Parity(one - 64) };
                assert_eq!(decode(w, p), expected);
                for other in (0..72).filter(|&other| other != one) {
                    let (w, p) = flipped(other, (w, p));
                    assert_eq!(decode(w, p), Decoded::Lost, "{one} {other}");
                }
            }
        }
    }

    #[test]
    fn lengths_with_parity() {
        assert_eq!(
            [0, 64, 71, 72, 73, 144, 648].map(data_bytes),
            [None, None, None, Some(64), None, Some(128), Some(576)]
        );
    }
}
