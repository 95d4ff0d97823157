//! Deltas: a small file that turns one model into another (`docs/delta.md`). The runtime applies them; here they are made, and applied on a host.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use ed25519_dalek::{Signer, SigningKey};
use nadir::delta::{
    BLOCK_BYTES, Delta, HEAD_BYTES, LINE_BYTES, MAGIC, Memory, SEAL_BYTES, Update, VERSION, signed_message,
};
use nadir::guard::{Progress, key_id};
use nadir::model::{END_BYTES, ENTRY_BYTES, KIND_BLOCKS, Model, PREFIX_BYTES, crc32c};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::inspect::thousands;

mod rice;

/// Bytes of a pass of a UHF link: 8 minutes at 9600 bit/s.
pub const UHF_PASS_BYTES: usize = 576_000;
/// Pages of the slot and of the journal on the host.
const PAGE_BYTES: usize = 4096;

/// How a part of the new file is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all: it is that of the old file.
    Nothing,
    /// The elements that differ.
    Patch,
    /// All elements.
    Whole,
    /// Not at all: it is computed from the others.
    Computed,
}

impl Kind {
    /// `nothing`, `patch`, `whole` or `computed`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Nothing => "nothing",
            Kind::Patch => "patch",
            Kind::Whole => "whole",
            Kind::Computed => "computed",
        }
    }
}

/// A part of the new file: header, section table, or a section.
#[derive(Clone, Debug)]
pub struct Part {
    /// `block 0.0 pointwise 1 weight`.
    pub name: String,
    /// How it is sent.
    pub kind: Kind,
    /// Its elements; bytes for the header, words of 8 bytes for the table.
    pub elements: usize,
    /// How many differ from what the old file has.
    pub changed: usize,
    /// Bytes that it takes in the delta.
    pub bytes: usize,
}

/// A delta, and what it is made of.
pub struct Made {
    /// The file.
    pub file: Vec<u8>,
    /// The parts of the new file, in order.
    pub parts: Vec<Part>,
    /// Length of the new file.
    pub new_bytes: usize,
}

/// Bytes of the new file that may be those of the old one.
struct Area {
    name: String,
    start: usize,
    /// Without padding.
    bytes: usize,
    /// Bytes of an element.
    size: usize,
    /// Where the old file has the same, and how many bytes of it.
    old: Option<(usize, usize)>,
    computed: bool,
}

/// Where the table begins, where it ends without its CRC, and where the first section begins.
fn head_of(model: &Model<'_>) -> [usize; 3] {
    let table = (PREFIX_BYTES + model.header_bytes().len()).next_multiple_of(LINE_BYTES);
    let end = table + model.section_count() * ENTRY_BYTES;
    [table, end, model.tensor_range().start]
}

fn areas(old: &Model<'_>, new: &Model<'_>) -> Vec<Area> {
    let ([old_table, _, old_first], [table, _, first]) = (head_of(old), head_of(new));
    let area =
        |name: &str, start, bytes, size, old| Area { name: name.into(), start, bytes, size, old, computed: false };
    let mut areas = vec![
        area("header", 0, table, 1, (old_table == table).then_some((0, table))),
        area("section table", table, first - table, 8, Some((old_table, (old_first - old_table).min(first - table)))),
    ];
    // Sections are matched by what they are, never crosswise.
    let mut next = 0;
    for index in 0..new.section_count() {
        let Some(entry) = new.section_entry(index) else { continue };
        let name = new.section_name(index).to_string();
        let same = |&other: &usize| {
            let found = old.section_entry(other).map(|e| (e.kind, e.dtype, e.elements));
            found == Some((entry.kind, entry.dtype, entry.elements)) && old.section_name(other).to_string() == name
        };
        let found = (next..old.section_count()).find(same);
        next = found.map_or(next, |found| found + 1);
        areas.push(Area {
            name,
            start: entry.offset,
            bytes: entry.bytes(),
            size: entry.dtype.bytes(),
            old: found.and_then(|i| old.section_entry(i)).map(|e| (e.offset, e.bytes())),
            computed: entry.kind == KIND_BLOCKS,
        });
    }
    areas
}

