//! Patches in bits: the other end of what the runtime reads.

use nadir::delta::{ESCAPE, GAP_BITS};

/// A patch: the parameters of its two Rice codes, and its bits.
pub struct Patch {
    /// Bits of a gap that are written as they are.
    pub gap: u32,
    /// Bits of a difference that are written as they are.
    pub value: u32,
    /// The code.
    pub bits: Vec<u8>,
    /// Elements that differ.
    pub changed: usize,
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    at: usize,
}

impl Bits {
    fn put(&mut self, value: u64, count: u32) {
        for bit in 0..count {
            if self.at.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> bit & 1) as u8) << (self.at % 8);
            }
            self.at += 1;
        }
    }

    fn rice(&mut self, value: u64, k: u32, raw: u32) {
        match value >> k {
            quotient if quotient < u64::from(ESCAPE) => {
                self.put((1 << quotient) - 1, quotient as u32 + 1);
                self.put(value, k);
            }
            _ => {
                self.put(u64::MAX, ESCAPE);
                self.put(value, raw);
            }
        }
    }
}

/// The parameter below `limit` with which the values take the fewest bits.
fn best(values: impl Iterator<Item = u64> + Clone, raw: u32, limit: u32) -> u32 {
    let bits = |k: u32| -> u64 {
        let of = |value: u64| match value >> k {
            quotient if quotient < u64::from(ESCAPE) => quotient + 1 + u64::from(k),
            _ => u64::from(ESCAPE + raw),
        };
        values.clone().map(of).sum()
    };
    (0..limit).min_by_key(|&k| bits(k)).unwrap_or(0)
}

/// What turns the elements `from` into `to`, both little-endian with `size` bytes each.
pub fn patch(from: &[u8], to: &[u8], size: usize) -> Patch {
    let element = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let width = 8 * size as u32;
    let mut changes = Vec::new();
    let mut next = 0;
    for (index, (from, to)) in from.chunks_exact(size).zip(to.chunks_exact(size)).enumerate() {
        if from != to {
            let difference = element(to).wrapping_sub(element(from));
            let signed = (difference << (64 - width)) as i64 >> (64 - width);
            changes.push((index - next, ((signed << 1) ^ (signed >> 63)) as u64 - 1));
            next = index + 1;
        }
    }
    let end = to.len() / size - next;
    let gaps = changes.iter().map(|&(gap, _)| gap as u64).chain([end as u64]);
    let (gap, value) = (best(gaps, GAP_BITS, 32), best(changes.iter().map(|&(_, value)| value), width, width));
    let mut bits = Bits::default();
    for &(distance, difference) in &changes {
        bits.rice(distance as u64, gap, GAP_BITS);
        bits.rice(difference, value, width);
    }
    bits.rice(end as u64, gap, GAP_BITS);
    Patch { gap, value, bits: bits.bytes, changed: changes.len() }
}

/// Seven bits a byte, the lowest first.
pub fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
