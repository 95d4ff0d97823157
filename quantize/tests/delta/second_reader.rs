//! A delta applied as `docs/delta.md` says it, to whole files and bit by bit, without a line of the runtime's deltas.

use nadir_quantize::writer::parity_bytes;

/// CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> [u8; 4] {
    let crc = bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    (!crc).to_le_bytes()
}

fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes[at..at + length].iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte))
}

struct Rows<'a>(std::slice::Iter<'a, u8>);

impl Rows<'_> {
    fn byte(&mut self) -> usize {
        usize::from(*self.0.next().unwrap())
    }

    fn varint(&mut self) -> usize {
        let byte = self.byte();
        if byte < 128 { byte } else { byte - 128 + 128 * self.varint() }
    }
}

fn rice(bits: &mut impl Iterator<Item = bool>, k: usize, raw: usize) -> u128 {
    let mut take = |count: usize| (0..count).fold(0, |value, i| value | u128::from(bits.next().unwrap()) << i);
    let mut ones = 0;
    while ones < 24 && take(1) == 1 {
        ones += 1;
    }
    if ones == 24 { take(raw) } else { (ones << k) + take(k) }
}

/// The new file.
pub fn apply(old: &[u8], delta: &[u8]) -> Vec<u8> {
    let field = |at| number(delta, at, 4);
    let (new_bytes, data, body_bytes) = (field(24), field(28), field(40));
    let body = &delta[128 + 4 * body_bytes.div_ceil(1024)..][..body_bytes];
    let (rows, mut payload) = body.split_at(field(44));
    let mut rows = Rows(rows.iter());
    let mut file = vec![0; data];
    let (mut new_end, mut old_end) = (0, 0);
    for _ in 0..field(32) {
        let [new, from, bytes] = [0; 3].map(|_| 64 * rows.varint());
        let (new, from) = (new_end + new, old_end + from);
        (new_end, old_end) = (new + bytes, from + bytes);
        file[new..new_end].copy_from_slice(&old[from..old_end]);
    }
    let mut end = 0;
    for _ in 0..field(36) {
        let start = end + rows.varint();
        let elements = rows.varint();
        let tag = rows.byte() + 256 * rows.byte();
        let size = 1 << (tag & 3);
        end = start + elements * size;
        if tag & 4 == 0 {
            let (whole, rest) = payload.split_at(elements * size);
            file[start..end].copy_from_slice(whole);
            payload = rest;
            continue;
        }
        let (patch, rest) = payload.split_at(rows.varint());
        payload = rest;
        let mut bits = patch.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1));
        let mut element = 0;
        loop {
            element += rice(&mut bits, tag >> 3 & 31, 32) as usize;
            if element == elements {
                break;
            }
            let code = rice(&mut bits, tag >> 8 & 63, 8 * size) + 1;
            let difference = if code % 2 == 0 { (code / 2) as i128 } else { -((code / 2 + 1) as i128) };
            let place = &mut file[start + element * size..][..size];
            let value = number(place, 0, size) as i128 + difference;
            place.copy_from_slice(&value.to_le_bytes()[..size]);
            element += 1;
        }
    }
    // CRCs and parity, as docs/model-file.md has them.
    let table = (32 + number(&file, 12, 4)).next_multiple_of(64);
    let table_end = table + 32 * number(&file, 16, 4);
    let first = (table_end + 8).next_multiple_of(64);
    let rows: Vec<usize> = (table..table_end).step_by(32).collect();
    let of = |file: &[u8], row: usize| {
        let bytes = [4, 2, 1, 2, 4, 8][usize::from(file[row + 1])] * number(file, row + 16, 8);
        let start = number(file, row + 8, 8);
        start..start + bytes
    };
    let tensors_end = rows.iter().filter(|&&row| file[row] == 0).map(|&row| of(&file, row).end).max().unwrap();
    if let Some(&row) = rows.iter().find(|&&row| file[row] == 128) {
        let crcs: Vec<u8> = file[first..tensors_end.next_multiple_of(64)].chunks(4096).flat_map(crc).collect();
        let place = of(&file, row);
        file[place].copy_from_slice(&crcs);
    }
    for row in rows {
        let found = crc(&file[of(&file, row)]);
        file[row + 24..row + 28].copy_from_slice(&found);
    }
    let head = crc(&file[..table_end]);
    file[table_end + 4..table_end + 8].copy_from_slice(&head);
    let all = crc(&file[..data - 64]);
    file[data - 64..data - 60].copy_from_slice(&all);
    if new_bytes > data {
        file.extend(parity_bytes(&file));
    }
    assert_eq!(file.len(), new_bytes);
    file
}