/// A delta that turns `old` into `new`, byte for byte; signed, if a key is given.
///
/// # Errors
/// If the two are the same file, or `new` has block CRCs that are not those of its tensors.
pub fn make(old: &Model<'_>, new: &Model<'_>, key: Option<&SigningKey>) -> Result<Made> {
    ensure!(old.bytes() != new.bytes(), "both are the same file");
    let limit = u32::MAX as usize;
    ensure!(old.bytes().len().max(new.bytes().len()) <= limit, "a file has more than {limit} bytes");
    let areas = areas(old, new);
    let data = new.data();
    let mut base = vec![0; data.len()];
    let mut moves: Vec<[usize; 3]> = Vec::new();
    for area in &areas {
        let Some((from, bytes)) = area.old else { continue };
        let bytes = bytes.next_multiple_of(LINE_BYTES);
        base[area.start..area.start + bytes].copy_from_slice(&old.data()[from..from + bytes]);
        match moves.last_mut() {
            Some([new, old, length]) if (*new + *length, *old + *length) == (area.start, from) => *length += bytes,
            _ => moves.push([area.start, from, bytes]),
        }
    }
    let mut target = data.to_vec();
    let mut computed = |at: usize, bytes: usize| target[at..at + bytes].copy_from_slice(&base[at..at + bytes]);
    let [table, table_end, _] = head_of(new);
    (0..new.section_count()).for_each(|i| computed(table + i * ENTRY_BYTES + 24, 4));
    computed(table_end + 4, 4);
    computed(data.len() - END_BYTES, END_BYTES);
    areas.iter().filter(|area| area.computed).for_each(|area| computed(area.start, area.bytes));

    let (mut rows, mut payload, mut parts, mut regions) = (Vec::new(), Vec::new(), Vec::new(), 0u32);
    let (mut end_new, mut end_old) = (0, 0);
    for &[new, old, bytes] in &moves {
        for n in [new - end_new, old - end_old, bytes] {
            rice::varint(&mut rows, n / LINE_BYTES);
        }
        (end_new, end_old) = (new + bytes, old + bytes);
    }
    let mut end = 0;
    for area in &areas {
        let (from, to) = (&base[area.start..area.start + area.bytes], &target[area.start..area.start + area.bytes]);
        let elements = area.bytes / area.size;
        let patch = rice::patch(from, to, area.size);
        let mut part =
            Part { name: area.name.clone(), kind: Kind::Nothing, elements, changed: patch.changed, bytes: 0 };
        if area.computed {
            part.kind = Kind::Computed;
        } else if patch.changed > 0 {
            let before = rows.len() + payload.len();
            rice::varint(&mut rows, area.start - end);
            rice::varint(&mut rows, elements);
            let size = area.size.trailing_zeros() as u16;
            if patch.bits.len() < area.bytes {
                rows.extend((size | 4 | (patch.gap as u16) << 3 | (patch.value as u16) << 8).to_le_bytes());
                rice::varint(&mut rows, patch.bits.len());
                payload.extend(patch.bits);
                part.kind = Kind::Patch;
            } else {
                rows.extend(size.to_le_bytes());
                payload.extend(to);
                part.kind = Kind::Whole;
            }
            part.bytes = rows.len() + payload.len() - before;
            end = area.start + area.bytes;
            regions += 1;
        }
        parts.push(part);
    }
    let counts = [moves.len() as u32, regions, (rows.len() + payload.len()) as u32, rows.len() as u32];
    let file = file(old, new, counts, &[rows, payload].concat(), key);
    let delta = Delta::parse(&file).context("the delta just written does not read back")?;
    let made = apply(old.bytes(), &delta).context("the delta just written does not apply")?;
    ensure!(made == new.bytes(), "the delta just written makes another file");
    Ok(Made { file, parts, new_bytes: new.bytes().len() })
}

fn file(old: &Model<'_>, new: &Model<'_>, counts: [u32; 4], body: &[u8], key: Option<&SigningKey>) -> Vec<u8> {
    let table: Vec<u8> = body.chunks(BLOCK_BYTES).flat_map(|block| crc32c(block).to_le_bytes()).collect();
    let length = HEAD_BYTES + table.len() + body.len() + if key.is_some() { SEAL_BYTES } else { 0 };
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(u16::from(key.is_some()).to_le_bytes());
    let lengths = [old.bytes(), new.bytes(), new.data()].map(|bytes| bytes.len() as u32);
    let numbers = [&[length as u32, new.model_version()][..], &lengths, &counts].concat();
    out.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
    out.extend(Sha256::digest(old.bytes()));
    out.extend(Sha256::digest(new.bytes()));
    out.extend([0; 8]);
    out.extend(crc32c(&table).to_le_bytes());
    out.extend(crc32c(&out).to_le_bytes());
    debug_assert_eq!(out.len(), HEAD_BYTES);
    out.extend(table);
    out.extend(body);
    if let Some(key) = key {
        let id = key_id(&key.verifying_key().to_bytes());
        let seal = [&id[..], &key.sign(&signed_message(&out)).to_bytes()].concat();
        out.extend(&seal);
        out.extend(crc32c(&seal).to_le_bytes());
    }
    out
}

/// The new file, made from the old one by the runtime's own code.
///
/// # Errors
/// As [`Update::step`]; if `old` is not the file for which the delta was made.
pub fn apply(old: &[u8], delta: &Delta<'_>) -> Result<Vec<u8>> {
    let longest = old.len().max(delta.old_bytes()).max(delta.new_bytes());
    let mut slot = vec![0; longest.next_multiple_of(PAGE_BYTES)];
    slot[..old.len()].copy_from_slice(old);
    let (mut journal, mut page) = (vec![0; 3 * PAGE_BYTES], vec![0; PAGE_BYTES]);
    let (memory, log) = (Memory::new(&mut slot, PAGE_BYTES), Memory::new(&mut journal, PAGE_BYTES));
    let mut update = Update::new(*delta, memory, log, &mut page)?;
    while update.step()? == Progress::More {}
    drop(update);
    slot.truncate(delta.new_bytes());
    Ok(slot)
}

/// A share in per cent.
fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole as f64
}

/// For people: the parts that are sent, then the sizes.
pub fn text(made: &Made) -> String {
    let mut out = format!("{:<36} {:>9} {:>9}  {:<8} {:>9}\n", "part", "elements", "changed", "sent as", "bytes");
    for part in made.parts.iter().filter(|part| part.kind != Kind::Nothing) {
        let [elements, changed, bytes] = [part.elements, part.changed, part.bytes].map(|n| thousands(n as u64));
        let _ = writeln!(out, "{:<36} {elements:>9} {changed:>9}  {:<8} {bytes:>9}", part.name, part.kind.name());
    }
    let sent: usize = made.parts.iter().map(|part| part.bytes).sum();
    let of = |kind| made.parts.iter().filter(|part| part.kind == kind).count();
    let (delta, whole) = (made.file.len(), made.new_bytes);
    let passes = |bytes: usize| {
        let count = bytes.div_ceil(UHF_PASS_BYTES);
        format!(
            "{:.2} % of a pass, {count} {}",
            percent(bytes, UHF_PASS_BYTES),
            if count == 1 { "pass" } else { "passes" }
        )
    };
    let _ = writeln!(
        out,
        "\n{} parts as they are, {} patched, {} whole, {} computed; head, CRCs and moves {} bytes\n\
         delta      {:>11} bytes, {:.2} % of the new file\n\
         new file   {:>11} bytes\n\
         UHF link   {:>11} bytes a pass (8 minutes at 9.6 kbit/s): the delta {}; the file {}",
        of(Kind::Nothing),
        of(Kind::Patch),
        of(Kind::Whole),
        of(Kind::Computed),
        delta - sent,
        thousands(delta as u64),
        percent(delta, whole),
        thousands(whole as u64),
        thousands(UHF_PASS_BYTES as u64),
        passes(delta),
        passes(whole)
    );
    out
}

/// The same as JSON.
pub fn json(made: &Made) -> Value {
    let part = |part: &Part| {
        json!({
            "name": part.name,
            "sent_as": part.kind.name(),
            "elements": part.elements,
            "changed": part.changed,
            "bytes": part.bytes,
        })
    };
    json!({
        "delta_bytes": made.file.len(),
        "new_bytes": made.new_bytes,
        "share": made.file.len() as f64 / made.new_bytes as f64,
        "uhf_pass_bytes": UHF_PASS_BYTES,
        "uhf_passes": made.file.len().div_ceil(UHF_PASS_BYTES),
        "parts": made.parts.iter().map(part).collect::<Vec<_>>(),
    })
}
